package xdp

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/vethwall/vethwall/policy"
)

// ruleSlots is RULE_SLOTS of bpf/maps.h. The last slot counts all drop rules that have none of their own, the one before it
// those of them that are audited.
const (
	ruleSlots    = 32
	ownSlots     = ruleSlots - 2
	otherSlot    = ruleSlots - 1
	otherAudited = ruleSlots - 2
)

// Tables is a policy as the programs in bpf/ read it: trees of nodes, whose positions are counted
// from 1 until they are placed. It is immutable.
type Tables struct {
	nodes []filterNode
	flat  map[int]bool // positions in nodes that hold no links
	// table holds the rules by direction, then the limits likewise.
	table [4]filterTable
	rates [2]uint32 // by direction: a node that is rates, 0 for no limits
	flags uint32
	// Rules names the counter slots of each direction, in the order of the slots.
	Rules [2][]Counted
	// Stateful says that verdicts depend on who opened a conversation.
	Stateful bool
	// Receives says that what the container receives has to be judged or logged, too, and LimitsSent that what it sends is held to
	// rates, which takes tc ingress.
	Receives, LimitsSent bool
	// digest tells equal policies.
	digest [32]byte
}

// Counted is what a counter slot counts.
type Counted struct {
	Rule  string `json:"rule"`
	Limit bool   `json:"limit,omitempty"`
	Audit bool   `json:"audit,omitempty"` // it passed all the same
}

// The flags of struct policy in bpf/maps.h.
const (
	flagStateful  = 1
	flagLogPasses = 2
	flagLimits    = 4 // << direction
)

// Compile turns the sources of one container into tables for the data plane. It needs no kernel and no
// privileges. Groups must have been resolved (policy.Groups). An error names all that this version cannot enforce.
func Compile(s policy.Stack) (*Tables, error) {
	if err := enforceable(s); err != nil {
		return nil, err
	}
	t := &Tables{Stateful: s.Stateful(), Receives: s.LogsPasses()}
	f := newForest()
	for _, dir := range []policy.Direction{policy.Egress, policy.Ingress} {
		limits, err := t.limits(f, s, dir)
		if err != nil {
			return nil, err
		}
		rules := t.slotted(s, dir)
		if t.table[dir], err = compileDirection(f, s, rules, dir); err != nil {
			return nil, err
		}
		t.LimitsSent = t.LimitsSent || dir == policy.Egress && limits
		t.Receives = t.Receives || t.Stateful || dir == policy.Ingress && (limits || len(rules) > 0)
	}
	t.flags |= flagsOf(s, t.Stateful)
	t.nodes, t.flat = f.nodes, f.flat
	t.seal()
	return t, nil
}

// flagsOf are the flags that hold for a stack as a whole.
func flagsOf(s policy.Stack, stateful bool) (flags uint32) {
	if stateful {
		flags |= flagStateful
	}
	if s.LogsPasses() {
		flags |= flagLogPasses
	}
	if len(s) > 0 {
		flags |= sourceFlags(s, 0)
	}
	return flags
}

// sourceFlags are the flags of the cells of source i.
func sourceFlags(s policy.Stack, i int) (flags uint32) {
	if s.Audited(i) {
		flags |= auditBit
	}
	if !s.LogsDrops(i) {
		flags |= quietBit
	}
	return flags
}

// Closed is the policy that lets nothing pass in either direction, not even ARP.
func Closed() *Tables {
	t := &Tables{Receives: true}
	t.seal()
	return t
}

func (t *Tables) seal() {
	h := sha256.New()
	_ = binary.Write(h, binary.LittleEndian, t.nodes) // a hash returns no error
	_ = binary.Write(h, binary.LittleEndian, t.table)
	_ = binary.Write(h, binary.LittleEndian, t.rates)
	_ = binary.Write(h, binary.LittleEndian, t.flags)
	_ = binary.Write(h, binary.LittleEndian, namesOf(t.Rules))
	h.Sum(t.digest[:0])
}

// namesOf is a number for what slots are called. Events carry that of their policy, so that nobody calls a rule by
// another policy's name.
func namesOf(rules [2][]Counted) uint32 {
	h := fnv.New32a()
	for dir, counted := range rules {
		for _, c := range counted {
			fmt.Fprintf(h, "%d %q %t %t\n", dir, c.Rule, c.Limit, c.Audit)
		}
	}
	return h.Sum32()
}

