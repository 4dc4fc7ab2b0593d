package xdp

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrTaken is returned where somebody else's XDP program is in the way. It is never replaced.
var ErrTaken = errors.New("the XDP slot is taken by another program")

// Pins of links are named ifindex-xdp, or ifindex-byhand for a program that `vethwall attach` put there.
const (
	suffixXDP    = "-xdp"
	suffixByHand = "-byhand"
)

type pinnedLink struct {
	link.Link
	path string
}

func (f *Filter) pin(ifindex int, suffix string) string {
	return filepath.Join(f.linksDir(), strconv.Itoa(ifindex)+suffix)
}

// adopt takes over the pinned links and drops those whose device is gone.
func (f *Filter) adopt() error {
	f.links = map[int]*pinnedLink{}
	pins, err := os.ReadDir(f.linksDir())
	if err != nil {
		return err
	}
	for _, pin := range pins {
		path := filepath.Join(f.linksDir(), pin.Name())
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			_ = os.Remove(path) // nothing that we made, or half of it
			continue
		}
		ifindex := deviceOf(l)
		if ifindex == 0 || pin.Name() != strconv.Itoa(ifindex)+suffixXDP && pin.Name() != strconv.Itoa(ifindex)+suffixByHand {
			_ = os.Remove(path)
			_ = l.Close()
			continue
		}
		f.links[ifindex] = &pinnedLink{l, path}
	}
	for ifindex := range f.maps.devices {
		if f.links[ifindex] == nil && (!f.maps.isShut(ifindex) || !exists(ifindex)) {
			if err := f.maps.remove(ifindex); err != nil {
				return err
			}
		}
	}
	return nil
}

// deviceOf is the ifindex that l is attached to, 0 when the device is gone.
func deviceOf(l link.Link) int {
	info, err := l.Info()
	if err != nil || info.XDP() == nil {
		return 0
	}
	return int(info.XDP().Ifindex)
}

// Mode is how an XDP program is run.
type Mode string

// Generic runs it on what the stack has built; Native in the driver, with its price on a veth (docs/architecture.md).
const (
	Generic Mode = "generic"
	Native  Mode = "native"
)

func (m Mode) flags() link.XDPAttachFlags {
	if m == Native {
		return link.XDPDriverMode
	}
	return link.XDPGenericMode
}

// Attach puts t into force on what the container behind a host-side veth sends. The policy is in force when
// it returns without an error. A link that is there is kept: its policy changes in one step, its mode does not, and
// a program that `vethwall attach` put there stays. A device that Shut set down comes up again, with its filter.
// ErrTaken: see there. After any error the device may be without a filter: Shut closes it.
func (f *Filter) Attach(ifindex int, t *Tables, mode Mode) error {
	l, err := f.live(ifindex)
	if err != nil {
		return err
	}
	if l != nil {
		if err := f.maps.setPolicy(ifindex, t); err != nil {
			return err
		}
		return f.refresh(ifindex, l)
	}
	shut := f.maps.isShut(ifindex)
	// Closed until everything is in place; this is also what says that Shut has been here.
	if err := f.maps.setPolicy(ifindex, Closed()); err != nil {
		return err
	}
	if err := f.attachNew(ifindex, f.objs.VethwallXdp, mode, suffixXDP); err != nil {
		if !shut {
			err = errors.Join(err, f.maps.remove(ifindex))
		}
		return err
	}
	if err := f.maps.setPolicy(ifindex, t); err != nil {
		return err
	}
	if shut {
		return setLink(ifindex, netlink.LinkSetUp)
	}
	return nil
}

// Shut closes a device that must be closed: by the filter with a policy that lets nothing pass, or where none can be
// attached by setting the device down. byFilter says which.
func (f *Filter) Shut(ifindex int) (byFilter bool, err error) {
	if err := f.Attach(ifindex, Closed(), Generic); err == nil {
		return true, nil
	}
	// The entry of a device without a link says, to us and to those after us, that we set it down.
	if err := f.maps.setPolicy(ifindex, Closed()); err != nil {
		return false, err
	}
	return false, setLink(ifindex, netlink.LinkSetDown)
}

