package xdp

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/vethwall/vethwall/policy"
)

// Hold keeps a new port of a bridge from sending until it is released, so that a filter can be attached before a
// container's first packet. ARP, neighbour discovery and MLD pass, and what the port receives. Only ports with a
// name such as Docker gives them are held, and none that was a port when the hold began.
//
// Rules of nftables hold a port from its first frame on, and give it up 5 s after the last Refresh. Where the kernel
// has no nftables for bridges an XDP program does it from when Sync or Arrived has seen the port, and ends with
// this process.
//
// Hold is not safe for concurrent use.
type Hold struct {
	filter *Filter
	rules  *ruleset
	inXDP  bool
	ruled  bool      // there were rules in force once
	fell   time.Time // since when they are not
	why    error
	known  map[int]bool   // may send
	guards map[int]bool   // which of them are guarded
	gaps   map[int]uint64 // what ports that are held had sent when rules were put back that somebody had removed
	last   time.Time      // of the last refresh
}

// Held is a way to hold ports.
type Held string

// The ways: HeldNFT by rules, HeldXDP by a program, NotHeld where no agent runs.
const (
	HeldNFT Held = "nftables"
	HeldXDP Held = "xdp"
	NotHeld Held = "none"
)

// lapse is how long after the last refresh the rules are taken to have ended: somewhat before they do.
const lapse = deadMan - deadMan/10

// OpenHold begins to hold the new ports of the network namespace that this thread is in; ports are those of now. Where the agent
// before this one has held ports and its hold has not ended, they stay held. Close it before f.
func OpenHold(f *Filter, ports []Port) *Hold {
	h := &Hold{filter: f, rules: newRuleset(f.dir), known: map[int]bool{}, guards: map[int]bool{}, gaps: map[int]uint64{}, last: time.Now()}
	before, guarded, left, err := h.rules.read()
	adopt := err == nil && left > deadMan-lapse && h.rules.whole()
	for _, p := range ports {
		if !adopt || slices.Contains(before, p.Index) || !p.Dockers() {
			h.known[p.Index] = true
		}
		// Without its program nothing that it sends would have the mark.
		if slices.Contains(guarded, p.Index) && f.Both(p.Index) {
			h.guards[p.Index], f.guarded[p.Index] = true, true
		}
	}
	h.install()
	return h
}

// install puts the rules into force, or where that cannot be has a program hold what comes from now on.
func (h *Hold) install() {
	known, guarded := h.apart(slices.Collect(maps.Keys(h.known)))
	if h.why = h.rules.install(known, guarded); h.why != nil {
		// The table of before stands where the kernel has refused another, and drops what has no mark: the next refresh tries again.
		if err := h.rules.remove(); err != nil && h.rules.whole() {
			return
		}
		if !h.inXDP {
			h.inXDP, h.fell = true, time.Now()
		}
		clear(h.guards)
		for ifindex := range h.filter.guarded {
			delete(h.filter.guarded, ifindex)
			_ = errors.Join(h.filter.mark(ifindex), setLink(ifindex, seesGroups(0)))
		}
		return
	}
	h.ruled, h.inXDP = true, false
}

// admit makes a port one that may send.
func (h *Hold) admit(ifindex int) {
	h.known[ifindex] = true
	if h.filter.guarded[ifindex] {
		h.guards[ifindex] = true
	}
}

// apart tells ports that are guarded from others.
func (h *Hold) apart(ifindexes []int) (others, guarded []int) {
	for _, i := range ifindexes {
		if h.guards[i] {
			guarded = append(guarded, i)
		} else {
			others = append(others, i)
		}
	}
	return others, guarded
}

// Way says how ports are held, and where it is not by rules why not.
func (h *Hold) Way() (Held, error) {
	if h.inXDP {
		return HeldXDP, h.why
	}
	return HeldNFT, nil
}

// Close leaves the rules in force until they end by themselves: the next agent takes them over.
func (h *Hold) Close() { h.rules.close() }

// Sync is told all ports. It returns those that are held, lets others send, and forgets what is gone: numbers
// come back.
func (h *Hold) Sync(ports []Port) (held []Port, err error) {
	there, others := map[int]bool{}, []int(nil)
	for _, p := range ports {
		there[p.Index] = true
		switch {
		case h.known[p.Index]:
		case !p.Dockers():
			others = append(others, p.Index)
		default:
			is, why := h.Arrived(p)
			if is {
				held = append(held, p)
			}
			err = errors.Join(err, why)
		}
	}
	var missing []int
	for ifindex := range h.known {
		if !there[ifindex] {
			missing = append(missing, ifindex)
		}
	}
	return held, errors.Join(err, h.Forget(missing...), h.Release(others...))
}

