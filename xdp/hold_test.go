package xdp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/policy/policytest"
)

// bridged is a network namespace that plays the host, with a bridge at 192.0.2.1 and 2001:db8::1.
type bridged struct {
	t      *testing.T
	host   netns.NsHandle
	bridge netlink.Link
	plugs  []plug
}

// plug is a container on the bridge: 192.0.2.10 and up.
type plug struct {
	Port
	ns   netns.NsHandle
	addr netip.Addr
}

func newBridged(t *testing.T) *bridged {
	t.Helper()
	needPrivileges(t)
	t.Parallel()
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	own, err := netns.Get()
	must(t, err)
	host, err := netns.New()
	must(t, err)
	n := &bridged{t: t, host: host}
	t.Cleanup(func() {
		_ = netns.Set(own)
		for _, p := range n.plugs {
			_ = p.ns.Close()
		}
		_ = host.Close()
		_ = own.Close()
	})
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	n.bridge, err = netlink.LinkByName("br0")
	must(t, err)
	n.addresses(n.bridge, "192.0.2.1", "2001:db8::1")
	return n
}

func (n *bridged) addresses(l netlink.Link, addrs ...string) {
	n.t.Helper()
	must(n.t, netlink.LinkSetUp(l))
	for _, a := range addrs {
		bits := "/24"
		if netip.MustParseAddr(a).Is6() {
			bits = "/64"
		}
		addr, err := netlink.ParseAddr(a + bits)
		must(n.t, err)
		addr.Flags = unix.IFA_F_NODAD
		must(n.t, netlink.AddrAdd(l, addr))
	}
}

// plug makes a container; index is that of the host's end, 0 for any.
func (n *bridged) plug(name string, index int) plug {
	n.t.Helper()
	ns, err := netns.New() // moves this thread there
	must(n.t, err)
	must(n.t, netns.Set(n.host))
	must(n.t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns)),
	}))
	l, err := netlink.LinkByName(name)
	must(n.t, err)
	must(n.t, netlink.LinkSetMaster(l, n.bridge))
	must(n.t, netlink.LinkSetUp(l))
	p := plug{ns: ns, addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + len(n.plugs))})}
	n.in(p, func() {
		eth0, err := netlink.LinkByName("eth0")
		must(n.t, err)
		n.addresses(eth0, p.addr.String(), fmt.Sprintf("2001:db8::%d", 10+len(n.plugs)))
	})
	var ok bool
	if p.Port, ok = portAt(l.Attrs().Index); !ok {
		n.t.Fatalf("%s is no port", name)
	}
	n.plugs = append(n.plugs, p)
	return p
}

// portAt asks for one port; false where there is no such device, or it is no port of a bridge.
func portAt(ifindex int) (Port, bool) {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil || l.Attrs().MasterIndex == 0 {
		return Port{}, false
	}
	bridge, err := netlink.LinkByIndex(l.Attrs().MasterIndex)
	if err != nil || bridge.Type() != "bridge" {
		return Port{}, false
	}
	a := l.Attrs()
	return portOf(hostLink{index: a.Index, name: a.Name, kind: l.Type(), flags: a.RawFlags, master: a.MasterIndex, peer: a.ParentIndex, nsid: a.NetNsID}, bridge.Attrs().Name), true
}

// in runs f with the thread in a container.
func (n *bridged) in(p plug, f func()) {
	n.t.Helper()
	must(n.t, netns.Set(p.ns))
	defer func() { must(n.t, netns.Set(n.host)) }()
	f()
}

// onHost runs f beside the test, on a thread of its own in the host.
func (n *bridged) onHost(f func()) {
	entered := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with f
		entered <- netns.Set(n.host)
		f()
	}()
	must(n.t, <-entered)
}

