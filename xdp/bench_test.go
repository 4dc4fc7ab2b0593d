package xdp

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/vethwall/vethwall/policy"
)

const (
	// rounds is odd, so that the median is one of them.
	rounds = 11
	// repeat makes a run some milliseconds long: the kernel's clock is read once, and the mean is whole ns.
	repeat = 100_000
)

// BenchmarkPackets measures the time of a packet by BPF_PROG_TEST_RUN. All cases take turns, rounds times,
// so that what else the machine does meets all alike. docs/benchmarks.md says what the cases are.
func BenchmarkPackets(b *testing.B) {
	needPrivileges(b)
	l := newLab(b)
	l.addReferences()
	for _, k := range kinds {
		for _, n := range sizes {
			l.addRules(k.name, n)
		}
	}
	l.addTries("cidrs4", false)
	l.addTries("cidrs6", true)
	l.load()
	for _, c := range l.cases {
		if c.shuffled { // on the same packets as fixed
			l.check(c)
		}
	}
	for range rounds {
		for _, c := range l.cases {
			c.ns = append(c.ns, l.measure(c))
		}
	}
	l.report()
	publish(b, "packets", l.raw(), nil)
}

// benchCase is one program under one policy, on one packet or on many.
type benchCase struct {
	name     string
	rules    int           // of the policy or entries of the trie; part of the name, where it is not 0
	program  *ebpf.Program // nil: ours
	tables   uint16        // the policy, where it is ours
	proto    uint8
	flows    []flow
	shuffled bool
	action   uint32
	// answered: each flow is answered before anything is measured.
	answered bool
	// The quotients of this case's time and theirs are reported, round by round.
	oneRule, trie string
	ns            []float64
}

func (c *benchCase) v6() bool { return c.flows[0].peer.Is6() }

// lab holds what the cases share.
type lab struct {
	b        *testing.B
	shuffler *shuffler
	inFront  map[front]*ebpf.Program
	tables   []*Tables // of policies, from 1 on
	k        *filterObjects
	cases    []*benchCase
}

type front struct {
	program *ebpf.Program
	v6      bool
}

func newLab(b *testing.B) *lab {
	return &lab{b: b, shuffler: newShuffler(b), inFront: map[front]*ebpf.Program{}, k: &filterObjects{}}
}

// add adds c on its first flow alone and on all.
func (l *lab) add(c benchCase) {
	fixed, shuffled := c, c
	fixed.name += "/fixed"
	shuffled.name += "/shuffled"
	shuffled.shuffled = true
	for _, c := range []*benchCase{&fixed, &shuffled} {
		way := c.name[strings.LastIndex(c.name, "/"):]
		if c.oneRule != "" {
			c.oneRule += way
		}
		if c.trie != "" {
			c.trie += way
		}
		l.cases = append(l.cases, c)
	}
}

// addReferences adds the empty program, the article's, and ours under the same rule as the article's and under none.
func (l *lab) addReferences() {
	w := draw("ports", 1)
	w6 := draw("addresses6", 1)
	empty, article := emptyProgram(l.b), articleProgram(l.b)
	none := l.policy(nil)
	udp := l.policy([]policy.Rule{dropRule(policy.Match{What: policy.What{Kind: policy.Proto, Proto: protoUDP}})})
	l.add(benchCase{name: "empty", program: empty, proto: protoUDP, flows: w.hits, action: xdpPass})
	l.add(benchCase{name: "empty6", program: empty, proto: protoUDP, flows: w6.hits, action: xdpPass})
	l.add(benchCase{name: "udp.o/hit", program: article, proto: protoUDP, flows: w.hits, action: xdpDrop})
	l.add(benchCase{name: "udp.o/miss", program: article, proto: protoTCP, flows: w.hits, action: xdpPass})
	l.add(benchCase{name: "vethwall/none", tables: none, proto: protoUDP, flows: w.hits, action: xdpPass})
	l.add(benchCase{name: "vethwall/udp/hit", tables: udp, proto: protoUDP, flows: w.hits, action: xdpDrop})
	l.add(benchCase{name: "vethwall/udp/miss", tables: udp, proto: protoTCP, flows: w.hits, action: xdpPass})
	talks := l.conversations()
	l.add(benchCase{name: "vethwall/conversation/answered", tables: talks, proto: protoUDP, flows: w.hits, action: xdpPass, answered: true})
	l.add(benchCase{name: "vethwall/conversation/default", tables: talks, proto: protoTCP, flows: w.hits, action: xdpDrop})
}

