package xdp

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// ErrNotByHand is returned by DetachByHand where nothing was attached by hand.
var ErrNotByHand = errors.New("no program was attached by hand")

// AttachByHand puts a program into the XDP slot of a device. Where the device has a policy, that moves to tc ingress of
// the same device before, so that it judges what the program lets pass. It works beside an agent and lasts
// until DetachByHand or the device's end.
func AttachByHand(dir string, ifindex int, program *ebpf.Program, mode Mode) error {
	f := &Filter{dir: dir, links: map[hookID]link.Link{}}
	defer f.closeLinks()
	if f.ByHand(ifindex) {
		return fmt.Errorf("ifindex %d: a program is attached by hand already; detach it first", ifindex)
	}
	if f.has(hookID{ifindex, hookProgram}) {
		return fmt.Errorf("ifindex %d: the container's xdp.program has the XDP slot; a program by hand has no place beside it", ifindex)
	}
	own, byHand := hookID{ifindex, hookXDP}, hookID{ifindex, hookByHand}
	l := f.live(own)
	if l == nil {
		if err := os.MkdirAll(f.linksDir(), 0o700); err != nil {
			return err
		}
		l, err := attachXDP(ifindex, program, mode)
		if err != nil {
			return err
		}
		defer l.Close()
		return l.Pin(f.pin(byHand))
	}
	if err := f.loadPinned(); err != nil {
		return err
	}
	defer f.objs.Close()
	if err := f.ensure(hookID{ifindex, hookSent}, Want{Mode: TCX}); err != nil {
		return err
	}
	// The name first: from here on the agent leaves the link alone, whichever program it has.
	if err := os.Rename(f.pin(own), f.pin(byHand)); err != nil {
		return err
	}
	if err := l.Update(program); err != nil {
		return errors.Join(fmt.Errorf("put the program in place: %w", err), os.Rename(f.pin(byHand), f.pin(own)))
	}
	return nil
}

// DetachByHand takes the program off again. Where the device has a policy its filter is put back in the same
// step, so that no packet passes between the two. ErrNotByHand: there was none.
func DetachByHand(dir string, ifindex int) error {
	f := &Filter{dir: dir, links: map[hookID]link.Link{}}
	defer f.closeLinks()
	own, byHand, sent := hookID{ifindex, hookXDP}, hookID{ifindex, hookByHand}, hookID{ifindex, hookSent}
	l := f.live(byHand)
	if l == nil {
		return ErrNotByHand
	}
	if !f.has(sent) {
		// An agent may hold the link open too.
		return errors.Join(l.Detach(), os.Remove(f.pin(byHand)))
	}
	if err := f.loadPinned(); err != nil {
		return err
	}
	defer f.objs.Close()
	if err := l.Update(f.objs.VethwallXdp); err != nil {
		return fmt.Errorf("put the filter back: %w", err)
	}
	if err := os.Rename(f.pin(byHand), f.pin(own)); err != nil {
		return err
	}
	if both, err := f.wantsBoth(ifindex); both || err != nil {
		return err
	}
	if l := f.live(sent); l != nil {
		return errors.Join(l.Detach(), os.Remove(f.pin(sent)))
	}
	return clsactDetach(sent)
}

// wantsBoth reports whether a device has both hooks for what is sent even without a program by hand.
func (f *Filter) wantsBoth(ifindex int) (bool, error) {
	r := Reader{maps: f.objs.filterMaps}
	d, ok := r.entry(ifindex)
	if !ok {
		return false, nil
	}
	var id filterIdentity
	if err := f.objs.Identities.Lookup(uint32(d.Counters), &id); err != nil {
		return false, fmt.Errorf("read map identities: %w", err)
	}
	return id.Own&(twoHooks|guarded) != 0, nil
}

// loadPinned loads the programs over the maps that are pinned.
func (f *Filter) loadPinned() error {
	spec, err := loadFilter()
	if err != nil {
		return err
	}
	if _, err := os.Stat(mapsDir(f.dir, spec)); err != nil {
		return fmt.Errorf("the kernel holds the filter of another version of vethwall: %w", err)
	}
	// An agent that runs would go on with its own maps, beside those that are made here.
	if err := unfit(mapsDir(f.dir, spec), spec); err != nil {
		return fmt.Errorf("%w; an agent that runs mends that within 15 s", err)
	}
	return f.loadInto(spec)
}
