package xdp

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

// pool gives out the parts of the maps: nodes and policies, counter blocks, entries of devices. What it knows it has
// read from the maps, so a new process goes on where another ended.
type pool struct {
	objs     *filterObjects
	devices  map[int]filterDevice // by ifindex
	policies map[uint16]filterPolicy
	byDigest map[[32]byte]uint16 // of policies
	// identities are those that are not zero, by counter block.
	identities map[uint16]filterIdentity
	bridges    map[uint16]uint32 // likewise
	// unused policies and since when. They are freed a grace later: a program may be reading them.
	unused map[uint16]time.Time
	states *states
}

// deviceSlots is DEVICE_SLOTS of bpf/maps.h.
const deviceSlots = 16384

func newPool(objs *filterObjects) (*pool, error) {
	p := &pool{
		objs: objs, devices: map[int]filterDevice{}, policies: map[uint16]filterPolicy{}, byDigest: map[[32]byte]uint16{}, unused: map[uint16]time.Time{},
		identities: map[uint16]filterIdentity{}, bridges: map[uint16]uint32{},
	}
	err := readMap(objs.Devices, func(_ uint32, d filterDevice) {
		if d.Ifindex != 0 {
			p.devices[int(d.Ifindex)] = d
		}
	})
	if err != nil {
		return nil, err
	}
	var ifindex uint32
	var d filterDevice
	it := objs.DeviceOverflow.Iterate()
	for it.Next(&ifindex, &d) {
		p.devices[int(ifindex)] = d
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read map device_overflow: %w", err)
	}
	err = readMap(objs.Policies, func(id uint32, pol filterPolicy) {
		if id > 0 && pol.NumNodes > 0 {
			p.policies[uint16(id)], p.byDigest[pol.Digest] = pol, uint16(id)
		}
	})
	if err != nil {
		return nil, err
	}
	err = readMap(objs.Identities, func(block uint32, id filterIdentity) {
		if id != (filterIdentity{}) {
			p.identities[uint16(block)] = id
		}
	})
	if err != nil {
		return nil, err
	}
	err = readMap(objs.Bridges, func(block uint32, bridge uint32) {
		if bridge != 0 {
			p.bridges[uint16(block)] = bridge
		}
	})
	if err != nil {
		return nil, err
	}
	used := map[uint16]bool{}
	for _, d := range p.devices {
		used[d.Policy], used[p.identities[d.Counters].Own&ownPolicy] = true, true
	}
	for id := range p.policies {
		if !used[id] {
			p.unused[id] = time.Now()
		}
	}
	p.states, err = newStates(objs, p.devices)
	return p, err
}

// readMap calls f for every element of an array or a hash.
func readMap[K, V any](m *ebpf.Map, f func(K, V)) error {
	const batch = 1024
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			f(keys[i], values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", m, err)
		}
	}
}

func (p *pool) inUse(id uint16) bool {
	for _, d := range p.devices {
		if d.Policy == id || p.identities[d.Counters].Own&ownPolicy == id {
			return true
		}
	}
	return false
}

// The parts of struct identity's own in bpf/maps.h.
const (
	ownPolicy = 0x3fff
	twoHooks  = 0x8000
	guarded   = 0x4000
)

// setPolicy puts w's policy and identity into force for a device: each is the old or the new, nothing in between. Its
// counters begin anew when the policy is another. bits are twoHooks and guarded.
func (p *pool) setPolicy(ifindex int, w Want, bits uint16) error {
	d, had := p.devices[ifindex]
	old := d.Policy
	if !had {
		var err error
		if d.Counters, err = p.block(); err != nil {
			return err
		}
		if err := p.objs.EventTimes.Put(uint32(d.Counters), filterEventTime{}); err != nil {
			return fmt.Errorf("write map event_times: %w", err)
		}
	}
	// Before the policy of a new device, after which packets are judged by it.
	if err := errors.Join(p.setIdentity(d.Counters, w, bits), p.setBridge(d.Counters, w.Bridge)); err != nil {
		return err
	}
	id, err := p.policy(w.Policy)
	if err != nil {
		return err
	}
	if had && d.Policy == id && p.stands(d) {
		return nil
	}
	if err := p.clear(d.Counters); err != nil {
		return err
	}
	if err := p.states.give(d.Counters, p.blocks(w.Siblings), w.Policy); err != nil {
		return err
	}
	d.Ifindex, d.Policy = uint32(ifindex), id
	if err := p.putDevice(d); err != nil {
		return err
	}
	p.devices[ifindex] = d
	delete(p.unused, id)
	if had && old != 0 && !p.inUse(old) {
		p.unused[old] = time.Now()
	}
	return nil
}

