package xdp

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"go4.org/netipx"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// loIndex is the device that BPF_PROG_TEST_RUN pretends a frame came from. Nothing is attached to it.
const loIndex = 1

// runner runs frames through the programs under a policy, without a device.
type runner struct {
	t testing.TB
	k *filterObjects
	// from is the port by which what is received has come in.
	from int
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
	return &runner{t: t, k: k}
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
	o := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	if h.dir == policy.Ingress {
		o.Context = cameIn(r.from)
	}
	action, err := h.program(r.k).Run(o)
	must(r.t, err)
	var blocks []filterCounterBlock
	must(r.t, r.k.Counters.Lookup(uint32(0), &blocks))
	found := 0
	v := policy.Verdict{Source: -1, Rule: -1}
	count := func(packets, bytes uint64, is policy.Verdict) {
		if packets > 0 {
			v, found = is, found+int(packets)
			r.checkBytes(bytes, frame)
		}
	}
	for _, b := range blocks {
		for dir := range policy.Direction(2) {
			before := found
			for i := range b.Reason[dir] {
				is := policy.Verdict{Reason: policy.Reason(i), Source: -1, Rule: -1}
				count(b.Reason[dir][i].Packets, b.Reason[dir][i].Bytes, is)
				is.Audited = true
				count(b.Audited[dir][i].Packets, b.Audited[dir][i].Bytes, is)
			}
			if found > before && dir != h.dir {
				r.t.Fatalf("counted in direction %s, want %s", dir, h.dir)
			}
			for i, c := range b.Rule[dir] {
				if c.Packets > 0 {
					count(c.Packets, c.Bytes, ruleIn(s, dir, i))
				}
			}
		}
	}
	if found != 1 {
		r.t.Fatalf("%d packets were counted, want 1", found)
	}
	if passed := action == h.pass; passed != v.Passes() || !passed && action != h.drop {
		r.t.Fatalf("action %d with reason %s", action, v.Reason)
	}
	return v
}

// is makes id the identity of loIndex; nil for none.
func (r *runner) is(id *policy.Identity) {
	r.t.Helper()
	var in filterIdentity
	if id != nil {
		own, err := CompileOwn(id.Own)
		must(r.t, err)
		const first = 20_000 // far behind every policy's nodes
		p, nodes := own.place(first)
		for i, n := range nodes {
			must(r.t, r.k.Nodes.Put(uint32(first+i), n))
		}
		must(r.t, r.k.Policies.Put(uint32(2), p))
		in = filterIdentity{Mac: id.MAC, Own: 2}
	}
	must(r.t, r.k.Identities.Put(uint32(0), in))
}

// cameIn is the part of struct __sk_buff, up to ingress_ifindex, that says by which device a packet has come in.
func cameIn(ifindex int) [10]uint32 { return [10]uint32{9: uint32(ifindex)} }

// around puts n around loIndex; nil for nothing that is known.
func (r *runner) around(n *policy.Neighborhood) {
	r.t.Helper()
	before, err := newNeighbors(r.k.Neighbors)
	must(r.t, err)
	for key := range before.entries {
		before.remove(key)
	}
	if n == nil {
		must(r.t, r.k.Bridges.Put(uint32(0), uint32(0)))
		return
	}
	bridge := uint32(n.Bridge)
	must(r.t, r.k.Bridges.Put(uint32(0), bridge))
	for a, port := range n.Port {
		must(r.t, r.k.Neighbors.Put(addressKey(bridge, a), uint32(port)))
	}
	if n.RoutesBack {
		must(r.t, r.k.Neighbors.Put(backKey(bridge), bridge))
	}
	for _, port := range n.Known {
		must(r.t, r.k.Neighbors.Put(deviceKey(uint32(port)), bridge))
	}
	for _, device := range n.Elsewhere {
		must(r.t, r.k.Neighbors.Put(deviceKey(uint32(device)), uint32(device)))
	}
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
	counts, audited := map[policy.Reason]int{}, 0
	for range policies {
		draw := policytest.Draw{Verbs: drawnVerbs[rnd.IntN(len(drawnVerbs))], MaxRules: 8}
		stack := policy.Stack{{Origin: "labels", Policy: draw.Policy(rnd)}}
		if rnd.IntN(4) == 0 {
			stack = append(stack, policy.Source{Origin: "image", Policy: draw.Policy(rnd)})
		}
		for i := range stack {
			stack[i].Policy.Mode = []policy.Mode{policy.Enforce, policy.Enforce, policy.Enforce, policy.Audit}[rnd.IntN(4)]
			stack[i].Policy.Log = policy.Log(rnd.IntN(3))
		}
		id, n := drawnIdentity(rnd), drawnNeighborhood(rnd)
		tables, err := Compile(stack)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		tables.flags &^= flagStateful
		r.use(tables)
		r.is(id)
		r.around(n)
		for i := range frames {
			h := hooks[i%len(hooks)]
			frame := policytest.Frame(rnd, stack[0].Policy)
			if !tcRuns(frame) {
				h = hooks[0]
			}
			r.from = drawnPorts[rnd.IntN(len(drawnPorts))]
			want := alone(stack, id, n, h.dir, frame, r.from)
			if got := r.run(h, stack, frame); got != want {
				t.Fatalf("seed %d: %s%v %v\n%s frame %x from %d\nprogram says %v\nspecification says %v",
					seed, describe(stack), id, n, h.name, frame, r.from, got, want)
			}
			counts[want.Reason]++
			if want.Audited {
				audited++
			}
		}
	}
	t.Logf("%d pairs: %v, %d of them audited", policies*frames, counts, audited)
	for _, want := range []policy.Reason{policy.Pass, policy.ByRule, policy.ByDefault, policy.Truncated, policy.BadHeader, policy.TooManyTags,
		policy.TooManyHeaders, policy.Fragment, policy.BadQuote, policy.Spoof, policy.NeighborSpoof} {
		if counts[want] == 0 {
			t.Errorf("no frame was drawn that gives %s", want)
		}
	}
}