// arrives sends a datagram from a container to a socket of the host, or says that it does not arrive.
func (n *bridged) arrives(p plug, to string, wait time.Duration) bool {
	n.t.Helper()
	sink, err := net.ListenPacket("udp", net.JoinHostPort(to, "0"))
	must(n.t, err)
	defer sink.Close()
	n.in(p, func() {
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

func (n *bridged) want(p plug, want bool, when string) {
	n.t.Helper()
	wait := long
	if want {
		wait = soon
	}
	for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
		if got := n.arrives(p, to, wait); got != want {
			n.t.Errorf("%s: %s to %s arrives: %v, want %v", when, p.Name, to, got, want)
		}
	}
}

func (n *bridged) open(dir string) (*Filter, *Hold) {
	n.t.Helper()
	f := open(n.t, dir)
	ports, err := ListPorts()
	must(n.t, err)
	return f, OpenHold(f, ports)
}

// prepare has the hooks and the table of a port made ready, and taken.
func prepare(t *testing.T, f *Filter, h *Hold, p plug) {
	t.Helper()
	r, err := h.Prepare(p.Index, true, true)
	must(t, err)
	if r == nil {
		return
	}
	must(t, r.Attach())
	must(t, f.Take(r))
}

// inXDP makes h what it is on a kernel without nftables for bridges.
func inXDP(t *testing.T, h *Hold) {
	t.Helper()
	must(t, h.rules.remove())
	h.inXDP, h.ruled, h.why = true, false, errors.New("a test says so")
}

func TestHold(t *testing.T) {
	for _, way := range []Held{HeldNFT, HeldXDP} {
		t.Run(string(way), func(t *testing.T) {
			n := newBridged(t)
			before := n.plug("veth0000001", 0)
			f, h := n.open(bpffs(t))
			defer f.Close()
			defer h.Close()
			if way == HeldXDP {
				inXDP(t, h)
			} else if got, why := h.Way(); got != way {
				t.Fatalf("held by %s: %v", got, why)
			}
			fresh, other := n.plug("veth0abcdef", 0), n.plug("vnet0", 0)
			ports, err := ListPorts()
			must(t, err)
			held, err := h.Sync(ports)
			must(t, err)
			if !slices.Equal(held, []Port{fresh.Port}) {
				t.Errorf("held are %v, want %v", held, fresh.Port)
			}
			n.want(before, true, "was there before")
			n.want(other, true, "not of Docker's name")
			n.want(fresh, false, "held")
			n.resolves(fresh)
			n.rawFrames(fresh, before, false)
			prepare(t, f, h, fresh)
			n.want(fresh, false, "prepared")
			must(t, h.Release(fresh.Index))
			must(t, h.Release(fresh.Index))
			prepare(t, f, h, fresh)
			n.want(fresh, true, "released")
			n.rawFrames(fresh, before, true)
			if d := filtered(f); len(d) > 0 {
				t.Errorf("filters on %v", d)
			}
		})
	}
}

// resolves shows that a container that is held learns the host's addresses, and the host its: ARP and neighbour discovery pass.
func (n *bridged) resolves(p plug) {
	n.t.Helper()
	n.in(p, func() {
		for family, want := range map[int]string{netlink.FAMILY_V4: "192.0.2.1", netlink.FAMILY_V6: "2001:db8::1"} {
			for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
				neighbours, err := netlink.NeighList(0, family)
				must(n.t, err)
				if slices.ContainsFunc(neighbours, func(e netlink.Neigh) bool { return e.IP.String() == want && len(e.HardwareAddr) == 6 }) {
					break
				}
				if time.Since(start) > soon {
					n.t.Errorf("%s does not learn the address of %s: %v", p.Name, want, neighbours)
					break
				}
			}
		}
	})
}

// rawFrames sends frames that no rule for IP would see from one container to another.
func (n *bridged) rawFrames(from, to plug, want bool) {
	n.t.Helper()
	var sink int
	n.in(to, func() { sink = packetSocket(n.t) })
	defer unix.Close(sink)
	for name, frame := range map[string][]byte{
		"unknown":  policytest.Eth(0x88b5, []byte("unknown type")),
		"one tag":  policytest.Tagged(policytest.Eth(0x0800, policytest.IP(from.addr.String(), "192.0.2.255", protoUDP, policytest.UDP(1, 2))[14:]), 0x8100),
		"two tags": policytest.Tagged(policytest.Eth(0x0800, []byte{0x45}), 0x88a8, 0x8100),
	} {
		copy(frame, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x5e, 0x00, 0x53, 0x01})
		frame = append(frame, []byte(name)...)
		n.in(from, func() {
			fd := packetSocket(n.t)
			defer unix.Close(fd)
			_, err := unix.Write(fd, frame)
			must(n.t, err)
		})
		if got := receives(sink, []byte(name), want); got != want {
			n.t.Errorf("a frame of kind %s arrives: %v, want %v", name, got, want)
		}
	}
}

