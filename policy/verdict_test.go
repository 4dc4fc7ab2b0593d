package policy_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"go4.org/netipx"

	"github.com/vethwall/vethwall/policy"
	. "github.com/vethwall/vethwall/policy/policytest"
)

// The container is me, its peer is you; near is on the container's link. far4 and far6 are nobody's rule.
const (
	me4, you4, far4 = "192.0.2.1", "198.51.100.7", "203.0.113.9"
	me6, you6, far6 = "2001:db8::1", "2001:db8:1::7", "2001:db8:ffff::9"
	near6           = "2001:db8::2"
)

const (
	icmp4, tcp, udp, gre, esp, ah, icmp6, sctp = 1, 6, 17, 47, 50, 51, 58, 132
	hopByHop, routing, fragmentHeader, dstOpts = 0, 43, 44, 60
	mobility, hip, shim6, noNext               = 135, 139, 140, 59
	offset0, moreFragments                     = 0, true
)

var both = [2]bool{true, true}

func to(addrs ...string) (p policy.Peers) {
	for _, a := range addrs {
		p.Ranges = append(p.Ranges, netipx.RangeOfPrefix(netip.MustParsePrefix(a)))
	}
	return p
}

func proto(n uint8) policy.What { return policy.What{Kind: policy.Proto, Proto: n} }

func port(n uint8, from, to uint16) policy.What {
	return policy.What{Kind: policy.Ports, Proto: n, Ports: []policy.PortRange{{From: from, To: to}}}
}

func rule(verb policy.Verb, what policy.What, peers policy.Peers) policy.Rule {
	return policy.Rule{Verb: verb, In: both, Match: policy.Match{What: what, Peers: peers}}
}

func drop(what ...policy.What) (p policy.Policy) {
	for _, w := range what {
		p.Rules = append(p.Rules, rule(policy.Drop, w, policy.Peers{}))
	}
	return p
}

func dropTo(what policy.What, peers policy.Peers) policy.Policy {
	return policy.Policy{Rules: []policy.Rule{rule(policy.Drop, what, peers)}}
}

// The policies that frames are judged by, under names that are used in the tables.
var policies = map[string]policy.Policy{
	"nothing":     {},
	"closed":      {Default: [2]policy.Default{policy.DefaultDrop, policy.DefaultDrop}},
	"all":         drop(policy.What{Kind: policy.All}),
	"all@you":     dropTo(policy.What{Kind: policy.All}, to(you4+"/32", you6+"/128")),
	"all@far":     dropTo(policy.What{Kind: policy.All}, to(far4+"/32", far6+"/128")),
	"all@ipv4":    dropTo(policy.What{Kind: policy.All}, policy.Peers{Groups: []policy.Group{policy.IPv4}}),
	"all@ip":      dropTo(policy.What{Kind: policy.All}, policy.Peers{Groups: []policy.Group{policy.IPv4, policy.IPv6}}),
	"all@private": dropTo(policy.What{Kind: policy.All}, policy.Peers{Groups: []policy.Group{policy.Private}}),
	"tcp":         drop(proto(tcp)),
	"udp":         drop(proto(udp)),
	"gre":         drop(proto(gre)),
	"esp":         drop(proto(esp)),
	"ah":          drop(proto(ah)),
	"sctp":        drop(proto(sctp)),
	"53/udp":      drop(port(udp, 53, 53)),
	"every/udp":   drop(port(udp, 1, 65535)),
	"53/tcp":      drop(port(tcp, 53, 53)),
	"53/sctp":     drop(port(sctp, 53, 53)),
	"53/udp@you":  dropTo(port(udp, 53, 53), to(you4+"/32", you6+"/128")),
	"icmp":        drop(policy.What{Kind: policy.ICMP}),
	"ping":        drop(policy.What{Kind: policy.Ping}),
	"types":       drop(policy.What{Kind: policy.ICMPTypes, Types: []policy.ICMPType{{Type: 3}, {Type: 13}, {V6: true, Type: 1}, {V6: true, Type: 135}}}),
	"dns":         drop(policy.What{Kind: policy.DNS}, policy.What{Kind: policy.Metadata}),
}

// whole frames, from which the tables' mutations start
var (
	udp4  = IP(me4, you4, udp, UDP(1024, 53))
	udp6  = IP(me6, you6, udp, UDP(1024, 53))
	tcp4  = IP(me4, you4, tcp, TCP(1024, 53))
	tcp6  = IP(me6, you6, tcp, TCP(1024, 53))
	frag4 = With(udp4, 14+6, 0x20) // more fragments
	late4 = With(udp4, 14+7, 1)    // at offset 8
)

