package xdp

import (
	"encoding/binary"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/policy"
)

// detour is a way around one hook that a container with CAP_NET_ADMIN lays in its own namespace.
type detour struct {
	name string
	// around is the mode that judges with the hook that it gets around.
	around Mode
	lay    func(n *network)
	// through is where raw frames enter it, and shapes are those that can.
	through string
	shapes  []string
}

var detours = []detour{
	// Kata is wired like this, too. What was redirected to eth0 on its way in passes generic XDP unseen.
	{"mirred", Generic, (*network).layMirred, "detour0", []string{"raw frame", "ring past the qdisc"}},
	// What an ifb sends once more skips tc, unless the redirect meets it again: one of four packets gets through.
	{"ifb", TCX, (*network).layIFB, "eth0", []string{"raw frame", "ring", "datagram", "UDP_SEGMENT"}},
}

// layMirred makes a second veth pair within the container; what enters it at detour0 leaves by eth0.
func (n *network) layMirred() {
	n.inContainer(func() {
		must(n.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "detour0"}, PeerName: "detour1"}))
		for _, name := range []string{"detour0", "detour1"} {
			l, err := netlink.LinkByName(name)
			must(n.t, err)
			must(n.t, netlink.LinkSetUp(l))
		}
		n.redirect("detour1", netlink.HANDLE_MIN_INGRESS, "eth0", func(at netlink.FilterAttrs, to []netlink.Action) error {
			return netlink.FilterAdd(&netlink.U32{FilterAttrs: at, Actions: to})
		})
	})
}

// layIFB lets half of what leaves by eth0 go through an ifb, which sends it by eth0 once more.
func (n *network) layIFB() {
	n.inContainer(func() {
		ifb := &netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: "detour0"}}
		n.has("ifb", netlink.LinkAdd(ifb))
		must(n.t, netlink.LinkSetUp(ifb))
		n.redirect("eth0", netlink.HANDLE_MIN_EGRESS, "detour0", addRandomFilter)
	})
}

// redirect redirects what passes a hook of one device and meets a filter to another device: tc filter add ... action
// mirred egress redirect dev TO.
func (n *network) redirect(from string, parent uint32, to string, add func(netlink.FilterAttrs, []netlink.Action) error) {
	n.t.Helper()
	at, err := netlink.LinkByName(from)
	must(n.t, err)
	target, err := netlink.LinkByName(to)
	must(n.t, err)
	qdisc := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: at.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	n.has("sch_ingress", netlink.QdiscAdd(qdisc))
	n.has("cls_u32, cls_bpf or act_mirred", add(
		netlink.FilterAttrs{LinkIndex: at.Attrs().Index, Parent: parent, Priority: 1, Protocol: unix.ETH_P_ALL},
		[]netlink.Action{netlink.NewMirredAction(target.Attrs().Index)},
	))
}

// addRandomFilter adds a filter of classic BPF, which takes no more than CAP_NET_ADMIN, that takes every other packet: an
// action that meets what an ifb has sent wipes out the mark by which tc skips it.
func addRandomFilter(at netlink.FilterAttrs, to []netlink.Action) error {
	const ( // enum TCA_BPF_*, and SKF_AD_OFF + SKF_AD_RANDOM
		attrAct, attrOpsLen, attrOps = 1, 4, 5
		random                       = 0xfffff000 + 56
	)
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: random},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff}, // it matches
		{Code: unix.BPF_RET | unix.BPF_K},
	}
	var ops []byte
	for _, c := range code {
		ops = binary.NativeEndian.AppendUint16(ops, c.Code)
		ops = append(ops, c.Jt, c.Jf)
		ops = binary.NativeEndian.AppendUint32(ops, c.K)
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(&nl.TcMsg{
		Family: nl.FAMILY_ALL, Ifindex: int32(at.LinkIndex), Parent: at.Parent,
		Info: netlink.MakeHandle(at.Priority, nl.Swap16(at.Protocol)),
	})
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("bpf")))
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(attrOpsLen, nl.Uint16Attr(uint16(len(code))))
	options.AddRtAttr(attrOps, ops)
	if err := netlink.EncodeActions(options.AddRtAttr(attrAct, nil), to); err != nil {
		return err
	}
	req.AddData(options)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// has skips the test where the kernel has no such module. Those of CI have all of them.
func (n *network) has(module string, err error) {
	n.t.Helper()
	if (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP)) && os.Getenv("CI") == "" {
		n.t.Skipf("no %s in this kernel: %v", module, err)
	}
	must(n.t, err)
}

// TestDetours sends what is forbidden past one hook, which shows that the detour works, and not past both.
func TestDetours(t *testing.T) {
	for _, d := range detours {
		t.Run(d.name, func(t *testing.T) {
			n := newNetwork(t)
			f := open(t, bpffs(t))
			defer f.Close()
			sink, err := net.ListenPacket("udp4", "192.0.2.1:0")
			must(t, err)
			defer sink.Close()
			d.lay(n)
			var send map[string]func([]byte)
			n.inContainer(func() { send = senders(t, n, netip.MustParseAddrPort(sink.LocalAddr().String()), d.through, 0) })
			maps.DeleteFunc(send, func(shape string, _ func([]byte)) bool { return !slices.Contains(d.shapes, shape) })
			for _, c := range []struct {
				labels  string
				mode    Mode
				both    bool
				arrives bool
			}{
				{"xdp.drop=udp", Generic, false, d.around == Generic},
				{"xdp.drop=udp", TCX, false, d.around == TCX},
				{"xdp.drop=udp", Native, false, false},
				{"xdp.drop=udp", Auto, true, false},
				{"xdp.drop=udp", TCX, true, false},
				{"xdp.drop=udp", Native, true, false},
				{"xdp.drop=tcp", Auto, true, true},
				{"xdp.drop=tcp", Native, true, true},
				{"xdp.drop=tcp", TCX, true, true},
			} {
				must(t, f.Detach(n.host.Index))
				must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, c.labels), Mode: c.mode, BothHooks: c.both}))
				for shape, send := range send {
					if got := reaches(t, sink, send, c.arrives); got != c.arrives {
						t.Errorf("%s, mode %q, both hooks %v: %s arrives: %v, want %v", c.labels, c.mode, c.both, shape, got, c.arrives)
					}
				}
			}
		})
	}
}

