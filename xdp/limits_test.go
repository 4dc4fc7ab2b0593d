package xdp

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// TestLimitsMatch sends each frame twice under limits of one packet a second and compares what becomes of the second with the
// limits that the specification says it counts against. How exactly rates are held is TestRates' subject.
func TestLimitsMatch(t *testing.T) {
	r := newRunner(t)
	newMemory(r)
	rnd, seed := seeded(t)
	limited, passed, audited := 0, 0, 0
	for range 600 {
		draw := policytest.Draw{Verbs: []policy.Verb{policy.Limit, policy.Limit, policy.Drop}, MaxRules: 6, OneWay: true}
		stack := draw.Stack(rnd)
		for i := range stack {
			stack[i].Policy.Default = [2]policy.Default{}
			stack[i].Policy.Mode = []policy.Mode{policy.Enforce, policy.Enforce, policy.Audit}[rnd.IntN(3)]
			for j := range stack[i].Policy.Rules {
				stack[i].Policy.Rules[j].Rate = policy.Rate{Count: 1}
			}
		}
		tables, err := Compile(stack)
		must(t, err)
		tables.flags &^= flagStateful
		r.use(tables)
		for range 20 {
			h := hooks[1+rnd.IntN(2)]
			frame := policytest.Frame(rnd, stack[0].Policy)
			if !tcRuns(frame) {
				continue
			}
			must(t, r.k.Buckets.Put(uint32(1), filterBucketSet{}))
			first := stack.Verdict(h.dir, frame)
			if got := r.run(h, stack, frame); got != first {
				t.Fatalf("seed %d: %s%s frame %x: program says %v, specification %v", seed, describe(stack), h.name, frame, got, first)
			}
			want := secondTime(stack, h.dir, frame, first)
			if got := r.run(h, stack, frame); got != want {
				t.Fatalf("seed %d: %s%s frame %x, a second time: program says %v, specification %v", seed, describe(stack), h.name, frame, got, want)
			}
			switch {
			case want.Reason == policy.LimitReached && want.Audited:
				audited++
			case want.Reason == policy.LimitReached:
				limited++
			default:
				passed++
			}
		}
	}
	t.Logf("%d limited, %d audited, %d not", limited, audited, passed)
	if limited < 100 || audited < 100 || passed < 100 {
		t.Error("one of these is too seldom")
	}
}

// secondTime is the verdict on a frame whose buckets are all full.
func secondTime(s policy.Stack, dir policy.Direction, frame []byte, first policy.Verdict) policy.Verdict {
	out := first
	for _, ref := range s.Limited(dir, frame) {
		v := policy.Verdict{Reason: policy.LimitReached, Source: ref.Source, Rule: ref.Rule, Audited: s.Audited(ref.Source)}
		if first.Passes() && !v.Audited {
			return v
		}
		if out.Reason == policy.Pass {
			out = v
		}
	}
	return out
}

// A limit of dns is two rules, for UDP and TCP, and one bucket.
func TestLimitOfAGroup(t *testing.T) {
	p, _, err := policy.Parse(map[string]string{"xdp.egress.limit": "dns=1pps,443/tcp=1pps"})
	must(t, err)
	s := policy.Groups{Resolvers: []netip.Addr{netip.MustParseAddr("192.0.2.53")}}.Resolve(policy.Stack{{Origin: "labels", Policy: p}})
	r := newRunner(t)
	newMemory(r)
	tables, err := Compile(s)
	must(t, err)
	if got := names(tables.Rules[policy.Egress]); !slices.Equal(got, []string{"443/tcp", "dns"}) {
		t.Errorf("rules %q", got)
	}
	tables.flags &^= flagStateful
	r.use(tables)
	must(t, r.k.Buckets.Put(uint32(1), filterBucketSet{}))
	send := func(proto uint8, port uint16) bool {
		header := policytest.UDP(1, port)
		if proto == protoTCP {
			header = policytest.TCP(1, port)
		}
		frame := policytest.IP("192.0.2.1", "192.0.2.53", proto, header)
		action, err := r.k.VethwallSent.Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)})
		must(t, err)
		return action == tcPass
	}
	if first, tcp, other := send(protoUDP, 53), send(protoTCP, 53), send(protoTCP, 443); !first || tcp || !other {
		t.Errorf("first query %t, next over TCP %t, something else %t", first, tcp, other)
	}
}
