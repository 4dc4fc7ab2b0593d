package agent

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

// fakeRing holds the last events of size.
type fakeRing struct {
	events   []xdp.Event
	size     int
	records  map[string][]byte
	asked    int
	replaced bool
}

func (f *fakeRing) Events(after uint64) ([]xdp.Event, uint64, error) {
	all := uint64(len(f.events))
	if after > all {
		after = 0
	}
	if all-after > uint64(f.size) {
		after = all - uint64(f.size)
	}
	return f.events[after:], all, nil
}

func (f *fakeRing) Records() (map[string][]byte, error) {
	f.asked++
	return f.records, nil
}

func (f *fakeRing) Replaced() bool { return f.replaced }
func (f *fakeRing) Close()         {}

// add adds an event of a device that is age old.
func (f *fakeRing) add(ifindex int, reason policy.Reason, age time.Duration) {
	f.events = append(f.events, xdp.Event{Number: uint64(len(f.events)), Ifindex: ifindex, Reason: reason, Time: time.Now().Add(-age)})
}

func (f *fakeRing) record(id string, ifindex int) {
	r := Record{ID: id, Name: "name-of-" + id, Interfaces: []Interface{{Network: "net", Ifname: fmt.Sprint("veth", ifindex), Ifindex: ifindex}}}
	f.records[id] = r.encode()
}

func newFakeRing() (*fakeRing, *Events) {
	f := &fakeRing{size: 100, records: map[string][]byte{"none": Record{ID: "none", Interfaces: []Interface{{Network: "host"}}}.encode(), "damaged": nil}}
	return f, &Events{openRing: func() (ring, error) { return f, nil }, owners: map[int]owner{}}
}

// numbers are those of the next events, and how many were lost.
func numbers(t *testing.T, l *Events, patience time.Duration) (out []uint64, lost uint64) {
	t.Helper()
	events, lost, err := l.Next(patience)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		out = append(out, e.Number)
	}
	return out, lost
}

func wantNumbers(t *testing.T, what string, l *Events, patience time.Duration, want []uint64, wantLost uint64) {
	t.Helper()
	if got, lost := numbers(t, l, patience); !reflect.DeepEqual(got, want) || lost != wantLost {
		t.Errorf("%s: events %v and %d lost, want %v and %d", what, got, lost, want, wantLost)
	}
}

func TestEventsAreJoined(t *testing.T) {
	f, l := newFakeRing()
	f.record("a", 5)
	f.add(5, policy.ByDefault, 0)
	f.add(7, policy.ByDefault, 0)
	f.add(0, policy.NoPolicy, 0)
	f.add(5, policy.Pass, 0)
	f.add(5, policy.ByRule, 0) // of a policy that the record does not know
	f.events[0].Audited = true
	events, _, err := l.Next(0)
	if err != nil || len(events) != 5 {
		t.Fatalf("%v, %v", events, err)
	}
	for i, want := range []struct {
		id, reason string
		verdict    Verdict
	}{{"a", "default", WouldDrop}, {"", "default", Dropped}, {"", "no-policy", Dropped}, {"a", "pass", Passed}, {"a", "rule", Dropped}} {
		e := events[i]
		if e.ID != want.id || e.Reason != want.reason || e.Verdict != want.verdict || e.Rule != "" {
			t.Errorf("event %d is %+v, want %+v", i, e, want)
		}
	}
	if e := events[0]; e.Name != "name-of-a" || e.Network != "net" || e.Ifname != "veth5" || e.Ifindex != 5 {
		t.Errorf("%+v", e)
	}
}

// What came ahead of its record waits for it, and what came after that with it; it is shown without at last.
func TestEventsWaitForTheirRecord(t *testing.T) {
	f, l := newFakeRing()
	f.record("a", 5)
	f.add(5, policy.ByDefault, 0)
	f.add(6, policy.ByDefault, 0)
	f.add(5, policy.ByDefault, 0)
	wantNumbers(t, "before the record", l, time.Hour, []uint64{0}, 0)
	wantNumbers(t, "still before", l, time.Hour, nil, 0)
	f.record("b", 6)
	wantNumbers(t, "with the record", l, time.Hour, []uint64{1, 2}, 0)
	f.add(7, policy.ByDefault, time.Minute)
	wantNumbers(t, "after its patience", l, time.Second, []uint64{3}, 0)
	f.add(8, policy.ByDefault, 0)
	wantNumbers(t, "without patience", l, 0, []uint64{4}, 0)
}

func TestEventsLost(t *testing.T) {
	f, l := newFakeRing()
	f.record("a", 5)
	f.size = 3
	for range 5 {
		f.add(5, policy.ByDefault, 0)
	}
	wantNumbers(t, "what was before the first look", l, 0, []uint64{2, 3, 4}, 0)
	wantNumbers(t, "nothing new", l, 0, nil, 0)
	for range 7 {
		f.add(5, policy.ByDefault, 0)
	}
	wantNumbers(t, "too many at once", l, 0, []uint64{9, 10, 11}, 4)
	f.events, f.replaced = f.events[:0], true
	f.add(5, policy.ByDefault, 0)
	wantNumbers(t, "another ring", l, 0, []uint64{0}, 0)
}

// The records are not read again for what is known, and what has just gone is known for a while.
func TestEventsOwners(t *testing.T) {
	f, l := newFakeRing()
	f.record("a", 5)
	for range 10 {
		f.add(5, policy.ByDefault, 0)
		wantNumbers(t, "of one container", l, 0, []uint64{uint64(len(f.events) - 1)}, 0)
	}
	if f.asked != 1 {
		t.Errorf("the records were read %d times", f.asked)
	}
	delete(f.records, "a")
	f.add(6, policy.ByDefault, 0) // makes it look again
	f.add(5, policy.ByDefault, 0)
	if events, _, err := l.Next(0); err != nil || len(events) != 2 || events[1].ID != "a" {
		t.Errorf("what has just ended: %+v, %v", events, err)
	}
}

// Before an agent has ever run there is nothing, and an agent may come.
func TestEventsBeforeTheAgent(t *testing.T) {
	f, l := newFakeRing()
	there := false
	l.openRing = func() (ring, error) {
		if !there {
			return nil, xdp.ErrNothing
		}
		return f, nil
	}
	wantNumbers(t, "nothing there", l, 0, nil, 0)
	f.add(5, policy.ByDefault, 0)
	there = true
	wantNumbers(t, "there now", l, 0, []uint64{0}, 0)
	there, f.replaced = false, true
	wantNumbers(t, "uninstalled", l, 0, nil, 0)
	there, f.replaced = true, false
	wantNumbers(t, "installed again", l, 0, []uint64{0}, 0)
}