// conversations is a policy under which the container may ask over UDP, and nobody else may anything.
func (l *lab) conversations() uint16 {
	udp := policy.Rule{Verb: policy.Allow, In: [2]bool{true, false}, Match: policy.Match{What: policy.What{Kind: policy.Proto, Proto: protoUDP}}}
	t, err := Compile(policy.Stack{{Origin: "labels", Policy: policy.Policy{
		Rules: []policy.Rule{udp}, Default: [2]policy.Default{policy.Ingress: policy.DefaultDrop},
	}}})
	if err != nil {
		l.b.Fatal(err)
	}
	l.tables = append(l.tables, t)
	return uint16(len(l.tables))
}

// answer is the frame that answers an IPv4 one without options.
func answer(frame []byte) []byte {
	out := slices.Clone(frame)
	copy(out[26:30], frame[30:34])
	copy(out[30:34], frame[26:30])
	copy(out[34:36], frame[36:38])
	copy(out[36:38], frame[34:36])
	return out
}

func (l *lab) addRules(kind string, n int) {
	w := draw(kind, n)
	name := func(n int) string { return fmt.Sprintf("vethwall/%s/%d", kind, n) }
	c := benchCase{rules: n, tables: l.policy(w.rules), proto: protoUDP}
	for _, p := range w.packets() {
		c.name, c.flows, c.action = name(n)+p.name, p.flows, p.action
		c.oneRule = name(1) + p.name
		if strings.HasPrefix(kind, "cidrs") {
			c.trie = fmt.Sprintf("trie/%s/%d", kind, n) + p.name
		}
		l.add(c)
	}
}

func (l *lab) addTries(kind string, v6 bool) {
	for _, n := range sizes {
		w := draw(kind, n)
		c := benchCase{rules: n, program: trieProgram(l.b, w.prefixes, v6), proto: protoUDP}
		for _, p := range w.packets() {
			c.name, c.flows, c.action = fmt.Sprintf("trie/%s/%d", kind, n)+p.name, p.flows, p.action
			l.add(c)
		}
	}
}

type packets struct {
	name   string
	flows  []flow
	action uint32
}

func (w workload) packets() []packets {
	return []packets{{"/hit", w.hits, xdpDrop}, {"/miss", w.misses, xdpPass}}
}

// policy keeps the compiled rules and returns the number that their policy will have.
func (l *lab) policy(rules []policy.Rule) uint16 {
	t, err := compiled(rules)
	if err != nil {
		l.b.Fatal(err)
	}
	l.tables = append(l.tables, t)
	return uint16(len(l.tables))
}

// load loads our program and all policies beside each other, so that a change between two cases is a
// write to the devices, as in the agent.
func (l *lab) load() {
	spec, err := loadFilter()
	if err != nil {
		l.b.Fatal(err)
	}
	nodes := []filterNode{{}}
	policies := []filterPolicy{{}}
	for _, t := range l.tables {
		p, own := t.place(uint32(len(nodes)))
		policies, nodes = append(policies, p), append(nodes, own...)
	}
	spec.Maps["nodes"].MaxEntries = uint32(len(nodes))
	if err := spec.LoadAndAssign(l.k, nil); err != nil {
		l.b.Fatal(err)
	}
	l.b.Cleanup(func() { l.k.Close() })
	newMemory(&runner{l.b, l.k})
	for i, p := range policies {
		if err := l.k.Policies.Put(uint32(i), p); err != nil {
			l.b.Fatal(err)
		}
	}
	for i, n := range nodes {
		if err := l.k.Nodes.Put(uint32(i), n); err != nil {
			l.b.Fatal(err)
		}
	}
	for _, c := range l.cases {
		if c.program == nil {
			c.program = l.k.VethwallXdp
		}
		if f := (front{c.program, c.v6()}); c.shuffled && l.inFront[f] == nil {
			l.inFront[f] = l.shuffler.inFrontOf(l.b, c.program, c.v6())
		}
	}
}

// use makes what c needs the state of the maps.
func (l *lab) use(c *benchCase) {
	if err := l.k.Devices.Put(uint32(loIndex), filterDevice{Ifindex: loIndex, Policy: c.tables}); err != nil {
		l.b.Fatal(err)
	}
	if c.shuffled {
		l.shuffler.use(l.b, c.flows)
	}
}

