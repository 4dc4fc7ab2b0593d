package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/spf13/cobra"

	"github.com/vethwall/vethwall/internal/agent"
)

func eventsCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "events [CONTAINER]",
		Short: "Show packets that were dropped, and those that passed where xdp.log=all",
		Long: `Shows what the kernel still has of the packets of containers that run, the oldest first; with -f also what comes,
until it is interrupted. No agent needs to run.
These are samples: of each interface of a container 64 at once and 32 a second, of all together the last
16,384. What was left out is said; vethwall status counts every packet.`,
		Example: "  vethwall events -f web\n  vethwall events -o json",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("unexpected argument %q", args[1])
			}
			return nil
		},
	}
	v := eventsView{env: e, dir: dirFlag(cmd), out: outputFlag(cmd), now: time.Now}
	follow := cmd.Flags().BoolP("follow", "f", false, "go on with what comes, until interrupted")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := v.show(cmd.Context(), args, *follow)
		if errors.Is(err, fs.ErrPermission) {
			return errors.New("only root may look into the kernel; run: sudo vethwall events")
		}
		return err
	}
	return cmd
}

type eventsView struct {
	*env
	dir  *string
	out  *format
	now  func() time.Time
	wide int // of the column of names
}

// eventsEvery is how often the kernel is asked, and eventsPatience how long a new container's events wait for its record.
const (
	eventsEvery    = 100 * time.Millisecond
	eventsPatience = time.Second
)

func (v *eventsView) show(ctx context.Context, args []string, follow bool) error {
	if err := onBPFFS(*v.dir); err != nil {
		return err
	}
	wanted, err := v.wanted(args, follow)
	if err != nil {
		return err
	}
	events, err := agent.OpenEvents(*v.dir)
	if err != nil {
		return err
	}
	defer events.Close()
	patience := time.Duration(0)
	if follow {
		patience = eventsPatience
	}
	for {
		found, lost, err := events.Next(patience)
		if err != nil {
			return err
		}
		if err := v.print(found, lost, wanted); err != nil {
			return err
		}
		if !follow {
			v.hint()
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(eventsEvery):
		}
	}
}

// hint tells people who see nothing that this is all.
func (v *eventsView) hint() {
	if v.wide == 0 && *v.out == table {
		fmt.Fprintln(v.stderr, "vethwall: the kernel has no events of containers that run; -f waits for some")
	}
}

// wanted tells which events are asked for: those of the container that args name, by whatever that was when it
// was looked for; those of containers that run; or, followed, all.
func (v *eventsView) wanted(args []string, follow bool) (func(agent.Event) bool, error) {
	if len(args) == 0 {
		return func(e agent.Event) bool { return follow || e.ID != "" }, nil
	}
	have, err := agent.Status(*v.dir)
	if err != nil && !agent.IsNothing(err) {
		return nil, err
	}
	c, ok := agent.Find(have, args[0])
	if !ok {
		return nil, answerNo(fmt.Sprintf("no running container %q asks for a filter; see vethwall status --all", args[0]))
	}
	return func(e agent.Event) bool { return e.ID == c.ID || e.Name == c.Name }, nil
}
