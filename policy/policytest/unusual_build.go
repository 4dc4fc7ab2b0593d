package policytest

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// Way is who sends the frames of the table to whom.
type Way struct{ src4, dst4, src6, dst6 string }

// The container is in no network that the lists of the table name, its peer in one, far in none.
const (
	container4, peer4, far4 = "198.51.100.1", "192.0.2.7", "203.0.113.9"
	container6, peer6, far6 = "2001:db8:a::1", "2001:db8:b::7", "2001:db8:c::9"
)

// Sent is from the container to its peer.
func Sent() Way { return Way{container4, peer4, container6, peer6} }

// Received is from the peer to the container.
func Received() Way { return Sent().Back() }

// Back is the way of an answer.
func (w Way) Back() Way { return Way{w.dst4, w.src4, w.dst6, w.src6} }

// Frames makes the frames of a row, which differ in what does not matter to their verdict. The same way gives the same
// frames, and nobody else has them.
type Frames func(Way) [][]byte

const (
	protoIGMP, protoIPIP, protoTCP, protoUDP, protoIPv6 = 2, 4, 6, 17, 41
	protoGRE, protoESP, protoAH, protoNone, protoSCTP   = 47, 50, 51, 59, 132
	protoUDPLite                                        = 136

	hopByHop, routing, fragmentHeader, destination = 0, 43, 44, 60
	mobility, hip, shim6                           = 135, 139, 140

	finFlag, synFlag, rstFlag, ackFlag = 1, 2, 4, 16

	// Where headers begin in a frame without tags, options and extension headers.
	atIP         = 14
	atTransport4 = atIP + 20
	atTransport6 = atIP + 40
)

// datagram and syn are to the ports that the allow-list has.
func datagram() []byte { return UDP(1024, 53) }
func syn() []byte      { return TCP(1024, 443) }

func one(f func(Way) []byte) Frames { return func(w Way) [][]byte { return [][]byte{f(w)} } }

func ipv4(proto uint8, payload []byte) Frames {
	return one(func(w Way) []byte { return IP(w.src4, w.dst4, proto, payload) })
}

func ipv6(next uint8, payload []byte) Frames {
	return one(func(w Way) []byte { return IP(w.src6, w.dst6, next, payload) })
}

// all are the frames of several rows in one.
func all(of ...Frames) Frames {
	return func(w Way) (out [][]byte) {
		for _, f := range of {
			out = append(out, f(w)...)
		}
		return out
	}
}

// both are a packet of either family with the same payload.
func both(proto uint8, payload []byte) Frames { return all(ipv4(proto, payload), ipv6(proto, payload)) }

// ethertypes are frames with the same payload.
func ethertypes(payload []byte, types ...uint16) Frames {
	return func(Way) (out [][]byte) {
		for _, t := range types {
			out = append(out, Eth(t, payload))
		}
		return out
	}
}

// each makes frames of each of f, one for each number of from to to.
func (f Frames) each(from, to int, change func(frame []byte, n int) []byte) Frames {
	return func(w Way) (out [][]byte) {
		for _, frame := range f(w) {
			for n := from; n <= to; n++ {
				out = append(out, change(slices.Clone(frame), n))
			}
		}
		return out
	}
}

// with puts bytes in place of those from offset on.
func (f Frames) with(offset int, bytes ...byte) Frames {
	return f.each(0, 0, func(frame []byte, _ int) []byte { return With(frame, offset, bytes...) })
}

func (f Frames) padded(n int) Frames {
	return f.each(0, 0, func(frame []byte, _ int) []byte { return append(frame, make([]byte, n)...) })
}

// cut leaves from to to bytes of each frame, all if it has fewer; what its headers say of lengths stays.
func (f Frames) cut(from, to int) Frames {
	return f.each(from, to, func(frame []byte, n int) []byte { return frame[:min(n, len(frame))] })
}

// short leaves from to to bytes behind the first header bytes, and makes the IP header say so.
func (f Frames) short(header, from, to int) Frames {
	return f.each(from, to, func(frame []byte, n int) []byte { return fitted(frame[:header+n]) })
}

// fitted makes the length in the IP header that of the frame.
func fitted(frame []byte) []byte {
	if frame[12] == 0x08 {
		binary.BigEndian.PutUint16(frame[atIP+2:], uint16(len(frame)-atIP))
	} else {
		binary.BigEndian.PutUint16(frame[atIP+4:], uint16(len(frame)-atTransport6))
	}
	return frame
}

func (f Frames) tagged(tpids ...uint16) Frames {
	return f.each(0, 0, func(frame []byte, _ int) []byte { return Tagged(frame, tpids...) })
}

// to makes a frame for each of the destination addresses, from for each of the source addresses.
func (f Frames) to(addrs ...string) Frames   { return f.addressed(atIP+16, atIP+24, addrs) }
func (f Frames) from(addrs ...string) Frames { return f.addressed(atIP+12, atIP+8, addrs) }

func (f Frames) addressed(at4, at6 int, addrs []string) Frames {
	return func(w Way) (out [][]byte) {
		for _, frame := range f(w) {
			for _, a := range addrs {
				addr, at := netip.MustParseAddr(a), at6
				if addr.Is4() {
					at = at4
				}
				out = append(out, With(frame, at, addr.AsSlice()...))
			}
		}
		return out
	}
}

// hops sets the hop limit of IPv6 frames.
func (f Frames) hops(n byte) Frames { return f.with(atIP+7, n) }

// options puts options into an IPv4 header.
func options(bytes []byte, proto uint8, payload []byte) Frames {
	return one(func(w Way) []byte { return Eth(0x0800, IPv4(w.src4, w.dst4, proto, bytes, payload)) })
}

// chain is an IPv6 packet with extension headers of these kinds, 8 bytes each, in front of a datagram.
func chain(kinds ...uint8) Frames {
	next, b := uint8(protoUDP), datagram()
	for _, kind := range slices.Backward(kinds) {
		next, b = kind, Extension(next, 0, b)
	}
	return ipv6(next, b)
}

// chains have from to to destination options.
func chains(from, to int) Frames {
	var out []Frames
	for n := from; n <= to; n++ {
		out = append(out, chain(slices.Repeat([]uint8{destination}, n)...))
	}
	return all(out...)
}

// part4 is a fragment of an IPv4 packet, at an offset in units of 8 bytes.
func part4(proto uint8, offset uint16, more bool, payload []byte) Frames {
	if more {
		offset |= 0x2000
	}
	return ipv4(proto, payload).with(atIP+4, 0, 9, byte(offset>>8), byte(offset))
}

func part6(proto uint8, offset uint16, more bool, payload []byte) Frames {
	return ipv6(fragmentHeader, FragmentHeader(proto, offset, more, payload))
}

// quote is an IP packet that an ICMP error is about.
type quote func(Way) []byte

func quoted4(proto uint8, payload []byte) quote {
	return func(w Way) []byte { return IPv4(w.src4, w.dst4, proto, nil, payload) }
}

func quoted6(next uint8, payload []byte) quote {
	return func(w Way) []byte { return IPv6(w.src6, w.dst6, next, payload) }
}

// error4 and error6 are port unreachable messages about packets that went the other way.
func error4(about quote) Frames {
	return one(func(w Way) []byte { return IP(w.src4, w.dst4, protoICMP, ICMP(3, 3, about(w.Back())...)) })
}

func error6(about quote) Frames {
	return one(func(w Way) []byte { return IP(w.src6, w.dst6, protoICMPv6, ICMP(1, 4, about(w.Back())...)) })
}
