package policy

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
)

// fault is where and why a text is wrong, before it is known under which key it stands.
type fault struct {
	// off and n are the faulty bytes of the text.
	off, n            int
	problem, expected string
	// fix, when not "", is what should stand in place of the faulty bytes.
	fix string
	// hint, when not "", is the whole advice.
	hint string
}

// at moves the fault into a longer text that holds the faulty one at off. It is nil for no fault.
func (f *fault) at(off int) *fault {
	if f != nil {
		f.off += off
	}
	return f
}

const (
	wantMatch = "a protocol, PORT/tcp, an address, a CIDR or a group"
	wantWhat  = "a protocol, PORT/tcp, TYPE/icmp, ping or all"
	wantPeer  = "an address, a CIDR, ADDRESS-ADDRESS or a group"
	wantPort  = "a port from 1 to 65535"
)

// whats are the words that are a left side of their own.
var whats = map[string]What{
	"all": {Kind: All}, "any": {Kind: All}, "icmp": {Kind: ICMP}, "ping": {Kind: Ping},
	"dns": {Kind: DNS}, "metadata": {Kind: Metadata},
	"tcp": {Kind: Proto, Proto: 6}, "udp": {Kind: Proto, Proto: 17}, "sctp": {Kind: Proto, Proto: 132},
	"igmp": {Kind: Proto, Proto: 2}, "gre": {Kind: Proto, Proto: 47}, "esp": {Kind: Proto, Proto: 50},
	"ah": {Kind: Proto, Proto: 51},
}

// portProtos are the protocols whose ports a match can name.
var portProtos = map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132}

// unnumbered are the protocol numbers that proto-N refuses: those with a name, and the IPv6 extension
// headers, which are not what a packet carries.
var unnumbered = map[int]string{
	1: "icmp", 58: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 51: "ah", 132: "sctp",
	0: "", 43: "", 44: "", 60: "", 135: "", 139: "", 140: "",
}

// ParseMatch reads one match, such as 443/tcp@192.0.2.0/24; spaces around it are ignored. The error
// is a *LabelError without a key.
func ParseMatch(s string) (Match, error) {
	text, off := trim(s)
	m, f := parseMatch(text)
	if f != nil {
		hintMatch(f, text)
		return Match{}, f.at(off).label("", s)
	}
	return m, nil
}

// parseMatch gives no hints beyond fixes, so that hints can use it to try what they propose.
func parseMatch(s string) (Match, *fault) {
	if s == "" {
		return Match{}, &fault{problem: "an empty match", expected: wantMatch}
	}
	left, right, hasPeers := strings.Cut(s, "@")
	if !hasPeers && !isWhat(s) {
		p, f := parsePeers(s)
		if f != nil && f.expected == wantPeer {
			f.expected = wantMatch
		}
		return Match{Peers: p}, f
	}
	w, f := parseWhat(left)
	if f != nil || !hasPeers {
		return Match{What: w}, f
	}
	if w.Kind == DNS || w.Kind == Metadata {
		return Match{}, &fault{off: len(left), n: len(s) - len(left),
			problem: left + " brings its own addresses and ports along", expected: left + " alone", hint: "leave " + s[len(left):] + " out"}
	}
	p, f := parsePeers(right)
	return Match{What: w, Peers: p}, f.at(len(left) + 1)
}

// isWhat tells a left side from peers: it is a word, a protocol number, or has a protocol on one side
// of a slash or ports before it.
func isWhat(s string) bool {
	if _, ok := whats[s]; ok || strings.HasPrefix(s, "proto-") {
		return true
	}
	head, tail, slash := strings.Cut(s, "/")
	if !slash {
		return false
	}
	_, first := whats[head]
	_, last := whats[tail]
	return first || last || strings.Trim(head, "0123456789+-") == ""
}

func parseWhat(s string) (What, *fault) {
	if w, ok := whats[s]; ok {
		return w, nil
	}
	if n, ok := strings.CutPrefix(s, "proto-"); ok {
		return parseProtoNumber(n)
	}
	head, tail, slash := strings.Cut(s, "/")
	if !slash {
		return What{}, &fault{n: len(s), problem: notA(s, "protocol"), expected: wantWhat}
	}
	// Docker's order, PORTS/PROTO, is tried first; icmp is the only word that can stand on both sides.
	if _, ok := whats[tail]; ok {
		return parseService(tail, len(head)+1, head, 0)
	}
	if _, ok := whats[head]; ok {
		return parseService(head, 0, tail, len(head)+1)
	}
	return What{}, &fault{off: len(head) + 1, n: len(tail), problem: notA(tail, "protocol with ports"), expected: "tcp, udp, sctp or icmp"}
}

