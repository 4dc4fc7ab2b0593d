package policy

import (
	"encoding/binary"
	"net/netip"
)

// packet is what could be read of a frame, by docs/packets.md. It is written to be compared with that
// text, not to be fast: the programs in the kernel are tested against it.
type packet struct {
	class class
	// src, dst and hops are set where class is oneIP.
	src, dst netip.Addr
	hops     uint8
	// proto is the IANA number behind the extension headers.
	proto      uint8
	protoKnown bool
	// service is the destination port or the ICMP type. It is known, and
	// zero, for a known protocol that has none.
	service      uint16
	serviceKnown bool
	// from and to are the source and the destination port where the service is a port.
	from, to uint16
	// flags are those of a TCP header, 0 in a quote.
	flags uint8
	// seq and ack are the numbers of a TCP header, 0 in a quote.
	seq, ack uint32
	// echo is the identifier of an ICMP echo, 0 where the message ends before it does.
	echo uint16
	// first and later say which part of a fragmented packet this is; both are false for a whole one.
	first, later bool
	// part is set in IPv4, and in IPv6 where there is a fragment header.
	part part
	// icmp is the message from its type on, nil where it is no ICMP of its family or could not be read.
	icmp []byte
	// why is the reason for whatever is unknown, Pass where nothing is.
	why Reason
	// mac is the source; zero where the Ethernet header is cut, and in a quote.
	mac [6]byte
	// claim is an address that ARP or neighbour discovery says is the sender's; invalid for none.
	claim netip.Addr
	// extended: there are extension headers.
	extended bool
	// trailed: more bytes follow than an IPv6 packet says that it has.
	trailed bool
	// forged is what no container has to send.
	forged bool
}

// part is what a fragment says of its place; of several fragment headers the last one does.
type part struct {
	id    uint32
	proto uint8 // what the fragment header, or the IPv4 header, names; it may be an extension header
	// from and to are bytes of the fragmented part of the packet; to is the first that is not in this fragment.
	from, to int
}

// class says how much of the envelope is known.
type class uint8

const (
	anything class = iota // not even whether it is IP
	isARP
	notIP
	anyIP // IP, of either family: the fixed header cannot be read or believed
	oneIP // family and addresses are known
)

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806 // RFC 826
	etherVLAN = 0x8100 // IEEE 802.1Q
	etherIPv6 = 0x86dd // RFC 2464
	etherQinQ = 0x88a8 // IEEE 802.1ad

	maxTags    = 2
	maxHeaders = 8
)

const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132

	headerFragment = 44

	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// readFrame reads a frame from its destination MAC on.
func readFrame(b []byte) packet {
	if len(b) < 14 {
		return packet{class: anything, why: Truncated}
	}
	mac, ethertype, b := [6]byte(b[6:]), binary.BigEndian.Uint16(b[12:]), b[14:]
	for tags := 0; ethertype == etherVLAN || ethertype == etherQinQ; tags++ {
		if tags == maxTags {
			return packet{class: anything, why: TooManyTags, mac: mac}
		}
		if len(b) < 4 {
			return packet{class: anything, why: Truncated, mac: mac}
		}
		ethertype, b = binary.BigEndian.Uint16(b[2:]), b[4:]
	}
	switch ethertype {
	case etherARP:
		return readARP(mac, b)
	case etherIPv4:
		return readIPv4(b, false).sentBy(mac)
	case etherIPv6:
		return readIPv6(b, false).sentBy(mac)
	}
	return packet{class: notIP, mac: mac}
}

// sentBy adds what antispoof asks for.
func (p packet) sentBy(mac [6]byte) packet {
	p.mac = mac
	p.forged = p.isServersDHCP() || p.isRouters()
	if p.icmp != nil && p.dst.Is6() {
		claim, forged := p.claims()
		p.claim, p.forged = claim, p.forged || forged
	}
	return p
}

