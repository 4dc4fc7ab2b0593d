package xdp

import (
	"go4.org/netipx"

	"github.com/vethwall/vethwall/policy"
)

// cellSpoof is for what is not among a container's own addresses.
const cellSpoof = cellBit | uint32(policy.Spoof)

// CompileOwn turns the addresses that are a container's own into the tables that antispoof searches.
func CompileOwn(own []netipx.IPRange) (*Tables, error) {
	f := newForest()
	t := &Tables{}
	sweep := newSweeper()
	var sets [2][]stretch
	for _, r := range own {
		family := 0
		if r.From().Is6() {
			family = 1
		}
		sets[family] = append(sets[family], ofRange(r))
	}
	var peers [2][]peerInterval
	for family, last := range []number{max32, max128} {
		segments, err := sweep.sweep([][]stretch{sets[family]}, last)
		if err != nil {
			return nil, err
		}
		peers[family], _ = peerIntervals(segments, map[int]uint32{0: cellSpoof, 1: cellPass})
	}
	table := &t.table[policy.Egress]
	var err error
	if table.Peers4, err = f.tree4(peers[0]); err != nil {
		return nil, err
	}
	if table.Peers6, err = f.tree6(peers[1], 0); err != nil {
		return nil, err
	}
	t.nodes, t.flat = f.nodes, f.flat
	t.seal()
	return t, nil
}