// alone is the specification's verdict on a frame without conversations, id and n being nil where addresses are not judged.
func alone(s policy.Stack, id *policy.Identity, n *policy.Neighborhood, dir policy.Direction, frame []byte, from int) policy.Verdict {
	why := policy.Pass
	switch {
	case id != nil && dir == policy.Egress:
		why = id.Judge(frame)
	case n != nil && dir == policy.Ingress:
		why = n.Judge(frame, from)
	}
	if why != policy.Pass {
		return policy.Verdict{Reason: why, Source: -1, Rule: -1, Audited: len(s) > 0 && s.Audited(0)}
	}
	return s.Verdict(dir, frame)
}

// drawnPorts are where frames come in: 0 is the host, 7 the bridge, 8 to 10 are ports of it, of which the last may be new, and 11 is
// something else.
var drawnPorts = []int{0, 7, 8, 9, 10, 11}

// drawnNeighborhood is nil for one policy in four. It has addresses that frames are drawn with.
func drawnNeighborhood(rnd *rand.Rand) *policy.Neighborhood {
	if rnd.IntN(4) == 0 {
		return nil
	}
	n := &policy.Neighborhood{Bridge: 7, Port: map[netip.Addr]int{}, Known: []int{8, 9}, Elsewhere: []int{11}, RoutesBack: rnd.IntN(4) == 0}
	if rnd.IntN(2) == 0 {
		n.Known = append(n.Known, 10)
	}
	for _, a := range policytest.Addresses() {
		if rnd.IntN(2) == 0 {
			n.Port[a] = drawnPorts[rnd.IntN(len(drawnPorts))]
		}
	}
	return n
}

// drawnIdentity is nil for one policy in two; most of the frames drawn are of its MAC.
func drawnIdentity(rnd *rand.Rand) *policy.Identity {
	if rnd.IntN(2) == 0 {
		return nil
	}
	id := &policy.Identity{MAC: [6]byte{0, 0, 0x5e, 0, 0x53, 1}}
	if rnd.IntN(8) == 0 {
		id.MAC[rnd.IntN(6)] ^= 1 << rnd.IntN(8)
	}
	for _, own := range []string{"0.0.0.0/0", "192.0.2.0/24", "192.0.2.1/32", "198.51.100.70/32", "::/0", "2001:db8::/32", "2001:db8::7/128", "fe80::/10"} {
		if rnd.IntN(3) == 0 {
			id.Own = append(id.Own, netipx.RangeOfPrefix(netip.MustParsePrefix(own)))
		}
	}
	return id
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

// ruleIn is the verdict of the rule or limit whose counter slot it is.
func ruleIn(s policy.Stack, dir policy.Direction, slot int) policy.Verdict {
	for _, verb := range []policy.Verb{policy.Limit, policy.Drop} {
		for i, from := range s {
			for j, r := range from.Policy.Rules {
				if r.Verb != verb || !r.In[dir] {
					continue
				}
				if slot == 0 {
					reason := map[policy.Verb]policy.Reason{policy.Limit: policy.LimitReached, policy.Drop: policy.ByRule}[verb]
					return policy.Verdict{Reason: reason, Source: i, Rule: j, Audited: s.Audited(i)}
				}
				slot--
			}
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
