package main

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// served is what a container that is asked has open; in the list of ways it is sink C.
var served = []string{"53/udp", "54/udp", "25/tcp", "443/tcp"}

// asked starts a container that serves, and is sink C from then on.
func asked(t *testing.T, v *enginetest.Vethwall, tr *traffic, image, network, name, open string, labels ...string) *enginetest.Container {
	t.Helper()
	c := v.With(t).Serve(image, name, labelled(network, labels...), served...)
	tr.sinks["C"] = sink{Container: c, v4: c.Addr(network, 4), v6: c.Addr(network, 6), open: open}
	return c
}

// TestDirections lets a container ask and be asked.
func TestDirections(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	v.StartAgent()

	outward := []string{"53/udp@A", "54/udp@A", "25/tcp@A", "443/tcp@A", "ping@A", "53/udp@A6", "443/tcp@A6", "ping@A6", "443/tcp@B"}
	inward := []string{"53/udp@C", "54/udp@C", "25/tcp@C", "443/tcp@C", "ping@C", "53/udp@C6", "443/tcp@C6", "ping@C6"}
	published, list := []string{"443/tcp@C", "443/tcp@C6"}, []string{"443/tcp@A", "443/tcp@A6"}
	for _, tc := range []struct {
		name    string
		labels  []string
		out, in []string // what passes; the rest of outward and inward does not
		open    string
	}{
		{name: "published port only", labels: []string{"xdp.egress.default=drop", "xdp.ingress.allow=443/tcp"}, in: published},
		{name: "the same at tc", labels: []string{"xdp.egress.default=drop", "xdp.ingress.allow=443/tcp", "xdp.hook=tcx"}, in: published},
		{name: "the same in the driver", labels: []string{"xdp.egress.default=drop", "xdp.ingress.allow=443/tcp", "xdp.hook=native"}, in: published},
		{name: "egress list", labels: []string{"xdp.egress.allow=443/tcp@" + addrA4 + "+" + addrA6, "xdp.ingress.allow=25/tcp"},
			out: list, in: []string{"25/tcp@C"}, open: "25/tcp"},
		{name: "egress list alone", labels: []string{"xdp.egress.allow=443/tcp@" + addrA4 + "+" + addrA6}, out: list, in: inward},
		{name: "ingress drop", labels: []string{"xdp.ingress.drop=53/udp,25/tcp,ping"}, out: outward, in: []string{"54/udp@C", "443/tcp@C", "443/tcp@C6"}},
		{name: "egress drop", labels: []string{"xdp.egress.drop=53/udp,25/tcp,ping"}, out: []string{"54/udp@A", "443/tcp@A", "443/tcp@A6", "443/tcp@B"}, in: inward},
		{name: "udp is answered", labels: []string{"xdp.egress.allow=53/udp", "xdp.ingress.allow=443/tcp"}, out: []string{"53/udp@A", "53/udp@A6"}, in: published},
		{name: "ping out", labels: []string{"xdp.egress.allow=ping", "xdp.ingress.allow=443/tcp"}, out: []string{"ping@A", "ping@A6"}, in: published},
		{name: "ping in", labels: []string{"xdp.egress.allow=443/tcp", "xdp.ingress.allow=ping,443/tcp"}, out: append(list, "443/tcp@B"),
			in: append(published, "ping@C", "ping@C6")},
		{name: "drop both ways", labels: []string{"xdp.drop=53/udp"}, out: without(outward, []string{"53/udp@A", "53/udp@A6"}),
			in: without(inward, []string{"53/udp@C", "53/udp@C6"})},
		{name: "except", labels: []string{"xdp.drop=udp", "xdp.except=53/udp"}, out: without(outward, []string{"54/udp@A"}), in: without(inward, []string{"54/udp@C"})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := asked(t, v, tr, image, network, "d-"+strings.ReplaceAll(tc.name, " ", "-"), tc.open, tc.labels...)
			awaitFilter(t, v, c.Name, 1)
			tr.shows(t, tr.marker, without(inward, tc.in), tc.in)
			tr.shows(t, c, without(outward, tc.out), tc.out)
			// Each direction is counted for itself.
			s, _ := statusOf(t, v, c.Name)
			for dir, denied := range map[string]int{"egress": len(outward) - len(tc.out), "ingress": len(inward) - len(tc.in)} {
				dropped := slices.ContainsFunc(s.Interfaces[0].Drops, func(d agent.Drop) bool { return d.Direction == dir })
				if denied > 0 && !dropped {
					t.Errorf("%d ways of %s are denied: %+v", denied, dir, s.Interfaces[0].Drops)
				}
			}
			v.With(t).Run("rm", "--force", c.ID)
		})
	}
	t.Run("closed", func(t *testing.T) {
		c := asked(t, v, tr, image, network, "d-closed", "", "xdp.drop=upd")
		await(t, v, c.Name, "is closed", func(s agent.ContainerStatus) bool { return s.State == agent.Quarantined })
		for i, err := range tr.marker.With(v.With(t).Docker).DoMany(tr.commands(inward, func(string) string { return "closed" }, "300ms")...) {
			if err == nil {
				t.Errorf("an answer to %s", inward[i])
			}
		}
		if n := c.Count("closed"); n > 0 {
			t.Errorf("%d things were received", n)
		}
		v.With(t).Run("rm", "--force", c.ID)
	})
}

