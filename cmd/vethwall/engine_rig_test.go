package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
	"github.com/vethwall/vethwall/policy"
)

// statusOf is what `status NAME -o json` says, and whether there is such a container.
func statusOf(t *testing.T, v *enginetest.Vethwall, name string) (agent.ContainerStatus, bool) {
	t.Helper()
	a := v.Ask("status", name, "-o", "json")
	if a.Code == 2 {
		t.Fatalf("status %s: %s", name, a.Stderr)
	}
	var doc struct{ Containers []agent.ContainerStatus }
	if a.Stdout == "" {
		return agent.ContainerStatus{}, false
	}
	if err := json.Unmarshal([]byte(a.Stdout), &doc); err != nil || len(doc.Containers) != 1 {
		t.Fatalf("status %s: %v: %s", name, err, a.Stdout)
	}
	return doc.Containers[0], true
}

// statusAll is what status lists.
func statusAll(t *testing.T, v *enginetest.Vethwall) []agent.ContainerStatus {
	t.Helper()
	var doc struct{ Containers []agent.ContainerStatus }
	if err := json.Unmarshal([]byte(v.MustAsk("status", "-o", "json")), &doc); err != nil {
		t.Fatal(err)
	}
	return doc.Containers
}

// await returns the status of a container once ok holds for it.
func await(t *testing.T, v *enginetest.Vethwall, name, what string, ok func(agent.ContainerStatus) bool) (s agent.ContainerStatus) {
	t.Helper()
	v.With(t).Wait(name+" "+what, func() error {
		var there bool
		if s, there = statusOf(t, v, name); !there || !ok(s) {
			return fmt.Errorf("status: %+v", s)
		}
		return nil
	})
	return s
}

// awaitFilter returns the status of a container once every interface of it is filtered; there are n of them.
func awaitFilter(t *testing.T, v *enginetest.Vethwall, name string, n int) agent.ContainerStatus {
	t.Helper()
	return await(t, v, name, "is filtered", func(s agent.ContainerStatus) bool {
		return filtered(s) && len(s.Interfaces) == n
	})
}

func filtered(s agent.ContainerStatus) bool {
	return s.State == agent.Enforced || s.State == agent.Late
}

// linkIDs are the ids of all links of a container, which live as long as their filters.
func linkIDs(s agent.ContainerStatus) (ids []uint32) {
	for _, i := range s.Interfaces {
		for _, h := range i.Hooks {
			ids = append(ids, h.LinkID)
		}
	}
	slices.Sort(ids)
	return ids
}

// drops is how many packets a container's interfaces have dropped.
func drops(s agent.ContainerStatus) (n uint64) {
	for _, i := range s.Interfaces {
		n += i.Packets.Dropped
	}
	return n
}

// dropsFor is how many packets a container's interfaces have dropped for a reason.
func dropsFor(s agent.ContainerStatus, why policy.Reason) (n uint64) {
	for _, i := range s.Interfaces {
		for _, d := range i.Drops {
			if d.Reason == why.String() && !d.Audit {
				n += d.Packets
			}
		}
	}
	return n
}

// sink is a container that says what it received, under the letter that ways name.
type sink struct {
	*enginetest.Container
	v4, v6 netip.Addr
	// open is the way by which the marker gets there, 443/tcp unless it says another.
	open string
}

// traffic sends from containers to sinks by ways. A way is written "53/udp@A" or "ping@A", with a 6 at its
// end for IPv6.
type traffic struct {
	v     *enginetest.Vethwall
	sinks map[string]sink
	// marker is a container without a filter.
	marker *enginetest.Container
	n      int
}

// shows that packets of a container pass by the ways of the one list, and that none does by those of the other.
// What is denied is sent first. It is looked for at the sink only after something that was sent later has
// arrived there, from this container where it may send there, else from one without a filter.
func (tr *traffic) shows(t *testing.T, from *enginetest.Container, denied, allowed []string) {
	t.Helper()
	from = from.With(tr.v.Docker.With(t))
	tr.n++
	text := func(way string) string { return fmt.Sprintf("%d from %s by %s", tr.n, from.Name, way) }
	for i, err := range from.DoMany(tr.commands(denied, text, "300ms")...) {
		if err == nil {
			t.Errorf("%s: an answer to %s", from.Name, denied[i])
		}
	}
	for i, err := range from.DoMany(tr.commands(allowed, text, "5s")...) {
		if err != nil {
			t.Errorf("%s: %s does not pass: %v", from.Name, allowed[i], err)
		}
	}
	arrived := map[string]map[string]int{}
	for _, way := range denied {
		_, name, six := tr.parse(way)
		if arrived[name] == nil {
			mark := tr.commands([]string{cmp.Or(tr.sinks[name].open, "443/tcp") + "@" + name + six}, func(string) string { return text("marker") }, "5s")
			if err := tr.marker.With(tr.v.Docker.With(t)).DoMany(mark...)[0]; err != nil {
				t.Fatalf("the marker does not arrive at %s: %v", name, err)
			}
			arrived[name] = map[string]int{}
			for _, a := range tr.sinks[name].With(tr.v.Docker.With(t)).Received() {
				arrived[name][a.Text] += a.Count
			}
		}
		if n := arrived[name][text(way)]; n > 0 {
			t.Errorf("%s: %s arrived %d times", from.Name, way, n)
		}
	}
	if s, _ := statusOf(t, tr.v, from.Name); dropsFor(s, policy.Spoof) > 0 {
		t.Errorf("%s: what it sent is taken for forged: %+v", from.Name, s)
	}
}

// parse takes a way apart.
func (tr *traffic) parse(way string) (what, sinkName, six string) {
	what, sinkName, _ = strings.Cut(way, "@")
	if s, ok := strings.CutSuffix(sinkName, "6"); ok {
		return what, s, "6"
	}
	return what, sinkName, ""
}

// commands are what peer must do to send by ways and to wait for the answers.
func (tr *traffic) commands(ways []string, text func(way string) string, patience string) (out [][]string) {
	for _, way := range ways {
		what, name, six := tr.parse(way)
		addr := tr.sinks[name].v4
		if six != "" {
			addr = tr.sinks[name].v6
		}
		port, proto, _ := strings.Cut(what, "/")
		to := net.JoinHostPort(addr.String(), port)
		switch {
		case what == "ping":
			out = append(out, []string{"ping", "-wait", patience, addr.String()})
		case proto == "udp":
			out = append(out, []string{"udp-send", "-n", "3", "-every", "1ms", "-echo", patience, to, text(way)})
		default:
			out = append(out, []string{"tcp-dial", "-wait", patience, to, text(way)})
		}
	}
	return out
}
