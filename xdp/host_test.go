package xdp

import (
	"context"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// setUp adds devices, addresses and routes to the namespace that plays the host.
func setUp(t *testing.T, l netlink.Link, addrs ...string) netlink.Link {
	t.Helper()
	must(t, netlink.LinkAdd(l))
	l, err := netlink.LinkByName(l.Attrs().Name)
	must(t, err)
	must(t, netlink.LinkSetUp(l))
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		must(t, err)
		must(t, netlink.AddrAdd(l, addr))
	}
	return l
}

func route(t *testing.T, l netlink.Link, to, by string) *netlink.Route {
	t.Helper()
	dst, err := netlink.ParseIPNet(to)
	must(t, err)
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst}
	if by != "" {
		r.Gw = netip.MustParseAddr(by).AsSlice()
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	return r
}

func TestHostAddresses(t *testing.T) {
	n := newNetwork(t)
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	bridge := setUp(t, &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}, "198.51.100.1/24", "fe80::1/64")
	port, err := netlink.LinkByIndex(n.host.Index)
	must(t, err)
	must(t, netlink.LinkSetMaster(port, bridge))
	own, err := netlink.ParseAddr("fe80::5/64")
	must(t, err)
	must(t, netlink.AddrAdd(port, own))
	tunnel := setUp(t, &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN}, "10.0.0.1/32")
	for _, r := range []*netlink.Route{
		route(t, port, "203.0.113.0/25", ""), route(t, port, "203.0.113.128/25", "192.0.2.9"),
		route(t, port, "0.0.0.0/0", ""), route(t, tunnel, "128.0.0.0/1", ""),
	} {
		must(t, netlink.RouteAdd(r))
	}
	links, err := ListLinks()
	must(t, err)
	addrs, onLink, err := HostAddresses(links)
	must(t, err)
	for a, want := range map[string]bool{"127.0.0.1": true, "::1": true, "192.0.2.1": true, "2001:db8::1": true, "198.51.100.1": true, "fe80::1": true,
		"10.0.0.1": true, "fe80::5": false, "192.0.2.2": false} {
		if got := slices.Contains(addrs, netip.MustParseAddr(a)); got != want {
			t.Errorf("%s is the host's: %t", a, got)
		}
	}
	for p, want := range map[string]bool{"192.0.2.0/24": true, "2001:db8::/64": true, "198.51.100.0/24": true, "203.0.113.0/25": true, "10.0.0.1/32": true,
		"203.0.113.128/25": false, "0.0.0.0/0": false, "128.0.0.0/1": false, "127.0.0.0/8": false} {
		if got := slices.Contains(onLink, netip.MustParsePrefix(p)); got != want {
			t.Errorf("%s is on-link: %t, %v", p, got, onLink)
		}
	}
}

// TestWatchHost looks at what the kernel tells of devices, addresses and routes, and whom it concerns.
func TestWatchHost(t *testing.T) {
	n := newNetwork(t)
	port, err := netlink.LinkByIndex(n.host.Index)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	lost, changes, done := make(chan struct{}, 10), make(chan Change, 1000), make(chan struct{})
	host, err := netns.Get()
	must(t, err)
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: a socket is of the namespace of the thread that opens it
		if netns.Set(host) == nil {
			WatchHost(ctx, slog.New(slog.DiscardHandler), func() { lost <- struct{}{} }, func(c Change) { changes <- c })
		}
	}()
	t.Cleanup(func() { cancel(); <-done; _ = host.Close() })
	hear := func(what string, want func(Change) bool) {
		t.Helper()
		for end := time.After(10 * time.Second); ; {
			select {
			case c := <-changes:
				if want(c) {
					return
				}
			case <-end:
				t.Fatalf("nothing was heard of %s", what)
			}
		}
	}
	quiet := func(what string, no func(Change) bool) {
		t.Helper()
		for end := time.After(100 * time.Millisecond); ; {
			select {
			case c := <-changes:
				if no(c) {
					t.Errorf("%s: %+v", what, c)
				}
			case <-end:
				return
			}
		}
	}
	of := func(l netlink.Link, more func(Change) bool) func(Change) bool {
		return func(c Change) bool { return c.Index == l.Attrs().Index && more(c) }
	}
	select {
	case <-lost:
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was heard of the subscription")
	}
	hosts := func(c Change) bool { return c.Host && c.Unless == 0 }
	// The kernel makes routes of the addresses that are there when it has seen that the device is up, which it may not have yet.
	for end := time.Now().Add(10 * time.Second); port.Attrs().OperState != netlink.OperUp && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		port, err = netlink.LinkByIndex(n.host.Index)
		must(t, err)
	}
	quiet("before", func(Change) bool { return false })

	a, err := netlink.ParseAddr("198.51.100.1/32")
	must(t, err)
	must(t, netlink.AddrAdd(port, a))
	hear("an address", hosts)
	local, err := netlink.ParseAddr("fe80::5/64")
	must(t, err)
	must(t, netlink.AddrAdd(port, local))
	hear("a link-local address", func(c Change) bool { return c.Host && c.Unless == n.host.Index })
	quiet("the route to link-local addresses is the host's", hosts)
	must(t, netlink.RouteAdd(route(t, port, "203.0.113.0/25", "")))
	hear("a route to neighbours", hosts)
	must(t, netlink.RouteAdd(route(t, port, "203.0.113.128/25", "192.0.2.9")))
	quiet("a route by a gateway", hosts)

	bridge := setUp(t, &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}})
	hear("a bridge", of(bridge, func(c Change) bool { return c.Host && c.Port == (Port{}) && c.NsID < 0 && !c.Gone }))
	veths, err := listVeths()
	must(t, err)
	mine, err := veths.In(n.path)
	must(t, err)
	if len(mine) != 1 || mine[0].Index != n.host.Index || len(veths.With(mine[0].NsID)) != 1 {
		t.Fatalf("the container's veths: %+v", mine)
	}
	must(t, netlink.LinkSetDown(port))
	hear("a veth", of(port, func(c Change) bool { return c.NsID == mine[0].NsID && !c.Host && c.Port == (Port{}) }))
	must(t, netlink.LinkSetMaster(port, bridge))
	hear("a port", of(port, func(c Change) bool {
		return c.Port.Index == n.host.Index && c.Port.Bridge == "br0" && c.Port.Master == bridge.Attrs().Index && c.Port.NsID == mine[0].NsID && !c.Gone
	}))
	must(t, netlink.LinkSetNoMaster(port))
	hear("a port that is none any more", of(port, func(c Change) bool { return c.Port == (Port{}) && !c.Gone }))
	must(t, netlink.LinkSetName(bridge, "br1"))
	must(t, netlink.LinkSetMaster(port, bridge))
	hear("a port of a bridge with another name", of(port, func(c Change) bool { return c.Port.Bridge == "br1" }))
	must(t, netlink.LinkDel(port))
	hear("a device that is gone", of(port, func(c Change) bool { return c.Gone }))
}