// Forget is told of devices that may be gone. Numbers come back: the next port with such a number is held.
func (h *Hold) Forget(ifindexes ...int) error {
	gone := slices.DeleteFunc(slices.Clone(ifindexes), func(ifindex int) bool { return !h.known[ifindex] || exists(ifindex) })
	if len(gone) == 0 {
		return nil
	}
	known, guarded := h.apart(gone)
	for _, ifindex := range gone {
		delete(h.known, ifindex)
		delete(h.guards, ifindex)
	}
	if h.inXDP {
		return nil
	}
	return h.mend(h.rules.forget(known, guarded))
}

// Unseen is how many packets of a port may have passed that is held: those from before there was a program, or while somebody had
// removed the rules. held is false where the port is not.
func (h *Hold) Unseen(ifindex int) (packets uint64, held bool) {
	if h.known[ifindex] {
		return 0, false
	}
	_ = h.Mend() // the rules may be gone, and nobody has told yet; where they cannot be put back a program holds
	switch {
	case h.inXDP && !h.filter.held[ifindex]:
		return 0, false
	case h.inXDP:
		return h.filter.Unseen(ifindex), true
	}
	return h.gaps[ifindex], true
}

// Known reports whether a port has been released, or was there before.
func (h *Hold) Known(ifindex int) bool { return h.known[ifindex] }

// Arrived is told of a new port, and says whether it is held. Where no rule holds it, this does.
func (h *Hold) Arrived(p Port) (held bool, err error) {
	if h.known[p.Index] || !p.Dockers() {
		return false, nil
	}
	if h.inXDP {
		err = h.filter.holdAtOnce(p.Index)
	}
	return err == nil, err
}

// Prepare is for a port that is held: what it returns attaches XDP and those hooks at tcx that its filter will need, and makes a conversation table
// ready, so that Filter.Attach has only a policy to write: each takes the kernel 8 ms and more, with the lock that all of networking has. nil: there
// is nothing to attach. It has to be given to Filter.Take before anything else is done to the port. The hooks let pass what the hold does. Release takes
// off what Filter.Attach has not made use of.
func (h *Hold) Prepare(ifindex int, sent, received bool) (*Rest, error) {
	if h.known[ifindex] {
		return nil, nil
	}
	f := h.filter
	hooks := []string{hookXDP}
	if sent {
		hooks = append(hooks, hookSent)
	}
	if received {
		hooks = append(hooks, hookReceived)
	}
	r, err := f.holdBack(ifindex, hooks...)
	if r != nil && received {
		r.tables = f.maps.states.reserve(min(len(f.held), mostReady))
	}
	return r, err
}

// Release lets ports send. Those that have a filter keep it.
func (h *Hold) Release(ifindexes ...int) error {
	ifindexes = slices.DeleteFunc(slices.Clone(ifindexes), h.Known)
	for _, i := range ifindexes {
		h.admit(i)
		delete(h.gaps, i)
	}
	if len(ifindexes) == 0 {
		return nil
	}
	var errs []error
	for _, i := range ifindexes {
		errs = append(errs, h.filter.endHold(i))
	}
	if !h.inXDP {
		errs = append(errs, h.mend(h.rules.release(h.apart(ifindexes))))
	}
	return errors.Join(errs...)
}

// Refresh keeps the hold going; call it every second. lapsed says that it had ended, because nobody had called for 5 s: what was
// held then, and all that has become a port since, may have sent, and has been released.
func (h *Hold) Refresh() (lapsed bool, err error) {
	if h.inXDP {
		h.retry()
		return false, nil
	}
	var fresh []int
	if lapsed = time.Since(h.last) >= lapse; lapsed {
		ports, err := ListPorts()
		if err != nil {
			return false, err
		}
		for _, p := range ports {
			if !h.known[p.Index] {
				fresh = append(fresh, p.Index)
				h.admit(p.Index)
			}
		}
	}
	h.last = time.Now()
	var errs []error
	for _, ifindex := range fresh {
		errs = append(errs, h.filter.endHold(ifindex)) // what Prepare has attached
	}
	return lapsed, errors.Join(append(errs, h.mend(h.rules.refresh(h.apart(fresh))))...)
}

// retry installs the rules where the kernel has refused that meanwhile, every 5 s. Ports that a program holds are released first, unless one never is:
// nothing may ever come from it. What was guarded has to be guarded again.
func (h *Hold) retry() {
	held := len(h.filter.held) > 0 && time.Since(h.fell) < 6*deadMan
	if !h.ruled || held || time.Since(h.last) < deadMan {
		return
	}
	h.last = time.Now()
	if h.install(); !h.inXDP {
		h.noteGaps()
	}
}

