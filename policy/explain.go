package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Explanation is the verdict on a conversation that somebody would open, and who says so.
type Explanation struct {
	Reason Reason
	// Audited: it may be opened all the same, because the source is in audit mode.
	Audited bool
	// Origin is the source that forbids it, or the first with an allow rule for it; "" where defaults let it pass.
	Origin string
	// Rule is the label's key and match that says so, "" where it is a default.
	Rule string
	// Limits hold the rate of its packets, each direction by its own: key, match, rate and origin.
	Limits []string
}

// Explain judges one conversation, opened in direction dir: m names one protocol, port or ICMP type, and one address, the
// other side's. Groups have been resolved before. The error says what m lacks.
func (s Stack) Explain(dir Direction, m Match) (Explanation, error) {
	asked, err := m.subject()
	if err != nil {
		return Explanation{}, err
	}
	x := s.explain(dir, asked)
	if x.Reason == Pass || x.Audited {
		x.Limits = s.limitsOf(asked)
	}
	return x, nil
}

// LetsAsk reports whether the container may open conversations with a service of peer; where that is the zero Addr, with the
// service of anybody, whoever it is; whether a limit of that port or peer holds what it sends there; and whether one of all or a protocol does.
func (s Stack) LetsAsk(proto uint8, service uint16, peer netip.Addr) (may, limited, inAll bool) {
	may = true
	asked := subject{true, peer, proto, service}
	for i, source := range s {
		concerns := func(verb Verb, more func(Match) bool) bool {
			return slices.ContainsFunc(source.Policy.Rules, func(r Rule) bool {
				who := r.Match.Peers.hold(peer)
				if !peer.IsValid() {
					who = verb == Drop || verb == Limit || r.Match.Peers.Any()
				}
				return r.Verb == verb && r.In[Egress] && r.Match.What.holds(asked) && who && more(r.Match)
			})
		}
		any := func(Match) bool { return true }
		unaimed := func(m Match) bool { return m.What.Kind != Ports && m.Peers.Any() }
		aimed := func(m Match) bool { return !unaimed(m) }
		if s.Audited(i) {
			continue
		}
		may = may && (!concerns(Drop, any) || concerns(Except, any)) && (concerns(Allow, any) || source.Policy.PassesByDefault(Egress))
		limited, inAll = limited || concerns(Limit, aimed), inAll || concerns(Limit, unaimed)
	}
	return may, limited, inAll
}

// limitsOf are the limits that packets of a conversation about asked count against, whichever way they go.
func (s Stack) limitsOf(asked subject) (out []string) {
	for _, source := range s {
		for _, r := range source.Policy.Rules {
			if r.Verb == Limit && r.Match.holds(asked) {
				out = append(out, fmt.Sprintf("%s=%s (%s)", r.label(), r.Rate, source.Origin))
			}
		}
	}
	return out
}

func (s Stack) explain(dir Direction, asked subject) Explanation {
	would := Explanation{}
	for i, source := range s {
		v := source.Policy.judge(dir, asked)
		if v.Reason == Pass {
			continue
		}
		x := Explanation{Reason: v.Reason, Audited: s.Audited(i), Origin: source.Origin}
		if v.Reason == ByRule {
			x.Rule = source.Policy.Rules[v.Rule].label()
		}
		if !x.Audited {
			return x
		}
		if would.Reason == Pass {
			would = x
		}
	}
	if would.Reason != Pass {
		return would
	}
	return s.allowedBy(dir, asked)
}

// allowedBy explains a pass: by the first allow rule, or by defaults alone.
func (s Stack) allowedBy(dir Direction, asked subject) Explanation {
	for _, source := range s {
		for _, r := range source.Policy.Rules {
			if r.Verb == Allow && r.In[dir] && r.Match.holds(asked) {
				return Explanation{Origin: source.Origin, Rule: r.label()}
			}
		}
	}
	return Explanation{}
}

func (r Rule) label() string { return r.Key() + "=" + r.String() }

// subject is the only thing that m matches.
func (m Match) subject() (subject, error) {
	peer, err := m.Peers.only()
	if err != nil {
		return subject{}, err
	}
	out := subject{ip: true, peer: peer, proto: m.What.Proto}
	switch m.What.Kind {
	case Proto:
		if out.proto == protoTCP || out.proto == protoUDP || out.proto == protoSCTP {
			return subject{}, fmt.Errorf("%s has ports: name one, such as 443/%s@%s", m.What, m.What, peer)
		}
	case Ports:
		if len(m.What.Ports) != 1 || m.What.Ports[0].From != m.What.Ports[0].To {
			return subject{}, errors.New("more than one port: name one")
		}
		out.service = m.What.Ports[0].From
	case Ping:
		out.proto, out.service = icmpOf(peer), pingType(peer.Is6())
	case ICMPTypes:
		for _, t := range m.What.Types {
			if t.V6 == peer.Is6() {
				out.proto, out.service = icmpOf(peer), uint16(t.Type)
				return out, nil
			}
		}
		return subject{}, fmt.Errorf("%s is no message of the address's family", m.What)
	default:
		return subject{}, fmt.Errorf("%s is more than one thing: name a port, such as 443/tcp, a protocol without ports, or ping", m.What)
	}
	return out, nil
}

func icmpOf(a netip.Addr) uint8 {
	if a.Is6() {
		return protoICMPv6
	}
	return protoICMP
}

// only is the one address that p has.
func (p Peers) only() (netip.Addr, error) {
	if len(p.Groups) > 0 || len(p.Ranges) != 1 || p.Ranges[0].From() != p.Ranges[0].To() {
		return netip.Addr{}, errors.New("name one address behind an @, such as 443/tcp@" + exampleAddress)
	}
	return p.Ranges[0].From(), nil
}

const exampleAddress = "192.0.2.1"

// Sentence says an explanation in words; asked is what was asked for, as the user wrote it.
func (e Explanation) Sentence(dir Direction, asked string) string {
	who := map[Direction]string{Egress: "The container may open ", Ingress: "Somebody may open towards the container "}[dir]
	var out strings.Builder
	if e.Reason != Pass && !e.Audited {
		who = strings.Replace(who, "may open", "may not open", 1)
	}
	if e.Audited {
		asked += ", but it is counted"
	}
	fmt.Fprintf(&out, "%s%s: ", who, asked)
	switch {
	case e.Rule != "":
		fmt.Fprintf(&out, "%s (%s).", e.Rule, e.Origin)
	case e.Reason == ByDefault:
		fmt.Fprintf(&out, "no rule of %s matches, and its default is drop.", e.Origin)
	default:
		out.WriteString("no rule matches, and the default is allow.")
	}
	if len(e.Limits) > 0 {
		fmt.Fprintf(&out, " Its packets are held to %s.", strings.Join(e.Limits, " and "))
	}
	return out.String()
}
