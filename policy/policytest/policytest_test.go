package policytest_test

import (
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// TestDrawsReachEverything keeps the differential tests from being vacuous: every reason that a policy
// and a frame can have must come up, and often.
func TestDrawsReachEverything(t *testing.T) {
	all := policytest.Draw{Verbs: []policy.Verb{policy.Drop, policy.Drop, policy.Except, policy.Allow}, MaxRules: 8}
	tests := map[string]struct {
		draw    func(*rand.Rand) policy.Policy
		reasons []policy.Reason
	}{
		"drop rules": {policytest.Policy, []policy.Reason{
			policy.Pass, policy.ByRule, policy.Truncated, policy.BadHeader, policy.TooManyTags,
			policy.TooManyHeaders, policy.Fragment, policy.BadQuote,
		}},
		"every verb": {all.Policy, []policy.Reason{
			policy.Pass, policy.ByRule, policy.ByDefault, policy.Truncated, policy.BadHeader, policy.TooManyTags,
			policy.TooManyHeaders, policy.Fragment, policy.BadQuote,
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			const draws, enough = 20000, 100
			r := rand.New(rand.NewPCG(1, 2))
			count := map[policy.Reason]int{}
			rules := map[int]int{}
			for range draws {
				p := test.draw(r)
				frame := policytest.Frame(r, p)
				if len(frame) < 14 || len(frame) > 1500 {
					t.Fatalf("frame of %d bytes", len(frame))
				}
				v := p.Verdict(policy.Egress, frame)
				count[v.Reason]++
				rules[v.Rule]++
			}
			t.Log(count, rules)
			for _, reason := range test.reasons {
				if count[reason] < enough {
					t.Errorf("%v came up %d times in %d", reason, count[reason], draws)
				}
				delete(count, reason)
			}
			if len(count) > 0 {
				t.Errorf("came up, but cannot: %v", count)
			}
			if dropped := draws - rules[-1]; dropped < draws/20 || rules[0] == 0 || rules[7] == 0 {
				t.Errorf("rules named: %v", rules)
			}
		})
	}
}

func TestSameSeedSameDraw(t *testing.T) {
	draw := func() (policy.Policy, []byte) {
		r := rand.New(rand.NewPCG(3, 4))
		p := policytest.Policy(r)
		return p, policytest.Frame(r, p)
	}
	p, frame := draw()
	again, sameFrame := draw()
	if !reflect.DeepEqual(p, again) || !reflect.DeepEqual(frame, sameFrame) {
		t.Error("a seed does not name its draw")
	}
}

// TestPoliciesAreInRange holds random policies to what policy.Policy promises of parsed ones.
func TestPoliciesAreInRange(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 2000 {
		for _, rule := range policytest.Policy(r).Rules {
			if !rule.In[0] && !rule.In[1] {
				t.Fatalf("%+v is for no direction", rule)
			}
			last := 0
			for _, ports := range rule.Match.What.Ports {
				if int(ports.From) <= last || ports.To < ports.From {
					t.Fatalf("ports %v", rule.Match.What.Ports)
				}
				last = int(ports.To)
			}
			for i, in := range rule.Match.Peers.Ranges {
				if !in.IsValid() || in.From().Is4In6() || i > 0 && in == rule.Match.Peers.Ranges[i-1] {
					t.Fatalf("peers %v", rule.Match.Peers.Ranges)
				}
			}
		}
	}
}

func BenchmarkVerdict(b *testing.B) {
	r := rand.New(rand.NewPCG(7, 8))
	for b.Loop() {
		p := policytest.Policy(r)
		p.Verdict(policy.Egress, policytest.Frame(r, p))
	}
}
