package xdp

import (
	"encoding/binary"
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

// runner runs frames through the programs under a policy, without a device.
type runner struct {
	t testing.TB
	k *filterObjects
}

// hook is a program, the direction of what it judges, and what it returns.
type hook struct {
	name       string
	program    func(*filterObjects) *ebpf.Program
	dir        policy.Direction
	pass, drop uint32
}

var hooks = []hook{
	{"xdp", func(k *filterObjects) *ebpf.Program { return k.VethwallXdp }, policy.Egress, xdpPass, xdpDrop},
	{"sent", func(k *filterObjects) *ebpf.Program { return k.VethwallSent }, policy.Egress, tcPass, tcDrop},
	{"received", func(k *filterObjects) *ebpf.Program { return k.VethwallReceived }, policy.Ingress, tcPass, tcDrop},
}

const (
	xdpDrop = 1
	xdpPass = 2
	tcDrop  = 2
	tcPass  = 0xffffffff // -1
)

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

// run gives the verdict on a frame, by what was counted, and fails if not just one thing was counted. It names the rule
// that s has in the slot.
func (r *runner) run(h hook, s policy.Stack, frame []byte) policy.Verdict {
	r.t.Helper()
	zero := make([]filterCounterBlock, ebpf.MustPossibleCPU())
	must(r.t, r.k.Counters.Put(uint32(0), zero))
	action, err := h.program(r.k).Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)})
	must(r.t, err)
	var blocks []filterCounterBlock
	must(r.t, r.k.Counters.Lookup(uint32(0), &blocks))
	found := 0
	v := policy.Verdict{Source: -1, Rule: -1}
	for _, b := range blocks {
		for dir := range policy.Direction(2) {
			for i, c := range b.Reason[dir] {
				if c.Packets > 0 {
					v.Reason, found = policy.Reason(i), found+int(c.Packets)
					r.checkBytes(c.Bytes, frame)
					if dir != h.dir {
						r.t.Fatalf("counted in direction %s, want %s", dir, h.dir)
					}
				}
			}
			for i, c := range b.Rule[dir] {
				if c.Packets > 0 {
					v.Reason, found = policy.ByRule, found+int(c.Packets)
					v.Source, v.Rule = ruleIn(s, dir, i)
					r.checkBytes(c.Bytes, frame)
				}
			}
		}
	}
	if found != 1 {
		r.t.Fatalf("%d packets were counted, want 1", found)
	}
	if passed := action == h.pass; passed != (v.Reason == policy.Pass) || !passed && action != h.drop {
		r.t.Fatalf("action %d with reason %s", action, v.Reason)
	}
	return v
}

func (r *runner) checkBytes(got uint64, frame []byte) {
	if got != uint64(len(frame)) {
		r.t.Fatalf("%d bytes were counted, want %d", got, len(frame))
	}
}

// TestDifferential draws policies and frames and compares the programs with the specification, each frame alone: what
// conversations make of it is TestDialogues' subject. A failure prints the seed; VETHWALL_SEED runs it again.
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
		draw := policytest.Draw{Verbs: drawnVerbs[rnd.IntN(len(drawnVerbs))], MaxRules: 8}
		stack := policy.Stack{{Origin: "labels", Policy: draw.Policy(rnd)}}
		if rnd.IntN(4) == 0 {
			stack = append(stack, policy.Source{Origin: "image", Policy: draw.Policy(rnd)})
		}
		tables, err := Compile(stack)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		tables.Stateful = false
		r.use(tables)
		for i := range frames {
			h := hooks[i%len(hooks)]
			frame := policytest.Frame(rnd, stack[0].Policy)
			if !tcRuns(frame) {
				h = hooks[0]
			}
			want := stack.Verdict(h.dir, frame)
			if got := r.run(h, stack, frame); got != want {
				t.Fatalf("seed %d: %s\n%s frame %x\nprogram says %v\nspecification says %v",
					seed, describe(stack), h.name, frame, got, want)
			}
			counts[want.Reason]++
		}
	}
	t.Logf("%d pairs: %v", policies*frames, counts)
	for _, want := range []policy.Reason{policy.Pass, policy.ByRule, policy.ByDefault, policy.Truncated, policy.BadHeader, policy.TooManyTags,
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

// tcRuns reports whether BPF_PROG_TEST_RUN takes a frame for tc: not an empty packet, nor a cut IP header.
func tcRuns(frame []byte) bool {
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		return len(frame) >= 14+20
	case 0x86dd:
		return len(frame) >= 14+40
	}
	return len(frame) > 14
}

var drawnVerbs = [][]policy.Verb{
	{policy.Drop}, {policy.Drop, policy.Except}, {policy.Allow}, {policy.Drop, policy.Except, policy.Allow},
}

// ruleIn is the rule whose counter slot it is.
func ruleIn(s policy.Stack, dir policy.Direction, slot int) (source, rule int) {
	for i, from := range s {
		for j, r := range from.Policy.Rules {
			if r.Verb != policy.Drop || !r.In[dir] {
				continue
			}
			if slot == 0 {
				return i, j
			}
			slot--
		}
	}
	panic("a slot of no rule")
}

func TestQuarantineAndNoPolicy(t *testing.T) {
	r := newRunner(t)
	good := policytest.IP("192.0.2.1", "192.0.2.2", 17, policytest.UDP(1000, 53))
	want := func(when string, want policy.Reason) {
		t.Helper()
		for _, h := range hooks {
			for _, frame := range [][]byte{good, policytest.ARP()} {
				if got := r.run(h, nil, frame); got.Reason != want {
					t.Errorf("%s: %s says %s, want %s", when, h.name, got.Reason, want)
				}
			}
		}
	}
	want("without a policy", policy.NoPolicy)
	r.use(Closed())
	want("closed", policy.Quarantine)
	open, err := Compile(policy.Stack{{Origin: "labels"}})
	must(t, err)
	r.use(open)
	want("without rules", policy.Pass)
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
