package xdp

import (
	"cmp"
	"math"
	"net/netip"
	"slices"

	"go4.org/netipx"
)

// number is an address or a service key: 128 bits, of which IPv4 and services use the last 32.
type number struct{ hi, lo uint64 }

func (n number) compare(o number) int {
	return cmp.Or(cmp.Compare(n.hi, o.hi), cmp.Compare(n.lo, o.lo))
}

func (n number) next() number {
	n.lo++
	if n.lo == 0 {
		n.hi++
	}
	return n
}

func (n number) prev() number {
	if n.lo == 0 {
		n.hi--
	}
	n.lo--
	return n
}

// word is the i-th of the four 32-bit words, the most significant first.
func (n number) word(i int) uint32 {
	half := n.hi
	if i >= 2 {
		half = n.lo
	}
	return uint32(half >> (32 * (1 - i%2)))
}

var (
	max32  = number{lo: math.MaxUint32}
	max128 = number{math.MaxUint64, math.MaxUint64}
)

// stretch is a range of numbers, inclusive at both ends.
type stretch struct{ from, to number }

func ofSpan(s span) stretch { return stretch{number{lo: uint64(s.from)}, number{lo: uint64(s.to)}} }

func ofRange(r netipx.IPRange) stretch { return stretch{ofAddr(r.From()), ofAddr(r.To())} }

func ofAddr(a netip.Addr) number {
	w := words(a)
	if a.Is4() {
		return number{lo: uint64(w[3])}
	}
	return number{uint64(w[0])<<32 | uint64(w[1]), uint64(w[2])<<32 | uint64(w[3])}
}

// segment ends with last, inclusive, and begins where the one before it ended. All its numbers are in
// the same sets.
type segment struct {
	last  number
	class int
}

// sweepBudget bounds the time and memory that overlapping sets can cost: set memberships over all segments. 10,000 rules
// that do not overlap take 20,000.
const sweepBudget = 1 << 19

// sweeper finds the classes of several sweeps that share them, as IPv4 and IPv6 peers do.
type sweeper struct {
	// classes are the sets that the numbers of each class are in, in order. Class 0 is in none.
	classes [][]int
	ids     map[string]int
	spent   int
}

func newSweeper() *sweeper {
	return &sweeper{classes: [][]int{nil}, ids: map[string]int{"": 0}}
}

// sweep cuts the numbers up to max by the sets, each a list of stretches that may overlap.
func (s *sweeper) sweep(sets [][]stretch, max number) ([]segment, error) {
	type edge struct {
		at    number
		set   int
		delta int
	}
	var edges []edge
	for i, set := range sets {
		for _, r := range set {
			edges = append(edges, edge{r.from, i, 1})
			if r.to != max {
				edges = append(edges, edge{r.to.next(), i, -1})
			}
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return a.at.compare(b.at) })

	var out []segment
	var active []int // sorted
	depth := make([]int, len(sets))
	for i := 0; i < len(edges); {
		at := edges[i].at
		if at != (number{}) {
			class, err := s.class(active)
			if err != nil {
				return nil, err
			}
			out = append(out, segment{at.prev(), class})
		}
		for ; i < len(edges) && edges[i].at == at; i++ {
			e := edges[i]
			depth[e.set] += e.delta
			pos, in := slices.BinarySearch(active, e.set)
			if in && depth[e.set] == 0 {
				active = slices.Delete(active, pos, pos+1)
			} else if !in && depth[e.set] > 0 {
				active = slices.Insert(active, pos, e.set)
			}
		}
	}
	class, err := s.class(active)
	if err != nil {
		return nil, err
	}
	return append(out, segment{max, class}), nil
}

// class is the number of the class whose members are in just these sets.
func (s *sweeper) class(sets []int) (int, error) {
	if s.spent += len(sets); s.spent > sweepBudget {
		return 0, errTooComplex
	}
	var key []byte
	for _, set := range sets {
		key = append32(key, uint32(set))
	}
	id, ok := s.ids[string(key)]
	if !ok {
		id = len(s.classes)
		s.ids[string(key)] = id
		s.classes = append(s.classes, slices.Clone(sets))
	}
	return id, nil
}