// enforceable refuses what the labels may say and this version cannot do.
func enforceable(s policy.Stack) error {
	if len(s) > maxSources {
		return fmt.Errorf("%d sources of a policy: this version enforces %d at most", len(s), maxSources)
	}
	var errs []error
	refuse := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf(format+": understood, but this version cannot enforce it; remove the label", args...))
	}
	for _, source := range s {
		p := source.Policy
		for _, r := range p.Rules {
			switch r.Match.What.Kind {
			case policy.DNS, policy.Metadata:
				refuse("%s=%s", r.Key(), r.Match)
			default:
				for _, g := range r.Match.Peers.Groups {
					if g.FixedRanges() == nil {
						refuse("group %s in %s=%s", g, r.Key(), r.Match)
					}
				}
			}
		}
	}
	return errors.Join(errs...)
}

// slottedRule is a rule, or several of the last slot made one, over spans of service keys.
type slottedRule struct {
	source   int
	verb     policy.Verb
	slot     uint32
	services []span
	peers    policy.Peers
	notIP    bool
}

// slotted gives each drop rule of a direction a counter slot, and makes one rule of those that share
// the last slot and differ in only one of their sides: what tells them apart is not counted, and each
// difference costs nodes.
func (t *Tables) slotted(s policy.Stack, dir policy.Direction) []slottedRule {
	var out []slottedRule
	for i, source := range s {
		audit := s.Audited(i)
		for _, r := range source.Policy.Rules {
			if !r.In[dir] || r.Verb == policy.Limit {
				continue
			}
			slot := uint32(otherSlot)
			if r.Verb == policy.Drop {
				slot = t.slot(dir, Counted{Rule: r.String(), Audit: audit}, r.Shown != "")
			}
			out = append(out, slottedRule{
				source: i, verb: r.Verb, slot: slot,
				services: serviceSpans(r.Match.What),
				// Clipped, so that joining appends to a copy: the policy is not ours.
				peers: policy.Peers{Ranges: slices.Clip(r.Match.Peers.Ranges), Groups: slices.Clip(r.Match.Peers.Groups)},
				notIP: r.Match.What.Kind == policy.All && r.Match.Peers.Any(),
			})
		}
	}
	out = joinRules(out, func(r slottedRule) string { return "p" + r.peers.String() }, func(a *slottedRule, b slottedRule) {
		a.services = append(a.services, b.services...)
		a.notIP = a.notIP || b.notIP
	})
	return joinRules(out, func(r slottedRule) string { return fmt.Sprint("s", r.services, r.peers.Any()) }, func(a *slottedRule, b slottedRule) {
		a.peers.Ranges = append(a.peers.Ranges, b.peers.Ranges...)
		a.peers.Groups = append(a.peers.Groups, b.peers.Groups...)
	})
}

// slot is the counter slot of a rule. shared says that it may be the one before it once more, with other addresses: one
// rule to its users.
func (t *Tables) slot(dir policy.Direction, c Counted, shared bool) uint32 {
	n := len(t.Rules[dir])
	switch {
	case shared && n > 0 && t.Rules[dir][n-1] == c:
		return uint32(n - 1)
	case n < ownSlots:
		t.Rules[dir] = append(t.Rules[dir], c)
		return uint32(n)
	}
	for len(t.Rules[dir]) < ruleSlots {
		t.Rules[dir] = append(t.Rules[dir], Counted{})
	}
	t.Rules[dir][otherSlot], t.Rules[dir][otherAudited] = Counted{Rule: "other rules"}, Counted{Rule: "other rules", Audit: true}
	if c.Audit {
		return otherAudited
	}
	return otherSlot
}

// joinRules joins the rules of one source, verb and slot for which side says the same.
func joinRules(rules []slottedRule, side func(slottedRule) string, join func(*slottedRule, slottedRule)) []slottedRule {
	var out []slottedRule
	at := map[string]int{}
	for _, r := range rules {
		key := fmt.Sprint(r.source, r.verb, r.slot, side(r))
		if i, ok := at[key]; ok {
			join(&out[i], r)
			continue
		}
		at[key] = len(out)
		out = append(out, r)
	}
	return out
}

// span is a range of numbers, inclusive at both ends.
type span struct{ from, to uint32 }

