package xdp

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"go4.org/netipx"
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
	for _, kind := range allowKinds {
		for _, n := range sizes {
			l.addAllowed(kind, n)
		}
	}
	for _, n := range []int{1, manyContainers} {
		l.addContainers(n)
	}
	l.load()
	for _, c := range l.cases {
		l.check(c)
	}
	for range rounds {
		for _, c := range l.cases {
			c.ns = append(c.ns, l.measure(c))
		}
	}
	l.report()
	publish(b, "packets", l.raw(), l.sections())
}

// benchCase is one program under one policy, on one packet or on many.
type benchCase struct {
	name    string
	rules   int           // of the policy or entries of the trie; part of the name, where it is not 0
	program *ebpf.Program // nil: ours
	device  filterDevice  // what lo has, where it is ours
	proto   uint8
	flows   []flow
	order   order
	action  uint32
	// answered: each flow is answered before anything is measured.
	answered bool
	// devices has an entry for each flow, where each is another container's.
	devices []filterDevice
	// The quotients of this case's time and theirs are reported, round by round.
	oneRule, trie string
	ns            []float64
}

// order is how the flows of a case follow each other.
type order int

const (
	fixed    order = iota // the first alone
	shuffled              // all, in an order that does not repeat itself
	fresh                 // the same, each packet from another port than those before
)

func (c *benchCase) v6() bool { return c.flows[0].peer.Is6() }

// lab holds what the cases share.
type lab struct {
	b        *testing.B
	shuffler *shuffler
	inFront  map[front]*ebpf.Program
	tables   []*Tables // of policies, from 1 on
	blocks   []bool    // counter blocks with conversations, from 1 on: whether antispoof holds
	own      uint16    // the policy that has the addresses that flows come from
	k        *filterObjects
	cases    []*benchCase
}

func newLab(b *testing.B) *lab {
	l := &lab{b: b, shuffler: newShuffler(b), inFront: map[front]*ebpf.Program{}, k: &filterObjects{}}
	l.own = l.policy(CompileOwn([]netipx.IPRange{
		netipx.MustParseIPRange("192.0.2.1-192.0.2.1"), netipx.MustParseIPRange("2001:db8::1-2001:db8::1"),
	}))
	return l
}

// policy keeps the compiled rules and returns the number that their policy will have.
func (l *lab) policy(t *Tables, err error) uint16 {
	must(l.b, err)
	l.tables = append(l.tables, t)
	return uint16(len(l.tables))
}

// block returns the number of a counter block that will have conversations of its own. Block 0 has none, and no antispoof.
func (l *lab) block(antispoof bool) uint16 {
	l.blocks = append(l.blocks, antispoof)
	return uint16(len(l.blocks))
}

// load loads our program and all policies beside each other, so that a change between two cases is a
// write to the devices, as in the agent.
func (l *lab) load() {
	spec, err := loadFilter()
	must(l.b, err)
	nodes := []filterNode{{}}
	policies := []filterPolicy{{}}
	for _, t := range l.tables {
		p, own := t.place(uint32(len(nodes)))
		policies, nodes = append(policies, p), append(nodes, own...)
	}
	spec.Maps["nodes"].MaxEntries = uint32(len(nodes))
	must(l.b, spec.LoadAndAssign(l.k, nil))
	l.b.Cleanup(func() { l.k.Close() })
	for i, p := range policies {
		must(l.b, l.k.Policies.Put(uint32(i), p))
	}
	for i, n := range nodes {
		must(l.b, l.k.Nodes.Put(uint32(i), n))
	}
	l.makeStates(spec)
	for _, c := range l.cases {
		if c.program == nil {
			c.program = l.k.VethwallXdp
		}
		if f, ok := l.front(c); ok && l.inFront[f] == nil {
			l.inFront[f] = l.shuffler.inFront(l.b, f)
		}
	}
}

// makeStates gives each block tables with its number, many at a time: each waits for the kernel.
func (l *lab) makeStates(spec *ebpf.CollectionSpec) {
	s := &states{objs: l.k, inner: map[string]*ebpf.MapSpec{}}
	for name := range s.outer() {
		s.inner[name] = spec.Maps[name].InnerMap
	}
	errs := make([]error, len(l.blocks))
	var all sync.WaitGroup
	for i, antispoof := range l.blocks {
		id := uint32(i + 1)
		all.Go(func() { errs[i] = (&newTables{ids: []uint32{id}, outer: s.outer(), inner: s.inner}).make() })
		must(l.b, l.k.States.Put(id, filterShared{State: id}))
		if antispoof {
			must(l.b, l.k.Identities.Put(id, filterIdentity{Mac: [6]uint8{0, 0, 0x5e, 0, 0x53, 1}, Own: l.own}))
		}
	}
	all.Wait()
	must(l.b, errors.Join(errs...))
}

// front is what runs c on its packets, where it is on more than one.
func (l *lab) front(c *benchCase) (front, bool) {
	f := front{program: c.program, v6: c.v6(), fresh: c.order == fresh}
	if len(c.devices) > 0 {
		f.turns, f.devices = len(c.devices), l.k.Devices
	}
	return f, c.order != fixed
}

// use makes what c needs the state of the maps.
func (l *lab) use(c *benchCase) {
	c.device.Ifindex = loIndex
	must(l.b, l.k.Devices.Put(uint32(loIndex), c.device))
	if c.order != fixed {
		l.shuffler.use(l.b, c.flows, c.devices)
	}
}

// check runs each flow once and fails unless the program does what it is expected to do: figures of a
// program that is wrong are worth nothing.
func (l *lab) check(c *benchCase) {
	l.use(c)
	flows := c.flows
	if c.order == fixed {
		flows = flows[:1]
	}
	for i, f := range flows {
		if len(c.devices) > 0 {
			must(l.b, l.k.Devices.Put(uint32(loIndex), c.devices[i]))
		}
		got, err := c.program.Run(&ebpf.RunOptions{Data: f.frame(c.proto)})
		must(l.b, err)
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

// answer is the frame that answers an IPv4 one without options.
func answer(frame []byte) []byte {
	out := slices.Clone(frame)
	copy(out[26:30], frame[30:34])
	copy(out[30:34], frame[26:30])
	copy(out[34:36], frame[36:38])
	copy(out[36:38], frame[34:36])
	return out
}

// measure returns the mean time of repeat packets in ns.
func (l *lab) measure(c *benchCase) float64 {
	l.use(c)
	program := c.program
	if f, ok := l.front(c); ok {
		program = l.inFront[f]
	}
	action, mean, err := program.Benchmark(c.flows[0].frame(c.proto), repeat, nil)
	must(l.b, err)
	if action != c.action {
		l.b.Fatalf("%s: action %d, want %d", c.name, action, c.action)
	}
	return float64(mean.Nanoseconds())
}
