package policytest

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/vethwall/vethwall/policy"
)

// The container's addresses in dialogues.
const (
	Local4 = "192.0.2.1"
	Local6 = "2001:db8::1"
)

// Step is one frame of a dialogue.
type Step struct {
	Dir   policy.Direction
	Frame []byte
	// Wait is how long nothing happens before the frame.
	Wait time.Duration
}

// Dialogue returns 20 to 60 frames that a container with the addresses Local4 and Local6 sends and receives, and
// that have to do with each other: conversations of few peers and ports at the edges of the rules of s, opened,
// answered, reset and started in the middle; errors about them, true and false; fragments in and out of order; and
// frames that are damaged or for many. Source and destination are always one of the container's addresses and the
// peer's, on the right sides. Before one frame in eight there is one of waits; without any, nobody ever waits.
func Dialogue(r *rand.Rand, s policy.Stack, waits ...time.Duration) []Step {
	t := newTalk(r, s)
	for range 20 + r.IntN(41) {
		step := t.step()
		if len(waits) > 0 && r.IntN(8) == 0 {
			step.Wait = pick(r, waits...)
		}
		t.steps = append(t.steps, step)
	}
	return t.steps
}

// talk is a dialogue so far.
type talk struct {
	*rand.Rand
	edges
	parties []*party
	// said are the IP packets that errors quote.
	said []said
	// waiting are later fragments that have not been sent.
	waiting []Step
	steps   []Step
}

// said is an IP packet and which way it went.
type said struct {
	party *party
	dir   policy.Direction
	ip    []byte
}

// party is who talks with the container, and about what.
type party struct {
	v6          bool
	peer        string
	proto       uint8
	opener      policy.Direction
	local, port uint16 // the container's port and the peer's; for ICMP local is the identifier
	icmpType    uint8  // the request's
	said        int    // packets
}

func newTalk(r *rand.Rand, s policy.Stack) *talk {
	t := &talk{Rand: r}
	all := policy.Policy{}
	for _, source := range s {
		all.Rules = append(all.Rules, source.Policy.Rules...)
	}
	e := edgesOf(all)
	one := func(a string) bool { return !netip.MustParseAddr(a).IsMulticast() && a != "255.255.255.255" }
	t.peers4, t.peers6 = few(r, 2, only(e.peers4, one)), few(r, 2, only(e.peers6, one))
	t.ports = append(few(r, 3, e.ports), 40000)
	t.types = append(few(r, 2, only(e.types, func(typ uint8) bool {
		return !(policy.ICMPType{Type: typ}).IsError() && typ != 128 && typ != 129
	})), 1, 13)
	t.protos = append(few(r, 1, e.protos), 6, 6, 6, 17, 17, 132, protoICMP, protoICMP, 47)
	for range 3 + r.IntN(4) {
		t.parties = append(t.parties, t.party())
	}
	return t
}

func only[T any](from []T, keep func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(from), func(v T) bool { return !keep(v) })
}

// few returns n of from, perhaps one of them more than once.
func few[T any](r *rand.Rand, n int, from []T) []T {
	var out []T
	for range n {
		out = append(out, pick(r, from...))
	}
	return out
}

func (t *talk) party() *party {
	p := &party{v6: t.IntN(3) == 0, proto: pick(t.Rand, t.protos...)}
	p.opener = pick(t.Rand, policy.Egress, policy.Ingress)
	p.local, p.port = pick(t.Rand, t.ports...), pick(t.Rand, t.ports...)
	p.peer, p.icmpType = pick(t.Rand, t.peers4...), 8
	if p.v6 {
		p.peer, p.icmpType = pick(t.Rand, t.peers6...), 128
	}
	// An extension header is nobody's protocol, and ICMPv6 is chosen below.
	if slices.Contains([]uint8{0, 43, 44, 60, 135, 139, 140, protoICMPv6}, p.proto) {
		p.proto = protoICMP
	}
	if p.proto == protoICMP {
		p.local = uint16(t.IntN(3))
		if t.IntN(3) == 0 {
			p.icmpType = pick(t.Rand, t.types...)
			if p.v6 {
				p.icmpType |= 128
			}
		}
		if p.v6 && t.IntN(8) != 0 { // else ICMP in IPv6, a protocol like any other
			p.proto = protoICMPv6
		}
	}
	return p
}

