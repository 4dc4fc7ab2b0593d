package xdp

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vethwall/vethwall/policy"
)

// add adds c on its first flow alone and on all.
func (l *lab) add(c benchCase) {
	l.addOrdered(c, fixed)
	l.addOrdered(c, shuffled)
}

func (l *lab) addOrdered(c benchCase, o order) {
	way := map[order]string{fixed: "/fixed", shuffled: "/shuffled", fresh: "/fresh"}[o]
	c.order = o
	c.name += way
	if c.oneRule != "" {
		c.oneRule += way
	}
	if c.trie != "" {
		c.trie += way
	}
	l.cases = append(l.cases, &c)
}

// addReferences adds the empty program, the article's, ours under the same rule as the article's and under none, and a program that
// knows conversations and nothing else.
func (l *lab) addReferences() {
	w := draw("ports", 1)
	w6 := draw("addresses6", 1)
	empty, article := emptyProgram(l.b), articleProgram(l.b)
	none := filterDevice{Policy: l.policy(compiled(nil))}
	own := filterDevice{Policy: none.Policy, Counters: l.block(true)}
	dropUDP := []policy.Rule{dropRule(policy.Match{What: policy.What{Kind: policy.Proto, Proto: protoUDP}})}
	udp := filterDevice{Policy: l.policy(compiled(dropUDP))}
	quiet := filterDevice{Policy: l.policy(Compile(policy.Stack{{Origin: "labels", Policy: policy.Policy{Rules: dropUDP, Log: policy.LogNone}}}))}
	talks := filterDevice{Policy: l.policy(allowed(w.rules)), Counters: l.block(false)}
	l.add(benchCase{name: "empty", program: empty, proto: protoUDP, flows: w.hits, action: xdpPass})
	l.addOrdered(benchCase{name: "empty", program: empty, proto: protoUDP, flows: w.hits, action: xdpPass}, fresh)
	l.add(benchCase{name: "empty6", program: empty, proto: protoUDP, flows: w6.hits, action: xdpPass})
	l.add(benchCase{name: "udp.o/hit", program: article, proto: protoUDP, flows: w.hits, action: xdpDrop})
	l.add(benchCase{name: "udp.o/miss", program: article, proto: protoTCP, flows: w.hits, action: xdpPass})
	l.add(benchCase{name: "vethwall/none", device: none, proto: protoUDP, flows: w.hits, action: xdpPass})
	l.add(benchCase{name: "vethwall/none, antispoof", device: own, proto: protoUDP, flows: w.hits, action: xdpPass})
	l.add(benchCase{name: "vethwall/udp/hit, no log", device: quiet, proto: protoUDP, flows: w.hits, action: xdpDrop})
	l.add(benchCase{name: "vethwall/udp/hit", device: udp, proto: protoUDP, flows: w.hits, action: xdpDrop})
	l.add(benchCase{name: "vethwall/udp/miss", device: udp, proto: protoTCP, flows: w.hits, action: xdpPass})
	l.add(benchCase{name: "vethwall/established, no antispoof", device: talks, proto: protoUDP, flows: w.hits, action: xdpPass, answered: true})
	l.add(benchCase{name: "bare", program: bareProgram(l.b, w.hits), proto: protoUDP, flows: w.hits, action: xdpPass})
}

func (l *lab) addRules(kind string, n int) {
	w := draw(kind, n)
	name := func(n int) string { return fmt.Sprintf("vethwall/%s/%d", kind, n) }
	c := benchCase{rules: n, device: filterDevice{Policy: l.policy(compiled(w.rules))}, proto: protoUDP}
	for _, p := range w.packets() {
		c.name, c.flows, c.action = name(n)+p.name, p.flows, p.action
		c.oneRule = name(1) + p.name
		c.trie = ""
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

// allowKinds are kinds of rules that allow-lists are made of.
var allowKinds = []string{"ports", "addresses4", "cidrs4", "ports@cidrs4"}

// addAllowed adds packets of conversations that n rules allow, packets that open one, and packets that none allows.
func (l *lab) addAllowed(kind string, n int) {
	w := draw(kind, n)
	id := l.policy(allowed(w.rules))
	for _, p := range []struct {
		name     string
		flows    []flow
		order    order
		action   uint32
		answered bool
	}{
		{"established", w.hits, fixed, xdpPass, true},
		{"established", w.hits, shuffled, xdpPass, true},
		{"new", w.hits, fresh, xdpPass, false},
		{"default", w.misses, fixed, xdpDrop, false},
		{"default", w.misses, shuffled, xdpDrop, false},
	} {
		name := func(n int) string { return fmt.Sprintf("allow/%s/%d/%s", kind, n, p.name) }
		l.addOrdered(benchCase{
			name: name(n), oneRule: name(1), rules: n, device: filterDevice{Policy: id, Counters: l.block(true)}, proto: protoUDP,
			flows: p.flows, action: p.action, answered: p.answered,
		}, p.order)
	}
}

// allowed are the tables for rules as an allow-list of what the container opens.
func allowed(rules []policy.Rule) (*Tables, error) {
	out := slices.Clone(rules)
	for i := range out {
		out[i].Verb, out[i].In = policy.Allow, [2]bool{true, false}
	}
	return Compile(policy.Stack{{Origin: "labels", Policy: policy.Policy{
		Rules: out, Default: [2]policy.Default{policy.Ingress: policy.DefaultDrop},
	}}})
}

const (
	manyContainers    = 1000
	rulesPerContainer = 10
)

// addContainers adds n containers with policies and conversations of their own, of which each sends one packet in turn.
func (l *lab) addContainers(n int) {
	type packets struct {
		flows   []flow
		devices []filterDevice
	}
	var drop, hit, miss packets
	add := func(to *packets, f flow, d filterDevice) {
		d.Ifindex = loIndex
		to.flows, to.devices = append(to.flows, f), append(to.devices, d)
	}
	for i := range n {
		w := drawSeeded(uint64(i), "addresses4", rulesPerContainer)
		block := l.block(true)
		add(&drop, w.hits[0], filterDevice{Policy: l.policy(compiled(w.rules)), Counters: block})
		list := filterDevice{Policy: l.policy(allowed(w.rules)), Counters: block}
		add(&hit, w.hits[0], list)
		add(&miss, w.misses[0], list)
	}
	name := func(n int, what string) string { return fmt.Sprintf("containers/%d/%s", n, what) }
	for _, c := range []struct {
		name string
		packets
		order  order
		action uint32
	}{
		{"drop", drop, shuffled, xdpDrop}, {"established", hit, shuffled, xdpPass},
		{"new", hit, fresh, xdpPass}, {"default", miss, shuffled, xdpDrop},
	} {
		l.addOrdered(benchCase{
			name: name(n, c.name), oneRule: name(1, c.name), rules: n, proto: protoUDP, flows: c.flows, devices: c.devices,
			action: c.action, answered: c.name == "established",
		}, c.order)
	}
	l.addOrdered(benchCase{
		name: name(n, "empty"), rules: n, program: emptyProgram(l.b), proto: protoUDP, flows: hit.flows, devices: hit.devices, action: xdpPass,
	}, shuffled)
}

type packets struct {
	name   string
	flows  []flow
	action uint32
}

func (w workload) packets() []packets {
	return []packets{{"/hit", w.hits, xdpDrop}, {"/miss", w.misses, xdpPass}}
}