// TestHeldLookAlikes sends from a port that is held what looks like neighbour discovery, MLD or ARP and is none, and what is.
func TestHeldLookAlikes(t *testing.T) {
	const mine, theirs, report = "fe80::10", "2001:db8::b", 143
	discovery := func(dst string, typ byte, bytes int) []byte {
		return policytest.With(policytest.IP(mine, dst, unix.IPPROTO_ICMPV6, policytest.ICMP(typ, 0, make([]byte, bytes-8)...)), 14+7, 255)
	}
	mld := func(dst string, typ byte, options, bytes int) []byte {
		frame := policytest.IP(mine, dst, unix.IPPROTO_HOPOPTS, policytest.Extension(unix.IPPROTO_ICMPV6, byte(options), policytest.ICMP(typ, 0, make([]byte, bytes-8)...)))
		return policytest.With(frame, 14+7, 1)
	}
	n := newBridged(t)
	sysctl(t, "bridge/bridge-nf-call-ip6tables", "0") // or what is behind a packet is cut off
	to := n.plug("veth0000001", 0)
	f, h := n.open(bpffs(t))
	defer f.Close()
	defer h.Close()
	held := n.plug("veth0000002", 0)
	n.want(held, false, "held")
	var sink, fd int
	n.in(to, func() { sink = packetSocket(t) })
	defer unix.Close(sink)
	n.in(held, func() { fd = packetSocket(t) })
	defer unix.Close(fd)
	for i, tc := range []struct {
		name    string
		frame   []byte
		arrives bool
	}{
		{"ARP", policytest.ARP(), true},
		{"ARP, padded", append(policytest.ARP(), make([]byte, 18)...), true},
		{"ARP and more", append(policytest.ARP(), make([]byte, 1000)...), false},
		{"solicitation", discovery("ff02::1:ff00:1", 135, 32), true},
		{"advertisement", discovery("fe80::1", 136, 32), true},
		{"router solicitation", discovery("ff02::2", 133, 8), true},
		{"router advertisement", discovery("ff02::1", 134, 16), false},
		{"solicitation and more", discovery("ff02::1:ff00:1", 135, 40), false},
		{"solicitation and more behind it", append(discovery("ff02::1:ff00:1", 135, 32), make([]byte, 1000)...), false},
		{"solicitation that is routed", discovery(theirs, 135, 32), false},
		{"solicitation of a site", discovery("fec0::1", 135, 32), false},
		{"solicitation of a site's group", discovery("ff05::1", 135, 32), false},
		{"solicitation that has been routed", policytest.With(discovery("ff02::1:ff00:1", 135, 32), 14+7, 254), false},
		{"echo request", discovery("ff02::1", 128, 32), false},
		{"report", mld("ff02::16", report, 0, 28), true},
		{"report of a site's group", mld("ff05::2", 131, 0, 24), true},
		{"report and more", mld("ff02::16", report, 0, 260), false},
		{"report and more behind it", append(mld("ff02::16", report, 0, 28), make([]byte, 1000)...), false},
		{"report to one", mld(theirs, report, 0, 28), false},
		{"report that can be routed", policytest.With(mld("ff05::2", report, 0, 28), 14+7, 2), false},
		{"report that is an echo request", policytest.With(mld("ff02::1", 128, 1, 28), 14+48, report), false},
		{"no report", mld("ff02::16", 128, 0, 28), false},
	} {
		_, err := h.Refresh()
		must(t, err)
		// The source tells them apart.
		frame := policytest.With(tc.frame, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x5e, 0x00, 0x54, byte(i))
		_, err = unix.Write(fd, frame)
		must(t, err)
		if got := receives(sink, frame, tc.arrives); got != tc.arrives {
			t.Errorf("%s arrives: %t", tc.name, got)
		}
	}
}

