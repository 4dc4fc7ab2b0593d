package policy

import (
	"net/netip"
	"slices"

	"go4.org/netipx"
)

// Groups are what the groups of labels are made of, for one container and as of now. Addresses have no zones
// and are not IPv4-mapped; what is invalid among them is nobody.
type Groups struct {
	// Host are the addresses of the host's devices, and OnLink the prefixes that they reach without a router.
	Host   []netip.Addr
	OnLink []netip.Prefix
	// Networks are the subnets of all container networks of the host, Neighbors those of the container's own.
	Networks, Neighbors []netip.Prefix
	// Gateways are those of the container's own networks. They count as the host.
	Gateways []netip.Addr
	// Resolvers are the name servers that the container asks from its own addresses.
	Resolvers []netip.Addr
}

// Equal reports whether g and other list the same in the same order.
func (g Groups) Equal(other Groups) bool {
	return slices.Equal(g.Host, other.Host) && slices.Equal(g.OnLink, other.OnLink) &&
		slices.Equal(g.Networks, other.Networks) && slices.Equal(g.Neighbors, other.Neighbors) &&
		slices.Equal(g.Gateways, other.Gateways) && slices.Equal(g.Resolvers, other.Resolvers)
}

// Live reports whether what s means depends on Groups.
func (s Stack) Live() bool {
	return slices.ContainsFunc(s, func(source Source) bool {
		return slices.ContainsFunc(source.Policy.Rules, func(r Rule) bool {
			return r.Match.What.Kind == DNS || slices.ContainsFunc(r.Match.Peers.Groups, Group.live)
		})
	})
}

// live reports whether what is in the group depends on Groups.
func (g Group) live() bool { return g.FixedRanges() == nil }

// Resolve is s with the addresses that are in the groups now in place of the groups; multicast, ipv4 and ipv6 stay. A
// rule whose groups hold nobody matches nobody: it is left out, and an allow-list without rules stays one, because
// Default says what it meant. Rules say in Shown what they were. s is not changed.
func (g Groups) Resolve(s Stack) Stack {
	out := make(Stack, len(s))
	for i, source := range s {
		p := source.Policy
		for dir := range p.Default {
			if source.Policy.PassesByDefault(Direction(dir)) {
				p.Default[dir] = DefaultAllow
			} else {
				p.Default[dir] = DefaultDrop
			}
		}
		p.Rules = nil
		for _, r := range source.Policy.Rules {
			p.Rules = append(p.Rules, g.resolve(r)...)
		}
		out[i] = Source{source.Origin, p}
	}
	return out
}

// resolve gives the rules, up to two, that stand for r.
func (g Groups) resolve(r Rule) []Rule {
	switch kind := r.Match.What.Kind; {
	case kind == DNS:
		r.In[Ingress] = false
		return r.atPort(53, g.Resolvers, "udp", "tcp")
	case kind == Metadata:
		return r.atPort(80, metadataAddrs, "tcp")
	case !slices.ContainsFunc(r.Match.Peers.Groups, Group.live):
		return []Rule{r}
	}
	var out []Rule
	for _, dir := range []Direction{Egress, Ingress} {
		peers := g.peers(r.Match.Peers, dir, r.Verb == Drop || r.Verb == Limit)
		switch {
		case !r.In[dir] || peers.Any():
		case len(out) == 1 && slices.Equal(out[0].Match.Peers.Ranges, peers.Ranges):
			out[0].In[dir] = true
		default:
			one := Rule{Verb: r.Verb, Name: r.Name, Match: Match{r.Match.What, peers}, Rate: r.Rate, Shown: r.String()}
			one.In[dir] = true
			out = append(out, one)
		}
	}
	return out
}

// atPort is r for a port at addresses, a rule for each protocol.
func (r Rule) atPort(port uint16, addrs []netip.Addr, protos ...string) []Rule {
	var b netipx.IPSetBuilder
	addAddrs(b.Add, addrs)
	ranges := rangesOf(&b)
	if len(ranges) == 0 || r.In == [2]bool{} {
		return nil
	}
	var out []Rule
	r.Shown = r.String()
	for _, proto := range protos {
		r.Match = Match{
			What:  What{Kind: Ports, Proto: portProtos[proto], Ports: []PortRange{{port, port}}},
			Peers: Peers{Ranges: ranges},
		}
		out = append(out, r)
	}
	return out
}

// peers are p with ranges in place of the groups that are live; see members for atAll.
func (g Groups) peers(p Peers, dir Direction, atAll bool) Peers {
	out := Peers{Ranges: slices.Clone(p.Ranges)}
	for _, group := range p.Groups {
		if group.live() {
			out.Ranges = append(out.Ranges, rangesOf(g.members(group, dir, atAll))...)
		} else {
			out.Groups = append(out.Groups, group)
		}
	}
	out.Ranges = sortRanges(out.Ranges)
	return out
}

