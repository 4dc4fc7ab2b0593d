package policytest

import (
	"math/rand/v2"
	"slices"

	"github.com/vethwall/vethwall/policy"
)

// Plain returns a random whole IP packet with its Ethernet header, of which every firewall reads the same: addresses, protocols,
// ports and types at the edges of p's rules, as with Frame, but neither damaged nor a fragment nor an ICMP error. Options, a few
// extension headers and TCP flags of any kind are in front of tail, which is its end.
func Plain(r *rand.Rand, p policy.Policy, tail []byte) []byte {
	m := frameMaker{r, edgesOf(p)}
	v6 := m.IntN(2) == 0
	proto := m.plainProto(v6)
	payload := append(m.plainHeader(v6, proto), tail...)
	if !v6 {
		return Eth(0x0800, IPv4(m.peer(false), m.peer(false), proto, random(r, 4*pick(r, 0, 0, 0, 1, 10)), payload))
	}
	for range pick(r, 0, 0, 0, 1, 3) {
		payload = Extension(proto, pick[uint8](r, 0, 0, 1), payload)
		proto = pick[uint8](r, hopByHop, routing, destination)
		payload[2] = 1 // of options, one that is skipped; of a routing header, an unused type
	}
	return Eth(0x86dd, IPv6(m.peer(true), m.peer(true), proto, payload))
}

// plainProto is a protocol that is read alike: others walk AH in IPv6, and not mobility, HIP and shim6.
func (m frameMaker) plainProto(v6 bool) uint8 {
	proto := pick(m.Rand, m.protos...)
	if m.IntN(8) == 0 {
		proto = uint8(m.Uint32())
	}
	walked := []uint8{hopByHop, routing, fragmentHeader, protoAH, destination, mobility, hip, shim6}
	if v6 && slices.Contains(walked, proto) {
		return protoUDP
	}
	return proto
}

func (m frameMaker) plainHeader(v6 bool, proto uint8) []byte {
	from, to := pick(m.Rand, m.ports...), pick(m.Rand, m.ports...)
	switch proto {
	case protoTCP:
		return With(TCP(from, to), 13, uint8(m.Uint32()))
	case protoUDP:
		return UDP(from, to)
	case protoSCTP:
		return SCTP(from, to)
	case protoICMP, protoICMPv6:
		types := slices.DeleteFunc(slices.Clone(m.types), func(t uint8) bool {
			return (policy.ICMPType{V6: v6, Type: t}).IsError()
		})
		return ICMP(pick(m.Rand, types...), 0)
	}
	return random(m.Rand, m.IntN(12))
}
