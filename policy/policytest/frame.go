package policytest

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"github.com/vethwall/vethwall/policy"
)

// Frame returns a random frame of 14 to about 1,500 bytes, as a container might send it to get round p:
// addresses, protocols, ports and types at the edges of p's rules, headers of every length in every
// order, and one frame in a few cut, padded or damaged.
func Frame(r *rand.Rand, p policy.Policy) []byte {
	e := edgesOf(p)
	e.peers4 = append(e.peers4, "0.0.0.0")
	e.ports = append(e.ports, 67, 68, 546) // DHCP
	frame := frameMaker{r, e}.frame()
	if r.IntN(4) == 0 {
		frame = append(frame, random(r, r.IntN(47))...)
	}
	if r.IntN(6) == 0 {
		frame = frame[:14+r.IntN(len(frame)-13)]
	}
	if r.IntN(8) == 0 {
		for range 1 + r.IntN(3) {
			frame[12+r.IntN(min(len(frame), 90)-12)] = uint8(r.Uint32())
		}
	}
	return frame
}

// Addresses are those that Frame draws under every policy, and of ARP: of whom it may be said who has them.
func Addresses() (out []netip.Addr) {
	e := edgesOf(policy.Policy{})
	for _, a := range append(append(e.peers4, e.peers6...), Local4) {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// edges are the values at which the rules of a policy change their mind, beside some that they never do.
type edges struct {
	peers4, peers6 []string
	protos, types  []uint8
	ports          []uint16
}

func edgesOf(p policy.Policy) edges {
	e := edges{
		peers4: []string{"192.0.2.7", "198.51.100.70", "203.0.113.5", "224.0.0.1"},
		peers6: []string{"2001:db8::7", "2001:db8:0:1::7", "fe80::1", "ff02::1", "ff12::1", "::ffff:192.0.2.7"},
		protos: []uint8{protoICMP, protoICMPv6, 6, 17, 132},
		types:  icmpTypes,
		ports:  []uint16{0, 53, 443, 65535},
	}
	for _, rule := range p.Rules {
		for _, in := range rule.Match.Peers.Ranges {
			for _, a := range []netip.Addr{in.From(), in.To(), in.From().Prev(), in.To().Next()} {
				e.addPeer(a)
			}
		}
		switch w := rule.Match.What; w.Kind {
		case policy.Ports:
			for _, ports := range w.Ports {
				// One beyond the last port is the first: 0, which no rule has.
				e.ports = append(e.ports, ports.From-1, ports.From, ports.To, ports.To+1)
			}
			e.protos = append(e.protos, w.Proto, w.Proto)
		case policy.Proto:
			e.protos = append(e.protos, w.Proto)
		case policy.ICMP, policy.Ping, policy.ICMPTypes:
			e.protos = append(e.protos, protoICMP, protoICMPv6)
			for _, t := range w.Types {
				e.types = append(e.types, t.Type)
			}
		}
	}
	return e
}

func (e *edges) addPeer(a netip.Addr) {
	switch {
	case a.Is4():
		e.peers4 = append(e.peers4, a.String())
	case a.Is6():
		e.peers6 = append(e.peers6, a.String())
	}
}

const (
	protoICMP   = 1
	protoICMPv6 = 58
)

type frameMaker struct {
	*rand.Rand
	edges
}

func (m frameMaker) frame() []byte {
	var frame []byte
	switch m.IntN(24) {
	case 0:
		frame = ARP()
		if m.IntN(2) == 0 {
			frame[14+m.IntN(28)] = uint8(m.Uint32())
		}
	case 1:
		// LLC lengths, LLDP, a tag of old, wake on LAN.
		frame = Eth(pick(m.Rand, 0x0005, 0x0026, 0x05dc, 0x88cc, 0x9100, 0x0842, uint16(m.Uint32())), random(m.Rand, m.IntN(60)))
	case 2:
		// What the ethertype says is not what follows.
		v6 := m.IntN(2) == 0
		frame = Eth(pick[uint16](m.Rand, 0x0800, 0x86dd), m.packet(v6, m.peer(v6), 0))
	default:
		v6 := m.IntN(2) == 0
		ethertype := uint16(0x0800)
		if v6 {
			ethertype = 0x86dd
		}
		frame = Eth(ethertype, m.packet(v6, m.peer(v6), 0))
	}
	if m.IntN(4) == 0 {
		tags := make([]uint16, m.IntN(5))
		for i := range tags {
			tags[i] = pick[uint16](m.Rand, 0x8100, 0x8100, 0x88a8, 0x88a8, 0x9100)
		}
		frame = Tagged(frame, tags...)
	}
	return frame
}

func (m frameMaker) peer(v6 bool) string {
	if v6 {
		return pick(m.Rand, m.peers6...)
	}
	return pick(m.Rand, m.peers4...)
}

// packet returns an IP packet from src; depth is how many packets it is quoted in.
func (m frameMaker) packet(v6 bool, src string, depth int) []byte {
	dst := m.peer(v6)
	if v6 && m.IntN(6) == 0 {
		return m.linkMessage(src)
	}
	proto := pick(m.Rand, m.protos...)
	if m.IntN(8) == 0 {
		proto = pick(m.Rand, 0, 50, 51, 59, 44, uint8(m.Uint32()))
	}
	payload := m.transport(v6, dst, proto, depth)
	if v6 {
		return m.ipv6(src, dst, proto, payload)
	}
	return m.ipv4(src, dst, proto, payload)
}

func (m frameMaker) ipv4(src, dst string, proto uint8, payload []byte) []byte {
	var options []byte
	if m.IntN(4) == 0 {
		options = random(m.Rand, m.IntN(41))
	}
	b := IPv4(src, dst, proto, options, payload)
	switch m.IntN(24) {
	case 0, 1: // more fragments follow
		b[6] |= 0x20
	case 2: // a later fragment
		binary.BigEndian.PutUint16(b[6:], pick(m.Rand, 1, 185, 0x1fff, 0x2001, uint16(m.Uint32())))
	case 3: // don't fragment, or the reserved bit
		b[6] |= pick[uint8](m.Rand, 0x40, 0x80)
	case 4: // version or header length
		b[0] = pick(m.Rand, 0x40, 0x44, 0x46, 0x4f, 0x55, 0x65, uint8(m.Uint32()))
	case 5: // total length
		m.lengthAt(b, 2)
	}
	return b
}

func (m frameMaker) ipv6(src, dst string, proto uint8, payload []byte) []byte {
	headers := 0
	if m.IntN(2) == 0 {
		headers = m.IntN(11)
	}
	for range headers {
		proto, payload = m.header(proto, payload)
	}
	b := IPv6(src, dst, proto, payload)
	switch m.IntN(24) {
	case 0: // version
		b[0] = pick[uint8](m.Rand, 0x40, 0x45, 0x50, 0x70)
	case 1: // payload length
		m.lengthAt(b, 4)
	}
	return b
}

// header puts one extension header in front of payload, sometimes one that is not what it says.
func (m frameMaker) header(next uint8, payload []byte) (kind uint8, b []byte) {
	if m.IntN(6) == 0 {
		offset := uint16(0)
		if m.IntN(4) == 0 {
			offset = pick[uint16](m.Rand, 1, 0x1fff)
		}
		b = FragmentHeader(next, offset, m.IntN(3) == 0, payload)
		b[1] = pick(m.Rand, 0, 0, uint8(m.Uint32())) // reserved: no length
		return 44, b
	}
	b = Extension(next, pick[uint8](m.Rand, 0, 0, 0, 0, 1, 2), payload)
	if m.IntN(32) == 0 {
		b[1] = uint8(m.Uint32())
	}
	return pick[uint8](m.Rand, 0, 43, 60, 60, 135, 139, 140), b
}

// lengthAt makes the length field at an offset of b a little or wholly wrong.
func (m frameMaker) lengthAt(b []byte, offset int) {
	was := binary.BigEndian.Uint16(b[offset:])
	wrong := pick(m.Rand, was-1, was+1, was-4, was-8, was/2, 0, 19, 20, 0xffff)
	binary.BigEndian.PutUint16(b[offset:], wrong)
}

// transport returns what a packet to dst carries.
func (m frameMaker) transport(v6 bool, dst string, proto uint8, depth int) []byte {
	from, to := pick(m.Rand, m.ports...), pick(m.Rand, m.ports...)
	var b []byte
	switch proto {
	case 6:
		b = TCP(from, to)
		if m.IntN(8) == 0 {
			b[12] = uint8(m.Uint32())
		}
	case 17:
		b = UDP(from, to)
	case 132:
		b = SCTP(from, to)
	case protoICMP, protoICMPv6:
		b = m.icmp(v6, dst, depth)
	default:
		b = random(m.Rand, m.IntN(30))
	}
	b = append(b, random(m.Rand, m.IntN(20))...)
	if m.IntN(6) == 0 {
		b = b[:m.IntN(min(len(b), 24)+1)]
	}
	return b
}

func (m frameMaker) icmp(v6 bool, dst string, depth int) []byte {
	if depth == 3 || m.IntN(3) == 0 {
		return ICMP(pick(m.Rand, m.types...), uint8(m.IntN(2)))
	}
	typ := pick[uint8](m.Rand, 3, 4, 5, 11, 12)
	if v6 {
		typ = pick[uint8](m.Rand, 0, 1, 2, 3, 4, 127)
	}
	return ICMP(typ, 0, m.quote(v6, dst, depth+1)...)
}

// quote returns a packet as an error to dst might quote it, mostly one that came from there.
func (m frameMaker) quote(v6 bool, dst string, depth int) []byte {
	if m.IntN(16) == 0 {
		v6 = !v6
		dst = m.peer(v6)
	}
	if m.IntN(8) == 0 {
		dst = m.peer(v6)
	}
	b := m.packet(v6, dst, depth)
	switch m.IntN(4) {
	case 0:
		b = b[:m.IntN(len(b)+1)]
	case 1: // the header and 64 bits
		header := 20
		if v6 {
			header = 40
		}
		b = b[:min(len(b), header+8)]
	}
	return b
}

// linkMessage returns neighbour discovery or MLD, most of it as it should be.
func (m frameMaker) linkMessage(src string) []byte {
	typ := pick[uint8](m.Rand, 130, 131, 132, 133, 134, 135, 136, 137, 143)
	hops := uint8(255)
	if typ < 133 || typ == 143 {
		hops = 1
	}
	if m.IntN(6) == 0 {
		hops = pick[uint8](m.Rand, 0, 1, 2, 64, 254, 255)
	}
	dst := pick(m.Rand, "fe80::1", "febf::1", "fec0::1", "ff02::1:ff00:7", "ff02::16", "ff05::16", "ff12::1",
		"2001:db8::7", "2001:db8:0:1::7", m.peer(true))
	code := pick[uint8](m.Rand, 0, 0, 0, 0, 0, 1)
	message := ICMP(typ, code, random(m.Rand, m.IntN(24))...)
	if m.IntN(2) == 0 {
		message = ICMP(typ, code, m.neighborBody(typ)...)
		src = pick(m.Rand, src, src, "::")
	}
	return With(m.ipv6(src, dst, protoICMPv6, message), 7, hops)
}

// neighborBody returns what neighbour discovery says, as hosts do or nearly so.
func (m frameMaker) neighborBody(typ uint8) (body []byte) {
	if typ == 135 || typ == 136 {
		body = netip.MustParseAddr(m.peer(true)).AsSlice()
	}
	if m.IntN(3) == 0 {
		return body
	}
	option := []byte{pick[uint8](m.Rand, 1, 2, 2, 14, 3), pick[uint8](m.Rand, 1, 1, 1, 1, 0, 2), 0, 0, 0x5e, 0, 0x53, 1}
	if m.IntN(4) == 0 {
		option[2+m.IntN(6)] ^= 1
	}
	return append(body, option[:8-m.IntN(9)/8]...)
}

func random(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = uint8(r.Uint32())
	}
	return b
}
