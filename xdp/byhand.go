package xdp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ErrNotByHand is returned by DetachByHand where nothing was attached by hand.
var ErrNotByHand = errors.New("no program was attached by hand")

// AttachByHand puts a program into the XDP slot of a device, in place of the filter where there is one. It works
// beside an agent, which leaves such a device alone, and lasts until DetachByHand or the device's end.
func AttachByHand(dir string, ifindex int, program *ebpf.Program, mode Mode) error {
	own, byHand := handPins(dir, ifindex)
	if _, err := os.Lstat(byHand); err == nil {
		return fmt.Errorf("ifindex %d: a program is attached by hand already; detach it first", ifindex)
	}
	l, err := link.LoadPinnedLink(own, nil)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(byHand), 0o700); err != nil {
			return err
		}
		l, err = link.AttachXDP(link.XDPOptions{Program: program, Interface: ifindex, Flags: mode.flags()})
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("ifindex %d: %w", ifindex, ErrTaken)
		}
		if err != nil {
			return fmt.Errorf("attach to ifindex %d: %w", ifindex, err)
		}
		defer l.Close()
		return l.Pin(byHand)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", own, err)
	}
	defer l.Close()
	// The name first: from here on the agent leaves the link alone, whichever program it has.
	if err := os.Rename(own, byHand); err != nil {
		return err
	}
	if err := l.Update(program); err != nil {
		return errors.Join(fmt.Errorf("put the program in place: %w", err), os.Rename(byHand, own))
	}
	return nil
}

// DetachByHand takes the program off again. Where the device has a policy its filter is put back in the same
// step, so that no packet passes between the two. ErrNotByHand: there was none.
func DetachByHand(dir string, ifindex int) error {
	own, byHand := handPins(dir, ifindex)
	l, err := link.LoadPinnedLink(byHand, nil)
	if errors.Is(err, os.ErrNotExist) {
		return ErrNotByHand
	}
	if err != nil {
		return fmt.Errorf("%s: %w", byHand, err)
	}
	defer l.Close()
	if !hasPolicy(dir, ifindex) {
		// An agent may hold the link open too.
		return errors.Join(l.Detach(), os.Remove(byHand))
	}
	spec, err := loadFilter()
	if err != nil {
		return err
	}
	var objs filterObjects
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinByName
	}
	if err := spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: mapsDir(dir, spec)}}); err != nil {
		return fmt.Errorf("load the filter: %w", err)
	}
	defer objs.Close()
	if err := l.Update(objs.VethwallXdp); err != nil {
		return fmt.Errorf("put the filter back: %w", err)
	}
	return os.Rename(byHand, own)
}

func handPins(dir string, ifindex int) (own, byHand string) {
	base := filepath.Join(dir, "links", strconv.Itoa(ifindex))
	return base + suffixXDP, base + suffixByHand
}

func hasPolicy(dir string, ifindex int) bool {
	r, err := OpenReader(dir)
	if err != nil {
		return false
	}
	defer r.Close()
	_, ok := r.entry(ifindex)
	return ok
}
