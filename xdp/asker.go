package xdp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// askers are the containers that may not ask the engine's resolver, as the program knows them that judges what sockets send. It is
// there from the first of them on until there is none any more, and outlives this process.
type askers struct {
	ids    *ebpf.Map
	link   link.Link // nil while nobody is closed
	closed map[string]resolverClosed
	// next is this version's program while an agent's before this one is in force, whose map may be another; nil else.
	next   *ebpf.Program
	failed error // why it could not be there when that was tried last
	tried  time.Time
}

// askersRetry is how long after it could not be there that is tried again.
const askersRetry = 10 * time.Second

func askersDir(dir string) string { return filepath.Join(dir, "askers") }

func askersLink(dir string) string { return filepath.Join(askersDir(dir), "link") }

// CloseResolverTo is CloseResolver for a container by its id, 64 hexadecimal digits, which may be given before the container
// has a namespace or a veth, ifindex 0: its very first query is dropped. It goes by the names of cgroups (v2), which have the id in
// them, docker-ID.scope or ID. An error says that first queries are not held; whether the container's later ones are is for
// CloseResolver.
func (f *Filter) CloseResolverTo(id string, ifindex int, udp, tcp bool) error {
	want := resolverClosed{ifindex: ifindex, udp: udp, tcp: tcp}
	if ifindex != 0 {
		want.counters = f.maps.devices[ifindex].Counters
	}
	if !udp && !tcp {
		want = resolverClosed{}
	}
	if f.askers.closed[id] == want {
		return nil
	}
	key := askerContainerId{}
	if len(id) != len(key.Digits) {
		return fmt.Errorf("container id %q has not %d digits", id, len(key.Digits))
	}
	for i, digit := range []byte(id) {
		key.Digits[i] = int8(digit) // #nosec G115 -- a digit
	}
	if want == (resolverClosed{}) {
		delete(f.askers.closed, id)
		if err := f.askers.ids.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("open the resolver to %.12s: %w", id, err)
		}
		return nil
	}
	if f.askers.link == nil && time.Since(f.askers.tried) > askersRetry {
		f.askers.failed, f.askers.tried = f.watchAskers(), time.Now()
	}
	if err := f.askers.failed; err != nil {
		return fmt.Errorf("close the resolver to %.12s: %w", id, err)
	}
	number := map[bool]uint8{true: 1}
	value := askerAsker{Ifindex: uint32(ifindex), Counters: want.counters, ClosedUdp: number[udp], ClosedTcp: number[tcp]} // #nosec G115 -- an ifindex
	if err := f.askers.ids.Put(key, value); err != nil {
		return fmt.Errorf("close the resolver to %.12s: %w", id, err)
	}
	f.askers.closed[id] = want
	return nil
}

// adoptAskers takes over what an agent before this one has closed.
func (f *Filter) adoptAskers() {
	if _, err := os.Lstat(askersLink(f.dir)); err == nil {
		f.askers.failed, f.askers.tried = f.watchAskers(), time.Now()
	}
}

// watchAskers attaches the program to the root of the host's cgroups, or takes over the one that is there.
func (f *Filter) watchAskers() error {
	root, err := hostCgroups()
	if err != nil {
		return err
	}
	ids, program, err := f.loadAsker()
	if err != nil {
		return err
	}
	a := askers{ids: ids, next: program, closed: map[string]resolverClosed{}}
	err = readMap(ids, func(key askerContainerId, value askerAsker) {
		id := make([]byte, len(key.Digits))
		for i, digit := range key.Digits {
			id[i] = byte(digit) // #nosec G115 -- a digit
		}
		a.closed[string(id)] = resolverClosed{int(value.Ifindex), value.Counters, value.ClosedUdp != 0, value.ClosedTcp != 0}
	})
	if err == nil {
		if a.link, err = link.LoadPinnedLink(askersLink(f.dir), nil); err != nil {
			_ = os.Remove(askersLink(f.dir)) // not there, or none
			err = a.attach(root)
		}
	}
	if err == nil {
		err = a.keepPinned(f.dir)
	}
	if err != nil {
		a.close()
		return err
	}
	f.askers = a
	return nil
}

