package xdp

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/policy"
)

// ErrTaken is returned where somebody else's XDP program is in the way. It is never replaced.
var ErrTaken = errors.New("the XDP slot is taken by another program")

// Hooks, by which their pins are named: ifindex-hook. program is the XDP slot with the operator's program, and byHand
// with one that `vethwall attach` put there.
const (
	hookXDP      = "xdp"      // what the container sends
	hookSent     = "sent"     // the same, at tc ingress
	hookReceived = "received" // what it receives, at tc egress
	hookProgram  = "program"
	hookByHand   = "byhand"
)

var allHooks = []string{hookXDP, hookSent, hookReceived, hookProgram, hookByHand}

type hookID struct {
	ifindex int // of hookResolver the inode of the namespace
	hook    string
}

// device is the ifindex that the hook's link is attached to.
func (id hookID) device() int {
	if id.hook == hookResolver {
		return loopback
	}
	return id.ifindex
}

func (f *Filter) pin(id hookID) string { return pinUnder(f.dir, id) }

func pinUnder(dir string, id hookID) string {
	return filepath.Join(dir, "links", strconv.Itoa(id.ifindex)+"-"+id.hook)
}

// Mode is where what a container sends is judged.
type Mode string

// Generic XDP is judged on what the stack has built; Native in the driver, with its price on a veth
// (docs/architecture.md); TCX at tc ingress. Auto is Generic, or TCX where the XDP slot is taken.
const (
	Auto    Mode = ""
	Generic Mode = "generic"
	Native  Mode = "native"
	TCX     Mode = "tcx"
)

// Want is what a device is to have.
type Want struct {
	Policy *Tables
	// MAC is what the container has to send with, and Own its addresses; Own is nil where that is not judged.
	MAC net.HardwareAddr
	Own *Tables
	// Bridge is the ifindex of that of which the device is a port, where what it receives has to come from who has its
	// source (Filter.Introduce); else 0.
	Bridge int
	// Mode is where what the container sends is judged first. BothHooks: and at tc ingress what comes past XDP.
	Mode      Mode
	BothHooks bool
	// Raw: the container may send frames of its own making, of which the kernel writes a part after XDP (bpf/checksum.h); tc ingress looks
	// which.
	Raw bool
	// Program has the XDP slot, and the policy judges at tc ingress what it passes.
	Program Program
	// Siblings are the container's other devices: they share its conversations and the buckets of its limits.
	Siblings []int
}

// adopt takes over the pinned links, and what earlier versions knew of devices that were set down.
func (f *Filter) adopt() error {
	f.links = map[hookID]link.Link{}
	if _, err := f.scanPins(); err != nil {
		return err
	}
	for ifindex := range f.maps.devices {
		if !f.hooked(ifindex) && (!f.maps.isShut(ifindex) || !exists(ifindex)) {
			if err := f.maps.remove(ifindex); err != nil {
				return err
			}
		}
	}
	var err error
	eachDevice(f.dir, func(d filterDevice) {
		if ifindex := int(d.Ifindex); d.Policy == 0 && exists(ifindex) && !f.hooked(ifindex) {
			err = errors.Join(err, f.maps.setPolicy(ifindex, Want{Policy: Closed()}, f.bits(ifindex)))
		}
	})
	return err
}

