package xdp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/policy"
)

// Event is a packet that was dropped, or that passed where that is logged. Events are samples: a device has 64 at once
// and 32 a second.
type Event struct {
	Number    uint64    // its place in the order of all events, from 0
	Time      time.Time // by the clock as it is set now; some milliseconds early at most
	Ifindex   int
	Direction policy.Direction
	Reason    policy.Reason
	Audited   bool   // it passed all the same
	Bytes     int    // layer 2
	Skipped   uint32 // about how many packets of the device just before it are no events, because they were too many
	Headers

	ruleOf policy.Direction
	slot   int
	names  uint32
}

// Headers are what could be read of a packet; the zero value stands for what could not.
type Headers struct {
	MAC string `json:"mac,omitempty"` // the source
	// Quoted: the packet is an ICMP error, and all but MAC is of the packet that it is about.
	Quoted   bool       `json:"quoted,omitempty"`
	Family   uint8      `json:"family,omitempty"`    // 4 or 6
	Protocol string     `json:"protocol,omitempty"`  // policy.ProtoName's; "arp"; "not-ip"
	ICMPType *uint8     `json:"icmp_type,omitempty"` // nil where the packet is no ICMP of its family
	Src      netip.Addr `json:"src,omitzero"`
	SrcPort  uint16     `json:"src_port,omitempty"`
	Dst      netip.Addr `json:"dst,omitzero"`
	DstPort  uint16     `json:"dst_port,omitempty"`
	// Claim is an address that ARP or neighbour discovery says is the sender's. Dst is not known then.
	Claim netip.Addr `json:"claim,omitzero"`
}

// Rule is what the rule or limit that judged the packet is called, given what the slots of its device are called now;
// false where they are those of another policy, or no rule judged it.
func (e Event) Rule(rules [2][]Counted) (Counted, bool) {
	named := e.Reason == policy.ByRule || e.Reason == policy.LimitReached
	if !named || e.names != namesOf(rules) || e.slot >= len(rules[e.ruleOf]) {
		return Counted{}, false
	}
	return rules[e.ruleOf][e.slot], true
}

// Events returns the events from number after on, the oldest first, and the number to go on with. Numbers that are missing
// were overwritten before they were read. A number that no event has had yet is that of another ring: reading
// begins anew. Any number of readers may read; each sees all.
func (r *Reader) Events(after uint64) (events []Event, next uint64, err error) {
	if err := r.mapRing(); err != nil {
		return nil, after, err
	}
	var g filterGlobal
	if err := r.maps.Globals.Lookup(uint32(0), &g); err != nil {
		return nil, after, fmt.Errorf("read map globals: %w", err)
	}
	boot, err := bootTime()
	if err != nil {
		return nil, after, err
	}
	if after > g.NumEvents {
		after = 0
	}
	if g.NumEvents-after > r.ring.size() {
		after = g.NumEvents - r.ring.size()
	}
	for ; after < g.NumEvents; after++ {
		e, state := r.ring.read(after)
		if state == slotNotYet && g.NumEvents-after < inFlight {
			break
		}
		if state == slotWhole {
			events = append(events, parseEvent(e, boot))
		}
	}
	return events, after, nil
}

// inFlight is how many of the last events may still be about to be written: more than processors do that.
const inFlight = 256

// bootTime is when the programs' clock was 0, by the clock as it is set now.
func bootTime() (time.Time, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return time.Time{}, fmt.Errorf("read the clock: %w", err)
	}
	return time.Now().Round(0).Add(-time.Duration(t.Nano())), nil
}

func parseEvent(e filterEvent, boot time.Time) Event {
	return Event{
		Number: e.Number - 1, Time: boot.Add(time.Duration(e.Time)), Ifindex: int(e.Ifindex),
		Direction: policy.Direction(e.Direction), Reason: policy.Reason(e.Reason), Audited: e.Audited != 0,
		Bytes: int(e.Bytes), Skipped: e.Skipped, Headers: parseHeaders(e),
		ruleOf: policy.Direction(e.Rule / ruleSlots & 1), slot: int(e.Rule % ruleSlots), names: e.Names,
	}
}

// The kinds of struct event in bpf/maps.h.
const (
	eventBuiltin = 1
	eventClaims  = 2
	eventTurned  = 4
)

func parseHeaders(e filterEvent) Headers {
	h := Headers{Family: e.Family}
	if e.Mac != 0 {
		h.MAC = macOf(e.Mac)
	}
	switch {
	case e.Kind&eventBuiltin != 0 && e.Family == 0:
		h.Protocol = "arp"
	case e.Service == notIPKey:
		h.Protocol = "not-ip"
	}
	if e.Family == 0 || e.Service == ipUnknown {
		h.Claim = claimOf(e)
		return h
	}
	h.Src, h.Dst = addressOf(e.Family, e.Src), addressOf(e.Family, e.Dst)
	if h.Claim = claimOf(e); h.Claim.IsValid() {
		h.Dst = netip.Addr{}
	}
	h.readTransport(e)
	if e.Kind&eventTurned != 0 {
		h.turnBack()
	}
	return h
}

// readTransport adds what is behind the addresses.
func (h *Headers) readTransport(e filterEvent) {
	icmp := e.Proto == protoICMP && e.Family == 4 || e.Proto == protoICMPv6 && e.Family == 6
	protoUnknown := e.Service == protoUnknown4 || e.Service == protoUnknown6
	if protoUnknown && !icmp { // of an ICMP error whose quote is bad only that is not known
		return
	}
	h.Protocol = policy.ProtoName(e.Proto)
	switch known := e.Service <= maxService || protoUnknown; {
	case !known:
	case icmp:
		typ := uint8(e.Dport)
		if e.Service <= maxService && e.Kind&eventBuiltin == 0 {
			typ = uint8(e.Service) // Dport of an echo is 0
		}
		h.ICMPType = &typ
	default:
		h.SrcPort, h.DstPort = e.Sport, e.Dport
	}
}

// turnBack makes of a packet that an ICMP error quotes, turned round to be judged, what it was.
func (h *Headers) turnBack() {
	h.Quoted = true
	h.Src, h.Dst = h.Dst, h.Src
	h.SrcPort, h.DstPort = h.DstPort, h.SrcPort
	if h.ICMPType == nil {
		return
	}
	request, reply := uint8(8), uint8(0)
	if h.Family == 6 {
		request, reply = 128, 129
	}
	switch *h.ICMPType {
	case request:
		*h.ICMPType = reply
	case reply:
		*h.ICMPType = request
	}
}

func macOf(mac uint64) string {
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], mac)
	return net.HardwareAddr(b[:6]).String()
}

// claimOf is invalid where nothing is claimed.
func claimOf(e filterEvent) netip.Addr {
	switch {
	case e.Kind&eventClaims == 0:
		return netip.Addr{}
	case e.Family == 0: // ARP
		return addressOf(4, e.Dst)
	}
	return addressOf(e.Family, e.Dst)
}

func addressOf(family uint8, words [4]uint32) netip.Addr {
	var b [16]byte
	for i, w := range words {
		binary.BigEndian.PutUint32(b[4*i:], w)
	}
	if family == 4 {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16(b)
}