// The keys of bpf/packet.h for what is not known.
const (
	maxService      = 0xffffff // the last key of what is known
	serviceNone     = 0xffff
	serviceUnknown4 = 0x1000000
	serviceUnknown6 = 0x1000100
	protoUnknown4   = 0x1000200
	protoUnknown6   = 0x1000201
	ipUnknown       = 0x1000202
	allUnknown      = 0x1000203
	notIPKey        = 0x1000204
)

const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132
)

// serviceSpans are the service keys that w matches.
func serviceSpans(w policy.What) []span {
	key := func(proto uint8, service uint16) uint32 { return uint32(proto)<<16 | uint32(service) }
	switch w.Kind {
	case policy.All:
		return []span{{0, maxService}}
	case policy.Proto:
		return []span{{key(w.Proto, 0), key(w.Proto, 0xffff)}}
	case policy.Ports:
		var out []span
		for _, r := range w.Ports {
			out = append(out, span{key(w.Proto, r.From), key(w.Proto, r.To)})
		}
		return out
	case policy.ICMP: // all types but errors, which are judged by what they quote
		return []span{
			{key(protoICMP, 0), key(protoICMP, 2)}, {key(protoICMP, 6), key(protoICMP, 10)},
			{key(protoICMP, 13), key(protoICMP, 255)}, {key(protoICMPv6, 128), key(protoICMPv6, 255)},
		}
	case policy.Ping:
		return []span{{key(protoICMP, 8), key(protoICMP, 8)}, {key(protoICMPv6, 128), key(protoICMPv6, 128)}}
	case policy.ICMPTypes:
		var out []span
		for _, t := range w.Types {
			if t.IsError() {
				continue // judged by what it quotes
			}
			proto := uint8(protoICMP)
			if t.V6 {
				proto = protoICMPv6
			}
			out = append(out, span{key(proto, uint16(t.Type)), key(proto, uint16(t.Type))})
		}
		return out
	}
	return nil
}

// knownSpans are the service keys that a packet of a family can have once it was read, by protocol.
func knownSpans(v6 bool) (out [256]span) {
	for proto := range out {
		base := uint32(proto) << 16
		s := span{base, base}
		switch {
		case proto == protoTCP, proto == protoUDP, proto == protoSCTP:
			s.to = base | 0xffff
		case proto == protoICMP && !v6, proto == protoICMPv6 && v6:
			s.to = base | 0xff
		case proto == protoICMP, proto == protoICMPv6:
			s = span{base | serviceNone, base | serviceNone}
		}
		out[proto] = s
	}
	return out
}

// peerRanges are the address ranges of p, groups resolved.
func peerRanges(p policy.Peers) []netipx.IPRange {
	out := slices.Clone(p.Ranges)
	for _, g := range p.Groups {
		out = append(out, g.FixedRanges()...)
	}
	return out
}

// words are the four 32-bit words of an IPv6 address, the first one the most significant.
func words(a netip.Addr) (w [4]uint32) {
	b := a.As16()
	for i := range w {
		w[i] = binary.BigEndian.Uint32(b[4*i:])
	}
	return w
}

// place gives the policy and its nodes as they stand in the kernel's map from index first on, which is
// at least 1: node 0 is none.
func (t *Tables) place(first uint32) (filterPolicy, []filterNode) {
	rebase := func(root uint32) uint32 {
		if root == 0 {
			return 0
		}
		return root + first - 1
	}
	nodes := slices.Clone(t.nodes)
	for i := range nodes {
		n := &nodes[i]
		if t.flat[i] {
			continue
		}
		if n.Child != 0 {
			n.Child = rebase(n.Child)
			continue
		}
		for j, v := range n.Val {
			switch {
			case v&cellBit != 0:
			case v&subtreeBit != 0: // or a table
				n.Val[j] += first - 1
			case v&restBit != 0:
				n.Val[j] += (first - 1) * rests
			}
		}
	}
	p := filterPolicy{FirstNode: first, NumNodes: uint32(len(nodes)), Digest: t.digest}
	// Of the content, so that equal policies have equal ones whenever they were put there.
	p.Generation = binary.LittleEndian.Uint32(t.digest[:])
	p.Names, p.Flags, p.Rates = namesOf(t.Rules), t.flags, [2]uint32{rebase(t.rates[0]), rebase(t.rates[1])}
	for dir, table := range t.table {
		p.Table[dir] = filterTable{
			Services: rebase(table.Services), Peers4: rebase(table.Peers4),
			Peers6: rebase(table.Peers6), Cells: rebase(table.Cells),
		}
	}
	return p, nodes
}