// scanPins takes over what is pinned, and removes the pins of devices that are gone, and what is half made or not ours. It
// returns the hooks whose links have a pin and a device.
func (f *Filter) scanPins() (map[hookID]bool, error) {
	pins, err := os.ReadDir(f.linksDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	live := map[hookID]bool{}
	for _, pin := range pins {
		number, hook, _ := strings.Cut(pin.Name(), "-")
		ifindex, err := strconv.Atoi(number)
		if err != nil || !slices.Contains(allHooks, hook) && hook != hookResolver || f.live(hookID{ifindex, hook}) == nil {
			_ = os.Remove(filepath.Join(f.linksDir(), pin.Name()))
			continue
		}
		live[hookID{ifindex, hook}] = true
	}
	return live, nil
}

// deviceOf is the ifindex that l is attached to, 0 when the device is gone or the link was detached.
func deviceOf(l link.Link) int {
	info, err := l.Info()
	if err != nil {
		return 0
	}
	return deviceIn(info)
}

func deviceIn(info *link.Info) int {
	switch {
	case info.XDP() != nil:
		return int(info.XDP().Ifindex)
	case info.TCX() != nil:
		return int(info.TCX().Ifindex)
	}
	return 0
}

// live is our link at a hook, nil where there is none. One that somebody else of us has pinned is taken over.
func (f *Filter) live(id hookID) link.Link {
	if l := f.links[id]; l != nil {
		// One of the hold's is a moment old, and to ask takes the lock of all of networking, for which engines that start
		// containers keep others waiting long.
		if _, seen := f.seen[id]; seen || f.loose[id] || f.see(id, l) {
			return l
		}
		// The pin may be that of a newer link by now.
		delete(f.links, id)
		_ = l.Close()
	}
	l, err := link.LoadPinnedLink(f.pin(id), nil)
	if err == nil && f.see(id, l) {
		f.links[id] = l
		return l
	}
	if err == nil {
		_ = l.Close()
		_ = os.Remove(f.pin(id))
	}
	f.misses(id)
	return nil
}

// misses is told that a hook has no link of ours. Where Attach has left one there the next look is a close one, and where that judged what the container
// sends, somebody has taken it off; but whoever takes a program by hand off takes along what has judged behind that.
func (f *Filter) misses(id hookID) {
	s, ok := f.standing[id.ifindex]
	if !ok || s.programs[id.hook] == 0 || !exists(id.ifindex) {
		return
	}
	s.asked = time.Time{} // what stands is kept: of the other hooks it tells the same
	f.standing[id.ifindex] = s
	f.lost[id.ifindex] = f.lost[id.ifindex] || s.judges(id.hook)
}

// see asks the kernel whether a link is attached to its device, which takes the lock of all of networking: once for each while Attach is at work.
func (f *Filter) see(id hookID, l link.Link) bool {
	info, err := l.Info()
	if err != nil || deviceIn(info) != id.device() {
		return false
	}
	f.saw(id, info.Program)
	return true
}

func (f *Filter) saw(id hookID, program ebpf.ProgramID) {
	if f.seen != nil {
		f.seen[id] = program
	}
}

// has reports whether a hook has our program.
func (f *Filter) has(id hookID) bool {
	return f.live(id) != nil || !isSlot(id.hook) && (f.noTCX || !f.tcx) && clsactHas(id)
}

// hooked reports whether a device has any hook of ours.
func (f *Filter) hooked(ifindex int) bool {
	return slices.ContainsFunc(allHooks, func(hook string) bool { return f.has(hookID{ifindex, hook}) })
}

// ByHand reports whether a program that `vethwall attach` put there has the XDP slot.
func (f *Filter) ByHand(ifindex int) bool {
	_, err := os.Lstat(f.pin(hookID{ifindex, hookByHand}))
	return err == nil
}

// hooks are where w has to be attached. Of the two that judge what is sent tc ingress comes first: what is attached
// there alone judges all.
func (f *Filter) hooks(ifindex int, w Want) (out []string) {
	has := func(hook string) bool { return f.has(hookID{ifindex, hook}) }
	operators := w.Program != Program{}
	onlySent := operators || w.Mode == TCX && !w.BothHooks || f.ByHand(ifindex) ||
		w.Mode == Auto && has(hookSent) && !has(hookXDP) && !has(hookProgram) && !w.BothHooks
	if onlySent || w.BothHooks || w.Raw || w.Policy.LimitsSent || f.guarded[ifindex] {
		out = append(out, hookSent)
	}
	if operators {
		out = append(out, hookProgram)
	}
	if !onlySent {
		out = append(out, hookXDP)
	}
	if w.Policy.Receives {
		out = append(out, hookReceived)
	}
	return out
}

// Both reports whether both our XDP program and tc ingress judge what the other end of a device sends. XDP then leaves a
// mark for tc.
func (f *Filter) Both(ifindex int) bool {
	return !f.ByHand(ifindex) && f.has(hookID{ifindex, hookXDP}) && f.has(hookID{ifindex, hookSent})
}

// bits are those of a device's identity.
func (f *Filter) bits(ifindex int) (bits uint16) {
	// Beside a program by hand that says nothing to the programs: DetachByHand goes by what was before.
	if f.Both(ifindex) || f.ByHand(ifindex) && f.maps.identities[f.maps.devices[ifindex].Counters].Own&twoHooks != 0 {
		bits |= twoHooks
	}
	if f.guarded[ifindex] {
		bits |= guarded
	}
	return bits
}

// Attach puts w into force on the host-side veth of a container. The policy is in force when it returns without an error. What is attached is kept: its policy
// changes in one step, its mode does not, and a program that `vethwall attach` put there keeps the XDP slot, unless w
// has a Program. A device that Shut set down comes up again, with its filter. ErrTaken: see there. After any error the
// device may be without a filter: Shut closes it.
func (f *Filter) Attach(ifindex int, w Want) error {
	if f.stands(ifindex, w) {
		return nil
	}
	return f.attach(ifindex, w, nil)
}

// attach is Attach, but for the hooks in rest, which come later.
func (f *Filter) attach(ifindex int, w Want, rest *Rest) error {
	stands := false
	defer func() { // not before: it tells of links that are gone whether somebody has taken them off
		if !stands {
			delete(f.standing, ifindex)
		}
	}()
	f.seen = map[hookID]ebpf.ProgramID{}
	defer func() { f.seen = nil }()
	if f.held[ifindex] && w.Mode == Native { // a device has either generic or native XDP
		if err := f.endHold(ifindex); err != nil {
			return err
		}
	}
	delete(f.held, ifindex)
	hooks := f.hooks(ifindex, w)
	operators := f.has(hookID{ifindex, hookProgram})
	fresh, closed := !f.hooked(ifindex), f.maps.isShut(ifindex) || f.downed[ifindex]
	if !fresh {
		if err := f.stop(ifindex, w); err != nil {
			return err
		}
	}
	// Before the hooks: one that is brought from an earlier version's maps to ours finds its policy there.
	first := w
	if closed {
		first = Want{Policy: Closed()} // until the filter is complete; without a link it says that Shut has been here
	}
	if err := f.maps.setPolicy(ifindex, first, f.bits(ifindex)); err != nil {
		return err
	}
	var added []hookID // at tc
	for _, hook := range hooks {
		id := hookID{ifindex, hook}
		if rest.has(hook) {
			continue
		}
		if !isSlot(hook) && !f.has(id) {
			added = append(added, id)
		}
		if err := f.ensure(id, w); err != nil {
			for _, id := range added {
				err = errors.Join(err, f.unhookOne(id))
			}
			if fresh {
				err = errors.Join(err, f.unhook(ifindex))
			}
			if fresh && !closed {
				err = errors.Join(err, f.maps.remove(ifindex))
			}
			return err
		}
	}
	if operators {
		if err := f.withdraw(ifindex, hooks); err != nil {
			return err
		}
	}
	if err := f.maps.setPolicy(ifindex, w, f.bits(ifindex)); err != nil {
		return err
	}
	if fresh && closed {
		delete(f.downed, ifindex)
		return setLink(ifindex, netlink.LinkSetUp)
	}
	if rest != nil { // the next look makes out what stands
		return nil
	}
	f.standing[ifindex], stands = f.whatStands(ifindex, w), true
	return nil
}

// standing is what a device had when Attach had put want into force there.
type standing struct {
	want     Want
	entry    filterDevice
	programs map[string]ebpf.ProgramID // by hook
	asked    time.Time                 // when the kernel has said so last
}

// judges reports whether a hook that is lacking means that somebody has taken off what judges what the container sends: whoever takes a program by hand
// off takes along what has judged behind that.
func (s standing) judges(hook string) bool {
	return hook != hookReceived && s.programs[hookByHand] == 0
}

// askAgain is how long what the kernel says of a link is believed: less than an agent's looks are apart. The events of one start come within that, where
// an engine starts many, too, and each question waits for the lock of all of networking, by which it makes the devices of others.
const askAgain = 5 * time.Second

func (f *Filter) whatStands(ifindex int, w Want) standing {
	s := standing{want: w, entry: f.maps.devices[ifindex], programs: map[string]ebpf.ProgramID{}, asked: time.Now()}
	for _, hook := range allHooks {
		id := hookID{ifindex, hook}
		if l := f.live(id); l != nil {
			s.programs[hook] = f.seen[id]
		}
	}
	return s
}

// stands reports whether a device has all that w takes, because it had it before and nobody has touched it: the links with their
// programs and pins, and the entry. It is false where that takes a closer look, at filters of clsact for one.
func (f *Filter) stands(ifindex int, w Want) bool {
	s, ok := f.standing[ifindex]
	if !ok || len(s.programs) == 0 || !s.want.equal(w) || f.noTCX || f.held[ifindex] {
		return false
	}
	if time.Since(s.asked) >= askAgain && !f.asLeft(ifindex, s) {
		return false
	}
	return f.maps.devices[ifindex] == s.entry && f.maps.stands(s.entry)
}

// asLeft asks the kernel whether the links of a device, their programs and their pins are those that Attach has left.
func (f *Filter) asLeft(ifindex int, s standing) bool {
	all := true
	for hook, program := range s.programs { // to the end: whatever else lacks, it is to be told that somebody has taken one off
		id := hookID{ifindex, hook}
		l := f.links[id]
		if l == nil {
			all = false
			continue
		}
		info, err := l.Info()
		if err == nil && deviceIn(info) == 0 && s.judges(hook) {
			f.lost[ifindex] = true // or the device is gone
		}
		all = all && err == nil && deviceIn(info) == ifindex && info.Program == program && f.isPinned(id)
	}
	if !all {
		return false
	}
	s.asked = time.Now()
	f.standing[ifindex] = s
	return true
}

// isPinned reports whether a hook's link has a pin; what a sweep has just seen is believed as long as what the kernel says.
func (f *Filter) isPinned(id hookID) bool {
	if time.Since(f.scanned) < askAgain {
		return f.pinned[id]
	}
	_, err := os.Lstat(f.pin(id))
	return err == nil
}

// Lost reports, once, whether Attach or Begin has found that somebody had taken off what judges what a device's container sends.
func (f *Filter) Lost(ifindex int) bool {
	lost := f.lost[ifindex]
	delete(f.lost, ifindex)
	return lost
}

func (w Want) equal(o Want) bool {
	return w.Policy == o.Policy && w.Own == o.Own && bytes.Equal(w.MAC, o.MAC) && w.Mode == o.Mode && w.BothHooks == o.BothHooks && w.Raw == o.Raw &&
		w.Program == o.Program && w.Bridge == o.Bridge && slices.Equal(w.Siblings, o.Siblings)
}

// ShutWant is what Shut attaches. It is at both hooks, because who is closed may be wired with a redirect around one.
func ShutWant() Want { return Want{Policy: Closed(), BothHooks: true} }

// Shut closes a device that must be closed: by the filter with a policy that lets nothing pass, or where none can be
// attached by setting the device down. byFilter says which.
func (f *Filter) Shut(ifindex int) (byFilter bool, err error) {
	if err := f.Attach(ifindex, ShutWant()); err == nil {
		return true, nil
	}
	if err := setLink(ifindex, netlink.LinkSetDown); err != nil {
		return false, err
	}
	// The entry of a device without a hook says, to us and to those after us, that we set it down: what it had of hooks goes, which were too few.
	// Where there is no room for an entry it is down all the same, and only this process knows why.
	_ = f.unhook(ifindex)
	if f.maps.setPolicy(ifindex, Want{Policy: Closed()}, f.bits(ifindex)) != nil {
		f.downed[ifindex] = true
	}
	return false, nil
}

// ensure attaches the program that belongs at a hook unless it is there, and sees to it that it is that of this version
// and pinned.
func (f *Filter) ensure(id hookID, w Want) error {
	program, err := f.program(id.hook, w)
	if err != nil {
		return err
	}
	if isSlot(id.hook) {
		if err := f.inherit(id, program); err != nil {
			return err
		}
	}
	if l := f.live(id); l != nil {
		return f.refresh(id, l, program)
	}
	var l link.Link
	if isSlot(id.hook) {
		l, err = attachXDP(id.ifindex, program, w.Mode)
		if errors.Is(err, ErrTaken) && id.hook == hookXDP && w.Mode == Auto {
			return f.ensure(hookID{id.ifindex, hookSent}, w)
		}
	} else {
		l, err = f.tryTCX(id, program)
		if f.noTCX {
			return clsactAttach(id, program)
		}
	}
	if err != nil {
		return err
	}
	_ = os.Remove(f.pin(id)) // of a device that had this number before
	if err := f.keepPinned(id, l); err != nil {
		_ = l.Close()
		return err
	}
	f.links[id] = l
	f.saw(id, f.programID(program))
	return nil
}

// program is what belongs at a hook.
func (f *Filter) program(hook string, w Want) (*ebpf.Program, error) {
	switch hook {
	case hookSent:
		return f.objs.VethwallSent, nil
	case hookReceived:
		return f.objs.VethwallReceived, nil
	case hookProgram:
		return f.operators(w.Program)
	}
	return f.objs.VethwallXdp, nil
}

func attachXDP(ifindex int, program *ebpf.Program, mode Mode) (link.Link, error) {
	flags := link.XDPGenericMode
	if mode == Native {
		flags = link.XDPDriverMode
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: ifindex, Flags: flags})
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("ifindex %d: %w; see bpftool net", ifindex, ErrTaken)
	}
	if err != nil {
		return nil, fmt.Errorf("attach XDP to ifindex %d: %w", ifindex, err)
	}
	return l, nil
}

