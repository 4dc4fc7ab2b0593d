package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"go4.org/netipx"

	"github.com/vethwall/vethwall/policy"
)

func parsed(t *testing.T, labels ...string) policy.Stack {
	t.Helper()
	m := map[string]string{}
	for i := 0; i < len(labels); i += 2 {
		m[labels[i]] = labels[i+1]
	}
	p, asks, err := policy.Parse(m)
	if err != nil || !asks {
		t.Fatal(asks, err)
	}
	return policy.Stack{{Origin: "labels", Policy: p}}
}

func addrsOf(texts ...string) (out []netip.Addr) {
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixesOf(texts ...string) (out []netip.Prefix) {
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// typical is a container on a host with a public address of either family.
var typical = policy.Groups{
	Host:      addrsOf("127.0.0.1", "8.8.1.2", "10.9.8.7", "172.17.0.1", "172.18.0.1", "172.19.0.1", "::1", "2a00:1::2"),
	OnLink:    prefixesOf("8.8.1.0/24", "172.17.0.0/16", "172.18.0.0/16", "2a00:1::/64"),
	Networks:  prefixesOf("172.17.0.0/16", "172.18.0.0/16", "172.19.0.0/16", "9.9.0.0/16"),
	Neighbors: prefixesOf("172.18.0.0/16", "fd18::/64"), Gateways: addrsOf("172.18.0.1"),
	Resolvers: addrsOf("10.0.0.53", "8.8.8.8"),
}

// holds reports whether a rule of s in that direction names a.
func holds(s policy.Stack, dir policy.Direction, a netip.Addr) bool {
	for _, r := range s[0].Policy.Rules {
		if r.In[dir] && slices.ContainsFunc(r.Match.Peers.Ranges, func(in netipx.IPRange) bool { return in.Contains(a) }) {
			return true
		}
	}
	return false
}

func TestGroups(t *testing.T) {
	const out, in = policy.Egress, policy.Ingress
	for _, tc := range []struct {
		group   string
		dir     policy.Direction
		members []string
		others  []string
	}{
		{"host", out, []string{"172.18.255.255", "fd18::", "fe80::"}, []string{"172.17.255.255", "172.18.0.0", "fd18::2"}},
		{"neighbors", out, []string{"fd18::", "fd18::2", "fd18:0:0:0:ffff:ffff:ffff:ffff"}, []string{"fe80::"}},
		{"lan", out, nil, []string{"172.18.255.255", "fd18::"}},
		{"internet", out, []string{"8.8.8.8", "1.1.1.1", "192.0.0.9", "192.88.99.1", "2a00:2::1", "2001:4:112::1", "2620:4f:8000::1", "64:ff9b::808:808", "2002:808:808::1", "::ffff:8.8.8.8"},
			[]string{"8.8.1.2", "8.8.1.3", "9.9.9.1", "10.0.0.53", "172.18.0.2", "224.0.0.1", "240.0.0.1", "255.255.255.255", "0.0.0.0", "192.0.0.8",
				"2a00:1::3", "ff02::1", "::", "::1", "fe80::1", "fd00::1", "2001::1", "2001:db8::1", "64:ff9b::a00:1", "64:ff9b::808:102", "64:ff9b::e000:1", "2002:a00:1::1", "::ffff:10.0.0.1"}},
		{"private", out, []string{"8.8.1.2", "8.8.1.3", "9.9.9.1", "10.0.0.53", "172.18.0.1", "172.31.255.255", "100.64.0.1", "169.254.169.254", "240.0.0.1", "255.255.255.255", "192.0.0.8",
			"2a00:1::3", "fe80::1", "fd00::1", "2001::1", "64:ff9b::a00:1", "64:ff9b::808:103", "64:ff9b:1::1", "2002:a00:1::1", "2002:0909:0901::1", "::ffff:10.0.0.1"},
			[]string{"8.8.8.8", "172.32.0.0", "192.0.0.9", "224.0.0.1", "ff02::1", "2a00:2::1", "2001:1::1", "2002:808:808::1", "64:ff9b::808:808"}},
		{"private", in, []string{"10.0.0.53", "172.18.0.2", "8.8.1.3"}, []string{"172.18.0.1", "8.8.1.2", "127.0.0.1", "8.8.8.8"}},
		{"lan", out, []string{"10.0.0.54", "172.17.0.2", "172.18.0.1", "9.9.9.1"}, []string{"10.0.0.53", "172.18.0.2", "8.8.8.8"}},
		{"lan", in, []string{"10.0.0.54", "172.17.0.2"}, []string{"10.0.0.53", "172.18.0.1", "172.17.0.1", "172.18.0.2"}},
		{"neighbors", out, []string{"172.18.0.2", "172.18.255.255"}, []string{"172.18.0.1", "172.17.0.2", "172.19.0.0"}},
		{"neighbors", in, []string{"172.18.0.2"}, []string{"172.18.0.1"}},
		{"host", out, []string{"127.0.0.1", "8.8.1.2", "172.18.0.1", "172.17.0.1", "2a00:1::2"}, []string{"172.18.0.2", "8.8.1.3"}},
		{"host", in, []string{"172.18.0.1"}, []string{"172.18.0.2"}},
		{"neighbors+192.0.2.7", out, []string{"172.18.0.2", "192.0.2.7"}, []string{"172.18.0.1", "192.0.2.8"}},
	} {
		s := typical.Resolve(parsed(t, "xdp.drop", tc.group))
		for _, a := range tc.members {
			if !holds(s, tc.dir, netip.MustParseAddr(a)) {
				t.Errorf("%s is not in %s %s", a, tc.dir, tc.group)
			}
		}
		for _, a := range tc.others {
			if holds(s, tc.dir, netip.MustParseAddr(a)) {
				t.Errorf("%s is in %s %s", a, tc.dir, tc.group)
			}
		}
	}
}

// TestAllowedGroups allows what is dropped above but for addresses at which others hear, too.
func TestAllowedGroups(t *testing.T) {
	for _, tc := range []struct {
		group   string
		members []string
		others  []string
	}{
		{"host", []string{"172.18.0.1", "8.8.1.2"}, []string{"172.18.255.255", "fd18::", "fe80::", "172.18.0.2"}},
		{"neighbors", []string{"172.18.0.2", "172.18.255.254", "fd18::2"}, []string{"172.18.255.255", "fd18::", "172.18.0.1"}},
		{"lan", []string{"172.17.0.2", "172.17.255.255"}, []string{"172.18.0.2", "172.18.255.255", "fd18::", "fd18::2"}},
		{"private", []string{"172.18.0.2", "172.18.255.255", "fd18::"}, []string{"8.8.8.8"}},
	} {
		for _, key := range []string{"xdp.egress.allow", "xdp.egress.except"} {
			s := typical.Resolve(parsed(t, key, tc.group))
			for _, a := range tc.members {
				if !holds(s, policy.Egress, netip.MustParseAddr(a)) {
					t.Errorf("%s is not in %s=%s", a, key, tc.group)
				}
			}
			for _, a := range tc.others {
				if holds(s, policy.Egress, netip.MustParseAddr(a)) {
					t.Errorf("%s is in %s=%s", a, key, tc.group)
				}
			}
		}
	}
}

// naive says of one address what design says of groups.
type naive struct{ policy.Groups }

func within(a netip.Addr, prefixes []netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (n naive) host(a netip.Addr) bool {
	return slices.Contains(n.Host, a) || slices.Contains(n.Gateways, a)
}

var (
	special = prefixesOf("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.11/32",
		"192.0.0.12/30", "192.0.0.16/28", "192.0.0.32/27", "192.0.0.64/26", "192.0.0.128/25", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "240.0.0.0/4", "::/128", "::1/128", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10")
	global = prefixesOf("2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:3::/32", "2001:4:112::/48", "2001:20::/28", "2001:30::/28")
)

// carried is the IPv4 address in a.
func carried(a netip.Addr) (v4 netip.Addr, ok bool) {
	b := a.As16()
	switch {
	case a.Is4():
	case a.Is4In6():
		return a.Unmap(), true
	case netip.MustParsePrefix("64:ff9b::/96").Contains(a):
		return netip.AddrFrom4([4]byte(b[12:])), true
	case netip.MustParsePrefix("2002::/16").Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	}
	return netip.Addr{}, false
}

func (n naive) private(a netip.Addr) bool {
	if v4, ok := carried(a); ok && n.private(v4) {
		return true
	}
	return within(a, special) && !within(a, global) || within(a, n.OnLink) || within(a, n.Networks)
}

func (n naive) internet(a netip.Addr) bool {
	if v4, ok := carried(a); ok && !n.internet(v4) {
		return false
	}
	return !a.IsMulticast() && !n.private(a) && !n.host(a)
}

func (n naive) neighbors(a netip.Addr) bool {
	return within(a, n.Neighbors) && !slices.Contains(n.Gateways, a)
}

// many reports whether the host and the neighbours hear at a.
func (n naive) many(a netip.Addr) bool {
	return a == netip.MustParseAddr("fe80::") || slices.ContainsFunc(n.Neighbors, func(p netip.Prefix) bool {
		if !p.Contains(a) || a.BitLen()-p.Bits() < 2 {
			return false
		}
		return a.Is4() && !p.Contains(a.Next()) || a.Is6() && !p.Contains(a.Prev())
	})
}

// is reports whether who drops a group in a direction drops a.
func (n naive) is(group string, dir policy.Direction, a netip.Addr) bool {
	near := n.private(a) && (dir == policy.Egress || !n.host(a))
	switch group {
	case "internet":
		return n.internet(a)
	case "private":
		return near
	case "lan":
		return near && !n.neighbors(a) && !slices.Contains(n.Resolvers, a)
	case "neighbors":
		return n.neighbors(a)
	}
	return n.host(a) || n.many(a)
}

func TestGroupsAreWhatTheyAreCalled(t *testing.T) {
	seed := rand.Uint64()
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	r := rand.New(rand.NewPCG(seed, 0))
	near := prefixesOf("8.8.1.0/24", "172.18.0.0/16", "10.0.0.0/24", "192.0.0.0/28", "2a00:1::/64", "2002:808:808:1::/64", "2001:20::/30", "fd00::/64", "64:ff9b::800:0/104", "240.1.0.0/16", "::ffff:0:0/100")
	edges := slices.Concat(near, special, global, prefixesOf("0.0.0.0/0", "224.0.0.0/4", "ff00::/8", "64:ff9b::/96", "2002::/16", "2002:a00::/24", "2002:e000::/20", "64:ff9b::a00:0/104", "::ffff:0:0/96", "2000::/3"))
	addr := func() netip.Addr {
		p := edges[r.IntN(len(edges))]
		b := p.Masked().Addr().AsSlice()
		end := r.IntN(2) == 0
		for i := p.Bits(); end && i < 8*len(b); i++ {
			b[i/8] |= 0x80 >> (i % 8)
		}
		a, _ := netip.AddrFromSlice(b)
		switch r.IntN(4) {
		case 0:
			if next := a.Next(); next.IsValid() {
				return next
			}
		case 1:
			if prev := a.Prev(); prev.IsValid() {
				return prev
			}
		case 2:
			if a.Is4() {
				return netip.MustParseAddr(fmt.Sprintf("64:ff9b::%s", a))
			}
		}
		return a
	}
	some := func(from []netip.Prefix) (out []netip.Prefix) {
		for _, p := range from {
			if r.IntN(3) == 0 {
				out = append(out, p)
			}
		}
		return out
	}
	addrs := func() (out []netip.Addr) {
		for range r.IntN(6) {
			out = append(out, addr())
		}
		return out
	}
	for range 150 {
		g := policy.Groups{Host: addrs(), OnLink: some(near), Networks: some(near), Neighbors: some(near), Gateways: addrs(), Resolvers: addrs()}
		for _, group := range []string{"internet", "private", "lan", "neighbors", "host"} {
			s := g.Resolve(parsed(t, "xdp.drop", group))
			for range 100 {
				a := addr()
				for _, dir := range []policy.Direction{policy.Egress, policy.Ingress} {
					if got, want := holds(s, dir, a), (naive{g}).is(group, dir, a); got != want {
						t.Fatalf("%s in %s %s: %t, want %t, of %+v", a, dir, group, got, want, g)
					}
				}
			}
		}
	}
}

// A group that holds nobody matches nobody, and what it allowed is not open.
func TestNobody(t *testing.T) {
	none := policy.Groups{}
	for _, tc := range []struct {
		key, value string
		passes     [2]bool
	}{
		{"xdp.allow", "neighbors", [2]bool{false, false}},
		{"xdp.egress.allow", "neighbors", [2]bool{false, true}},
		{"xdp.egress.allow", "dns", [2]bool{false, true}},
		{"xdp.allow", "dns", [2]bool{false, false}},
		{"xdp.ingress.allow", "443/tcp@host", [2]bool{true, false}},
		{"xdp.drop", "neighbors,53/udp@neighbors", [2]bool{true, true}},
		{"xdp.drop", "dns", [2]bool{true, true}},
	} {
		s := none.Resolve(parsed(t, tc.key, tc.value))
		if len(s[0].Policy.Rules) > 0 {
			t.Errorf("%s=%s: rules %v", tc.key, tc.value, s[0].Policy.Rules)
		}
		for dir, want := range tc.passes {
			if got := s[0].Policy.PassesByDefault(policy.Direction(dir)); got != want {
				t.Errorf("%s=%s: %s passes by default: %t", tc.key, tc.value, policy.Direction(dir), got)
			}
		}
	}
	// The twin: beside somebody, nobody adds nobody.
	s := none.Resolve(parsed(t, "xdp.egress.allow", "neighbors,host+192.0.2.7,443/tcp@multicast"))
	if got := fmt.Sprint(s[0].Policy.Rules); got != "[192.0.2.7+host 443/tcp@multicast]" {
		t.Error(got)
	}
}

func TestResolve(t *testing.T) {
	labels := parsed(t, "xdp.egress.allow", "dns,443/tcp@internet,udp", "xdp.drop", "metadata,private", "xdp.ingress.except.proxy", "neighbors")
	before := labels[0].Policy.Text()
	s := typical.Resolve(labels)
	if labels[0].Policy.Text() != before {
		t.Error("the stack was changed")
	}
	if !labels.Live() || s.Live() || parsed(t, "xdp.drop", "metadata,udp@multicast").Live() {
		t.Error("what is live")
	}
	var got []string
	for _, r := range s[0].Policy.Rules {
		line := r.Key() + "=" + r.String()
		if r.Match.What.Kind == policy.Ports {
			line += " " + r.Match.What.String()
		}
		for dir, in := range r.In {
			if in {
				line += " " + policy.Direction(dir).String()
			}
		}
		got = append(got, line)
	}
	want := []string{
		"xdp.drop=metadata 80/tcp egress ingress", "xdp.egress.drop=private egress", "xdp.ingress.drop=private ingress", "xdp.ingress.except.proxy=neighbors ingress",
		"xdp.egress.allow=443/tcp@internet 443/tcp egress", "xdp.egress.allow=dns 53/udp egress", "xdp.egress.allow=dns 53/tcp egress", "xdp.egress.allow=udp egress",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	for _, r := range s[0].Policy.Rules {
		if r.String() == "dns" && r.Match.Peers.String() != "8.8.8.8+10.0.0.53" {
			t.Errorf("dns is %s", r.Match)
		}
	}
	if !typical.Equal(typical) || typical.Equal(policy.Groups{}) {
		t.Error("equal")
	}
}
