package main

import (
	"errors"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

// programsFlag is where commands find the operator's objects.
func programsFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("programs", xdp.DefaultPrograms, "directory of the objects that xdp.program names; only root may write there")
}

// checkProgram looks whether a program is of use on this host, and lets the kernel say it where this user may ask. What is
// wrong is an error for a container that is there, because it is closed; for others, which may run elsewhere or
// later, it is a warning. The name "" is none.
func checkProgram(dir, name string, there bool) (warning string, err error) {
	if name == "" {
		return "", nil
	}
	p, err := xdp.ReadProgram(dir, name)
	if err == nil {
		if err = p.Try(); errors.Is(err, fs.ErrPermission) {
			return "", nil
		}
	}
	switch {
	case err == nil || there && !errors.Is(err, fs.ErrPermission):
		return "", err
	case errors.Is(err, fs.ErrPermission):
		return "whether there is such a program only root can tell: " + err.Error(), nil
	}
	return "as this host is now, the container would be closed: " + err.Error(), nil
}

// programSentence says what a program does to a container.
func programSentence(program string, hook policy.Hook) string {
	mode := policy.HookGeneric
	if hook == policy.HookNative {
		mode = hook
	}
	return "The program " + program + " comes first on what it sends, by " + mode.String() + " XDP: what it passes is judged at tc ingress, all else that it does is final."
}
