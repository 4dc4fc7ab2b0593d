package xdp

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
)

// states gives out the conversation tables of containers. Putting a map into a map takes the kernel some
// 8 ms, so a few are always ready.
type states struct {
	objs  *filterObjects
	inner map[string]*ebpf.MapSpec // of the outer maps, by name
	of    map[uint16]uint32        // by counter block
	users map[uint32]int
	ready []uint32
	full  []uint32 // used before, and not emptied
}

// readyStates is how many tables wait for their container.
const readyStates = 4

func newStates(objs *filterObjects, devices map[int]filterDevice) (*states, error) {
	spec, err := loadFilter()
	if err != nil {
		return nil, err
	}
	s := &states{objs: objs, inner: map[string]*ebpf.MapSpec{}, of: map[uint16]uint32{}, users: map[uint32]int{}}
	for name := range s.outer() {
		s.inner[name] = spec.Maps[name].InnerMap
	}
	for _, d := range devices {
		var id uint32
		if err := objs.States.Lookup(uint32(d.Counters), &id); err != nil {
			return nil, fmt.Errorf("read map states: %w", err)
		}
		if id != 0 {
			s.of[d.Counters] = id
			s.users[id]++
		}
	}
	return s, s.refill()
}

func (s *states) outer() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{"unanswered": s.objs.Unanswered, "answered": s.objs.Answered, "fragments": s.objs.Fragments}
}

// refill makes tables ready, and empties those that nobody uses any more by replacing them.
func (s *states) refill() error {
	waiting := map[uint32]bool{}
	for _, id := range s.ready {
		waiting[id] = true
	}
	for id := uint32(1); id < s.objs.Answered.MaxEntries() && len(s.ready) < readyStates; id++ {
		if s.users[id] > 0 || waiting[id] {
			continue
		}
		if err := s.make(id); err != nil {
			return err
		}
		s.ready = append(s.ready, id)
	}
	return nil
}

// make puts empty tables in place as id.
func (s *states) make(id uint32) error {
	for name, outer := range s.outer() {
		spec := s.inner[name].Copy()
		spec.Name = name
		m, err := ebpf.NewMap(spec)
		if err != nil {
			return fmt.Errorf("make a table of conversations: %w", err)
		}
		err = outer.Put(id, m)
		_ = m.Close()
		if err != nil {
			return fmt.Errorf("put a table of conversations in place: %w", err)
		}
	}
	return nil
}

// give lets the device of a counter block use the state of the first of siblings that has one, or an empty one. One
// that has a state keeps it.
func (s *states) give(block uint16, siblings []uint16) error {
	if s.of[block] != 0 {
		return nil
	}
	var id uint32
	for _, other := range siblings {
		if id = s.of[other]; id != 0 {
			break
		}
	}
	if id == 0 {
		if len(s.ready) == 0 {
			if err := s.refill(); err != nil {
				return err
			}
		}
		if len(s.ready) == 0 {
			return fmt.Errorf("no room for another container with conversations: %d have a table", len(s.users))
		}
		id, s.ready = s.ready[0], s.ready[1:]
	}
	if err := s.objs.States.Put(uint32(block), id); err != nil {
		return fmt.Errorf("write map states: %w", err)
	}
	s.of[block] = id
	s.users[id]++
	return nil
}

// take ends the use of a state. The tables of one that nobody uses are emptied when they are given out again, or
// by sweep: it takes the kernel too long for here.
func (s *states) take(block uint16) error {
	id := s.of[block]
	if id == 0 {
		return nil
	}
	delete(s.of, block)
	if s.users[id]--; s.users[id] == 0 {
		delete(s.users, id)
		s.full = append(s.full, id)
	}
	return s.objs.States.Put(uint32(block), uint32(0))
}

// sweep makes tables ready, and gives the memory of a few that nobody uses back.
func (s *states) sweep() error {
	err := s.refill()
	for range min(len(s.full), readyStates) {
		id := s.full[0]
		s.full = s.full[1:]
		if s.users[id] > 0 || slices.Contains(s.ready, id) {
			continue
		}
		for _, outer := range s.outer() {
			if e := outer.Delete(id); e != nil && !errors.Is(e, ebpf.ErrKeyNotExist) {
				err = errors.Join(err, e)
			}
		}
	}
	return err
}
