// Package xdp is what the kernel runs: it compiles policies into the maps of the programs in bpf/, attaches
// them to veths by pinned links, keeps records of containers beside them, and reads all of it back.
//
// The kernel is the only database: a new process finds everything under a directory of a bpffs. The
// package finds the veths of a network namespace, but knows nothing of Docker.
package xdp

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

//go:generate go tool bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -go-package xdp -type node -type table -type policy -type device -type counter_block -type record_key -type record_part -type flow_key -type identity -type neighbor_key -type bucket_set -type shared -type event -type global filter ../bpf/vethwall.c -- -O2 -mcpu=v3 -mllvm -disable-block-placement -Wall -Werror -I/usr/include/x86_64-linux-gnu
//go:generate go tool bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -go-package xdp resolver ../bpf/resolver.c -- -O2 -mcpu=v3 -mllvm -disable-block-placement -Wall -Werror -I/usr/include/x86_64-linux-gnu
//go:generate go tool bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -go-package xdp -type asker -type container_id asker ../bpf/asker.c -- -O2 -mcpu=v3 -mllvm -disable-block-placement -Wall -Werror -I/usr/include/x86_64-linux-gnu

// DefaultDir is where everything is pinned unless the user says otherwise.
const DefaultDir = "/sys/fs/bpf/vethwall"

// ErrBusy is returned by Open while another process has the directory open.
var ErrBusy = errors.New("another vethwall agent runs on this host")

// Filter is the data plane under one directory, open for change. It is not safe for concurrent use.
//
// Below the directory stand links/ with a pinned link for each hook, programs/ with those of the operator's, askers/ with what closes
// the engine's resolver by the container's id, and a
// directory named by the layout of the maps, so that two versions of the program never share maps that differ.
type Filter struct {
	dir  string
	lock *os.File
	// mapsDir is that of this version's maps.
	mapsDir   string
	objs      filterObjects
	maps      *pool
	neighbors neighbors
	// links are our pinned links. Their file descriptors stay open, so that a filter stays when somebody
	// removes its pin.
	links map[hookID]link.Link
	held  map[int]bool    // devices that have the hold's programs and no policy of their own
	loose map[hookID]bool // links that the hold has made, without pins
	// resolvers are what we have closed since Open, by inode of the namespace.
	resolvers map[int]closing
	askers    askers
	// programs are those of the operator's that are loaded.
	programs map[digest]loadedProgram
	ids      map[*ebpf.Program]ebpf.ProgramID // of our own
	// seen are the links of which the kernel has said, since Attach began, that they are attached, and their programs; nil while it is not at work.
	seen map[hookID]ebpf.ProgramID
	// standing is what Attach has left on devices.
	standing map[int]standing
	// pinned is what scanPins found when Sweep last called it, at scanned.
	pinned  map[hookID]bool
	scanned time.Time
	lost    map[int]bool   // see Lost
	guarded map[int]bool   // devices of which tc ingress marks what it lets pass
	downed  map[int]bool   // devices that Shut has set down, and that have no entry
	closing sync.WaitGroup // links of devices that are gone
	// tcx: the kernel has it, and noTCX: it has none (before 6.6), and clsact takes its place. Neither: nobody has looked.
	tcx, noTCX bool
	damage     error
}

// Open loads the programs, and creates or adopts the maps and links under dir, which must be on a bpffs. Links
// that are there keep the program that they have until Attach names their device. The caller closes; closing
// changes nothing in the kernel. ErrBusy: dir is open elsewhere.
func Open(dir string) (*Filter, error) {
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	f := &Filter{
		dir: dir, lock: lock, held: map[int]bool{}, loose: map[hookID]bool{}, resolvers: map[int]closing{}, programs: map[digest]loadedProgram{},
		standing: map[int]standing{}, lost: map[int]bool{}, guarded: map[int]bool{}, downed: map[int]bool{},
	}
	if err := f.load(); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (f *Filter) load() error {
	spec, err := loadFilter()
	if err != nil {
		return err
	}
	if err := f.setAside(spec); err != nil {
		return fmt.Errorf("set damaged maps aside: %w", err)
	}
	f.mapsDir = mapsDir(f.dir, spec)
	for _, d := range []string{f.mapsDir, f.linksDir()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("%w; is %s on a bpffs?", err, f.dir)
		}
	}
	if err := f.loadInto(spec); err != nil {
		return err
	}
	f.inheritRecords(f.mapsDir)
	if err := f.makeStamp(); err != nil {
		return err
	}
	if f.maps, err = newPool(&f.objs); err != nil {
		return err
	}
	if f.neighbors, err = newNeighbors(f.objs.Neighbors); err != nil {
		return err
	}
	if err := f.adopt(); err != nil {
		return err
	}
	f.ids = map[*ebpf.Program]ebpf.ProgramID{}
	for _, p := range []*ebpf.Program{f.objs.VethwallXdp, f.objs.VethwallSent, f.objs.VethwallReceived} {
		f.ids[p] = programID(p)
	}
	f.adoptAskers()
	f.tcx = f.haveTCX()
	f.noTCX = !f.tcx
	return nil
}

