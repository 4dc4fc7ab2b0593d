package xdp

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// states gives out what the devices of a container share: its conversation tables, and the buckets of its limits. Putting a
// map into a map takes the kernel some 8 ms, so a few tables are always ready.
type states struct {
	objs    *filterObjects
	inner   map[string]*ebpf.MapSpec // of the outer maps, by name
	tables  share
	buckets share
	ready   []uint32
	coming  map[uint32]bool // tables that newTables makes
	more    int             // how many are made when none is ready
	full    []uint32        // used before, and not emptied
	swept   uint32          // the last that sweep has looked through
}

// share is who uses which of some numbered things; 0 is none.
type share struct {
	of    map[uint16]uint32 // by counter block
	users map[uint32]int
}

func newShare() share { return share{map[uint16]uint32{}, map[uint32]int{}} }

// ofSiblings is what the first of siblings uses that uses any.
func (s share) ofSiblings(siblings []uint16) uint32 {
	for _, other := range siblings {
		if id := s.of[other]; id != 0 {
			return id
		}
	}
	return 0
}

func (s share) add(block uint16, id uint32) {
	if id != 0 && s.of[block] == 0 {
		s.of[block] = id
		s.users[id]++
	}
}

// remove returns what nobody uses any more, 0 for nothing.
func (s share) remove(block uint16) uint32 {
	id := s.of[block]
	if id == 0 {
		return 0
	}
	delete(s.of, block)
	if s.users[id]--; s.users[id] > 0 {
		return 0
	}
	delete(s.users, id)
	return id
}

// readyStates is how many tables wait for their container. When none is left as many more are made, and twice as many at
// the next time, up to mostReady, so that many containers that start at once do not wait for each four. A table takes a
// megabyte. A sweep gives back mostEmptied at a time.
const (
	readyStates = 4
	mostReady   = 64
	mostEmptied = 16
)

func newStates(objs *filterObjects, devices map[int]filterDevice) (*states, error) {
	spec, err := loadFilter()
	if err != nil {
		return nil, err
	}
	s := &states{objs: objs, more: readyStates, inner: map[string]*ebpf.MapSpec{}, coming: map[uint32]bool{}, tables: newShare(), buckets: newShare()}
	for name := range s.outer() {
		s.inner[name] = spec.Maps[name].InnerMap
	}
	for _, d := range devices {
		var in filterShared
		if err := objs.States.Lookup(uint32(d.Counters), &in); err != nil {
			return nil, fmt.Errorf("read map states: %w", err)
		}
		s.tables.add(d.Counters, in.State)
		s.buckets.add(d.Counters, in.Buckets)
	}
	// Without memory for them none is ready: who needs one is closed until there is, and nobody else.
	_ = s.refill(readyStates)
	return s, nil
}

func (s *states) outer() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{"unanswered": s.objs.Unanswered, "answered": s.objs.Answered, "fragments": s.objs.Fragments}
}

// unansweredShare is how many answered conversations there may be to one that is not, as MAX_ANSWERED and MAX_UNANSWERED of
// bpf/maps.h have it.
const unansweredShare = 4

// Bound sets how many answered conversations a container may have whose tables are given out from here on. A map in a
// map need not have as many entries as the one that the program was loaded with.
func (f *Filter) Bound(answered int) error {
	s := f.maps.states
	if s.inner["answered"].MaxEntries == uint32(answered) {
		return nil
	}
	for name, entries := range map[string]int{"answered": answered, "unanswered": answered / unansweredShare} {
		s.inner[name] = s.inner[name].Copy() // tables are made beside us
		s.inner[name].MaxEntries = uint32(entries)
	}
	s.ready = nil
	return s.refill(readyStates)
}

// refill makes tables ready until there are n, and empties those that nobody uses any more by replacing them.
func (s *states) refill(n int) error {
	more := s.reserve(n)
	err := more.make()
	s.takeNew(more)
	return err
}

// newTables are tables to be made, by whoever likes: each outer map takes the kernel 8 ms and more.
type newTables struct {
	ids   []uint32
	outer map[string]*ebpf.Map
	inner map[string]*ebpf.MapSpec
	made  bool
}

