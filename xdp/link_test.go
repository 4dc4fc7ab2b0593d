package xdp

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/policy"
)

// network is a network namespace that plays the host and one that plays a container, joined by a veth:
// host0 at 192.0.2.1 and 2001:db8::1, eth0 at 192.0.2.2 and 2001:db8::2. The test's goroutine is in the host.
type network struct {
	t         *testing.T
	container netns.NsHandle
	path      string // of the container's namespace
	machine   netns.NsHandle
	host      Veth
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	needPrivileges(t)
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	own, err := netns.Get()
	must(t, err)
	host, err := netns.New()
	must(t, err)
	container, err := netns.New()
	must(t, err)
	must(t, netns.Set(host))
	t.Cleanup(func() {
		_ = netns.Set(own)
		for _, ns := range []netns.NsHandle{container, host, own} {
			_ = ns.Close()
		}
	})
	n := &network{t: t, container: container, path: "/proc/self/fd/" + itoa(int(container)), machine: own}
	n.host = n.veth("host0", "eth0")
	n.configure()
	return n
}

// veth makes a pair with one end here and one in the container.
func (n *network) veth(host, container string) Veth {
	n.t.Helper()
	must(n.t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: host}, PeerName: container, PeerNamespace: netlink.NsFd(int(n.container)),
	}))
	l, err := netlink.LinkByName(host)
	must(n.t, err)
	must(n.t, netlink.LinkSetUp(l))
	return Veth{Index: l.Attrs().Index, Name: host}
}

func (n *network) configure() {
	n.t.Helper()
	inside, err := netlink.NewHandleAt(n.container, unix.NETLINK_ROUTE)
	must(n.t, err)
	defer inside.Close()
	outside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	must(n.t, err)
	defer outside.Close()
	for _, end := range []struct {
		h     *netlink.Handle
		name  string
		addrs []string
	}{{outside, "host0", []string{"192.0.2.1/24", "2001:db8::1/64"}}, {inside, "eth0", []string{"192.0.2.2/24", "2001:db8::2/64"}}} {
		l, err := end.h.LinkByName(end.name)
		must(n.t, err)
		must(n.t, end.h.LinkSetUp(l))
		for _, a := range end.addrs {
			addr, err := netlink.ParseAddr(a)
			must(n.t, err)
			addr.Flags = 2 // IFA_F_NODAD
			must(n.t, end.h.AddrAdd(l, addr))
		}
	}
}

// inContainer runs f with the thread in the container's namespace; sockets that f opens stay there.
func (n *network) inContainer(f func()) {
	n.t.Helper()
	host, err := netns.Get()
	must(n.t, err)
	defer host.Close()
	must(n.t, netns.Set(n.container))
	defer func() { must(n.t, netns.Set(host)) }()
	f()
}

// arrives sends a datagram from the container and tells whether the host's socket gets it in time.
func (n *network) arrives(addr string, wait time.Duration) bool {
	n.t.Helper()
	sink, err := net.ListenPacket("udp", addr)
	must(n.t, err)
	defer sink.Close()
	n.inContainer(func() {
		c, err := net.Dial("udp", sink.LocalAddr().String())
		must(n.t, err)
		defer c.Close()
		_, err = c.Write([]byte("datagram"))
		must(n.t, err)
	})
	must(n.t, sink.SetReadDeadline(time.Now().Add(wait)))
	_, _, err = sink.ReadFrom(make([]byte, 64))
	return err == nil
}

const (
	soon = 2 * time.Second        // for what must arrive
	long = 150 * time.Millisecond // for what must not: on a veth it would be there in microseconds
)

func (n *network) wantUDP(want bool, when string) {
	n.t.Helper()
	for _, addr := range []string{"192.0.2.1:0", "[2001:db8::1]:0"} {
		n.wantUDPTo(addr, want, when)
	}
}

func (n *network) wantUDPTo(addr string, want bool, when string) {
	n.t.Helper()
	wait := long
	if want {
		wait = soon
	}
	if got := n.arrives(addr, wait); got != want {
		n.t.Errorf("%s: UDP to %s arrives: %v, want %v", when, addr, got, want)
	}
}

