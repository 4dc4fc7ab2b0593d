package agent

import (
	"errors"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

// Event is a sample of what the programs have judged, with what the container's record says of it. The JSON is a stable
// interface.
type Event struct {
	Number  uint64    `json:"number"` // its place in the order of all events of the host
	Time    time.Time `json:"time"`
	ID      string    `json:"id"`   // empty where no container's record names the device, or
	Name    string    `json:"name"` // no longer
	Network string    `json:"network"`
	Ifname  string    `json:"host_ifname"`
	Ifindex int       `json:"host_ifindex"`

	Verdict   Verdict `json:"verdict"`
	Direction string  `json:"direction"`
	Reason    string  `json:"reason"`
	Rule      string  `json:"rule,omitempty"` // also empty where the policy has changed since
	Bytes     int     `json:"bytes"`          // layer 2
	// Skipped is about how many packets of the device just before it are no events, because they were too many.
	Skipped uint32 `json:"skipped"`
	xdp.Headers
}

// Verdict is what became of a packet.
type Verdict string

// WouldDrop is a pass that only audit mode gives.
const (
	Passed    Verdict = "passed"
	Dropped   Verdict = "dropped"
	WouldDrop Verdict = "would_drop"
)

// ring is what the kernel keeps of events; *xdp.Reader is one.
type ring interface {
	Events(after uint64) (events []xdp.Event, next uint64, err error)
	Records() (map[string][]byte, error)
	Replaced() bool
	Close()
}

// Events reads what the kernel has of events, with or without an agent.
type Events struct {
	openRing func() (ring, error)
	r        ring // nil until there is something to read
	next     uint64
	owners   map[int]owner
	asked    time.Time // when owners was read
}

// owner is the container that a device belongs to.
type owner struct {
	record Record
	iface  Interface
	seen   time.Time // when the record was last there
}

// OpenEvents opens the events under dir, where nothing has to be yet. The caller closes.
func OpenEvents(dir string) (*Events, error) {
	l := &Events{owners: map[int]owner{}, openRing: func() (ring, error) { return xdp.OpenReader(dir) }}
	return l, l.open()
}

// Close releases what was opened.
func (l *Events) Close() {
	if l.r != nil {
		l.r.Close()
	}
	l.r = nil
}

// open opens what stands under dir now. That there is nothing, or only a part of what an agent makes at its start, is no
// error.
func (l *Events) open() error {
	if l.r != nil && !l.r.Replaced() {
		return nil
	}
	l.Close()
	r, err := l.openRing()
	switch {
	case errors.Is(err, xdp.ErrNothing), errors.Is(err, fs.ErrNotExist):
		l.next = 0
		return nil
	case err != nil:
		return err
	}
	l.r = r
	return nil
}

// Next returns the events that came since the last call, at the first call all that the kernel still has, the oldest first.
// lost is how many others came that were overwritten before anybody asked. An event whose container or rule is not on
// record may be ahead of its record: until it is as old as patience it is kept back, and so is what came after it.
func (l *Events) Next(patience time.Duration) (events []Event, lost uint64, err error) {
	if err := l.open(); err != nil || l.r == nil {
		return nil, 0, err
	}
	found, next, err := l.r.Events(l.next)
	if err != nil {
		return nil, 0, err
	}
	if err := l.askOwners(found); err != nil {
		return nil, 0, err
	}
	expected := l.next
	if len(found) > 0 && (expected == 0 || expected > next) {
		expected = found[0].Number
	}
	for _, e := range found {
		event, known := l.describe(e)
		if !known && time.Since(e.Time) < patience {
			next = e.Number
			break
		}
		events, lost, expected = append(events, event), lost+e.Number-expected, e.Number+1
	}
	l.next = next
	return events, lost + next - min(expected, next), nil
}

// How old what is known of containers may get, because they may be renamed; and how long it is kept of those that are gone,
// because their last events are read after that.
const (
	ownersAge  = time.Second
	ownersKept = time.Minute
)

// askOwners reads whose devices are, if some event needs it.
func (l *Events) askOwners(events []xdp.Event) error {
	stranger := func(e xdp.Event) bool {
		_, known := l.describe(e)
		return !known
	}
	if len(events) == 0 || time.Since(l.asked) < ownersAge && !slices.ContainsFunc(events, stranger) {
		return nil
	}
	records, err := l.r.Records()
	if err != nil {
		return err
	}
	l.asked = time.Now()
	for _, text := range records {
		record, err := ParseRecord(text)
		if err != nil {
			continue // damaged, or being written
		}
		for _, i := range record.Interfaces {
			l.owners[i.Ifindex] = owner{record, i, l.asked}
		}
	}
	maps.DeleteFunc(l.owners, func(_ int, o owner) bool { return l.asked.Sub(o.seen) > ownersKept })
	return nil
}

// describe joins an event with its record; false where that does not say whose it is, or what the rule is called.
func (l *Events) describe(e xdp.Event) (Event, bool) {
	event := Event{
		Number: e.Number, Time: e.Time.UTC(), Ifindex: e.Ifindex, Verdict: Dropped, Direction: e.Direction.String(),
		Reason: e.Reason.String(), Bytes: e.Bytes, Skipped: e.Skipped, Headers: e.Headers,
	}
	switch {
	case e.Reason == policy.Pass:
		event.Verdict = Passed
	case e.Audited:
		event.Verdict = WouldDrop
	}
	o, known := l.owners[e.Ifindex]
	if !known || e.Ifindex == 0 {
		return event, false
	}
	event.ID, event.Name, event.Network, event.Ifname = o.record.ID, o.record.Name, o.iface.Network, o.iface.Ifname
	rule, named := e.Rule(o.record.Rules)
	event.Rule = rule.Rule
	return event, named || e.Reason != policy.ByRule && e.Reason != policy.LimitReached
}