// v6 is a packet to you whose headers are of these kinds, 8 bytes each, in front of a datagram to port 53.
func v6(kinds ...uint8) []byte {
	next, b := uint8(udp), UDP(1024, 53)
	for _, kind := range slices.Backward(kinds) {
		next, b = kind, Extension(next, 0, b)
	}
	return IP(me6, you6, next, b)
}

// error4 and error6 are port unreachable messages to you; quote is what they are about.
func error4(quote []byte) []byte { return IP(me4, you4, icmp4, ICMP(3, 3, quote...)) }
func error6(quote []byte) []byte { return IP(me6, you6, icmp6, ICMP(1, 4, quote...)) }

// asked is what an error of me to you is usually about: a packet that you sent, from port 53.
var (
	asked4 = IPv4(you4, me4, udp, nil, UDP(53, 1024))
	asked6 = IPv6(you6, me6, udp, UDP(53, 1024))
)

// hops returns an IPv6 frame with another hop limit.
func hops(n uint8, frame []byte) []byte { return With(frame, 14+7, n) }

var readingTests = []struct {
	name  string
	frame []byte
	// want lists policy=reason; what a policy drops with a reason, another passes for its twin.
	want string
}{
	{"Ethernet of 14 bytes", udp4[:14], "nothing=pass udp=truncated all=rule closed=default"},
	{"Ethernet of 13 bytes", udp4[:13], "nothing=pass udp=truncated all=rule all@ip=truncated closed=default"},
	{"two tags", Tagged(udp4, 0x88a8, 0x8100), "udp=rule tcp=pass"},
	{"three tags", Tagged(udp4, 0x88a8, 0x8100, 0x8100), "udp=too-many-tags all@ip=too-many-tags all=rule nothing=pass"},
	{"two tags and the ethertype of a third", Tagged(udp4, 0x8100, 0x8100, 0x8100)[:22], "udp=too-many-tags nothing=pass"},
	{"a tag cut short", Tagged(udp4, 0x8100)[:17], "udp=truncated all=rule all@ip=truncated nothing=pass"},
	{"two tags, the second cut short", Tagged(udp4, 0x8100, 0x8100)[:21], "udp=truncated nothing=pass"},
	{"a tag of old is none", Tagged(udp4, 0x9100), "udp=pass all=rule"},

	{"ARP", ARP(), "all=pass closed=pass udp=pass"},
	{"ARP under a tag", Tagged(ARP(), 0x8100), "all=pass closed=pass"},
	{"ARP cut short", ARP()[:14], "all=pass closed=pass"},

	{"not IP", Eth(0x88cc, make([]byte, 46)), "all=rule all@ip=pass udp=pass icmp=pass closed=default nothing=pass"},
	{"LLC", Eth(0x0026, make([]byte, 46)), "all=rule all@ip=pass udp=pass closed=default"},

	{"IPv4", udp4, "udp=rule 53/udp=rule every/udp=rule all@you=rule 53/udp@you=rule tcp=pass 53/tcp=pass all@far=pass all@private=pass dns=pass closed=default"},
	{"IPv4 of 19 bytes", udp4[:14+19], "udp=truncated all@ipv4=truncated all@ip=rule all=rule nothing=pass closed=default"},
	{"IPv4, version 5", With(udp4, 14, 0x55), "udp=bad-header all=rule all@far=bad-header nothing=pass"},
	{"IPv4, version 6", With(udp4, 14, 0x65), "udp=bad-header nothing=pass"},
	{"IPv4, header length 4", With(udp4, 14, 0x44), "udp=bad-header all@ip=rule nothing=pass"},
	{"IPv4, total length below header length", With(udp4, 14+2, 0, 19), "udp=bad-header nothing=pass"},
	{"IPv4, total length 0", With(udp4, 14+2, 0, 0), "udp=bad-header nothing=pass"},
	{"IPv4, header beyond the frame", With(udp4[:14+22], 14, 0x4f, 0, 0, 60), "udp=truncated all@ip=rule nothing=pass"},
	{"IPv4, total length beyond the frame", Cut(udp4, 1), "udp=truncated all@far=truncated nothing=pass"},
	{"IPv4, padded", append(slices.Clone(udp4), make([]byte, 18)...), "udp=rule tcp=pass"},
	{"IPv4, ports beyond the total length", With(udp4, 14+2, 0, 27), "53/udp=truncated udp=rule tcp=pass all@far=pass"},
	{"IPv4, options", Eth(0x0800, IPv4(me4, you4, udp, make([]byte, 40), UDP(1024, 53))), "53/udp=rule 53/tcp=pass"},
	{"IPv4, options hide other ports", Eth(0x0800, IPv4(me4, you4, udp, UDP(1024, 80), UDP(1024, 53))), "53/udp=rule 53/tcp=pass"},
	{"IPv4, reserved flag", With(udp4, 14+6, 0x80), "53/udp=rule 53/tcp=pass"},

	{"later fragment", late4, "53/udp=fragment every/udp=fragment udp=rule all@you=rule 53/tcp=pass 53/udp@you=fragment all@far=pass icmp=pass closed=default"},
	{"later fragment that looks like another port", With(IP(me4, you4, udp, UDP(1024, 80)), 14+7, 1), "53/udp=fragment 53/tcp=pass"},
	{"later fragment of ICMP", With(IP(me4, you4, icmp4, ICMP(8, 0)), 14+7, 1), "icmp=fragment ping=fragment types=fragment udp=pass all=rule"},
	{"later fragment without a service", With(IP(me4, you4, gre, make([]byte, 8)), 14+7, 1), "gre=rule udp=pass"},
	{"first fragment with its ports", frag4, "53/udp=rule 53/tcp=pass"},
	{"tiny first fragment", With(Cut(frag4, 4), 14+2, 0, 24), "53/udp=fragment udp=rule 53/tcp=pass"},

	{"IPv6", udp6, "udp=rule 53/udp=rule all@you=rule 53/udp@you=rule tcp=pass all@far=pass all@ipv4=pass closed=default"},
	{"IPv6 of 39 bytes", udp6[:14+39], "udp=truncated all@ipv4=truncated all@ip=rule nothing=pass"},
	{"IPv6, version 4", With(udp6, 14, 0x40), "udp=bad-header all@ip=rule nothing=pass"},
	{"IPv6, payload length beyond the frame", Cut(udp6, 1), "udp=truncated all@far=truncated nothing=pass"},
	{"IPv6, padded", append(slices.Clone(udp6), 1, 2, 3), "udp=rule tcp=pass"},
	{"IPv6, ports beyond the payload length", With(udp6, 14+4, 0, 7), "53/udp=truncated udp=rule tcp=pass"},
	{"IPv6, mapped address is no IPv4", IP(me6, "::ffff:"+you4, udp, UDP(1024, 53)), "all@you=pass all@ipv4=pass all@ip=rule"},

	{"each kind of header", v6(hopByHop, routing, dstOpts, mobility, hip, shim6), "53/udp=rule 53/tcp=pass"},
	{"eight headers", v6(0, 60, 60, 60, 60, 60, 60, 60), "53/udp=rule 53/tcp=pass"},
	{"nine headers", v6(0, 60, 60, 60, 60, 60, 60, 60, 60), "53/udp=too-many-headers tcp=too-many-headers all@far=pass all@you=rule nothing=pass"},
	{"eight headers and the kind of a ninth", With(Cut(v6(60, 60, 60, 60, 60, 60, 60, 60, 60), 16), 14+4, 0, 64), "udp=too-many-headers all@far=pass"},
	{"fragment headers count", v6(44, 44, 44, 44, 44, 44, 44, 44, 44), "udp=too-many-headers all@far=pass"},
	{"long header", IP(me6, you6, dstOpts, Extension(udp, 3, UDP(1024, 53))), "53/udp=rule 53/tcp=pass"},
	{"header of 7 bytes", IP(me6, you6, dstOpts, make([]byte, 7)), "udp=truncated all@you=rule all@far=pass"},
	{"header cut short of its own length", IP(me6, you6, dstOpts, Cut(Extension(udp, 3, nil), 1)), "udp=truncated all@far=pass"},
	{"no header at all", IP(me6, you6, hopByHop, nil), "udp=truncated all@far=pass"},
	{"a fragment header's second byte is no length", IP(me6, you6, 44, With(FragmentHeader(udp, offset0, false, UDP(1024, 53)), 1, 200)), "53/udp=rule 53/tcp=pass"},
	{"header cut short in a first fragment", IP(me6, you6, 44, FragmentHeader(dstOpts, offset0, moreFragments, make([]byte, 4))), "udp=truncated all@far=pass"},
	{"IPv6, later fragment", IP(me6, you6, 44, FragmentHeader(udp, 1, false, UDP(1024, 80))), "53/udp=fragment udp=rule tcp=pass icmp=pass"},
	{"IPv6, later fragment of unknown protocol", IP(me6, you6, 44, FragmentHeader(dstOpts, 1, false, UDP(1024, 80))), "udp=fragment all@you=rule all@far=pass"},
	{"IPv6, later fragment of ESP", IP(me6, you6, 44, FragmentHeader(esp, 1, false, make([]byte, 8))), "esp=rule udp=pass"},
	{"IPv6, first fragment with its ports", IP(me6, you6, 44, FragmentHeader(udp, offset0, moreFragments, UDP(1024, 53))), "53/udp=rule 53/tcp=pass"},
	{"IPv6, tiny first fragment", IP(me6, you6, 44, FragmentHeader(udp, offset0, moreFragments, UDP(1024, 53)[:4])), "53/udp=fragment udp=rule 53/tcp=pass"},
	{"IPv6, tiny first fragment behind a whole one", IP(me6, you6, 44, FragmentHeader(44, offset0, moreFragments, FragmentHeader(udp, offset0, false, nil))), "53/udp=fragment 53/tcp=pass"},
	{"IPv6, whole packet with a fragment header, cut short", IP(me6, you6, 44, FragmentHeader(udp, offset0, false, nil)), "53/udp=truncated 53/tcp=pass"},
	{"AH is a protocol of its own", IP(me6, you6, ah, Extension(udp, 1, UDP(1024, 53))), "ah=rule udp=pass"},
	{"ESP is a protocol of its own", IP(me6, you6, esp, Extension(udp, 1, UDP(1024, 53))), "esp=rule udp=pass"},
	{"no next header", IP(me6, you6, noNext, nil), "all@you=rule udp=pass icmp=pass"},
	{"a routing header does not change the peer", IP(me6, far6, routing, Extension(udp, 2, UDP(1024, 53))), "all@far=rule all@you=pass"},
	{"an extension header's number is a protocol in IPv4", IP(me4, you4, hopByHop, nil), "udp=pass all=rule"},

	{"TCP", tcp4, "53/tcp=rule 53/udp=pass"},
	{"TCP in IPv6", tcp6, "53/tcp=rule 53/udp=pass"},
	{"TCP of 19 bytes", With(Cut(tcp4, 1), 14+2, 0, 39), "53/tcp=truncated tcp=rule 53/udp=pass"},
	{"TCP of 19 bytes, first fragment", With(Cut(tcp4, 1), 14+2, 0, 39, 0, 0, 0x20), "53/tcp=fragment 53/udp=pass"},
	{"TCP, data offset 4", With(tcp4, 14+20+12, 0x40), "53/tcp=bad-header tcp=rule 53/udp=pass"},
	{"TCP, data offset 4, first fragment", With(With(tcp4, 14+20+12, 0x40), 14+6, 0x20), "53/tcp=bad-header 53/udp=pass"},
	{"TCP, data offset beyond the packet", With(tcp4, 14+20+12, 0xf0), "53/tcp=rule 53/udp=pass"},
	{"UDP of 7 bytes", With(Cut(udp4, 1), 14+2, 0, 27), "53/udp=truncated udp=rule 53/tcp=pass"},
	{"UDP to port 0", IP(me4, you4, udp, UDP(53, 0)), "53/udp=pass every/udp=pass udp=rule"},
	{"UDP, last port", IP(me4, you4, udp, UDP(53, 65535)), "53/udp=pass every/udp=rule"},
	{"SCTP", IP(me4, you4, sctp, SCTP(1024, 53)), "53/sctp=rule 53/udp=pass"},
	{"SCTP of 11 bytes", IP(me4, you4, sctp, SCTP(1024, 53)[:11]), "53/sctp=truncated sctp=rule 53/udp=pass"},
	{"other protocol, empty", IP(me4, you4, gre, nil), "gre=rule udp=pass"},

	{"ping", IP(me4, you4, icmp4, ICMP(8, 0)), "ping=rule icmp=rule types=pass udp=pass"},
	{"ping in IPv6", IP(me6, you6, icmp6, ICMP(128, 0)), "ping=rule icmp=rule types=pass udp=pass"},
	{"echo reply", IP(me4, you4, icmp4, ICMP(0, 0)), "ping=pass icmp=rule"},
	{"echo reply in IPv6", IP(me6, you6, icmp6, ICMP(129, 0)), "ping=pass icmp=rule"},
	{"timestamp request", IP(me4, you4, icmp4, ICMP(13, 0)), "types=rule icmp=rule ping=pass"},
	{"a type of the other family", IP(me6, you6, icmp6, ICMP(200, 0)), "types=pass icmp=rule"},
	{"ICMP of 7 bytes", IP(me4, you4, icmp4, ICMP(8, 0)[:7]), "ping=truncated icmp=truncated all@you=rule udp=pass"},
	{"ICMPv6 of 4 bytes", IP(me6, you6, icmp6, ICMP(128, 0)[:4]), "ping=rule types=pass"},
	{"ICMPv6 of 3 bytes", IP(me6, you6, icmp6, ICMP(128, 0)[:3]), "ping=truncated udp=pass"},
	{"ICMP in IPv6", IP(me6, you6, icmp4, ICMP(8, 0)), "ping=pass icmp=pass all=rule"},
	{"ICMPv6 in IPv4", IP(me4, you4, icmp6, ICMP(128, 0)), "ping=pass icmp=pass all=rule"},

	{"neighbour discovery to a link-local address", hops(255, IP(me6, "fe80::2", icmp6, ICMP(136, 0))), "all=pass closed=pass types=pass"},
	{"neighbour discovery to the end of fe80::/10", hops(255, IP(me6, "febf::2", icmp6, ICMP(135, 0))), "all=pass"},
	{"neighbour discovery beyond fe80::/10", hops(255, IP(me6, "fec0::2", icmp6, ICMP(135, 0))), "all=rule types=rule icmp=rule"},
	{"neighbour discovery to the link's multicast", hops(255, IP(me6, "ff02::1:ff00:2", icmp6, ICMP(135, 0))), "all=pass closed=pass"},
	{"neighbour discovery to wider multicast", hops(255, IP(me6, "ff05::2", icmp6, ICMP(135, 0))), "all=rule closed=default"},
	{"neighbour discovery to temporary multicast", hops(255, IP(me6, "ff12::2", icmp6, ICMP(135, 0))), "all=rule"},
	{"neighbour discovery to the same 64 bits", hops(255, IP(me6, near6, icmp6, ICMP(135, 0))), "all=pass closed=pass"},
	{"neighbour discovery of the usual size", hops(255, IP(me6, near6, icmp6, ICMP(136, 0, make([]byte, 24)...))), "all=pass closed=pass"},
	{"neighbour discovery of more", hops(255, IP(me6, near6, icmp6, ICMP(136, 0, make([]byte, 29)...))), "all=rule closed=default"},
	{"router discovery to the same 64 bits", hops(255, IP(me6, near6, icmp6, ICMP(134, 0))), "all=rule closed=default"},
	{"router advertisement of a container", hops(255, IP(me6, "ff02::1", icmp6, ICMP(134, 0))), "all=rule closed=default"},
	{"router solicitation of a container", hops(255, IP(me6, "ff02::2", icmp6, ICMP(133, 0))), "all=pass closed=pass"},
	{"neighbour discovery to other 64 bits", hops(255, IP(me6, you6, icmp6, ICMP(135, 0))), "all=rule types=rule icmp=rule closed=default"},
	{"neighbour discovery with hop limit 254", hops(254, IP(me6, near6, icmp6, ICMP(135, 0))), "all=rule types=rule closed=default"},
	{"neighbour discovery with a code", hops(255, IP(me6, near6, icmp6, ICMP(135, 1))), "all=rule types=rule"},
	{"neighbour discovery of 4 bytes", hops(255, IP(me6, near6, icmp6, ICMP(135, 0)[:4])), "all=pass"},
	{"neighbour discovery of 3 bytes", hops(255, IP(me6, near6, icmp6, ICMP(135, 0)[:3])), "all=rule types=truncated udp=pass"},
	{"router solicitation", hops(255, IP(me6, "ff02::2", icmp6, ICMP(133, 0))), "all=pass"},
	{"redirect", hops(255, IP(me6, near6, icmp6, ICMP(137, 0))), "all=rule icmp=rule"},
	{"neighbour discovery behind a header", hops(255, IP(me6, near6, hopByHop, Extension(icmp6, 0, ICMP(135, 0)))), "all=pass"},
	{"neighbour discovery in a first fragment", hops(255, IP(me6, near6, 44, FragmentHeader(icmp6, offset0, moreFragments, ICMP(135, 0)))), "all=rule types=rule"},
	{"neighbour discovery in a whole packet with a fragment header", hops(255, IP(me6, near6, 44, FragmentHeader(icmp6, offset0, false, ICMP(135, 0)))), "all=pass"},
	{"neighbour discovery in a later fragment", hops(255, IP(me6, near6, 44, FragmentHeader(icmp6, 1, false, ICMP(135, 0)))), "all=rule types=fragment"},

	{"MLD", hops(1, IP(me6, "ff02::16", hopByHop, Extension(icmp6, 0, ICMP(143, 0)))), "all=pass closed=pass"},
	{"MLD to any multicast", hops(1, IP(me6, "ff0e::16", icmp6, ICMP(131, 0))), "all=pass"},
	{"MLD with hop limit 2", hops(2, IP(me6, "ff02::16", icmp6, ICMP(143, 0))), "all=rule icmp=rule closed=default"},
	{"MLD to one address", hops(1, IP(me6, "fe80::2", icmp6, ICMP(132, 0))), "all=rule icmp=rule"},
	{"type 129 is no MLD", hops(1, IP(me6, "ff02::16", icmp6, ICMP(129, 0))), "all=rule icmp=rule"},

	{"error about a datagram from port 53", error4(asked4), "53/udp=rule udp=rule all@you=rule 53/udp@you=rule icmp=pass types=pass tcp=pass all@far=pass closed=default"},
	{"error about a datagram from port 53 in IPv6", error6(asked6), "53/udp=rule udp=rule all@you=rule 53/udp@you=rule icmp=pass types=pass tcp=pass all@far=pass closed=default"},
	{"error about a datagram to port 53", error4(IPv4(you4, me4, udp, nil, UDP(1024, 53))), "53/udp=pass udp=rule"},
	{"time exceeded", IP(me4, you4, icmp4, ICMP(11, 0, asked4...)), "53/udp=rule icmp=pass"},
	{"ICMPv6 error of the highest type", IP(me6, you6, icmp6, ICMP(127, 0, asked6...)), "53/udp=rule icmp=pass"},
	{"ICMPv6 error of the lowest type", IP(me6, you6, icmp6, ICMP(0, 0, asked6...)), "53/udp=rule icmp=pass"},
	{"quote with 4 bytes of a transport header", error4(Cut(IPv4(you4, me4, tcp, nil, TCP(53, 1024)), 16)), "53/tcp=rule 53/udp=pass"},
	{"quote with 3 bytes of a transport header", error4(Cut(IPv4(you4, me4, tcp, nil, TCP(53, 1024)), 17)), "53/tcp=bad-quote udp=bad-quote all@you=rule all@far=pass nothing=pass"},
	{"quote whose data offset is 0", error4(With(IPv4(you4, me4, tcp, nil, TCP(53, 1024)), 32, 0)), "53/tcp=rule 53/udp=pass"},
	{"quote that ends before its total length", error4(With(asked4, 2, 5, 0)), "53/udp=rule 53/tcp=pass"},
	{"quote that ends behind its total length", error4(With(asked4, 2, 0, 23)), "53/udp=bad-quote all@far=pass"},
	{"quote whose total length is below its header length", error4(With(asked4, 2, 0, 19)), "53/udp=bad-quote all@far=pass"},
	{"quote that ends before its payload length", error6(With(asked6, 4, 5, 0)), "53/udp=rule 53/tcp=pass"},
	{"quote that ends behind its payload length", error6(With(asked6, 4, 0, 3)), "53/udp=bad-quote all@far=pass"},
	{"quote whose bytes lie behind the error", With(append(error4(asked4[:20]), asked4[20:]...), 14+2, 0, 48), "53/udp=bad-quote all@far=pass"},
	{"quote with options", error4(IPv4(you4, me4, udp, UDP(80, 80), UDP(53, 1024))), "53/udp=rule 53/tcp=pass"},
	{"quote with headers", error6(IPv6(you6, me6, hopByHop, Extension(udp, 1, UDP(53, 1024)))), "53/udp=rule 53/tcp=pass"},
	{"quote of a protocol without a service", error4(IPv4(you4, me4, gre, nil, nil)), "gre=rule udp=pass"},
	{"quote of protocol 0 in IPv4", error4(IPv4(you4, me4, 0, nil, nil)), "gre=pass udp=pass all@you=rule"},
	{"quote of an echo request is its reply", error4(IPv4(you4, me4, icmp4, nil, ICMP(8, 0))), "ping=pass icmp=rule"},
	{"quote of an echo reply is its request", error4(IPv4(you4, me4, icmp4, nil, ICMP(0, 0))), "ping=rule icmp=rule udp=pass"},
	{"quote of an echo request is its reply in IPv6", error6(IPv6(you6, me6, icmp6, ICMP(128, 0))), "ping=pass icmp=rule"},
	{"quote of an echo reply is its request in IPv6", error6(IPv6(you6, me6, icmp6, ICMP(129, 0))), "ping=rule icmp=rule udp=pass"},
	{"quote of another type", error4(IPv4(you4, me4, icmp4, nil, ICMP(13, 0))), "types=rule ping=pass"},
	{"quote of neighbour discovery is not built in", error6(With(IPv6(near6, near6, icmp6, ICMP(135, 0)), 7, 255)), "all=rule types=bad-quote all@far=pass"},
	{"quoted neighbour discovery from the peer", error6(With(IPv6(you6, me6, icmp6, ICMP(135, 0)), 7, 255)), "all=rule types=rule icmp=rule"},
	{"quote of the other family", error4(asked6), "53/udp=bad-quote tcp=bad-quote all@you=rule all@far=pass"},
	{"quote from somebody else", error4(IPv4(far4, me4, udp, nil, UDP(53, 1024))), "53/udp=bad-quote icmp=bad-quote all@far=pass nothing=pass"},
	{"quote of an error", error4(IPv4(you4, me4, icmp4, nil, ICMP(3, 3, asked4...))), "53/udp=bad-quote icmp=bad-quote all@you=rule all@far=pass"},
	{"quote of a later fragment", error4(With(asked4, 7, 1)), "53/udp=bad-quote all@far=pass"},
	{"quote of a later fragment without a service", error4(With(IPv4(you4, me4, gre, nil, nil), 7, 1)), "udp=bad-quote all@far=pass"},
	{"quote of a later fragment in IPv6", error6(IPv6(you6, me6, 44, FragmentHeader(udp, 1, false, UDP(53, 1024)))), "53/udp=bad-quote all@far=pass"},
	{"quote of a first fragment", error4(With(asked4, 6, 0x20)), "53/udp=rule 53/tcp=pass"},
	{"quote of nine headers", error6(v6(60, 60, 60, 60, 60, 60, 60, 60, 60)[14:]), "udp=bad-quote all@far=pass"},
	{"error without a quote", error4(nil), "udp=bad-quote all@you=rule all@far=pass nothing=pass"},
	{"ICMPv6 error of 4 bytes", IP(me6, you6, icmp6, ICMP(1, 0)[:4]), "udp=bad-quote all@far=pass"},
	{"error in a first fragment", With(error4(asked4), 14+6, 0x20), "53/udp=rule 53/tcp=pass"},
}

