package xdp

import "errors"

// The constants of bpf/judge.h and bpf/tree.h.
const (
	cellBit    = 1 << 31
	subtreeBit = 1 << 30
	tableBit   = 1 << 30
	restBit    = 1 << 29
	rests      = 4 // in a node
	auditBit   = 1 << 17
	quietBit   = 1 << 18
	// allowedBit and refusedBit are those of the first of maxSources sources.
	allowedBit = 1 << 20
	refusedBit = 1 << 24
	maxSources = 4
	fanout     = 16
	maxLevels  = 4
)

// errTooComplex is returned for a policy that no tree of the data plane holds.
var errTooComplex = errors.New("the rules are too many or overlap in too many ways; use fewer, or wider ones")

// interval ends with last, inclusive, and begins where the one before it ended.
type interval struct{ last, val uint32 }

// forest is a growing list of nodes. Roots and children are positions in it plus one, so that 0 is
// no node; place makes them indexes of the kernel's map.
type forest struct {
	nodes []filterNode
	// flat are the positions of nodes that hold numbers without links: parts of tables, and rests.
	flat map[int]bool
	// rests are the numbers of the rests that are there, and restNode the one that is being filled.
	rests    map[rest]uint32
	restNode uint32
	// seen finds a tree that is there already by its intervals, and tables a table.
	seen, tables map[string]uint32
}

func newForest() *forest {
	return &forest{flat: map[int]bool{}, rests: map[rest]uint32{}, seen: map[string]uint32{}, tables: map[string]uint32{}}
}

// tree adds the tree over iv, which covers all 32-bit numbers, and returns its root.
func (f *forest) tree(iv []interval) (uint32, error) {
	iv = mergeIntervals(iv)
	key := intervalKey(iv)
	if root, ok := f.seen[key]; ok {
		return root, nil
	}

	level := make([]filterNode, 0, len(iv)/fanout+1)
	ends := make([]uint32, 0, cap(level)) // the last number of each node of level
	for i := 0; i < len(iv); i += fanout {
		part := iv[i:min(i+fanout, len(iv))]
		level = append(level, leaf(part))
		ends = append(ends, part[len(part)-1].last)
	}
	for depth := 1; len(level) > 1; depth++ {
		if depth == maxLevels {
			return 0, errTooComplex
		}
		level, ends = f.parents(level, ends)
	}
	f.nodes = append(f.nodes, level[0])
	root := uint32(len(f.nodes))
	f.seen[key] = root
	return root, nil
}

// tableLimit is how many intervals a protocol's services may have in the tree; more would take a fourth level,
// and 64 bytes a rule are enough for a table by then.
const tableLimit = fanout * fanout * fanout

// table adds what each of 65,536 services has, 32 to a node, and returns the first node. iv are the intervals
// of one protocol, whose keys agree in all but the last 16 bits.
func (f *forest) table(iv []interval) uint32 {
	key := intervalKey(iv)
	if first, ok := f.tables[key]; ok {
		return first
	}
	first := len(f.nodes)
	f.tables[key] = uint32(first) + 1
	at := 0
	for _, v := range iv {
		for ; at <= int(v.last&0xffff); at++ {
			if at%nodeNumbers == 0 {
				f.addFlat()
			}
			setNumber(&f.nodes[first+at/nodeNumbers], at%nodeNumbers, v.val)
		}
	}
	return f.tables[key]
}

// nodeNumbers is how many 32-bit numbers a node is.
const nodeNumbers = 32

// addFlat adds a node for setNumber and returns it as a root.
func (f *forest) addFlat() uint32 {
	f.flat[len(f.nodes)] = true
	f.nodes = append(f.nodes, filterNode{})
	return uint32(len(f.nodes))
}

// setNumber sets the i-th number of a node that has no links.
func setNumber(n *filterNode, i int, v uint32) {
	switch keys := len(n.Key); {
	case i < keys:
		n.Key[i] = v
	case i == keys:
		n.Child = v
	default:
		n.Val[i-keys-1] = v
	}
}

// parents puts level into the forest and returns the level above it.
func (f *forest) parents(level []filterNode, ends []uint32) (up []filterNode, upEnds []uint32) {
	first := uint32(len(f.nodes)) + 1
	f.nodes = append(f.nodes, level...)
	for i := 0; i < len(level); i += fanout {
		last := min(i+fanout, len(level)) - 1
		n := filterNode{Child: first + uint32(i)}
		separate(&n, ends[i:last+1])
		up = append(up, n)
		upEnds = append(upEnds, ends[last])
	}
	return up, upEnds
}

func leaf(part []interval) filterNode {
	var n filterNode
	ends := make([]uint32, len(part))
	for i, v := range part {
		ends[i], n.Val[i] = v.last, v.val
	}
	separate(&n, ends)
	return n
}

// separate sets the separators between children that end where ends says. The last end is none: what
// lies beyond it belongs to another node. 0xffffffff is smaller than nothing, so no search goes there.
func separate(n *filterNode, ends []uint32) {
	for i := range n.Key {
		n.Key[i] = 0xffffffff
		if i < len(ends)-1 {
			n.Key[i] = ends[i]
		}
	}
}

func mergeIntervals(iv []interval) []interval {
	out := iv[:0:0]
	for _, v := range iv {
		if n := len(out); n > 0 && out[n-1].val == v.val {
			out[n-1].last = v.last
			continue
		}
		out = append(out, v)
	}
	return out
}

func intervalKey(iv []interval) string {
	key := make([]byte, 0, len(iv)*8)
	for _, v := range iv {
		key = append32(append32(key, v.last), v.val)
	}
	return string(key)
}

func append32(b []byte, n uint32) []byte {
	return append(b, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}