// bpffs is a directory of the test's own on the machine's bpffs.
func bpffs(t testing.TB) string {
	t.Helper()
	needPrivileges(t)
	must(t, EnsureBPFFS("/sys/fs/bpf"))
	dir, err := os.MkdirTemp("/sys/fs/bpf", "vethwall-test-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "vethwall")
}

func open(t testing.TB, dir string) *Filter {
	t.Helper()
	f, err := Open(dir)
	must(t, err)
	return f
}

// sweep sweeps as an agent does.
func sweep(f *Filter) error {
	links, err := ListLinks()
	return errors.Join(err, f.Sweep(links))
}

// listVeths are those of now.
func listVeths() (Veths, error) {
	links, err := ListLinks()
	return links.Veths(), err
}

func labelled(t testing.TB, labels string) *Tables {
	t.Helper()
	m := map[string]string{}
	for _, l := range strings.Fields(labels) {
		key, value, _ := strings.Cut(l, "=")
		m[key] = value
	}
	p, _, err := policy.Parse(m)
	must(t, err)
	tables, err := Compile(policy.Stack{{Origin: "labels", Policy: p}})
	must(t, err)
	return tables
}

func TestFilterOnAVeth(t *testing.T) {
	n := newNetwork(t)
	dir := bpffs(t)
	for _, mode := range []Mode{Generic, Native} {
		n.wantUDP(true, "before")
		f := open(t, dir)
		must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: mode}))
		n.wantUDP(false, string(mode)+" drop=udp")
		must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=tcp"), Mode: mode}))
		n.wantUDP(true, string(mode)+" drop=tcp")
		f.Close()
		n.wantUDP(true, "closed")

		r, err := OpenReader(dir)
		must(t, err)
		d, err := r.Device(n.host.Index)
		must(t, err)
		r.Close()
		if len(d.Hooks) != 2 || d.Hooks[0].Mode != string(mode) || d.Hooks[0].LinkID == 0 || d.Hooks[1].Direction != "ingress" || d.Foreign != 0 || !d.Up || d.Closed {
			t.Errorf("read back %+v", d)
		}
		must(t, Uninstall(dir))
		if r, err := OpenReader(dir); !errors.Is(err, ErrNothing) {
			t.Errorf("after uninstall: %v, %v", r, err)
		}
	}
	n.wantUDP(true, "after uninstall")
}

func TestFilterOutlivesItsProcess(t *testing.T) {
	n := newNetwork(t)
	dir := bpffs(t)
	f := open(t, dir)
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Generic}))
	before := linkID(t, f, n.host.Index)
	f.Close()
	n.wantUDP(false, "without a process")

	f = open(t, dir)
	defer f.Close()
	n.wantUDP(false, "adopted")
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Generic}))
	if after := linkID(t, f, n.host.Index); after != before {
		t.Errorf("link %d was made anew as %d", before, after)
	}
	n.wantUDP(false, "attached again")
	must(t, f.Detach(n.host.Index))
	n.wantUDP(true, "detached")
	must(t, f.Detach(n.host.Index))
}

func linkID(t *testing.T, f *Filter, ifindex int) link.ID {
	t.Helper()
	info, err := f.links[hookID{ifindex, hookXDP}].Info()
	must(t, err)
	return info.ID
}

func TestSecondAgentIsRefused(t *testing.T) {
	dir := bpffs(t)
	f := open(t, dir)
	if _, err := Open(dir); !errors.Is(err, ErrBusy) {
		t.Errorf("second Open: %v", err)
	}
	if err := Uninstall(dir); !errors.Is(err, ErrBusy) {
		t.Errorf("uninstall beside an agent: %v", err)
	}
	if !AgentRuns(dir) {
		t.Error("AgentRuns is false")
	}
	f.Close()
	if AgentRuns(dir) {
		t.Error("AgentRuns is true after Close")
	}
	open(t, dir).Close()
}

