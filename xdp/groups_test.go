package xdp

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// Resolved groups are counted under the names that users gave them, and unresolved ones are refused.
func TestCompileGroups(t *testing.T) {
	p, _, err := policy.Parse(map[string]string{"xdp.drop": "dns,internet,lan,metadata,private,udp"})
	if err != nil {
		t.Fatal(err)
	}
	s := policy.Stack{{Origin: "labels", Policy: p}}
	if _, err := Compile(s); err == nil {
		t.Error("compiled without knowing the groups")
	}
	host := netip.MustParseAddr("192.0.2.1")
	g := policy.Groups{Host: []netip.Addr{host}, Gateways: []netip.Addr{host}, Resolvers: []netip.Addr{host},
		Neighbors: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	tables, err := Compile(g.Resolve(s))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"dns", "internet", "lan", "metadata", "private", "udp"}; !slices.Equal(names(tables.Rules[policy.Egress]), want) {
		t.Errorf("egress rules %v", tables.Rules[policy.Egress])
	}
	if want := []string{"internet", "lan", "metadata", "private", "udp"}; !slices.Equal(names(tables.Rules[policy.Ingress]), want) {
		t.Errorf("ingress rules %v", tables.Rules[policy.Ingress])
	}
	t.Logf("%d nodes", len(tables.nodes))
	other, err := Compile(policy.Groups{}.Resolve(s))
	if err != nil || other.digest == tables.digest {
		t.Error("other groups, the same tables", err)
	}
}

// What groups are resolved to is more ranges, and other ones, than labels have: the programs are compared with the
// specification, as in TestDifferential.
func TestDifferentialGroups(t *testing.T) {
	r := newRunner(t)
	rnd, seed := seeded(t)
	addrs := func(texts ...string) (out []netip.Addr) {
		for _, s := range texts {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	prefixes := func(texts ...string) (out []netip.Prefix) {
		for _, s := range texts {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	g := policy.Groups{
		Host:   addrs("127.0.0.1", "8.8.1.2", "192.0.2.1", "172.17.0.1", "::1", "fe80::1", "2a00:1::2"),
		OnLink: prefixes("8.8.1.0/24", "192.0.2.0/24", "172.17.0.0/16", "2a00:1::/64"), Networks: prefixes("172.17.0.0/16", "192.0.2.0/24", "2002:808:808::/64"),
		Neighbors: prefixes("192.0.2.0/24", "2001:db8::/64"), Gateways: addrs("192.0.2.1", "2001:db8::1"), Resolvers: addrs("192.0.2.53", "8.8.8.8"),
	}
	for _, labels := range []map[string]string{
		{"xdp.egress.allow": "internet,dns"}, {"xdp.drop": "private", "xdp.except": "neighbors"}, {"xdp.drop": "internet,host"},
		{"xdp.allow": "lan,443/tcp@internet"}, {"xdp.drop": "metadata,icmp@private,udp@lan+multicast"}, {"xdp.ingress.allow": "tcp@neighbors", "xdp.egress.except": "dns", "xdp.egress.drop": "udp@host+internet"},
	} {
		p, _, err := policy.Parse(labels)
		if err != nil {
			t.Fatal(err)
		}
		stack := g.Resolve(policy.Stack{{Origin: "labels", Policy: p}})
		tables, err := Compile(stack)
		if err != nil {
			t.Fatal(err)
		}
		tables.flags &^= flagStateful // each frame alone
		r.use(tables)
		for i := range 600 {
			h := hooks[i%len(hooks)]
			frame := policytest.Frame(rnd, stack[0].Policy)
			if !tcRuns(frame) {
				h = hooks[0]
			}
			if got, want := r.run(h, stack, frame), stack.Verdict(h.dir, frame); got != want {
				t.Fatalf("seed %d: %v\n%s frame %x\nprogram says %v\nspecification says %v", seed, labels, h.name, frame, got, want)
			}
		}
	}
}

func names(rules []Counted) (out []string) {
	for _, r := range rules {
		out = append(out, r.Rule)
	}
	return out
}
