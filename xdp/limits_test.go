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

// TestMeasured checks as how much a packet is counted that stands for several.
func TestMeasured(t *testing.T) {
	r := newRunner(t)
	newMemory(r)
	tables, err := Compile(stackOf(t, "xdp.limit=all=1kbit,all=1pps"))
	must(t, err)
	r.use(tables)
	payload := make([]byte, 3000)
	udp := policytest.UDP(1, 2, payload...)
	tcp := append(policytest.With(policytest.TCP(1, 2), 12, 8<<4), append(make([]byte, 12), payload...)...) // with options
	for _, c := range []struct {
		name           string
		frame          []byte
		size, segments uint32 // as the kernel or the sender of a raw frame says
		want           uint64
		repeated       int // bytes of headers
	}{
		{"one packet", policytest.IP("192.0.2.1", "192.0.2.2", protoUDP, udp), 0, 0, 1, 0},
		{"UDP", policytest.IP("192.0.2.1", "192.0.2.2", protoUDP, udp), 1000, 3, 3, udpHeaders4},
		{"UDP over IPv6", policytest.IP("2001:db8::1", "2001:db8::2", protoUDP, udp), 1001, 0, 3, udpHeaders6},
		{"the last one short", policytest.IP("192.0.2.1", "192.0.2.2", protoUDP, udp), 999, 4, 4, udpHeaders4},
		{"said to be one", policytest.IP("192.0.2.1", "192.0.2.2", protoTCP, tcp), 100, 1, 30, 14 + 20 + 32},
		{"tagged TCP", policytest.Tagged(policytest.IP("192.0.2.1", "192.0.2.2", protoTCP, tcp), 0x8100), 1500, 2, 2, 18 + 20 + 32},
		{"SCTP", policytest.IP("192.0.2.1", "192.0.2.2", protoSCTP, append(policytest.SCTP(1, 2), payload...)), 0xffff, 5, 5, 0},
		{"a tunnel, raw", policytest.IP("192.0.2.1", "192.0.2.2", 47, payload), 1000, 0, 4, 0},
	} {
		for _, h := range hooks[1:] {
			bits, packets := r.taken(h, c.frame, skb{GSOSize: c.size, GSOSegs: c.segments})
			want := uint64(len(c.frame)+int(c.want-1)*c.repeated) * 8 / 1000
			if packets != c.want || bits < want || bits > want+1 {
				t.Errorf("%s, %s: %d packets of %d kbit, want %d of %d", h.name, c.name, packets, bits, c.want, want)
			}
		}
	}
}

// taken is how many seconds a frame fills the two buckets of its direction, which are empty before.
func (r *runner) taken(h hook, frame []byte, as skb) (first, second uint64) {
	r.t.Helper()
	const nanoseconds = 1e9
	for {
		must(r.t, r.k.Buckets.Put(uint32(1), filterBucketSet{}))
		before, err := monotonic()
		must(r.t, err)
		_, err = h.program(r.k).Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: as})
		must(r.t, err)
		after, err := monotonic()
		must(r.t, err)
		var b filterBucketSet
		must(r.t, r.k.Buckets.Lookup(uint32(1), &b))
		if after-before < nanoseconds/2 { // else the machine was busy
			return (b.Empty[h.dir][0] - before) / nanoseconds, (b.Empty[h.dir][1] - before) / nanoseconds
		}
	}
}

// skb is struct __sk_buff of linux/bpf.h, as far as BPF_PROG_TEST_RUN takes it.
type skb struct {
	_       [41]uint32
	GSOSegs uint32
	_       [2]uint32 // sk, a pointer
	GSOSize uint32
	_       [3]uint32 // tstamp_type, hwtstamp
}
