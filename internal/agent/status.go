package agent

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

// Unfiltered is the state of a container that asks for nothing.
const Unfiltered State = "unfiltered"

// ContainerStatus is what the agent has recorded of a container, held against what the kernel says now.
type ContainerStatus struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	State      State             `json:"state"`
	Policy     string            `json:"policy"`
	Error      string            `json:"error"`
	Warnings   []string          `json:"warnings"`
	Holds      bool              `json:"holds"`
	Interfaces []InterfaceStatus `json:"interfaces"`
}

// InterfaceStatus is one network of a container. Packets counts both directions.
type InterfaceStatus struct {
	Network string     `json:"network"`
	State   State      `json:"state"`
	Error   string     `json:"error,omitempty"`
	Ifname  string     `json:"host_ifname"`
	Ifindex int        `json:"host_ifindex"`
	Late    uint64     `json:"late,omitempty"`
	Hooks   []xdp.Hook `json:"hooks"`
	Packets Packets    `json:"packets"`
	Drops   []Drop     `json:"drops"`
}

// Packets are counts since the policy came into force.
type Packets struct {
	Passed    uint64 `json:"passed"`
	Dropped   uint64 `json:"dropped"`
	WouldDrop uint64 `json:"would_drop"` // in audit mode
}

// Drop is how much was dropped for one reason, most first.
type Drop struct {
	Reason    string `json:"reason"`
	Rule      string `json:"rule,omitempty"`
	Audit     bool   `json:"audit,omitempty"` // it passed all the same
	Direction string `json:"direction"`
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"` // layer 2
}

