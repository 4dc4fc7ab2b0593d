package policytest

import (
	"net/netip"

	"go4.org/netipx"

	"github.com/vethwall/vethwall/policy"
)

// Section is a part of the table of unusual frames.
type Section struct {
	Title string
	Rows  []Row
}

// Row is a kind of frame and its verdicts. A verdict is a policy.Reason by its name; one of what the container sends and
// one of what it receives with a slash between them, where they differ.
type Row struct {
	Name string
	Frames
	// After is what came before each of the frames, the same way; AfterBack came the other way. nil: nothing.
	After, AfterBack Frames
	// Is is "MATCH=VERDICT": what xdp.drop=MATCH says of the frames, which are such a thing or may be one. "" where no
	// rule drops them. Isnt is a match that they are not, so that they pass; "" where they may be anything.
	Is, Isnt string
	// Allow and Drop are the verdicts of AllowList and DropList.
	Allow, Drop string
	// Own is what antispoof says of the frames when the container sends them; "" for "pass".
	Own string
}

// Container is who sends the frames of Sent.
func Container() policy.Identity {
	mac := [6]byte{0, 0, 0x5e, 0, 0x53, 1}
	id := policy.Identity{MAC: mac}
	for _, a := range []netip.Addr{netip.MustParseAddr(container4), netip.MustParseAddr(container6), policy.LinkLocal(mac)} {
		id.Own = append(id.Own, netipx.IPRangeFrom(a, a))
	}
	return id
}

// Peer are the addresses of who sends the frames of Received.
func Peer() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(peer4), netip.MustParseAddr(peer6)}
}

// The lists of the table, both for either direction.
const (
	AllowList = "xdp.allow=443/tcp,53/udp@192.0.2.0/24+2001:db8:b::/48"
	DropList  = "xdp.drop=udp,25/tcp@192.0.2.0/24+2001:db8:b::/48"
)

const (
	allFar  = "all@" + far4 + "+" + far6
	allPeer = "all@" + peer4 + "+" + peer6
	allIP   = "all@ipv4+ipv6"
)

// Unusual is the table of malformed and unusual frames: every way for a header to be wrong that the parsers know of, each
// beside what is just not wrong yet.
var Unusual = []Section{
	{"Ethernet and VLAN tags", ethernetRows},
	{"ARP and what is not IP", notIPRows},
	{"IPv4", ipv4Rows},
	{"IPv6", ipv6Rows},
	{"Fragments", fragmentRows},
	{"Tunnels and other protocols", protocolRows},
	{"TCP", tcpRows},
	{"UDP and SCTP", udpRows},
	{"Addresses", addressRows},
	{"ICMP", icmpRows},
	{"ICMP errors", errorRows},
	{"Neighbour discovery and MLD", linkRows},
}