func TestReading(t *testing.T) {
	for _, test := range readingTests {
		for _, want := range strings.Fields(test.want) {
			name, reason, _ := strings.Cut(want, "=")
			p, ok := policies[name]
			if !ok {
				t.Fatalf("%s: no policy %q", test.name, name)
			}
			if got := p.Verdict(policy.Egress, test.frame); got.Reason.String() != reason {
				t.Errorf("%s: %q gives %v, want %s\n%x", test.name, name, got.Reason, reason, test.frame)
			}
		}
	}
}

// What the container receives is judged by its source.
func TestReadingIngress(t *testing.T) {
	tests := []struct {
		name  string
		frame []byte
		want  string
	}{
		{"from you", IP(you4, me4, udp, UDP(1024, 53)), "all@you=rule 53/udp@you=rule all@far=pass 53/tcp=pass"},
		{"to you", udp4, "all@you=pass 53/udp=rule"},
		{"neighbour discovery from a link-local address", hops(255, IP("fe80::2", me6, icmp6, ICMP(135, 0))), "all=pass"},
		{"neighbour discovery to a link-local address", hops(255, IP(you6, "fe80::1", icmp6, ICMP(135, 0))), "all=rule"},
		{"error from a router about what you were sent", IP(far4, me4, icmp4, ICMP(11, 0, IPv4(me4, you4, udp, nil, UDP(53, 1024))...)), "all@you=rule 53/udp@you=rule all@far=pass 53/tcp=pass"},
		{"error about what somebody else sent", IP(far4, me4, icmp4, ICMP(11, 0, IPv4(far4, you4, udp, nil, UDP(53, 1024))...)), "53/udp=bad-quote all@far=rule all@you=pass"},
	}
	for _, test := range tests {
		for _, want := range strings.Fields(test.want) {
			name, reason, _ := strings.Cut(want, "=")
			if got := policies[name].Verdict(policy.Ingress, test.frame); got.Reason.String() != reason {
				t.Errorf("%s: %q gives %v, want %s", test.name, name, got.Reason, reason)
			}
		}
	}
}

