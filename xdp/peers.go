package xdp

import "slices"

// peerInterval ends with last, inclusive, and begins where the one before it ended.
type peerInterval struct {
	last number
	val  uint32
}

// peerIntervals are segments as the peers trees hold them: a cell where the class is settled, else the class.
// classes reports whether any class is left.
func peerIntervals(segments []segment, settled map[int]uint32) (out []peerInterval, classes bool) {
	for _, s := range segments {
		val, ok := settled[s.class]
		if !ok {
			val, classes = uint32(s.class), true
		}
		if n := len(out); n > 0 && out[n-1].val == val {
			out[n-1].last = s.last
			continue
		}
		out = append(out, peerInterval{s.last, val})
	}
	return out, classes
}

func (f *forest) tree4(peers []peerInterval) (uint32, error) {
	iv := make([]interval, len(peers))
	for i, p := range peers {
		iv[i] = interval{p.last.word(3), p.val}
	}
	return f.tree(iv)
}

// tree6 adds the tree over the i-th words of addresses that agree in all words before it. Where all addresses
// with a word have one value it stands there, else the number of a rest or the root of the tree for the next
// word.
func (f *forest) tree6(peers []peerInterval, i int) (uint32, error) {
	var out []interval
	for len(peers) > 0 {
		// An interval that ends in the middle of a word shares that word with those after it, up
		// to the one that reaches its end.
		word := peers[0].last.word(i)
		if whole(peers[0].last, i) {
			out = append(out, interval{word, peers[0].val})
			peers = peers[1:]
			continue
		}
		if word > 0 {
			out = append(out, interval{word - 1, peers[0].val})
		}
		n := slices.IndexFunc(peers, func(p peerInterval) bool {
			return p.last.word(i) != word || whole(p.last, i)
		}) + 1
		val, err := f.below(upTo(peers[:n], word, i), i)
		if err != nil {
			return 0, err
		}
		out = append(out, interval{word, val})
		if peers[n-1].last.word(i) == word {
			peers = peers[n:]
		} else {
			peers = peers[n-1:]
		}
	}
	return f.tree(slices.DeleteFunc(out, emptyAfter()))
}

// below adds what tells addresses that agree up to the i-th word, and returns what stands for it there.
func (f *forest) below(peers []peerInterval, i int) (uint32, error) {
	if r, ok := restOf(peers); ok {
		return f.rest(r) | restBit, nil
	}
	root, err := f.tree6(peers, i+1)
	return root | subtreeBit, err
}

// whole reports whether every word after the i-th is all ones.
func whole(n number, i int) bool {
	for i++; i < 4; i++ {
		if n.word(i) != 0xffffffff {
			return false
		}
	}
	return true
}

// upTo ends the last interval where the i-th word ends: what lies beyond is not part of the subtree.
func upTo(peers []peerInterval, word uint32, i int) []peerInterval {
	out := slices.Clone(peers)
	last := &out[len(out)-1].last
	if last.word(i) != word {
		*last = max128
	}
	return out
}

// rest is struct rest of bpf/judge.h.
type rest struct {
	from, to        [3]uint32
	inside, outside uint32
}

// restOf is the rest that says the same as two or more intervals of addresses with the same first word, if there
// is one.
func restOf(peers []peerInterval) (r rest, ok bool) {
	switch {
	case len(peers) == 2: // the first one reaches back to 0
		return rest{to: lastWords(peers[0].last), inside: peers[0].val, outside: peers[1].val}, true
	case len(peers) == 3 && peers[0].val == peers[2].val:
		return rest{lastWords(peers[0].last.next()), lastWords(peers[1].last), peers[1].val, peers[0].val}, true
	}
	return rest{}, false
}

func lastWords(n number) [3]uint32 { return [3]uint32{n.word(1), n.word(2), n.word(3)} }

// rest adds r, several to a node, and returns its number.
func (f *forest) rest(r rest) uint32 {
	if number, ok := f.rests[r]; ok {
		return number
	}
	place := len(f.rests) % rests
	if place == 0 {
		f.restNode = f.addFlat()
	}
	numbers := slices.Concat(r.from[:], r.to[:], []uint32{r.inside, r.outside})
	for i, v := range numbers {
		setNumber(&f.nodes[f.restNode-1], place*len(numbers)+i, v)
	}
	number := f.restNode*rests + uint32(place)
	f.rests[r] = number
	return number
}