// reserve names the tables that are missing until n are ready, nil for none. They have to be given to takeNew.
func (s *states) reserve(n int) *newTables {
	waiting := maps.Clone(s.coming)
	for _, id := range s.ready {
		waiting[id] = true
	}
	more := &newTables{outer: s.outer(), inner: maps.Clone(s.inner)}
	for id := uint32(1); id < s.objs.Answered.MaxEntries() && len(waiting) < n; id++ {
		if s.tables.users[id] == 0 && !waiting[id] {
			more.ids, waiting[id], s.coming[id] = append(more.ids, id), true, true
		}
	}
	if len(more.ids) == 0 {
		return nil
	}
	return more
}

// make puts empty tables in place: as many as there are in the time of one, if the kernel takes them as a batch (since 5.16).
func (t *newTables) make() error {
	if t == nil {
		return nil
	}
	names := slices.Collect(maps.Keys(t.outer))
	err := atOnce(names, func(name string) error { return fill(name, t.inner[name], t.outer[name], t.ids) })
	t.made = err == nil
	return err
}

// takeNew makes ready what t has made, unless tables are of another size by now.
func (s *states) takeNew(t *newTables) {
	if t == nil {
		return
	}
	for _, id := range t.ids {
		delete(s.coming, id)
	}
	if t.made && maps.Equal(t.inner, s.inner) {
		s.ready = append(s.ready, t.ids...)
	}
}

// fill makes the inner maps of one outer map.
func fill(name string, inner *ebpf.MapSpec, outer *ebpf.Map, ids []uint32) error {
	made, fds := make(map[uint32]*ebpf.Map, len(ids)), make([]uint32, 0, len(ids))
	defer func() {
		for _, m := range made {
			_ = m.Close()
		}
	}()
	for _, id := range ids {
		spec := inner.Copy()
		spec.Name = name
		m, err := ebpf.NewMap(spec)
		if err != nil {
			return fmt.Errorf("make a table of conversations: %w", err)
		}
		made[id], fds = m, append(fds, uint32(m.FD()))
	}
	_, err := outer.BatchUpdate(ids, fds, nil)
	if errors.Is(err, ebpf.ErrNotSupported) {
		err = atOnce(ids, func(id uint32) error { return outer.Put(id, made[id]) })
	}
	if err != nil {
		return fmt.Errorf("put a table of conversations in place: %w", err)
	}
	return nil
}

// atOnce calls f for every one of them, all at once: the kernel waits some 8 ms for a change of an outer map, and for many as long.
func atOnce[T any](of []T, f func(T) error) error {
	var all sync.WaitGroup
	errs := make(chan error, len(of))
	for _, one := range of {
		all.Go(func() { errs <- f(one) })
	}
	all.Wait()
	close(errs)
	var out error
	for err := range errs {
		out = errors.Join(out, err)
	}
	return out
}

// give lets the device of a counter block use what t takes: that of the first of siblings that has any, or an empty one.
// What it has it keeps.
func (s *states) give(block uint16, siblings []uint16, t *Tables) error {
	in := filterShared{State: s.tables.of[block], Buckets: s.buckets.of[block]}
	had := in
	var err error
	if t.Stateful && in.State == 0 {
		if in.State = s.tables.ofSiblings(siblings); in.State == 0 {
			in.State, err = s.table()
		}
	}
	if t.rates != [2]uint32{} && in.Buckets == 0 {
		if in.Buckets = s.buckets.ofSiblings(siblings); in.Buckets == 0 {
			in.Buckets, err = s.bucket()
		}
	}
	if err != nil || in == had {
		return err
	}
	if err := s.objs.States.Put(uint32(block), in); err != nil {
		return fmt.Errorf("write map states: %w", err)
	}
	s.tables.add(block, in.State)
	s.buckets.add(block, in.Buckets)
	return nil
}

// table is a conversation table that nobody has.
func (s *states) table() (uint32, error) {
	if len(s.ready) == 0 {
		if err := s.refill(s.more); err != nil {
			return 0, err
		}
		s.more = min(2*s.more, mostReady)
	}
	if len(s.ready) == 0 {
		return 0, fmt.Errorf("no room for another container with conversations: %d have a table", len(s.tables.users))
	}
	id := s.ready[0]
	s.ready = s.ready[1:]
	return id, nil
}

