package policy

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
)

// Verdict is what becomes of one frame under the sources of s, by docs/packets.md. The first source that
// does not let it pass names the verdict. An empty stack lets everything pass.
//
// frame begins with the destination MAC; Egress means that the container sends it, Ingress that it
// receives it. The frame is judged alone; Conversations.Verdict knows what went before. Antispoof (Identity) and limits (Limited) are
// judged apart, Log and Program play no part, and a group that has no FixedRanges holds nobody: the agent puts ranges in its place before.
func (s Stack) Verdict(dir Direction, frame []byte) Verdict {
	return s.alone(dir, readFrame(frame))
}

// Verdict is that of a Stack with p for its only source.
func (p Policy) Verdict(dir Direction, frame []byte) Verdict {
	return Stack{{Policy: p}}.Verdict(dir, frame)
}

// alone judges a packet without conversations.
func (s Stack) alone(dir Direction, pkt packet) Verdict {
	if pkt.builtIn(dir) {
		return passes
	}
	if pkt.isError() {
		pkt = pkt.answered()
	}
	return s.first(func(p Policy) Verdict { return p.judgeAll(dir, pkt) })
}

// passes is the verdict on what nothing forbids.
var passes = Verdict{Pass, -1, -1, false}

// first is the verdict of the first source that does not let something pass: of one that drops it, else of one in audit
// mode that would.
func (s Stack) first(judge func(Policy) Verdict) Verdict {
	would := passes
	for i, source := range s {
		v := judge(source.Policy)
		if v.Reason == ByRule {
			v.Source = i
		}
		v.Audited = v.Reason != Pass && s.Audited(i)
		if !v.Passes() {
			return v
		}
		if would.Reason == Pass {
			would = v
		}
	}
	return would
}

// judgeAll is what p says of all that pkt can be, if that is one and the same.
func (p Policy) judgeAll(dir Direction, pkt packet) Verdict {
	var common *Verdict
	for s := range p.subjects(dir, pkt) {
		v := p.judge(dir, s)
		if common != nil && v != *common {
			return Verdict{pkt.why, -1, -1, false}
		}
		common = &v
	}
	return *common
}

// subject is what rules judge: something that is wholly known.
type subject struct {
	ip bool
	// The others are set where ip is. service is 0 for a protocol without one.
	peer    netip.Addr
	proto   uint8
	service uint16
}

// judge applies the rules of p to s.
func (p Policy) judge(dir Direction, s subject) Verdict {
	matches := func(verb Verb) int {
		return slices.IndexFunc(p.Rules, func(r Rule) bool {
			return r.Verb == verb && r.In[dir] && r.Match.holds(s)
		})
	}
	if dropped := matches(Drop); dropped >= 0 && matches(Except) < 0 {
		return Verdict{ByRule, 0, dropped, false}
	}
	if matches(Allow) >= 0 || p.PassesByDefault(dir) {
		return passes
	}
	return Verdict{ByDefault, -1, -1, false}
}

// PassesByDefault reports what happens to what no rule matches: Default, or where it is Unset, whether there is no
// allow rule in that direction.
func (p Policy) PassesByDefault(dir Direction) bool {
	if p.Default[dir] != Unset {
		return p.Default[dir] == DefaultAllow
	}
	return !slices.ContainsFunc(p.Rules, func(r Rule) bool { return r.Verb == Allow && r.In[dir] })
}

// holds reports whether s meets both sides of m.
func (m Match) holds(s subject) bool {
	if !s.ip {
		return m.What.Kind == All && m.Peers.Any()
	}
	return m.What.holds(s) && m.Peers.hold(s.peer)
}