func TestForeignProgramIsNeverReplaced(t *testing.T) {
	n := newNetwork(t)
	foreign := passProgram(t)
	l, err := link.AttachXDP(link.XDPOptions{Program: foreign, Interface: n.host.Index, Flags: link.XDPGenericMode})
	must(t, err)
	f := open(t, bpffs(t))
	defer f.Close()
	if err := f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Generic}); !errors.Is(err, ErrTaken) {
		t.Fatalf("attach: %v, want ErrTaken", err)
	}
	n.wantUDP(true, "before Shut")
	fillTC(t, n.host.Index)
	byFilter, err := f.Shut(n.host.Index)
	must(t, err)
	if byFilter {
		t.Error("closed by a filter where none can be")
	}
	if up(t, n.host.Index) {
		t.Error("the device is up after Shut")
	}
	if info, err := l.Info(); err != nil || int(info.XDP().Ifindex) != n.host.Index {
		t.Errorf("the foreign link: %+v, %v", info, err)
	}

	must(t, l.Detach()) // the slot is free again
	must(t, l.Close())
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Generic}))
	if !up(t, n.host.Index) {
		t.Error("the device is down after Attach")
	}
	if n.arrives("192.0.2.1:0", long) { // the device has lost its IPv6 address
		t.Error("UDP arrives through our filter")
	}
}

// TestTakenSlotLeavesTC checks that auto goes to tc where the XDP slot is somebody else's.
func TestTakenSlotLeavesTC(t *testing.T) {
	n := newNetwork(t)
	l, err := link.AttachXDP(link.XDPOptions{Program: passProgram(t), Interface: n.host.Index, Flags: link.XDPGenericMode})
	must(t, err)
	defer l.Close()
	f := open(t, bpffs(t))
	defer f.Close()
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Auto}))
	n.wantUDP(false, "drop=udp at tc")
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=tcp"), Mode: Auto}))
	n.wantUDP(true, "drop=tcp at tc")
	if info, err := l.Info(); err != nil || int(info.XDP().Ifindex) != n.host.Index {
		t.Errorf("the foreign link: %+v, %v", info, err)
	}
}

// TestClsact does what a kernel without tcx needs: filters of a clsact qdisc that stay without a process, are replaced in
// one step and go with uninstall.
func TestClsact(t *testing.T) {
	n := newNetwork(t)
	dir := bpffs(t)
	f := open(t, dir)
	f.noTCX = true
	for range 2 {
		must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: TCX}))
		n.wantUDP(false, "drop=udp")
	}
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=tcp"), Mode: TCX}))
	n.wantUDP(true, "drop=tcp")
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.ingress.drop=all"), Mode: TCX}))
	n.wantUDP(true, "ingress.drop=all") // sent, and nothing comes back
	f.Close()
	f = open(t, dir)
	f.noTCX = true
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: TCX}))
	n.wantUDP(false, "adopted")
	r, err := OpenReader(dir)
	must(t, err)
	d, err := r.Device(n.host.Index)
	must(t, err)
	r.Close()
	if len(d.Hooks) != 2 || d.Hooks[0].Type != "tc" || d.Hooks[1].Direction != "ingress" {
		t.Errorf("read back %+v", d.Hooks)
	}
	f.Close()
	must(t, Uninstall(dir))
	n.wantUDP(true, "after uninstall")
}

// fillTC leaves no room at the tc hooks of a device: the kernel takes some 60 programs.
func fillTC(t *testing.T, ifindex int) {
	t.Helper()
	for {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.SchedCLS, License: "MIT", Name: "foreign",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
		})
		must(t, err)
		t.Cleanup(func() { p.Close() })
		l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: p, Attach: ebpf.AttachTCXIngress})
		if errors.Is(err, ebpf.ErrNotSupported) {
			t.Skip("clsact always has room")
		}
		if errors.Is(err, unix.ERANGE) {
			return
		}
		must(t, err)
		t.Cleanup(func() { l.Close() })
	}
}

func TestShutByFilter(t *testing.T) {
	n := newNetwork(t)
	f := open(t, bpffs(t))
	defer f.Close()
	for range 2 {
		byFilter, err := f.Shut(n.host.Index)
		must(t, err)
		if !byFilter || !up(t, n.host.Index) {
			t.Errorf("closed by filter: %v, device up: %v", byFilter, up(t, n.host.Index))
		}
	}
	n.wantUDP(false, "shut")
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=tcp"), Mode: Generic}))
	n.wantUDP(true, "opened")
}