// step returns the next frame.
func (t *talk) step() Step {
	switch t.IntN(16) {
	case 0, 1:
		if len(t.said) > 0 {
			return t.error()
		}
	case 2, 3:
		if len(t.waiting) > 0 {
			return t.later()
		}
	case 4:
		return t.damaged()
	case 5:
		return t.toMany()
	case 6, 7:
		return t.fragmented()
	case 8: // somebody new, or the same ones about something else
		t.parties[t.IntN(len(t.parties))] = t.party()
	}
	p := pick(t.Rand, t.parties...)
	dir := t.direction(p)
	return t.send(p, dir, t.ip(p, dir, t.transport(p, dir)))
}

// direction is that of the next packet: mostly first the opener's, then any.
func (t *talk) direction(p *party) policy.Direction {
	if p.said == 0 && t.IntN(4) != 0 {
		return p.opener
	}
	return pick(t.Rand, policy.Egress, policy.Ingress)
}

// send returns a packet as a frame, and keeps it for the errors to come.
func (t *talk) send(p *party, dir policy.Direction, ip []byte) Step {
	p.said++
	t.said = append(t.said, said{p, dir, ip})
	return Step{Dir: dir, Frame: t.frame(p.v6, ip)}
}

func (t *talk) frame(v6 bool, ip []byte) []byte {
	ethertype := uint16(0x0800)
	if v6 {
		ethertype = 0x86dd
	}
	frame := Eth(ethertype, ip)
	if t.IntN(16) == 0 {
		frame = Tagged(frame, 0x8100)
	}
	if t.IntN(8) == 0 {
		frame = append(frame, random(t.Rand, 18)...)
	}
	return frame
}

// addresses are source and destination of a packet.
func (p *party) addresses(dir policy.Direction) (src, dst string) {
	local := Local4
	if p.v6 {
		local = Local6
	}
	if dir == policy.Egress {
		return local, p.peer
	}
	return p.peer, local
}

func (t *talk) ip(p *party, dir policy.Direction, payload []byte) []byte {
	src, dst := p.addresses(dir)
	if !p.v6 {
		return IPv4(src, dst, p.proto, nil, payload)
	}
	if t.IntN(8) == 0 {
		return IPv6(src, dst, 60, Extension(p.proto, 0, payload))
	}
	return IPv6(src, dst, p.proto, payload)
}

// transport returns what comes next between the two, mostly.
func (t *talk) transport(p *party, dir policy.Direction) []byte {
	from, to := p.local, p.port
	if dir == policy.Ingress {
		from, to = to, from
	}
	switch p.proto {
	case 6:
		return t.segment(p, dir)
	case 17:
		return UDP(from, to, random(t.Rand, t.IntN(4))...)
	case 132:
		return SCTP(from, to)
	case protoICMP, protoICMPv6:
		return t.icmpMessage(p, dir)
	}
	return random(t.Rand, t.IntN(12))
}

// segment returns one whose numbers are mostly those that the other side waits for.
func (t *talk) segment(p *party, dir policy.Direction) []byte {
	from, to := p.local, p.port
	if dir == policy.Ingress {
		from, to = to, from
	}
	b := With(TCP(from, to), 13, t.flags(p, dir))
	if t.IntN(4) == 0 { // acknowledged as seldom as that makes it
		binary.BigEndian.PutUint32(b[4:], pick[uint32](t.Rand, 1<<31, 1<<32-1, t.Uint32()))
	}
	if t.IntN(4) == 0 {
		binary.BigEndian.PutUint32(b[8:], pick[uint32](t.Rand, 0, 1<<20, 1<<20+1, 1<<31+1, t.Uint32()))
	}
	return b
}