func TestRules(t *testing.T) {
	all := policy.What{Kind: policy.All}
	egress, ingress := [2]bool{true, false}, [2]bool{false, true}
	in := func(dirs [2]bool, r policy.Rule) policy.Rule { r.In = dirs; return r }
	dropUDP, dropAll := rule(policy.Drop, proto(udp), policy.Peers{}), rule(policy.Drop, all, policy.Peers{})
	exceptYou := rule(policy.Except, all, to(you4+"/32"))
	allowDNS := rule(policy.Allow, port(udp, 53, 53), policy.Peers{})
	limit := rule(policy.Limit, all, policy.Peers{})
	none := policy.Policy{}.Default

	pass, byDefault := policy.Verdict{Reason: policy.Pass, Source: -1, Rule: -1}, policy.Verdict{Reason: policy.ByDefault, Source: -1, Rule: -1}
	by := func(n int) policy.Verdict { return policy.Verdict{Reason: policy.ByRule, Rule: n} }
	tests := []struct {
		name     string
		rules    []policy.Rule
		defaults [2]policy.Default
		frame    []byte
		want     policy.Verdict
	}{
		{"the first rule that matches", []policy.Rule{rule(policy.Drop, proto(tcp), policy.Peers{}), dropUDP, dropAll}, none, udp4, by(1)},
		{"two rules share what is unknown", []policy.Rule{dropUDP, dropAll}, none, late4, by(0)},
		{"two rules divide what is unknown", []policy.Rule{rule(policy.Drop, port(udp, 53, 53), policy.Peers{}), dropAll}, none, late4, policy.Verdict{Reason: policy.Fragment, Source: -1, Rule: -1}},
		{"a rule for the other direction", []policy.Rule{in(ingress, dropUDP)}, none, udp4, pass},
		{"a rule for this direction", []policy.Rule{in(egress, dropUDP)}, none, udp4, by(0)},
		{"except", []policy.Rule{dropAll, exceptYou}, none, udp4, pass},
		{"except somebody else", []policy.Rule{dropAll, rule(policy.Except, all, to(far4+"/32"))}, none, udp4, by(0)},
		{"except for the other direction", []policy.Rule{dropAll, in(ingress, exceptYou)}, none, udp4, by(0)},
		{"an exception allows nothing", []policy.Rule{dropAll, exceptYou}, [2]policy.Default{policy.DefaultDrop}, udp4, byDefault},
		{"drop beats allow", []policy.Rule{allowDNS, dropUDP}, none, udp4, by(1)},
		{"allow", []policy.Rule{allowDNS}, none, udp4, pass},
		{"allow shuts the rest", []policy.Rule{allowDNS}, none, tcp4, byDefault},
		{"allow shuts its own direction only", []policy.Rule{in(ingress, allowDNS)}, none, tcp4, pass},
		{"allow with an open default", []policy.Rule{allowDNS}, [2]policy.Default{policy.DefaultAllow}, tcp4, pass},
		{"the default of the other direction", nil, [2]policy.Default{policy.Unset, policy.DefaultDrop}, tcp4, pass},
		{"the default of this direction", nil, [2]policy.Default{policy.DefaultDrop}, tcp4, byDefault},
		{"a limit drops nothing", []policy.Rule{limit}, none, udp4, pass},
		{"unknown and allowed only in part", []policy.Rule{allowDNS}, none, late4, policy.Verdict{Reason: policy.Fragment, Source: -1, Rule: -1}},
		{"unknown and allowed whatever it is", []policy.Rule{rule(policy.Allow, proto(udp), policy.Peers{})}, none, late4, pass},
	}
	for _, test := range tests {
		p := policy.Policy{Rules: test.rules, Default: test.defaults}
		if got := p.Verdict(policy.Egress, test.frame); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
}

func TestStackVerdict(t *testing.T) {
	udp, tcp, closed := policy.Source{Policy: policies["udp"]}, policy.Source{Policy: policies["tcp"]}, policy.Source{Policy: policies["closed"]}
	ports := policy.Source{Policy: policies["53/udp"]}
	tests := []struct {
		name  string
		stack policy.Stack
		frame []byte
		want  policy.Verdict
	}{
		{"empty", nil, udp4, policy.Verdict{Reason: policy.Pass, Source: -1, Rule: -1}},
		{"all pass", policy.Stack{tcp, tcp}, udp4, policy.Verdict{Reason: policy.Pass, Source: -1, Rule: -1}},
		{"the second drops", policy.Stack{tcp, udp}, udp4, policy.Verdict{Reason: policy.ByRule, Source: 1}},
		{"the first of two", policy.Stack{udp, closed}, udp4, policy.Verdict{Reason: policy.ByRule}},
		{"the first of two is a default", policy.Stack{closed, udp}, udp4, policy.Verdict{Reason: policy.ByDefault, Source: -1, Rule: -1}},
		{"the first cannot tell", policy.Stack{ports, udp}, late4, policy.Verdict{Reason: policy.Fragment, Source: -1, Rule: -1}},
		{"the second cannot tell", policy.Stack{tcp, ports}, late4, policy.Verdict{Reason: policy.Fragment, Source: -1, Rule: -1}},
	}
	for _, test := range tests {
		if got := test.stack.Verdict(policy.Egress, test.frame); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
}
