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

// outside are sinks in the places that groups tell apart: N a neighbour, H the host, and behind the host I the
// internet, L the local network, and R the resolver.
func outside(t *testing.T, v *enginetest.Vethwall, image string) (network string, tr *traffic) {
	t.Helper()
	ports := []string{"53/udp", "443/tcp"}
	network = v.Network("shop", "--subnet", subnet4, "--gateway", "192.0.2.1")
	neighbor := v.Serve(image, "neighbor", []string{"--network", network}, ports...)
	host := v.Serve(image, "host", []string{"--network", "host"}, ports...)
	far := v.Serve(image, "far", []string{"--network", "none"}, ports...)
	pid := v.Run("inspect", "--format", "{{.State.Pid}}", far.ID)
	for _, line := range []string{
		"ip link add out0 type veth peer name out1 netns " + pid,
		"ip address add 198.51.100.1/30 dev out0",
		"ip link set out0 up",
		"nsenter --target " + pid + " --net ip address add " + addrResolver + "/30 dev out1",
		"nsenter --target " + pid + " --net ip address add " + addrInternet + "/32 dev out1",
		"nsenter --target " + pid + " --net ip address add " + addrLAN + "/32 dev out1",
		"nsenter --target " + pid + " --net ip link set out1 up",
		"nsenter --target " + pid + " --net ip route add default via 198.51.100.1",
		"ip route add " + addrInternet + " via " + addrResolver,
		"ip route add " + addrLAN + " via " + addrResolver,
	} {
		words := strings.Fields(line)
		if out, err := v.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	return network, &traffic{v: v, marker: v.Start(image, "free", []string{"--network", network}), sinks: map[string]sink{
		"N": {Container: neighbor, v4: neighbor.Addr(network, 4)},
		"H": {Container: host, v4: netip.MustParseAddr("192.0.2.1")},
		"I": {Container: far, v4: netip.MustParseAddr(addrInternet)},
		"L": {Container: far, v4: netip.MustParseAddr(addrLAN)},
		"R": {Container: far, v4: netip.MustParseAddr(addrResolver)},
	}}
}

func TestGroups(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := outside(t, v, image)
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
			c := start(t, tc.name, tc.label)
			tr.shows(t, c, without(everything, tc.allowed), tc.allowed)
			v.With(t).Run("rm", "--force", c.ID)
		})
	}

	t.Run("followed", func(t *testing.T) {
		c := start(t, "followed", "xdp.drop=host").With(v.Docker.With(t))
		send := []string{"udp-send", "-echo", "300ms", addrHost2 + ":53", "text"}
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
