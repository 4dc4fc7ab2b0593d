package xdp

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go4.org/netipx"
	"golang.org/x/sys/unix"
)

// inEth0 changes the container's end of the veth, as the container can with CAP_NET_ADMIN.
func (n *network) inEth0(change func(netlink.Link) error) (err error) {
	n.t.Helper()
	n.inContainer(func() {
		eth0, findErr := netlink.LinkByName("eth0")
		must(n.t, findErr)
		err = change(eth0)
	})
	return err
}

// hasQueues skips the test where one processor is all that there is: the kernel gives a veth a queue for each.
func (n *network) hasQueues(err error) {
	n.t.Helper()
	if errors.Is(err, unix.EINVAL) {
		n.t.Skip("a veth has one queue here, as there is one processor")
	}
	must(n.t, err)
}

// TestQueueOfItsOwn sends by AF_XDP and a queue that the host's end of the veth does not have, whose driver would not show it to
// native XDP. Beside such a queue the kernel attaches none, and beside native XDP it lets nobody send by one.
func TestQueueOfItsOwn(t *testing.T) {
	const own = 1
	for _, native := range []bool{false, true} {
		n := newNetwork(t)
		must(t, onCPU(0))
		w := wireEnd{t: t, ifindex: n.host.Index, host: newRawEnd(t, "host0")}
		f := open(t, bpffs(t))
		defer f.Close()
		var fast *xsk
		n.inContainer(func() {
			eth0, err := netlink.LinkByName("eth0")
			must(t, err)
			w.container = newRawEnd(t, "eth0")
			if n.hasQueues(channels("eth0", 2, 2)); native {
				must(t, channels("eth0", 2, 1))
			}
			fast = newXSK(t, eth0.Attrs().Index, own)
		})
		// Where the socket at the host's end looks a packet has passed XDP, and no more.
		arrives := func(labels string, mode Mode, both bool) bool {
			t.Helper()
			must(t, f.Detach(n.host.Index))
			must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, labels), Mode: mode, BothHooks: both}))
			return fast.send(ask(own)) && w.crossed(w.container, w.host, ask(own))
		}
		if native {
			fast.patience = long
			if arrives("xdp.drop=udp", Native, false) {
				t.Error("it arrives past native XDP")
			}
			n.inContainer(func() {
				if err := channels("eth0", 2, 2); !errors.Is(err, unix.EINVAL) {
					t.Errorf("another queue to send by, beside native XDP: %v", err)
				}
			})
			continue
		}
		for _, both := range []bool{false, true} {
			if arrives("xdp.drop=udp", Generic, both) || !arrives("xdp.drop=tcp", Generic, both) {
				t.Errorf("both hooks %v: what is forbidden arrives, or what is allowed does not", both)
			}
		}
		must(t, f.Detach(n.host.Index))
		if err := f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Native}); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("native XDP beside a queue that it does not see: %v", err)
		}
	}
}

