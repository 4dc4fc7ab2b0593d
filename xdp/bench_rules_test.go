package xdp

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// flow is what tells the packets of one benchmark apart.
type flow struct {
	peer netip.Addr
	port uint16
}

// frame is a UDP or TCP packet of the flow, 60 bytes or more.
func (f flow) frame(proto uint8) []byte {
	src := "192.0.2.1"
	if f.peer.Is6() {
		src = "2001:db8::1"
	}
	payload := policytest.TCP(40000, f.port)
	if proto == protoUDP {
		payload = policytest.UDP(40000, f.port, make([]byte, 18)...)
	}
	return policytest.IP(src, f.peer.String(), proto, payload)
}

// workload is a policy of drop rules of one kind, and packets for it.
type workload struct {
	rules    []policy.Rule
	prefixes []netip.Prefix // the peers of the rules, where they are CIDRs
	// hits are dropped by a rule. misses pass, and are as near to a rule as can be: a port next to one, an
	// address next to one, an address in the other half of the CIDR one bit shorter. They differ in
	// all that the rules do not look at, too.
	hits, misses []flow
}

// kinds of rules. The name is that of the benchmark.
var kinds = []struct {
	name string
	draw func(d drawer, n int) workload
}{
	{"ports", drawer.ports},
	{"addresses4", func(d drawer, n int) workload { return d.peers(n, false, 32, 32) }},
	{"addresses6", func(d drawer, n int) workload { return d.peers(n, true, 128, 128) }},
	{"cidrs4", func(d drawer, n int) workload { return d.peers(n, false, 16, 28) }},
	{"cidrs6", func(d drawer, n int) workload { return d.peers(n, true, 32, 64) }},
	{"ports@cidrs4", drawer.portsAtPeers},
}

var sizes = []int{1, 10, 100, 1000, 10000}

// drawer draws the same workload from the same seed.
type drawer struct{ *rand.Rand }

func draw(kind string, n int) workload { return drawSeeded(2, kind, n) }

func drawSeeded(seed uint64, kind string, n int) workload {
	d := drawer{rand.New(rand.NewPCG(seed, uint64(n)))}
	for _, k := range kinds {
		if k.name == kind {
			return k.draw(d, n)
		}
	}
	panic("no such kind: " + kind)
}

func (d drawer) ports(n int) (w workload) {
	ports := d.oddPorts(n)
	for _, p := range ports {
		w.rules = append(w.rules, dropRule(policy.Match{What: udpPort(p)}))
	}
	for range shuffledFlows {
		p := ports[d.IntN(n)]
		w.hits = append(w.hits, flow{d.addr(false), p})
		w.misses = append(w.misses, flow{d.addr(false), p - 1})
	}
	return w
}

// peers draws rules for prefixes whose lengths are in [short, long].
func (d drawer) peers(n int, v6 bool, short, long int) (w workload) {
	w.prefixes = d.distinctPrefixes(n, v6, short, long)
	var all netipx.IPSetBuilder
	for _, p := range w.prefixes {
		w.rules = append(w.rules, dropRule(policy.Match{Peers: peersOf(p)}))
		all.AddPrefix(p)
	}
	set, _ := all.IPSet() // fails for invalid prefixes only
	for range shuffledFlows {
		port := uint16(1 + d.IntN(65535))
		w.hits = append(w.hits, flow{d.within(w.prefixes[d.IntN(n)]), port})
		miss := d.within(sibling(w.prefixes[d.IntN(n)]))
		for set.Contains(miss) {
			miss = d.within(sibling(w.prefixes[d.IntN(n)]))
		}
		w.misses = append(w.misses, flow{miss, port})
	}
	return w
}

func (d drawer) portsAtPeers(n int) (w workload) {
	ports := d.oddPorts(n)
	w.prefixes = d.distinctPrefixes(n, false, 16, 28)
	for i, p := range w.prefixes {
		w.rules = append(w.rules, dropRule(policy.Match{What: udpPort(ports[i]), Peers: peersOf(p)}))
	}
	for range shuffledFlows {
		i := d.IntN(n)
		w.hits = append(w.hits, flow{d.within(w.prefixes[i]), ports[i]})
		w.misses = append(w.misses, flow{d.within(sibling(w.prefixes[i])), ports[i]})
	}
	return w
}

// oddPorts are n different ones, so that no two are neighbours, none of them 1.
func (d drawer) oddPorts(n int) []uint16 {
	out := make([]uint16, n)
	for i, k := range d.Perm(32767)[:n] {
		out[i] = uint16(2*k + 3)
	}
	return out
}

func (d drawer) distinctPrefixes(n int, v6 bool, short, long int) []netip.Prefix {
	seen := map[netip.Prefix]bool{}
	for len(seen) < n {
		p, _ := d.addr(v6).Prefix(short + d.IntN(long-short+1)) // fails for wrong lengths only
		seen[p] = true
	}
	out := make([]netip.Prefix, 0, n)
	for p := range seen {
		out = append(out, p)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	d.Shuffle(n, func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// addr is a unicast one, for IPv6 from 2000::/3.
func (d drawer) addr(v6 bool) netip.Addr {
	if !v6 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], d.Uint32())
		b[0] = uint8(1 + d.IntN(223))
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], d.Uint64()>>3|1<<61)
	binary.BigEndian.PutUint64(b[8:], d.Uint64())
	return netip.AddrFrom16(b)
}

// within is an address in p.
func (d drawer) within(p netip.Prefix) netip.Addr {
	host := d.addr(p.Addr().Is6()).AsSlice()
	b := p.Masked().Addr().AsSlice()
	for i := range b {
		mask := uint8(0xff)
		if bits := p.Bits() - 8*i; bits > 0 {
			mask >>= min(bits, 8)
		}
		b[i] |= host[i] & mask
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// sibling differs from p in the last bit of the prefix.
func sibling(p netip.Prefix) netip.Prefix {
	b := p.Addr().AsSlice()
	last := p.Bits() - 1
	b[last/8] ^= 0x80 >> (last % 8)
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, p.Bits())
}

func udpPort(p uint16) policy.What {
	return policy.What{Kind: policy.Ports, Proto: protoUDP, Ports: []policy.PortRange{{From: p, To: p}}}
}

func peersOf(p netip.Prefix) policy.Peers {
	return policy.Peers{Ranges: []netipx.IPRange{netipx.RangeOfPrefix(p)}}
}

func dropRule(m policy.Match) policy.Rule {
	return policy.Rule{Verb: policy.Drop, In: [2]bool{true, true}, Match: m}
}

// compiled are the tables for rules, sorted as the parser leaves them: the first ones have counters of their own. Each packet
// is judged by them alone; what conversations add has rows of its own.
func compiled(rules []policy.Rule) (*Tables, error) {
	sorted := slices.Clone(rules)
	slices.SortFunc(sorted, func(a, b policy.Rule) int {
		return cmp.Compare(a.Match.String(), b.Match.String())
	})
	t, err := Compile(policy.Stack{{Origin: "labels", Policy: policy.Policy{Rules: sorted}}})
	if err != nil {
		return nil, fmt.Errorf("%d rules: %w", len(rules), err)
	}
	t.flags &^= flagStateful
	return t, nil
}
