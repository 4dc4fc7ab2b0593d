package xdp

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// neighbors is what is known of the ports of bridges and of the addresses that they have. What it knows it has read
// from the map, so a new process goes on where another ended.
type neighbors struct {
	m       *ebpf.Map
	entries map[filterNeighborKey]uint32
	having  map[filterNeighborKey]int // how many addresses each port has
}

func newNeighbors(m *ebpf.Map) (neighbors, error) {
	n := neighbors{m, map[filterNeighborKey]uint32{}, map[filterNeighborKey]int{}}
	var key filterNeighborKey
	var port uint32
	it := m.Iterate()
	for it.Next(&key, &port) {
		n.note(key, port)
	}
	if err := it.Err(); err != nil {
		return n, fmt.Errorf("read map neighbors: %w", err)
	}
	return n, nil
}

// deviceKey is the entry that says that a device is known.
func deviceKey(ifindex uint32) filterNeighborKey {
	return filterNeighborKey{Address: [4]uint32{ifindex}}
}

// backKey is the entry that says that the host routes back to a bridge what came from it.
func backKey(bridge uint32) filterNeighborKey {
	return filterNeighborKey{Bridge: bridge, Address: [4]uint32{bridge}}
}

func addressKey(bridge uint32, a netip.Addr) filterNeighborKey {
	if a.Is4() {
		b := words(a)
		return filterNeighborKey{Bridge: bridge, Family: 4, Address: [4]uint32{b[3]}}
	}
	return filterNeighborKey{Bridge: bridge, Family: 6, Address: words(a)}
}

// note keeps the count of what the map has.
func (n *neighbors) note(key filterNeighborKey, port uint32) {
	if old, had := n.entries[key]; had && key.Family != 0 {
		n.having[deviceKey(old)]--
	}
	n.entries[key] = port
	if key.Family != 0 {
		n.having[deviceKey(port)]++
	}
}

func (n *neighbors) put(key filterNeighborKey, port uint32) error {
	if old, had := n.entries[key]; had && old == port {
		return nil
	}
	err := n.m.Put(key, port)
	if errors.Is(err, unix.E2BIG) {
		n.forgetGone()
		err = n.m.Put(key, port)
	}
	if err != nil {
		return fmt.Errorf("write map neighbors: %w", err)
	}
	n.note(key, port)
	return nil
}

func (n *neighbors) remove(key filterNeighborKey) {
	if err := n.m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return // the next sweep tries again
	}
	if key.Family != 0 {
		n.having[deviceKey(n.entries[key])]--
	}
	delete(n.entries, key)
}

// forgetGone makes room: addresses that nobody has now.
func (n *neighbors) forgetGone() {
	for key, port := range n.entries {
		if port == 0 {
			n.remove(key)
		}
	}
}

// sweep notes which ports are gone. Their addresses are nobody's until another port comes with them; those of and on bridges that
// are gone are forgotten. links are those of now. Of what is no port it notes that nobody's addresses come in by it.
func (n *neighbors) sweep(links Links) error {
	if len(n.entries) == 0 {
		return nil
	}
	there := map[uint32]bool{0: true}
	var errs []error
	for _, l := range links {
		ifindex := uint32(l.index)
		there[ifindex] = true
		// A veth may become a port.
		if l.master == 0 && l.kind != "veth" {
			errs = append(errs, n.put(deviceKey(ifindex), ifindex))
		}
	}
	addresses := false
	for key, port := range n.entries { // before the devices are forgotten
		switch {
		case key.Family == 0:
			continue
		case !there[key.Bridge], !there[port] && n.entries[deviceKey(port)] == port:
			n.remove(key)
		case !there[port]:
			errs = append(errs, n.put(key, 0))
		}
		addresses = addresses || there[key.Bridge]
	}
	for key := range n.entries {
		if key.Family == 0 && (!there[key.Bridge] || !there[key.Address[0]]) {
			n.remove(key)
		}
	}
	maps.DeleteFunc(n.having, func(_ filterNeighborKey, count int) bool { return count == 0 })
	if !addresses {
		maps.DeleteFunc(n.entries, func(key filterNeighborKey, _ uint32) bool { return key.Bridge == 0 && n.m.Delete(key) == nil })
	}
	return errors.Join(errs...)
}

// Introduce says which addresses what comes in by a port of a bridge may have; both are ifindexes, and of the bridge itself port
// is the bridge. From then on a device whose Want names the bridge receives nothing by this port, or by another that has been
// introduced, that bears an address of another port, or one that a port had that is gone. Unless it is sure that
// another port has an address now, it stays with the one that had it first for as long as that is there.
func (f *Filter) Introduce(bridge, port int, addrs []netip.Addr, sure bool) error {
	var errs []error
	for _, a := range addrs {
		key := addressKey(uint32(bridge), a)
		if old := f.neighbors.entries[key]; !sure && old != 0 && old != uint32(port) && exists(int(old)) {
			continue
		}
		errs = append(errs, f.neighbors.put(key, uint32(port)))
	}
	// Last, because what comes in by a port that is not known yet is not judged.
	return errors.Join(append(errs, f.neighbors.put(deviceKey(uint32(port)), uint32(bridge)))...)
}

// IntroduceElsewhere says which addresses somebody has on another bridge; both are ifindexes, and other is the bridge itself where they
// are the host's. What comes in by a port of bridge may have them only if that is the port of who has the addresses here as well, if
// there are any; else what the host routes from the other bridge. They take half of the room at most: who is on the bridge comes first.
func (f *Filter) IntroduceElsewhere(bridge, other int, addrs, here []netip.Addr) error {
	n, owner := &f.neighbors, uint32(other)
	for _, a := range here {
		if port := n.entries[addressKey(uint32(bridge), a)]; port != 0 {
			owner = port
		}
	}
	var errs []error
	for _, a := range addrs {
		key := addressKey(uint32(bridge), a)
		if _, had := n.entries[key]; !had && len(n.entries) >= int(n.m.MaxEntries())/2 {
			return errors.Join(append(errs, errors.New("map neighbors: no room for addresses from outside of a network"))...)
		}
		errs = append(errs, n.put(key, owner))
	}
	return errors.Join(errs...)
}

// RoutesBack says whether the host routes back to a bridge, as it is, what one neighbour sends to it for another. By
// itself it does so, for who wants to be taken for another; and where it has to the senders of such packets are not judged.
func (f *Filter) RoutesBack(bridge int, does bool) error {
	key := backKey(uint32(bridge))
	if does {
		return f.neighbors.put(key, uint32(bridge))
	}
	f.neighbors.remove(key)
	return nil
}

// Introduced reports whether it is known which addresses a port has, and that it has some.
func (f *Filter) Introduced(port int) bool {
	key := deviceKey(uint32(port))
	_, known := f.neighbors.entries[key]
	return known && f.neighbors.having[key] > 0
}

// Bearer is the port of a bridge by which an address comes in, 0 where none is known.
func (f *Filter) Bearer(bridge int, addr netip.Addr) (port int) {
	return int(f.neighbors.entries[addressKey(uint32(bridge), addr)])
}
