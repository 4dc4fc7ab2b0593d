package xdp

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// hookResolver is XDP on the lo of a container's namespace. Its pin is named by the namespace's inode, not an ifindex.
const hookResolver = "resolver"

// loopback is the ifindex of lo in every network namespace (LOOPBACK_IFINDEX in the kernel).
const loopback = 1

// resolverClosed is what a program on lo closes, and under which device it counts.
type resolverClosed struct {
	ifindex  int
	counters uint16
	udp, tcp bool
}

// closing is what CloseResolver has put into a namespace, and when the kernel was last asked whether it stands.
type closing struct {
	resolverClosed
	asked time.Time
}

// CloseResolver drops what the network namespace at path asks the engine's resolver at 127.0.0.11, over UDP, TCP or both; with
// neither it is open again. It counts as what the device sends, or as nobody's where that has no policy yet. Nobody in the
// namespace can take it off, and it goes with the namespace. ErrOwnNamespace: path is the host's.
func (f *Filter) CloseResolver(path string, ifindex int, udp, tcp bool) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := checkNamespace(ns); err != nil {
		return err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &stat); err != nil {
		return err
	}
	id := hookID{int(stat.Ino), hookResolver}
	want := resolverClosed{ifindex, f.maps.devices[ifindex].Counters, udp, tcp}
	l := f.live(id)
	switch {
	case !udp && !tcp && l == nil:
		return nil
	case !udp && !tcp:
		return f.unhookOne(id)
	case l != nil && f.resolvers[id.ifindex].resolverClosed == want:
		return f.keepPinned(id, l)
	}
	if err := f.closeResolver(ns, id, l, want); err != nil {
		return fmt.Errorf("close the resolver of %s: %w", path, err)
	}
	f.resolvers[id.ifindex] = closing{want, time.Now()}
	return nil
}

// ResolverStands reports whether what CloseResolver has put into the namespace at path is still there: somebody may have taken it off. What the
// kernel has said is believed for a while. True where the namespace is gone, of which engines leave an empty file for a minute.
func (f *Filter) ResolverStands(path string) bool {
	var fs unix.Statfs_t
	var stat unix.Stat_t
	if unix.Statfs(path, &fs) != nil || fs.Type != unix.NSFS_MAGIC || unix.Stat(path, &stat) != nil {
		return true
	}
	id := hookID{int(stat.Ino), hookResolver}
	c, closed := f.resolvers[id.ifindex]
	if closed && (time.Since(c.asked) < askAgain || time.Since(f.scanned) < askAgain && f.pinned[id]) { // a sweep asks, too
		return true
	}
	if !closed || f.live(id) == nil {
		delete(f.resolvers, id.ifindex)
		return false
	}
	f.resolvers[id.ifindex] = closing{c.resolverClosed, time.Now()}
	return true
}

// ResolverIsClosed reports whether CloseResolver has closed the namespace at path, and nobody has opened it since; true where
// there is no such namespace any more.
func (r *Reader) ResolverIsClosed(path string) bool {
	var stat unix.Stat_t
	if unix.Stat(path, &stat) != nil {
		return true
	}
	_, err := os.Stat(pinUnder(r.dir, hookID{int(stat.Ino), hookResolver}))
	return err == nil
}

func (f *Filter) closeResolver(ns *os.File, id hookID, l link.Link, want resolverClosed) error {
	program, err := f.loadResolver(want)
	if err != nil {
		return err
	}
	defer program.Close()
	if l != nil {
		return errors.Join(l.Update(program), f.keepPinned(id, l))
	}
	err = inNamespace(ns, func() error {
		l, err = link.AttachXDP(link.XDPOptions{Program: program, Interface: loopback, Flags: link.XDPGenericMode})
		return err
	})
	if err != nil {
		return err
	}
	if err := f.keepPinned(id, l); err != nil {
		return errors.Join(err, l.Close())
	}
	f.links[id] = l
	return nil
}

// resolverSpec is read once.
var resolverSpec = sync.OnceValues(loadResolver)

// loadResolver loads the program for one namespace, over the maps that all programs share. The caller closes.
func (f *Filter) loadResolver(want resolverClosed) (*ebpf.Program, error) {
	spec, err := resolverSpec()
	if err != nil {
		return nil, err
	}
	spec = spec.Copy()
	number := map[bool]uint8{true: 1}
	for name, value := range map[string]any{
		"whose": uint32(want.ifindex), "whose_counters": want.counters, "closed_udp": number[want.udp], "closed_tcp": number[want.tcp],
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, err
		}
	}
	var objs resolverPrograms
	if err := spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{MapReplacements: f.sharedMaps()}); err != nil {
		return nil, err
	}
	return objs.VethwallResolver, nil
}

// sharedMaps are those that programs beside the filter's own count and report by.
func (f *Filter) sharedMaps() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{
		"counters": f.objs.Counters, "events": f.objs.Events, "event_times": f.objs.EventTimes, "globals": f.objs.Globals,
		"devices": f.objs.Devices, "device_overflow": f.objs.DeviceOverflow, "policies": f.objs.Policies,
	}
}

// inNamespace runs f on a thread of its own in a network namespace. A thread that cannot come back ends.
func inNamespace(ns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		here, err := netns.Get()
		if err != nil {
			done <- err
			return
		}
		defer here.Close()
		if err := netns.Set(netns.NsHandle(ns.Fd())); err != nil {
			done <- err
			return
		}
		err = f()
		if back := netns.Set(here); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
