package xdp

import (
	"fmt"
	"testing"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// TestExplainAgrees asks Stack.Explain about conversations and sends their first packets through the programs.
func TestExplainAgrees(t *testing.T) {
	r := newRunner(t)
	m := newMemory(r)
	rnd, seed := seeded(t)
	passed, dropped := 0, 0
	for range 400 {
		stack := policytest.Draw{Verbs: []policy.Verb{policy.Drop, policy.Except, policy.Allow}, MaxRules: 6, OneWay: true}.Stack(rnd)
		use(t, r, stack)
		for range 10 {
			m.forget(t)
			h := hooks[rnd.IntN(len(hooks))]
			local, peer := policytest.Local4, []string{"192.0.2.7", "203.0.113.5", "198.51.100.70"}[rnd.IntN(3)]
			if rnd.IntN(2) == 0 {
				local, peer = policytest.Local6, []string{"2001:db8::7", "2001:db8:ffff::1"}[rnd.IntN(2)]
			}
			port := []uint16{22, 53, 443, 8080, 40000}[rnd.IntN(5)]
			what, proto, header := fmt.Sprintf("%d/udp", port), uint8(protoUDP), policytest.UDP(1234, port)
			switch rnd.IntN(3) {
			case 0: // a SYN
				what, proto, header = fmt.Sprintf("%d/tcp", port), protoTCP, policytest.With(policytest.TCP(1234, port), 13, 2)
			case 1:
				what, proto, header = "gre", 47, make([]byte, 8)
			}
			from, to := local, peer
			if h.dir == policy.Ingress {
				from, to = peer, local
			}
			match, err := policy.ParseMatch(what + "@" + peer)
			must(t, err)
			want, err := stack.Explain(h.dir, match)
			must(t, err)
			got := r.run(h, stack, policytest.IP(from, to, proto, header))
			if got.Reason != want.Reason {
				t.Fatalf("seed %d: %s%s, %s %s@%s: explain says %s, the program %s",
					seed, describe(stack), h.name, h.dir, what, peer, want.Reason, got.Reason)
			}
			if want.Reason == policy.Pass {
				passed++
			} else {
				dropped++
			}
		}
	}
	if passed < 100 || dropped < 100 {
		t.Errorf("%d passed, %d were dropped", passed, dropped)
	}
}
