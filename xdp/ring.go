package xdp

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring is the map `events` as it stands in memory, where programs write while it is read. Words are the
// size that is read in one piece.
type ring []uint64

const eventWords = unsafe.Sizeof(filterEvent{}) / 8

// mapRing maps the ring into memory, unless it is; Close gives it back.
func (r *Reader) mapRing() error {
	if r.ring != nil {
		return nil
	}
	m := r.maps.Events
	if m.ValueSize() != uint32(eventWords*8) {
		return fmt.Errorf("map events has values of %d bytes, want %d", m.ValueSize(), eventWords*8)
	}
	mem, err := unix.Mmap(m.FD(), 0, int(m.MaxEntries()*m.ValueSize()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map events into memory: %w", err)
	}
	r.memory = mem
	r.ring = unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), len(mem)/8)
	return nil
}

func (r *Reader) unmapRing() {
	if r.ring != nil {
		_ = unix.Munmap(r.memory)
		r.ring, r.memory = nil, nil
	}
}

func (r ring) size() uint64 { return uint64(len(r)) / uint64(eventWords) }

// slotState is what stands where an event should.
type slotState int

const (
	slotWhole  slotState = iota
	slotNotYet           // an older one, or this one half written
	slotGone             // a newer one
)

// read reads the event of a number. It is whole if nobody has begun to write another one meanwhile: the programs set the
// number to 0 before all else, and to what it is after it.
func (r ring) read(number uint64) (e filterEvent, s slotState) {
	words := r[number%r.size()*uint64(eventWords):][:eventWords]
	switch is := atomic.LoadUint64(&words[0]); {
	case is <= number:
		return e, slotNotYet
	case is > number+1:
		return e, slotGone
	}
	// Atomic each, because only such reads stay in their order on every processor.
	out := (*[eventWords]uint64)(unsafe.Pointer(&e))
	for i := range words {
		out[i] = atomic.LoadUint64(&words[i])
	}
	if atomic.LoadUint64(&words[0]) != number+1 || out[0] != number+1 {
		return e, slotGone
	}
	return e, slotWhole
}
