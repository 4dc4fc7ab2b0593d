package xdp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/policy/policytest"
)

const bothPast = `
ip link add lane0 type bridge
ip link add lane1 type veth peer name lane3
ip link add lane2 type ifb
ip link set lane1 master lane0
ip link set lane0 up
ip link set lane1 up
ip link set lane3 up
ip link set lane2 up
tc qdisc add dev lane0 clsact
nft 'table netdev lane { chain egress { type filter hook egress device "lane1" priority 0; fwd to "eth0"; }; }'
`

// lane sends datagrams to a socket of the host by a device of the container's, as raw frames, and counts what arrives. to is their
// destination, nil for the host's.
func (n *bridged) lane(p plug, device string, to net.HardwareAddr) (arrived int) {
	n.t.Helper()
	sink, err := net.ListenPacket("udp4", "192.0.2.1:0")
	must(n.t, err)
	defer sink.Close()
	bridge, err := netlink.LinkByName("br0") // whose address is that of a port
	must(n.t, err)
	if to == nil {
		to = bridge.Attrs().HardwareAddr
	}
	n.in(p, func() {
		eth0, err := netlink.LinkByName("eth0")
		must(n.t, err)
		out, err := netlink.LinkByName(device)
		must(n.t, err)
		fd := newPacketSocket(n.t, 0)
		addr := &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: out.Attrs().Index, Halen: 6}
		copy(addr.Addr[:], to)
		port := netip.MustParseAddrPort(sink.LocalAddr().String()).Port()
		frame := policytest.IP(p.addr.String(), "192.0.2.1", protoUDP, policytest.UDP(40000, port, []byte("datagram")...))
		copy(frame, to)
		copy(frame[6:], eth0.Attrs().HardwareAddr)
		checksum(frame[14:34])
		for range volley {
			must(n.t, unix.Sendto(fd, frame, 0, addr))
		}
	})
	for ; ; arrived++ {
		must(n.t, sink.SetReadDeadline(time.Now().Add(long)))
		if _, _, err := sink.ReadFrom(make([]byte, 64)); err != nil || arrived == volley {
			return arrived
		}
	}
}

// takesBothPast lays the detour past both hooks in a container. An ifb sends what leaves by a bridge of the container's own once more, marked so
// that tc skips it, and from a port of that bridge nftables redirect it to eth0, marked so that generic XDP does. The filter of the first leg takes every
// other packet, because it would take the ifb's mark away: one of four gets past.
func (n *bridged) takesBothPast(p plug) {
	n.t.Helper()
	n.in(p, func() {
		out, err := exec.Command("sh", "-ec", bothPast).CombinedOutput()
		if err != nil {
			n.t.Fatalf("%v: %s", err, out)
		}
		from, err := netlink.LinkByName("lane0")
		must(n.t, err)
		to, err := netlink.LinkByName("lane2")
		must(n.t, err)
		must(n.t, addRandomFilter(
			netlink.FilterAttrs{LinkIndex: from.Attrs().Index, Parent: netlink.HANDLE_MIN_EGRESS, Priority: 1, Protocol: unix.ETH_P_ALL},
			[]netlink.Action{netlink.NewMirredAction(to.Attrs().Index)},
		))
	})
}

// lanes is how many of so many datagrams arrive straight, and by the detour.
func (n *bridged) lanes(p plug) (straight, detoured int) {
	n.t.Helper()
	return n.lane(p, "eth0", nil), n.lane(p, "lane0", nil)
}

const volley = 100

