package xdp

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// BenchmarkNeighbors is what it costs to look by which port a packet has come in, with the addresses of 2,000 neighbours.
func BenchmarkNeighbors(b *testing.B) {
	r := newRunner(b)
	tables, err := Compile(policy.Stack{{Origin: "labels"}})
	must(b, err)
	r.use(tables)
	n := &policy.Neighborhood{Bridge: 7, Port: map[netip.Addr]int{}}
	a := netip.MustParseAddr("198.18.0.0")
	for i := range 2000 {
		a = a.Next()
		n.Port[a], n.Known = 1000+i, append(n.Known, 1000+i)
	}
	for _, c := range []struct {
		name string
		n    *policy.Neighborhood
		from int
		src  string
		want uint32
	}{
		{"not judged", nil, 1999, "198.18.4.1", tcPass},
		{"from the host", n, 0, "198.18.0.0", tcPass},
		{"from outside", n, 2, "203.0.113.5", tcPass},
		{"from a neighbour", n, n.Port[netip.MustParseAddr("198.18.4.1")], "198.18.4.1", tcPass},
		{"forged", n, 1001, "198.18.4.1", tcDrop},
	} {
		b.Run(c.name, func(b *testing.B) {
			r.around(c.n)
			frame := policytest.IP(c.src, "192.0.2.2", protoUDP, policytest.UDP(1000, 53))
			o := &ebpf.RunOptions{Data: frame, Context: cameIn(c.from), Repeat: uint32(b.N)}
			b.ResetTimer()
			got, err := r.k.VethwallReceived.Run(o)
			must(b, err)
			if got != c.want {
				b.Fatalf("action %d, want %d", got, c.want)
			}
		})
	}
}
