package main

import (
	"fmt"
	"net"
	"testing"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
	"github.com/vethwall/vethwall/policy"
)

// TestNestedContainers builds what an engine inside of a container builds: a bridge, and a namespace behind a veth on it.
// What leaves from there does so by the outer container's own veth.
func TestNestedContainers(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	v.StartAgent()
	to := func(port string) string { return net.JoinHostPort(addrA4, port) }
	arrived := func(t *testing.T, text string) int {
		t.Helper()
		return tr.sinks["A"].With(v.Docker.With(t)).Count(text)
	}

	t.Run("masqueraded", func(t *testing.T) {
		outer, inner := nest(t, v, image, network, "xdp.drop=udp")
		inside(t, v, outer, "iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "203.0.113.0/24", "-o", "eth0", "-j", "MASQUERADE")
		tr.shows(t, inner, []string{"53/udp@A", "54/udp@A"}, []string{"443/tcp@A"})
		if s, _ := statusOf(t, v, outer.Name); dropsFor(s, policy.ByRule) != 6 || s.Holds {
			t.Errorf("%+v", s)
		}
	})
	t.Run("forwarded as it is", func(t *testing.T) {
		outer, inner := nest(t, v, image, network, "xdp.drop=1/tcp")
		inner.MustDo("udp-send", "-n", "3", to("53"), "nested")
		outer.MustDo("udp-send", "-echo", "5s", to("53"), "its own")
		if s, _ := statusOf(t, v, outer.Name); arrived(t, "nested") > 0 || dropsFor(s, policy.Spoof) != 3 {
			t.Errorf("%d arrived: %+v", arrived(t, "nested"), s)
		}
	})
	t.Run("forwarded with its addresses declared", func(t *testing.T) {
		outer, inner := nest(t, v, image, network, "xdp.drop=54/udp", "xdp.antispoof=203.0.113.0/24")
		inner.MustDo("udp-send", "-n", "3", to("54"), "dropped")
		inner.MustDo("udp-send", "-n", "3", to("53"), "declared")
		v.With(t).Wait("what is declared and allowed", func() error {
			if n := arrived(t, "declared"); n != 3 {
				return fmt.Errorf("%d of 3 arrived", n)
			}
			return nil
		})
		if s, _ := statusOf(t, v, outer.Name); arrived(t, "dropped") > 0 || dropsFor(s, policy.ByRule) != 3 || dropsFor(s, policy.Spoof) > 0 {
			t.Errorf("%d arrived: %+v", arrived(t, "dropped"), s)
		}
	})
}

// nest starts a container with labels that may do with its network what an engine in it has to, and another one behind a
// bridge in it.
func nest(t *testing.T, v *enginetest.Vethwall, image, network string, labels ...string) (outer, inner *enginetest.Container) {
	t.Helper()
	v = v.With(t)
	options := append(labelled(network, labels...), "--cap-add", "NET_ADMIN", "--sysctl", "net.ipv4.ip_forward=1")
	outer, inner = v.Start(image, "outer", options), v.Start(image, "inner", []string{"--network", "none"})
	t.Cleanup(func() { v.Run("rm", "--force", outer.ID, inner.ID) })
	await(t, v, outer.Name, "is filtered at both hooks", func(s agent.ContainerStatus) bool {
		hooks, _ := heldBy(s)
		return filtered(s) && hooks == "xdp generic + tcx tcx"
	})
	pid := v.Run("inspect", "--format", "{{.State.Pid}}", inner.ID)
	for _, args := range [][]string{
		{"link", "add", "nested0", "type", "bridge"},
		{"address", "add", "203.0.113.1/24", "dev", "nested0"},
		{"link", "set", "nested0", "up"},
		{"link", "add", "veth0a1b2c3", "type", "veth", "peer", "name", "eth0", "netns", pid},
		{"link", "set", "veth0a1b2c3", "master", "nested0", "up"},
	} {
		inside(t, v, outer, "ip", args...)
	}
	for _, args := range [][]string{
		{"address", "add", "203.0.113.2/24", "dev", "eth0"},
		{"link", "set", "eth0", "up"},
		{"route", "add", "default", "via", "203.0.113.1"},
	} {
		inside(t, v, inner, "ip", args...)
	}
	return outer, inner
}

// inside runs one of the machine's programs in a container's network namespace.
func inside(t *testing.T, v *enginetest.Vethwall, c *enginetest.Container, program string, args ...string) {
	t.Helper()
	pid := v.With(t).Run("inspect", "--format", "{{.State.Pid}}", c.ID)
	if out, err := v.Command("nsenter", append([]string{"--target", pid, "--net", "--", program}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", program, args, err, out)
	}
}
