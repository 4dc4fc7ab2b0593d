package main

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/internal/enginetest"
)

// The addresses of what is behind the host. Only the routes of the test's own namespace lead to them, and it has no
// way out.
const (
	addrInternet = "1.0.0.1"
	addrLAN      = "10.9.9.9"
	addrResolver = "198.51.100.2"
	addrHost2    = "10.9.8.1"
)

// places are sinks in the places that groups tell apart: N a neighbour, H the host, and behind the host I the
// internet, L the local network, and R the resolver.
func places(t *testing.T, v *enginetest.Vethwall, image string) (network string, tr *traffic) {
	t.Helper()
	ports := []string{"53/udp", "443/tcp"}
	network = v.Network("shop", "--subnet", subnet4, "--gateway", "192.0.2.1")
	neighbor := v.Serve(image, "neighbor", []string{"--network", network}, ports...)
	host := v.Serve(image, "host", []string{"--network", "host"}, ports...)
	behind := func(name, addr, hostAddr string) sink {
		c := v.Serve(image, name, []string{"--network", "none"}, ports...)
		pid := v.Run("inspect", "--format", "{{.State.Pid}}", c.ID)
		inside := "nsenter --target " + pid + " --net "
		for _, line := range []string{
			"ip link add " + name + " type veth peer name out netns " + pid,
			"ip address add " + hostAddr + "/32 dev " + name,
			"ip link set " + name + " up",
			inside + "ip address add " + addr + "/32 dev out",
			inside + "ip link set out up",
			inside + "ip route add " + hostAddr + " dev out",
			"ip route add " + addr + " via " + addr + " dev " + name + " onlink", // with a gateway: no neighbour of the host
		} {
			words := strings.Fields(line)
			if out, err := v.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", line, err, out)
			}
		}
		return sink{Container: c, v4: netip.MustParseAddr(addr)}
	}
	return network, &traffic{v: v, marker: v.Start(image, "free", []string{"--network", network}), sinks: map[string]sink{
		"N": {Container: neighbor, v4: neighbor.Addr(network, 4)},
		"H": {Container: host, v4: netip.MustParseAddr("192.0.2.1")},
		"I": behind("internet", addrInternet, "198.51.100.5"),
		"L": behind("local", addrLAN, "198.51.100.6"),
		"R": behind("resolver", addrResolver, "198.51.100.7"),
	}}
}

func TestGroups(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := places(t, v, image)
	v.StartAgent()

	var everything []string
	for _, place := range []string{"N", "H", "I", "L", "R"} {
		everything = append(everything, "53/udp@"+place, "443/tcp@"+place, "ping@"+place)
	}
	at := func(places ...string) []string {
		return slices.DeleteFunc(slices.Clone(everything), func(way string) bool {
			return !slices.Contains(places, way[len(way)-1:])
		})
	}
	start := func(t *testing.T, name string, labels ...string) *enginetest.Container {
		c := v.With(t).Start(image, name, append(labelled(network, labels...), "--dns", addrResolver))
		awaitFilter(t, v, c.Name, 1)
		return c
	}
	for _, tc := range []struct {
		name    string
		label   string
		allowed []string // of everything; the rest is denied
	}{
		{"internet", "xdp.egress.allow=internet,dns", append(at("I"), "53/udp@R")},
		{"private", "xdp.egress.drop=private", at("I")},
		{"neighbors", "xdp.egress.allow=neighbors", at("N")},
		{"lan", "xdp.egress.drop=lan", at("N", "I", "R")},
		{"host", "xdp.drop=host", at("N", "I", "L", "R")},
		{"web", "xdp.egress.allow=443/tcp@internet+neighbors", []string{"443/tcp@N", "443/tcp@I"}},
		{"metadata", "xdp.drop=metadata", everything},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := start(t, "c-"+tc.name, tc.label)
			tr.shows(t, c, without(everything, tc.allowed), tc.allowed)
			v.With(t).Run("rm", "--force", c.ID)
		})
	}

	t.Run("followed", func(t *testing.T) {
		c := start(t, "followed", "xdp.drop=host").With(v.Docker.With(t))
		send := []string{"tcp-dial", "-wait", "300ms", addrHost2 + ":443", "text"}
		add := func(what string) {
			if out, err := v.Command("ip", "address", what, addrHost2+"/32", "dev", "lo").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		add("add")
		v.With(t).Wait("the new address is the host's", func() error {
			if _, err := c.Do(send...); err == nil {
				return errors.New("it answers")
			}
			return nil
		})
		if _, err := tr.marker.With(v.Docker.With(t)).Do(send...); err != nil {
			t.Errorf("it answers nobody: %v", err)
		}
		tr.shows(t, c, at("H"), at("N", "I", "L", "R"))
	})
}
