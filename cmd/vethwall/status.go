package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

func statusCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [CONTAINER]",
		Short: "Show what is enforced where; exit 1 if a named container is not",
		Long: `Shows the containers that ask for a filter, as the kernel has them: no agent needs to run.
Packets are those that the container sent or received and that its policy judged.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("unexpected argument %q", args[1])
			}
			return nil
		},
	}
	s := statusView{env: e, dir: dirFlag(cmd), conf: newConfigFlag(cmd), out: outputFlag(cmd)}
	all := cmd.Flags().BoolP("all", "a", false, "containers that ask for no filter as well")
	wait := cmd.Flags().Duration("wait", 0, "how long to wait until CONTAINER is enforced")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := s.conf.there(); err != nil {
			return err
		}
		if len(args) == 0 {
			if *wait != 0 {
				return usageError(cmd, fmt.Errorf("--wait needs a CONTAINER"))
			}
			return s.showAll(cmd.Context(), *all)
		}
		return s.showOne(cmd.Context(), args[0], *wait)
	}
	return cmd
}

type statusView struct {
	*env
	dir  *string
	conf configFlag
	out  *format
	said bool // that the configuration cannot be read
}

// engineTimeout bounds how long status waits for Docker, which it can do without.
const engineTimeout = 2 * time.Second

// read joins what the kernel has with the containers that only Docker knows of.
func (s *statusView) read(ctx context.Context) ([]agent.ContainerStatus, error) {
	if err := onBPFFS(*s.dir); err != nil {
		return nil, err
	}
	have, err := agent.Status(*s.dir)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, errors.New("only root may look into the kernel; run: sudo vethwall status")
	case err != nil && !agent.IsNothing(err):
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	d, err := docker.Connect(ctx)
	if err != nil {
		return have, nil
	}
	defer d.Close()
	list, err := d.List(ctx)
	if err != nil {
		return have, nil
	}
	agent.AddJoined(have, list)
	conf, err := agent.ReadConfig(*s.conf.path)
	if err != nil && !s.said {
		s.said = true
		fmt.Fprintln(s.stderr, "vethwall: the agent's configuration cannot be used, so what has not been filtered yet is told by its labels alone: "+clean(agent.OneLine(err)))
	}
	return append(have, agent.Unseen(have, list, conf)...), nil
}

func (s *statusView) showAll(ctx context.Context, all bool) error {
	have, err := s.read(ctx)
	if err != nil {
		return err
	}
	if !all {
		have = slices.DeleteFunc(have, func(c agent.ContainerStatus) bool { return c.State == agent.Unfiltered })
	}
	if *s.out == jsonDoc {
		return s.printJSON(s.document(have))
	}
	s.noAgent()
	if len(have) == 0 {
		_, err := fmt.Fprintln(s.stdout, "no running container asks for a filter; try: docker run --label xdp.drop=udp ...")
		return err
	}
	return s.table(have)
}

func (s *statusView) showOne(ctx context.Context, name string, wait time.Duration) error {
	deadline := time.Now().Add(wait)
	for {
		have, err := s.read(ctx)
		if err != nil {
			return err
		}
		c, ok := agent.Find(have, name)
		enforced := ok && (c.State == agent.Enforced || c.State == agent.Late)
		if !enforced && time.Now().Before(deadline) && ctx.Err() == nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if !ok {
			return answerNo(fmt.Sprintf("no running container %q; see vethwall status --all", name))
		}
		if err := s.one(c); err != nil || enforced {
			return err
		}
		return answerNo("")
	}
}

// document is the stable form of the answer.
func (s statusView) document(have []agent.ContainerStatus) any {
	type hold struct {
		By      xdp.Held `json:"by"`
		Dropped uint64   `json:"dropped"` // packets of ports that were held
	}
	var h hold
	h.By, h.Dropped = xdp.HoldInForce(*s.dir)
	return struct {
		Schema     int                     `json:"schema"`
		Containers []agent.ContainerStatus `json:"containers"`
		Hold       hold                    `json:"hold"`
	}{1, append([]agent.ContainerStatus{}, have...), h}
}

// noAgent says what to know of containers that start now.
func (s statusView) noAgent() {
	way, _ := xdp.HoldInForce(*s.dir)
	// To ask a directory that is not there would make it.
	if _, err := os.Stat(*s.dir); err != nil || !xdp.AgentRuns(*s.dir) {
		fmt.Fprintln(s.stderr, "vethwall: no agent runs: what is listed stays in force, what starts now is not filtered; start one with: vethwall agent")
	} else if way == xdp.NotHeld {
		fmt.Fprintln(s.stderr, "vethwall: the agent has been stopped or stuck for more than 5 s: what is listed stays in force, what starts now is not filtered until it goes on")
	} else if way != xdp.HeldNFT {
		fmt.Fprintln(s.stderr, "vethwall: nftables does not hold what starts now: a first packet may be faster than its filter, and is counted; see vethwall doctor")
	}
}

var stateColours = map[agent.State]colour{agent.Enforced: green, agent.Audit: yellow, agent.Late: yellow, agent.Partial: yellow, agent.Unfiltered: plain}

func (s statusView) state(st agent.State) string {
	c, ok := stateColours[st]
	if !ok {
		c = red
	}
	return s.paint(c, string(st))
}

func (s statusView) table(have []agent.ContainerStatus) error {
	w := tabwriter.NewWriter(s.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "CONTAINER\t%s\tNETWORK\tVETH\tHOOK\tPASSED\tDROPPED\tPOLICY\n", s.paint(plain, "STATE"))
	for _, c := range have {
		if len(c.Interfaces) == 0 {
			fmt.Fprintf(w, "%s\t%s\t-\t-\t-\t-\t-\t%s\n", clean(c.Name), s.state(c.State), brief(c.Policy))
		}
		for _, i := range c.Interfaces {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", clean(c.Name), s.state(i.State), dash(clean(i.Network)), dash(clean(i.Ifname)),
				hooks(i.Hooks), i.Packets.Passed, i.Packets.Dropped, brief(c.Policy))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, c := range have {
		for _, why := range whys(c) {
			fmt.Fprintf(s.stdout, "%s: %s\n", clean(c.Name), clean(why))
		}
	}
	return nil
}

// whys are the errors and warnings of a container, each once.
func whys(c agent.ContainerStatus) []string {
	var out []string
	add := func(text string) {
		if text != "" && !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	add(c.Error)
	for _, i := range c.Interfaces {
		if i.Late > 0 {
			add(fmt.Sprintf("had sent %d packets on %s before its filter came", i.Late, i.Ifname))
		}
		add(i.Error)
	}
	for _, w := range c.Warnings {
		add("warning: " + w)
	}
	return out
}

func (s statusView) one(c agent.ContainerStatus) error {
	if *s.out == jsonDoc {
		return s.printJSON(s.document([]agent.ContainerStatus{c}))
	}
	s.noAgent()
	fmt.Fprintf(s.stdout, "%s %.12s: %s\npolicy: %s\n", clean(c.Name), c.ID, s.state(c.State), dash(clean(c.Policy)))
	for _, why := range whys(c) {
		fmt.Fprintln(s.stdout, clean(why))
	}
	for _, i := range c.Interfaces {
		fmt.Fprintf(s.stdout, "\nnetwork %s: %s, veth %s, hook %s\n", dash(clean(i.Network)), s.state(i.State), dash(clean(i.Ifname)), hooks(i.Hooks))
		fmt.Fprintf(s.stdout, "  %d packets passed, %d dropped", i.Packets.Passed, i.Packets.Dropped)
		if i.Packets.WouldDrop > 0 {
			fmt.Fprintf(s.stdout, ", %d passed that enforcing would drop", i.Packets.WouldDrop)
		}
		fmt.Fprintln(s.stdout)
		for _, d := range i.Drops {
			fmt.Fprintln(s.stdout, "  "+dropLine(d))
		}
	}
	return nil
}

// dropLine says what was dropped for one reason, or would have been.
func dropLine(d agent.Drop) string {
	what, way, why := "dropped", "sent", d.Reason
	if d.Audit {
		what = "would have dropped"
	}
	if d.Direction == policy.Ingress.String() {
		way = "received"
	}
	if d.Rule != "" {
		why += " " + clean(d.Rule)
	}
	return fmt.Sprintf("%s %d packets, %d bytes, %s: %s", what, d.Packets, d.Bytes, way, why)
}

// hooks are where a veth is filtered, each kind once: "xdp generic + tcx". The JSON tells directions apart.
func hooks(hs []xdp.Hook) string {
	var out []string
	for _, h := range hs {
		text := h.Type
		if h.Mode != h.Type {
			text += " " + h.Mode
		}
		if h.ByHand != "" {
			text += " (by hand: " + clean(h.ByHand) + ")"
		}
		if h.Program != "" {
			text += " (" + clean(h.Program) + ")"
		}
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return dash(strings.Join(out, " + "))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// brief cuts a policy for a table; `status CONTAINER` shows all of it.
func brief(policy string) string {
	const most = 60
	if policy = clean(policy); len(policy) > most {
		return policy[:most-3] + "..."
	}
	return dash(policy)
}