// TestUninstallRaises checks that what Shut set down is up again after uninstall, and what an administrator set
// down is not.
func TestUninstallRaises(t *testing.T) {
	n := newNetwork(t)
	dir := bpffs(t)
	l, err := link.AttachXDP(link.XDPOptions{Program: passProgram(t), Interface: n.host.Index, Flags: link.XDPGenericMode})
	must(t, err)
	defer l.Close()
	fillTC(t, n.host.Index)
	other := n.veth("host1", "eth1")
	f := open(t, dir)
	_, err = f.Shut(n.host.Index)
	must(t, err)
	must(t, f.Attach(other.Index, Want{Policy: Closed(), Mode: Generic}))
	must(t, setLink(other.Index, netlink.LinkSetDown))
	f.Close()
	open(t, dir).Close() // another process in between forgets nothing
	must(t, Uninstall(dir))
	if !up(t, n.host.Index) || up(t, other.Index) {
		t.Errorf("up after uninstall: %v and %v, want true and false", up(t, n.host.Index), up(t, other.Index))
	}
}

// A device that Shut had to set down comes up when it is let go.
func TestDetachRaises(t *testing.T) {
	n := newNetwork(t)
	l, err := link.AttachXDP(link.XDPOptions{Program: passProgram(t), Interface: n.host.Index, Flags: link.XDPGenericMode})
	must(t, err)
	defer l.Close()
	fillTC(t, n.host.Index)
	f := open(t, bpffs(t))
	defer f.Close()
	byFilter, err := f.Shut(n.host.Index)
	must(t, err)
	if byFilter || up(t, n.host.Index) {
		t.Fatalf("closed by filter: %v, device up: %v", byFilter, up(t, n.host.Index))
	}
	must(t, f.Detach(n.host.Index))
	if got := filtered(f); len(got) > 0 || !up(t, n.host.Index) {
		t.Errorf("devices %v, device up: %v", got, up(t, n.host.Index))
	}
}

// filtered are the devices that have a filter.
func filtered(f *Filter) (out []int) {
	candidates := map[int]bool{}
	for ifindex := range f.maps.devices {
		candidates[ifindex] = true
	}
	for id := range f.links {
		candidates[id.ifindex] = true
	}
	for ifindex := range candidates {
		if f.Filters(ifindex) {
			out = append(out, ifindex)
		}
	}
	return out
}

// TestAttachAgain puts the same into force once more after somebody has touched what was there, and after nobody has.
func TestAttachAgain(t *testing.T) {
	n := newNetwork(t)
	dir := bpffs(t)
	f := open(t, dir)
	defer f.Close()
	nothing, err := CompileOwn(nil) // is its own, so that all is dropped, and at XDP alone: kernels before 6.6 have no tcx
	must(t, err)
	w := Want{Policy: labelled(t, "xdp.enable=true"), Own: nothing, Mode: Generic}
	must(t, f.Attach(n.host.Index, w))
	later := func() {
		if s, ok := f.standing[n.host.Index]; ok {
			s.asked = s.asked.Add(-askAgain)
			f.standing[n.host.Index] = s
		}
	}
	touches := map[string]func(link.Link){
		"a pin is removed":       func(link.Link) { must(t, os.Remove(f.pin(hookID{n.host.Index, hookXDP}))) },
		"a link is detached":     func(l link.Link) { must(t, l.Detach()) },
		"a program is exchanged": func(l link.Link) { must(t, dropAll(l)) },
		"the entry is lost":      func(link.Link) { must(t, f.objs.Devices.Put(uint32(n.host.Index), filterDevice{})) },
	}
	for what, touch := range touches {
		later()
		if !f.noTCX && !f.stands(n.host.Index, w) { // filters of clsact are looked for each time
			t.Errorf("before %s: nobody has touched it, and it is not taken for what it was", what)
		}
		l, err := link.LoadPinnedLink(f.pin(hookID{n.host.Index, hookXDP}), nil)
		must(t, err)
		touch(l)
		must(t, l.Close())
		later()
		if f.stands(n.host.Index, w) {
			t.Errorf("%s, and nobody notices", what)
		}
		must(t, f.Attach(n.host.Index, w))
		n.wantUDP(false, what)
		if lost := f.Lost(n.host.Index); !f.noTCX && lost != (what == "a link is detached") || f.Lost(n.host.Index) {
			t.Errorf("%s: somebody has taken it off: %t", what, lost)
		}
		if got := pins(t, dir); len(got) != 1 {
			t.Errorf("%s: pinned links %v", what, got)
		}
	}
	other := w
	other.Own = nil
	must(t, f.Attach(n.host.Index, other))
	n.wantUDP(true, "antispoof is off")
}