// talk is a TCP connection that is in use all the time.
type talk struct {
	to   *enginetest.Container
	text string
}

// newTalk lets a container connect to a port of another.
func newTalk(t *testing.T, v *enginetest.Vethwall, from, to *enginetest.Container, network, port string) talk {
	t.Helper()
	k := talk{to, fmt.Sprintf("%s talks to %s by %s", from.Name, to.Name, port)}
	v.With(t).Run("exec", "--detach", from.ID, "/peer", "tcp-talk", fmt.Sprintf("%s:%s", to.Addr(network, 4), port), k.text)
	k.goesOn(t, v)
	return k
}

// goesOn waits for more than what may have been under way.
func (k talk) goesOn(t *testing.T, v *enginetest.Vethwall) {
	t.Helper()
	to := k.to.With(v.With(t).Docker)
	before := to.Count(k.text)
	v.With(t).Wait(k.text, func() error {
		if n := to.Count(k.text); n < before+5 {
			return fmt.Errorf("%d arrivals, then %d", before, n)
		}
		return nil
	})
}

// TestTalks begins conversations before the agent ends, and before it comes.
func TestTalks(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	labels := []string{"xdp.egress.allow=443/tcp", "xdp.ingress.allow=25/tcp"}
	shows := func(t *testing.T, c *enginetest.Container) {
		t.Helper()
		tr.shows(t, c, []string{"25/tcp@A", "53/udp@A", "ping@A"}, []string{"443/tcp@A", "443/tcp@A6"})
		tr.shows(t, tr.marker, []string{"443/tcp@C", "53/udp@C", "ping@C"}, []string{"25/tcp@C", "25/tcp@C6"})
	}

	t.Run("the agent ends", func(t *testing.T) {
		v.StartAgent()
		c := asked(t, v, tr, image, network, "talks", "25/tcp", labels...)
		before := awaitFilter(t, v, c.Name, 1)
		talks := []talk{newTalk(t, v, c, tr.sinks["A"].Container, network, "443"), newTalk(t, v, tr.marker, c, network, "25")}
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			v.EndAgent(sig)
			for _, k := range talks {
				k.goesOn(t, v)
			}
			shows(t, c)
			v.StartAgent()
			for _, k := range talks {
				k.goesOn(t, v)
			}
			if s := awaitFilter(t, v, c.Name, 1); !slices.Equal(linkIDs(before), linkIDs(s)) {
				t.Errorf("%v: links %v became %v", sig, linkIDs(before), linkIDs(s))
			}
			shows(t, c)
		}
		v.EndAgent(syscall.SIGTERM)
	})
	t.Run("the agent comes", func(t *testing.T) {
		c := asked(t, v, tr, image, network, "early", "25/tcp", labels...)
		a := tr.sinks["A"].Container
		allowed := []talk{newTalk(t, v, c, a, network, "443"), newTalk(t, v, tr.marker, c, network, "25")}
		denied := []talk{newTalk(t, v, c, a, network, "25"), newTalk(t, v, tr.marker, c, network, "443")}
		v.StartAgent()
		if s := awaitFilter(t, v, c.Name, 1); s.State != agent.Late {
			t.Errorf("it had sent and is not called late: %+v", s)
		}
		var stopped []int
		for _, k := range denied {
			stopped = append(stopped, k.to.With(v.With(t).Docker).Count(k.text))
		}
		for _, k := range allowed {
			k.goesOn(t, v)
		}
		for i, k := range denied {
			if n := k.to.With(v.With(t).Docker).Count(k.text); n != stopped[i] {
				t.Errorf("%s: %d arrivals, then %d", k.text, stopped[i], n)
			}
		}
		shows(t, c)
	})
}