// parseProtoNumber reads the N of proto-N.
func parseProtoNumber(s string) (What, *fault) {
	const prefix = len("proto-")
	n, ok := number(s, 255)
	if !ok {
		return What{}, &fault{off: prefix, n: len(s), problem: notA(s, "protocol number"), expected: "a number from 0 to 255"}
	}
	switch name, refused := unnumbered[n]; {
	case refused && name != "":
		return What{}, &fault{n: prefix + len(s), problem: "a protocol that has a name", expected: name, fix: name}
	case refused:
		return What{}, &fault{off: prefix, n: len(s), problem: "an IPv6 extension header", expected: "the protocol that the packet carries"}
	}
	return What{Kind: Proto, Proto: uint8(n)}, nil
}

// parseService reads the ports or the ICMP type that stand beside proto; the offsets are those of
// the two in the left side.
func parseService(proto string, protoOff int, service string, off int) (What, *fault) {
	if proto == "icmp" {
		w, f := parseICMPType(service)
		return w, f.at(off)
	}
	number, ok := portProtos[proto]
	if !ok {
		return What{}, &fault{off: protoOff, n: len(proto), problem: quote(proto) + " has no ports", expected: "tcp, udp or sctp"}
	}
	ports, f := parsePorts(service)
	if f != nil {
		return What{}, f.at(off)
	}
	return What{Kind: Ports, Proto: number, Ports: ports}, nil
}

// echoRequest is what ping stands for; both spellings give the Ping kind.
var echoRequest = []ICMPType{{false, 8}, {true, 128}}

func parseICMPType(s string) (What, *fault) {
	types, why := icmpTypes(s)
	switch {
	case slices.Equal(types, echoRequest):
		return What{Kind: Ping}, nil
	case len(types) > 0:
		return What{Kind: ICMPTypes, Types: types}, nil
	case why != "":
		return What{}, &fault{n: len(s), problem: quote(s) + " is " + why, expected: "another ICMP type"}
	}
	return What{}, &fault{n: len(s), problem: notA(s, "ICMP type"), expected: "an IANA name such as echo-request, or a number from 0 to 255"}
}

func parsePorts(s string) ([]PortRange, *fault) {
	var ports []PortRange
	for off, part := range split(s, '+') {
		r, f := parsePortRange(part)
		if f != nil {
			return nil, f.at(off)
		}
		ports = append(ports, r)
	}
	return mergePorts(ports), nil
}

func parsePortRange(s string) (PortRange, *fault) {
	from, to, isRange := strings.Cut(s, "-")
	first, f := parsePort(from)
	if f != nil || !isRange {
		return PortRange{first, first}, f
	}
	last, f := parsePort(to)
	if f != nil {
		return PortRange{}, f.at(len(from) + 1)
	}
	if first > last {
		return PortRange{}, &fault{n: len(s), problem: "a range that ends before it begins", expected: "the lower port first", fix: to + "-" + from}
	}
	return PortRange{first, last}, nil
}

func parsePort(s string) (uint16, *fault) {
	n, ok := number(s, math.MaxUint16)
	switch {
	case ok && n > 0:
		return uint16(n), nil
	case len(s) > 1 && s[0] == '0':
		if n, ok := number(strings.TrimLeft(s, "0"), math.MaxUint16); ok && n > 0 {
			return 0, &fault{n: len(s), problem: "a port with a leading zero", expected: wantPort, fix: strings.TrimLeft(s, "0")}
		}
	}
	return 0, &fault{n: len(s), problem: notA(s, "port"), expected: wantPort}
}