// TestGuard sends what is forbidden past both hooks, and what is allowed straight, through all that a guard meets.
func TestGuard(t *testing.T) {
	n := newBridged(t)
	dir := bpffs(t)
	f, h := n.open(dir)
	p := n.plug("veth0000001", 0)
	must(t, h.Release(p.Index))
	n.takesBothPast(p)
	seen := n.countMarks()
	under := func(labels, when string, straight bool, detoured func(int) bool) {
		t.Helper()
		must(t, f.Attach(p.Index, Want{Policy: labelled(t, labels), BothHooks: true}))
		s, d := n.lanes(p)
		if s != map[bool]int{true: volley}[straight] || !detoured(d) {
			t.Errorf("%s, %s: of %d datagrams %d arrive straight and %d by the detour", when, labels, volley, s, d)
		}
	}
	none, some := func(n int) bool { return n == 0 }, func(n int) bool { return n > 0 && n < volley }
	all := func(n int) bool { return n == volley }
	holds := func(when string) {
		t.Helper()
		under("xdp.drop=udp", when, false, none)
		under("xdp.drop=tcp", when, true, some) // what tc has judged on its way
		if marked := seen(); marked > 0 {
			t.Errorf("%s: %d packets have kept the mark", when, marked)
		}
	}

	under("xdp.drop=udp", "before", false, some)
	n.groups(p, some)
	must(t, h.Guard(p.Index))
	n.groups(p, none)
	holds("guarded")
	if h.GotPast() == 0 || !h.Guarded(p.Index) {
		t.Errorf("%d packets got past, guarded %v", h.GotPast(), h.Guarded(p.Index))
	}

	must(t, newRuleset(dir).remove())
	must(t, h.Mend())
	holds("mended")

	h.Close()
	f.Close()
	if s, d := n.lanes(p); s != volley || !some(d) {
		t.Errorf("without an agent, what is allowed: %d and %d", s, d)
	}
	f, h = n.open(dir)
	holds("under the next agent")

	must(t, h.Unguard(p.Index))
	under("xdp.drop=tcp", "not guarded any more", true, all)
	must(t, h.Guard(p.Index))
	holds("guarded again")
	must(t, h.Unguard(p.Index))
	must(t, f.Detach(p.Index))
	if s, d := n.lanes(p); s != volley || d != volley {
		t.Errorf("without a filter: %d and %d", s, d)
	}
	if marked := seen(); marked > 0 {
		t.Errorf("%d packets have kept the mark", marked)
	}
	h.Close()
	f.Close()
}

// groups sends by the detour to the addresses that a bridge keeps for itself: it has no rules look at them.
func (n *bridged) groups(p plug, arrives func(int) bool) {
	n.t.Helper()
	for _, x := range []byte{0x00, 0x02, 0x03, 0x0d, 0x0e, 0x0f} {
		if d := n.lane(p, "lane0", net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, x}); !arrives(d) {
			n.t.Errorf("%d arrive that were sent to 01:80:c2:00:00:%02x", d, x)
		}
	}
}

// TestGuardBeforeRelease guards a port that is held.
func TestGuardBeforeRelease(t *testing.T) {
	n := newBridged(t)
	f, h := n.open(bpffs(t))
	defer f.Close()
	defer h.Close()
	released, lapsed := n.plug("veth0000001", 0), n.plug("veth0000002", 0)
	for _, p := range []plug{released, lapsed} {
		prepare(t, f, h, p)
		must(t, f.Attach(p.Index, Want{Policy: labelled(t, "xdp.drop=tcp"), BothHooks: true}))
		must(t, h.Guard(p.Index))
		n.want(p, false, "held")
	}
	must(t, h.Release(released.Index))
	h.last = time.Now().Add(-deadMan)
	if was, err := h.Refresh(); !was || err != nil {
		t.Errorf("refresh after a pause: %v, %v", was, err)
	}
	for _, p := range []plug{released, lapsed} {
		n.want(p, true, "released")
		n.takesBothPast(p)
		must(t, f.Attach(p.Index, Want{Policy: labelled(t, "xdp.drop=udp"), BothHooks: true}))
		if s, d := n.lanes(p); s != 0 || d != 0 {
			t.Errorf("what is forbidden: %d straight, %d by the detour", s, d)
		}
	}
}

// TestGuardNeedsBoth does not guard what nobody would mark.
func TestGuardNeedsBoth(t *testing.T) {
	n := newBridged(t)
	dir := bpffs(t)
	f, h := n.open(dir)
	p := n.plug("veth0000001", 0)
	must(t, h.Release(p.Index))
	not := func(when string) {
		t.Helper()
		must(t, h.Guard(p.Index))
		if h.Guarded(p.Index) {
			t.Errorf("guarded %s", when)
		}
		n.want(p, true, when)
	}
	not("without a filter")
	w := Want{Policy: labelled(t, "xdp.drop=tcp")}
	must(t, f.Attach(p.Index, w))
	not("with one hook")
	w.BothHooks = true
	must(t, f.Attach(p.Index, w))
	must(t, h.Guard(p.Index))
	n.want(p, true, "guarded")

	// Somebody takes the filter's pins away while no agent runs.
	h.Close()
	f.Close()
	must(t, os.RemoveAll(f.linksDir()))
	f, h = n.open(dir)
	defer f.Close()
	n.want(p, true, "with no program any more")
	must(t, f.Attach(p.Index, w))
	inXDP(t, h)
	not("where rules cannot be")
	h.Close()
}

