package xdp

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// asker plays the engine's resolver and somebody who asks it, both in the container's namespace.
type asker struct {
	*network
	udp net.PacketConn
	tcp net.Listener
}

func newAsker(t *testing.T) *asker {
	n := newNetwork(t)
	inside, err := netlink.NewHandleAt(n.container, unix.NETLINK_ROUTE)
	must(t, err)
	defer inside.Close()
	lo, err := inside.LinkByName("lo")
	must(t, err)
	must(t, inside.LinkSetUp(lo))
	a := &asker{network: n}
	n.inContainer(func() {
		a.udp, err = net.ListenPacket("udp", "127.0.0.11:0")
		must(t, err)
		a.tcp, err = net.Listen("tcp", "127.0.0.11:0")
		must(t, err)
	})
	t.Cleanup(func() { _ = a.udp.Close(); _ = a.tcp.Close() })
	return a
}

// answers says whether a query gets to the resolver.
func (a *asker) answers(proto string) bool {
	addr := a.udp.LocalAddr().String()
	if proto == "tcp" {
		addr = a.tcp.Addr().String()
	}
	got := false
	a.inContainer(func() {
		d := net.Dialer{Timeout: long}
		c, err := d.Dial(proto, addr)
		if err != nil {
			return
		}
		defer c.Close()
		if proto == "tcp" {
			got = true
			return
		}
		_, _ = c.Write([]byte("query"))
		_ = a.udp.SetReadDeadline(time.Now().Add(long))
		_, _, err = a.udp.ReadFrom(make([]byte, 64))
		got = err == nil
	})
	return got
}

func (a *asker) want(when string, udp, tcp bool) {
	a.t.Helper()
	if u, c := a.answers("udp"), a.answers("tcp"); u != udp || c != tcp {
		a.t.Errorf("%s: UDP %t, TCP %t; want %t, %t", when, u, c, udp, tcp)
	}
}

// refused is how many queries are counted as not let through.
func (a *asker) refused(f *Filter) (n uint64) {
	a.t.Helper()
	counts, err := readCounts(f.objs.Counters, f.maps.devices[a.host.Index].Counters)
	must(a.t, err)
	for _, c := range counts {
		if c.Reason == policy.Resolver {
			n += c.Packets
		}
	}
	return n
}

// TestResolverIsTakenOff has root take off what closes the resolver, with its pin left or not.
func TestResolverIsTakenOff(t *testing.T) {
	for _, pinned := range []bool{true, false} {
		a := newAsker(t)
		dir := bpffs(t)
		f := open(t, dir)
		must(t, f.Attach(a.host.Index, Want{Policy: labelled(t, "xdp.drop=udp")}))
		must(t, f.CloseResolver(a.path, a.host.Index, true, true))
		a.want("closed", false, false)
		stands := func(want bool) {
			t.Helper()
			for inode, c := range f.resolvers {
				c.asked = time.Now().Add(-askAgain)
				f.resolvers[inode] = c
			}
			if got := f.ResolverStands(a.path); got != want {
				t.Errorf("stands: %t, want %t", got, want)
			}
		}
		stands(true)
		pins, err := filepath.Glob(filepath.Join(dir, "links", "*-"+hookResolver))
		must(t, err)
		l, err := link.LoadPinnedLink(pins[0], nil)
		must(t, err)
		must(t, l.Detach())
		must(t, l.Close())
		if !pinned {
			must(t, os.Remove(pins[0]))
			must(t, sweep(f))
		}
		a.want("taken off", true, true)
		stands(false)
		must(t, f.CloseResolver(a.path, a.host.Index, true, true))
		a.want("closed again", false, false)
		stands(true)
		left := filepath.Join(t.TempDir(), "sandbox")
		must(t, os.WriteFile(left, nil, 0o600))
		if !f.ResolverStands(left) {
			t.Error("what is left of a namespace that is gone is taken for one that is open")
		}
		f.Close()
	}
}

