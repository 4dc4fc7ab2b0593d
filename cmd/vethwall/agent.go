package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/xdp"
)

func agentCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Filter labelled containers until SIGTERM; the filters stay in force after it",
		Long: `Watches the Docker engine and filters every container that carries xdp labels, or that the
configuration concerns. The configuration is read again when it changes and on SIGHUP; one with a
mistake is rejected as a whole.

The filters live in the kernel and stay in force when the agent ends, for whatever reason: the
next one adopts them. "vethwall uninstall" removes them.`,
		Args: noArgs,
	}
	dir, conf, programs := dirFlag(cmd), newConfigFlag(cmd), programsFlag(cmd)
	verbose := cmd.Flags().BoolP("verbose", "v", false, "log more")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := errors.Join(conf.there(), mayEnforce(cmd, *dir)); err != nil {
			return err
		}
		signal.Ignore(unix.SIGPIPE) // who reads the log may go; the agent goes on
		again := make(chan os.Signal, 1)
		signal.Notify(again, unix.SIGHUP)
		defer signal.Stop(again)
		level := slog.LevelInfo
		if *verbose {
			level = slog.LevelDebug
		}
		lines := newLogWriter(e.stderr)
		log := slog.New(slog.NewTextHandler(lines, &slog.HandlerOptions{Level: level}))
		if err := hurry(); err != nil {
			log.Debug("the agent runs with the usual priority", "error", err)
		}
		err := agent.Run(cmd.Context(), agent.Options{Dir: *dir, Config: *conf.path, Again: again, Programs: *programs, Log: log, Ready: func() {
			log.Info("ready: containers with xdp labels are filtered", "version", buildVersion())
		}})
		if err == nil {
			fmt.Fprintln(lines, "vethwall: the agent has ended; the filters stay in force, and what starts from now on has none.\n"+
				"vethwall: start an agent again to go on, or remove them with: vethwall uninstall")
		}
		lines.Close()
		if err != nil {
			return e.refused(e.mistakes(err), *verbose)
		}
		return nil
	}
	return cmd
}

// niceness is the priority of the agent. It does little, but the first packet of a container waits for it: on a busy host that
// would be dropped, and sent again a second later.
const niceness = -20

// hurry raises the priority of this process: of each of its threads, from which those to come inherit it, and, where it leads a session as a
// service does, of that. The kernel shares the processor out among sessions first (sched(7), autogroup), so that among the many of an engine that starts
// containers the threads' own priority counts for little. Where cgroups share it out their weights decide instead.
func hurry() error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, _ := strconv.Atoi(t.Name())
		if err := unix.Setpriority(unix.PRIO_PROCESS, id, niceness); err != nil {
			return fmt.Errorf("set the priority: %w", err)
		}
	}
	if session, err := unix.Getsid(0); err != nil || session != os.Getpid() {
		return err // a terminal's, and of other programs, too
	}
	err = os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(niceness)), 0)
	if errors.Is(err, fs.ErrNotExist) { // a kernel without
		return nil
	}
	return err
}

// dirFlag is where commands find what is pinned.
func dirFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("dir", xdp.DefaultDir, "directory on a bpffs for what is pinned")
}

// mayEnforce says why this process cannot change anything in the kernel, before anything is done.
func mayEnforce(cmd *cobra.Command, dir string) error {
	missing, err := missingCapabilities(capBPF, capNetAdmin)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("no right to change the kernel (no %s); run as root: sudo %s", strings.Join(missing, ", "), cmd.CommandPath())
	}
	return onBPFFS(dir)
}

// onBPFFS refuses a directory of the user's that is not on a bpffs. The default one is mounted when it is needed.
func onBPFFS(dir string) error {
	if dir == xdp.DefaultDir {
		return nil
	}
	on, err := xdp.OnBPFFS(dir)
	switch {
	case on:
		return nil
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("--dir %s: %w; run as root", dir, err)
	}
	return fmt.Errorf("--dir %s is not on a bpffs; leave it out for %s, or mount one: mount -t bpf bpffs DIR", dir, xdp.DefaultDir)
}

// refused shows what the verifier had to say about a program, where the user asks for it.
func (e *env) refused(err error, verbose bool) error {
	var verifier *ebpf.VerifierError
	switch {
	case !errors.As(err, &verifier):
		return err
	case !verbose:
		return fmt.Errorf("%w; -v shows the verifier's log", err)
	}
	fmt.Fprintf(e.stderr, "%+v\n", verifier)
	return err
}

func uninstallCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take every filter out of the kernel; refuses while an agent runs",
		Args:  noArgs,
	}
	dir := dirFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := mayEnforce(cmd, *dir); err != nil {
			return err
		}
		if err := onlyOurs(*dir); err != nil {
			return err
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

// onlyOurs refuses to remove a directory that holds anything but what vethwall pins, such as a bpffs itself.
func onlyOurs(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if name := entry.Name(); name != "links" && name != "programs" && name != "askers" && !strings.HasPrefix(name, "maps-") {
			return fmt.Errorf("--dir %s holds %s, which is not vethwall's; nothing is removed: name the directory that the agent was given", dir, name)
		}
	}
	return nil
}