// TestNativeIsRefused lets the container see to it that the kernel refuses native XDP on its veth before a filter comes. It is
// closed then, and after that filtered by what closed it. Once a native filter is there, the container can do so no more.
func TestNativeIsRefused(t *testing.T) {
	mtu := func(mtu int) func(netlink.Link) error {
		return func(eth0 netlink.Link) error { return netlink.LinkSetMTU(eth0, mtu) }
	}
	queues := func(tx uint32) func(netlink.Link) error {
		return func(netlink.Link) error { return channels("eth0", 1, tx) }
	}
	for _, tc := range []struct {
		name    string
		more    func(netlink.Link) error
		less    func(netlink.Link) error
		refusal error
	}{
		{"MTU", mtu(65535), mtu(1500), unix.ERANGE},
		{"queues", queues(2), queues(1), unix.ENOSPC},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNetwork(t)
			dir := bpffs(t)
			f := open(t, dir)
			defer f.Close()
			n.hasQueues(n.inEth0(tc.more))
			for _, both := range []bool{false, true} {
				want := func(labels string) Want {
					return Want{Policy: labelled(t, labels), Mode: Native, BothHooks: both}
				}
				if err := f.Attach(n.host.Index, want("xdp.drop=udp")); !errors.Is(err, tc.refusal) {
					t.Fatalf("attached: %v, want %v", err, tc.refusal)
				}
				n.wantHooks(dir, "refused")
				n.wantUDP(true, "refused, and not closed yet")
				byFilter, err := f.Shut(n.host.Index)
				must(t, err)
				if !byFilter {
					t.Error("closed by setting the veth down")
				}
				n.wantUDP(false, "closed")
				must(t, f.Attach(n.host.Index, want("xdp.drop=udp")))
				n.wantUDP(false, "attached after all, drop=udp")
				must(t, f.Attach(n.host.Index, want("xdp.drop=tcp")))
				n.wantUDP(true, "attached after all, drop=tcp")
				must(t, f.Detach(n.host.Index))
			}

			must(t, n.inEth0(tc.less))
			must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Native, BothHooks: true}))
			if err := n.inEth0(tc.more); err == nil {
				t.Error("done beside a native filter")
			}
			n.wantUDP(false, "native, drop=udp")
			must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=tcp"), Mode: Native, BothHooks: true}))
			n.wantUDP(true, "native, drop=tcp")
			n.wantHooks(dir, "native", "egress native", "egress tc", "ingress tc")
		})
	}
}

// inside runs f with the thread in a namespace.
func (n *network) inside(ns netns.NsHandle, f func()) {
	n.t.Helper()
	inner := *n
	inner.container = ns
	inner.inContainer(f)
}

// newNested is a namespace that a container has made for itself.
func (n *network) newNested() netns.NsHandle {
	n.t.Helper()
	here, err := netns.Get()
	must(n.t, err)
	defer here.Close()
	nested, err := netns.New()
	must(n.t, err)
	must(n.t, netns.Set(here))
	n.t.Cleanup(func() { _ = nested.Close() })
	return nested
}

// TestNumbersOfAnother lets a container make a veth of its own whose ends have the numbers of another container's veth, one of
// them in a namespace within it. They fool nobody: the kernel pairs veths and namespaces.
func TestNumbersOfAnother(t *testing.T) {
	n := newNetwork(t)
	victim := n.newNested()
	must(t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "host1", Index: 77}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(victim)),
	}))
	var eth0 int
	n.inside(victim, func() {
		l, err := netlink.LinkByName("eth0")
		must(t, err)
		eth0 = l.Attrs().Index
	})
	nested := n.newNested()
	n.inContainer(func() {
		must(t, netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "forged", Index: 77}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(nested)),
		}))
		forged, err := netlink.LinkByIndex(77)
		must(t, err)
		if forged.Attrs().ParentIndex != eth0 || forged.Attrs().NetNsID < 0 {
			t.Fatalf("forged: %+v", forged.Attrs())
		}
	})
	all, err := listVeths()
	must(t, err)
	for name, want := range map[string]struct {
		ns   netns.NsHandle
		veth string
	}{"attacker": {n.container, "host0"}, "victim": {victim, "host1"}, "nested": {nested, ""}} {
		found, err := all.In("/proc/self/fd/" + itoa(int(want.ns)))
		must(t, err)
		if len(found) > 1 || len(found) == 1 && found[0].Name != want.veth || len(found) == 0 && want.veth != "" {
			t.Errorf("%s: %+v, want %q", name, found, want.veth)
		}
	}
}