func TestResolver(t *testing.T) {
	a := newAsker(t)
	dir := bpffs(t)
	f := open(t, dir)
	must(t, f.Attach(a.host.Index, Want{Policy: labelled(t, "xdp.drop=udp")}))
	a.want("nothing said", true, true)
	must(t, f.CloseResolver(a.path, a.host.Index, true, false))
	a.want("UDP closed", false, true)
	must(t, f.CloseResolver(a.path, a.host.Index, true, true))
	a.want("closed", false, false)
	if seen := a.refused(f); seen < 3 {
		t.Errorf("%d queries are counted", seen)
	}
	a.wantEvents(f)
	pins, err := filepath.Glob(filepath.Join(dir, "links", "*-"+hookResolver))
	if err != nil || len(pins) != 1 {
		t.Fatalf("pins %v, %v", pins, err)
	}
	must(t, os.Remove(pins[0]))
	must(t, sweep(f))
	f.Close()
	a.want("without an agent, its pin removed before", false, false)
	f = open(t, dir)
	must(t, sweep(f))
	a.want("adopted", false, false)
	for _, d := range filtered(f) {
		if d != a.host.Index {
			t.Errorf("ifindex %d is taken for a device", d)
		}
	}
	must(t, f.CloseResolver(a.path, a.host.Index, false, true))
	a.want("TCP closed", true, false)
	must(t, f.CloseResolver(a.path, a.host.Index, false, false))
	a.want("open again", true, true)
	must(t, f.CloseResolver(a.path, a.host.Index, true, true))
	f.Close()
	must(t, Uninstall(dir))
	a.want("uninstalled", true, true)
}

// TestResolverTagged sends frames with a tag on lo, which a container with CAP_NET_RAW may: the kernel takes one without a number off
// after the program, and lets what is for 127.0.0.11 in where route_localnet is set.
func TestResolverTagged(t *testing.T) {
	a := newAsker(t)
	var other net.PacketConn
	lo := &unix.SockaddrLinklayer{Ifindex: loopback, Halen: 6}
	fd := -1
	a.inContainer(func() {
		for name, value := range map[string]string{"lo/route_localnet": "1", "lo/rp_filter": "0", "all/rp_filter": "0"} { // of this namespace
			must(t, os.WriteFile("/proc/sys/net/ipv4/conf/"+name, []byte(value), 0))
		}
		var err error
		other, err = net.ListenPacket("udp", "127.0.0.12:0")
		must(t, err)
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		must(t, err)
	})
	defer other.Close()
	defer unix.Close(fd)
	arrives := func(to net.PacketConn, tags ...byte) bool {
		addr := to.LocalAddr().(*net.UDPAddr)
		frame := policytest.IP("192.0.2.1", addr.IP.String(), protoUDP, policytest.UDP(40000, uint16(addr.Port), []byte("query")...))
		checksum(frame[14:34])
		must(t, unix.Sendto(fd, slices.Concat(make([]byte, 12), tags, frame[12:]), 0, lo))
		must(t, to.SetReadDeadline(time.Now().Add(long)))
		_, _, err := to.ReadFrom(make([]byte, 64))
		return err == nil
	}
	priority, service := []byte{0x81, 0, 0, 0}, []byte{0x88, 0xa8, 0, 0}
	f := open(t, bpffs(t))
	defer f.Close()
	must(t, f.Attach(a.host.Index, Want{Policy: labelled(t, "xdp.drop=udp")}))
	want := func(when string, want bool) {
		t.Helper()
		for name, tags := range map[string][]byte{"none": nil, "802.1Q": priority, "802.1ad": service, "both": slices.Concat(service, priority)} {
			if got := arrives(a.udp, tags...); got != want {
				t.Errorf("%s, tag %s: arrives %t, want %t", when, name, got, want)
			}
		}
		if !arrives(other) {
			t.Errorf("%s: nothing arrives at another address", when)
		}
	}
	want("nothing said", true)
	must(t, f.CloseResolver(a.path, a.host.Index, true, false))
	want("UDP closed", false)
	if n := a.refused(f); n != 4 {
		t.Errorf("%d frames are counted, want 4", n)
	}
	must(t, f.CloseResolver(a.path, a.host.Index, false, false))
	want("open again", true)
}