// TestRulesThatCannotBeReplaced has somebody own the table of the hold, so that the kernel refuses another in its place: what stands goes on to
// want the mark, and gets it.
func TestRulesThatCannotBeReplaced(t *testing.T) {
	n := newBridged(t)
	dir := bpffs(t)
	f, h := n.open(dir)
	defer f.Close()
	defer h.Close()
	p := n.plug("veth0000001", 0)
	must(t, h.Release(p.Index))
	n.takesBothPast(p)
	want := Want{Policy: labelled(t, "xdp.drop=tcp"), BothHooks: true}
	must(t, f.Attach(p.Index, want))
	must(t, h.Guard(p.Index))

	rules, err := exec.Command("nft", "list", "table", "bridge", h.rules.table.Name).Output()
	must(t, err)
	must(t, h.rules.remove())
	owner := exec.Command("nft", "-i") // as long as it runs
	commands, err := owner.StdinPipe()
	must(t, err)
	must(t, owner.Start())
	defer func() { _ = owner.Process.Kill() }()
	_, err = fmt.Fprintln(commands, strings.ReplaceAll(strings.Replace(string(rules), "{", "{ flags owner;", 1), "\n", ";"))
	must(t, err)
	for end := time.Now().Add(5 * time.Second); !h.rules.whole(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nobody owns the table: %s", rules)
		}
	}
	if _, err := h.Refresh(); !errors.Is(err, unix.EPERM) {
		t.Fatalf("refresh of somebody's own table: %v", err)
	}
	guards := func(when string) {
		t.Helper()
		must(t, f.Attach(p.Index, want))
		if way, _ := h.Way(); way != HeldNFT || !h.Guarded(p.Index) {
			t.Errorf("%s: held by %s, guarded %t", when, way, h.Guarded(p.Index))
		}
		if s, d := n.lanes(p); s != volley || d == 0 || d == volley {
			t.Errorf("%s: %d arrive straight and %d by the detour", when, s, d)
		}
	}
	guards("refused")
	must(t, commands.Close())
	must(t, owner.Wait())
	must(t, h.Mend())
	guards("mended")
}

// countMarks counts what arrives at the host with the guard's mark.
func (n *bridged) countMarks() func() uint64 {
	n.t.Helper()
	nft(n.t, "table ip marks { chain prerouting { type filter hook prerouting priority -400; meta mark & 0x80000000 != 0 counter; }; }")
	return func() uint64 {
		r := &ruleset{}
		defer r.close()
		t := &nftables.Table{Name: "marks", Family: nftables.TableFamilyIPv4}
		r.table = t
		return r.dropped(&nftables.Chain{Table: t, Name: "prerouting"})
	}
}

// TestGuardAndProgram gives a guarded port a program of the operator's and takes it away, when one hook is enough by now: tc ingress goes on to mark.
func TestGuardAndProgram(t *testing.T) {
	n := newBridged(t)
	f, h := n.open(bpffs(t))
	defer f.Close()
	defer h.Close()
	p := n.plug("veth0000001", 0)
	must(t, h.Release(p.Index))
	tcp := labelled(t, "xdp.drop=tcp")
	must(t, f.Attach(p.Index, Want{Policy: tcp, BothHooks: true}))
	must(t, h.Guard(p.Index))
	must(t, f.Attach(p.Index, Want{Policy: tcp, Program: readProgram(t, programs(t, nil), "udp")}))
	must(t, f.Attach(p.Index, Want{Policy: tcp}))
	n.want(p, true, "with no program any more")
	must(t, f.Attach(p.Index, Want{Policy: labelled(t, "xdp.drop=udp")}))
	n.want(p, false, "with another policy")
}
