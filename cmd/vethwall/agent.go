package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/xdp"
)

func agentCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Filter labelled containers until SIGTERM; the filters stay in force after it",
		Long: `Watches the Docker engine and filters every container that carries xdp labels.

The filters live in the kernel and stay in force when the agent ends, for whatever reason: the
next one adopts them. "vethwall uninstall" removes them.`,
		Args: noArgs,
	}
	dir := dirFlag(cmd)
	verbose := cmd.Flags().BoolP("verbose", "v", false, "log more")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := mayEnforce(*dir); err != nil {
			return err
		}
		level := slog.LevelInfo
		if *verbose {
			level = slog.LevelDebug
		}
		log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: level}))
		err := agent.Run(cmd.Context(), agent.Options{Dir: *dir, Log: log, Ready: func() {
			log.Info("ready: containers with xdp labels are filtered", "version", buildVersion())
		}})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(e.stderr, "vethwall: the agent has ended; the filters stay in force, and what starts from now on has none.\n"+
			"vethwall: start an agent again to go on, or remove them with: vethwall uninstall")
		return err
	}
	return cmd
}

// dirFlag is where commands find what is pinned.
func dirFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("dir", xdp.DefaultDir, "directory on a bpffs for what is pinned")
}

// mayEnforce says in one line why this process cannot change anything in the kernel.
func mayEnforce(dir string) error {
	if os.Geteuid() != 0 {
		return errors.New("no right to load programs into the kernel; run as root: sudo vethwall")
	}
	if dir == xdp.DefaultDir {
		return xdp.EnsureBPFFS(filepath.Dir(dir))
	}
	return nil
}

func uninstallCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take every filter out of the kernel; refuses while an agent runs",
		Args:  noArgs,
	}
	dir := dirFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		if os.Geteuid() != 0 {
			return errors.New("only root may remove filters; run: sudo vethwall uninstall")
		}
		err := xdp.Uninstall(*dir)
		if errors.Is(err, xdp.ErrBusy) {
			return errors.New("an agent runs and would put the filters back; stop it first")
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(e.stdout, "all filters are removed; containers are no longer filtered")
		return err
	}
	return cmd
}
