// Package policy turns labels into rules and rules into verdicts.
//
// It is pure: it opens nothing, asks nobody and keeps no state but what a caller hands it (Conversations), so that
// `vethwall check` needs no privileges and the same code can be the specification that the programs in the
// kernel are tested against. It will not resolve names, read files or know what Docker is.
package policy

import (
	"net/netip"

	"go4.org/netipx"
)

// Policy is what one source of labels asks for. The zero value asks for nothing.
//
// Order never matters: Rules are kept sorted by their canonical text and without duplicates, so that
// two policies that say the same are equal, byte for byte, in Text.
type Policy struct {
	// Rules of every verb. Limits are rules with a Rate.
	Rules []Rule
	// Default holds, by Direction, what happens to what no rule matches; Unset means what the grammar
	// says: drop where an allow rule exists in that direction, else allow.
	Default [2]Default
	Mode    Mode
	Hook    Hook
	Log     Log
	// Antispoof is on unless a label switched it off. Own lists the ranges that xdp.antispoof adds.
	AntispoofOff bool
	Own          []netipx.IPRange
	// Program is NAME[:SECTION] as written, "" when no program is asked for.
	Program string
}

// Rule is one match under one verb: an element of the comma list of a label.
type Rule struct {
	Verb Verb
	// In says for which direction of conversation the rule holds; at least one is true.
	In [2]bool
	// Name is the free word at the end of the key ("mail" in xdp.drop.mail), "" when there is none.
	Name  string
	Match Match
	// Rate is set for limits only.
	Rate Rate
	// Shown is what users read where Match has had its groups resolved; "" stands for the text of Match.
	Shown string
}

// String is what users read of the rule: what it matches, as they wrote it.
func (r Rule) String() string {
	if r.Shown != "" {
		return r.Shown
	}
	return r.Match.String()
}

// Direction says who opened a conversation, seen from the container.
type Direction uint8

// Egress conversations are opened by the container, ingress ones towards it.
const (
	Egress Direction = iota
	Ingress
)

// Verb is what a rule does with what it matches.
type Verb uint8

// The verbs, in the order in which canonical text lists them.
const (
	Drop Verb = iota
	Except
	Allow
	Limit
)

// Default is the fate of what no rule matches.
type Default uint8

// Unset is not a third fate: Policy.Default explains what it stands for.
const (
	Unset Default = iota
	DefaultAllow
	DefaultDrop
)

// Mode says whether verdicts are carried out.
type Mode uint8

// Audit judges, counts and reports, but drops nothing.
const (
	Enforce Mode = iota
	Audit
)

// Hook is where what the container sends is judged first.
type Hook uint8

// The hooks of xdp.hook.
const (
	HookAuto Hook = iota
	HookGeneric
	HookNative
	HookTCX
)

// Log says what goes to the event stream.
type Log uint8

// The values of xdp.log.
const (
	LogDrops Log = iota
	LogAll
	LogNone
)

// Match is one element of a comma list: what, and with whom. A packet must meet both.
type Match struct {
	What  What
	Peers Peers
}

// What is the left side of a match. Kind selects which of the other fields mean something.
type What struct {
	Kind Kind
	// Proto is an IANA protocol number, for Proto and Ports.
	Proto uint8
	// Ports are 1..65535, inclusive at both ends, sorted, not overlapping.
	Ports []PortRange
	// Types are for ICMPTypes, sorted; a named type that exists in both families is listed for both.
	Types []ICMPType
}

// Kind of What.
type Kind uint8

// The kinds. All matches every frame that rules can judge, not only IP; Any ICMP message other than
// errors, neighbour discovery and MLD is ICMP; Ping is an echo request of either family.
const (
	All Kind = iota
	Proto
	Ports
	ICMP
	Ping
	ICMPTypes
	// DNS and Metadata are the groups that bring their own ports along; peers are empty.
	DNS
	Metadata
)

// PortRange is inclusive at both ends.
type PortRange struct{ From, To uint16 }

// ICMPType is a message type of one family.
type ICMPType struct {
	V6   bool
	Type uint8
}

// Peers is the right side of a match; the zero value means everybody. A packet's peer must be in one
// of the ranges or in one of the groups.
type Peers struct {
	// Ranges are sorted and without duplicates; never IPv4-mapped.
	Ranges []netipx.IPRange
	Groups []Group // sorted, without duplicates
}

// Any reports whether p names no peer at all.
func (p Peers) Any() bool { return len(p.Ranges) == 0 && len(p.Groups) == 0 }

// Group is a named set of addresses; what it holds is followed live by the agent, except for
// multicast, ipv4 and ipv6, which are fixed.
type Group uint8

// The groups, in canonical order.
const (
	Internet Group = iota
	Private
	LAN
	Neighbors
	Host
	Multicast
	IPv4
	IPv6
)

// Rate is Count per second, of packets or of bits (layer 2 bytes times eight).
type Rate struct {
	Count uint64
	Bits  bool
}

// FixedRanges returns what a group holds where that does not depend on the host, else nil.
func (g Group) FixedRanges() []netipx.IPRange {
	switch g {
	case Multicast:
		return []netipx.IPRange{
			netipx.RangeOfPrefix(netip.MustParsePrefix("224.0.0.0/4")),
			netipx.IPRangeFrom(netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("255.255.255.255")),
			netipx.RangeOfPrefix(netip.MustParsePrefix("ff00::/8")),
		}
	case IPv4:
		return []netipx.IPRange{netipx.RangeOfPrefix(netip.MustParsePrefix("0.0.0.0/0"))}
	case IPv6:
		return []netipx.IPRange{netipx.RangeOfPrefix(netip.MustParsePrefix("::/0"))}
	}
	return nil
}
