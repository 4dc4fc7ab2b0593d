// Package policytest makes frames and policies for tests: by hand, one good packet at a time, and at
// random, where the random ones crowd round the edges of the rules.
package policytest

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// The builders below put one header in front of a payload. Lengths are right, checksums are zero: nothing
// that judges packets looks at them. What is wrong with a packet is put in afterwards, with With and Cut.

// Eth returns an Ethernet frame from 00:00:5e:00:53:01 to 00:00:5e:00:53:02.
func Eth(ethertype uint16, payload []byte) []byte {
	frame := []byte{0, 0, 0x5e, 0, 0x53, 2, 0, 0, 0x5e, 0, 0x53, 1}
	return append(binary.BigEndian.AppendUint16(frame, ethertype), payload...)
}

// Tagged returns frame with VLAN tags behind its addresses, the outermost first; tpids are 0x8100, 0x88a8
// or anything else. Each tag names VLAN 5.
func Tagged(frame []byte, tpids ...uint16) []byte {
	tagged := slices.Clone(frame[:12])
	for _, tpid := range tpids {
		tagged = binary.BigEndian.AppendUint16(tagged, tpid)
		tagged = append(tagged, 0, 5)
	}
	return append(tagged, frame[12:]...)
}

// ARP returns an ARP request, with its Ethernet header, of 192.0.2.1 for 192.0.2.2.
func ARP() []byte {
	return Eth(0x0806, []byte{
		0, 1, 8, 0, 6, 4, 0, 1,
		0, 0, 0x5e, 0, 0x53, 1, 192, 0, 2, 1,
		0, 0, 0, 0, 0, 0, 192, 0, 2, 2,
	})
}

// IP returns the Ethernet frame of a packet without options or extension headers, of the family of dst,
// with TTL or hop limit 64.
func IP(src, dst string, proto uint8, payload []byte) []byte {
	if netip.MustParseAddr(dst).Is4() {
		return Eth(0x0800, IPv4(src, dst, proto, nil, payload))
	}
	return Eth(0x86dd, IPv6(src, dst, proto, payload))
}

// IPv4 returns a packet whose options are padded with zeroes to a multiple of 4 bytes; at most 40 bytes fit.
func IPv4(src, dst string, proto uint8, options, payload []byte) []byte {
	for len(options)%4 != 0 {
		options = append(slices.Clip(options), 0)
	}
	if len(options) > 40 {
		panic(fmt.Sprintf("%d bytes of IPv4 options", len(options)))
	}
	header := 20 + len(options)
	packet := []byte{byte(0x40 | header/4), 0}
	packet = binary.BigEndian.AppendUint16(packet, uint16(header+len(payload)))
	packet = append(packet, 0, 0, 0, 0, 64, proto, 0, 0)
	packet = append(packet, netip.MustParseAddr(src).AsSlice()...)
	packet = append(packet, netip.MustParseAddr(dst).AsSlice()...)
	return append(append(packet, options...), payload...)
}

// IPv6 returns a packet; next is the kind of what payload begins with.
func IPv6(src, dst string, next uint8, payload []byte) []byte {
	packet := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(payload)))
	packet = append(packet, next, 64)
	packet = append(packet, netip.MustParseAddr(src).AsSlice()...)
	packet = append(packet, netip.MustParseAddr(dst).AsSlice()...)
	return append(packet, payload...)
}

// Extension returns an IPv6 extension header of 8+8*extra bytes in front of payload.
func Extension(next, extra uint8, payload []byte) []byte {
	header := make([]byte, 8+8*int(extra))
	header[0], header[1] = next, extra
	return append(header, payload...)
}

// FragmentHeader returns an IPv6 fragment header in front of payload; offset is in units of 8 bytes.
func FragmentHeader(next uint8, offset uint16, more bool, payload []byte) []byte {
	header := make([]byte, 8)
	header[0] = next
	field := offset << 3
	if more {
		field |= 1
	}
	binary.BigEndian.PutUint16(header[2:], field)
	return append(header, payload...)
}

// TCP returns the 20 bytes of a SYN with the sequence number 0. With other flags it acknowledges such a one.
func TCP(src, dst uint16) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	b[11], b[12], b[13] = 1, 5<<4, 2
	return b
}

// UDP returns a datagram.
func UDP(src, dst uint16, payload ...byte) []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return append(b, payload...)
}

// SCTP returns the 12 bytes of the common header.
func SCTP(src, dst uint16) []byte {
	b := make([]byte, 12)
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	return b
}

// ICMP returns a message of either family: 8 bytes of header, then body, which for an error is the packet
// that it quotes.
func ICMP(typ, code uint8, body ...byte) []byte {
	return append([]byte{typ, code, 0, 0, 0, 0, 0, 0}, body...)
}

// With returns b with the bytes from offset on replaced; b stays as it was.
func With(b []byte, offset int, bytes ...byte) []byte {
	changed := slices.Clone(b)
	copy(changed[offset:offset+len(bytes)], bytes)
	return changed
}

// Cut returns b without its last n bytes.
func Cut(b []byte, n int) []byte {
	return slices.Clip(b[:len(b)-n])
}
