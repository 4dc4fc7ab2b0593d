package policy

// Reason names a verdict. The numbers are shared with enum reason in bpf/reason.h; a test in xdp
// fails when the two drift. New reasons go to the end: counters of a running data plane are read by
// these numbers.
type Reason uint8

// The reasons. Pass is the only one that lets a packet through.
const (
	// Pass: nothing forbids the packet.
	Pass Reason = iota
	// ByRule: a rule matched.
	ByRule
	// ByDefault: no rule matched and the default is drop.
	ByDefault
	// Quarantine: the container is closed, because a label cannot be understood or enforced.
	Quarantine
	// NoPolicy: the veth has a filter but no policy yet.
	NoPolicy
	// Truncated: a header that a rule depends on is cut short.
	Truncated
	// BadHeader: a header contradicts itself (version, header length, total length).
	BadHeader
	// TooManyTags: more than two VLAN tags.
	TooManyTags
	// TooManyHeaders: more IPv6 extension headers than are walked (8).
	TooManyHeaders
	// Fragment: a fragment without its transport header, where a rule depends on that header.
	Fragment
	// BadQuote: an ICMP error whose quoted packet cannot be read or does not fit the error.
	BadQuote
	// TableFull: the container has more conversations than its table holds.
	TableFull
	// Spoof: what the container sends does not carry its own MAC or addresses, or is what no container has to
	// send: a router advertisement, a redirect, a DHCP server's packet.
	Spoof
	// LimitReached: a limit is over its rate.
	LimitReached
	// Resolver: a query to the engine's resolver, which would ask from the host what the container may not.
	Resolver
	// NeighborSpoof: what the container receives carries an address of its network, as source or as a claim, that
	// belongs to another container than the one that sent it.
	NeighborSpoof
	// NumReasons is how many there are.
	NumReasons
)

var reasonNames = [NumReasons]string{
	"pass", "rule", "default", "quarantine", "no-policy", "truncated", "bad-header",
	"too-many-tags", "too-many-headers", "fragment", "bad-quote", "table-full", "spoof", "limit", "resolver",
	"neighbor-spoof",
}

// String is the name that users see in status, events and metrics.
func (r Reason) String() string {
	if r < NumReasons {
		return reasonNames[r]
	}
	return "unknown"
}
