package xdp

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// exchange is a conversation as two hosts have it that keep to the protocol: nobody answers what did not arrive.
type exchange struct {
	*rand.Rand
	proto   uint8
	opener  policy.Direction
	local   string // the container
	peer    string
	ask     uint16 // the opener's port, or the identifier of a ping
	service uint16
	passed  int // packets
	lastIP  []byte
	lastDir policy.Direction
	numbers [2]uint32 // TCP's next sequence number, by direction
	state   int       // TCP: what has arrived
}

// newExchange has an asking port that no other has.
func newExchange(rnd *rand.Rand, number int) *exchange {
	e := &exchange{Rand: rnd, opener: policy.Direction(rnd.IntN(2)), local: routedContainer4, ask: uint16(1024 + number%60000)}
	e.peer = routedParties4[rnd.IntN(len(routedParties4))]
	if rnd.IntN(3) == 0 {
		e.local, e.peer = routedContainer6, routedParties6[rnd.IntN(len(routedParties6))]
	}
	e.proto = []uint8{protoUDP, protoTCP, protoTCP, 1}[rnd.IntN(4)]
	e.service = routedPorts[rnd.IntN(len(routedPorts))]
	return e
}

func (e *exchange) v6() bool { return e.local == routedContainer6 }

// next is the next packet, as a frame whose last 8 bytes are mark, and its direction.
func (e *exchange) next(mark []byte) (policy.Direction, []byte) {
	// Tracking forgets a connection that was reset at once.
	if e.passed > 0 && e.state != tcpReset && e.IntN(6) == 0 {
		return e.error(mark)
	}
	dir, answer := e.opener, policy.Direction(1)-e.opener
	// A datagram of the other side is no less an opening; an echo reply that nobody asked for opens nothing there.
	if e.passed > 0 && e.IntN(2) == 0 || e.proto == protoUDP && e.IntN(8) == 0 {
		dir = answer
	}
	var header []byte
	proto := e.proto
	switch e.proto {
	case protoUDP:
		header = policytest.UDP(e.ports(dir))
		binary.BigEndian.PutUint16(header[4:], 16)
	case protoTCP:
		dir, header = e.segment(dir)
	default:
		proto, header = e.ping(dir)
	}
	src, dst := e.local, e.peer
	if dir == policy.Ingress {
		src, dst = dst, src
	}
	return dir, policytest.IP(src, dst, proto, append(header, mark...))
}

func (e *exchange) ports(dir policy.Direction) (from, to uint16) {
	if dir == e.opener {
		return e.ask, e.service
	}
	return e.service, e.ask
}

func (e *exchange) ping(dir policy.Direction) (uint8, []byte) {
	proto, types := uint8(1), [2]uint8{8, 0}
	if e.v6() {
		proto, types = 58, [2]uint8{128, 129}
	}
	typ := types[0]
	if dir != e.opener {
		typ = types[1]
	}
	return proto, policytest.With(policytest.ICMP(typ, 0), 4, byte(e.ask>>8), byte(e.ask))
}

// What has arrived of a TCP connection.
const (
	tcpNothing = iota
	tcpAsked
	tcpAnswered
	tcpOpen
	tcpReset
)

// segment is the next segment, in dir where both may send.
func (e *exchange) segment(dir policy.Direction) (policy.Direction, []byte) {
	const syn, rst, ack, push = 2, 4, 16, 8
	flags := byte(ack | push)
	switch e.state {
	case tcpNothing, tcpReset:
		dir, flags, e.numbers = e.opener, syn, [2]uint32{}
	case tcpAsked:
		dir, flags = 1-e.opener, syn|ack
		if e.IntN(6) == 0 {
			flags = rst | ack
		}
	case tcpAnswered:
		dir, flags = e.opener, ack
	case tcpOpen:
		if e.IntN(10) == 0 {
			flags = rst | ack
		}
	}
	h := policytest.With(policytest.TCP(e.ports(dir)), 13, flags)
	binary.BigEndian.PutUint32(h[4:], e.numbers[dir])
	if flags&ack != 0 {
		binary.BigEndian.PutUint32(h[8:], e.numbers[1-dir])
	}
	binary.BigEndian.PutUint16(h[14:], 0xffff)
	return dir, h
}

// arrived takes note of a packet that came through.
func (e *exchange) arrived(dir policy.Direction, frame []byte) {
	ip, header := frame[14:], 20
	if e.v6() {
		header = 40
	}
	proto, h := ip[9], ip[header:]
	if e.v6() {
		proto = ip[6]
	}
	if proto != e.proto && (proto != 58 || e.proto != 1) || e.proto == 1 && (policy.ICMPType{V6: e.v6(), Type: h[0]}).IsError() {
		return // an error is no packet of the conversation
	}
	e.passed++
	e.lastIP, e.lastDir = ip, dir
	if e.proto != protoTCP {
		return
	}
	e.numbers[dir] += uint32(len(h)) - 20
	switch flags := h[13]; {
	case flags&4 != 0:
		e.state = tcpReset
	case flags&2 != 0:
		e.numbers[dir]++
		e.state = tcpAsked
		if flags&16 != 0 {
			e.state = tcpAnswered
		}
	case e.state == tcpAnswered:
		e.state = tcpOpen
	}
}

// error is an ICMP error about the last packet that arrived, of the one who got it or a router on his side.
func (e *exchange) error(mark []byte) (policy.Direction, []byte) {
	dir := 1 - e.lastDir
	src, dst := e.local, e.peer
	if dir == policy.Ingress {
		src, dst = dst, src
		if e.IntN(2) == 0 && !e.v6() {
			src = "198.51.100.254"
		}
	}
	if e.v6() {
		return dir, policytest.IP(src, dst, 58, policytest.ICMP(1, 4, append(slices.Clone(e.lastIP[:40+20]), mark...)...))
	}
	return dir, policytest.IP(src, dst, 1, policytest.ICMP(3, 3, append(slices.Clone(e.lastIP[:20+16]), mark...)...))
}
