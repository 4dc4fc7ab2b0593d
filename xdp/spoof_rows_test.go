package xdp

import (
	"net/netip"
	"slices"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// The frames of TestSpoof are those of policytest's builders: from ownMAC to its sink. The container has an address of each
// family on this veth and another address on another one.
var (
	ownMAC   = [6]byte{0, 0, 0x5e, 0, 0x53, 1}
	otherMAC = [6]byte{0, 0, 0x5e, 0, 0x53, 7}
	ownLocal = policy.LinkLocal(ownMAC).String()
)

const (
	own4, own6, elsewhere4 = "192.0.2.2", "2001:db8::2", "198.51.100.2"
	other4, other6         = "192.0.2.7", "2001:db8::7"
	gateway4, gateway6     = "192.0.2.1", "2001:db8::1"
	everybody4             = "255.255.255.255"
	allNodes, allRouters   = "ff02::1", "ff02::2"
)

// The kinds of IPv6 extension headers that hide what follows.
const hopByHop, destinationOptions, fragmentHeader = 0, 60, 44

// spoofRow is what a container may send, and what it may not.
type spoofRow struct {
	name   string
	own    [][]byte
	forged [][]byte
	// why is the reason for which the forged ones are dropped: Spoof, unless another is set.
	why policy.Reason
}

var spoofRows = slices.Concat(ipRows(), linkRows(), serverRows(), hiddenRows())

func udpFrom(src, dst string) []byte {
	return policytest.IP(src, dst, protoUDP, policytest.UDP(1000, 53, 'd', 'a', 't', 'a'))
}

// each maps addresses to frames.
func each(frame func(string) []byte, addresses ...string) (out [][]byte) {
	for _, a := range addresses {
		out = append(out, frame(a))
	}
	return out
}

func to(dst string) func(string) []byte {
	return func(src string) []byte { return udpFrom(src, dst) }
}

// ipRows are about the addresses of packets, whatever they carry.
func ipRows() []spoofRow {
	with := func(proto uint8, payload []byte) (own, forged [][]byte) {
		frame := func(dst string) func(string) []byte {
			return func(src string) []byte { return policytest.IP(src, dst, proto, payload) }
		}
		return append(each(frame(gateway4), own4), each(frame(gateway6), own6)...), append(each(frame(gateway4), other4), each(frame(gateway6), other6)...)
	}
	rows := []spoofRow{
		{name: "IPv4 source", own: each(to(gateway4), own4, elsewhere4),
			forged: each(to(gateway4), other4, gateway4, "203.0.113.9", "127.0.0.1", "0.0.0.0", everybody4, "192.0.2.3")},
		{name: "IPv6 source", own: each(to(gateway6), own6, ownLocal),
			forged: each(to(gateway6), other6, gateway6, "fe80::7", "::", "::1", "::ffff:"+own4, "2001:db8::3")},
		{name: "Ethernet source", own: each(to(gateway4), own4), forged: [][]byte{
			policytest.With(udpFrom(own4, gateway4), 6, otherMAC[:]...), policytest.With(udpFrom(own6, gateway6), 6, otherMAC[:]...)}},
		{name: "Ethernet source of what is not IP", own: [][]byte{policytest.Eth(0x88b5, make([]byte, 40))},
			forged: [][]byte{policytest.With(policytest.Eth(0x88b5, make([]byte, 40)), 6, otherMAC[:]...)}},
	}
	for name, p := range map[string]struct {
		proto   uint8
		payload []byte
	}{
		"TCP": {protoTCP, policytest.TCP(1, 443)}, "SCTP": {protoSCTP, policytest.SCTP(1, 2)}, "GRE": {47, make([]byte, 8)},
	} {
		own, forged := with(p.proto, p.payload)
		rows = append(rows, spoofRow{name: name, own: own, forged: forged})
	}
	ping := func(src string) []byte { return policytest.IP(src, gateway4, protoICMP, policytest.ICMP(8, 0)) }
	ping6 := func(src string) []byte { return policytest.IP(src, gateway6, protoICMPv6, policytest.ICMP(128, 0)) }
	return append(rows, spoofRow{name: "ping", own: append(each(ping, own4), each(ping6, own6)...), forged: append(each(ping, other4), each(ping6, other6)...)})
}

// arp is a packet of RFC 826.
func arp(operation uint8, mac [6]byte, sender, target string) []byte {
	a, b := netip.MustParseAddr(sender).As4(), netip.MustParseAddr(target).As4()
	frame := policytest.With(policytest.ARP(), 21, operation)
	copy(frame[22:], mac[:])
	copy(frame[28:], a[:])
	copy(frame[38:], b[:])
	return frame
}

// nd is a message of neighbour discovery with an option for each of options, which are link-layer addresses.
func nd(typ uint8, src, dst, target string, kind uint8, options ...[6]byte) []byte {
	var body []byte
	if target != "" {
		body = netip.MustParseAddr(target).AsSlice()
	}
	for _, mac := range options {
		body = append(append(body, kind, 1), mac[:]...)
	}
	return hops(255, policytest.IP(src, dst, protoICMPv6, policytest.ICMP(typ, 0, body...)))
}

// hops sets the hop limit of an IPv6 packet.
func hops(n uint8, frame []byte) []byte { return policytest.With(frame, 14+7, n) }

const routerSolicit, routerAdvert, solicit, advertise, redirect = 133, 134, 135, 136, 137

// linkRows are about what hosts say of themselves on a link.
func linkRows() []spoofRow {
	return []spoofRow{
		{name: "ARP", own: [][]byte{
			arp(1, ownMAC, own4, gateway4), arp(2, ownMAC, own4, gateway4), arp(1, ownMAC, elsewhere4, gateway4),
			arp(1, ownMAC, "0.0.0.0", own4), arp(1, ownMAC, own4, own4), arp(2, ownMAC, own4, own4), // probe, announcements
		}, forged: [][]byte{
			arp(1, ownMAC, other4, gateway4), arp(2, ownMAC, gateway4, other4), arp(1, ownMAC, gateway4, gateway4),
			arp(2, otherMAC, own4, gateway4), arp(2, otherMAC, gateway4, other4),
			policytest.With(arp(2, otherMAC, other4, gateway4), 6, otherMAC[:]...),
			policytest.With(arp(2, ownMAC, other4, gateway4), 14, 0, 6), policytest.Cut(arp(2, ownMAC, own4, gateway4), 1),
		}},
		{name: "neighbour advertisement", own: [][]byte{
			nd(advertise, own6, gateway6, own6, 2, ownMAC), nd(advertise, own6, allNodes, own6, 2, ownMAC), nd(advertise, ownLocal, allNodes, own6, 2, ownMAC),
			nd(advertise, ownLocal, "fe80::1", ownLocal, 2), nd(advertise, own6, "2001:db8:ffff::1", own6, 2, ownMAC),
		}, forged: [][]byte{
			nd(advertise, own6, allNodes, other6, 2, ownMAC), nd(advertise, own6, gateway6, gateway6, 2, ownMAC), nd(advertise, ownLocal, allNodes, "fe80::7", 2, ownMAC),
			nd(advertise, own6, allNodes, own6, 2, otherMAC), nd(advertise, other6, allNodes, other6, 2, ownMAC), nd(advertise, own6, allNodes, own6, 2, ownMAC, ownMAC),
			nd(advertise, own6, "2001:db8:ffff::1", other6, 2, ownMAC), nd(advertise, own6, allNodes, "", 2),
		}},
		{name: "neighbour solicitation", own: [][]byte{
			nd(solicit, own6, "ff02::1:ff00:7", other6, 1, ownMAC), nd(solicit, own6, other6, other6, 1, ownMAC), nd(solicit, ownLocal, "ff02::1:ff00:7", other6, 1, ownMAC),
		}, forged: [][]byte{
			nd(solicit, own6, "ff02::1:ff00:7", other6, 1, otherMAC), nd(solicit, other6, "ff02::1:ff00:1", gateway6, 1, ownMAC),
			nd(solicit, own6, "2001:db8:ffff::1", other6, 1, otherMAC), nd(solicit, own6, other6, other6, 1, ownMAC, ownMAC),
		}},
		{name: "duplicate address detection", own: [][]byte{
			nd(solicit, "::", "ff02::1:ff00:2", own6, 1), nd(solicit, "::", "ff02::1:ff00:2", own6, 14, [6]byte{1, 2, 3, 4, 5, 6}), nd(solicit, "::", "ff02::1:ff53:1", ownLocal, 1),
		}, forged: [][]byte{nd(solicit, "::", "ff02::1:ff00:7", other6, 1), nd(solicit, "::", "2001:db8::7", own6, 1)}},
		{name: "router solicitation", own: [][]byte{
			nd(routerSolicit, ownLocal, allRouters, "", 1, ownMAC), nd(routerSolicit, "::", allRouters, "", 1),
		}, forged: [][]byte{nd(routerSolicit, ownLocal, allRouters, "", 1, otherMAC), nd(routerSolicit, "fe80::7", allRouters, "", 1, ownMAC)}},
		{name: "MLD", own: [][]byte{report("::"), report(ownLocal)}, forged: [][]byte{report("fe80::7"), hops(2, report("::"))}},
	}
}

// report is one of MLDv2, behind a router alert.
func report(src string) []byte {
	return hops(1, policytest.IP(src, "ff02::16", hopByHop, policytest.Extension(protoICMPv6, 0, policytest.ICMP(143, 0, make([]byte, 20)...))))
}

// about is an ICMP error of the container's about a packet that the gateway has sent to it.
func about(typ uint8, v6 bool) []byte {
	if v6 {
		quoted := policytest.IPv6(gateway6, own6, protoUDP, policytest.UDP(53, 1000))
		return policytest.IP(own6, gateway6, protoICMPv6, policytest.ICMP(typ, 0, quoted...))
	}
	quoted := policytest.IPv4(gateway4, own4, protoUDP, nil, policytest.UDP(53, 1000))
	return policytest.IP(own4, gateway4, protoICMP, policytest.ICMP(typ, 1, quoted...))
}

func datagram(src, dst string, from, to uint16) []byte {
	return policytest.IP(src, dst, protoUDP, policytest.UDP(from, to, make([]byte, 240)...))
}

// serverRows are about what only routers and servers have to say.
func serverRows() []spoofRow {
	return []spoofRow{
		{name: "redirect", own: [][]byte{about(3, false), about(11, false), about(2, true)}, forged: [][]byte{
			about(5, false), hops(255, policytest.IP(ownLocal, "fe80::7", protoICMPv6, policytest.ICMP(redirect, 0, make([]byte, 32)...))),
		}},
		{name: "router advertisement", own: [][]byte{nd(routerSolicit, ownLocal, allRouters, "", 1, ownMAC)}, forged: [][]byte{
			nd(routerAdvert, ownLocal, allNodes, "", 1, ownMAC), nd(routerAdvert, own6, other6, "", 1), hops(64, nd(routerAdvert, own6, gateway6, "", 1)),
			policytest.IP(own4, "224.0.0.1", protoICMP, policytest.ICMP(9, 0, make([]byte, 8)...)),
		}},
		{name: "DHCP", own: [][]byte{
			datagram("0.0.0.0", everybody4, 68, 67), datagram(own4, gateway4, 68, 67), datagram(own4, gateway4, 68, 53), datagram(own4, gateway4, 1067, 67),
		}, forged: [][]byte{
			datagram(own4, everybody4, 67, 68), datagram(own4, other4, 67, 68), datagram(own4, other4, 1067, 68), datagram("0.0.0.0", everybody4, 68, 53),
		}},
		{name: "DHCPv6", own: [][]byte{datagram(ownLocal, "ff02::1:2", 546, 547)}, forged: [][]byte{
			datagram(ownLocal, "fe80::7", 547, 546), datagram(ownLocal, "fe80::7", 1547, 546), datagram("fe80::7", "ff02::1:2", 546, 547),
		}},
	}
}

// hiddenRows are the same behind tags, extension headers and in fragments.
func hiddenRows() []spoofRow {
	advert := policytest.ICMP(routerAdvert, 0, make([]byte, 8)...)
	offer := policytest.UDP(547, 546, make([]byte, 40)...)
	behind := func(proto uint8, payload []byte, headers ...uint8) []byte {
		for _, h := range headers {
			payload, proto = policytest.Extension(proto, 0, payload), h
		}
		return hops(255, policytest.IP(ownLocal, allNodes, proto, payload))
	}
	fragment := func(src string, proto uint8, offset uint16, more bool, payload []byte) []byte {
		return hops(255, policytest.IP(src, allNodes, fragmentHeader, policytest.FragmentHeader(proto, offset, more, payload)))
	}
	later4 := func(src string) []byte { return policytest.With(udpFrom(src, gateway4), 14+6, 0, 30) }
	claim := nd(advertise, own6, allNodes, other6, 2, ownMAC)[14+40:]
	udp := policytest.UDP(1000, 53, make([]byte, 40)...)
	tags := func(frame []byte) [][]byte {
		return [][]byte{policytest.Tagged(frame, 0x8100), policytest.With(policytest.Tagged(frame, 0x8100), 14, 0, 0), policytest.Tagged(frame, 0x88a8, 0x8100)}
	}
	return []spoofRow{
		{name: "behind VLAN tags", own: slices.Concat(tags(udpFrom(own4, gateway4)), tags(arp(1, ownMAC, own4, gateway4))), forged: slices.Concat(
			tags(udpFrom(other4, gateway4)), tags(arp(2, ownMAC, other4, gateway4)), tags(nd(advertise, own6, allNodes, other6, 2, ownMAC)), tags(behind(protoICMPv6, advert)))},
		{name: "behind extension headers", own: [][]byte{behind(protoUDP, udp, destinationOptions, hopByHop)}, forged: [][]byte{
			behind(protoICMPv6, advert, destinationOptions), behind(protoICMPv6, advert, destinationOptions, destinationOptions, hopByHop), behind(protoUDP, offer, destinationOptions),
			behind(protoICMPv6, claim, destinationOptions), behind(protoICMPv6, claim, fragmentHeader),
		}},
		{name: "in fragments", own: [][]byte{fragment(own6, protoUDP, 0, true, udp), fragment(own6, protoUDP, 6, false, udp), later4(own4), later4(elsewhere4)}, forged: [][]byte{
			fragment(ownLocal, protoICMPv6, 0, true, advert), fragment(ownLocal, protoUDP, 0, true, offer), fragment(ownLocal, protoICMPv6, 0, true, claim),
			fragment(ownLocal, protoICMPv6, 0, true, claim[:8]), fragment(other6, protoUDP, 0, true, udp), fragment(other6, protoUDP, 6, false, udp), later4(other4),
		}},
		{name: "cut out of a first fragment", own: [][]byte{fragment(own6, protoUDP, 0, true, udp)}, why: policy.Truncated, forged: [][]byte{
			fragment(ownLocal, destinationOptions, 0, true, policytest.Extension(protoICMPv6, 3, nil)[:8]),
		}},
		{name: "more extension headers than are walked", own: [][]byte{behind(protoUDP, udp, slices.Repeat([]uint8{destinationOptions}, 8)...)}, why: policy.TooManyHeaders,
			forged: [][]byte{behind(protoICMPv6, advert, slices.Repeat([]uint8{destinationOptions}, 9)...)}},
	}
}