// haveTCX asks the kernel to attach to a device that there is not.
func (f *Filter) haveTCX() bool {
	l, err := attachTCX(hookID{math.MaxInt32, hookReceived}, f.objs.VethwallReceived)
	if err == nil {
		_ = l.Close()
	}
	return !errors.Is(err, ebpf.ErrNotSupported)
}

// attachTCX attaches before all others, so that none of them can let pass what we would drop.
func attachTCX(id hookID, program *ebpf.Program) (link.Link, error) {
	at := ebpf.AttachTCXEgress
	if id.hook == hookSent {
		at = ebpf.AttachTCXIngress
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: id.ifindex, Program: program, Attach: at, Anchor: link.Head()})
	if err != nil {
		return nil, fmt.Errorf("attach tcx to ifindex %d: %w", id.ifindex, err)
	}
	return l, nil
}

// tryTCX is attachTCX where the kernel has tcx, else nil.
func (f *Filter) tryTCX(id hookID, program *ebpf.Program) (link.Link, error) {
	if f.noTCX {
		return nil, nil
	}
	l, err := attachTCX(id, program)
	if f.noTCX = errors.Is(err, ebpf.ErrNotSupported); f.noTCX {
		return nil, nil
	}
	return l, err
}

// refresh gives a link the program that belongs there and its pin back. It judges without one, too, for as long as this process runs: where the
// directory has lost its bpffs that is no reason to cut off who is filtered.
func (f *Filter) refresh(id hookID, l link.Link, program *ebpf.Program) error {
	if !f.loose[id] && f.programID(program) != f.seen[id] { // what the hold attaches is what belongs there
		if err := l.Update(program); err != nil {
			return fmt.Errorf("update the program of ifindex %d: %w", id.ifindex, err)
		}
	}
	f.saw(id, f.programID(program))
	err := f.keepPinned(id, l)
	if err == nil || f.loose[id] {
		return err
	}
	if on, _ := OnBPFFS(f.dir); on {
		return err
	}
	return nil
}