// TestForget names a device that is gone, and one that is not.
func TestForget(t *testing.T) {
	n := newNetwork(t)
	dir := bpffs(t)
	f := open(t, dir)
	defer f.Close()
	v := n.veth("host1", "eth1")
	w := Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Generic}
	must(t, f.Attach(n.host.Index, w))
	each := len(pins(t, dir))
	must(t, f.Attach(v.Index, w))
	l, err := netlink.LinkByIndex(v.Index)
	must(t, err)
	must(t, netlink.LinkDel(l))
	must(t, f.Forget(v.Index, n.host.Index))
	if got := filtered(f); len(got) != 1 || got[0] != n.host.Index || len(pins(t, dir)) != each {
		t.Errorf("filtered %v, pinned %v", got, pins(t, dir))
	}
	n.wantUDP(false, "the one that is there")
}

// TestSweepFreesEverything has one of two devices go that have a policy, a conversation table and buckets each. The one that goes has had
// an identity, which is a policy of its own, and a bridge.
func TestSweepFreesEverything(t *testing.T) {
	n := newNetwork(t)
	dir := bpffs(t)
	f := open(t, dir)
	defer f.Close()
	v := n.veth("host1", "eth1")
	own, err := CompileOwn(nil)
	must(t, err)
	stays := Want{Policy: labelled(t, "xdp.drop=udp xdp.ingress.drop=1/tcp xdp.ingress.limit=all=1gbit"), Mode: Generic}
	goes := Want{
		Policy: labelled(t, "xdp.drop=tcp,1-1000/udp@192.0.2.0/24 xdp.ingress.drop=1/tcp xdp.ingress.limit=all=1gbit"), Mode: Generic,
		Own: own, MAC: net.HardwareAddr{0, 0, 0x5e, 0, 0x53, 1}, Bridge: n.host.Index,
	}
	must(t, f.Attach(n.host.Index, stays))
	must(t, f.Attach(v.Index, goes))
	pinsEach := 2
	if f.noTCX {
		pinsEach = 1
	}
	if got := pins(t, dir); len(got) != 2*pinsEach {
		t.Errorf("pinned links %v", got)
	}
	taken(t, f, "both are there", room{devices: 2, policies: 3, identities: 1, bridges: 1, tables: 2, buckets: 2})
	l, err := netlink.LinkByIndex(v.Index)
	must(t, err)
	must(t, netlink.LinkDel(l))
	must(t, sweep(f))
	if got := pins(t, dir); len(got) != pinsEach {
		t.Errorf("pinned links after the device went: %v", got)
	}
	if got := filtered(f); len(got) != 1 || got[0] != n.host.Index {
		t.Errorf("devices %v", got)
	}
	taken(t, f, "one has gone", room{devices: 1, policies: 3, tables: 1, buckets: 1}) // a program may be reading its policies
	for id := range f.maps.unused {
		f.maps.unused[id] = time.Now().Add(-grace)
	}
	must(t, sweep(f))
	taken(t, f, "a grace later", room{devices: 1, policies: 1, tables: 1, buckets: 1})
	n.wantUDP(false, "the other device")
}

// room is how much of the maps is in use.
type room struct{ devices, policies, identities, bridges, tables, buckets int }

// taken compares it with what the next process would read in the kernel.
func taken(t *testing.T, f *Filter, when string, want room) {
	t.Helper()
	p, err := newPool(&f.objs)
	must(t, err)
	got := room{len(p.devices), len(p.policies), len(p.identities), len(p.bridges), 0, 0}
	must(t, readMap(f.objs.States, func(_ uint32, in filterShared) {
		got.tables += min(1, int(in.State))
		got.buckets += min(1, int(in.Buckets))
	}))
	if s := f.maps.states; got != want || len(s.tables.users) != want.tables || len(s.buckets.users) != want.buckets {
		t.Errorf("%s: in use are %+v, want %+v; tables %v, buckets %v", when, got, want, s.tables.users, s.buckets.users)
	}
}

func TestEqualPoliciesAreShared(t *testing.T) {
	n := newNetwork(t)
	f := open(t, bpffs(t))
	defer f.Close()
	v := n.veth("host1", "eth1")
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp,tcp"), Mode: Generic}))
	must(t, f.Attach(v.Index, Want{Policy: labelled(t, "xdp.drop=tcp,udp"), Mode: Generic}))
	if len(f.maps.policies) != 1 {
		t.Errorf("%d policies for two devices that have the same", len(f.maps.policies))
	}
}