// packetSocket is bound to eth0 and sees every frame.
func packetSocket(t *testing.T) int {
	t.Helper()
	eth0, err := netlink.LinkByName("eth0")
	must(t, err)
	return socketOn(t, eth0.Attrs().Index)
}

// socketOn is bound to a device and sees every frame.
func socketOn(t *testing.T, ifindex int) int {
	t.Helper()
	const all = 0x0300 // ETH_P_ALL in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, all)
	must(t, err)
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifindex}))
	return fd
}

// receives waits for a frame that ends with text.
func receives(fd int, text []byte, want bool) bool {
	wait := long
	if want {
		wait = soon
	}
	buf := make([]byte, 2000)
	for end := time.Now().Add(wait); time.Now().Before(end); {
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000})
		if n, err := unix.Read(fd, buf); err == nil && bytes.HasSuffix(buf[:n], text) {
			return true
		}
	}
	return false
}

// TestHoldEndsWithItsAgent leaves a port held and does nothing more.
func TestHoldEndsWithItsAgent(t *testing.T) {
	n := newBridged(t)
	f, h := n.open(bpffs(t))
	fresh := n.plug("veth0000001", 0)
	f.Close()
	h.Close()
	refreshed := h.last
	for !n.arrives(fresh, "192.0.2.1", 20*time.Millisecond) {
		if time.Since(refreshed) > 2*deadMan {
			t.Fatal("held for ever")
		}
	}
	if after := time.Since(refreshed); after < deadMan-200*time.Millisecond || after > deadMan+500*time.Millisecond {
		t.Errorf("the hold ended after %v, want %v", after, deadMan)
	}
	n.want(fresh, true, "after the hold")
}

// TestHoldIsTakenOver opens a hold where one was, while it holds and after it has ended.
func TestHoldIsTakenOver(t *testing.T) {
	n := newBridged(t)
	dir := bpffs(t)
	f, h := n.open(dir)
	before, fresh := n.plug("veth0000001", 0), n.plug("veth0000002", 0)
	must(t, h.Release(before.Index))
	h.Close()
	f.Close()
	n.want(fresh, false, "without a process")
	if got, dropped := HoldInForce(dir); got != HeldNFT || dropped < 2 {
		t.Errorf("in force: %s, %d dropped", got, dropped)
	}

	f, h = n.open(dir)
	n.want(before, true, "released by the agent before")
	n.want(fresh, false, "held by the agent before")
	lapsed := func() {
		must(t, h.rules.change(func(c *nftables.Conn) error {
			c.FlushSet(h.rules.alive[0])
			c.FlushSet(h.rules.alive[1])
			return nil
		}))
	}
	lapsed()
	if got, _ := HoldInForce(dir); got != NotHeld {
		t.Errorf("in force after its end: %s", got)
	}
	h.Close()
	f.Close()
	f, h = n.open(dir)
	defer f.Close()
	defer h.Close()
	n.want(fresh, true, "it had sent when the agent began")

	third := n.plug("veth0000003", 0)
	n.want(third, false, "new")
	prepare(t, f, h, third)
	lapsed()
	h.last = time.Now().Add(-deadMan)
	if was, err := h.Refresh(); !was || err != nil {
		t.Errorf("refresh after a pause: %v, %v", was, err)
	}
	n.want(third, true, "it may have sent while the agent paused")
	if was, err := h.Refresh(); was || err != nil {
		t.Errorf("the next refresh: %v, %v", was, err)
	}
	n.want(n.plug("veth0000004", 0), false, "new after the pause")
}