// keepPinned gives a link its pin, unless it has it. Somebody may have removed the whole directory.
func (f *Filter) keepPinned(id hookID, l link.Link) error {
	if _, err := os.Lstat(f.pin(id)); !errors.Is(err, os.ErrNotExist) {
		return nil
	}
	_ = l.Unpin() // the library may believe that it is pinned
	if err := errors.Join(os.MkdirAll(f.linksDir(), 0o700), l.Pin(f.pin(id))); err != nil {
		return fmt.Errorf("pin the link %d-%s: %w", id.ifindex, id.hook, err)
	}
	return nil
}

// Detach takes filter and policy off a device, which comes up again where Shut had set it down. One that has none, or
// that is gone, is no error.
func (f *Filter) Detach(ifindex int) error {
	down := (f.maps.isShut(ifindex) || f.downed[ifindex]) && !f.hooked(ifindex)
	delete(f.downed, ifindex)
	var errs []error
	if _, has := f.maps.devices[ifindex]; has && !down {
		// The hooks go one after the other, and what is left judges meanwhile.
		open, err := Compile(nil)
		if err == nil {
			err = f.maps.setPolicy(ifindex, Want{Policy: open}, f.bits(ifindex))
		}
		errs = append(errs, err)
	}
	errs = append(errs, f.unhook(ifindex), f.maps.remove(ifindex))
	if down && exists(ifindex) {
		errs = append(errs, setLink(ifindex, netlink.LinkSetUp))
	}
	return errors.Join(errs...)
}

