package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
	"github.com/vethwall/vethwall/xdp"
)

const (
	dropper = "../../examples/article/dropper.o"
	udpOnly = "../../examples/article/udp.o"
)

// TestByHand puts the article's programs on containers with a policy and without one.
func TestByHand(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	v.StartAgent()
	// The article's udp.o reads the fields of IPv4 in whatever comes, so only IPv4 is asked for.
	udp, rest := []string{"53/udp@A", "54/udp@A"}, []string{"25/tcp@A", "443/tcp@A", "ping@A"}

	t.Run("without a policy", func(t *testing.T) {
		c := v.With(t).Start(image, "plain", labelled(network))
		v.MustAsk("attach", c.Name, dropper, "--section", ".text")
		tr.shows(t, c, append(udp, rest...), nil)
		if a := v.Ask("attach", c.Name, udpOnly); a.Code != 2 || !strings.Contains(a.Stderr, "detach it first") {
			t.Errorf("a second attach: %+v", a)
		}
		v.MustAsk("detach", c.Name)
		// It drops ARP, too: the kernel gives up an address 3 s after the first question, and with it all that waits for the answer by then.
		inNetworkOf(t, v, c, "ip", "neigh", "flush", "all")
		tr.shows(t, c, nil, append(udp, rest...))
		if with := v.With(t).Filtered(); len(with) > 0 {
			t.Errorf("programs on %v", with)
		}
		v.MustAsk("attach", c.Name, udpOnly, "--section", "dropper_main")
		tr.shows(t, c, udp, rest)
		v.MustAsk("detach", c.Name)
		tr.shows(t, c, nil, append(udp, rest...))
		if a := v.Ask("detach", c.Name); a.Code != 1 || !strings.Contains(a.Stderr, "no program was attached by hand") {
			t.Errorf("a second detach: %+v", a)
		}
		v.MustAsk("attach", c.Name, udpOnly, "--native")
		tr.shows(t, c, udp, rest)
		v.With(t).Run("rm", "--force", c.ID) // with the program on it
		settled(t, v)
	})
	t.Run("with a policy", func(t *testing.T) {
		c := v.With(t).Start(image, "policy", labelled(network, "xdp.drop=tcp"))
		tcp, ping := rest[:2], rest[2:]
		before := awaitFilter(t, v, c.Name, 1)
		tr.shows(t, c, tcp, append(ping, udp...))
		// The article's way is refused: it would take the filter away.
		veth := before.Interfaces[0].Ifname
		for _, what := range [][]string{{"off"}, {"obj", udpOnly, "sec", "dropper_main"}} {
			if out, err := v.Command("ip", append([]string{"link", "set", "dev", veth, "xdpgeneric"}, what...)...).CombinedOutput(); err == nil || !strings.Contains(string(out), "replace active") {
				t.Errorf("ip link set dev %s xdpgeneric %v: %v: %s", veth, what, err, out)
			}
		}
		v.MustAsk("attach", c.Name, udpOnly)
		byHand := func(h xdp.Hook) bool { return h.ByHand != "" }
		s := await(t, v, c.Name, "is judged by hand", func(s agent.ContainerStatus) bool {
			return filtered(s) && slices.ContainsFunc(s.Interfaces[0].Hooks, byHand)
		})
		if ids := linkIDs(s); len(ids) != 3 || len(without(linkIDs(before), ids)) > 0 {
			t.Errorf("want the same links, one of them by hand, and one at tc ingress: %+v, before %+v", s, before)
		}
		if text := v.MustAsk("status", c.Name); !strings.Contains(text, "by hand") {
			t.Errorf("status: %s", text)
		}
		tr.shows(t, c, append(tcp, udp...), ping)
		v.MustAsk("detach", c.Name)
		if s := awaitFilter(t, v, c.Name, 1); !slices.Equal(linkIDs(s), linkIDs(before)) {
			t.Errorf("other links: %+v, before %+v", s, before)
		}
		tr.shows(t, c, tcp, append(ping, udp...))
	})
	t.Run("refused", func(t *testing.T) {
		closed := v.With(t).Start(image, "closed", labelled(network, "xdp.drop=upd"))
		await(t, v, closed.Name, "is closed", func(s agent.ContainerStatus) bool { return s.State == agent.Quarantined })
		stopped := v.With(t).Create(image, "stopped", labelled(network))
		for _, tc := range []struct {
			text string
			args []string
		}{
			{"is closed", []string{closed.Name, udpOnly}},
			{"start it first", []string{stopped.Name, udpOnly}},
			{"no container", []string{"no-such-container", udpOnly}},
			{"no such file", []string{tr.marker.Name, "no-such-file.o"}},
			{"made by clang", []string{tr.marker.Name, "engine_hand_test.go"}},
			{"dropper_main", []string{tr.marker.Name, udpOnly, "--section", "nonsense"}},
		} {
			refused(t, v.Ask(append([]string{"attach"}, tc.args...)...), tc.text)
		}
		tr.shows(t, closed, append(udp, rest...), nil)
		tr.shows(t, tr.marker, nil, append(udp, rest...))
	})
}