// reaches tells whether any of 100 packets arrives.
func reaches(t *testing.T, sink net.PacketConn, send func([]byte), expected bool) bool {
	t.Helper()
	for range 100 {
		send(make([]byte, 1200))
	}
	must(t, sink.SetReadDeadline(time.Now().Add(map[bool]time.Duration{true: soon, false: long}[expected])))
	_, _, err := sink.ReadFrom(make([]byte, 2000))
	drain(sink)
	return err == nil
}

// TestTwoHooksCountOnce counts what comes straight, past one hook and past the other, whether it is dropped at the first hook,
// at the second, or only counted. What skips tc by an ifb is dropped and counted by XDP; what passes then meets neither
// counters nor limits.
func TestTwoHooksCountOnce(t *testing.T) {
	const frames = 20
	straight := detour{name: "straight", lay: func(*network) {}, through: "eth0", shapes: []string{"raw frame"}}
	for _, d := range append([]detour{straight}, detours...) {
		t.Run(d.name, func(t *testing.T) {
			n := newNetwork(t)
			dir := bpffs(t)
			f := open(t, dir)
			defer f.Close()
			sink, err := net.ListenPacket("udp4", "192.0.2.1:0")
			must(t, err)
			defer sink.Close()
			d.lay(n)
			var send func([]byte)
			n.inContainer(func() {
				send = senders(t, n, netip.MustParseAddrPort(sink.LocalAddr().String()), d.through, 0)[d.shapes[0]]
			})
			for _, c := range []struct {
				labels string
				passes bool
				slack  uint64 // how many a limit may let pass meanwhile
			}{
				{"xdp.drop=udp", false, 0},
				{"xdp.egress.drop=udp@192.0.2.1", false, 0},
				{"xdp.drop=udp xdp.mode=audit", true, 0},
				{"xdp.drop=udp xdp.mode=audit xdp.log=all", true, 0},
				{"xdp.limit=udp=1pps xdp.mode=audit", true, 2},
				{"xdp.limit=udp=1pps", true, 2},
			} {
				must(t, f.Detach(n.host.Index))
				must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, c.labels), BothHooks: true}))
				for range frames {
					send([]byte("datagram"))
				}
				least := frames - c.slack
				if d.around == TCX && c.passes {
					least = 1
				}
				if got := n.countedAtLeast(dir, least); got < least || got > frames {
					t.Errorf("%s: %d packets were counted, want %d to %d", c.labels, got, least, frames)
				}
			}
		})
	}
}

// countedAtLeast waits until a rule or limit has counted so many packets that the container has sent, and returns how many
// they are. An ifb sends some time later than it is sent to.
func (n *network) countedAtLeast(dir string, least uint64) (packets uint64) {
	n.t.Helper()
	r, err := OpenReader(dir)
	must(n.t, err)
	defer r.Close()
	for deadline := time.Now().Add(soon); ; time.Sleep(time.Millisecond) {
		d, err := r.Device(n.host.Index)
		must(n.t, err)
		packets = 0
		for _, c := range d.Counts {
			if c.Direction == policy.Egress && c.Reason == policy.ByRule {
				packets += c.Packets
			}
		}
		if packets >= least || time.Now().After(deadline) {
			return packets
		}
	}
}

// TestLimitNeedsTC checks that a limit of what is sent is held at tc ingress whichever hook judges, and one of what is received
// is not.
func TestLimitNeedsTC(t *testing.T) {
	n := newNetwork(t)
	dir := bpffs(t)
	f := open(t, dir)
	defer f.Close()
	for _, c := range []struct {
		labels string
		mode   Mode
		hooks  []string
	}{
		{"xdp.egress.limit=udp=10pps", Generic, []string{"egress generic", "egress tc"}},
		{"xdp.egress.limit=udp=10pps", Native, []string{"egress native", "egress tc"}},
		{"xdp.egress.limit=udp=10pps", TCX, []string{"egress tc"}},
		{"xdp.ingress.limit=udp=10pps", Generic, []string{"egress generic", "ingress tc"}},
		{"xdp.limit=udp=10pps", Auto, []string{"egress generic", "egress tc", "ingress tc"}},
	} {
		must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, c.labels), Mode: c.mode}))
		n.wantHooks(dir, string(c.mode)+" "+c.labels, c.hooks...)
		must(t, f.Detach(n.host.Index))
	}
}

// TestBothNeedsTheSlot checks what Both says where somebody else has the XDP slot, and when it is free again.
func TestBothNeedsTheSlot(t *testing.T) {
	n := newNetwork(t)
	l, err := link.AttachXDP(link.XDPOptions{Program: passProgram(t), Interface: n.host.Index, Flags: link.XDPGenericMode})
	must(t, err)
	defer l.Close()
	dir := bpffs(t)
	f := open(t, dir)
	defer f.Close()
	for _, free := range []bool{false, true} {
		if free {
			must(t, l.Detach())
		}
		must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), BothHooks: true}))
		n.wantUDP(false, "drop=udp")
		if got := f.Both(n.host.Index); got != free {
			t.Errorf("both hooks: %v, and the slot is free: %v", got, free)
		}
	}
}