var ethernetRows = []Row{
	{Name: "an ethertype of IP and nothing behind it", Frames: both(protoUDP, datagram()).cut(14, 14),
		Is: "53/udp=truncated", Allow: "truncated", Drop: "truncated", Own: "truncated"},
	{Name: "one VLAN tag", Frames: both(protoUDP, datagram()).tagged(0x8100), Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass", Drop: "rule"},
	{Name: "a priority tag (VLAN 0)", Frames: both(protoUDP, datagram()).tagged(0x8100).with(14, 0xe0, 0),
		Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass", Drop: "rule"},
	{Name: "two tags (QinQ)", Frames: all(both(protoUDP, datagram()).tagged(0x88a8, 0x8100), both(protoUDP, datagram()).tagged(0x8100, 0x8100)),
		Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass", Drop: "rule"},
	{Name: "three tags, four tags", Frames: all(both(protoUDP, datagram()).tagged(0x88a8, 0x8100, 0x8100), both(protoUDP, datagram()).tagged(0x88a8, 0x88a8, 0x8100, 0x8100)),
		Is: "53/udp=too-many-tags", Allow: "too-many-tags", Drop: "too-many-tags", Own: "too-many-tags"},
	{Name: "three tags, cut anywhere behind the second", Frames: ipv4(protoUDP, datagram()).tagged(0x8100, 0x8100, 0x8100).cut(22, 30),
		Is: "53/udp=too-many-tags", Allow: "too-many-tags", Drop: "too-many-tags", Own: "too-many-tags"},
	{Name: "a tag cut short", Frames: all(ipv4(protoUDP, datagram()).tagged(0x8100).cut(14, 17), ipv4(protoUDP, datagram()).tagged(0x88a8, 0x8100).cut(18, 21)),
		Is: "53/udp=truncated", Allow: "truncated", Drop: "truncated", Own: "truncated"},
	{Name: "tagged IPv4, cut anywhere behind the tag", Frames: ipv4(protoUDP, datagram()).tagged(0x8100).cut(18, 45),
		Is: "53/udp=truncated", Allow: "truncated", Drop: "truncated", Own: "truncated"},
	{Name: "a tag of old (0x9100, 0x9200, 0x9300)", Frames: all(ipv4(protoUDP, datagram()).tagged(0x9100), ipv4(protoUDP, datagram()).tagged(0x9200), ipv4(protoUDP, datagram()).tagged(0x9300)),
		Is: "all=rule", Isnt: allIP, Allow: "default", Drop: "pass"},
}

// snap is an IP packet behind IEEE 802.2 LLC and SNAP (RFC 1042).
var snap = append([]byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}, IPv4(container4, peer4, protoUDP, nil, datagram())...)

// arp is the container's, whichever way it goes.
var arp = one(func(Way) []byte { return With(ARP(), 28, 198, 51, 100, 1) })

var notIPRows = []Row{
	{Name: "ARP of the container, or a probe of no address", Frames: all(arp, arp.with(28, 0, 0, 0, 0)), Allow: "pass", Drop: "pass"},
	{Name: "ARP, an unknown operation", Frames: arp.with(20, 0xff, 0xff), Allow: "pass", Drop: "pass"},
	{Name: "ARP with somebody else's address, or MAC", Frames: all(arp.with(28, 192, 0, 2, 7), arp.with(22, 2)), Allow: "pass", Drop: "pass", Own: "spoof"},
	{Name: "ARP, cut anywhere", Frames: arp.cut(15, 41), Allow: "pass", Drop: "pass", Own: "spoof"},
	{Name: "ARP for another medium, addresses of length 0", Frames: all(arp.with(14, 0xff, 0xff), arp.with(18, 0, 0)), Allow: "pass", Drop: "pass", Own: "spoof"},
	{Name: "ARP under one tag, two tags", Frames: all(arp.tagged(0x8100), arp.tagged(0x88a8, 0x8100)), Allow: "pass", Drop: "pass"},
	{Name: "ARP under three tags", Frames: arp.tagged(0x8100, 0x8100, 0x8100),
		Is: "udp=too-many-tags", Allow: "too-many-tags", Drop: "too-many-tags", Own: "too-many-tags"},
	{Name: "reverse ARP (0x8035)", Frames: ethertypes(ARP()[14:], 0x8035), Is: "all=rule", Isnt: allIP, Allow: "default", Drop: "pass"},
	{Name: "a length in place of the ethertype (802.3: LLC, spanning tree)", Frames: ethertypes(make([]byte, 46), 0, 3, 0x26, 0x2e, 0x5dc, 0x5ff),
		Is: "all=rule", Isnt: allIP, Allow: "default", Drop: "pass"},
	{Name: "IP behind LLC and SNAP", Frames: ethertypes(snap, uint16(len(snap))), Is: "all=rule", Isnt: allIP, Allow: "default", Drop: "pass"},
	{Name: "MPLS", Frames: ethertypes(append([]byte{0, 1, 1, 64}, snap[8:]...), 0x8847, 0x8848), Is: "all=rule", Isnt: allIP, Allow: "default", Drop: "pass"},
	{Name: "PPPoE, discovery and session", Frames: ethertypes(append([]byte{0x11, 0, 0, 1, 0, 30, 0, 0x21}, snap[8:]...), 0x8863, 0x8864),
		Is: "all=rule", Isnt: allIP, Allow: "default", Drop: "pass"},
	{Name: "any other ethertype (LLDP, EAPOL, MACsec, IPX, wake on LAN, experimental)", Frames: ethertypes(snap[8:], 0x88cc, 0x888e, 0x88e5, 0x8137, 0x0842, 0x88b5, 0xffff),
		Is: "all=rule", Isnt: allIP, Allow: "default", Drop: "pass"},
}

var ipv4Rows = []Row{
	{Name: "cut anywhere", Frames: all(ipv4(protoUDP, datagram()).cut(14, 41), ipv4(protoTCP, syn()).cut(14, 53)),
		Is: "53/udp=truncated", Allow: "truncated", Drop: "truncated", Own: "truncated"},
	{Name: "version 0 to 3, 5 to 15", Frames: all(ipv4(protoUDP, datagram()).each(0, 3, version), ipv4(protoUDP, datagram()).each(5, 15, version)),
		Is: "53/udp=bad-header", Allow: "bad-header", Drop: "bad-header", Own: "bad-header"},
	{Name: "header length (IHL) 0 to 4", Frames: ipv4(protoUDP, datagram()).each(0, 4, headerLength), Is: "53/udp=bad-header", Allow: "bad-header", Drop: "bad-header", Own: "bad-header"},
	{Name: "header length 6 to 15, with as many options", Frames: one(func(w Way) []byte { return IP(w.src4, w.dst4, protoUDP, datagram()) }).each(6, 15, withOptions),
		Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass", Drop: "rule"},
	{Name: "header length 6 or 7, and no options", Frames: ipv4(protoUDP, datagram()).each(6, 7, headerLength), Is: "53/udp=truncated", Isnt: "tcp", Allow: "truncated", Drop: "rule", Own: "truncated"},
	{Name: "options that look like a header to other ports", Frames: options(UDP(1024, 80), protoUDP, datagram()), Is: "53/udp=rule", Isnt: "80/udp", Allow: "pass", Drop: "rule"},
	{Name: "a source route: the peer is the one in the fixed header", Frames: options([]byte{131, 7, 4, 203, 0, 113, 9}, protoUDP, datagram()),
		Is: allPeer + "=rule", Isnt: allFar, Allow: "pass", Drop: "rule"},
	{Name: "header length 8 to 15 beyond the total length", Frames: ipv4(protoUDP, datagram()).each(8, 15, headerLength),
		Is: "53/udp=bad-header", Allow: "bad-header", Drop: "bad-header", Own: "bad-header"},
	{Name: "header length 11 to 15 beyond the frame, the total length as well", Frames: ipv4(protoUDP, datagram()).with(atIP+2, 0, 60).each(11, 15, headerLength),
		Is: "53/udp=truncated", Allow: "truncated", Drop: "truncated", Own: "truncated"},
	{Name: "total length 0 to 19", Frames: ipv4(protoUDP, datagram()).each(0, 19, totalLength), Is: "53/udp=bad-header", Allow: "bad-header", Drop: "bad-header", Own: "bad-header"},
	{Name: "total length 20 to 27: part of a UDP header", Frames: ipv4(protoUDP, datagram()).each(20, 27, totalLength),
		Is: "53/udp=truncated", Isnt: "tcp", Allow: "truncated", Drop: "rule", Own: "truncated"},
	{Name: "total length beyond the frame", Frames: ipv4(protoUDP, datagram()).each(29, 60, totalLength), Is: "53/udp=truncated", Allow: "truncated", Drop: "truncated", Own: "truncated"},
	{Name: "bytes behind the total length", Frames: ipv4(protoUDP, datagram()).padded(18), Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass", Drop: "rule"},
	{Name: "a header that only bytes behind the total length complete", Frames: ipv4(protoUDP, datagram()[:4]).padded(18),
		Is: "53/udp=truncated", Isnt: "tcp", Allow: "truncated", Drop: "rule", Own: "truncated"},
	{Name: "TTL 0, reserved flag, don't fragment, a wrong checksum", Frames: all(ipv4(protoUDP, datagram()).with(atIP+8, 0), ipv4(protoUDP, datagram()).with(atIP+6, 0x80),
		ipv4(protoUDP, datagram()).with(atIP+6, 0x40), ipv4(protoUDP, datagram()).with(atIP+10, 0xff, 0xff)), Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass", Drop: "rule"},
	{Name: "an IPv6 packet under IPv4's ethertype", Frames: ipv6(protoUDP, datagram()).with(12, 0x08, 0x00), Is: "53/udp=bad-header", Allow: "bad-header", Drop: "bad-header", Own: "bad-header"},
}

func version(frame []byte, n int) []byte {
	frame[atIP] = byte(n)<<4 | frame[atIP]&15
	return frame
}

func headerLength(frame []byte, n int) []byte {
	frame[atIP] = frame[atIP]&0xf0 | byte(n)
	return frame
}

// withOptions makes a header of 4*n bytes, the rest of which are options that do nothing.
func withOptions(frame []byte, n int) []byte {
	b := append(frame[:atTransport4:atTransport4], make([]byte, 4*n-20)...)
	for i := atTransport4; i < len(b); i++ {
		b[i] = 1
	}
	return fitted(headerLength(append(b, frame[atTransport4:]...), n))
}

func totalLength(frame []byte, n int) []byte { return With(frame, atIP+2, byte(n>>8), byte(n)) }

func payloadLength(frame []byte, n int) []byte { return With(frame, atIP+4, byte(n>>8), byte(n)) }

var ipv6Rows = []Row{
	{Name: "cut anywhere", Frames: all(ipv6(protoUDP, datagram()).cut(14, 61), ipv6(protoTCP, syn()).cut(14, 73)),
		Is: "53/udp=truncated", Allow: "truncated", Drop: "truncated", Own: "truncated"},
	{Name: "version 0 to 5, 7 to 15", Frames: all(ipv6(protoUDP, datagram()).each(0, 5, version), ipv6(protoUDP, datagram()).each(7, 15, version)),
		Is: "53/udp=bad-header", Allow: "bad-header", Drop: "bad-header", Own: "bad-header"},
	{Name: "an IPv4 packet under IPv6's ethertype", Frames: ipv4(protoTCP, syn()).with(12, 0x86, 0xdd), Is: "53/udp=bad-header", Allow: "bad-header", Drop: "bad-header", Own: "bad-header"},
	{Name: "payload length 0 to 7: part of a UDP header", Frames: ipv6(protoUDP, datagram()).each(0, 7, payloadLength),
		Is: "53/udp=truncated", Isnt: "tcp", Allow: "truncated", Drop: "rule", Own: "truncated"},
	{Name: "payload length beyond the frame", Frames: ipv6(protoUDP, datagram()).each(9, 40, payloadLength), Is: "53/udp=truncated", Allow: "truncated", Drop: "truncated", Own: "truncated"},
	{Name: "bytes behind the payload length", Frames: ipv6(protoUDP, datagram()).padded(18), Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass", Drop: "rule"},
	{Name: "a jumbogram: payload length 0, hop-by-hop options", Frames: ipv6(hopByHop, With(Extension(protoUDP, 0, datagram()), 2, 0xc2, 4, 0, 1, 0, 0)).with(atIP+4, 0, 0),
		Is: "53/udp=truncated", Isnt: allFar, Allow: "truncated", Drop: "truncated", Own: "truncated"},
	{Name: "hop limit 0, traffic class, flow label", Frames: all(ipv6(protoUDP, datagram()).hops(0), ipv6(protoUDP, datagram()).with(atIP, 0x6f, 0xff, 0xff, 0xff)),
		Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass", Drop: "rule"},
	{Name: "1 to 8 extension headers", Frames: chains(1, 8), Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass", Drop: "rule"},
	{Name: "9 to 16 extension headers", Frames: chains(9, 16), Is: "53/udp=too-many-headers", Isnt: allFar, Allow: "too-many-headers", Drop: "too-many-headers", Own: "too-many-headers"},
	{Name: "8 extension headers and the kind of a ninth", Frames: chains(9, 9).short(atTransport6, 64, 71),
		Is: "53/udp=too-many-headers", Isnt: allFar, Allow: "too-many-headers", Drop: "too-many-headers", Own: "too-many-headers"},
	{Name: "each kind of extension header, in no order", Frames: all(chain(hopByHop, routing, destination, mobility, hip, shim6), chain(shim6, destination, hopByHop, hopByHop)),
		Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass", Drop: "rule"},
	{Name: "an extension header cut anywhere", Frames: ipv6(destination, Extension(protoUDP, 3, datagram())).short(atTransport6, 0, 31),
		Is: "53/udp=truncated", Isnt: allFar, Allow: "truncated", Drop: "truncated", Own: "truncated"},
	{Name: "an extension header that is longer than the packet", Frames: chain(destination).with(atTransport6+1, 2).each(2, 255, func(frame []byte, n int) []byte { return With(frame, atTransport6+1, byte(n)) }),
		Is: "53/udp=truncated", Isnt: allFar, Allow: "truncated", Drop: "truncated", Own: "truncated"},
	{Name: "an extension header that takes the datagram for options", Frames: ipv6(destination, append(Extension(protoTCP, 1, nil)[:8], datagram()...)),
		Is: "443/tcp=truncated", Isnt: "udp", Allow: "truncated", Drop: "truncated"},
	{Name: "a routing header: the peer is the one in the fixed header", Frames: ipv6(routing, With(Extension(protoUDP, 2, datagram()), 2, 0, 1, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 0xc)),
		Is: allPeer + "=rule", Isnt: allFar, Allow: "pass", Drop: "rule"},
	{Name: "no next header (59)", Frames: all(ipv6(protoNone, nil), ipv6(protoNone, datagram()), chain(destination).with(atTransport6, protoNone)),
		Is: allPeer + "=rule", Isnt: "udp", Allow: "default", Drop: "pass"},
}

var fragmentRows = []Row{
	{Name: "first fragment with its ports", Frames: all(part4(protoUDP, 0, true, datagram()), part6(protoUDP, 0, true, datagram())),
		Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass", Drop: "rule"},
	{Name: "tiny first fragment, UDP of 0 to 7 bytes", Frames: all(part4(protoUDP, 0, true, datagram()).short(atTransport4, 0, 7), part6(protoUDP, 0, true, datagram()).short(atTransport6, 8, 15)),
		Is: "53/udp=fragment", Isnt: "tcp", Allow: "fragment", Drop: "rule", Own: "fragment"},
	{Name: "tiny first fragment, TCP of 0 to 19 bytes", Frames: all(part4(protoTCP, 0, true, syn()).short(atTransport4, 0, 19), part6(protoTCP, 0, true, syn()).short(atTransport6, 8, 27)),
		Is: "443/tcp=fragment", Isnt: "udp", Allow: "fragment", Drop: "fragment"},
	{Name: "first fragment that ends in an extension header", Frames: part6(destination, 0, true, Extension(protoUDP, 1, nil)).short(atTransport6, 8, 23),
		Is: "53/udp=truncated", Isnt: allFar, Allow: "truncated", Drop: "truncated", Own: "truncated"},
	{Name: "later fragment, UDP", Frames: all(part4(protoUDP, 1, false, datagram()), part4(protoUDP, 0x1fff, false, datagram()), part6(protoUDP, 1, false, datagram()), part6(protoUDP, 0x1fff, false, datagram())),
		Is: "53/udp=fragment", Isnt: "tcp", Allow: "fragment", Drop: "rule"},
	{Name: "later fragment, TCP", Frames: all(part4(protoTCP, 1, false, syn()), part4(protoTCP, 3, true, nil), part6(protoTCP, 1, false, syn()), part6(protoTCP, 3, true, nil)),
		Is: "443/tcp=fragment", Isnt: "udp", Allow: "fragment", Drop: "fragment"},
	{Name: "later fragment, behind its first", Frames: all(part4(protoTCP, 3, false, datagram()), part6(protoTCP, 3, false, datagram())),
		After: all(part4(protoTCP, 0, true, append(syn(), 0, 0, 0, 0)), part6(protoTCP, 0, true, append(syn(), 0, 0, 0, 0))),
		Is:    "443/tcp=fragment", Isnt: "80/udp", Allow: "pass", Drop: "pass"},
	{Name: "later fragment that overlaps its first", Frames: all(part4(protoTCP, 1, false, datagram()), part4(protoTCP, 2, false, datagram()), part6(protoTCP, 1, false, datagram()), part6(protoTCP, 2, false, datagram())),
		After: all(part4(protoTCP, 0, true, append(syn(), 0, 0, 0, 0)), part6(protoTCP, 0, true, append(syn(), 0, 0, 0, 0))),
		Is:    "443/tcp=fragment", Isnt: "udp", Allow: "fragment", Drop: "fragment"},
	{Name: "later fragment of another packet than the first", Frames: all(part4(protoTCP, 3, false, datagram()).with(atIP+4, 7), part6(protoTCP, 3, false, datagram()).with(atTransport6+4, 7)),
		After: all(part4(protoTCP, 0, true, append(syn(), 0, 0, 0, 0)), part6(protoTCP, 0, true, append(syn(), 0, 0, 0, 0))),
		Is:    "443/tcp=fragment", Isnt: "udp", Allow: "fragment", Drop: "fragment"},
	{Name: "later fragment behind the first of somebody the other way", Frames: all(part4(protoTCP, 3, false, datagram()), part6(protoTCP, 3, false, datagram())),
		AfterBack: all(part4(protoTCP, 0, true, append(syn(), 0, 0, 0, 0)), part6(protoTCP, 0, true, append(syn(), 0, 0, 0, 0))),
		Is:        "443/tcp=fragment", Isnt: "udp", Allow: "fragment", Drop: "fragment"},
	{Name: "later fragment of a protocol without ports", Frames: all(part4(protoGRE, 1, false, datagram()), part6(protoGRE, 1, false, datagram())),
		Is: "gre=rule", Isnt: "udp", Allow: "default", Drop: "pass"},
	{Name: "later fragment of ICMP", Frames: all(part4(protoICMP, 1, false, ICMP(8, 0)), part6(protoICMPv6, 1, false, ICMP(128, 0))),
		Is: "ping=fragment", Isnt: "udp", Allow: "default", Drop: "pass"},
	{Name: "later fragment that continues an extension header", Frames: all(part6(destination, 1, false, datagram()), part6(fragmentHeader, 1, false, datagram())),
		Is: "53/udp=fragment", Isnt: allFar, Allow: "fragment", Drop: "fragment"},
	{Name: "a fragment header on a whole packet (RFC 6946)", Frames: part6(protoUDP, 0, false, datagram()), Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass", Drop: "rule"},
	{Name: "a fragment header whose reserved bits are set", Frames: part6(protoUDP, 0, false, datagram()).with(atTransport6+1, 0xff, 0, 6), Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass", Drop: "rule"},
	{Name: "a fragment header cut anywhere", Frames: part6(protoUDP, 0, true, datagram()).short(atTransport6, 0, 7), Is: "53/udp=truncated", Isnt: allFar, Allow: "truncated", Drop: "truncated", Own: "truncated"},
	{Name: "a later fragment behind a first one, in one packet", Frames: part6(fragmentHeader, 0, true, FragmentHeader(protoUDP, 1, false, datagram())),
		Is: "53/udp=fragment", Isnt: "tcp", Allow: "fragment", Drop: "rule"},
}

var protocolRows = []Row{
	{Name: "IPv4 in IPv4, IPv4 in IPv6", Frames: both(protoIPIP, snap[8:]), Is: "proto-4=rule", Isnt: "udp", Allow: "default", Drop: "pass"},
	{Name: "IPv6 in IPv4, IPv6 in IPv6", Frames: both(protoIPv6, IPv6(container6, peer6, protoUDP, datagram())), Is: "proto-41=rule", Isnt: "udp", Allow: "default", Drop: "pass"},
	{Name: "GRE", Frames: all(both(protoGRE, append([]byte{0, 0, 8, 0}, snap[8:]...)), both(protoGRE, nil)), Is: "gre=rule", Isnt: "udp", Allow: "default", Drop: "pass"},
	{Name: "VXLAN is its outer datagram", Frames: both(protoUDP, UDP(1024, 4789, append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, ARP()...)...)),
		Is: "4789/udp=rule", Isnt: "53/udp", Allow: "default", Drop: "rule"},
	{Name: "AH, whatever it authenticates", Frames: all(both(protoAH, Extension(protoUDP, 1, datagram())), both(protoAH, nil), chain(destination, protoAH)),
		Is: "ah=rule", Isnt: "udp", Allow: "default", Drop: "pass"},
	{Name: "ESP", Frames: all(both(protoESP, datagram()), both(protoESP, nil), chain(destination, protoESP)), Is: "esp=rule", Isnt: "udp", Allow: "default", Drop: "pass"},
	{Name: "UDP-Lite has no ports for rules", Frames: both(protoUDPLite, datagram()), Is: "proto-136=rule", Isnt: "udp", Allow: "default", Drop: "pass"},
	{Name: "IGMP, an unassigned protocol, the reserved one", Frames: all(ipv4(protoIGMP, make([]byte, 8)), both(200, datagram()), both(255, datagram())),
		Is: allPeer + "=rule", Isnt: "udp", Allow: "default", Drop: "pass"},
	{Name: "an extension header's number in IPv4", Frames: all(ipv4(hopByHop, Extension(protoUDP, 0, datagram())), ipv4(routing, Extension(protoUDP, 0, datagram())), ipv4(destination, nil)),
		Is: allPeer + "=rule", Isnt: "udp", Allow: "default", Drop: "pass"},
}

// tcp is a segment with these flags in place of SYN.
func tcp(from, to uint16, flags byte) Frames { return both(protoTCP, With(TCP(from, to), 13, flags)) }

var tcpRows = []Row{
	{Name: "a header of 0 to 19 bytes", Frames: all(ipv4(protoTCP, syn()).short(atTransport4, 0, 19), ipv6(protoTCP, syn()).short(atTransport6, 0, 19)),
		Is: "443/tcp=truncated", Isnt: "udp", Allow: "truncated", Drop: "truncated"},
	{Name: "data offset 0 to 4", Frames: both(protoTCP, syn()).each(0, 4, dataOffset), Is: "443/tcp=bad-header", Isnt: "udp", Allow: "bad-header", Drop: "bad-header"},
	{Name: "data offset 6 to 15, beyond the end", Frames: both(protoTCP, syn()).each(6, 15, dataOffset), Is: "443/tcp=rule", Isnt: "80/tcp", Allow: "pass", Drop: "pass"},
	{Name: "no flags at all", Frames: tcp(1024, 443, 0), Is: "443/tcp=rule", Isnt: "80/tcp", Allow: "pass", Drop: "pass"},
	{Name: "SYN and FIN, SYN and RST", Frames: all(tcp(1024, 443, synFlag|finFlag), tcp(1024, 443, synFlag|rstFlag)), Is: "443/tcp=rule", Isnt: "80/tcp", Allow: "pass", Drop: "pass"},
	{Name: "all flags; FIN, PSH and URG", Frames: all(tcp(1024, 443, 0xff), tcp(1024, 443, 0x29)), Is: "443/tcp=rule", Isnt: "80/tcp", Allow: "pass", Drop: "pass"},
	{Name: "SYN to a port that is not allowed", Frames: tcp(443, 25, synFlag), Is: "25/tcp=rule", Isnt: "443/tcp", Allow: "default", Drop: "rule"},
	{Name: "any flags but SYN, from nowhere, to a port that is not allowed", Frames: all(tcp(443, 25, ackFlag), tcp(443, 25, synFlag|ackFlag), tcp(443, 25, rstFlag), tcp(443, 25, 0)),
		Is: "25/tcp=rule", Isnt: "80/tcp", Allow: "default", Drop: "rule"},
	{Name: "any flags but SYN, from nowhere, from a port that is dropped", Frames: all(tcp(25, 443, ackFlag), tcp(25, 443, synFlag|ackFlag), tcp(25, 443, rstFlag), tcp(25, 443, 0)),
		Is: "25/tcp=rule", Isnt: "80/tcp", Allow: "pass", Drop: "rule"},
	{Name: "SYN from a port that is dropped", Frames: tcp(25, 443, synFlag), Is: "443/tcp=rule", Isnt: "25/tcp", Allow: "pass", Drop: "pass"},
	{Name: "to port 0", Frames: all(tcp(1024, 0, synFlag), tcp(0, 0, synFlag)), Is: "tcp=rule", Isnt: "1-65535/tcp", Allow: "default", Drop: "pass"},
	{Name: "from port 0", Frames: tcp(0, 443, synFlag), Is: "443/tcp=rule", Isnt: "80/tcp", Allow: "pass", Drop: "pass"},
	{Name: "a wrong checksum, urgent data, options that are none", Frames: all(both(protoTCP, With(syn(), 16, 0xde, 0xad, 0xff, 0xff)), both(protoTCP, With(append(syn(), 0xff, 0, 0xff, 0), 12, 0x60))),
		Is: "443/tcp=rule", Isnt: "80/tcp", Allow: "pass", Drop: "pass"},
}

func dataOffset(frame []byte, n int) []byte {
	at := atTransport4
	if frame[12] != 0x08 {
		at = atTransport6
	}
	return With(frame, at+12, byte(n)<<4)
}

var udpRows = []Row{
	{Name: "a header of 0 to 7 bytes", Frames: all(ipv4(protoUDP, datagram()).short(atTransport4, 0, 7), ipv6(protoUDP, datagram()).short(atTransport6, 0, 7)),
		Is: "53/udp=truncated", Isnt: "tcp", Allow: "truncated", Drop: "rule", Own: "truncated"},
	{Name: "length field 0, 7, too long, longest", Frames: all(both(protoUDP, With(datagram(), 4, 0, 0)), both(protoUDP, With(datagram(), 4, 0, 7)),
		both(protoUDP, With(datagram(), 4, 0, 9)), both(protoUDP, With(datagram(), 4, 0xff, 0xff))), Is: "53/udp=rule", Isnt: "54/udp", Allow: "pass", Drop: "rule"},
	{Name: "a wrong checksum", Frames: both(protoUDP, With(datagram(), 6, 0xde, 0xad)), Is: "53/udp=rule", Isnt: "54/udp", Allow: "pass", Drop: "rule"},
	{Name: "to port 0", Frames: all(both(protoUDP, UDP(53, 0)), both(protoUDP, UDP(0, 0))), Is: "udp=rule", Isnt: "1-65535/udp", Allow: "default", Drop: "rule"},
	{Name: "from port 0", Frames: both(protoUDP, UDP(0, 53)), Is: "53/udp=rule", Isnt: "54/udp", Allow: "pass", Drop: "rule"},
	{Name: "from a port that is allowed to one that is not", Frames: both(protoUDP, UDP(53, 1024)), Is: "1024/udp=rule", Isnt: "53/udp", Allow: "default", Drop: "rule"},
	{Name: "SCTP, a header of 0 to 11 bytes", Frames: all(ipv4(protoSCTP, SCTP(1024, 53)).short(atTransport4, 0, 11), ipv6(protoSCTP, SCTP(1024, 53)).short(atTransport6, 0, 11)),
		Is: "53/sctp=truncated", Isnt: "udp", Allow: "default", Drop: "pass"},
	{Name: "SCTP without a chunk, to port 0", Frames: both(protoSCTP, SCTP(1024, 0)), Is: "sctp=rule", Isnt: "1-65535/sctp", Allow: "default", Drop: "pass"},
}

var addressRows = []Row{
	{Name: "to limited broadcast, multicast of any scope", Frames: all(ipv4(protoUDP, datagram()).to("255.255.255.255", "224.0.0.1", "239.255.255.250"),
		ipv6(protoUDP, datagram()).to("ff01::1", "ff02::1", "ff0e::1")), Is: "53/udp=rule", Isnt: "53/tcp", Allow: "default/pass", Drop: "rule"},
	{Name: "to the broadcast address of the peer's network", Frames: ipv4(protoUDP, datagram()).to("192.0.2.255"), Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass", Drop: "rule"},
	{Name: "to nobody (0.0.0.0, ::), loopback, reserved (240/4)", Frames: all(ipv4(protoUDP, datagram()).to("0.0.0.0", "127.0.0.1", "240.0.0.1"), ipv6(protoUDP, datagram()).to("::", "::1")),
		Is: "53/udp=rule", Isnt: "53/tcp", Allow: "default/pass", Drop: "rule"},
	{Name: "from nobody, loopback, reserved", Frames: all(ipv4(protoUDP, datagram()).from("0.0.0.0", "127.0.0.1", "240.0.0.1"), ipv6(protoUDP, datagram()).from("::", "::1")),
		Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass/default", Drop: "rule", Own: "spoof"},
	{Name: "from broadcast, multicast", Frames: all(ipv4(protoUDP, datagram()).from("255.255.255.255", "224.0.0.1"), ipv6(protoUDP, datagram()).from("ff02::1")),
		Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass/default", Drop: "rule", Own: "spoof"},
	{Name: "from another MAC", Frames: both(protoUDP, datagram()).with(6, 2), Is: "53/udp=rule", Isnt: "53/tcp", Allow: "pass", Drop: "rule", Own: "spoof"},
	{Name: "DHCP, a client without an address", Frames: ipv4(protoUDP, UDP(68, 67)).from("0.0.0.0").to("255.255.255.255"), Is: "67/udp=rule", Isnt: "68/udp", Allow: "default", Drop: "rule"},
	{Name: "DHCP, a server, from whatever port", Frames: all(ipv4(protoUDP, UDP(67, 68)), ipv6(protoUDP, UDP(547, 546)), ipv4(protoUDP, UDP(1067, 68)), ipv6(protoUDP, UDP(1547, 546))), Is: "68/udp,546/udp=rule", Isnt: "67/udp", Allow: "default", Drop: "rule", Own: "spoof"},
	{Name: "from the container to itself", Frames: all(ipv4(protoUDP, datagram()).from(container4).to(container4), ipv6(protoUDP, datagram()).from(container6).to(container6)),
		Is: "53/udp=rule", Isnt: allPeer, Allow: "default", Drop: "rule"},
	{Name: "an IPv4 address mapped into IPv6 is no IPv4 address", Frames: ipv6(protoUDP, datagram()).to("::ffff:" + peer4).from("::ffff:" + peer4),
		Is: "53/udp=rule", Isnt: "all@" + peer4, Allow: "default", Drop: "rule", Own: "spoof"},
}

var icmpRows = []Row{
	{Name: "echo request", Frames: all(ipv4(protoICMP, ICMP(8, 0)), ipv6(protoICMPv6, ICMP(128, 0))), Is: "ping=rule", Isnt: "udp", Allow: "default", Drop: "pass"},
	{Name: "echo reply that nobody has asked for", Frames: all(ipv4(protoICMP, ICMP(0, 0)), ipv6(protoICMPv6, ICMP(129, 0))), Is: "icmp=rule", Isnt: "ping", Allow: "default", Drop: "pass"},
	{Name: "a header of 0 to 7 bytes; ICMPv6, of 0 to 3", Frames: all(ipv4(protoICMP, ICMP(8, 0)).short(atTransport4, 0, 7), ipv6(protoICMPv6, ICMP(128, 0)).short(atTransport6, 0, 3)),
		Is: "ping=truncated", Isnt: "udp", Allow: "default", Drop: "pass", Own: "truncated"},
	{Name: "ICMPv6 of 4 to 7 bytes", Frames: ipv6(protoICMPv6, ICMP(128, 0)).short(atTransport6, 4, 7), Is: "ping=rule", Isnt: "udp", Allow: "default", Drop: "pass"},
	{Name: "a type that is nobody's, an unknown code", Frames: all(ipv4(protoICMP, ICMP(255, 0)), ipv6(protoICMPv6, ICMP(255, 0)), ipv4(protoICMP, ICMP(13, 77))),
		Is: "icmp=rule", Isnt: "ping", Allow: "default", Drop: "pass"},
	{Name: "ICMP in IPv6, ICMPv6 in IPv4", Frames: all(ipv6(protoICMP, ICMP(8, 0)), ipv4(protoICMPv6, ICMP(128, 0)), ipv4(protoICMPv6, ICMP(1, 4, quoted4(protoUDP, datagram())(Sent())...))),
		Is: allPeer + "=rule", Isnt: "icmp", Allow: "default", Drop: "pass"},
}

// nothing is an empty quote.
func nothing(Way) []byte { return nil }

// quoting changes what is quoted.
func (q quote) cut(n int) quote { return func(w Way) []byte { return q(w)[:n] } }

func (q quote) with(offset int, bytes ...byte) quote {
	return func(w Way) []byte { return With(q(w), offset, bytes...) }
}

// asked is a SYN that the other side has sent, as a frame and as quotes.
var (
	asked   = both(protoTCP, syn())
	asked4  = quoted4(protoTCP, syn())
	asked6  = quoted6(protoTCP, syn())
	foreign = quoted4(protoTCP, syn()).with(12, 203, 0, 113, 9)
)

var errorRows = []Row{
	{Name: "about a packet of a known conversation", Frames: all(error4(asked4), error6(asked6), error4(asked4.cut(28)), error6(asked6.cut(44))), AfterBack: asked,
		Is: "443/tcp=bad-quote", Isnt: "80/tcp", Allow: "pass", Drop: "pass"},
	{Name: "the same as a redirect", AfterBack: asked, Frames: error4(asked4).with(atTransport4, 5), Is: "443/tcp=bad-quote", Isnt: "80/tcp", Allow: "pass", Drop: "pass", Own: "spoof"},
	{Name: "the same as source quench, time exceeded, parameter problem", AfterBack: asked, Frames: all(error4(asked4).with(atTransport4, 4), error4(asked4).with(atTransport4, 11), error4(asked4).with(atTransport4, 12),
		error6(asked6).with(atTransport6, 2), error6(asked6).with(atTransport6, 3), error6(asked6).with(atTransport6, 4), error6(asked6).with(atTransport6, 127)),
		Is: "443/tcp=bad-quote", Isnt: "80/tcp", Allow: "pass", Drop: "pass"},
	{Name: "about a packet that nobody has sent", Frames: all(error4(asked4), error6(asked6)), Is: "443/tcp=bad-quote", Isnt: allFar, Allow: "bad-quote", Drop: "bad-quote"},
	{Name: "about the other port of a known conversation", Frames: error4(asked4.with(20, 4, 1)), AfterBack: asked, Is: "443/tcp=bad-quote", Isnt: allFar, Allow: "bad-quote", Drop: "bad-quote"},
	{Name: "about somebody else's packet", Frames: error4(foreign), AfterBack: asked, Is: "443/tcp=bad-quote", Isnt: allFar, Allow: "bad-quote", Drop: "bad-quote"},
	{Name: "quoting nothing", Frames: all(error4(nothing), error6(nothing)), Is: "udp=bad-quote", Isnt: allFar, Allow: "bad-quote", Drop: "bad-quote"},
	{Name: "ICMPv6 of 4 to 7 bytes", Frames: error6(nothing).short(atTransport6, 4, 7), Is: "udp=bad-quote", Isnt: allFar, Allow: "bad-quote", Drop: "bad-quote"},
	{Name: "quoting a packet cut before its ports", AfterBack: asked, Frames: all(error4(asked4).short(atTransport4+8, 1, 23), error6(asked6).short(atTransport6+8, 1, 43)),
		Is: "udp=bad-quote", Isnt: allFar, Allow: "bad-quote", Drop: "bad-quote"},
	{Name: "quoting garbage", Frames: all(error4(func(Way) []byte { return make([]byte, 40) }), error4(asked4.with(0, 0x44)), error4(asked4.with(0, 0x65)), error6(asked6.with(0, 0x45))), AfterBack: asked,
		Is: "udp=bad-quote", Isnt: allFar, Allow: "bad-quote", Drop: "bad-quote"},
	{Name: "quoting a packet whose total length ends before its ports", Frames: error4(asked4.with(2, 0, 23)), AfterBack: asked, Is: "udp=bad-quote", Isnt: allFar, Allow: "bad-quote", Drop: "bad-quote"},
	{Name: "quoting an error", Frames: all(error4(quoted4(protoICMP, ICMP(3, 3, asked4(Sent())...))), error6(quoted6(protoICMPv6, ICMP(1, 4, asked6(Sent())...)))), AfterBack: asked,
		Is: "udp=bad-quote", Isnt: allFar, Allow: "bad-quote", Drop: "bad-quote"},
	{Name: "quoting the other family", Frames: all(error4(asked6), error6(asked4)), AfterBack: asked, Is: "udp=bad-quote", Isnt: allFar, Allow: "bad-quote", Drop: "bad-quote"},
	{Name: "quoting a later fragment", Frames: all(error4(asked4.with(6, 0, 1)), error6(quoted6(fragmentHeader, FragmentHeader(protoTCP, 1, false, syn())))), AfterBack: asked,
		Is: "udp=bad-quote", Isnt: allFar, Allow: "bad-quote", Drop: "bad-quote"},
	{Name: "quoting nine extension headers", Frames: one(func(w Way) []byte {
		return IP(w.src6, w.dst6, protoICMPv6, ICMP(1, 4, chains(9, 9)(w.Back())[0][14:]...))
	}), Is: "udp=bad-quote", Isnt: allFar, Allow: "bad-quote", Drop: "bad-quote"},
	{Name: "in a first fragment", Frames: error4(asked4).with(atIP+6, 0x20), AfterBack: asked, Is: "443/tcp=bad-quote", Isnt: "80/tcp", Allow: "pass", Drop: "pass"},
}

// neighbour is the body of a solicitation or advertisement with one option, the sender's MAC (RFC 4861).
func neighbour(target string) []byte {
	return append(netip.MustParseAddr(target).AsSlice(), 1, 1, 0, 0, 0x5e, 0, 0x53, 1)
}

// What hosts and routers say on a link, as they should but for who says it.
var (
	linkLocal     = policy.LinkLocal(Container().MAC).String()
	solicitation  = ipv6(protoICMPv6, ICMP(135, 0, neighbour(peer6)...)).hops(255)
	advertisement = ipv6(protoICMPv6, ICMP(136, 0, neighbour(container6)...)).hops(255)
	router        = ipv6(protoICMPv6, ICMP(134, 0, make([]byte, 8)...)).hops(255).to("ff02::1")
	redirect      = ipv6(protoICMPv6, ICMP(137, 0, make([]byte, 32)...)).hops(255).to("fe80::2")
	report        = ipv6(hopByHop, Extension(protoICMPv6, 0, ICMP(143, 0))).hops(1)
)

var linkRows = []Row{
	{Name: "solicitation of a neighbour, advertisement", Frames: all(solicitation.to("ff02::1:ff00:7"), advertisement.to("fe80::2").from(linkLocal)), Allow: "pass", Drop: "pass"},
	{Name: "solicitation of who asks whether an address is free for him", Frames: ipv6(protoICMPv6, ICMP(135, 0, neighbour(container6)[:16]...)).hops(255).from("::").to("ff02::1:ff00:1"),
		Allow: "pass", Drop: "pass"},
	{Name: "advertisement of somebody else's address, or MAC", Frames: all(ipv6(protoICMPv6, ICMP(136, 0, neighbour(peer6)...)).hops(255).to("ff02::1"), advertisement.to("ff02::1").with(atTransport6+26, 2)),
		Allow: "pass", Drop: "pass", Own: "spoof"},
	{Name: "solicitation with room for data: an option of another kind or length, a second one, bytes behind it", Frames: all(solicitation.to("ff02::1:ff00:7").with(atTransport6+24, 200),
		solicitation.to("ff02::1:ff00:7").with(atTransport6+25, 2), ipv6(protoICMPv6, ICMP(135, 0, append(neighbour(peer6), 1, 1, 0, 0, 0x5e, 0, 0x53, 1)...)).hops(255).to("ff02::1:ff00:7"),
		solicitation.to("ff02::1:ff00:7").padded(1000)),
		Allow: "pass", Drop: "pass", Own: "spoof"},
	{Name: "solicitation behind an extension header", Frames: ipv6(60, Extension(protoICMPv6, 0, ICMP(135, 0, neighbour(peer6)...))).hops(255).to("ff02::1:ff00:7"),
		Allow: "pass", Drop: "pass", Own: "spoof"},
	{Name: "solicitation, advertisement to somebody far away", Frames: all(solicitation, advertisement), Is: "icmp=rule", Isnt: "udp", Allow: "default", Drop: "pass"},
	{Name: "advertisement to somebody far away of somebody else's address, or MAC", Frames: all(ipv6(protoICMPv6, ICMP(136, 0, neighbour(peer6)...)).hops(255), advertisement.with(atTransport6+26, 2)),
		Is: "icmp=rule", Isnt: "udp", Allow: "default", Drop: "pass", Own: "spoof"},
	{Name: "solicitation with hop limit 254, with a code", Frames: all(solicitation.to("ff02::1:ff00:7").hops(254), solicitation.to("ff02::1:ff00:7").with(atTransport6+1, 1)),
		Is: "icmp=rule", Isnt: "udp", Allow: "default", Drop: "pass"},
	{Name: "solicitation of 3 bytes", Frames: solicitation.to("ff02::1:ff00:7").short(atTransport6, 3, 3), Is: "icmp=truncated", Isnt: "udp", Allow: "default", Drop: "pass", Own: "truncated"},
	{Name: "solicitation in a first fragment", Frames: ipv6(fragmentHeader, FragmentHeader(protoICMPv6, 0, true, ICMP(135, 0, neighbour(peer6)...))).to("ff02::1:ff00:7").hops(255),
		Is: "icmp=rule", Isnt: "udp", Allow: "default", Drop: "pass", Own: "spoof"},
	{Name: "router advertisement of IPv4 (RFC 1256)", Frames: ipv4(protoICMP, ICMP(9, 0, 0, 0, 0, 0, 192, 0, 2, 7)), Is: "icmp=rule", Isnt: "udp", Allow: "default", Drop: "pass", Own: "spoof"},
	{Name: "router advertisement", Frames: router, Is: "icmp=rule/pass", Isnt: "udp", Allow: "default/pass", Drop: "pass", Own: "spoof"},
	{Name: "redirect", Frames: redirect, Is: "icmp=rule", Isnt: "udp", Allow: "default", Drop: "pass", Own: "spoof"},
	{Name: "MLD report", Frames: report.to("ff02::16"), Allow: "pass", Drop: "pass"},
	{Name: "MLD report with hop limit 2, to one host", Frames: all(report.to("ff02::16").hops(2), report), Is: "icmp=rule", Isnt: "udp", Allow: "default", Drop: "pass"},
}