// TestHoldIsMended has somebody flush the ruleset.
func TestHoldIsMended(t *testing.T) {
	n := newBridged(t)
	dir := bpffs(t)
	f, h := n.open(dir)
	defer f.Close()
	defer h.Close()
	known, held := n.plug("veth0000001", 0), n.plug("veth0000002", 0)
	must(t, h.Release(known.Index))
	for name, mend := range map[string]func() error{
		"mend":    h.Mend,
		"refresh": func() error { _, err := h.Refresh(); return err },
		"release": func() error { delete(h.known, known.Index); return h.Release(known.Index) },
	} {
		n.want(held, false, "before "+name)
		other := newRuleset(dir)
		must(t, other.remove())
		must(t, mend())
		n.want(known, true, name)
		n.want(held, false, name)
	}
	must(t, h.rules.change(func(c *nftables.Conn) error { c.FlushTable(h.rules.table); return nil }))
	n.want(held, true, "without rules")
	must(t, h.Mend())
	n.want(held, false, "with rules again")
	if way, why := h.Way(); way != HeldNFT {
		t.Errorf("held by %s: %v", way, why)
	}
}

// TestHoldByRulesAgain has the kernel refuse the rules for a while: a program holds what comes, and rules do again when no port is held by one.
func TestHoldByRulesAgain(t *testing.T) {
	n := newBridged(t)
	f, h := n.open(bpffs(t))
	defer f.Close()
	defer h.Close()
	known := n.plug("veth0000001", 0)
	must(t, h.Release(known.Index))
	inXDP(t, h)
	h.ruled, h.fell = true, time.Now()
	refreshed := func(want Held) {
		t.Helper()
		h.last = time.Now().Add(-deadMan)
		if _, err := h.Refresh(); err != nil {
			t.Fatal(err)
		}
		if way, why := h.Way(); way != want {
			t.Errorf("held by %s: %v", way, why)
		}
	}
	held := n.plug("veth0000002", 0)
	if is, err := h.Arrived(held.Port); !is || err != nil {
		t.Fatal(is, err)
	}
	refreshed(HeldXDP)
	n.want(held, false, "held by a program")
	must(t, h.Release(held.Index))
	refreshed(HeldNFT)
	n.want(known, true, "by rules")
	n.want(held, true, "by rules")
	n.want(n.plug("veth0000003", 0), false, "by rules")
}

// TestHoldWasRemoved counts what may have passed while somebody had removed the rules.
func TestHoldWasRemoved(t *testing.T) {
	n := newBridged(t)
	dir := bpffs(t)
	f, h := n.open(dir)
	defer f.Close()
	defer h.Close()
	held := n.plug("veth0000001", 0)
	want := func(when string, sent bool) {
		t.Helper()
		if packets, is := h.Unseen(held.Index); !is || packets > 0 != sent {
			t.Errorf("%s: %d packets of a port that is held: %t", when, packets, is)
		}
	}
	n.want(held, false, "before")
	want("before", false)
	other := newRuleset(dir)
	must(t, other.remove())
	n.want(held, true, "without rules")
	want("nobody has told", true)
	n.want(held, false, "with rules again")
	want("with rules again", true)
	must(t, h.Release(held.Index))
	if packets, is := h.Unseen(held.Index); is || packets > 0 {
		t.Errorf("%d packets of a port that is released: %t", packets, is)
	}
}

// TestHeldLate counts what a port has sent before a program held it, and not what that has dropped.
func TestHeldLate(t *testing.T) {
	n := newBridged(t)
	f, h := n.open(bpffs(t))
	defer f.Close()
	defer h.Close()
	inXDP(t, h)
	fresh := n.plug("veth0000001", 0)
	n.want(fresh, true, "nobody has seen it")
	if packets, held := h.Unseen(fresh.Index); held || packets > 0 {
		t.Errorf("before it is held: %d packets, held: %t", packets, held)
	}
	arrived(t, h, fresh)
	before, held := h.Unseen(fresh.Index)
	if before < 2 || !held {
		t.Errorf("%d packets of a port that has sent, held: %t", before, held)
	}
	for range 5 {
		n.arrives(fresh, "192.0.2.1", 10*time.Millisecond)
	}
	if after, _ := h.Unseen(fresh.Index); after > before+2 { // or so: the kernel adds both up while others count
		t.Errorf("%d packets, and %d before it was held", after, before)
	}
	must(t, h.Release(fresh.Index))
	if packets, held := h.Unseen(fresh.Index); held || packets > 0 {
		t.Errorf("once it is released: %d packets, held: %t", packets, held)
	}
}