// TestDevicesThatShareASlot writes two devices whose numbers collide and checks that each keeps its own.
func TestDevicesThatShareASlot(t *testing.T) {
	f := open(t, bpffs(t))
	defer f.Close()
	a, b := 77, 77+deviceSlots
	must(t, f.maps.setPolicy(a, Want{Policy: labelled(t, "xdp.drop=udp")}, 0))
	must(t, f.maps.setPolicy(b, Want{Policy: labelled(t, "xdp.drop=tcp")}, 0))
	must(t, f.maps.setPolicy(a, Want{Policy: labelled(t, "xdp.drop=gre")}, 0))
	again, err := newPool(&f.objs)
	must(t, err)
	for _, ifindex := range []int{a, b} {
		if got, want := again.devices[ifindex], f.maps.devices[ifindex]; got != want || want.Policy == 0 {
			t.Errorf("ifindex %d: read back %+v, want %+v", ifindex, got, want)
		}
	}
	must(t, f.maps.remove(a))
	must(t, f.maps.setPolicy(b, Want{Policy: labelled(t, "xdp.drop=igmp")}, 0))
	must(t, f.maps.remove(b))
	if again, err = newPool(&f.objs); err != nil || len(again.devices) != 0 {
		t.Errorf("left: %v, %v", again.devices, err)
	}
}

func TestVethsIn(t *testing.T) {
	n := newNetwork(t)
	v := n.veth("host1", "eth1")
	all, err := listVeths()
	must(t, err)
	in, err := all.In(n.path)
	must(t, err)
	if len(in) != 2 || in[0].Index != n.host.Index || in[1].Index != v.Index {
		t.Errorf("veths of the container: %+v", in)
	}
	if _, err := all.In("/proc/thread-self/ns/net"); !errors.Is(err, ErrOwnNamespace) {
		t.Errorf("own namespace: %v", err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	must(t, os.WriteFile(plain, nil, 0o600))
	if _, err := all.In(plain); err == nil || !strings.Contains(err.Error(), "rslave") {
		t.Errorf("plain file: %v", err)
	}
	if _, err := all.In(plain + "-missing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	stranger, err := netns.New()
	must(t, err)
	defer stranger.Close()
	if in, err := all.In("/proc/self/fd/" + itoa(int(stranger))); err != nil && !errors.Is(err, ErrOwnNamespace) || len(in) != 0 {
		t.Errorf("a namespace without veths: %v, %v", in, err)
	}
}

func TestRecords(t *testing.T) {
	dir := bpffs(t)
	f := open(t, dir)
	defer f.Close()
	id, other := strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	for _, text := range []string{"short", strings.Repeat("long", 40000), "short again", ""} {
		must(t, f.SaveRecord(id, []byte(text)))
		must(t, f.SaveRecord(other, []byte("other")))
		r, err := OpenReader(dir)
		must(t, err)
		all, err := r.Records()
		must(t, err)
		r.Close()
		if len(all) != 2 || string(all[id]) != text || string(all[other]) != "other" {
			t.Fatalf("%d records; %d bytes, want %d", len(all), len(all[id]), len(text))
		}
	}
	must(t, f.SaveRecord(id, []byte(strings.Repeat("x", 3000))))
	key, _ := recordKey(id)
	key.Part = 1
	must(t, f.objs.Containers.Delete(key))
	all, err := f.Records()
	must(t, err)
	if text, there := all[id]; !there || text != nil {
		t.Errorf("a damaged record reads %q, %v", text, there)
	}
	must(t, f.DeleteRecord(other))
	must(t, f.DeleteRecord(other))
	for _, lost := range []uint32{0, 1, 2} {
		must(t, f.SaveRecord(id, []byte(strings.Repeat("x", 3000))))
		key.Part = lost
		must(t, f.objs.Containers.Delete(key))
		must(t, f.DeleteRecord(id))
		// What comes after a gap nobody reads; it goes with what is read.
		must(t, f.DeleteRecord(id))
		if all, err = f.Records(); err != nil || len(all) != 0 {
			t.Errorf("without part %d, and deleted: %q, %v", lost, all, err)
		}
	}
	if err := f.SaveRecord("short", nil); err == nil {
		t.Error("a record of a short id was taken")
	}
}

// TestDamage opens directories that a crash or a stranger has left in disorder.
func TestDamage(t *testing.T) {
	n := newNetwork(t)
	for name, damage := range map[string]func(dir string){
		"a pin of something else": func(dir string) {
			must(t, passProgram(t).Pin(filepath.Join(dir, "links", "7-xdp")))
		},
		"the pin of the link is gone": func(dir string) {
			must(t, os.Remove(filepath.Join(dir, "links", itoa(n.host.Index)+"-xdp")))
		},
		"the maps are gone": func(dir string) {
			m, err := filepath.Glob(filepath.Join(dir, "maps-*"))
			must(t, err)
			must(t, os.RemoveAll(m[0]))
		},
		"one map is gone": func(dir string) {
			m, err := filepath.Glob(filepath.Join(dir, "maps-*", "devices"))
			must(t, err)
			must(t, os.Remove(m[0]))
		},
	} {
		dir := bpffs(t)
		f := open(t, dir)
		must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Generic}))
		f.Close()
		damage(dir)
		f = open(t, dir)
		must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Generic}))
		n.wantUDP(false, name)
		f.Close()
		must(t, Uninstall(dir))
		n.wantUDP(true, name+", uninstalled")
	}
}

