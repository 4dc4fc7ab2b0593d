package xdp

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
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
	swept uint32   // the last that sweep has looked through
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

// sweptStates is how many tables one sweep looks through for conversations that are over.
const sweptStates = 8

// sweep makes tables ready, forgets conversations that are over, and gives the memory of a few tables that nobody
// uses back. It looks at a few tables each time, one after the other.
func (s *states) sweep() error {
	err := s.refill()
	ids := slices.Sorted(maps.Keys(s.users))
	for range min(len(ids), sweptStates) {
		i, _ := slices.BinarySearch(ids, s.swept+1)
		s.swept = ids[i%len(ids)]
		err = errors.Join(err, s.expire(s.swept))
	}
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

// expire deletes the answered conversations of a table that have been idle for too long. The program does not take
// them for alive, but meets them only when the same ports are used again, and a full table takes no new one.
func (s *states) expire(id uint32) error {
	now, err := monotonic()
	if err != nil {
		return err
	}
	return s.expireAt(id, now)
}

func (s *states) expireAt(id uint32, now uint64) error {
	var table *ebpf.Map
	if err := s.objs.Answered.Lookup(id, &table); err != nil {
		return fmt.Errorf("open a table of conversations: %w", err)
	}
	defer table.Close()
	var over []filterFlowKey
	var key filterFlowKey
	var f conversation
	it := table.Iterate()
	for it.Next(&key, &f) {
		if f.Seen < now && now-f.Seen > idleTime(key, f) {
			over = append(over, key)
		}
	}
	// An iteration over a table in use may be cut short; the next sweep goes on.
	for _, key := range over {
		if err := table.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget a conversation: %w", err)
		}
	}
	return nil
}

// conversation is struct flow of bpf/maps.h.
type conversation struct {
	Seen                uint64 // ns, by monotonic
	Service, Generation uint32
	Opener, Closing     uint8
	_                   [6]byte
}

// idleTime is idle_time of bpf/flow.h, in nanoseconds.
func idleTime(key filterFlowKey, f conversation) uint64 {
	const second = 1e9
	switch {
	case f.Closing != 0:
		return 30 * second
	case key.Proto == protoTCP:
		return 24 * 3600 * second
	case key.Proto == protoUDP:
		return 180 * second
	}
	return 30 * second
}

// monotonic is the clock of the programs: nanoseconds since boot without suspend.
func monotonic() (uint64, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &t); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	return uint64(t.Nano()), nil
}
