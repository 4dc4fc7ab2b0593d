package xdp

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// memory holds the conversations of the runner's device, as maps that can be emptied.
type memory []*ebpf.Map

// newMemory gives the runner's device empty tables, of maxAnswered conversations that have been answered or of as many as are usual.
func newMemory(r *runner, maxAnswered ...uint32) memory {
	r.t.Helper()
	spec, err := loadFilter()
	must(r.t, err)
	var m memory
	for name, outer := range (&states{objs: r.k}).outer() {
		if name == "answered" && len(maxAnswered) > 0 {
			spec.Maps[name].InnerMap.MaxEntries = maxAnswered[0]
		}
		inner, err := ebpf.NewMap(spec.Maps[name].InnerMap)
		must(r.t, err)
		r.t.Cleanup(func() { inner.Close() })
		must(r.t, outer.Put(uint32(1), inner))
		m = append(m, inner)
	}
	mayReclaim(r)
	return m
}

// mayReclaim has the programs make room when next there is none, although they have just done so.
func mayReclaim(r *runner) { must(r.t, r.k.States.Put(uint32(0), filterShared{State: 1, Buckets: 1})) }

func (m memory) forget(t *testing.T) {
	t.Helper()
	for _, inner := range m {
		var key []byte
		for inner.NextKey(nil, &key) == nil {
			must(t, inner.Delete(key))
		}
	}
}

// age makes all that is remembered older. Every value begins with when it was seen, in ns since boot.
func (m memory) age(t *testing.T, by time.Duration) {
	t.Helper()
	for _, inner := range m {
		var key, value []byte
		var keys [][]byte
		for all := inner.Iterate(); all.Next(&key, &value); {
			keys = append(keys, bytes.Clone(key))
		}
		for _, key := range keys {
			must(t, inner.Lookup(key, &value))
			seen := binary.NativeEndian.Uint64(value)
			binary.NativeEndian.PutUint64(value, seen-uint64(by))
			must(t, inner.Update(key, value, ebpf.UpdateExist))
		}
	}
}

// pauses are how long nobody says anything: shorter and longer than each idle time, of which the sums of some are no
// closer to it than a second.
var pauses = []time.Duration{11 * time.Second, 20 * time.Second, 29 * time.Second, 30 * time.Second, 119 * time.Second, 120 * time.Second, 151 * time.Second, 179 * time.Second, 180 * time.Second, 24*time.Hour - time.Second, 24 * time.Hour}

// TestDialogues draws policies and sequences of related packets, both ways, and compares the programs with
// policy.Conversations. Now and then the policy changes in the middle. A failure prints the seed.
func TestDialogues(t *testing.T) {
	r := newRunner(t)
	rnd, seed := seeded(t)
	dialogues := 1500
	if os.Getenv("VETHWALL_LONG") != "" {
		dialogues *= 20
	}
	counts := map[policy.Reason]int{}
	steps, maxAnswered := 0, 0
	var m memory
	for n := range dialogues {
		draw := policytest.Draw{Verbs: []policy.Verb{policy.Drop, policy.Except, policy.Allow, policy.Allow}, MaxRules: 6, OneWay: true}
		stack := draw.Stack(rnd)
		dialogue := policytest.Dialogue(rnd, stack)
		change := -1
		if rnd.IntN(3) == 0 {
			change = rnd.IntN(len(dialogue) + 1)
		}
		want := policy.Conversations{Neighborhood: drawnNeighborhood(rnd)}
		switch n {
		case 0:
			m = newMemory(r)
		case dialogues * 3 / 4: // the others in tables that are soon full
			m, maxAnswered = newMemory(r, 2), 2
		}
		m.forget(t)
		want.MaxAnswered = maxAnswered
		var now time.Duration
		use(t, r, stack)
		r.around(want.Neighborhood)
		for i, step := range dialogue {
			if i == change {
				stack = changed(t, r, stack, draw.Stack(rnd))
			}
			if rnd.IntN(20) == 0 {
				pause := pauses[rnd.IntN(len(pauses))]
				m.age(t, pause)
				now += pause
			}
			h := hooks[2]
			if step.Dir == policy.Egress {
				h = hooks[rnd.IntN(2)]
			}
			if !tcRuns(step.Frame) {
				continue
			}
			// Most of what a peer sends comes in by the same port.
			want.From = drawnPorts[1]
			if rnd.IntN(8) == 0 {
				want.From = drawnPorts[rnd.IntN(len(drawnPorts))]
			}
			r.from = want.From
			mayReclaim(r) // the specification does so whenever there is no room
			v := want.Verdict(stack, step.Dir, step.Frame, now)
			if got := r.run(h, stack, step.Frame); got != v {
				t.Fatalf("seed %d: %sstep %d, %s, changed at %d, frame %x from %d among %v\nprogram says %v\nspecification says %v",
					seed, describe(stack), i, h.name, change, step.Frame, r.from, want.Neighborhood, got, v)
			}
			counts[v.Reason]++
			steps++
		}
	}
	t.Logf("%d packets in %d dialogues: %v", steps, dialogues, counts)
	for _, reason := range []policy.Reason{policy.Pass, policy.ByRule, policy.ByDefault, policy.BadQuote, policy.Fragment, policy.NeighborSpoof, policy.TableFull} {
		if counts[reason] == 0 {
			t.Errorf("nothing was drawn that gives %s", reason)
		}
	}
}

// changed puts after in the place of before, unless the programs cannot tell the two: then nothing has changed for them.
func changed(t *testing.T, r *runner, before, after policy.Stack) policy.Stack {
	t.Helper()
	old, err := Compile(before)
	must(t, err)
	tables, err := Compile(after)
	must(t, err)
	if tables.digest == old.digest {
		return before
	}
	r.use(tables)
	return after
}

func use(t *testing.T, r *runner, s policy.Stack) {
	t.Helper()
	tables, err := Compile(s)
	must(t, err)
	r.use(tables)
}