// TestResolverSuperframe asks the resolver by TCP in a frame that says that it is to be cut (PACKET_VNET_HDR) and whose total length is 0, as that of
// IPv4 beyond 64 KiB is (from Linux 6.3 on): the kernel takes it as long as it is. See TestResolverTagged.
func TestResolverSuperframe(t *testing.T) {
	a := newAsker(t)
	fd := -1
	a.inContainer(func() {
		for name, value := range map[string]string{"lo/route_localnet": "1", "lo/rp_filter": "0", "all/rp_filter": "0"} { // of this namespace
			must(t, os.WriteFile("/proc/sys/net/ipv4/conf/"+name, []byte(value), 0))
		}
		var err error
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		must(t, err)
		const vnetHeader = 15 // PACKET_VNET_HDR
		must(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, vnetHeader, 1))
	})
	defer unix.Close(fd)
	// arrives reports whether TCP has got it.
	arrives := func() bool {
		const needsChecksum, cutTCP, tcpAt = 1, 1, 34
		tcp := append(policytest.TCP(40000, uint16(a.tcp.Addr().(*net.TCPAddr).Port)), "more than a segment"...)
		frame := policytest.IP("192.0.2.1", "127.0.0.11", protoTCP, tcp)
		copy(frame, make([]byte, 12))
		frame[16], frame[17] = 0, 0
		checksum(frame[14:34])
		header := []byte{needsChecksum, cutTCP}
		for _, n := range []uint16{tcpAt + 20, 8, tcpAt, 16} {
			header = binary.NativeEndian.AppendUint16(header, n)
		}
		before := a.segments()
		must(t, unix.Sendto(fd, append(header, frame...), 0, &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: loopback, Halen: 6}))
		time.Sleep(long)
		return a.segments() != before
	}
	f := open(t, bpffs(t))
	defer f.Close()
	must(t, f.Attach(a.host.Index, Want{Policy: labelled(t, "xdp.drop=tcp")}))
	if !arrives() {
		t.Skip("the kernel does not take such a frame")
	}
	must(t, f.CloseResolver(a.path, a.host.Index, false, true))
	if arrives() || a.refused(f) != 1 {
		t.Errorf("TCP closed: it arrives, or is not counted: %d", a.refused(f))
	}
	must(t, f.CloseResolver(a.path, a.host.Index, true, false))
	if !arrives() {
		t.Error("UDP closed: it does not arrive")
	}
}

// segments is how many TCP has received in the container.
func (a *asker) segments() (n string) {
	a.t.Helper()
	a.inContainer(func() {
		text, err := os.ReadFile("/proc/thread-self/net/snmp")
		must(a.t, err)
		for line := range strings.Lines(string(text)) {
			if fields := strings.Fields(line); fields[0] == "Tcp:" {
				n = fields[10] // InSegs
			}
		}
	})
	return n
}

// wantEvents wants one for a query, and none under xdp.log=none.
func (a *asker) wantEvents(f *Filter) {
	a.t.Helper()
	r, err := OpenReader(f.dir)
	must(a.t, err)
	defer r.Close()
	events := func() (n int) {
		all, _, err := r.Events(0)
		must(a.t, err)
		for _, e := range all {
			if e.Reason == policy.Resolver && e.Ifindex == a.host.Index && e.Dst.String() == "127.0.0.11" {
				n++
			}
		}
		return n
	}
	before := events()
	must(a.t, f.Attach(a.host.Index, Want{Policy: labelled(a.t, "xdp.drop=udp xdp.log=none")}))
	a.want("closed, log none", false, false)
	if n := events(); before == 0 || n != before {
		a.t.Errorf("%d events, %d of them under xdp.log=none", n, n-before)
	}
	must(a.t, f.Attach(a.host.Index, Want{Policy: labelled(a.t, "xdp.drop=udp")}))
}

// The host's own lo is never touched.
func TestResolverOfTheHost(t *testing.T) {
	n := newNetwork(t)
	f := open(t, bpffs(t))
	defer f.Close()
	if err := f.CloseResolver("/proc/thread-self/ns/net", n.host.Index, true, true); !errors.Is(err, ErrOwnNamespace) {
		t.Errorf("%v, want %v", err, ErrOwnNamespace)
	}
	lo, err := netlink.LinkByIndex(loopback)
	must(t, err)
	if x := lo.Attrs().Xdp; x != nil && x.Attached {
		t.Error("lo of the host has a program")
	}
}