// TestMacvlanOnEth0 sends by a macvlan that the container has put on its end of the veth: it leaves by the veth and meets the
// filter, and with a MAC of its own it is taken for forged.
func TestMacvlanOnEth0(t *testing.T) {
	n := newNetwork(t)
	nested := n.newNested()
	must(t, n.inEth0(func(eth0 netlink.Link) error {
		err := netlink.LinkAdd(&netlink.Macvlan{
			LinkAttrs: netlink.LinkAttrs{Name: "mine0", ParentIndex: eth0.Attrs().Index, Namespace: netlink.NsFd(int(nested))},
			Mode:      netlink.MACVLAN_MODE_BRIDGE,
		})
		n.has("macvlan", err)
		return nil
	}))
	address := netip.MustParseAddr("192.0.2.3")
	n.inside(nested, func() {
		l, err := netlink.LinkByName("mine0")
		must(t, err)
		must(t, netlink.LinkSetUp(l))
		addr, err := netlink.ParseAddr(address.String() + "/24")
		must(t, err)
		must(t, netlink.AddrAdd(l, addr))
	})
	own, err := CompileOwn([]netipx.IPRange{netipx.IPRangeFrom(address, address)})
	must(t, err)
	behind := *n
	behind.container = nested
	f := open(t, bpffs(t))
	defer f.Close()
	behind.wantUDPTo("192.0.2.1:0", true, "unfiltered")
	for _, mode := range []Mode{Generic, Native, TCX} {
		must(t, f.Detach(n.host.Index))
		for _, c := range []struct {
			labels  string
			own     *Tables
			arrives bool
		}{{"xdp.drop=udp", nil, false}, {"xdp.drop=tcp", nil, true}, {"xdp.drop=tcp", own, false}} {
			want := Want{Policy: labelled(t, c.labels), Own: c.own, Mode: mode, BothHooks: true}
			if c.own != nil {
				must(t, n.inEth0(func(eth0 netlink.Link) error { want.MAC = eth0.Attrs().HardwareAddr; return nil }))
			}
			must(t, f.Attach(n.host.Index, want))
			behind.wantUDPTo("192.0.2.1:0", c.arrives, string(mode)+" "+c.labels)
		}
	}
}

// TestEth0IsTakenAway lets the container rename its end of the veth, move it into a namespace of its own, where the filter still
// judges what is sent by it and takes another policy, and delete it.
func TestEth0IsTakenAway(t *testing.T) {
	n := newNetwork(t)
	dir := bpffs(t)
	f := open(t, dir)
	defer f.Close()
	nested := n.newNested()
	at := *n
	shows := func(when string) {
		t.Helper()
		for labels, arrives := range map[string]bool{"xdp.drop=udp": false, "xdp.drop=tcp": true} {
			must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, labels), BothHooks: true}))
			at.wantUDPTo("192.0.2.1:0", arrives, when+", "+labels)
		}
	}
	shows("as it was")
	must(t, n.inEth0(func(eth0 netlink.Link) error {
		return errors.Join(netlink.LinkSetDown(eth0), netlink.LinkSetName(eth0, "renamed0"), netlink.LinkSetUp(eth0))
	}))
	shows("renamed")

	n.inContainer(func() {
		l, err := netlink.LinkByName("renamed0")
		must(t, err)
		must(t, netlink.LinkSetNsFd(l, int(nested)))
	})
	n.inside(nested, func() {
		l, err := netlink.LinkByName("renamed0")
		must(t, err)
		addr, err := netlink.ParseAddr("192.0.2.2/24")
		must(t, err)
		must(t, errors.Join(netlink.LinkSetUp(l), netlink.AddrAdd(l, addr)))
	})
	at.container = nested
	shows("moved")
	all, err := listVeths()
	must(t, err)
	in, err := all.In(n.path)
	must(t, err)
	if v, there := all.At(n.host.Index); len(in) > 0 || !there || v.Name != "host0" {
		t.Errorf("in the container %+v; by its number %+v, %v", in, v, there)
	}

	n.inside(nested, func() {
		l, err := netlink.LinkByName("renamed0")
		must(t, err)
		must(t, netlink.LinkDel(l))
	})
	must(t, sweep(f))
	if all, err = listVeths(); err != nil {
		t.Fatal(err)
	}
	if _, there := all.At(n.host.Index); there || len(filtered(f)) > 0 || len(pins(t, dir)) > 0 {
		t.Errorf("deleted, and there: %v, devices %v, pins %v", there, filtered(f), pins(t, dir))
	}
}