// holds reports whether the IP packet s is such a thing. Errors that reach it are mere possibilities of a
// service that is unknown: one that could be read is judged by what it quotes.
func (w What) holds(s subject) bool {
	v6 := s.peer.Is6()
	icmp := s.proto == protoICMP && !v6 || s.proto == protoICMPv6 && v6
	icmp = icmp && !(ICMPType{v6, uint8(s.service)}).IsError()
	switch w.Kind {
	case All:
		return true
	case Proto:
		return s.proto == w.Proto
	case Ports:
		return s.proto == w.Proto && slices.ContainsFunc(w.Ports, func(r PortRange) bool {
			return r.From <= s.service && s.service <= r.To
		})
	case ICMP:
		return icmp
	case Ping:
		return icmp && s.service == pingType(v6)
	case ICMPTypes:
		return icmp && slices.Contains(w.Types, ICMPType{v6, uint8(s.service)})
	case DNS, Metadata:
		return false
	}
	panic(fmt.Sprintf("kind %d of a match is not known", w.Kind))
}

func pingType(v6 bool) uint16 {
	if v6 {
		return 128
	}
	return 8
}

func (p Peers) hold(a netip.Addr) bool {
	if p.Any() {
		return true
	}
	for _, r := range p.Ranges {
		if r.Contains(a) {
			return true
		}
	}
	for _, g := range p.Groups {
		for _, r := range g.FixedRanges() {
			if r.Contains(a) {
				return true
			}
		}
	}
	return false
}

// subjects are all that pkt can be, at least one: one of each kind that the rules of p tell apart. It is
// pkt itself where nothing is unknown.
func (p Policy) subjects(dir Direction, pkt packet) iter.Seq[subject] {
	return func(yield func(subject) bool) {
		if pkt.class == notIP || pkt.class == anything {
			if !yield(subject{}) || pkt.class == notIP {
				return
			}
		}
		for _, peer := range p.peers(dir, pkt) {
			for _, proto := range protocols(pkt) {
				for _, service := range p.services(pkt, peer.Is6(), proto) {
					if !yield(subject{true, peer, proto, service}) {
						return
					}
				}
			}
		}
	}
}

// peers are the addresses that pkt may be to or from. Every range that a rule knows begins or ends at one of
// the cuts, so an address is in the same ranges as the nearest cut at or below it. Cuts that
// are in the same ranges of the same family stand for each other too.
func (p Policy) peers(dir Direction, pkt packet) []netip.Addr {
	if pkt.class == oneIP {
		return []netip.Addr{pkt.peer(dir)}
	}
	cuts := []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	for _, r := range p.Rules {
		ranges := slices.Clone(r.Match.Peers.Ranges)
		for _, g := range r.Match.Peers.Groups {
			ranges = append(ranges, g.FixedRanges()...)
		}
		for _, r := range ranges {
			cuts = append(cuts, r.From())
			if after := r.To().Next(); after.IsValid() {
				cuts = append(cuts, after)
			}
		}
	}
	seen := map[string]bool{}
	return slices.DeleteFunc(cuts, func(a netip.Addr) bool {
		key := fmt.Sprint(a.Is6())
		for _, r := range p.Rules {
			key += fmt.Sprint(r.Match.Peers.hold(a))
		}
		defer func() { seen[key] = true }()
		return seen[key]
	})
}

// protocols are the ones that pkt may have.
func protocols(pkt packet) []uint8 {
	if pkt.protoKnown {
		return []uint8{pkt.proto}
	}
	all := make([]uint8, 256)
	for i := range all {
		all[i] = uint8(i)
	}
	return all
}

// services are the ones that pkt may have if its protocol is proto.
func (p Policy) services(pkt packet, v6 bool, proto uint8) []uint16 {
	switch {
	case pkt.serviceKnown:
		return []uint16{pkt.service}
	case transportSize(v6, proto) == 0:
		return []uint16{0}
	case proto == protoICMP || proto == protoICMPv6:
		types := make([]uint16, 256)
		for i := range types {
			types[i] = uint16(i)
		}
		return types
	}
	// As with peers: a port is in the same ranges as the nearest of these at or below it.
	cuts := []uint16{0}
	for _, r := range p.Rules {
		for _, ports := range r.Match.What.Ports {
			cuts = append(cuts, ports.From)
			if ports.To < 65535 {
				cuts = append(cuts, ports.To+1)
			}
		}
	}
	return cuts
}
