package xdp

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"go4.org/netipx"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// TestPeers6 compares the program with the specification where ranges of IPv6 addresses share words, begin and end at
// the edges of words, and touch: the addresses are drawn from few words, which no documentation prefix offers.
func TestPeers6(t *testing.T) {
	r := newRunner(t)
	rnd, seed := seeded(t)
	var haveRest, haveTree, haveCells, noCells, hits, misses int
	for range 500 {
		var p policy.Policy
		for range 1 + rnd.IntN(8) {
			what := policy.What{}
			if rnd.IntN(4) == 0 {
				what = udpPort(53)
			}
			p.Rules = append(p.Rules, dropRule(policy.Match{What: what, Peers: edgyPeers(rnd)}))
		}
		stack := policy.Stack{{Origin: "labels", Policy: p}}
		tables, err := Compile(stack)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		tables.flags &^= flagStateful
		r.use(tables)
		haveRest += links(tables, restBit)
		haveTree += links(tables, subtreeBit)
		if tables.table[policy.Egress].Cells == 0 {
			noCells++
		} else {
			haveCells++
		}
		for range 25 {
			peer := edgyAddr(rnd)
			frame := policytest.IP("2001:db8::1", peer.String(), protoUDP, policytest.UDP(40000, uint16(53+rnd.IntN(2))))
			want := stack.Verdict(policy.Egress, frame)
			if want.Reason == policy.ByRule {
				hits++
			} else {
				misses++
			}
			if got := r.run(hooks[0], stack, frame); got != want {
				t.Fatalf("seed %d: %s\npeer %s\nprogram says %v\nspecification says %v", seed, describe(stack), peer, got, want)
			}
		}
	}
	t.Logf("%d rests, %d trees below others, cells in %d policies and not in %d, %d hits, %d misses",
		haveRest, haveTree, haveCells, noCells, hits, misses)
	for _, n := range []int{haveRest, haveTree, haveCells, noCells, hits, misses} {
		if n == 0 {
			t.Error("something was never drawn")
		}
	}
}

// links counts the values that are not cells and have a bit.
func links(t *Tables, bit uint32) (n int) {
	for i, node := range t.nodes {
		if node.Child != 0 || t.flat[i] {
			continue
		}
		for _, v := range node.Val {
			if v&cellBit == 0 && v&bit != 0 {
				n++
			}
		}
	}
	return n
}

// edgyAddr has few different words, most of them edges.
func edgyAddr(rnd *rand.Rand) netip.Addr {
	var b [16]byte
	for i := range 4 {
		edges := []uint32{0, 1, 0x20010db8, 0xfffffffe, 0xffffffff}
		if i == 0 {
			edges = []uint32{0, 0x20010db8, 0xffffffff}
		}
		binary.BigEndian.PutUint32(b[4*i:], edges[rnd.IntN(len(edges))])
	}
	a := netip.AddrFrom16(b)
	if a.Is4In6() {
		return netip.MustParseAddr("2001:db8::")
	}
	return a
}

// edgyPeers is one address or the range between two.
func edgyPeers(rnd *rand.Rand) policy.Peers {
	from, to := edgyAddr(rnd), edgyAddr(rnd)
	if rnd.IntN(2) == 0 {
		to = from
	}
	if to.Less(from) {
		from, to = to, from
	}
	return policy.Peers{Ranges: []netipx.IPRange{netipx.IPRangeFrom(from, to)}}
}
