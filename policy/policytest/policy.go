package policytest

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/vethwall/vethwall/policy"
)

// Draw says what random policies consist of.
type Draw struct {
	// Verbs are the verbs of rules, at least one; one that is listed twice is twice as frequent. With more
	// than Drop, the defaults are drawn too.
	Verbs []policy.Verb
	// MaxRules is how many rules a policy has at the most.
	MaxRules int
	// OneWay draws rules for ingress alone, too.
	OneWay bool
}

// Policy returns a random policy of up to eight drop rules. What it says is in range and sorted as the
// parser leaves it, within each rule; the rules themselves come in the order in which they were drawn.
func Policy(r *rand.Rand) policy.Policy {
	return Draw{Verbs: []policy.Verb{policy.Drop}, MaxRules: 8}.Policy(r)
}

// Stack returns one random policy, or sometimes two.
func (d Draw) Stack(r *rand.Rand) policy.Stack {
	s := policy.Stack{{Origin: "labels", Policy: d.Policy(r)}}
	if r.IntN(4) == 0 {
		s = append(s, policy.Source{Origin: "image", Policy: d.Policy(r)})
	}
	return s
}

// Policy returns a random policy. A rule is for egress or for both directions, and with OneWay for any.
func (d Draw) Policy(r *rand.Rand) policy.Policy {
	var p policy.Policy
	for range r.IntN(d.MaxRules + 1) {
		p.Rules = append(p.Rules, policy.Rule{
			Verb:  pick(r, d.Verbs...),
			In:    [2]bool{true, r.IntN(2) == 0},
			Match: policy.Match{What: what(r), Peers: peers(r)},
		})
		if last := &p.Rules[len(p.Rules)-1]; d.OneWay && !last.In[policy.Ingress] && r.IntN(2) == 0 {
			last.In = [2]bool{policy.Ingress: true}
		}
	}
	if slices.ContainsFunc(d.Verbs, func(v policy.Verb) bool { return v != policy.Drop }) {
		for dir := range p.Default {
			p.Default[dir] = pick(r, policy.Unset, policy.DefaultAllow, policy.DefaultDrop)
		}
	}
	return p
}

// The pools are small, so that rules overlap and frames hit. No protocol that rules cannot name is among
// these: ICMP of either family and the extension headers.
var (
	plainProtos = []uint8{2, 4, 6, 17, 41, 47, 50, 51, 59, 132, 136, 253, 255}
	portProtos  = []uint8{6, 17, 132}
	hotPorts    = []uint16{1, 22, 53, 80, 443, 5432, 8080, 32768, 65535}
	icmpTypes   = []uint8{0, 1, 2, 3, 4, 5, 8, 9, 11, 12, 13, 42, 127, 128, 129, 130, 133, 135, 137, 143, 200, 255}

	peerRanges = []string{
		"192.0.2.0/24", "192.0.2.0/25", "192.0.2.7/32", "192.0.2.128/31", "198.51.100.0/24", "198.51.100.64/26",
		"203.0.113.5/32", "203.0.112.0/20", "0.0.0.0/0", "0.0.0.0/1", "255.255.255.255/32",
		"2001:db8::/32", "2001:db8::/64", "2001:db8::7/128", "2001:db8:0:1::/64", "2001:db8:ffff::/48",
		"2001:db8::/33", "::/0", "::/96", "fe80::/10", "ff02::/16", "ff02::1/128", "8000::/1",
	}
)

func what(r *rand.Rand) policy.What {
	switch r.IntN(12) {
	case 0:
		return policy.What{Kind: policy.All}
	case 1, 2:
		return policy.What{Kind: policy.Proto, Proto: pick(r, plainProtos...)}
	case 3:
		return policy.What{Kind: policy.ICMP}
	case 4:
		return policy.What{Kind: policy.Ping}
	case 5:
		return policy.What{Kind: policy.ICMPTypes, Types: types(r)}
	default:
		return policy.What{Kind: policy.Ports, Proto: pick(r, portProtos...), Ports: ports(r)}
	}
}

func types(r *rand.Rand) []policy.ICMPType {
	var list []policy.ICMPType
	for range 1 + r.IntN(3) {
		list = append(list, policy.ICMPType{V6: r.IntN(2) == 0, Type: pick(r, icmpTypes...)})
	}
	slices.SortFunc(list, func(a, b policy.ICMPType) int {
		if a.V6 != b.V6 {
			if b.V6 {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Type, b.Type)
	})
	return slices.Compact(list)
}

// ports returns ranges that are sorted and do not overlap; they may touch.
func ports(r *rand.Rand) []policy.PortRange {
	var list []policy.PortRange
	for range 1 + r.IntN(3) {
		from := pick(r, hotPorts...)
		to := from
		switch r.IntN(6) {
		case 0:
			to = max(from, pick(r, hotPorts...))
		case 1:
			to = uint16(min(int(from)+r.IntN(4), 65535))
		case 2:
			from, to = 1, 65535
		}
		list = append(list, policy.PortRange{From: from, To: to})
	}
	slices.SortFunc(list, func(a, b policy.PortRange) int { return cmp.Compare(a.From, b.From) })
	sorted := list[:1]
	for _, next := range list[1:] {
		if next.From > sorted[len(sorted)-1].To {
			sorted = append(sorted, next)
		}
	}
	return sorted
}

func peers(r *rand.Rand) policy.Peers {
	var p policy.Peers
	if r.IntN(2) == 0 {
		return p
	}
	count := r.IntN(4)
	if r.IntN(8) == 0 {
		count = 40
	}
	for range count {
		p.Ranges = append(p.Ranges, peerRange(r))
	}
	if r.IntN(4) == 0 || count == 0 {
		p.Groups = append(p.Groups, pick(r, policy.Multicast, policy.IPv4, policy.IPv6))
	}
	slices.SortFunc(p.Ranges, func(a, b netipx.IPRange) int {
		if c := a.From().Compare(b.From()); c != 0 {
			return c
		}
		return a.To().Compare(b.To())
	})
	p.Ranges = slices.Compact(p.Ranges)
	return p
}

// peerRange returns a range of the pool, one address near such a range's ends, or what lies between two of those.
func peerRange(r *rand.Rand) netipx.IPRange {
	a := netipx.RangeOfPrefix(netip.MustParsePrefix(pick(r, peerRanges...)))
	switch r.IntN(4) {
	case 0:
		one := near(r, a)
		return netipx.IPRangeFrom(one, one)
	case 1:
		b := netipx.RangeOfPrefix(netip.MustParsePrefix(pick(r, peerRanges...)))
		from, to := near(r, a), near(r, b)
		switch {
		case from.Is4() != to.Is4():
			return a
		case to.Less(from):
			from, to = to, from
		}
		return netipx.IPRangeFrom(from, to)
	}
	return a
}

// near returns an address at one of the ends of a range or next to it.
func near(r *rand.Rand, in netipx.IPRange) netip.Addr {
	end := pick(r, in.From(), in.To())
	if a := pick(r, end, end.Prev(), end.Next()); a.IsValid() {
		return a
	}
	return end
}

func pick[T any](r *rand.Rand, from ...T) T {
	return from[r.IntN(len(from))]
}
