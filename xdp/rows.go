package xdp

import (
	"cmp"
	"maps"
	"slices"

	"github.com/vethwall/vethwall/policy"
)

// The low byte of a cell that stands for the reason for which a packet could not be read.
const reasonUnreadable = 0xff

const (
	cellPass       = cellBit | uint32(policy.Pass)
	cellDefault    = cellBit | uint32(policy.ByDefault)
	cellUnreadable = cellBit | reasonUnreadable
)

// cellRule leaves out of which direction the rule is: who finds it knows.
func cellRule(slot uint32) uint32 { return cellBit | slot<<8 | uint32(policy.ByRule) }

// row holds the verdicts of one class of services, by class of peers: cells where it is listed, base elsewhere.
type row struct {
	base  uint32
	cells map[int]uint32
}

func (r row) cell(peer int) uint32 {
	if c, ok := r.cells[peer]; ok {
		return c
	}
	return r.base
}

// compiler holds what the parts of one direction share.
type compiler struct {
	forest *forest
	stack  policy.Stack
	dir    policy.Direction
	rules  []slottedRule
	// limits: cells are masks of limits, and not verdicts.
	limits bool

	// peerSet is the set of peers of each rule, an index into peerClasses, or -1 for everybody.
	peerSet     []int
	peerClasses [][]int // by set: the classes in it
	inSet       []map[int]bool
	numClasses  int
	families    [2]map[int]bool // the classes that IPv4 and IPv6 addresses have
	peers       [2][]segment

	rows    []row // by class of services
	budget  int
	numbers map[string]uint32 // of rows that are in the cells tree, by content
	kept    []row
}

// rowBudget bounds the cells that are looked at while one direction of a policy is compiled, and with them the time for which an agent's loop waits: half a
// second for the hardest that an image may bring along. 10,000 rules of a port and a CIDR each take 10,000.
const rowBudget = 1 << 17

func compileDirection(f *forest, s policy.Stack, rules []slottedRule, dir policy.Direction) (filterTable, error) {
	return (&compiler{forest: f, stack: s, dir: dir, rules: rules, budget: rowBudget, numbers: map[string]uint32{}}).compile()
}

func (c *compiler) compile() (filterTable, error) {
	f := c.forest
	if err := c.cutPeers(); err != nil {
		return filterTable{}, err
	}
	services, err := c.services()
	if err != nil {
		return filterTable{}, err
	}
	var t filterTable
	if t.Services, err = f.tree(services); err != nil {
		return t, err
	}
	if len(c.kept) > 1<<16 {
		return t, errTooComplex
	}
	if len(c.kept) == 0 {
		return t, nil // every service is decided without looking at the peer
	}
	settled := c.settled()
	peers4, some4 := peerIntervals(c.peers[0], settled)
	peers6, some6 := peerIntervals(c.peers[1], settled)
	if t.Peers4, err = f.tree4(peers4); err != nil {
		return t, err
	}
	if t.Peers6, err = f.tree6(peers6, 0); err != nil {
		return t, err
	}
	if some4 || some6 {
		t.Cells, err = f.tree(c.cells(settled))
	}
	return t, err
}

// cutPeers finds the distinct sets of peers and the classes into which they cut the addresses.
func (c *compiler) cutPeers() error {
	var sets [2][][]stretch
	ids := map[string]int{}
	for _, r := range c.rules {
		if r.peers.Any() {
			c.peerSet = append(c.peerSet, -1)
			continue
		}
		key := r.peers.String()
		id, ok := ids[key]
		if !ok {
			id = len(ids)
			ids[key] = id
			var of [2][]stretch
			for _, a := range peerRanges(r.peers) {
				family := 0
				if a.From().Is6() {
					family = 1
				}
				of[family] = append(of[family], ofRange(a))
			}
			sets[0], sets[1] = append(sets[0], of[0]), append(sets[1], of[1])
		}
		c.peerSet = append(c.peerSet, id)
	}
	sweep := newSweeper()
	c.peerClasses = make([][]int, len(ids))
	c.inSet = make([]map[int]bool, len(ids))
	for family, max := range []number{max32, max128} {
		var err error
		if c.peers[family], err = sweep.sweep(sets[family], max); err != nil {
			return err
		}
		c.families[family] = map[int]bool{}
		for _, s := range c.peers[family] {
			c.families[family][s.class] = true
		}
	}
	for class, in := range sweep.classes {
		for _, set := range in {
			c.peerClasses[set] = append(c.peerClasses[set], class)
			if c.inSet[set] == nil {
				c.inSet[set] = map[int]bool{}
			}
			c.inSet[set][class] = true
		}
	}
	if c.numClasses = len(sweep.classes); c.numClasses > 1<<16 {
		return errTooComplex
	}
	return nil
}

// services is the tree from service key to cell or row.
func (c *compiler) services() ([]interval, error) {
	sets := make([][]stretch, len(c.rules))
	for i, r := range c.rules {
		for _, s := range r.services {
			sets[i] = append(sets[i], ofSpan(s))
		}
	}
	sweep := newSweeper()
	segments, err := sweep.sweep(sets, number{lo: maxService})
	if err != nil {
		return nil, err
	}
	c.rows = make([]row, len(sweep.classes))
	for class, rules := range sweep.classes {
		if c.rows[class], err = c.row(rules); err != nil {
			return nil, err
		}
	}
	var out []interval
	for _, s := range segments {
		out = append(out, interval{s.last.word(3), c.value(c.rows[s.class])})
	}
	return append(c.tabled(mergeIntervals(out)), c.unknowns(segments)...), nil
}

