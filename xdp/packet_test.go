package xdp

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// loIndex is the device that BPF_PROG_TEST_RUN pretends a frame came from. Nothing is attached to it.
const loIndex = 1

// runner runs frames through the XDP program under a policy, without a device.
type runner struct {
	t testing.TB
	k *filterObjects
}

func newRunner(t testing.TB) *runner {
	t.Helper()
	needPrivileges(t)
	k := &filterObjects{}
	if err := loadFilterObjects(k, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return &runner{t, k}
}

// use puts the tables in place as the policy of loIndex, at the beginning of the nodes.
func (r *runner) use(t *Tables) {
	r.t.Helper()
	p, nodes := t.place(1)
	for i, n := range nodes {
		if err := r.k.Nodes.Put(p.FirstNode+uint32(i), n); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := r.k.Policies.Put(uint32(1), p); err != nil {
		r.t.Fatal(err)
	}
	if err := r.k.Devices.Put(uint32(loIndex), filterDevice{Ifindex: loIndex, Policy: 1}); err != nil {
		r.t.Fatal(err)
	}
}

// run gives the verdict on a frame, by what was counted, and fails if not just one thing was counted.
func (r *runner) run(frame []byte) (reason policy.Reason, slot int) {
	r.t.Helper()
	zero := make([]filterCounterBlock, ebpf.MustPossibleCPU())
	if err := r.k.Counters.Put(uint32(0), zero); err != nil {
		r.t.Fatal(err)
	}
	action, err := r.k.VethwallXdp.Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)})
	if err != nil {
		r.t.Fatal(err)
	}
	var blocks []filterCounterBlock
	if err := r.k.Counters.Lookup(uint32(0), &blocks); err != nil {
		r.t.Fatal(err)
	}
	found := 0
	for _, b := range blocks {
		for i, c := range b.Reason[policy.Egress] {
			if c.Packets > 0 {
				reason, slot, found = policy.Reason(i), -1, found+int(c.Packets)
				r.checkBytes(c.Bytes, frame)
			}
		}
		for _, c := range b.Reason[policy.Ingress] {
			found += int(c.Packets)
		}
		for i, c := range b.Rule {
			if c.Packets > 0 {
				reason, slot, found = policy.ByRule, i, found+int(c.Packets)
				r.checkBytes(c.Bytes, frame)
			}
		}
	}
	if found != 1 {
		r.t.Fatalf("%d packets were counted, want 1", found)
	}
	if passed := action == xdpPass; passed != (reason == policy.Pass) || !passed && action != xdpDrop {
		r.t.Fatalf("action %d with reason %s", action, reason)
	}
	return reason, slot
}

func (r *runner) checkBytes(got uint64, frame []byte) {
	if got != uint64(len(frame)) {
		r.t.Fatalf("%d bytes were counted, want %d", got, len(frame))
	}
}

const (
	xdpDrop = 1
	xdpPass = 2
)

// TestDifferential draws policies and frames and compares the program with the specification. A failure
// prints the seed; VETHWALL_SEED runs it again.
func TestDifferential(t *testing.T) {
	r := newRunner(t)
	rnd, seed := seeded(t)
	const frames = 25
	policies := 4000
	if os.Getenv("VETHWALL_LONG") != "" {
		policies *= 10
	}
	counts := map[policy.Reason]int{}
	for range policies {
		stack := policy.Stack{{Origin: "labels", Policy: policytest.Policy(rnd)}}
		if rnd.IntN(4) == 0 {
			stack = append(stack, policy.Source{Origin: "image", Policy: policytest.Policy(rnd)})
		}
		tables, err := Compile(stack)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		r.use(tables)
		slots := dropSlots(stack)
		for range frames {
			frame := policytest.Frame(rnd, stack[0].Policy)
			want := stack.Verdict(policy.Egress, frame)
			reason, slot := r.run(frame)
			wantSlot := -1
			if want.Reason == policy.ByRule {
				wantSlot = slots[[2]int{want.Source, want.Rule}]
			}
			if reason != want.Reason || slot != wantSlot {
				t.Fatalf("seed %d: %s\nframe %x\nprogram says %s, slot %d\nspecification says %s, slot %d",
					seed, describe(stack), frame, reason, slot, want.Reason, wantSlot)
			}
			counts[reason]++
		}
	}
	t.Logf("%d pairs: %v", policies*frames, counts)
	for _, want := range []policy.Reason{policy.Pass, policy.ByRule, policy.Truncated, policy.BadHeader, policy.TooManyTags,
		policy.TooManyHeaders, policy.Fragment, policy.BadQuote} {
		if counts[want] == 0 {
			t.Errorf("no frame was drawn that gives %s", want)
		}
	}
}

// seeded is a source of random numbers that VETHWALL_SEED brings back.
func seeded(t *testing.T) (rnd *rand.Rand, seed uint64) {
	t.Helper()
	seed = rand.Uint64()
	if s := os.Getenv("VETHWALL_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("VETHWALL_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0)), seed
}

func describe(s policy.Stack) (out string) {
	for _, source := range s {
		out += fmt.Sprintf("%s: %s\n", source.Origin, source.Policy.Text())
	}
	return out
}

// dropSlots gives the counter slot of each drop rule, by source and rule.
func dropSlots(s policy.Stack) map[[2]int]int {
	out := map[[2]int]int{}
	for i, source := range s {
		for j, r := range source.Policy.Rules {
			if r.Verb == policy.Drop && r.In[policy.Egress] {
				out[[2]int{i, j}] = min(len(out), ruleSlots-1)
			}
		}
	}
	return out
}

func TestQuarantineAndNoPolicy(t *testing.T) {
	r := newRunner(t)
	good := policytest.IP("192.0.2.1", "192.0.2.2", 17, policytest.UDP(1000, 53))
	for _, frame := range [][]byte{good, policytest.ARP()} {
		if reason, _ := r.run(frame); reason != policy.NoPolicy {
			t.Errorf("without a policy: %s, want no-policy", reason)
		}
	}
	r.use(Closed())
	for _, frame := range [][]byte{good, policytest.ARP()} {
		if reason, _ := r.run(frame); reason != policy.Quarantine {
			t.Errorf("closed: %s, want quarantine", reason)
		}
	}
	open, err := Compile(policy.Stack{{Origin: "labels"}})
	if err != nil {
		t.Fatal(err)
	}
	r.use(open)
	for _, frame := range [][]byte{good, policytest.ARP()} {
		if reason, _ := r.run(frame); reason != policy.Pass {
			t.Errorf("without rules: %s, want pass", reason)
		}
	}
}

// TestReasonsAgree holds enum reason of bpf/reason.h against policy.Reason.
func TestReasonsAgree(t *testing.T) {
	src, err := os.ReadFile("../bpf/reason.h")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`(?m)^\tREASON_(\w+),`).FindAllStringSubmatch(string(src), -1)
	if len(names) != int(policy.NumReasons) {
		t.Fatalf("bpf/reason.h has %d reasons, policy %d", len(names), policy.NumReasons)
	}
	for i, m := range names {
		want := policy.Reason(i).String()
		if got := dashed(m[1]); got != want {
			t.Errorf("reason %d is %s in C and %s in Go", i, got, want)
		}
	}
}

func dashed(s string) string {
	out := []byte(s)
	for i, b := range out {
		if b == '_' {
			out[i] = '-'
		} else {
			out[i] = b | 0x20
		}
	}
	return string(out)
}

func needPrivileges(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}
