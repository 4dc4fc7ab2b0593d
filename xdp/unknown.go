package xdp

// unknowns are the intervals for the service keys of what could not be read. known are those of the
// services that can be. Each unknown is judged for everything that it can be: all the same, and it is that;
// else unreadable.
func (c *compiler) unknowns(known []segment) []interval {
	var out []interval
	at := uint32(maxService)
	nobody := uint32(cellUnreadable) // has such a key
	if c.limits {
		nobody = cellBit
	}
	put := func(key, val uint32) {
		if key > at+1 {
			out = append(out, interval{key - 1, nobody})
		}
		out = append(out, interval{key, val})
		at = key
	}
	var any [2]mixture
	for family, base := range []uint32{serviceUnknown4, serviceUnknown6} {
		for proto, s := range knownSpans(family == 1) {
			m := c.mix(known, s)
			any[family].add(m)
			put(base|uint32(proto), c.value(c.mixed(m, c.families[family])))
		}
	}
	put(protoUnknown4, c.value(c.mixed(any[0], c.families[0])))
	put(protoUnknown6, c.value(c.mixed(any[1], c.families[1])))

	ip := c.flat(any)
	notIP := c.notIP()
	put(ipUnknown, ip)
	put(allUnknown, c.agree(ip, notIP))
	put(notIPKey, notIP)
	return append(out, interval{0xffffffff, nobody})
}

// agree is the cell of what may be either.
func (c *compiler) agree(a, b uint32) uint32 {
	return c.oneOf(map[uint32]int{a: 1, b: 1})
}

// plain is a cell without what does not matter to what cannot be read: which sources say why it passes or does not. It leaves a
// mask of limits as it is.
func plain(cell uint32) uint32 { return cell &^ ((1<<maxSources - 1) * (allowedBit | refusedBit)) }

// mixture is the set of rows that a packet may belong to, by class of services.
type mixture struct{ rows map[int]*row }

func (m *mixture) add(o mixture) {
	if m.rows == nil {
		m.rows = map[int]*row{}
	}
	for class, r := range o.rows {
		m.rows[class] = r
	}
}

// mix is the mixture of the services in s.
func (c *compiler) mix(known []segment, s span) mixture {
	m := mixture{map[int]*row{}}
	from := uint32(0)
	for _, k := range known {
		last := k.last.word(3)
		if from <= s.to && last >= s.from {
			m.rows[k.class] = &c.rows[k.class]
		}
		from = last + 1
	}
	return m
}

// row judges what may belong to any row of m, for the classes of one family of peers.
func (c *compiler) mixed(m mixture, classes map[int]bool) row {
	// How many rows have which base, and which rows say more of a class.
	bases := map[uint32]int{}
	named := map[int][]*row{}
	for _, r := range m.rows {
		bases[r.base]++
		for class := range r.cells {
			if classes[class] {
				named[class] = append(named[class], r)
			}
		}
	}
	out := row{base: c.oneOf(bases), cells: map[int]uint32{}}
	for class, rows := range named {
		seen := map[uint32]int{}
		for _, r := range rows {
			seen[r.cells[class]]++
			if bases[r.base]--; bases[r.base] == 0 {
				delete(bases, r.base)
			}
		}
		cell := c.oneOf(seen)
		if len(bases) > 0 {
			cell = c.agree(cell, c.oneOf(bases))
		}
		out.cells[class] = cell
		for _, r := range rows {
			bases[r.base]++
		}
	}
	return out
}

// oneOf is the cell of what may be any of several: the only one, or unreadable where there are more. That passes where
// all of them do, and is not logged where none that drops is. A limit holds where it may.
func (c *compiler) oneOf(cells map[uint32]int) uint32 {
	verdicts, union := map[uint32]bool{}, uint32(cellBit)
	for cell := range cells {
		verdicts[plain(cell)] = true
		union |= cell
	}
	if c.limits || len(cells) == 1 {
		return union
	}
	if len(verdicts) == 1 {
		return plain(union)
	}
	unreadable := uint32(cellUnreadable | auditBit | quietBit)
	for cell := range verdicts {
		if cell != cellPass {
			unreadable &= cell | ^uint32(auditBit|quietBit)
		}
	}
	return unreadable
}

// flat is the verdict on an IP packet of which nothing else is known.
func (c *compiler) flat(any [2]mixture) uint32 {
	cells := map[uint32]int{}
	for family, m := range any {
		r := c.mixed(m, c.families[family])
		for class := range c.families[family] {
			cells[r.cell(class)]++
		}
	}
	return c.oneOf(cells)
}

// notIP is the verdict on a frame that is not IP: only rules for all, with everybody, match it.
func (c *compiler) notIP() uint32 {
	var rules []int
	for i, r := range c.rules {
		if r.notIP {
			rules = append(rules, i)
		}
	}
	return c.judge(rules, func(int) bool { return true })
}