// setIdentity says who the container of a counter block is: in one step, so that no packet is held against half of it.
func (p *pool) setIdentity(block uint16, w Want, bits uint16) error {
	id := filterIdentity{Own: bits}
	if w.Own != nil {
		own, err := p.policy(w.Own)
		if err != nil {
			return err
		}
		id.Own |= own
		copy(id.Mac[:], w.MAC)
	}
	return p.putIdentity(block, id)
}

func (p *pool) putIdentity(block uint16, id filterIdentity) error {
	old := p.identities[block]
	if old == id { // of a device that an agent before this one was killed at it may be all that stands there
		delete(p.unused, id.Own&ownPolicy)
		return nil
	}
	if err := p.objs.Identities.Put(uint32(block), id); err != nil {
		return fmt.Errorf("write map identities: %w", err)
	}
	p.identities[block] = id
	delete(p.unused, id.Own&ownPolicy)
	if before := old.Own & ownPolicy; before != 0 && !p.inUse(before) {
		p.unused[before] = time.Now()
	}
	return nil
}

// setBridge says by the ports of which bridge what a counter block's device receives is judged, 0 for none.
func (p *pool) setBridge(block uint16, bridge int) error {
	if p.bridges[block] == uint32(bridge) {
		return nil
	}
	if err := p.objs.Bridges.Put(uint32(block), uint32(bridge)); err != nil {
		return fmt.Errorf("write map bridges: %w", err)
	}
	p.bridges[block] = uint32(bridge)
	return nil
}

// isShut reports whether a device has the policy that lets nothing pass. Without a link it was set down.
func (p *pool) isShut(ifindex int) bool {
	d, ok := p.devices[ifindex]
	return ok && d.Policy == 0
}

// remove forgets a device. From here on a program on it drops everything.
func (p *pool) remove(ifindex int) error {
	d, ok := p.devices[ifindex]
	if !ok {
		return nil
	}
	slot := d.Ifindex % deviceSlots
	var in filterDevice
	if err := p.objs.Devices.Lookup(slot, &in); err != nil {
		return fmt.Errorf("read map devices: %w", err)
	}
	var err error
	if in.Ifindex == d.Ifindex {
		err = p.objs.Devices.Put(slot, filterDevice{})
	} else if err = p.objs.DeviceOverflow.Delete(d.Ifindex); errors.Is(err, ebpf.ErrKeyNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("remove ifindex %d: %w", ifindex, err)
	}
	if err := errors.Join(p.setIdentity(d.Counters, Want{}, 0), p.setBridge(d.Counters, 0)); err != nil {
		return err
	}
	delete(p.devices, ifindex)
	delete(p.identities, d.Counters)
	delete(p.bridges, d.Counters)
	if err := p.states.take(d.Counters); err != nil {
		return err
	}
	if d.Policy != 0 && !p.inUse(d.Policy) {
		p.unused[d.Policy] = time.Now()
	}
	return nil
}

func (p *pool) putDevice(d filterDevice) error {
	slot := d.Ifindex % deviceSlots
	var in filterDevice
	err := p.objs.Devices.Lookup(slot, &in)
	if err == nil && (in.Ifindex == 0 || in.Ifindex == d.Ifindex) && !p.overflown(d.Ifindex) {
		err = p.objs.Devices.Put(slot, d)
	} else if err == nil {
		err = p.objs.DeviceOverflow.Put(d.Ifindex, d)
	}
	if err != nil {
		return fmt.Errorf("policy of ifindex %d: %w", d.Ifindex, err)
	}
	return nil
}

// stands reports whether the kernel has the entry that we believe it has.
func (p *pool) stands(d filterDevice) bool {
	var in filterDevice
	if p.objs.Devices.Lookup(d.Ifindex%deviceSlots, &in) == nil && in == d {
		return true
	}
	return p.objs.DeviceOverflow.Lookup(d.Ifindex, &in) == nil && in == d
}

