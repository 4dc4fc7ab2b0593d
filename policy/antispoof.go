package policy

import (
	"net/netip"
	"slices"

	"go4.org/netipx"
)

// Identity is what the packets that a container sends on one of its veths must carry (antispoof).
type Identity struct {
	MAC [6]byte
	// Own are the container's addresses on all its networks, and what its label adds.
	Own []netipx.IPRange
}

// LinkLocal is the address that IPv6 makes of a MAC (RFC 4291, modified EUI-64).
func LinkLocal(mac [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{
		0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5],
	})
}

// Judge says of a frame that the container sends, from its destination MAC on, whether it is its own: Pass, or why not.
func (id Identity) Judge(frame []byte) Reason { return id.judge(readFrame(frame)) }

func (id Identity) judge(pkt packet) Reason {
	switch {
	case pkt.mayBeForged():
		return pkt.why
	case pkt.mac != id.MAC || pkt.forged:
		return Spoof
	case pkt.class == oneIP && !pkt.asksForAddress() && !pkt.isNobodyYet() && !id.owns(pkt.src):
		return Spoof
	case pkt.claim.IsValid() && !id.owns(pkt.claim):
		return Spoof
	}
	return Pass
}

func (id Identity) owns(a netip.Addr) bool {
	return slices.ContainsFunc(id.Own, func(r netipx.IPRange) bool { return r.Contains(a) })
}

// asksForAddress reports whether p is what a container without an address sends to a DHCP server (RFC 2131).
func (p packet) asksForAddress() bool {
	return p.src == netip.IPv4Unspecified() && p.serviceKnown && p.proto == protoUDP && p.to == dhcpServer
}

// isNobodyYet reports whether p is the solicitation or the group membership of who does not know yet that his address
// is free (RFC 4862, RFC 3590).
func (p packet) isNobodyYet() bool { return p.src == netip.IPv6Unspecified() && p.builtIn(Egress) }

// mayBeForged reports whether what could not be read of p may be what no container has to send. A later fragment is not:
// what it follows has been judged.
func (p packet) mayBeForged() bool {
	if p.why == Pass || p.later {
		return false
	}
	return p.class != oneIP || !p.protoKnown || p.proto == protoUDP || p.proto == protoICMP || p.proto == protoICMPv6
}

// RFC 2131, RFC 8415.
const (
	dhcpServer  = 67
	dhcpClient  = 68
	dhcp6Client = 546
)

// isServersDHCP reports whether p is for a DHCP client, who takes answers from any port.
func (p packet) isServersDHCP() bool {
	if p.proto != protoUDP || !p.serviceKnown {
		return false
	}
	if p.dst.Is6() {
		return p.to == dhcp6Client
	}
	return p.to == dhcpClient
}

// isRouters reports whether p is a message that only routers have to send.
func (p packet) isRouters() bool {
	if p.icmp == nil {
		return false
	}
	if p.dst.Is6() {
		return p.icmp[0] == 134 || p.icmp[0] == 137
	}
	return p.icmp[0] == 5 || p.icmp[0] == 9 // RFC 792, RFC 1256
}

// claims reads what neighbour discovery says of its sender, also where it is not built in: the address that is his or may be,
// and whether it says anything that no host has to say. More than one option would be room for data, and so is what follows the
// packet: the shortest is longer than an Ethernet frame has to be. Of a fragment (RFC 6980) nobody knows what the next one brings.
func (p packet) claims() (claim netip.Addr, forged bool) {
	const solicitRouter, advertise = 133, 136
	typ, rest := p.icmp[0], p.icmp[min(8, len(p.icmp)):]
	if typ < solicitRouter || typ > advertise {
		return claim, false
	}
	if odd := p.first || p.extended || p.trailed; odd || len(p.icmp) < 8 {
		return claim, odd || p.builtIn(Egress)
	}
	nobody := p.src == netip.IPv6Unspecified()
	if typ != solicitRouter {
		if len(rest) < 16 {
			return claim, true
		}
		// Who asks without an address of his own asks whether this one is free for him.
		target := netip.AddrFrom16([16]byte(rest))
		switch {
		case p.builtIn(Egress) && (typ == advertise || nobody):
			claim = target
		case typ == advertise && target != p.src:
			return claim, true
		}
		rest = rest[16:]
	}
	switch {
	case len(rest) == 0:
		return claim, false
	case len(rest) != 8 || rest[1] != 1:
		return claim, true
	case rest[0] == 1 || rest[0] == 2: // a link-layer address
		return claim, [6]byte(rest[2:]) != p.mac
	}
	const nonce = 14 // RFC 3971, RFC 7527
	return claim, rest[0] != nonce || !nobody
}

// readARP reads a packet of RFC 826 for Ethernet and IPv4, the only kind there is; another is forged.
func readARP(mac [6]byte, b []byte) packet {
	p := packet{class: isARP, mac: mac, forged: true}
	if len(b) < 28 {
		return p
	}
	const padding = 18 // of the shortest Ethernet frame; more would be room for data
	p.forged = len(b) > 28+padding || [6]byte(b) != [6]byte{0, 1, 8, 0, 6, 4} || [6]byte(b[8:]) != mac
	// A probe claims nothing yet (RFC 5227).
	if sender := netip.AddrFrom4([4]byte(b[14:])); !sender.IsUnspecified() {
		p.claim = sender
	}
	return p
}
