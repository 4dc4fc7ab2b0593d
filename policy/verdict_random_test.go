package policy_test

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vethwall/vethwall/policy"
	. "github.com/vethwall/vethwall/policy/policytest"
)

var everyVerb = Draw{Verbs: []policy.Verb{policy.Drop, policy.Drop, policy.Except, policy.Allow}, MaxRules: 8}

// A fragment without its ports gets the verdict that all 65,536 ports have in common, or none.
func TestUnknownPortIsEveryPort(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	whole := slices.Clone(udp4)
	for range 30 {
		p := everyVerb.Policy(r)
		want := p.Verdict(policy.Egress, With(udp4, 14+20+2, 0, 0))
		for port := range 1 << 16 {
			binary.BigEndian.PutUint16(whole[14+20+2:], uint16(port))
			if p.Verdict(policy.Egress, whole) != want {
				want = policy.Verdict{Reason: policy.Fragment, Source: -1, Rule: -1}
				break
			}
		}
		if got := p.Verdict(policy.Egress, late4); got != want {
			t.Errorf("seed %d: got %v, want %v under %+v", seed, got, want, p)
		}
	}
}

// Where a frame of which nothing can be read has a verdict of its own, every frame has that verdict,
// except what is built in or cannot be read for another reason.
func TestUnreadableIsEveryFrame(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	agreed := 0
	for range 5000 {
		p := everyVerb.Policy(r)
		unreadable := p.Verdict(policy.Egress, udp4[:14+10])
		if unreadable.Reason == policy.Truncated {
			continue
		}
		for range 10 {
			dst, n := pickPeer(r), uint16(r.Uint32())
			frame := IP(me4, dst, udp, UDP(n, n))
			if r.IntN(2) == 0 {
				frame = IP(me4, dst, uint8(r.Uint32())|0x80, nil) // no protocol with a service but SCTP
			}
			if got := p.Verdict(policy.Egress, frame); got != unreadable {
				t.Fatalf("seed %d: unreadable %v, but %x %v under %+v", seed, unreadable, frame, got, p)
			}
			agreed++
		}
	}
	if agreed < 1000 {
		t.Errorf("seed %d: compared only %d", seed, agreed)
	}
}

func pickPeer(r *rand.Rand) string {
	peers := []string{you4, far4, "192.0.2.7", "224.0.0.1", "255.255.255.255", "0.0.0.0", "198.51.100.64"}
	return peers[r.IntN(len(peers))]
}