// Status reads back all containers that have a record, sorted by name. No agent and no engine is needed.
// xdp.ErrNothing where no agent has ever run.
func Status(dir string) ([]ContainerStatus, error) {
	r, err := xdp.OpenReader(dir)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	records, err := r.Records()
	if err != nil {
		return nil, err
	}
	out := []ContainerStatus{}
	for id, text := range records {
		record, err := ParseRecord(text)
		if err != nil {
			out = append(out, ContainerStatus{
				ID: id, Name: short(id), State: Pending, Error: "its record is damaged; an agent that runs writes it anew",
				Warnings: []string{}, Interfaces: []InterfaceStatus{},
			})
			continue
		}
		out = append(out, status(r, record))
	}
	slices.SortFunc(out, func(a, b ContainerStatus) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

func status(r *xdp.Reader, record Record) ContainerStatus {
	s := ContainerStatus{
		ID: record.ID, Name: record.Name, State: Enforced, Policy: record.Policy, Error: record.Error,
		Warnings: append([]string{}, record.Warnings...), Holds: record.Holds, Interfaces: []InterfaceStatus{},
	}
	if len(record.Interfaces) == 0 {
		s.State = Pending
	}
	for _, i := range record.Interfaces {
		read := interfaceStatus(r, record, i)
		s.State = Worst(s.State, read.State)
		s.Interfaces = append(s.Interfaces, read)
	}
	if record.Resolver != "" && !r.ResolverIsClosed(record.Resolver) {
		s.State = Worst(s.State, Pending)
		s.Interfaces = append(s.Interfaces, InterfaceStatus{
			Network: enginesResolver, State: Pending, Hooks: []xdp.Hook{}, Drops: []Drop{},
			Error: "NOT CLOSED: the filter before the engine's resolver is gone from the kernel; a running agent puts it back",
		})
	}
	return s
}

// interfaceStatus believes the kernel where it and the record differ.
func interfaceStatus(r *xdp.Reader, record Record, i Interface) InterfaceStatus {
	s := InterfaceStatus{
		Network: i.Network, State: i.State, Error: i.Error, Ifname: i.Ifname, Ifindex: i.Ifindex, Late: i.Late,
		Hooks: []xdp.Hook{}, Drops: []Drop{},
	}
	if i.Ifindex == 0 {
		return s
	}
	d, err := r.Device(i.Ifindex)
	if err != nil {
		s.State, s.Error = Pending, "its veth is gone"
		return s
	}
	s.Ifname = d.Name
	for _, h := range d.Hooks {
		if h.Program != "" && record.Program != "" {
			h.Program = record.Program // the name that users know it by
		}
		s.Hooks = append(s.Hooks, h)
	}
	s.count(d.Counts, record.Rules)
	if lack := lacking(d, s.State, record); lack != "" {
		s.State = Pending
		s.Error = lack
		if d.Foreign != 0 {
			s.Error = fmt.Sprintf("%s; XDP program %d of somebody else is attached", lack, d.Foreign)
		}
	}
	return s
}

// lacking says what the kernel lacks of what the record promises.
func lacking(d xdp.Device, promised State, r Record) string {
	judges := func(dir policy.Direction) bool {
		return slices.ContainsFunc(d.Hooks, func(h xdp.Hook) bool { return h.ByHand == "" && h.Program == "" && h.Direction == dir.String() })
	}
	operated := slices.ContainsFunc(d.Hooks, func(h xdp.Hook) bool { return h.Program != "" })
	receives := r.Receives || promised == Quarantined
	filtered := d.HasPolicy && judges(policy.Egress) && (!receives || judges(policy.Ingress))
	switch promised {
	case Enforced, Audit, Late, Partial:
		switch {
		case !filtered || d.Closed:
			return "NOT FILTERED: the filter is gone from the kernel; a running agent puts it back"
		case d.Halved:
			return "NOT FILTERED in full: of the two hooks that judge what the container sends one is gone from the kernel; a running agent puts it back"
		case r.Program != "" && !operated:
			return "NOT FILTERED by xdp.program=" + r.Program + ": it is gone from the kernel; a running agent puts it back"
		}
	case Quarantined:
		switch {
		case d.Up && (!filtered || !d.Closed):
			return "NOT CLOSED: it has neither a filter nor is it down; a running agent closes it"
		case d.Up && d.Halved:
			return "NOT CLOSED in full: of the two hooks that judge what the container sends one is gone from the kernel; a running agent puts it back"
		}
	}
	return ""
}

func (s *InterfaceStatus) count(counts []xdp.Count, all [2][]xdp.Counted) {
	for _, c := range counts {
		if c.Reason == policy.Pass {
			s.Packets.Passed += c.Packets
			continue
		}
		d := Drop{Reason: c.Reason.String(), Direction: c.Direction.String(), Audit: c.Audited, Packets: c.Packets, Bytes: c.Bytes}
		if rules := all[c.Direction]; c.Reason == policy.ByRule && c.Slot < len(rules) {
			rule := rules[c.Slot]
			d.Rule, d.Audit = rule.Rule, rule.Audit
			if rule.Limit {
				d.Reason = policy.LimitReached.String()
			}
		}
		if d.Audit {
			s.Packets.WouldDrop += c.Packets
		} else {
			s.Packets.Dropped += c.Packets
		}
		s.Drops = append(s.Drops, d)
	}
	slices.SortStableFunc(s.Drops, func(a, b Drop) int { return cmp.Compare(b.Packets, a.Packets) })
}

// Find picks the container that a user names: by its name, its id, or the beginning of its id.
func Find(all []ContainerStatus, name string) (ContainerStatus, bool) {
	for _, match := range []func(ContainerStatus) bool{
		func(c ContainerStatus) bool { return c.Name == name || c.ID == name },
		func(c ContainerStatus) bool {
			return len(name) >= 2 && len(c.ID) > len(name) && c.ID[:len(name)] == name
		},
	} {
		if i := slices.IndexFunc(all, match); i >= 0 {
			return all[i], true
		}
	}
	return ContainerStatus{}, false
}

// IsNothing reports whether err says that no agent has ever run.
func IsNothing(err error) bool { return errors.Is(err, xdp.ErrNothing) }

// AddJoined adds to what containers have those networks of a list that they have joined since their record was written, because
// no agent runs or has come to it yet.
func AddJoined(have []ContainerStatus, list []docker.Summary) {
	for i := range have {
		c := &have[i]
		at := slices.IndexFunc(list, func(s docker.Summary) bool { return s.ID == c.ID })
		if at < 0 || list[at].State != "running" && list[at].State != "paused" {
			continue
		}
		named := func(network string) bool {
			return slices.ContainsFunc(c.Interfaces, func(i InterfaceStatus) bool { return i.Network == network })
		}
		for _, e := range list[at].Networks {
			// Some are named after their bridge: what counts is that there are too few.
			if named(e.Network) || len(c.Interfaces) >= len(list[at].Networks) {
				continue
			}
			c.Interfaces = append(c.Interfaces, InterfaceStatus{
				Network: e.Network, State: Pending, Error: "NOT FILTERED: no agent has seen that the container joined network " + e.Network,
				Hooks: []xdp.Hook{}, Drops: []Drop{},
			})
			c.State = Worst(c.State, Pending)
		}
	}
}

// Unseen are the running containers of a list that have no record: those that ask for a filter, or that conf concerns, which no agent
// has seen yet, and those that ask for nothing.
func Unseen(have []ContainerStatus, list []docker.Summary, conf config.Config) []ContainerStatus {
	var out []ContainerStatus
	for _, s := range list {
		if s.State != "running" && s.State != "paused" || slices.ContainsFunc(have, func(c ContainerStatus) bool { return c.ID == s.ID }) {
			continue
		}
		c := ContainerStatus{ID: s.ID, Name: s.Name, State: Unfiltered, Warnings: []string{}, Interfaces: []InterfaceStatus{}}
		_, asks, err := policy.Parse(s.Labels)
		concerned, _, _, confErr := configured(docker.Container{Name: s.Name, Image: s.Image, Labels: s.Labels}, nil, conf)
		switch {
		case asks || err != nil:
			c.State, c.Error = Pending, "NOT FILTERED: it asks for a filter and no agent has put one there"
		case len(concerned) > 0 || confErr != nil:
			c.State, c.Error = Pending, "NOT FILTERED: the agent's configuration asks for a filter of it and no agent has put one there"
		case asksAtAll(s.Labels):
			c.Error = "xdp.enable is off; if that is the image's label it does not count, and an agent that runs filters the container"
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b ContainerStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