// tabled puts a table in the place of a protocol's intervals where they are too many.
func (c *compiler) tabled(iv []interval) []interval {
	var out []interval
	for proto := range uint32(256) {
		end := proto<<16 | 0xffff
		n := slices.IndexFunc(iv, func(v interval) bool { return v.last >= end })
		part := append(slices.Clone(iv[:n]), interval{end, iv[n].val})
		if len(part) > tableLimit {
			part = []interval{{end, c.forest.table(part) | tableBit}}
		}
		out = append(out, part...)
		if iv = iv[n:]; iv[0].last == end {
			iv = iv[1:]
		}
	}
	return out
}

// row judges a service that is in the spans of rules, for every class of peers that they name.
func (c *compiler) row(rules []int) (row, error) {
	r := row{cells: map[int]uint32{}}
	anybody := func(rule int) bool { return c.peerSet[rule] < 0 }
	r.base = c.judge(rules, anybody)
	for _, rule := range rules {
		if anybody(rule) {
			continue
		}
		for _, class := range c.peerClasses[c.peerSet[rule]] {
			if _, done := r.cells[class]; done {
				continue
			}
			if c.budget -= 1 + len(rules)/16; c.budget < 0 {
				return r, errTooComplex
			}
			r.cells[class] = c.judge(rules, func(rule int) bool {
				return anybody(rule) || c.inSet[c.peerSet[rule]][class]
			})
		}
	}
	return r, nil
}

// judge is Stack.Verdict for what the given rules cover: every source on its own, the first that drops the packet names
// the verdict, else the first that would. Of limits it is the mask of those that match.
func (c *compiler) judge(rules []int, matches func(int) bool) uint32 {
	if c.limits {
		return c.mask(rules, matches)
	}
	var closed, would, allow, refused uint32
	for source := range c.stack {
		var dropped *slottedRule
		var excepted, allowed bool
		for _, i := range rules {
			r := &c.rules[i]
			if r.source != source || !matches(i) {
				continue
			}
			switch r.verb {
			case policy.Drop:
				if dropped == nil {
					dropped = r
				}
			case policy.Except:
				excepted = true
			case policy.Allow:
				allowed = true
			}
		}
		if allowed || dropped != nil && excepted {
			allow |= allowedBit << source
		}
		cell := uint32(0)
		if dropped != nil && !excepted {
			cell = cellRule(dropped.slot)
		} else if !allowed && !c.stack[source].Policy.PassesByDefault(c.dir) {
			cell = cellDefault | uint32(source)<<8 // which source's, so that two are not taken for one
		}
		if cell == 0 {
			continue
		}
		if cell |= sourceFlags(c.stack, source); cell&auditBit != 0 {
			would = cmp.Or(would, cell)
			continue
		}
		closed = cmp.Or(closed, cell)
		refused |= refusedBit << source
	}
	if closed != 0 {
		return closed | refused
	}
	return cmp.Or(would, cellPass) | allow
}

// mask is the cell of limits: the bit of each rule's bucket, which is its slot.
func (c *compiler) mask(rules []int, matches func(int) bool) uint32 {
	cell := uint32(cellBit)
	for _, i := range rules {
		if matches(i) {
			cell |= 1 << c.rules[i].slot
		}
	}
	return cell
}

// value is what the services tree holds for a row: its one cell where all are the same, else its number.
func (c *compiler) value(r row) uint32 {
	same := true
	for _, cell := range r.cells {
		same = same && cell == r.base
	}
	if same {
		return r.base
	}
	var key []byte
	key = append32(key, r.base)
	for _, class := range slices.Sorted(maps.Keys(r.cells)) {
		if r.cells[class] != r.base {
			key = append32(append32(key, uint32(class)), r.cells[class])
		}
	}
	n, ok := c.numbers[string(key)]
	if !ok {
		n = uint32(len(c.kept))
		c.numbers[string(key)] = n
		c.kept = append(c.kept, r)
	}
	return n
}

// settled are the classes of peers on which all kept rows agree, and the cell on which they do.
func (c *compiler) settled() map[int]uint32 {
	bases := map[uint32]int{} // how many rows have which
	for _, r := range c.kept {
		bases[r.base]++
	}
	// What the rows that list a class say of it.
	type listing struct {
		cell        uint32
		mixed       bool
		rows, based int // how many rows, and how many of them have the cell as base
	}
	listings := map[int]listing{}
	for _, r := range c.kept {
		for class, cell := range r.cells {
			l, listed := listings[class]
			l.mixed = l.mixed || listed && l.cell != cell
			l.cell = cell
			l.rows++
			if r.base == cell {
				l.based++
			}
			listings[class] = l
		}
	}
	out := map[int]uint32{}
	for class := range c.numClasses {
		l, listed := listings[class]
		if !listed {
			l.cell = c.kept[0].base
		}
		if !l.mixed && bases[l.cell]-l.based == len(c.kept)-l.rows {
			out[class] = l.cell
		}
	}
	return out
}

// cells is the tree from row << 16 | class of peers to cell, for classes that are not settled.
func (c *compiler) cells(settled map[int]uint32) []interval {
	var out []interval
	for n, r := range c.kept {
		first := uint32(n) << 16
		for _, class := range slices.Sorted(maps.Keys(r.cells)) {
			if _, ok := settled[class]; ok {
				continue
			}
			at := first | uint32(class)
			if at > 0 {
				out = append(out, interval{at - 1, r.base})
			}
			out = append(out, interval{at, r.cells[class]})
		}
		out = append(out, interval{first | 0xffff, r.base})
	}
	out[len(out)-1].last = 0xffffffff
	return slices.DeleteFunc(out, emptyAfter())
}

// emptyAfter finds, when called on intervals in order, those that end no later than the one before.
func emptyAfter() func(interval) bool {
	before := int64(-1)
	return func(v interval) bool {
		empty := int64(v.last) <= before
		before = max(before, int64(v.last))
		return empty
	}
}