// overflown reports whether a device stands in device_overflow. It stays there: two entries would have to
// be changed at once to move it.
func (p *pool) overflown(ifindex uint32) bool {
	var d filterDevice
	return p.objs.DeviceOverflow.Lookup(ifindex, &d) == nil
}

// policy returns the id of t in the kernel, which it puts there unless an equal one is.
func (p *pool) policy(t *Tables) (uint16, error) {
	if len(t.nodes) == 0 {
		return 0, nil // closed
	}
	if id, ok := p.byDigest[t.digest]; ok {
		return id, nil
	}
	id, first, err := p.room(len(t.nodes))
	if err != nil {
		p.free(time.Now().Add(2 * grace)) // all that is unused, for synchronize has waited
		if id, first, err = p.room(len(t.nodes)); err != nil {
			return 0, err
		}
	}
	pol, nodes := t.place(first)
	keys := make([]uint32, len(nodes))
	for i := range keys {
		keys[i] = first + uint32(i)
	}
	if _, err := p.objs.Nodes.BatchUpdate(keys, nodes, nil); err != nil {
		return 0, fmt.Errorf("write map nodes: %w", err)
	}
	if err := p.objs.Policies.Put(uint32(id), pol); err != nil {
		return 0, fmt.Errorf("write map policies: %w", err)
	}
	p.policies[id], p.byDigest[pol.Digest] = pol, id
	p.unused[id] = time.Now() // until a device has it
	return id, nil
}

// room finds a free id and n free nodes one after the other.
func (p *pool) room(n int) (id uint16, first uint32, err error) {
	for id = 1; uint32(id) < p.objs.Policies.MaxEntries(); id++ {
		if _, used := p.policies[id]; !used {
			break
		}
	}
	if uint32(id) >= p.objs.Policies.MaxEntries() {
		return 0, 0, fmt.Errorf("no room for another distinct policy: %d are in use", len(p.policies))
	}
	type taken struct{ from, to uint32 } // to is the first after it
	used := make([]taken, 0, len(p.policies))
	for _, pol := range p.policies {
		used = append(used, taken{pol.FirstNode, pol.FirstNode + pol.NumNodes})
	}
	slices.SortFunc(used, func(a, b taken) int { return cmp.Compare(a.from, b.from) })
	first = 1
	for _, u := range used {
		if u.from-first >= uint32(n) {
			return id, first, nil
		}
		first = u.to
	}
	if p.objs.Nodes.MaxEntries()-first < uint32(n) {
		return 0, 0, fmt.Errorf("no room for a policy of %d nodes: the rules of all containers together are too many", n)
	}
	return id, first, nil
}

// free gives back the policies that have been unused for a grace at the time now.
func (p *pool) free(now time.Time) {
	synchronized := false
	for id, since := range p.unused {
		if now.Sub(since) < grace {
			continue
		}
		if !synchronized {
			synchronize()
			synchronized = true
		}
		if p.objs.Policies.Put(uint32(id), filterPolicy{}) == nil {
			delete(p.byDigest, p.policies[id].Digest)
			delete(p.policies, id)
			delete(p.unused, id)
		}
	}
}

// block finds a counter block that no device has. Block 0 is everybody's.
func (p *pool) block() (uint16, error) {
	used := make([]bool, p.objs.Counters.MaxEntries())
	for _, d := range p.devices {
		used[d.Counters] = true
	}
	for b := 1; b < len(used); b++ {
		if !used[b] {
			return uint16(b), nil
		}
	}
	return 0, fmt.Errorf("no room for another filtered interface: %d have one", len(p.devices))
}

// blocks are the counter blocks of those devices that have one.
func (p *pool) blocks(devices []int) (out []uint16) {
	for _, ifindex := range devices {
		if d, ok := p.devices[ifindex]; ok {
			out = append(out, d.Counters)
		}
	}
	return out
}

func (p *pool) clear(block uint16) error {
	zero := make([]filterCounterBlock, ebpf.MustPossibleCPU())
	if err := p.objs.Counters.Put(uint32(block), zero); err != nil {
		return fmt.Errorf("clear counters: %w", err)
	}
	return nil
}