func (t *talk) flags(p *party, dir policy.Direction) uint8 {
	const fin, syn, rst, ack = 1, 2, 4, 16
	switch {
	case t.IntN(4) == 0:
		return pick(t.Rand, 0, fin, syn, rst, ack, syn|ack, fin|ack, rst|ack, syn|fin, syn|rst, uint8(t.Uint32()))
	case dir == p.opener && p.said < 2:
		return syn
	case p.said < 2:
		return pick[uint8](t.Rand, syn|ack, syn|ack, rst|ack)
	}
	return pick[uint8](t.Rand, ack, ack, ack, ack|8, fin|ack, rst)
}

// icmpMessage returns the request, in the direction of the opener, or the reply; of a type that has none, the same.
func (t *talk) icmpMessage(p *party, dir policy.Direction) []byte {
	typ := p.icmpType
	asks := dir == p.opener
	if t.IntN(8) == 0 {
		asks = !asks
	}
	switch {
	case typ == 8 && !p.v6 && !asks:
		typ = 0
	case typ == 128 && p.v6 && !asks:
		typ = 129
	}
	m := With(ICMP(typ, 0), 4, byte(p.local>>8), byte(p.local))
	if p.v6 && t.IntN(8) == 0 {
		return m[:4+t.IntN(4)]
	}
	return m
}

// error returns an ICMP error about a packet that went the other way, most of the time.
func (t *talk) error() Step {
	about := pick(t.Rand, t.said...)
	dir := policy.Egress
	if about.dir == policy.Egress {
		dir = policy.Ingress
	}
	from, to := about.party.addresses(dir)
	if dir == policy.Ingress && t.IntN(2) == 0 { // a router on the way
		from = "203.0.113.254"
		if about.party.v6 {
			from = "2001:db8:ffff::fe"
		}
	}
	quote := slices.Clone(about.ip)
	switch t.IntN(12) {
	case 0: // nobody has sent that
		i := 20 + t.IntN(4)
		if about.party.v6 {
			i += 20
		}
		quote = append(quote, 0, 0, 0, 0)
		quote[i]++
	case 1:
		quote[t.IntN(len(quote))] ^= 1 << t.IntN(8)
	case 2: // the wrong way
		dir = about.dir
		from, to = about.party.addresses(dir)
	case 3:
		quote = quote[:t.IntN(len(quote)+1)]
	case 4, 5, 6:
		header := 20
		if about.party.v6 {
			header = 40
		}
		quote = quote[:min(len(quote), header+8)]
	}
	proto, message := uint8(protoICMP), ICMP(pick[uint8](t.Rand, 3, 4, 5, 11, 12), 0, quote...)
	if about.party.v6 {
		proto, message = protoICMPv6, ICMP(pick[uint8](t.Rand, 1, 2, 3, 4), 0, quote...)
	}
	if len(message) > 8 && t.IntN(8) == 0 {
		return t.split(about.party.v6, dir, from, to, proto, message)
	}
	if about.party.v6 {
		return Step{Dir: dir, Frame: t.frame(true, IPv6(from, to, proto, message))}
	}
	return Step{Dir: dir, Frame: t.frame(false, IPv4(from, to, proto, nil, message))}
}

// fragmented sends a packet in parts, which need not come in their order, or at all.
func (t *talk) fragmented() Step {
	p := pick(t.Rand, t.parties...)
	dir := t.direction(p)
	src, dst := p.addresses(dir)
	proto, payload := p.proto, append(t.transport(p, dir), random(t.Rand, 24)...)
	if p.v6 && t.IntN(6) == 0 {
		proto, payload = 60, Extension(proto, 0, payload)
	}
	p.said++
	return t.split(p.v6, dir, src, dst, proto, payload)
}