// unhook takes our programs off a device, and the operator's, but for one that was attached by hand.
func (f *Filter) unhook(ifindex int) error {
	var errs []error
	for _, hook := range []string{hookProgram, hookXDP, hookSent, hookReceived} {
		errs = append(errs, f.unhookOne(hookID{ifindex, hook}))
	}
	return errors.Join(errs...)
}

func (f *Filter) unhookOne(id hookID) error {
	if l := f.live(id); l != nil {
		delete(f.links, id)
		delete(f.loose, id)
		delete(f.seen, id)
		delete(f.standing, id.ifindex)
		// At once; removing the pin would do it some time later. A reader that meets it now removes it too.
		err := errors.Join(l.Detach(), l.Close())
		if removeErr := os.Remove(f.pin(id)); !errors.Is(removeErr, os.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
		return err
	}
	if isSlot(id.hook) {
		return nil
	}
	return clsactDetach(id)
}

// ForgetConversations has what goes on between a device's container and others judged as if it were new.
func (f *Filter) ForgetConversations(ifindex int) error {
	d, ok := f.maps.devices[ifindex]
	if !ok {
		return nil
	}
	return f.maps.states.renew(d.Counters)
}

// Unseen is how many packets the other end of a veth has sent that no filter of ours has judged: those from before it came.
// 0 also where nobody can tell.
func (f *Filter) Unseen(ifindex int) uint64 {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil || l.Attrs().Statistics == nil {
		return 0
	}
	counts, err := readCounts(f.objs.Counters, f.maps.devices[ifindex].Counters)
	if err != nil {
		return 0
	}
	judged := uint64(0)
	for _, c := range counts {
		// A rule's counter does not tell which way the packet went; it is never more than it says.
		if c.Direction == policy.Egress {
			judged += c.Packets
		}
	}
	return max(l.Attrs().Statistics.RxPackets, judged) - judged
}

// Filters reports whether a device has a filter of ours or was set down by Shut. One that is only held has none.
func (f *Filter) Filters(ifindex int) bool {
	if f.held[ifindex] {
		return false
	}
	if _, has := f.maps.devices[ifindex]; has {
		return true
	}
	// Of an earlier version, whose maps are not ours. A program by hand alone is no filter.
	return slices.ContainsFunc(allHooks, func(hook string) bool { return hook != hookByHand && f.links[hookID{ifindex, hook}] != nil })
}

// Filtered are the devices of which Filters holds, in no order.
func (f *Filter) Filtered() []int {
	is := map[int]bool{}
	for ifindex := range f.maps.devices {
		is[ifindex] = f.Filters(ifindex)
	}
	for id := range f.links {
		is[id.ifindex] = f.Filters(id.ifindex) // of a resolver that is no device's number
	}
	maps.DeleteFunc(is, func(_ int, filtered bool) bool { return !filtered })
	return slices.Collect(maps.Keys(is))
}

// Forget removes what belongs to devices that are gone. Others of those that are named stay as they are.
func (f *Filter) Forget(ifindexes ...int) error {
	var errs []error
	var gone []link.Link
	for _, ifindex := range ifindexes {
		if exists(ifindex) {
			continue
		}
		for _, hook := range allHooks {
			id := hookID{ifindex, hook}
			delete(f.loose, id)
			if l := f.links[id]; l != nil {
				gone = append(gone, l)
				delete(f.links, id)
			}
			if err := os.Remove(f.pin(id)); !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		delete(f.held, ifindex)
		delete(f.standing, ifindex)
		delete(f.lost, ifindex)
		delete(f.guarded, ifindex)
		delete(f.downed, ifindex)
		errs = append(errs, f.maps.remove(ifindex))
	}
	// Beside us: to ask of a link, or to close the last of it, waits for the lock of all of networking.
	f.closing.Go(func() {
		for _, l := range gone {
			_ = l.Close()
		}
	})
	return errors.Join(errs...)
}

// Sweep removes what belongs to devices that are gone, and frees what has been unused for a while. links have been listed since
// anything else was last asked of f.
func (f *Filter) Sweep(links Links) error {
	errs := []error{f.remount()}
	unheard := slices.Collect(maps.Keys(f.held)) // whose links are taken to be there until somebody tells that they are not
	for id := range f.loose {
		unheard = append(unheard, id.ifindex)
	}
	errs = append(errs, f.Forget(unheard...))
	pinned, err := f.scanPins()
	f.pinned, f.scanned = pinned, time.Now()
	errs = append(errs, err)
	linked := map[int]bool{}
	for id := range f.links {
		if pinned[id] {
			linked[id.device()] = true
			continue
		}
		l := f.live(id) // none of one whose device is gone
		switch {
		case id.hook != hookResolver:
		case l == nil:
			delete(f.resolvers, id.ifindex)
		default:
			errs = append(errs, f.keepPinned(id, l)) // no later look at its container would
		}
		if l != nil {
			linked[id.device()] = true
		}
	}
	for ifindex := range f.maps.devices {
		if !linked[ifindex] && !exists(ifindex) {
			errs = append(errs, f.maps.remove(ifindex))
		}
	}
	maps.DeleteFunc(f.standing, func(ifindex int, _ standing) bool { return !linked[ifindex] })
	maps.DeleteFunc(f.guarded, func(ifindex int, _ bool) bool { return !linked[ifindex] && !exists(ifindex) })
	f.maps.free(time.Now())
	return errors.Join(append(errs, f.sweepPrograms(), f.maps.states.sweep(), f.neighbors.sweep(links), f.repin(), f.askers.keepPinned(f.dir), f.relock())...)
}

// exists reports whether there is such a device; when the kernel does not say, there is. SIOCGIFNAME is answered at once, while netlink
// waits for the lock under which devices are made and removed.
func exists(ifindex int) bool {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(s)
	request, err := unix.NewIfreq("")
	if err != nil {
		return true
	}
	request.SetUint32(uint32(ifindex))
	return !errors.Is(unix.IoctlIfreq(s, unix.SIOCGIFNAME, request), unix.ENODEV)
}

func setLink(ifindex int, set func(netlink.Link) error) error {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("ifindex %d: %w", ifindex, err)
	}
	if err := set(l); err != nil {
		return fmt.Errorf("set %s up or down: %w", l.Attrs().Name, err)
	}
	return nil
}
