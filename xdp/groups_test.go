package xdp

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vethwall/vethwall/policy"
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
	if want := []string{"dns", "internet", "lan", "metadata", "private", "udp"}; !slices.Equal(tables.Rules[policy.Egress], want) {
		t.Errorf("egress rules %q", tables.Rules[policy.Egress])
	}
	if want := []string{"internet", "lan", "metadata", "private", "udp"}; !slices.Equal(tables.Rules[policy.Ingress], want) {
		t.Errorf("ingress rules %q", tables.Rules[policy.Ingress])
	}
	t.Logf("%d nodes", len(tables.nodes))
	other, err := Compile(policy.Groups{}.Resolve(s))
	if err != nil || other.digest == tables.digest {
		t.Error("other groups, the same tables", err)
	}
}
