package policy

import (
	"slices"

	"go4.org/netipx"
)

// Warnings are what is legal but seldom meant, as far as the policy alone shows it: one sentence each,
// in a fixed order.
func Warnings(p Policy) []string {
	var out []string
	if p.allows(Egress) && !p.resolves() {
		out = append(out, "no egress allow rule lets the container resolve names: add dns to xdp.egress.allow")
	}
	if p.mixedPeers(Egress) || p.mixedPeers(Ingress) {
		out = append(out, "an allow-list has matches with peers and matches without: each passes on its own, so 443/tcp beside internet allows both; 443/tcp@internet needs both to agree")
	}
	if p.allows(Egress) && p.open(Ingress) {
		out = append(out, "egress is an allow-list but ingress is open: everybody can still open connections to the container; add xdp.ingress.allow or xdp.ingress.default=drop")
	}
	if p.dropsProxies() {
		out = append(out, "dropping private on ingress also cuts off a reverse proxy on the container's networks: write xdp.egress.drop=private, or xdp.ingress.except=neighbors")
	}
	if key := p.destinationsOf(Ingress); key != "" {
		out = append(out, "a rule of "+key+" names destinations, multicast or broadcast addresses, but the peer of what the container receives is its sender: that matches nothing that anybody sends; name the senders, or protocol and ports, such as 5353/udp")
	}
	return out
}

// destinationsOf is the key of a rule for that direction alone whose peers are destinations, some of them at least, "" without
// one. A rule for both means the other direction.
func (p Policy) destinationsOf(d Direction) string {
	for _, r := range p.Rules {
		if some, _ := r.Match.Peers.destinations(); some && r.In[d] && !r.In[1-d] {
			return r.Key()
		}
	}
	return ""
}

// destinations reports whether some of p, and whether all of it, are multicast or broadcast addresses: nobody sends from
// them, so as the peer of what is received they are none.
func (p Peers) destinations() (some, all bool) {
	all = !p.Any()
	for _, g := range p.Groups {
		some, all = some || g == Multicast, all && g == Multicast
	}
	for _, r := range p.Ranges {
		is := slices.ContainsFunc(Multicast.FixedRanges(), func(m netipx.IPRange) bool { return m.Contains(r.From()) && m.Contains(r.To()) })
		some, all = some || is, all && is
	}
	return some, all
}

// resolves reports whether an egress allow rule lets a query to some name server pass.
func (p Policy) resolves() bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool {
		if r.Verb != Allow || !r.In[Egress] {
			return false
		}
		switch w := r.Match.What; w.Kind {
		case All, DNS:
			return true
		case Proto:
			return w.Proto == portProtos["udp"] || w.Proto == portProtos["tcp"]
		case Ports:
			return w.Proto != portProtos["sctp"] &&
				slices.ContainsFunc(w.Ports, func(r PortRange) bool { return r.From <= 53 && 53 <= r.To })
		}
		return false
	})
}

// mixedPeers reports whether one allow-list has matches with and without peers. dns and metadata have
// their own.
func (p Policy) mixedPeers(d Direction) bool {
	var with, without bool
	for _, r := range p.Rules {
		if k := r.Match.What.Kind; r.Verb != Allow || !r.In[d] || k == DNS || k == Metadata {
			continue
		}
		if r.Match.Peers.Any() {
			without = true
		} else {
			with = true
		}
	}
	return with && without
}

// open reports whether what no rule matches passes in that direction, and no rule drops all.
func (p Policy) open(d Direction) bool {
	if p.allows(d) || p.Default[d] == DefaultDrop {
		return false
	}
	return !slices.ContainsFunc(p.Rules, func(r Rule) bool {
		return r.Verb == Drop && r.In[d] && r.Match.What.Kind == All && r.Match.Peers.Any()
	})
}

// dropsProxies reports whether connections from the private addresses of the container's own networks
// are dropped, and not excepted.
func (p Policy) dropsProxies() bool {
	has := func(v Verb, groups ...Group) bool {
		return slices.ContainsFunc(p.Rules, func(r Rule) bool {
			tcp := r.Match.What.Kind == All || r.Match.What.Kind == Proto && r.Match.What.Proto == portProtos["tcp"]
			return r.Verb == v && r.In[Ingress] && tcp &&
				slices.ContainsFunc(r.Match.Peers.Groups, func(g Group) bool { return slices.Contains(groups, g) })
		})
	}
	return has(Drop, Private) && !has(Except, Neighbors, Private)
}