// TestHoldForgets has a number come back.
func TestHoldForgets(t *testing.T) {
	n := newBridged(t)
	f, h := n.open(bpffs(t))
	defer f.Close()
	defer h.Close()
	first := n.plug("veth0000001", 700)
	must(t, h.Release(first.Index))
	n.want(first, true, "released")
	must(t, netlink.LinkDel(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: 700}}))
	ports, err := ListPorts()
	must(t, err)
	_, err = h.Sync(ports)
	must(t, err)
	n.want(n.plug("veth0000002", 700), false, "another device with the number")
}

// TestTwoHolds has two agents on one host: a port sends when both have released it, and the end of one leaves the other's hold.
func TestTwoHolds(t *testing.T) {
	n := newBridged(t)
	dirs := []string{bpffs(t), bpffs(t)}
	f1, h1 := n.open(dirs[0])
	f2, h2 := n.open(dirs[1])
	fresh := n.plug("veth0000001", 0)
	must(t, h1.Release(fresh.Index))
	n.want(fresh, false, "released by one")
	h1.Close()
	f1.Close()
	must(t, Uninstall(dirs[0]))
	n.want(fresh, false, "the one is uninstalled")
	must(t, h2.Release(fresh.Index))
	n.want(fresh, true, "released by both")
	if err := Uninstall(dirs[1]); !errors.Is(err, ErrBusy) {
		t.Errorf("uninstall beside an agent: %v", err)
	}
	n.want(n.plug("veth0000002", 0), false, "after a refused uninstall")
	h2.Close()
	f2.Close()
	must(t, Uninstall(dirs[1]))
	n.want(n.plug("veth0000003", 0), true, "uninstalled")
	if way, _ := HoldInForce(dirs[1]); way != NotHeld {
		t.Errorf("in force: %s", way)
	}
}

// TestHoldBecomesAFilter attaches before it releases, as an agent does.
func TestHoldBecomesAFilter(t *testing.T) {
	for _, way := range []Held{HeldNFT, HeldXDP} {
		for _, mode := range []Mode{Auto, TCX, Native} {
			t.Run(fmt.Sprintf("%s %q", way, mode), func(t *testing.T) {
				n := newBridged(t)
				dir := bpffs(t)
				f, h := n.open(dir)
				if way == HeldXDP {
					inXDP(t, h)
				}
				fresh := n.plug("veth0000001", 0)
				arrived(t, h, fresh)
				n.want(fresh, false, "held")
				prepare(t, f, h, fresh)
				n.want(fresh, false, "prepared")
				n.resolves(fresh)
				if p, d := pins(t, dir), filtered(f); len(p) > 0 || len(d) > 0 {
					t.Errorf("prepared, and pinned %v, filtered %v", p, d)
				}
				must(t, f.Attach(fresh.Index, Want{Policy: labelled(t, "xdp.egress.drop=tcp"), Mode: mode}))
				must(t, h.Release(fresh.Index))
				before := f.Unseen(fresh.Index)
				n.want(fresh, true, "drop=tcp")
				if unseen := f.Unseen(fresh.Index) - before; unseen > 0 {
					t.Errorf("%d packets are in no counter", unseen)
				}
				must(t, f.Attach(fresh.Index, Want{Policy: labelled(t, "xdp.egress.drop=udp"), Mode: mode}))
				n.want(fresh, false, "drop=udp")
				h.Close()
				f.Close()
				n.want(fresh, false, "without a process")
				f, h = n.open(dir)
				defer f.Close()
				defer h.Close()
				for _, hook := range []string{hookXDP, hookSent} {
					want := (hook == hookXDP) == (mode != TCX)
					if f.has(hookID{fresh.Index, hook}) != want {
						t.Errorf("hook %s: %v, want %v", hook, !want, want)
					}
				}
				must(t, f.Attach(fresh.Index, Want{Policy: labelled(t, "xdp.egress.drop=tcp"), Mode: mode}))
				n.want(fresh, true, "drop=tcp again")
			})
		}
	}
}