// loadAsker loads the program over the map that is pinned, which it makes where there is none, or another version's.
func (f *Filter) loadAsker() (*ebpf.Map, *ebpf.Program, error) {
	spec, err := loadAsker()
	if err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(askersDir(f.dir), 0o700); err != nil {
		return nil, nil, err
	}
	const name = "askers"
	spec.Maps[name].Pinning = ebpf.PinByName
	var objs struct { // and no more: each map that is shared would be opened once more
		Askers        *ebpf.Map     `ebpf:"askers"`
		VethwallAsker *ebpf.Program `ebpf:"vethwall_asker"`
	}
	options := &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: askersDir(f.dir)}, MapReplacements: f.sharedMaps()}
	if err = spec.LoadAndAssign(&objs, options); err != nil && os.Remove(filepath.Join(askersDir(f.dir), name)) == nil {
		err = spec.LoadAndAssign(&objs, options)
	}
	return objs.Askers, objs.VethwallAsker, err
}

// attach puts the program into force that is loaded.
func (a *askers) attach(root string) (err error) {
	a.link, err = link.AttachCgroup(link.CgroupOptions{Path: root, Attach: ebpf.AttachCGroupInetEgress, Program: a.next})
	if err == nil {
		_ = a.next.Close()
		a.next = nil
	}
	return err
}

// replace puts this version's program in the place of the one that an agent before has left. To be called when all that is closed is in
// the map: that one may have had another.
func (a *askers) replace(dir string) error {
	if a.next == nil {
		return nil
	}
	if err := a.link.Update(a.next); err == nil {
		_ = a.next.Close()
		a.next = nil
		return nil
	}
	root, err := hostCgroups() // somebody has detached it
	if err != nil {
		return err
	}
	old := a.link
	if err := a.attach(root); err != nil {
		a.link = old
		return err
	}
	_ = old.Close()
	_ = os.Remove(askersLink(dir))
	return a.keepPinned(dir)
}

// keepPinned gives map and link their pins, unless they have them.
func (a *askers) keepPinned(dir string) error {
	if a.link == nil {
		return nil
	}
	errs := []error{os.MkdirAll(askersDir(dir), 0o700)}
	for path, pinned := range map[string]interface {
		Pin(path string) error
		Unpin() error
	}{filepath.Join(askersDir(dir), "askers"): a.ids, askersLink(dir): a.link} {
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			_ = pinned.Unpin() // the library may believe that it is pinned
			errs = append(errs, pinned.Pin(path))
		}
	}
	return errors.Join(errs...)
}

// SweepResolver opens the resolver to containers that are not known any more. CloseResolverTo outlives what called it.
func (f *Filter) SweepResolver(known func(id string) bool) error {
	var errs []error
	for id := range f.askers.closed {
		if !known(id) {
			errs = append(errs, f.CloseResolverTo(id, 0, false, false))
		}
	}
	if f.askers.link != nil && f.askers.next == nil && len(f.askers.closed) == 0 {
		errs = append(errs, f.askers.link.Unpin(), f.askers.ids.Unpin(), os.Remove(askersDir(f.dir)))
		f.askers.close()
		f.askers = askers{}
	}
	return errors.Join(errs...)
}

// TryCloseResolverTo says why CloseResolverTo would fail on this host, as far as that can be told without doing it.
func TryCloseResolverTo() error {
	if _, err := hostCgroups(); err != nil {
		return err
	}
	return HasLayouts()
}

func (a *askers) close() {
	if a.link != nil {
		_ = a.link.Close()
	}
	_, _ = a.ids.Close(), a.next.Close() // nil is none
}

// hostCgroups is where the root of the host's cgroups v2 is mounted: for the host's first process, as a container has a root of its
// own. Where v1 is in use beside it runc puts containers into both.
func hostCgroups() (string, error) {
	const rootInode = 1 // of every kernfs
	for _, above := range []string{"/proc/1/root", ""} {
		for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			path := filepath.Join(above, dir)
			var fs unix.Statfs_t
			var stat unix.Stat_t
			if unix.Statfs(path, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC && unix.Stat(path, &stat) == nil && stat.Ino == rootInode {
				return path, nil
			}
		}
	}
	return "", errors.New("the root of the host's cgroups v2 is not seen")
}