// mergePorts sorts the ranges and joins those that overlap or touch.
func mergePorts(ports []PortRange) []PortRange {
	slices.SortFunc(ports, func(a, b PortRange) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	merged := ports[:0]
	for _, r := range ports {
		if n := len(merged); n > 0 && int(r.From) <= int(merged[n-1].To)+1 {
			merged[n-1].To = max(merged[n-1].To, r.To)
		} else {
			merged = append(merged, r)
		}
	}
	return merged
}

func parsePeers(s string) (Peers, *fault) {
	var p Peers
	for off, part := range split(s, '+') {
		if g := slices.Index(groupWords[:], part); g >= 0 {
			p.Groups = append(p.Groups, Group(g))
			continue
		}
		r, f := parseRange(part)
		if f != nil {
			return Peers{}, f.at(off)
		}
		p.Ranges = append(p.Ranges, r)
	}
	slices.Sort(p.Groups)
	p.Groups = slices.Compact(p.Groups)
	p.Ranges = sortRanges(p.Ranges)
	return p, nil
}

// sortRanges sorts by first and last address, IPv4 first, and drops what is there twice.
func sortRanges(ranges []netipx.IPRange) []netipx.IPRange {
	slices.SortFunc(ranges, func(a, b netipx.IPRange) int {
		return cmp.Or(a.From().Compare(b.From()), a.To().Compare(b.To()))
	})
	return slices.Compact(ranges)
}

// parseRange reads an address, a CIDR or ADDRESS-ADDRESS.
func parseRange(s string) (netipx.IPRange, *fault) {
	var none netipx.IPRange
	if w, ok := whats[s]; ok {
		problem := quote(s) + " is not a peer"
		if w.Kind == DNS || w.Kind == Metadata {
			problem = s + " brings its own addresses and ports along and stands alone"
		}
		return none, &fault{n: len(s), problem: problem, expected: wantPeer}
	}
	if addr, bits, ok := strings.Cut(s, "/"); ok {
		return parseCIDR(addr, bits)
	}
	from, to, isRange := strings.Cut(s, "-")
	first, f := parseAddr(from)
	if f != nil {
		return none, f
	}
	if !isRange {
		if first.IsUnspecified() {
			return none, unspecified(first, s)
		}
		return netipx.IPRangeFrom(first, first), nil
	}
	last, f := parseAddr(to)
	if f != nil {
		return none, f.at(len(from) + 1)
	}
	switch r := netipx.IPRangeFrom(first, last); {
	case first.Is4() != last.Is4():
		return none, &fault{n: len(s), problem: "a range from one address family to the other", expected: "two addresses of one family"}
	case !r.IsValid():
		return none, &fault{n: len(s), problem: "a range that ends before it begins", expected: "the lower address first", fix: to + "-" + from}
	default:
		return r, nil
	}
}

// unspecified is the fault of an address that people write for "everybody".
func unspecified(a netip.Addr, s string) *fault {
	f := &fault{n: len(s), problem: quote(s) + " is the address of nobody", expected: wantPeer, fix: "ipv6"}
	if a.Is4() {
		f.fix = "ipv4"
	}
	return f
}

func parseCIDR(addr, bits string) (netipx.IPRange, *fault) {
	var none netipx.IPRange
	a, f := parseAddr(addr)
	if f != nil {
		if n, ok := number(bits, 128); ok && n >= 96 && a.Is4In6() {
			f.n, f.fix = len(addr)+1+len(bits), netip.PrefixFrom(a.Unmap(), n-96).Masked().String()
		}
		return none, f
	}
	n, ok := number(bits, a.BitLen())
	if !ok {
		return none, badLength(a, bits).at(len(addr) + 1)
	}
	p := netip.PrefixFrom(a, n)
	if masked := p.Masked(); masked != p {
		return none, &fault{n: len(addr) + 1 + len(bits), problem: "a CIDR with host bits set", expected: "the network's first address", fix: masked.String()}
	}
	return netipx.RangeOfPrefix(p), nil
}

func badLength(a netip.Addr, bits string) *fault {
	f := &fault{n: len(bits), problem: notA(bits, "prefix length"), expected: "a number from 0 to 128"}
	if a.Is4() {
		f.expected = "a number from 0 to 32"
	}
	return f
}

// parseAddr reads an address without a zone that is not IPv4 mapped into IPv6, a spelling that no
// packet carries.
func parseAddr(s string) (netip.Addr, *fault) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return a, &fault{n: len(s), problem: notA(s, "address or group"), expected: wantPeer}
	case a.Zone() != "":
		return a, &fault{n: len(s), problem: "an address with a zone", expected: "an address without one", fix: a.WithZone("").String()}
	case a.Is4In6():
		return a, &fault{n: len(s), problem: "an IPv4 address mapped into IPv6", expected: "the IPv4 address", fix: a.Unmap().String()}
	}
	return a, nil
}
