package xdp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/policy"
)

// ErrNothing is returned by OpenReader where no agent has ever run.
var ErrNothing = errors.New("vethwall is not in the kernel: no agent has run since the host started")

// Reader reads back what is in the kernel, beside an agent or without one.
type Reader struct {
	dir    string
	maps   filterMaps
	ring   ring        // nil until somebody asks for events
	memory []byte      // behind it
	pin    string      // of the map events,
	was    os.FileInfo // and what it was when this was opened
}

// OpenReader opens the maps of this version under dir. The caller closes.
func OpenReader(dir string) (*Reader, error) {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, ErrNothing // without reading our own objects, for who waits for an agent
	}
	spec, err := loadFilter()
	if err != nil {
		return nil, err
	}
	r := &Reader{dir: dir}
	maps := mapsDir(dir, spec)
	if _, err := os.Stat(maps); errors.Is(err, os.ErrNotExist) {
		if others, _ := filepath.Glob(filepath.Join(dir, "maps-*")); len(others) > 0 {
			return nil, fmt.Errorf("the kernel holds the filter of another version of vethwall; use that version's command, or start this version's agent")
		}
		return nil, ErrNothing
	}
	r.pin = filepath.Join(maps, "events")
	r.was, _ = os.Stat(r.pin)
	for name, m := range map[string]**ebpf.Map{
		"devices": &r.maps.Devices, "device_overflow": &r.maps.DeviceOverflow, "counters": &r.maps.Counters, "containers": &r.maps.Containers,
		"events": &r.maps.Events, "globals": &r.maps.Globals, "identities": &r.maps.Identities,
	} {
		// The kernel maps only what is open for writing into memory, for reading too.
		o := &ebpf.LoadPinOptions{ReadOnly: name != "events"}
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(maps, name), o); err != nil {
			r.Close()
			return nil, fmt.Errorf("open map %s: %w", name, err)
		}
	}
	return r, nil
}

// Close releases the maps.
func (r *Reader) Close() {
	r.unmapRing()
	_ = r.maps.Close()
}

// Replaced reports whether these maps are no longer what stands under the directory: an agent of another version or an
// uninstall has taken them away.
func (r *Reader) Replaced() bool {
	is, err := os.Stat(r.pin)
	return err != nil || !os.SameFile(is, r.was)
}

