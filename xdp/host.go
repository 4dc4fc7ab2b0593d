package xdp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// HostAddresses asks the kernel for the addresses of this network namespace, whose links are given, and for the prefixes that it reaches
// without a router: those of its addresses and of its routes without a gateway. Both are sorted.
//
// The link-local address of a bridge's port is not among them: nobody reaches it, and each container brings one
// along. Nor is that of a link that has come since, of which there is a message. Nor is what a tunnel carries on-link, because a route into one has no gateway wherever it leads.
func HostAddresses(links Links) (addrs []netip.Addr, onLink []netip.Prefix, err error) {
	found, err := uninterrupted(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses: %w", err)
	}
	routes, err := uninterrupted(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, nil, fmt.Errorf("list routes: %w", err)
	}
	flags, bridges, ports := map[int]uint32{}, map[int]bool{}, map[int]bool{}
	for _, l := range links {
		flags[l.index] = l.flags
		bridges[l.index] = l.kind == "bridge"
	}
	for _, l := range links {
		ports[l.index] = bridges[l.master]
	}
	for _, f := range found {
		p := prefixOf(f.IPNet)
		if _, listed := flags[f.LinkIndex]; !p.IsValid() || !listed || ports[f.LinkIndex] && p.Addr().IsLinkLocalUnicast() {
			continue
		}
		addrs = append(addrs, p.Addr())
		if flags[f.LinkIndex]&unix.IFF_LOOPBACK == 0 {
			onLink = append(onLink, p.Masked())
		}
	}
	for _, r := range routes {
		if p := prefixOf(r.Dst); p.IsValid() && direct(r) && flags[r.LinkIndex]&unix.IFF_BROADCAST != 0 {
			onLink = append(onLink, p.Masked())
		}
	}
	onLink = slices.DeleteFunc(onLink, func(p netip.Prefix) bool { return p.Bits() == 0 })
	slices.SortFunc(addrs, netip.Addr.Compare)
	slices.SortFunc(onLink, netip.Prefix.Compare)
	return slices.Compact(addrs), slices.Compact(onLink), nil
}

// direct says whether a route leads to neighbours.
func direct(r netlink.Route) bool {
	return r.Type == unix.RTN_UNICAST && r.Gw == nil && r.Via == nil && len(r.MultiPath) == 0
}

// uninterrupted repeats a dump that the kernel reports as interrupted: it comes with a part only.
func uninterrupted[T any](dump func() ([]T, error)) (out []T, err error) {
	for range 10 {
		out, err = dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return nil, err
}

// prefixOf is invalid for nil.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a.Unmap(), ones)
}