func arrived(t *testing.T, h *Hold, p plug) {
	t.Helper()
	if held, err := h.Arrived(p.Port); !held || err != nil {
		t.Errorf("%s is held: %v, %v", p.Name, held, err)
	}
}

// TestPreparedTooLate releases a port whose hooks are being attached, and has another one go: what was attached is taken off, and the tables are there
// for others.
func TestPreparedTooLate(t *testing.T) {
	n := newBridged(t)
	f, h := n.open(bpffs(t))
	defer f.Close()
	defer h.Close()
	released, gone := n.plug("veth0000001", 0), n.plug("veth0000002", 700)
	for _, p := range []plug{released, gone} {
		r, err := h.Prepare(p.Index, true, true)
		must(t, err)
		if len(f.maps.states.coming) > 2 {
			t.Errorf("%d tables are being made for two ports", len(f.maps.states.coming))
		}
		must(t, r.Attach())
		if p.Index == gone.Index {
			must(t, netlink.LinkDel(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: 700}}))
			must(t, f.Forget(700))
		} else {
			must(t, h.Release(p.Index))
		}
		must(t, f.Take(r))
	}
	n.want(released, true, "released")
	if len(f.links) > 0 || len(f.loose) > 0 || len(f.maps.states.coming) > 0 {
		t.Errorf("left are links %v, loose ones %v, tables %v", f.links, f.loose, f.maps.states.coming)
	}
}

// TestXDPHoldEndsWithItsAgent has no rules and no agent any more.
func TestXDPHoldEndsWithItsAgent(t *testing.T) {
	n := newBridged(t)
	f, h := n.open(bpffs(t))
	inXDP(t, h)
	fresh := n.plug("veth0000001", 0)
	arrived(t, h, fresh)
	n.want(fresh, false, "held")
	h.Close()
	f.Close()
	n.want(fresh, true, "without a process")
}

// TestManyPorts has more ports than fit into one message.
func TestManyPorts(t *testing.T) {
	newBridged(t)
	r := newRuleset(bpffs(t))
	defer r.close()
	var many []int
	for i := range 5000 {
		many = append(many, i+1)
	}
	must(t, r.install(many[:2500], many[2500:]))
	must(t, r.forget(many[:2000], many[2500:4500]))
	must(t, r.refresh(many[:1500], many[2500:4000]))
	known, guarded, left, err := r.read()
	must(t, err)
	if len(known) != 4000 || len(guarded) != 2000 || left > deadMan || left < lapse {
		t.Errorf("%d known, %d guarded, %v left", len(known), len(guarded), left)
	}
	must(t, r.remove())
	must(t, r.remove())
	if r.whole() {
		t.Error("whole after it was removed")
	}
}

func TestTryHold(t *testing.T) {
	newBridged(t)
	must(t, TryHold())
	r := newRuleset("try")
	defer r.close()
	if _, _, _, err := r.read(); err == nil {
		t.Error("the table stays")
	}
}