// members are the addresses of a group that is live: atAll by which anybody in it is reached at all, as who drops means it, else those that
// reach nobody else.
func (g Groups) members(group Group, dir Direction, atAll bool) *netipx.IPSetBuilder {
	var b netipx.IPSetBuilder
	switch group {
	case Host:
		addAddrs(b.Add, g.Host)
		addAddrs(b.Add, g.Gateways)
		if atAll {
			addAddrs(b.Add, g.toMany())
		}
	case Neighbors:
		addPrefixes(b.AddPrefix, g.Neighbors)
		addAddrs(b.Remove, g.Gateways)
		if !atAll {
			addAddrs(b.Remove, g.toMany())
		}
	case Private:
		b.AddSet(g.private())
		// What docker-proxy forwards from the outside comes from a gateway.
		if dir == Ingress {
			addAddrs(b.Remove, g.Host)
			addAddrs(b.Remove, g.Gateways)
		}
	case LAN:
		b = *g.members(Private, dir, atAll)
		b.RemoveSet(setOf(g.members(Neighbors, dir, true)))
		addAddrs(b.Remove, g.Resolvers)
	case Internet:
		b.AddSet(g.internet())
	}
	return &b
}

// toMany are the addresses in the container's own networks that its neighbours and the host hear alike: the broadcast address (RFC 919), and
// that of all routers of a subnet (RFC 4291 2.6.1), of which the host is one.
func (g Groups) toMany() (out []netip.Addr) {
	for _, p := range append(slices.Clip(g.Neighbors), linkLocal) {
		switch {
		case p.Addr().Is4() && p.Bits() < 31:
			out = append(out, netipx.PrefixLastIP(p))
		case p.Addr().Is6() && p.Bits() < 127:
			out = append(out, p.Masked().Addr())
		}
	}
	return out
}

var linkLocal = netip.MustParsePrefix("fe80::/64")

// private is what nobody routes for everybody, and all that is near.
func (g Groups) private() *netipx.IPSet {
	var b netipx.IPSetBuilder
	addPrefixes(b.AddPrefix, notReachable)
	addPrefixes(b.RemovePrefix, reachable)
	addPrefixes(b.AddPrefix, g.OnLink)
	addPrefixes(b.AddPrefix, g.Networks)
	embed(&b)
	return setOf(&b)
}

// internet is all other unicast that is not the host.
func (g Groups) internet() *netipx.IPSet {
	var b netipx.IPSetBuilder
	addPrefixes(b.AddPrefix, everywhere)
	without := func() {
		addPrefixes(b.RemovePrefix, notUnicast)
		b.RemoveSet(g.private())
		addAddrs(b.Remove, g.Host)
		addAddrs(b.Remove, g.Gateways)
	}
	addPrefixes(b.RemovePrefix, embeddings)
	without()
	embed(&b)
	without() // what is near may have such addresses itself
	return setOf(&b)
}

// embed adds to the IPv4 addresses of b the IPv6 addresses that carry them.
func embed(b *netipx.IPSetBuilder) {
	for _, r := range setOf(b).Ranges() {
		if !r.From().Is4() {
			return // IPv4 comes first
		}
		for _, p := range embeddings {
			b.AddRange(netipx.IPRangeFrom(carry(p, r.From(), 0), carry(p, r.To(), 0xff)))
		}
	}
}

// carry is the address that begins with p, goes on with the IPv4 address a, and ends in bytes of value rest.
func carry(p netip.Prefix, a netip.Addr, rest byte) netip.Addr {
	out, v4 := p.Addr().As16(), a.As4()
	n := p.Bits()/8 + copy(out[p.Bits()/8:], v4[:])
	for i := range out[n:] {
		out[n+i] = rest
	}
	return netip.AddrFrom16(out)
}

func addAddrs(add func(netip.Addr), addrs []netip.Addr) {
	for _, a := range addrs {
		if a.IsValid() {
			add(a)
		}
	}
}

func addPrefixes(add func(netip.Prefix), prefixes []netip.Prefix) {
	for _, p := range prefixes {
		if p.IsValid() {
			add(p)
		}
	}
}

// setOf is what b holds. It has an error only for what is invalid, and none of that was added.
func setOf(b *netipx.IPSetBuilder) *netipx.IPSet {
	s, err := b.IPSet()
	if err != nil {
		panic(err)
	}
	return s
}

func rangesOf(b *netipx.IPSetBuilder) []netipx.IPRange { return setOf(b).Ranges() }