// readIPv4 reads an IPv4 packet (RFC 791), or one that an ICMP error quotes. A quote is cut on purpose
// (RFC 792: the header and 64 bits), so a total length beyond its end is no fault.
func readIPv4(b []byte, quoted bool) packet {
	if len(b) < 20 {
		return packet{class: anyIP, why: Truncated}
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if b[0]>>4 != 4 || header < 20 || total < header {
		return packet{class: anyIP, why: BadHeader}
	}
	if header > len(b) || total > len(b) && !quoted {
		return packet{class: anyIP, why: Truncated}
	}
	b = b[:min(total, len(b))]
	p := packet{class: oneIP, hops: b[8], proto: b[9], protoKnown: true}
	p.src, _ = netip.AddrFromSlice(b[12:16])
	p.dst, _ = netip.AddrFromSlice(b[16:20])

	// RFC 791: reserved bit, don't fragment, more fragments, then 13 bits of offset.
	fragment := binary.BigEndian.Uint16(b[6:])
	offset := int(fragment&0x1fff) * 8
	p.part = part{uint32(binary.BigEndian.Uint16(b[4:])), p.proto, offset, offset + len(b) - header}
	if offset != 0 {
		p.later, p.why = true, Fragment
		return p
	}
	p.first = fragment&0x2000 != 0
	return readTransport(p, b[header:], quoted)
}

// readIPv6 reads an IPv6 packet (RFC 8200), or one that an ICMPv6 error quotes.
func readIPv6(b []byte, quoted bool) packet {
	if len(b) < 40 {
		return packet{class: anyIP, why: Truncated}
	}
	if b[0]>>4 != 6 {
		return packet{class: anyIP, why: BadHeader}
	}
	total := 40 + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) && !quoted {
		return packet{class: anyIP, why: Truncated}
	}
	p := packet{class: oneIP, hops: b[7], trailed: total < len(b)}
	b = b[:min(total, len(b))]
	p.src, _ = netip.AddrFromSlice(b[8:24])
	p.dst, _ = netip.AddrFromSlice(b[24:40])
	return walkHeaders(p, b[6], b[40:], quoted)
}

// walkHeaders reads from the header of kind next on, which is where b begins.
func walkHeaders(p packet, next uint8, b []byte, quoted bool) packet {
	for walked := 0; isExtension(next); walked++ {
		p.extended = true
		if walked == maxHeaders {
			p.why = TooManyHeaders
			return p
		}
		size, ok := extensionSize(next, b)
		if !ok {
			p.why = Truncated
			return p
		}
		if next == headerFragment {
			// RFC 8200 4.5: 13 bits of offset, two reserved, more fragments.
			fragment := binary.BigEndian.Uint16(b[2:])
			offset := int(fragment &^ 7)
			p.part = part{binary.BigEndian.Uint32(b[4:]), b[0], offset, offset + len(b) - size}
			if offset != 0 {
				p.proto, p.protoKnown = b[0], !isExtension(b[0])
				p.later, p.why = true, Fragment
				return p
			}
			p.first = p.first || fragment&1 != 0
		}
		next, b = b[0], b[size:]
	}
	p.proto, p.protoKnown = next, true
	return readTransport(p, b, quoted)
}

// isExtension reports whether a next header is one that is walked: it holds the number of the next one
// in its first byte and its length in the second. AH and ESP are not walked: behind ESP nothing can be
// read, and AH counts its length in other units (RFC 4302).
func isExtension(next uint8) bool {
	switch next {
	case 0, 43, headerFragment, 60, 135, 139, 140:
		return true
	}
	return false
}

// extensionSize is how long the extension header at the beginning of b is; not ok if b is shorter. The
// second byte counts units of 8 bytes beyond the first, but is reserved in a fragment header.
func extensionSize(kind uint8, b []byte) (size int, ok bool) {
	if len(b) < 8 {
		return 0, false
	}
	size = 8
	if kind != headerFragment {
		size += 8 * int(b[1])
	}
	return size, len(b) >= size
}

// readTransport reads the service from b, where the header of p.proto begins.
func readTransport(p packet, b []byte, quoted bool) packet {
	need := transportSize(p.dst.Is6(), p.proto)
	if need == 0 {
		p.serviceKnown = true
		return p
	}
	if quoted {
		need = 4
	}
	if len(b) < need {
		// RFC 1858: a first fragment may be so tiny that its ports are in the second.
		p.why = Truncated
		if p.first {
			p.why = Fragment
		}
		return p
	}
	if p.proto == protoTCP && !quoted && b[12]>>4 < 5 {
		p.why = BadHeader
		return p
	}
	p.serviceKnown = true
	switch {
	case p.proto == protoICMP || p.proto == protoICMPv6:
		p.service, p.icmp = uint16(b[0]), b
		if len(b) >= 8 {
			p.echo = binary.BigEndian.Uint16(b[4:])
		}
		return p
	case p.proto == protoTCP && !quoted:
		p.flags, p.seq, p.ack = b[13], binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	}
	p.from, p.to = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	p.service = p.to
	return p
}