// makeStamp draws the number by which tc ingress knows what XDP has judged, once for the life of the maps.
func (f *Filter) makeStamp() error {
	var g filterGlobal
	if err := f.objs.Globals.Lookup(uint32(0), &g); err != nil {
		return fmt.Errorf("read map globals: %w", err)
	}
	if g.Stamp != 0 {
		return nil
	}
	for g.Stamp == 0 {
		var random [8]byte
		_, _ = rand.Read(random[:]) // never fails
		g.Stamp = binary.LittleEndian.Uint64(random[:])
	}
	if err := f.objs.Globals.Put(uint32(0), g); err != nil {
		return fmt.Errorf("write map globals: %w", err)
	}
	return nil
}

// loadInto loads the programs over the pinned maps, which it makes where they are missing.
func (f *Filter) loadInto(spec *ebpf.CollectionSpec) error {
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinByName
	}
	options := &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: mapsDir(f.dir, spec)}}
	if HasLayouts() != nil {
		none, err := btf.NewBuilder(nil, nil)
		if err != nil {
			return err
		}
		if options.Programs.KernelTypes, err = none.Spec(); err != nil { // then the programs look at none
			return err
		}
	}
	if err := spec.LoadAndAssign(&f.objs, options); err != nil {
		return fmt.Errorf("load the filter: %w", err)
	}
	return nil
}

// HasLayouts says why the kernel does not say how its structures are laid out (BTF), nil where it does.
func HasLayouts() error {
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return fmt.Errorf("the kernel does not say how its structures are laid out: %w", err)
	}
	return nil
}

// Close releases what the process holds. Filters stay in force.
func (f *Filter) Close() {
	f.askers.close()
	f.closing.Wait()
	f.closeLinks()
	for _, l := range f.programs {
		_ = l.program.Close()
	}
	_ = f.objs.Close()
	_ = f.lock.Close()
}

// repin gives maps their pins back, which status and the next agent look for.
func (f *Filter) repin() error {
	var errs []error
	for name, m := range map[string]*ebpf.Map{
		"answered": f.objs.Answered, "containers": f.objs.Containers, "counters": f.objs.Counters,
		"device_overflow": f.objs.DeviceOverflow, "devices": f.objs.Devices, "fragments": f.objs.Fragments,
		"nodes": f.objs.Nodes, "policies": f.objs.Policies, "states": f.objs.States, "unanswered": f.objs.Unanswered,
		"buckets": f.objs.Buckets, "event_times": f.objs.EventTimes, "events": f.objs.Events, "globals": f.objs.Globals,
		"identities": f.objs.Identities, "bridges": f.objs.Bridges, "neighbors": f.objs.Neighbors,
	} {
		path := filepath.Join(f.mapsDir, name)
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		_ = m.Unpin() // the library believes that it is pinned
		errs = append(errs, os.MkdirAll(f.mapsDir, 0o700), m.Pin(path))
	}
	return errors.Join(errs...)
}

func (f *Filter) closeLinks() {
	for _, l := range f.links {
		_ = l.Close()
	}
}

// lockDir creates dir and takes it for this process alone. The lock ends with the process.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("%w; is it on a bpffs? see vethwall doctor", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	// AgentRuns may have it for a moment.
	for range 10 {
		if err = unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		_ = d.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrBusy
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return d, nil
}

