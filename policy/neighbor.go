package policy

import (
	"net/netip"
	"slices"
)

// Neighborhood is what is known of the bridge that one of a container's veths is a port of. Ports are ifindexes.
type Neighborhood struct {
	Bridge int
	// Port is the port that has an address, 0 for none: who had it is gone.
	Port map[netip.Addr]int
	// Known are the ports, and not the bridge itself, of which it is known which addresses they have.
	Known []int
	// Elsewhere are devices that are no ports of the bridge, and of which that is known.
	Elsewhere []int
	// RoutesBack: what one neighbour sends to an address of the host may be routed back for another, as it is.
	RoutesBack bool
}

// Judge says of a frame that the container receives, from its destination MAC on, whether it bears an address of who sent
// it: Pass, or NeighborSpoof, or why that could not be read. from is the port by which it came in, 0 for what the host itself sends, Bridge for what the
// host routes back to where it came from.
func (n Neighborhood) Judge(frame []byte, from int) Reason { return n.judge(readFrame(frame), from) }

func (n Neighborhood) judge(pkt packet, from int) Reason {
	if from == 0 && pkt.isPart() {
		// Where the host puts a packet together and cuts it anew the parts have lost by which port it came.
		from = n.Bridge
	}
	known, elsewhere := slices.Contains(n.Known, from), slices.Contains(n.Elsewhere, from)
	switch {
	case from != 0 && from != n.Bridge && pkt.isRouters():
		return NeighborSpoof
	case known && pkt.mayBearAnything():
		return pkt.why
	case from == n.Bridge && n.RoutesBack, from != n.Bridge && !known && !elsewhere:
		return Pass
	}
	for _, a := range []netip.Addr{pkt.senderAddress(), pkt.target()} {
		// What the host routes here from elsewhere its own NAT may have given an address of the host.
		if port, has := n.Port[a]; has && port != from && (!elsewhere || port != n.Bridge) {
			return NeighborSpoof
		}
	}
	return Pass
}

// isPart reports whether p is a fragment, or the only one (RFC 6946): the kernel cuts a whole packet into one part, too.
func (p packet) isPart() bool {
	return p.first || p.later || p.src.Is6() && p.part.to > 0
}

// mayBearAnything reports whether it could not be read whose name p bears, so that a kernel which reads further may find somebody
// else's. Of a fragment the source is known, and neighbour discovery in fragments nobody heeds (RFC 6980).
func (p packet) mayBearAnything() bool {
	return p.why != Pass && !p.first && !p.later && (p.class != oneIP || !p.protoKnown)
}

// senderAddress is the source of an IP packet, or what ARP claims; invalid for none.
func (p packet) senderAddress() netip.Addr {
	if p.class == isARP {
		return p.claim
	}
	return p.src
}

// target is the address whose place a neighbour advertisement tells, whether it is built in or not; invalid for none.
func (p packet) target() netip.Addr {
	const advertise = 136
	if p.icmp == nil || !p.dst.Is6() || p.first || p.icmp[0] != advertise || len(p.icmp) < 24 {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte(p.icmp[8:]))
}
