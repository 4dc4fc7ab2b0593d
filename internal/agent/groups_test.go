package agent

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

// netOf is the network that box is in, with a subnet.
func netOf(subnet, gateway string) docker.Network {
	return docker.Network{ID: strings.Repeat("b", 64), Name: "bridge", Driver: "bridge",
		Subnets: []netip.Prefix{netip.MustParsePrefix(subnet)}, Gateways: []netip.Addr{netip.MustParseAddr(gateway)}}
}

func addrsOf(texts ...string) (out []netip.Addr) {
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// groups checks what the policy on a device was compiled of.
func (r *rig) groups(c docker.Container, g policy.Groups) {
	r.t.Helper()
	s, _, _, err := Stack(docker.Container{Labels: c.Labels, ImageKnown: true}, config.Config{})
	if err != nil {
		r.t.Fatal(err)
	}
	want, err := xdp.Compile(g.Resolve(s))
	if err != nil {
		r.t.Fatal(err)
	}
	r.kernel.mu.Lock()
	defer r.kernel.mu.Unlock()
	if !reflect.DeepEqual(r.kernel.last[pidOf(c)].Policy, want) {
		r.t.Errorf("%s has not the policy of %+v", c.Name, g)
	}
}

func (r *rig) networksAre(networks ...docker.Network) {
	r.engine.set(func() { r.engine.networks = networks })
	r.engine.emit(docker.ActionNetworks, "")
	synctest.Wait()
}

func TestGroupsAreFollowed(t *testing.T) {
	c := box(10, true, "xdp.egress.allow=neighbors,host,dns")
	inTime(t, []docker.Container{c}, func(r *rig) {
		r.engine.networks = []docker.Network{netOf("192.0.2.0/24", "192.0.2.1")}
		r.kernel.host = &host{addrs: addrsOf("198.51.100.1"), resolvers: addrsOf("203.0.113.53")}
	}, func(r *rig) {
		g := policy.Groups{Host: addrsOf("198.51.100.1"), Neighbors: netOf("192.0.2.0/24", "192.0.2.1").Subnets,
			Gateways: addrsOf("192.0.2.1"), Resolvers: addrsOf("203.0.113.53")}
		r.want(c, enforced10)
		r.groups(c, g)

		r.networksAre(netOf("192.0.2.0/25", "192.0.2.1"))
		g.Neighbors = netOf("192.0.2.0/25", "192.0.2.1").Subnets
		r.groups(c, g)

		r.kernel.set(func() { r.kernel.host = &host{addrs: addrsOf("198.51.100.2"), resolvers: addrsOf("203.0.113.54")} })
		r.ring()
		g.Host, g.Resolvers = addrsOf("198.51.100.2"), addrsOf("203.0.113.54")
		r.groups(c, g)

		// An event that was lost.
		r.engine.set(func() { r.engine.networks = []docker.Network{netOf("192.0.2.0/26", "192.0.2.1")} })
		r.after(resync)
		g.Neighbors = netOf("192.0.2.0/26", "192.0.2.1").Subnets
		r.groups(c, g)
		r.want(c, enforced10)
	})
}

// Nobody passes by a group that is not known; who asks for none is not held up.
func TestGroupsNotKnown(t *testing.T) {
	const closed = "quarantined [bridge quarantined 10:closed]"
	for name, tc := range map[string]struct{ spoil, mend func(*rig) }{
		"networks": {
			func(r *rig) { r.engine.broken["networks"] = errors.New("no") },
			func(r *rig) { delete(r.engine.broken, "networks") },
		},
		"one network": {
			func(r *rig) { r.engine.networks = []docker.Network{} },
			func(r *rig) { r.engine.networks = []docker.Network{netOf("192.0.2.0/24", "192.0.2.1")} },
		},
		"host": {
			func(r *rig) { r.kernel.set(func() { r.kernel.fail["host"] = errors.New("no") }) },
			func(r *rig) { r.kernel.set(func() { delete(r.kernel.fail, "host") }) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, other := box(10, true, "xdp.drop=neighbors"), box(20, true, "xdp.drop=udp")
			inTime(t, []docker.Container{c, other}, func(r *rig) {
				r.engine.networks = []docker.Network{netOf("192.0.2.0/24", "192.0.2.1")}
				tc.spoil(r)
			}, func(r *rig) {
				r.want(c, closed)
				r.want(other, "enforced [bridge enforced 20:open]")
				if got := r.kernel.record(c.ID).Error; !strings.Contains(got, "who is in its groups is not known") {
					t.Errorf("error %q", got)
				}
				r.engine.set(func() { tc.mend(r) })
				r.after(resync)
				r.want(c, enforced10)
				if got := r.kernel.record(c.ID).Error; got != "" {
					t.Errorf("error %q", got)
				}
			})
		})
	}
}

// What is in force stays so until groups are known, for the next agent and for a container that joins a network.
func TestGroupsNotKnownAnyMore(t *testing.T) {
	c := box(10, true, "xdp.drop=neighbors")
	inTime(t, []docker.Container{c}, func(r *rig) {
		r.engine.broken["networks"] = errors.New("no")
		r.kernel.attached[10] = "open"
		r.kernel.records[c.ID] = Record{ID: c.ID, State: Enforced, Interfaces: []Interface{{Network: "bridge", State: Enforced, Ifindex: 10}}}.encode()
	}, func(r *rig) {
		r.want(c, enforced10)
		r.engine.set(func() {
			delete(r.engine.broken, "networks")
			r.engine.networks = []docker.Network{netOf("192.0.2.0/24", "192.0.2.1")}
		})
		r.after(resync)
		r.groups(c, policy.Groups{Neighbors: netOf("192.0.2.0/24", "192.0.2.1").Subnets, Gateways: addrsOf("192.0.2.1")})

		r.happens(joined(c, "new"), docker.ActionConnect)
		r.want(c, "quarantined [bridge enforced 10:open] [new quarantined 11:closed]")
		r.networksAre(netOf("192.0.2.0/24", "192.0.2.1"), docker.Network{ID: strings.Repeat("c", 64)})
		r.want(c, "enforced [bridge enforced 10:open] [new enforced 11:open]")
	})
}

func TestResolvers(t *testing.T) {
	stub := []netip.Addr{systemdStub}
	both := addrsOf("192.0.2.53", "2001:db8::53")
	const old, v6, all = docker.LoopbackFromHost, docker.IPv6FromHost, docker.AllFromHost
	for name, tc := range map[string]struct {
		host     []netip.Addr
		dns      []string
		mode     string
		engine   docker.FromHost
		want     []netip.Addr
		fromHost []netip.Addr
	}{
		"the host's":                        {both, nil, "shop", old, both, nil},
		"the host's, engines 26 and 27":     {both, nil, "shop", v6, both[:1], both[1:]},
		"the host's, engines from 28 on":    {both, nil, "shop", all, nil, both},
		"its own":                           {addrsOf("192.0.2.53"), []string{"198.51.100.53", "x", "::ffff:198.51.100.54"}, "shop", all, addrsOf("198.51.100.53", "198.51.100.54"), nil},
		"on the host's loopback":            {stub, nil, "shop", old, nil, stub},
		"one of them there":                 {append(addrsOf("192.0.2.53"), stub...), nil, "shop", old, addrsOf("192.0.2.53"), stub},
		"its own on loopback":               {addrsOf("192.0.2.53"), []string{"127.0.0.1"}, "shop", all, nil, addrsOf("127.0.0.1")},
		"loopback and Docker's own":         {stub, nil, "default", all, dockersOwn, stub},
		"loopback beside another":           {append(addrsOf("192.0.2.53"), stub...), nil, "bridge", all, addrsOf("192.0.2.53"), append(addrsOf("192.0.2.53"), stub...)},
		"no resolver":                       {nil, nil, "shop", old, nil, nil},
		"unknown, engines 26 and 27":        {nil, nil, "shop", v6, nil, []netip.Addr{somebody}},
		"unknown, engines from 28 on":       {nil, nil, "shop", all, nil, []netip.Addr{somebody}},
		"unknown, but its own":              {nil, []string{"198.51.100.53"}, "shop", all, addrsOf("198.51.100.53"), nil},
		"the default network":               {both, nil, "default", all, both, both},
		"the default network, its own":      {stub, []string{"198.51.100.53"}, "bridge", all, addrsOf("198.51.100.53"), nil},
		"the default network and another":   {both, nil, "default+", all, nil, both},
		"the same, an engine before 26":     {both, nil, "bridge+", old, both, nil},
		"the same, and the host's loopback": {stub, nil, "bridge+", all, dockersOwn, stub},
	} {
		c := docker.Container{DNS: tc.dns, FromHost: tc.engine, Networks: []docker.Endpoint{{Network: "bridge"}}}
		mode, joined := strings.CutSuffix(tc.mode, "+")
		if c.NetworkMode = mode; joined {
			c.Networks = append(c.Networks, docker.Endpoint{Network: "shop"})
		}
		s := surroundings{host: &host{resolvers: tc.host}}
		if got, fromHost := s.resolvers(c); !slices.Equal(got, tc.want) || !slices.Equal(fromHost, tc.fromHost) {
			t.Errorf("%s: %v, from the host %v", name, got, fromHost)
		}
	}
	got := nameservers("# nameserver 192.0.2.1\nsearch x\nnameserver\t192.0.2.53 # x\nnameserver fe80::1%eth0\nnameserver\nnameserver x")
	if !slices.Equal(got, addrsOf("192.0.2.53", "fe80::1")) {
		t.Error(got)
	}
}

func TestWantedOfGroups(t *testing.T) {
	stub := known{fromHost: []netip.Addr{systemdStub}, groups: policy.Groups{Resolvers: []netip.Addr{systemdStub}}}
	unknown := known{fromHost: []netip.Addr{somebody}}
	for _, tc := range []struct {
		label    string
		k        known
		open     bool
		resolver resolverClosed
	}{
		{"xdp.egress.drop=dns", known{}, true, resolverClosed{}},
		{"xdp.egress.drop=dns", stub, true, resolverClosed{true, true}},
		{"xdp.egress.allow=443/tcp", stub, true, resolverClosed{true, true}},
		{"xdp.egress.allow=443/tcp,dns", stub, true, resolverClosed{}},
		{"xdp.drop=udp", stub, true, resolverClosed{udp: true}},
		{"xdp.drop=udp xdp.mode=audit", stub, true, resolverClosed{}},
		{"xdp.drop=25/tcp", stub, true, resolverClosed{}},
		{"xdp.egress.limit=53/udp=1pps", stub, true, resolverClosed{udp: true}},
		{"xdp.egress.limit=all=1pps", stub, true, resolverClosed{}},
		{"xdp.egress.limit=udp=1pps", stub, true, resolverClosed{}},
		{"xdp.egress.limit=1-100/udp=1pps", stub, true, resolverClosed{udp: true}},
		{"xdp.limit=tcp@127.0.0.0/8=1mbit", stub, true, resolverClosed{tcp: true}},
		{"xdp.egress.limit=dns=1pps", stub, true, resolverClosed{true, true}},
		{"xdp.egress.limit=udp@192.0.2.0/24=1pps", stub, true, resolverClosed{}},
		{"xdp.egress.limit=udp@192.0.2.0/24=1pps", unknown, true, resolverClosed{udp: true}},
		{"xdp.egress.limit=udp=1pps", unknown, true, resolverClosed{}},
		{"xdp.egress.limit=54/udp=1pps", stub, true, resolverClosed{}},
		{"xdp.ingress.limit=all=1pps", stub, true, resolverClosed{}},
		{"xdp.egress.limit=all=1pps xdp.mode=audit", stub, true, resolverClosed{}},
		{"xdp.egress.allow=dns,443/tcp", unknown, true, resolverClosed{true, true}},
		{"xdp.egress.allow=53/udp", unknown, true, resolverClosed{tcp: true}},
		{"xdp.egress.allow=53/udp,53/tcp@192.0.2.0/24", unknown, true, resolverClosed{tcp: true}},
		{"xdp.egress.drop=private", unknown, true, resolverClosed{true, true}},
		{"xdp.egress.drop=tcp@192.0.2.0/24", unknown, true, resolverClosed{tcp: true}},
		{"xdp.egress.drop=tcp xdp.egress.except=53/tcp@192.0.2.0/24", unknown, true, resolverClosed{tcp: true}},
		{"xdp.egress.drop=tcp xdp.egress.except=53/tcp", unknown, true, resolverClosed{}},
		{"xdp.egress.drop=25/tcp", unknown, true, resolverClosed{}},
		{"xdp.egress.drop=all xdp.mode=audit", unknown, true, resolverClosed{}},
		{"xdp.drop=upd", known{}, false, resolverClosed{true, true}},
		{"xdp.egress.drop=dns", known{missing: "all"}, false, resolverClosed{true, true}},
		{"xdp.drop=udp,multicast,metadata", known{missing: "all"}, true, resolverClosed{}},
	} {
		tc.k.hasResolver = true
		w, _ := wanted(box(1, true, strings.Fields(tc.label)...), tc.k, config.Config{}, compile)
		warns := slices.ContainsFunc(w.warnings, func(s string) bool { return strings.Contains(s, "at 127.0.0.11 is closed") })
		slips := slices.Contains(w.warnings, slipsPast)
		if inAll := strings.HasPrefix(tc.label, "xdp.egress.limit=all") || strings.HasPrefix(tc.label, "xdp.egress.limit=udp=1pps"); slips != (inAll && !strings.Contains(tc.label, "audit")) {
			t.Errorf("%s %+v: that the limit is slipped past is said: %t", tc.label, tc.k, slips)
		}
		if (w.tables != nil) != tc.open || w.waits != (tc.k.missing != "" && !tc.open) || w.resolver != tc.resolver || warns != (tc.open && tc.resolver != resolverClosed{}) {
			t.Errorf("%s %+v: %+v", tc.label, tc.k, w)
		}
	}
}

// What the configuration says of addresses stands beside what the host says, and before the name servers that it has.
func TestGroupsOfConfiguration(t *testing.T) {
	conf := parseConfig(t, "dns: [192.0.2.53, 127.0.0.53]\nhost_addresses: 203.0.113.7\n")
	s := surroundings{networks: map[string]docker.Network{}, host: &host{addrs: addrsOf("198.51.100.1"), resolvers: addrsOf("198.51.100.53")}, conf: conf}
	for _, tc := range []struct {
		c         docker.Container
		resolvers []netip.Addr
		outside   bool
	}{
		{docker.Container{NetworkMode: "shop"}, addrsOf("127.0.0.53", "192.0.2.53"), true},
		{docker.Container{NetworkMode: "default"}, addrsOf("192.0.2.53"), true},
		{docker.Container{NetworkMode: "shop", DNS: []string{"192.0.2.54"}}, addrsOf("192.0.2.54"), false},
		{docker.Container{NetworkMode: "shop", DNS: []string{"192.0.2.54"}, FromHost: docker.AllFromHost}, addrsOf("192.0.2.54"), false},
	} {
		k := s.of(tc.c, nil)
		if !slices.Equal(k.groups.Resolvers, tc.resolvers) || len(k.fromHost) > 0 != tc.outside {
			t.Errorf("%+v: %v, from the host %v", tc.c, k.groups.Resolvers, k.fromHost)
		}
		if !slices.Equal(k.groups.Host, addrsOf("198.51.100.1", "203.0.113.7")) {
			t.Errorf("host %v", k.groups.Host)
		}
	}
	// As daemon.json should have it, whose servers the engine asks from the container; if it has not, it asks the host's.
	s.conf = parseConfig(t, "dns: 192.0.2.53")
	shop := docker.Container{NetworkMode: "shop", FromHost: docker.AllFromHost}
	if k := s.of(shop, nil); !slices.Equal(k.fromHost, addrsOf("198.51.100.53")) || !slices.Equal(k.groups.Resolvers, addrsOf("192.0.2.53", "198.51.100.53")) {
		t.Errorf("asked from the host: %v; of %v", k.fromHost, k.groups.Resolvers)
	}
	for label, want := range map[string]resolverClosed{
		"xdp.egress.allow=dns": {}, "xdp.egress.allow=53/udp@192.0.2.53,53/tcp": {udp: true}, "xdp.drop=all": {true, true}, "xdp.drop=25/tcp": {},
	} {
		if w, _ := wanted(box(1, true, label), s.of(shop, nil), s.conf, compile); w.resolver != want {
			t.Errorf("%s: closed %+v", label, w.resolver)
		}
	}
	shop.DNS = []string{"192.0.2.53"}
	if k := s.of(shop, nil); len(k.fromHost) > 0 {
		t.Errorf("asked from the host although docker run names another: %v", k.fromHost)
	}
	shop.DNS, s.host.resolvers = nil, nil
	if k := s.of(shop, nil); len(k.fromHost) > 0 {
		t.Errorf("asked from the host: %v, of which nobody says anything", k.fromHost)
	}
	s.conf = parseConfig(t, "dns: 127.0.0.53")
	if k := s.of(docker.Container{NetworkMode: "default"}, nil); len(k.groups.Resolvers) > 0 {
		t.Errorf("resolvers %v of a configuration that has none but the host's own", k.groups.Resolvers)
	}
}