// renew gives the device of a counter block, and those that share its conversations, an empty table.
func (s *states) renew(block uint16) error {
	old := s.tables.of[block]
	if old == 0 {
		return nil
	}
	id, err := s.table()
	if err != nil {
		return err
	}
	for b, its := range s.tables.of {
		if its != old {
			continue
		}
		if err := s.objs.States.Put(uint32(b), filterShared{State: id, Buckets: s.buckets.of[b]}); err != nil {
			return fmt.Errorf("write map states: %w", err)
		}
		s.tables.remove(b)
		s.tables.add(b, id)
	}
	s.full = append(s.full, old)
	return nil
}

// bucket is a set of buckets that nobody has, all of them empty.
func (s *states) bucket() (uint32, error) {
	for id := uint32(1); id < s.objs.Buckets.MaxEntries(); id++ {
		if s.buckets.users[id] > 0 {
			continue
		}
		if err := s.objs.Buckets.Put(id, filterBucketSet{}); err != nil {
			return 0, fmt.Errorf("write map buckets: %w", err)
		}
		return id, nil
	}
	return 0, fmt.Errorf("no room for the limits of another container: %d have some", len(s.buckets.users))
}

// take ends the use of what a device has. The tables of one that nobody uses are emptied when they are given out again, or
// by sweep: it takes the kernel too long for here.
func (s *states) take(block uint16) error {
	if s.tables.of[block] == 0 && s.buckets.of[block] == 0 {
		return nil
	}
	s.buckets.remove(block)
	if id := s.tables.remove(block); id != 0 {
		s.full = append(s.full, id)
	}
	return s.objs.States.Put(uint32(block), filterShared{})
}

// sweptStates is how many tables one sweep looks through for conversations that are over.
const sweptStates = 8

// sweep makes tables ready, forgets conversations that are over, and gives the memory of a few tables that nobody
// uses back. It looks at a few tables each time, one after the other.
func (s *states) sweep() error {
	s.more = readyStates
	err := s.refill(readyStates)
	if n := len(s.ready); n > readyStates {
		s.ready, s.full = s.ready[:readyStates], append(s.full, s.ready[readyStates:]...)
	}
	ids := slices.Sorted(maps.Keys(s.tables.users))
	for range min(len(ids), sweptStates) {
		i, _ := slices.BinarySearch(ids, s.swept+1)
		s.swept = ids[i%len(ids)]
		err = errors.Join(err, s.expire(s.swept))
	}
	var unused []uint32
	for range min(len(s.full), mostEmptied) {
		if id := s.full[0]; s.tables.users[id] == 0 && !s.coming[id] && !slices.Contains(s.ready, id) {
			unused = append(unused, id)
		}
		s.full = s.full[1:]
	}
	return errors.Join(err, atOnce(unused, func(id uint32) error {
		return atOnce(slices.Collect(maps.Values(s.outer())), func(outer *ebpf.Map) error {
			if err := outer.Delete(id); !errors.Is(err, ebpf.ErrKeyNotExist) {
				return err
			}
			return nil
		})
	}))
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
		if isOver(key, f, now) {
			over = append(over, key)
		}
	}
	// An iteration over a table in use may be cut short; the next sweep goes on.
	for _, key := range over {
		if table.Lookup(key, &f) == nil && !isOver(key, f, now) {
			continue // there is another on its ports now
		}
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
	Guessed, Forbidden  uint8
	Awaited             uint32
}

func isOver(key filterFlowKey, f conversation, now uint64) bool {
	return f.Seen < now && now-f.Seen > idleTime(key, f)
}

// idleTime is idle_time of bpf/flow.h, in nanoseconds.
func idleTime(key filterFlowKey, f conversation) uint64 {
	const second = 1e9
	switch {
	case f.Forbidden != 0:
		return 180 * second
	case f.Closing >= 3: // a FIN of both sides, a RST of one
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