// live is our link on a device, nil where there is none. A device that is gone takes its link along.
func (f *Filter) live(ifindex int) (*pinnedLink, error) {
	l := f.links[ifindex]
	if l == nil {
		return nil, nil
	}
	if deviceOf(l) != ifindex {
		return nil, f.drop(ifindex)
	}
	return l, nil
}

// refresh gives a link the program of this version and its pin back, unless a program was attached by hand.
func (f *Filter) refresh(ifindex int, l *pinnedLink) error {
	if f.ByHand(ifindex) {
		l.path = f.pin(ifindex, suffixByHand)
		return nil
	}
	l.path = f.pin(ifindex, suffixXDP)
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("link of ifindex %d: %w", ifindex, err)
	}
	own, err := f.objs.VethwallXdp.Info()
	if err != nil {
		return err
	}
	if id, _ := own.ID(); id != info.Program {
		if err := l.Update(f.objs.VethwallXdp); err != nil {
			return fmt.Errorf("update the program of ifindex %d: %w", ifindex, err)
		}
	}
	if _, err := os.Lstat(l.path); errors.Is(err, os.ErrNotExist) {
		_ = l.Unpin() // the library believes that it is pinned
		if err := l.Pin(l.path); err != nil {
			return fmt.Errorf("pin the link of ifindex %d: %w", ifindex, err)
		}
	}
	return nil
}

func (f *Filter) attachNew(ifindex int, program *ebpf.Program, mode Mode, suffix string) error {
	l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: ifindex, Flags: mode.flags()})
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("ifindex %d: %w; see bpftool net", ifindex, ErrTaken)
	}
	if err != nil {
		return fmt.Errorf("attach to ifindex %d in %s mode: %w", ifindex, mode, err)
	}
	path := f.pin(ifindex, suffix)
	_ = os.Remove(path) // of a device that had this number before
	if err := l.Pin(path); err != nil {
		_ = l.Close()
		return fmt.Errorf("pin the link of ifindex %d: %w", ifindex, err)
	}
	f.links[ifindex] = &pinnedLink{l, path}
	return nil
}

// Detach takes filter and policy off a device. One that has none, or that is gone, is no error.
func (f *Filter) Detach(ifindex int) error {
	return errors.Join(f.drop(ifindex), f.maps.remove(ifindex))
}

func (f *Filter) drop(ifindex int) error {
	l := f.links[ifindex]
	if l == nil {
		return nil
	}
	delete(f.links, ifindex)
	_ = l.Detach() // at once; it fails where the device is gone
	err := os.Remove(l.path)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, l.Close())
}

// Devices are the ifindexes that have a filter of ours or were set down by Shut.
func (f *Filter) Devices() []int {
	out := slices.Collect(maps.Keys(f.maps.devices))
	slices.Sort(out)
	return out
}

// Sweep removes what belongs to devices that are gone, and frees what has been unused for a while.
func (f *Filter) Sweep() error {
	var errs []error
	for ifindex, l := range f.links {
		if deviceOf(l) != ifindex {
			errs = append(errs, f.Detach(ifindex))
		}
	}
	for ifindex := range f.maps.devices {
		if f.links[ifindex] == nil && !exists(ifindex) {
			errs = append(errs, f.maps.remove(ifindex))
		}
	}
	f.maps.free(time.Now())
	return errors.Join(errs...)
}

// exists reports whether there is such a device; when the kernel does not say, there is.
func exists(ifindex int) bool {
	_, err := netlink.LinkByIndex(ifindex)
	var none netlink.LinkNotFoundError
	return !errors.As(err, &none)
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

// ByHand reports whether a program that `vethwall attach` put there stands in place of the policy.
func (f *Filter) ByHand(ifindex int) bool {
	_, err := os.Lstat(f.pin(ifindex, suffixByHand))
	return err == nil
}
