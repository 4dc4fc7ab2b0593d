package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// Two sinks, A inside of the CIDRs below and B outside of them.
const (
	subnet4, subnet6 = "192.0.2.0/24", "2001:db8:2::/64"
	addrA4, addrA6   = "192.0.2.130", "2001:db8:2::a0"
	addrB4, addrB6   = "192.0.2.140", "2001:db8:2::b0"
	cidrA            = "192.0.2.128/29+2001:db8:2::a0/124"
)

// twoSinks makes a network with both families, the sinks and a container without a filter.
func twoSinks(t *testing.T, v *enginetest.Vethwall, image string) (network string, tr *traffic) {
	t.Helper()
	network = v.Network("both", "--ipv6", "--subnet", subnet4, "--ip-range", "192.0.2.0/25", "--subnet", subnet6)
	tr = &traffic{v: v, sinks: map[string]sink{}}
	for name, addrs := range map[string][2]string{"A": {addrA4, addrA6}, "B": {addrB4, addrB6}} {
		c := v.Serve(image, "sink-"+strings.ToLower(name), []string{"--network", network, "--ip", addrs[0], "--ip6", addrs[1]},
			"53/udp", "54/udp", "68/udp", "25/tcp", "443/tcp")
		tr.sinks[name] = sink{Container: c, v4: c.Addr(network, 4), v6: c.Addr(network, 6)}
	}
	tr.marker = v.Start(image, "free", []string{"--network", network})
	return network, tr
}

func TestFilter(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	v.StartAgent()

	everything := []string{"53/udp@A", "54/udp@A", "25/tcp@A", "443/tcp@A", "ping@A", "53/udp@A6", "443/tcp@A6", "ping@A6", "53/udp@B", "443/tcp@B"}
	for _, tc := range []struct {
		name   string
		labels []string
		denied []string // of everything; the rest is allowed
		mode   string
	}{
		{name: "protocol", labels: []string{"xdp.drop=udp"}, denied: []string{"53/udp@A", "54/udp@A", "53/udp@A6", "53/udp@B"}},
		{name: "tcp", labels: []string{"xdp.drop=tcp"}, denied: []string{"25/tcp@A", "443/tcp@A", "443/tcp@A6", "443/tcp@B"}},
		{name: "port", labels: []string{"xdp.egress.drop=53/udp"}, denied: []string{"53/udp@A", "53/udp@A6", "53/udp@B"}},
		{name: "range", labels: []string{"xdp.egress.drop=20-25+442-443/tcp,54-60/udp"}, denied: []string{"54/udp@A", "25/tcp@A", "443/tcp@A", "443/tcp@A6", "443/tcp@B"}},
		{name: "ends of a range", labels: []string{"xdp.egress.drop=26-442/tcp,1-52+55-65535/udp"}},
		{name: "address", labels: []string{"xdp.drop=" + addrA4}, denied: []string{"53/udp@A", "54/udp@A", "25/tcp@A", "443/tcp@A", "ping@A"}},
		{name: "IPv6 address", labels: []string{"xdp.drop=" + addrA6}, denied: []string{"53/udp@A6", "443/tcp@A6", "ping@A6"}},
		{name: "CIDR", labels: []string{"xdp.drop=udp@" + cidrA}, denied: []string{"53/udp@A", "54/udp@A", "53/udp@A6"}},
		{name: "port at address", labels: []string{"xdp.egress.drop=53/udp@" + addrB4}, denied: []string{"53/udp@B"}},
		{name: "family", labels: []string{"xdp.drop=ipv6"}, denied: []string{"53/udp@A6", "443/tcp@A6", "ping@A6"}},
		{name: "ping", labels: []string{"xdp.drop=ping"}, denied: []string{"ping@A", "ping@A6"}},
		{name: "icmp", labels: []string{"xdp.drop=icmp"}, denied: []string{"ping@A", "ping@A6"}},
		{name: "all", labels: []string{"xdp.drop=all"}, denied: everything},
		{name: "named keys", labels: []string{"xdp.drop=ping", "xdp.egress.drop.mail=25/tcp", "xdp.egress.drop.dns=53/udp"},
			denied: []string{"25/tcp@A", "ping@A", "ping@A6", "53/udp@A", "53/udp@A6", "53/udp@B"}},
		{name: "egress", labels: []string{"xdp.egress.drop=udp"}, denied: []string{"53/udp@A", "54/udp@A", "53/udp@A6", "53/udp@B"}},
		{name: "native", labels: []string{"xdp.egress.drop=53/udp", "xdp.hook=native"}, denied: []string{"53/udp@A", "53/udp@A6", "53/udp@B"}, mode: "native"},
		{name: "generic", labels: []string{"xdp.egress.drop=53/udp", "xdp.hook=generic"}, denied: []string{"53/udp@A", "53/udp@A6", "53/udp@B"}, mode: "generic"},
		{name: "tcx", labels: []string{"xdp.egress.drop=53/udp", "xdp.hook=tcx"}, denied: []string{"53/udp@A", "53/udp@A6", "53/udp@B"}, mode: "tcx"},
		{name: "enable alone", labels: []string{"xdp.enable=yes"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := v.With(t).Start(image, "c-"+strings.ReplaceAll(tc.name, " ", "-"), labelled(network, tc.labels...))
			s := awaitFilter(t, v, c.Name, 1)
			// What passes both ways unread needs no hook for what is received.
			hooks := 3
			if tc.mode == "tcx" || len(tc.labels) == 1 && tc.labels[0] == "xdp.enable=yes" {
				hooks = 2
			}
			if i := s.Interfaces[0]; i.Network != network || len(i.Hooks) != hooks || tc.mode != "" && i.Hooks[0].Mode != tc.mode {
				t.Errorf("interface %+v, want %d hooks, the first %s, in network %s", i, hooks, tc.mode, network)
			}
			before := drops(s)
			tr.shows(t, c, tc.denied, without(everything, tc.denied))
			s, _ = statusOf(t, v, c.Name)
			// A ping is one packet, and a SYN may be; of UDP there are three.
			if n := drops(s) - before; n < uint64(len(tc.denied)) || len(tc.denied) == 0 && n > 0 {
				t.Errorf("%d packets were dropped, %d ways are denied: %+v", n, len(tc.denied), s)
			}
			v.With(t).Run("rm", "--force", c.ID)
		})
	}
	for name, labels := range map[string][]string{
		"no labels": nil,
		"disabled":  {"xdp.drop=all", "xdp.enable=false"},
		"others":    {"com.example.drop=udp"},
	} {
		t.Run(name, func(t *testing.T) {
			c := v.With(t).Start(image, "u-"+strings.ReplaceAll(name, " ", "-"), labelled(network, labels...))
			tr.shows(t, c, nil, everything)
			if a := v.Ask("status"); strings.Contains(a.Stdout, c.Name) {
				t.Errorf("status lists it: %s", a.Stdout)
			}
			if s, _ := statusOf(t, v, c.Name); s.State != agent.Unfiltered || len(v.Filtered()) > 0 {
				t.Errorf("status %+v, programs on %v", s, v.Filtered())
			}
			v.With(t).Run("rm", "--force", c.ID)
		})
	}
}

// labelled are the options of a container in a network with labels.
func labelled(network string, labels ...string) []string {
	options := []string{"--network", network}
	for _, l := range labels {
		options = append(options, "--label", l)
	}
	return options
}

// without is all that is not in some.
func without[T comparable](all, some []T) (out []T) {
	for _, a := range all {
		if !slices.Contains(some, a) {
			out = append(out, a)
		}
	}
	return out
}