// TestPeerMAC asks for the container's end of a veth, in its namespace and, as with engines before 28, still in the host's.
func TestPeerMAC(t *testing.T) {
	n := newBridged(t)
	away := n.plug("veth0000001", 0)
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0000002"}, PeerName: "vethfffffff"}))
	l, err := netlink.LinkByName("veth0000002")
	must(t, err)
	must(t, netlink.LinkSetMaster(l, n.bridge))
	near, ok := portAt(l.Attrs().Index)
	peer, err := netlink.LinkByName("vethfffffff")
	must(t, err)
	if !ok || near.NsID >= 0 || near.Peer != peer.Attrs().Index || near.PeerMAC().String() != peer.Attrs().HardwareAddr.String() {
		t.Errorf("%+v, peer %s; want %+v", near, near.PeerMAC(), peer.Attrs())
	}
	n.in(away, func() { peer, err = netlink.LinkByName("eth0") })
	must(t, err)
	if away.NsID < 0 || away.Peer != peer.Attrs().Index || away.PeerMAC().String() != peer.Attrs().HardwareAddr.String() {
		t.Errorf("%+v, peer %s; want %+v", away, away.PeerMAC(), peer.Attrs())
	}
	if bridge, ok := portAt(n.bridge.Attrs().Index); ok {
		t.Errorf("the bridge is a port: %+v", bridge)
	}
}

// TestHoldIsWatched hears of a new port, and of rules that somebody removes.
func TestHoldIsWatched(t *testing.T) {
	n := newBridged(t)
	ctx, cancel := context.WithCancel(t.Context())
	arrived, ports, rules := make(chan int, 1000), make(chan int, 1000), make(chan int, 1000)
	var done sync.WaitGroup
	inHost := func(watch func(*slog.Logger)) {
		done.Go(func() {
			runtime.LockOSThread() // never unlocked: a socket is of the namespace of the thread that opens it
			if netns.Set(n.host) == nil {
				watch(slog.New(slog.DiscardHandler))
			}
		})
	}
	inHost(func(l *slog.Logger) {
		WatchHost(ctx, l, func() { ports <- 0 }, func(c Change) {
			if c.Port.Index != 0 {
				arrived <- c.Index
			}
		})
	})
	inHost(func(l *slog.Logger) { WatchRules(ctx, l, func() { rules <- 0 }) })
	t.Cleanup(func() { cancel(); done.Wait() })
	hear := func(from chan int, what string) int {
		t.Helper()
		select {
		case i := <-from:
			return i
		case <-time.After(10 * time.Second):
			t.Fatalf("nothing was heard of %s", what)
			return 0
		}
	}
	hear(ports, "the subscription")
	hear(rules, "the subscription")
	p := n.plug("veth0000001", 0)
	for hear(arrived, "a port") != p.Index {
	}
	f, h := n.open(bpffs(t))
	defer f.Close()
	defer h.Close()
	for len(rules) > 0 {
		<-rules
	}
	must(t, h.Release(9999))
	_, err := h.Refresh()
	must(t, err)
	must(t, h.rules.remove())
	hear(rules, "a table that is gone")
	must(t, h.Mend())
	if way, why := h.Way(); way != HeldNFT || !h.rules.whole() {
		t.Errorf("held by %s: %v", way, why)
	}
}

// TestPreparedGoesUnheard has ports go that are prepared, of which one has its filter already, and nobody tell of it: the next sweep finds out.
func TestPreparedGoesUnheard(t *testing.T) {
	n := newBridged(t)
	f, h := n.open(bpffs(t))
	defer f.Close()
	defer h.Close()
	held, filtered := n.plug("veth0000001", 700), n.plug("veth0000002", 701)
	for _, p := range []plug{held, filtered} {
		r, err := h.Prepare(p.Index, true, true)
		must(t, err)
		must(t, r.Attach())
		must(t, f.Take(r))
	}
	must(t, f.Attach(filtered.Index, Want{Policy: labelled(t, "xdp.enable=true")}))
	for _, p := range []plug{held, filtered} {
		must(t, netlink.LinkDel(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: p.Index}}))
	}
	links, err := ListLinks()
	must(t, err)
	must(t, f.Sweep(links))
	if len(f.links) > 0 || len(f.loose) > 0 || len(f.held) > 0 || len(f.maps.devices) > 0 {
		t.Errorf("left are links %v, loose ones %v, held %v, entries %v", f.links, f.loose, f.held, f.maps.devices)
	}
}