// AgentRuns reports whether an agent holds dir.
func AgentRuns(dir string) bool {
	d, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer d.Close()
	return errors.Is(unix.Flock(int(d.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// Records are the records that the agent keeps, by container id; nil for one that is damaged.
func (r *Reader) Records() (map[string][]byte, error) { return readRecords(r.maps.Containers) }

// Hook is a program that is attached to a device, as the kernel says.
type Hook struct {
	Direction string `json:"direction"` // "egress": what the container sends
	Type      string `json:"type"`      // "xdp", "tcx", or "tc" where the kernel has no tcx
	Mode      string `json:"mode"`      // "generic", "native"; "tcx"; "clsact"
	ProgramID uint32 `json:"program_id"`
	LinkID    uint32 `json:"link_id"`
	// ByHand names a program that `vethwall attach` put there, and Program one of the operator's: by its function here.
	ByHand  string `json:"by_hand,omitempty"`
	Program string `json:"program,omitempty"`
}

// Device is what the kernel says of a device.
type Device struct {
	Name      string
	Up        bool
	Hooks     []Hook // ours
	Closed    bool   // its policy is the quarantine
	HasPolicy bool
	// Halved: two hooks judge what the container sends, and one of them is gone.
	Halved bool
	// Foreign is the id of an XDP program that is not ours, 0 for none.
	Foreign uint32
	Counts  []Count
}

// Count is how often there was one verdict. Slot is a rule's or limit's counter slot, for ByRule only, which stands for
// LimitReached too: Counted tells them apart.
type Count struct {
	Direction policy.Direction
	Reason    policy.Reason
	Slot      int
	Audited   bool // it passed all the same; of a slot Counted says so
	Packets   uint64
	Bytes     uint64 // layer 2
}

// Device reads back one device. An error means that there is no such device.
func (r *Reader) Device(ifindex int) (Device, error) {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return Device{}, fmt.Errorf("ifindex %d: %w", ifindex, err)
	}
	d := Device{Name: l.Attrs().Name, Up: l.Attrs().Flags&1 != 0}
	mode, program := attachedXDP(l)
	f := &Filter{dir: r.dir, links: map[hookID]link.Link{}}
	defer f.closeLinks()
	for _, hook := range allHooks {
		if h, ok := f.read(hookID{ifindex, hook}, mode); ok {
			d.Hooks = append(d.Hooks, h)
		}
	}
	ours := func(h Hook) bool { return h.ProgramID == program }
	// Ours without its pin is held by an agent, which pins it again.
	if program != 0 && !slices.ContainsFunc(d.Hooks, ours) && programName(ebpf.ProgramID(program)) != "vethwall_xdp" {
		d.Foreign = program
	}
	entry, ok := r.entry(ifindex)
	if !ok {
		return d, nil
	}
	d.HasPolicy, d.Closed = true, entry.Policy == 0
	var id filterIdentity
	if r.maps.Identities.Lookup(uint32(entry.Counters), &id) == nil && id.Own&twoHooks != 0 {
		has := func(types ...string) bool {
			return slices.ContainsFunc(d.Hooks, func(h Hook) bool {
				return h.Direction == policy.Egress.String() && slices.Contains(types, h.Type)
			})
		}
		d.Halved = !has("xdp") || !has("tcx", "tc")
	}
	d.Counts, err = readCounts(r.maps.Counters, entry.Counters)
	return d, err
}

// attachedXDP is the mode and id of the program in the XDP slot, 0 for none.
func attachedXDP(l netlink.Link) (mode string, program uint32) {
	const (
		driver  = 1 // XDP_ATTACHED_DRV
		generic = 2 // XDP_ATTACHED_SKB
	)
	x := l.Attrs().Xdp
	if x == nil || !x.Attached {
		return "", 0
	}
	switch x.AttachMode {
	case driver:
		mode = string(Native)
	case generic:
		mode = string(Generic)
	}
	return mode, x.ProgId
}

// read reads a hook back; false where our program is not there. mode is that of the XDP slot.
func (f *Filter) read(id hookID, mode string) (Hook, bool) {
	h := Hook{Direction: policy.Egress.String(), Type: "xdp", Mode: mode}
	if id.hook == hookReceived {
		h.Direction = policy.Ingress.String()
	}
	if !isSlot(id.hook) {
		h.Type, h.Mode = "tcx", "tcx"
	}
	l := f.live(id)
	if l == nil {
		h.Type, h.Mode = "tc", "clsact"
		if isSlot(id.hook) {
			return h, false
		}
		filter, ok := clsactFind(id)
		if ok {
			h.ProgramID = uint32(filter.Id)
		}
		return h, ok
	}
	info, err := l.Info()
	if err != nil {
		return h, false
	}
	h.ProgramID, h.LinkID = uint32(info.Program), uint32(info.ID)
	switch id.hook {
	case hookByHand:
		h.ByHand = programName(info.Program)
	case hookProgram:
		h.Program = programName(info.Program)
	}
	return h, true
}

// programName is the name of a loaded program, or its number where that is hidden from us.
func programName(id ebpf.ProgramID) string {
	name := fmt.Sprintf("program %d", id)
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return name
	}
	defer p.Close()
	if info, err := p.Info(); err == nil && info.Name != "" {
		name = info.Name
	}
	return name
}

func (r *Reader) entry(ifindex int) (filterDevice, bool) {
	var d filterDevice
	slot := uint32(ifindex) % deviceSlots
	if r.maps.Devices.Lookup(slot, &d) == nil && d.Ifindex == uint32(ifindex) {
		return d, true
	}
	err := r.maps.DeviceOverflow.Lookup(uint32(ifindex), &d)
	return d, err == nil
}

// readCounts sums a counter block over all processors; what never happened is left out.
func readCounts(m *ebpf.Map, block uint16) ([]Count, error) {
	var cpus []filterCounterBlock
	if err := m.Lookup(uint32(block), &cpus); err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	var out []Count
	add := func(c Count, packets, bytes func(filterCounterBlock) uint64) {
		for _, cpu := range cpus {
			c.Packets += packets(cpu)
			c.Bytes += bytes(cpu)
		}
		if c.Packets > 0 {
			out = append(out, c)
		}
	}
	for dir := range 2 {
		for reason := range policy.NumReasons {
			add(Count{Direction: policy.Direction(dir), Reason: reason},
				func(b filterCounterBlock) uint64 { return b.Reason[dir][reason].Packets },
				func(b filterCounterBlock) uint64 { return b.Reason[dir][reason].Bytes })
			add(Count{Direction: policy.Direction(dir), Reason: reason, Audited: true},
				func(b filterCounterBlock) uint64 { return b.Audited[dir][reason].Packets },
				func(b filterCounterBlock) uint64 { return b.Audited[dir][reason].Bytes })
		}
	}
	for dir := range 2 {
		for slot := range ruleSlots {
			add(Count{Direction: policy.Direction(dir), Reason: policy.ByRule, Slot: slot},
				func(b filterCounterBlock) uint64 { return b.Rule[dir][slot].Packets },
				func(b filterCounterBlock) uint64 { return b.Rule[dir][slot].Bytes })
		}
	}
	return out, nil
}