// relock takes the directory again where somebody has removed it and it was made anew: the lock is on what was removed.
func (f *Filter) relock() error {
	if !f.Misplaced() {
		return nil
	}
	lock, err := lockDir(f.dir)
	if err != nil {
		return err
	}
	_ = f.lock.Close()
	f.lock = lock
	clear(f.standing) // without their pins
	return nil
}

// format is the number of what the maps' values mean; it changes where their types do not.
const format = 4

// mapsDir names the directory of the maps by a hash of their layout: cilium/ebpf calls a pinned map compatible
// by type, sizes and flags only, and a struct whose fields moved would pass.
func mapsDir(dir string, spec *ebpf.CollectionSpec) string {
	h := sha256.New()
	fmt.Fprintln(h, "format", format)
	var names []string
	for name := range spec.Maps {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		m := spec.Maps[name]
		fmt.Fprintln(h, name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags)
		if in := m.InnerMap; in != nil {
			fmt.Fprintln(h, in.Type, in.KeySize, in.ValueSize, in.MaxEntries, in.Flags)
		}
		for _, t := range []btf.Type{m.Key, m.Value} {
			fields, _ := new(btf.GoFormatter).TypeDeclaration("t", t)
			fmt.Fprintln(h, fields)
		}
	}
	return filepath.Join(dir, fmt.Sprintf("maps-%x", h.Sum(nil)[:6]))
}

func (f *Filter) linksDir() string { return filepath.Join(f.dir, "links") }

// Retire removes the maps of other versions, and the program of another that closes the resolver by its own. Programs that still use them keep them in being; call it once
// every device has its policy in the maps of this version, and what is closed was closed anew.
func (f *Filter) Retire() error {
	dirs, err := filepath.Glob(filepath.Join(f.dir, "maps-*"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if d != f.mapsDir {
			err = errors.Join(err, os.RemoveAll(d))
		}
	}
	return errors.Join(err, f.askers.replace(f.dir))
}

// Uninstall takes everything under dir out of the kernel, whatever state it is in, and removes dir.
// ErrBusy while an agent runs.
func Uninstall(dir string) error {
	if AgentRuns(dir) {
		return ErrBusy
	}
	rules := newRuleset(dir)
	_, guarded, _, _ := rules.read() // none where there is no table
	if err := rules.remove(); err != nil {
		return err
	}
	for _, ifindex := range guarded {
		_ = setLink(ifindex, seesGroups(0)) // it may be gone
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	raiseDowned(dir)
	removeClsact(dir)
	pins, _ := filepath.Glob(filepath.Join(dir, "links", "*"))
	for _, pin := range append(pins, askersLink(dir)) {
		// Removing the pin of a link ends it too, but some time later.
		if l, err := link.LoadPinnedLink(pin, nil); err == nil {
			_ = l.Detach()
			_ = l.Close()
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

// removeClsact removes the filters that are no links from the devices that the maps know.
func removeClsact(dir string) {
	eachDevice(dir, func(d filterDevice) {
		for _, hook := range []string{hookSent, hookReceived} {
			_ = clsactDetach(hookID{int(d.Ifindex), hook})
		}
	})
}

// raiseDowned sets up again what Shut set down, as far as the maps still tell.
func raiseDowned(dir string) {
	f := &Filter{dir: dir, links: map[hookID]link.Link{}}
	defer f.closeLinks()
	eachDevice(dir, func(d filterDevice) {
		if d.Policy == 0 && !f.hooked(int(d.Ifindex)) {
			_ = setLink(int(d.Ifindex), netlink.LinkSetUp)
		}
	})
}

// eachDevice calls f for every device in any version's maps that can be read.
func eachDevice(dir string, f func(filterDevice)) {
	pins, _ := filepath.Glob(filepath.Join(dir, "maps-*", "devices"))
	for _, pin := range pins {
		m, err := ebpf.LoadPinnedMap(pin, nil)
		if err != nil {
			continue
		}
		_ = readMap(m, func(_ uint32, d filterDevice) {
			if d.Ifindex != 0 {
				f(d)
			}
		})
		_ = m.Close()
	}
}

// grace is how long after its last use a part of the maps may still be read by a program that runs: far
// longer than a program can take.
const grace = time.Second

// synchronize returns when no program still runs that began before the call (membarrier(2): the kernel's
// synchronize_rcu).
func synchronize() {
	const global = 1
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		time.Sleep(grace)
	}
}
