package xdp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// askers are the containers that may not ask the engine's resolver, as the program knows them that judges what sockets send. It is
// there from the first of them on, and ends with this process: what is closed by CloseResolver stays so.
type askers struct {
	ids    *ebpf.Map
	link   link.Link // nil while nobody is closed
	closed map[string]resolverClosed
	failed error // it cannot be there, and is not tried again
}

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
	if f.askers.failed == nil && f.askers.link == nil {
		f.askers.failed = f.watchAskers()
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

// watchAskers attaches the program to the root of the host's cgroups.
func (f *Filter) watchAskers() error {
	root, err := hostCgroups()
	if err != nil {
		return err
	}
	spec, err := loadAsker()
	if err != nil {
		return err
	}
	var objs struct { // and no more: each map that is shared would be opened once more
		Askers        *ebpf.Map     `ebpf:"askers"`
		VethwallAsker *ebpf.Program `ebpf:"vethwall_asker"`
	}
	if err := spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{MapReplacements: f.sharedMaps()}); err != nil {
		return err
	}
	defer objs.VethwallAsker.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: root, Attach: ebpf.AttachCGroupInetEgress, Program: objs.VethwallAsker})
	if err != nil {
		return errors.Join(err, objs.Askers.Close())
	}
	f.askers = askers{ids: objs.Askers, link: l, closed: map[string]resolverClosed{}}
	return nil
}

// TryCloseResolverTo says why CloseResolverTo would fail on this host, as far as that can be told without doing it.
func TryCloseResolverTo() error {
	if _, err := hostCgroups(); err != nil {
		return err
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return fmt.Errorf("the kernel does not say how its structures are laid out: %w", err)
	}
	return nil
}

func (a *askers) close() {
	if a.link != nil {
		_ = a.link.Close()
		_ = a.ids.Close()
	}
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