// Mend installs the rules again if somebody has removed them.
func (h *Hold) Mend() error {
	if h.inXDP || h.rules.whole() {
		return nil
	}
	return h.mend(fmt.Errorf("the nftables table bridge %s is gone", h.rules.table.Name))
}

// mend installs the rules again after an error, with what is known. Ports that came while they were gone are held
// from here on. Where it cannot be done a program holds what comes.
func (h *Hold) mend(err error) error {
	if err == nil {
		return nil
	}
	h.last = time.Now()
	if h.install(); h.why != nil {
		return fmt.Errorf("%w: %w", err, h.why)
	}
	h.noteGaps()
	return nil
}

// noteGaps is called when the rules have been put back. What ports that are held have sent by now may have passed.
func (h *Hold) noteGaps() {
	clear(h.gaps)
	ports, err := ListPorts()
	if err != nil {
		return
	}
	for _, p := range ports {
		if h.known[p.Index] || !p.Dockers() {
			continue
		}
		if l, err := netlink.LinkByIndex(p.Index); err == nil && l.Attrs().Statistics != nil {
			h.gaps[p.Index] = l.Attrs().Statistics.RxPackets
		}
	}
}

// holdPolicy lets only what is never a matter of rules pass: ARP, neighbour discovery and MLD. Nothing is said of what is received.
var holdPolicy = func() *Tables {
	p, _, err := policy.Parse(map[string]string{"xdp.egress.default": "drop"})
	if err != nil {
		panic(err)
	}
	t, err := Compile(policy.Stack{{Origin: "hold", Policy: p}})
	if err != nil {
		panic(err)
	}
	return t
}()

// holdBack has a device let only holdPolicy pass, when what it returns has been attached and taken: nil where the device has hooks
// already, which are left to whoever attached them. The links have no pins, so that they end with this process; Attach
// gives them some together with a policy.
func (f *Filter) holdBack(ifindex int, hooks ...string) (*Rest, error) {
	if !f.held[ifindex] && f.hooked(ifindex) {
		return nil, nil
	}
	if err := f.maps.setPolicy(ifindex, Want{Policy: holdPolicy}, 0); err != nil {
		return nil, err
	}
	f.held[ifindex] = true
	r := &Rest{ifindex: ifindex, prepares: true, programs: map[string]*ebpf.Program{}, links: map[string]link.Link{}}
	for _, hook := range hooks {
		if f.links[hookID{ifindex, hook}] != nil || !isSlot(hook) && !f.tcx {
			continue
		}
		var err error
		if r.programs[hook], err = f.program(hook, Want{}); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// holdAtOnce holds a device by XDP.
func (f *Filter) holdAtOnce(ifindex int) error {
	r, err := f.holdBack(ifindex, hookXDP)
	if err != nil || r == nil {
		return err
	}
	if err := r.Attach(); err != nil {
		return errors.Join(err, f.endHold(ifindex))
	}
	return f.Take(r)
}

// endHold takes the hold's programs off, but those that Attach has made a filter of.
func (f *Filter) endHold(ifindex int) error {
	var errs []error
	both, fewer := f.Both(ifindex), false
	for _, hook := range []string{hookXDP, hookSent, hookReceived} {
		id := hookID{ifindex, hook}
		_, err := os.Lstat(f.pin(id))
		if l := f.links[id]; l != nil && f.loose[id] && err != nil {
			delete(f.links, id)
			delete(f.standing, ifindex)
			fewer = true
			errs = append(errs, l.Detach(), l.Close())
		}
		delete(f.loose, id)
	}
	switch {
	case f.held[ifindex]:
		delete(f.held, ifindex)
		errs = append(errs, f.maps.remove(ifindex))
	case both && fewer && !f.Both(ifindex): // XDP counts what it passes where tc does not follow
		errs = append(errs, f.mark(ifindex))
	}
	return errors.Join(errs...)
}

// HoldInForce reads back how the agent that pins under dir holds new ports, and how many packets its rules have
// dropped.
func HoldInForce(dir string) (way Held, dropped uint64) {
	r := newRuleset(dir)
	defer r.close()
	_, _, left, err := r.read()
	switch {
	case err == nil && left > 0:
		return HeldNFT, r.dropped(r.held)
	case err != nil && AgentRuns(dir):
		return HeldXDP, 0
	}
	return NotHeld, 0
}

// TryHold says why the kernel cannot hold ports by rules, nil where it can. It changes nothing.
func TryHold() error {
	r := newRuleset("try")
	defer r.close()
	return r.try()
}
