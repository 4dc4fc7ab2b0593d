// Command vethwall filters Docker containers in the kernel, by their labels.
//
// This package parses, wires and prints; what is decided is decided in policy and internal/agent.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// commands is every command, in the order of help. Each stands in the file of its name.
var commands = []func(*env) *cobra.Command{
	agentCommand,
	statusCommand,
	checkCommand,
	explainCommand,
	eventsCommand,
	attachCommand,
	detachCommand,
	doctorCommand,
	uninstallCommand,
	versionCommand,
	completionCommand,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, &env{stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}, os.Args[1:])
	stop()
	os.Exit(code)
}

// run is the program without the process round it. It returns the exit code: 0 fine, 1 the answer is no, 2 wrong
// usage or cannot run. What went wrong has been said in one line on e.stderr.
func run(ctx context.Context, e *env, args []string) int {
	root := rootCommand(e)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if text := err.Error(); text != "" {
		// errors.Join puts its errors on lines of their own.
		fmt.Fprintln(e.stderr, "vethwall: "+clean(strings.ReplaceAll(text, "\n", "; ")))
	}
	var no answerNo
	if errors.As(err, &no) {
		return 1
	}
	return 2
}

func rootCommand(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:           "vethwall",
		Short:         "A firewall for Docker containers, in the kernel, by label",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.SetFlagErrorFunc(usageError)
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(helpCommand(root))
	for _, command := range commands {
		cmd := command(e)
		if args := cmd.Args; args != nil {
			cmd.Args = func(cmd *cobra.Command, a []string) error { return usageError(cmd, args(cmd, a)) }
		}
		root.AddCommand(cmd)
	}
	return root
}

// helpCommand replaces cobra's, which finds nothing wrong with a command that does not exist.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show how a command is used",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return unknownCommand(root, args[0])
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		},
	}
}

// usageError adds to an error about the command line where the right one is described. It is nil for nil.
func usageError(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath())
}

func unknownCommand(root *cobra.Command, name string) error {
	root.SuggestionsMinimumDistance = 2
	if like := root.SuggestionsFor(name); len(like) > 0 {
		return usageError(root, fmt.Errorf("unknown command %q, did you mean %s?", name, strings.Join(like, " or ")))
	}
	return usageError(root, fmt.Errorf("unknown command %q", name))
}

// noArgs is cobra.NoArgs with an error that fits a command without sub-commands.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	return nil
}