// TestPinRemovedUnderAgent removes a pin while the filter is open: it stays in force and gets its pin back.
func TestPinRemovedUnderAgent(t *testing.T) {
	n := newNetwork(t)
	dir := bpffs(t)
	f := open(t, dir)
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Generic}))
	must(t, os.Remove(f.pin(hookID{n.host.Index, hookXDP})))
	n.wantUDP(false, "pin removed")
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Generic}))
	f.Close()
	n.wantUDP(false, "pinned again")
}

func TestByHand(t *testing.T) {
	n := newNetwork(t)
	dir := bpffs(t)
	dropper, err := LoadObject("../examples/article/dropper.o", ".text")
	must(t, err)
	defer dropper.Close()
	udp, err := LoadObject("../examples/article/udp.o", "dropper_main")
	must(t, err)
	defer udp.Close()

	// A container without labels, no agent.
	must(t, AttachByHand(dir, n.host.Index, udp, Generic))
	if got := n.arrives("192.0.2.1:0", long); got {
		t.Error("udp.o lets UDP pass")
	}
	if err := AttachByHand(dir, n.host.Index, dropper, Generic); err == nil {
		t.Error("a second program was attached")
	}
	must(t, DetachByHand(dir, n.host.Index))
	n.wantUDP(true, "udp.o detached")
	if err := DetachByHand(dir, n.host.Index); !errors.Is(err, ErrNotByHand) {
		t.Errorf("detached twice: %v", err)
	}

	// One with a policy and an agent that keeps at it.
	f := open(t, dir)
	defer f.Close()
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=tcp"), Mode: Generic}))
	must(t, AttachByHand(dir, n.host.Index, dropper, Generic))
	if got := f.Filtered(); !slices.Equal(got, []int{n.host.Index}) {
		t.Errorf("filtered are %v", got)
	}
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=tcp"), Mode: Generic}))
	n.wantUDP(false, "dropper.o")
	r, err := OpenReader(dir)
	must(t, err)
	defer r.Close()
	d, err := r.Device(n.host.Index)
	must(t, err)
	if len(d.Hooks) != 3 || d.Hooks[2].ByHand == "" || d.Hooks[0].Type == "xdp" {
		t.Errorf("read back %+v", d.Hooks)
	}
	must(t, DetachByHand(dir, n.host.Index))
	n.wantUDP(true, "policy back")
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Generic}))
	n.wantUDP(false, "next policy")
}

// TestByHandBesideBothHooks has an agent look while a program by hand is there: when that goes tc ingress stays, where it followed XDP before.
func TestByHandBesideBothHooks(t *testing.T) {
	udp, err := LoadObject("../examples/article/udp.o", "")
	must(t, err)
	defer udp.Close()
	for _, raw := range []bool{true, false} {
		n := newNetwork(t)
		dir := bpffs(t)
		f := open(t, dir)
		defer f.Close()
		w := Want{Policy: labelled(t, "xdp.egress.drop=tcp"), Raw: raw}
		must(t, f.Attach(n.host.Index, w))
		must(t, AttachByHand(dir, n.host.Index, udp, Generic))
		delete(f.standing, n.host.Index) // as if it were later
		must(t, f.Attach(n.host.Index, w))
		must(t, DetachByHand(dir, n.host.Index))
		if got := f.has(hookID{n.host.Index, hookSent}); got != raw {
			t.Errorf("raw frames %t: at tc ingress: %t", raw, got)
		}
		must(t, f.Attach(n.host.Index, w))
		n.wantUDP(true, "drop=tcp")
	}
}

