package xdp

import (
	"fmt"
	"strings"

	"go4.org/netipx"

	"github.com/vethwall/vethwall/policy"
)

// nftChains says in nftables' language what a policy says of packets in one direction, as the chains NAME and
// NAME_allowed. Whoever jumps to NAME finds it accepted or dropped. It is written from docs/labels.md and shares nothing
// with the compiler but the parsed policy.
func nftChains(name string, p policy.Policy, dir policy.Direction) string {
	var b strings.Builder
	fate := "accept"
	allows := false
	fmt.Fprintf(&b, "chain %s_allowed {\n", name)
	for _, r := range p.Rules {
		if r.Verb == policy.Allow && r.In[dir] {
			allows = true
			nftRules(&b, r.Match, dir, "accept")
		}
	}
	if p.Default[dir] == policy.DefaultDrop || p.Default[dir] == policy.Unset && allows {
		fate = "drop"
	}
	fmt.Fprintf(&b, "%s\n}\nchain %s {\n", fate, name)
	for _, verb := range []policy.Verb{policy.Except, policy.Drop} {
		for _, r := range p.Rules {
			switch {
			case r.Verb != verb || !r.In[dir]:
			case verb == policy.Except:
				nftRules(&b, r.Match, dir, "goto "+name+"_allowed")
			default:
				nftRules(&b, r.Match, dir, "drop")
			}
		}
	}
	fmt.Fprintf(&b, "goto %s_allowed\n}\n", name)
	return b.String()
}

// nftRules writes a rule for each pair of what a match means and with whom.
func nftRules(b *strings.Builder, m policy.Match, dir policy.Direction, action string) {
	for _, what := range nftWhat(m.What) {
		for _, peer := range nftPeers(m.Peers, dir) {
			fmt.Fprintf(b, "%s %s %s\n", peer, what, action)
		}
	}
}

func nftPeers(p policy.Peers, dir policy.Direction) []string {
	field := "daddr"
	if dir == policy.Ingress {
		field = "saddr"
	}
	ranges := append([]netipx.IPRange(nil), p.Ranges...)
	for _, g := range p.Groups {
		ranges = append(ranges, g.FixedRanges()...)
	}
	if len(ranges) == 0 {
		return []string{""}
	}
	var out []string
	for _, r := range ranges {
		family := "ip"
		if r.From().Is6() {
			family = "ip6"
		}
		if all, ok := r.Prefix(); ok && all.Bits() == 0 { // no range to nft
			out = append(out, "meta protocol "+family)
			continue
		}
		out = append(out, family+" "+field+" "+nftRange(r.From(), r.To()))
	}
	return out
}

// nftRange writes a range, one of a single value as nft wants it.
func nftRange[T comparable](from, to T) string {
	if from == to {
		return fmt.Sprint(from)
	}
	return fmt.Sprintf("%v-%v", from, to)
}

// nftWhat are the expressions of which one must hold.
func nftWhat(w policy.What) []string {
	const icmp, icmp6 = "meta protocol ip meta l4proto icmp icmp type ", "meta protocol ip6 meta l4proto icmpv6 icmpv6 type "
	switch w.Kind {
	case policy.All:
		return []string{""}
	case policy.Proto:
		return []string{fmt.Sprintf("meta l4proto %d", w.Proto)}
	case policy.Ports:
		var ports []string
		for _, r := range w.Ports {
			ports = append(ports, nftRange(r.From, r.To))
		}
		name := map[uint8]string{6: "tcp", 17: "udp", 132: "sctp"}[w.Proto]
		return []string{fmt.Sprintf("%s dport { %s }", name, strings.Join(ports, ", "))}
	case policy.ICMP:
		return []string{icmp + "!= { 3, 4, 5, 11, 12 }", icmp6 + "128-255"}
	case policy.Ping:
		return []string{icmp + "8", icmp6 + "128"}
	case policy.ICMPTypes:
		var out []string
		for _, t := range w.Types {
			switch {
			case t.IsError():
			case t.V6:
				out = append(out, fmt.Sprint(icmp6, t.Type))
			default:
				out = append(out, fmt.Sprint(icmp, t.Type))
			}
		}
		return out
	}
	panic(fmt.Sprintf("kind %d has no words in nft", w.Kind))
}
