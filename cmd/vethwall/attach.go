package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/xdp"
)

func attachCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "attach CONTAINER OBJECT.o",
		Short: "Put an XDP program of your own on a container's veth, until it stops or detach",
		Long: `Loads an XDP program from an object file and puts it on the host's end of every veth of the
container, where it judges what the container sends. A policy of the container's labels stays in
force: it moves to tc ingress and judges what the program passes. A container with the label
xdp.program is refused: its slot is taken.
Objects without BTF, without a license and with any section name will do.`,
		Example: "  vethwall attach httptest dropper.o --section .text\n  vethwall attach httptest udp.o --section dropper_main",
		Args:    exactArgs("CONTAINER", "OBJECT.o"),
	}
	dir := dirFlag(cmd)
	section := cmd.Flags().String("section", "", "section of the program, where there are several")
	native := cmd.Flags().Bool("native", false, "native instead of generic XDP: the driver's, with its price on a veth")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		veths, err := changeableVeths(cmd, *dir, args[0])
		if err != nil {
			return err
		}
		if err := refuseClosed(*dir, veths); err != nil {
			return err
		}
		program, err := xdp.LoadObject(args[1], *section)
		if err != nil {
			return err
		}
		defer program.Close()
		mode := xdp.Generic
		if *native {
			mode = xdp.Native
		}
		if *dir == xdp.DefaultDir {
			if err := xdp.EnsureBPFFS(filepath.Dir(*dir)); err != nil {
				return err
			}
		}
		var done []xdp.Veth
		for _, v := range veths {
			if err := xdp.AttachByHand(*dir, v.Index, program, mode); err != nil {
				// All of them or none.
				for _, d := range done {
					err = errors.Join(err, xdp.DetachByHand(*dir, d.Index))
				}
				return fmt.Errorf("container %s: %s: %w", args[0], v.Name, err)
			}
			done = append(done, v)
			if _, err := fmt.Fprintf(e.stdout, "%s: %s judges what it sends on %s\n", args[0], args[1], v.Name); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

func detachCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "detach CONTAINER",
		Short: "Take a program that attach put there off again; the container's policy stays in force",
		Args:  exactArgs("CONTAINER"),
	}
	dir := dirFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		veths, err := changeableVeths(cmd, *dir, args[0])
		if err != nil {
			return err
		}
		n := 0
		for _, v := range veths {
			err := xdp.DetachByHand(*dir, v.Index)
			if errors.Is(err, xdp.ErrNotByHand) {
				continue
			}
			if err != nil {
				return fmt.Errorf("container %s: %s: %w", args[0], v.Name, err)
			}
			n++
			if _, err := fmt.Fprintf(e.stdout, "%s: detached from %s\n", args[0], v.Name); err != nil {
				return err
			}
		}
		if n == 0 {
			return answerNo(fmt.Sprintf("container %s: no program was attached by hand", args[0]))
		}
		return nil
	}
	return cmd
}

// refuseClosed keeps a program from opening a container that must be closed.
func refuseClosed(dir string, veths []xdp.Veth) error {
	all, err := agent.Status(dir)
	if err != nil {
		return nil // nothing is closed where nothing is in the kernel
	}
	for _, c := range all {
		for _, i := range c.Interfaces {
			// By device: Docker has many spellings for a container.
			if i.State == agent.Quarantined && slices.ContainsFunc(veths, func(v xdp.Veth) bool { return v.Index == i.Ifindex }) {
				return fmt.Errorf("container %s is closed: %s", c.Name, i.Error)
			}
		}
	}
	return nil
}

// changeableVeths are the host's ends of a running container's veths, at least one, for a command that changes what is on
// them.
func changeableVeths(cmd *cobra.Command, dir, name string) ([]xdp.Veth, error) {
	if err := mayEnforce(cmd, dir); err != nil {
		return nil, err
	}
	c, err := inspect(cmd.Context(), name)
	if err != nil {
		return nil, err
	}
	if !c.Running {
		return nil, fmt.Errorf("container %s does not run; start it first", name)
	}
	for _, i := range agent.Obstacles(c) {
		return nil, fmt.Errorf("container %s: %s", name, i.Error)
	}
	veths, err := agent.Veths(c)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", name, err)
	}
	if len(veths) == 0 {
		return nil, fmt.Errorf("container %s has no veth on this host; only bridge networks have one", name)
	}
	return veths, nil
}

// inspectTimeout is how long a command waits for the engine, which answers for a container only after a start
// that is under way.
const inspectTimeout = 30 * time.Second

// inspect asks Docker for a container by name or id.
func inspect(ctx context.Context, name string) (docker.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	d, err := docker.Connect(ctx)
	if err != nil {
		return docker.Container{}, err
	}
	defer d.Close()
	return inspectWith(ctx, d, name)
}

func inspectWith(ctx context.Context, d *docker.Client, name string) (docker.Container, error) {
	c, err := d.Inspect(ctx, name)
	if errdefs.IsNotFound(err) {
		return c, fmt.Errorf("no container %q: docker ps --all lists them", name)
	}
	return c, err
}

// exactArgs names the arguments that a command wants.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return fmt.Errorf("missing %s", names[len(args)])
		case len(args) > len(names):
			return fmt.Errorf("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}