// TestByHandAgain attaches, detaches and attaches again beside an agent that has seen the first program: the second one
// and its pin stay.
func TestByHandAgain(t *testing.T) {
	n := newNetwork(t)
	dir := bpffs(t)
	udp, err := LoadObject("../examples/article/udp.o", "")
	must(t, err)
	defer udp.Close()
	f := open(t, dir)
	defer f.Close()
	for range 2 {
		must(t, AttachByHand(dir, n.host.Index, udp, Generic))
		must(t, sweep(f))
		if got := f.Filtered(); f.Filters(n.host.Index) || len(got) > 0 {
			t.Errorf("a program by hand alone counts as a filter: %v", got)
		}
		if n.arrives("192.0.2.1:0", long) {
			t.Error("udp.o lets UDP pass")
		}
		must(t, DetachByHand(dir, n.host.Index))
	}
	must(t, AttachByHand(dir, n.host.Index, udp, Generic))
	must(t, sweep(f))
	must(t, DetachByHand(dir, n.host.Index))
}

func TestLoadObjectErrors(t *testing.T) {
	needPrivileges(t)
	for _, c := range []struct{ path, section, want string }{
		{"../examples/article/udp.o", "nothing", `no program in section "nothing"`},
		{"../examples/article/none.o", "", "no such file"},
		{"link_test.go", "", "is it an object"},
		{"filter_bpfel.o", ".text", "maps or other functions"},
	} {
		p, err := LoadObject(c.path, c.section)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, %v; want an error with %q", c.path, c.section, p, err, c.want)
		}
	}
	for _, section := range []string{"", "dropper_main"} {
		p, err := LoadObject("../examples/article/udp.o", section)
		must(t, err)
		p.Close()
	}
	p, err := LoadObject("../examples/article/dropper.o", "")
	must(t, err)
	p.Close()
}

func up(t *testing.T, ifindex int) bool {
	t.Helper()
	l, err := netlink.LinkByIndex(ifindex)
	must(t, err)
	return l.Attrs().Flags&net.FlagUp != 0
}

func pins(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "links"))
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func passProgram(t *testing.T) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "MIT", Name: "foreign",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
	})
	must(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

func itoa(n int) string { return strconv.Itoa(n) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestHalved takes away one of the two hooks that judge what a container sends, while no agent runs.
func TestHalved(t *testing.T) {
	n := newNetwork(t)
	for _, c := range []struct {
		want   Want
		hook   string
		halved bool
	}{
		{Want{Policy: labelled(t, "xdp.drop=udp"), Raw: true}, hookSent, true},
		{Want{Policy: labelled(t, "xdp.egress.limit=udp=1pps")}, hookSent, true},
		{Want{Policy: labelled(t, "xdp.drop=udp"), BothHooks: true}, hookXDP, true},
		{Want{Policy: labelled(t, "xdp.drop=udp"), BothHooks: true}, hookReceived, false}, // without it there is no filter for what is received
		{Want{Policy: labelled(t, "xdp.drop=udp")}, hookXDP, false},
		{Want{Policy: labelled(t, "xdp.egress.limit=udp=1pps"), Mode: TCX}, hookSent, false},
	} {
		dir := bpffs(t)
		f := open(t, dir)
		must(t, f.Attach(n.host.Index, c.want))
		pinned := c.hook == hookXDP || !f.noTCX // a filter of clsact has no pin that can go
		f.Close()
		r, err := OpenReader(dir)
		must(t, err)
		if d, err := r.Device(n.host.Index); err != nil || d.Halved {
			t.Errorf("%s: halved with all its hooks, %v", c.hook, err)
		}
		_ = os.Remove(filepath.Join(dir, "links", strconv.Itoa(n.host.Index)+"-"+c.hook))
		if d, err := r.Device(n.host.Index); err != nil || d.Halved != (c.halved && pinned) {
			t.Errorf("%s is gone: halved %t, %v", c.hook, d.Halved, err)
		}
		r.Close()
		must(t, Uninstall(dir))
	}
}