// transportSize is the least that a header must have to be read, 0 for a protocol without a service.
// ICMP of the other family is such a protocol.
func transportSize(v6 bool, proto uint8) int {
	switch {
	case proto == protoTCP:
		return 20
	case proto == protoUDP:
		return 8
	case proto == protoSCTP:
		return 12
	case proto == protoICMP && !v6:
		return 8
	case proto == protoICMPv6 && v6:
		return 4
	}
	return 0
}

// peer is the other side: whom the container sends to, or receives from.
func (p packet) peer(dir Direction) netip.Addr {
	if dir == Egress {
		return p.dst
	}
	return p.src
}

// builtIn reports whether p keeps the link alive and is therefore no matter of rules.
func (p packet) builtIn(dir Direction) bool {
	if p.class == isARP {
		return true
	}
	if p.icmp == nil || !p.dst.Is6() || p.first {
		return false
	}
	switch p.icmp[0] {
	case 133, 134, 135, 136: // RFC 4861
		// A container is no router: its advertisements are judged.
		advertises := p.icmp[0] == 134 && dir == Egress
		return !advertises && p.icmp[1] == 0 && p.hops == 255 && p.onLink(dir)
	case 130, 131, 132, 143: // RFC 2710, RFC 3810
		return p.hops == 1 && p.dst.As16()[0] == 0xff
	}
	return false
}

// onLink reports whether p stays on the link by its addresses. The hop limit of 255 proves that only for
// what was received: a container could send the same to anybody.
func (p packet) onLink(dir Direction) bool {
	src, dst, peer := p.src.As16(), p.dst.As16(), p.peer(dir).As16()
	switch {
	case peer[0] == 0xfe && peer[1]&0xc0 == 0x80: // fe80::/10
		return true
	case dst[0] == 0xff && dst[1] == 0x02: // ff02::/16
		return true
	}
	// A solicitation or advertisement with one option; who forges his source can still send as much past a
	// closed policy.
	const usual = 32
	return p.icmp[0] >= 135 && len(p.icmp) <= usual && [8]byte(src[:8]) == [8]byte(dst[:8])
}

// isError reports whether p was read as an ICMP error.
func (p packet) isError() bool {
	return p.icmp != nil && ICMPType{p.dst.Is6(), p.icmp[0]}.IsError()
}

// IsError tells the messages that quote a packet: RFC 792, and in ICMPv6 the lower half (RFC 4443 2.1).
func (t ICMPType) IsError() bool {
	if t.V6 {
		return t.Type <= 127
	}
	switch t.Type {
	case 3, 4, 5, 11, 12:
		return true
	}
	return false
}

// answered is the packet that the error p stands for: the one it quotes, turned round, so that what the
// error is about goes the way the error goes.
func (p packet) answered() packet {
	bad := packet{class: oneIP, src: p.src, dst: p.dst, why: BadQuote}
	if len(p.icmp) < 8 {
		return bad
	}
	read := readIPv4
	if p.dst.Is6() {
		read = readIPv6
	}
	q := read(p.icmp[8:], true)
	// RFC 1122 3.2.2: no error is sent about an error, nor about a later fragment.
	if !q.serviceKnown || q.src != p.dst || q.isError() {
		return bad
	}
	q.src, q.dst = q.dst, q.src
	q.from, q.to = q.to, q.from
	q.service = q.to
	if q.icmp != nil {
		q.service = oppositeType(q.dst.Is6(), q.icmp[0])
	}
	return q
}

// oppositeType is the type of the answer to an echo request, and of what an echo reply answers.
func oppositeType(v6 bool, typ uint8) uint16 {
	request, reply := uint8(8), uint8(0)
	if v6 {
		request, reply = 128, 129
	}
	switch typ {
	case request:
		return uint16(reply)
	case reply:
		return uint16(request)
	}
	return uint16(typ)
}