// split returns the first part of a packet, or a later one; the others wait.
func (t *talk) split(v6 bool, dir policy.Direction, src, dst string, proto uint8, payload []byte) Step {
	id := uint32(t.IntN(2))
	cut := 8 * (1 + t.IntN(4))
	if t.IntN(8) != 0 {
		cut = 24
	}
	cut = min(cut, (len(payload)-1)/8*8)
	offsets := []int{cut}
	if t.IntN(3) == 0 { // one that overlaps, one of somebody else
		offsets = append(offsets, max(8, cut-8))
		t.waiting = append(t.waiting, t.part(v6, dir, src, dst, proto, id+1, cut, false, payload[cut:]))
	}
	for _, offset := range offsets {
		t.waiting = append(t.waiting, t.part(v6, dir, src, dst, proto, id, offset, false, payload[min(offset, len(payload)):]))
	}
	first := t.part(v6, dir, src, dst, proto, id, 0, true, payload[:cut])
	if t.IntN(4) == 0 {
		t.waiting = append(t.waiting, first)
		return t.later()
	}
	return first
}

func (t *talk) part(v6 bool, dir policy.Direction, src, dst string, proto uint8, id uint32, offset int, more bool, b []byte) Step {
	if v6 {
		b = FragmentHeader(proto, uint16(offset/8), more, b)
		binary.BigEndian.PutUint32(b[4:], id)
		return Step{Dir: dir, Frame: t.frame(true, IPv6(src, dst, 44, b))}
	}
	b = IPv4(src, dst, proto, nil, b)
	binary.BigEndian.PutUint16(b[4:], uint16(id))
	field := uint16(offset / 8)
	if more {
		field |= 0x2000
	}
	binary.BigEndian.PutUint16(b[6:], field)
	return Step{Dir: dir, Frame: t.frame(false, b)}
}

// later sends one of the parts that wait, which may come again.
func (t *talk) later() Step {
	i := t.IntN(len(t.waiting))
	step := t.waiting[i]
	if t.IntN(4) != 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
	}
	return step
}

// damaged sends a packet that is cut short, or whose headers say something else than it is; its addresses are right.
func (t *talk) damaged() Step {
	p := pick(t.Rand, t.parties...)
	dir := t.direction(p)
	ip := t.ip(p, dir, t.transport(p, dir))
	addresses := 12
	if p.v6 {
		addresses = 8
	}
	frame := Eth(0x0800, ip)
	if p.v6 {
		frame = Eth(0x86dd, ip)
	}
	switch t.IntN(3) {
	case 0:
		frame = frame[:14+t.IntN(len(ip)+1)]
	case 1:
		frame[12+t.IntN(2+addresses)] ^= 1 << t.IntN(8)
	default:
		header := 14 + 20
		if p.v6 {
			header = 14 + 40
		}
		if len(frame) > header {
			frame[header+t.IntN(len(frame)-header)] ^= 1 << t.IntN(8)
		}
	}
	return Step{Dir: dir, Frame: frame}
}

// toMany sends to a multicast or broadcast address, in parts sometimes.
func (t *talk) toMany() Step {
	p := *pick(t.Rand, t.parties...)
	dir := pick(t.Rand, policy.Egress, policy.Ingress)
	src, _ := p.addresses(dir)
	dst := pick(t.Rand, "224.0.0.251", "239.255.255.250", "255.255.255.255")
	if p.v6 {
		dst = pick(t.Rand, "ff02::fb", "ff0e::1")
	}
	payload := t.transport(&p, dir)
	switch {
	case t.IntN(4) == 0:
		return t.split(p.v6, dir, src, dst, p.proto, append(payload, random(t.Rand, 24)...))
	case p.v6:
		return Step{Dir: dir, Frame: t.frame(true, IPv6(src, dst, p.proto, payload))}
	}
	return Step{Dir: dir, Frame: t.frame(false, IPv4(src, dst, p.proto, nil, payload))}
}
