package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

func completionCommand(e *env) *cobra.Command {
	shells := []struct {
		name  string
		write func(*cobra.Command, io.Writer) error
	}{
		{"bash", func(root *cobra.Command, w io.Writer) error { return root.GenBashCompletionV2(w, true) }},
		{"zsh", (*cobra.Command).GenZshCompletion},
		{"fish", func(root *cobra.Command, w io.Writer) error { return root.GenFishCompletion(w, true) }},
	}
	var names []string
	for _, shell := range shells {
		names = append(names, shell.name)
	}
	return &cobra.Command{
		Use:       "completion " + strings.Join(names, "|"),
		Short:     "Print the completion script of a shell",
		Example:   "  source <(vethwall completion bash)",
		ValidArgs: names,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("name one shell: %s", strings.Join(names, ", "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, shell := range shells {
				if shell.name == args[0] {
					return shell.write(cmd.Root(), e.stdout)
				}
			}
			return usageError(cmd, fmt.Errorf("unknown shell %q, want one of %s", args[0], strings.Join(names, ", ")))
		},
	}
}