// check runs each flow once and fails unless the program does what it is expected to do: figures of a
// program that is wrong are worth nothing.
func (l *lab) check(c *benchCase) {
	l.use(c)
	for _, f := range c.flows {
		got, err := c.program.Run(&ebpf.RunOptions{Data: f.frame(c.proto)})
		if err != nil {
			l.b.Fatal(err)
		}
		if got != c.action {
			l.b.Fatalf("%s: action %d for %v, want %d", c.name, got, f, c.action)
		}
		if c.answered {
			if got, err := l.k.VethwallReceived.Run(&ebpf.RunOptions{Data: answer(f.frame(c.proto))}); err != nil || got != tcPass {
				l.b.Fatalf("%s: answer of %v: action %d, %v", c.name, f, got, err)
			}
		}
	}
}

// measure returns the mean time of repeat packets in ns.
func (l *lab) measure(c *benchCase) float64 {
	l.use(c)
	program := c.program
	if c.shuffled {
		program = l.inFront[front{c.program, c.v6()}]
	}
	action, mean, err := program.Benchmark(c.flows[0].frame(c.proto), repeat, nil)
	if err != nil {
		l.b.Fatal(err)
	}
	if action != c.action {
		l.b.Fatalf("%s: action %d, want %d", c.name, action, c.action)
	}
	return float64(mean.Nanoseconds())
}

// report prints each case as a benchmark: the median of its rounds, the least and the most, and medians of
// the quotients with the case of one rule and with a trie.
func (l *lab) report() {
	byName := map[string]*benchCase{}
	for _, c := range l.cases {
		byName[c.name] = c
	}
	for _, c := range l.cases {
		l.b.Run(c.name, func(b *testing.B) {
			b.ReportMetric(0, "ns/op") // not printed: the loop of this benchmark is empty
			b.ReportMetric(median(c.ns), "ns/pkt")
			b.ReportMetric(slices.Min(c.ns), "min-ns")
			b.ReportMetric(slices.Max(c.ns), "max-ns")
			for unit, other := range map[string]string{"x-one-rule": c.oneRule, "x-trie": c.trie} {
				if other == "" || other == c.name {
					continue
				}
				var quotients []float64
				for i, ns := range byName[other].ns {
					quotients = append(quotients, c.ns[i]/ns)
				}
				b.ReportMetric(median(quotients), unit)
			}
		})
	}
}

func (l *lab) raw() string {
	var out strings.Builder
	l.table(&out)
	fmt.Fprintf(&out, "\n%-40s  ns in each of %d rounds\n", "", rounds)
	for _, c := range l.cases {
		fmt.Fprintf(&out, "%-40s", c.name)
		for _, ns := range c.ns {
			fmt.Fprintf(&out, " %4.0f", ns)
		}
		fmt.Fprintln(&out)
	}
	return out.String()
}

// table writes the medians, a row for the cases that differ only in the number of rules.
func (l *lab) table(out *strings.Builder) {
	var rows []string
	medians := map[string]string{}
	for _, c := range l.cases {
		row := strings.Replace(c.name, fmt.Sprintf("/%d/", c.rules), "/", 1)
		if !slices.Contains(rows, row) {
			rows = append(rows, row)
		}
		medians[row] += fmt.Sprintf(" %.0f |", median(c.ns))
	}
	fmt.Fprintln(out, "| ns a packet | 1 | 10 | 100 | 1,000 | 10,000 |\n|---|--:|--:|--:|--:|--:|")
	for _, row := range rows {
		fmt.Fprintf(out, "| %s |%s\n", row, medians[row])
	}
}

// median of an odd number of figures.
func median(ns []float64) float64 {
	return slices.Sorted(slices.Values(ns))[len(ns)/2]
}

// BenchmarkCompile measures what a new policy costs user space, and how much memory it takes in the kernel.
func BenchmarkCompile(b *testing.B) {
	for _, k := range kinds {
		for _, n := range sizes {
			b.Run(fmt.Sprintf("%s/%d", k.name, n), func(b *testing.B) {
				rules := draw(k.name, n).rules
				var t *Tables
				for b.Loop() {
					var err error
					if t, err = compiled(rules); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(len(t.nodes)), "nodes")
				b.ReportMetric(float64(len(t.nodes)*binary.Size(filterNode{}))/float64(n), "B/rule")
			})
		}
	}
}
