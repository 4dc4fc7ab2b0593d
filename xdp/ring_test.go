package xdp

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vethwall/vethwall/policy/policytest"
)

// flood runs a frame n times, at tc: BPF_PROG_TEST_RUN of XDP waits some 20 ms for other processors.
func (r *runner) flood(frame []byte, n uint32) {
	r.t.Helper()
	_, err := r.k.VethwallReceived.Run(&ebpf.RunOptions{Data: frame, Repeat: n})
	must(r.t, err)
}

// asDevice gives loIndex another counter block, as if it were another device.
func (r *runner) asDevice(block uint16) {
	r.t.Helper()
	must(r.t, r.k.Devices.Put(uint32(loIndex), filterDevice{Ifindex: loIndex, Policy: 1, Counters: block}))
}

func udpTo(port uint16) []byte {
	return policytest.IP("192.0.2.1", "198.51.100.2", 17, policytest.UDP(port, port))
}

// TestEventRate floods from one device: it has its share and no more, what was left out is told, and the only packet of
// another device is not lost in it.
func TestEventRate(t *testing.T) {
	r := newRunner(t)
	reader := r.eventReader()
	r.use(compiledAlone(t, map[string]string{"xdp.drop": "all"}))
	const flood, other = 3, 4
	sent, sentOther := uint64(0), false
	begin := time.Now()
	for time.Since(begin) < time.Second || !sentOther {
		r.asDevice(flood)
		r.flood(udpTo(1), 10_000)
		sent += 10_000
		if time.Since(begin) > 500*time.Millisecond && !sentOther {
			r.asDevice(other)
			r.flood(udpTo(2), 1)
			sentOther = true
		}
	}
	took := time.Since(begin)
	events, _, err := reader.Events(0)
	must(t, err)
	had, skipped, others := 0, uint64(0), 0
	for _, e := range events {
		if e.SrcPort == 2 {
			others++
			continue
		}
		had++
		skipped += uint64(e.Skipped)
	}
	const tick = 10 * time.Millisecond // of the coarse clock, at most
	least, most := 64+int((took-tick).Seconds()*32)-2, 64+int((took+tick).Seconds()*32)+2
	t.Logf("%d events of %d packets in %v", had, sent, took)
	if others != 1 || had < least || had > most {
		t.Errorf("%d events of the flood, want %d to %d; %d of the other device, want 1", had, least, most, others)
	}
	// What came after the last event is not told yet.
	var rest filterEventTime
	must(t, r.k.EventTimes.Lookup(uint32(flood), &rest))
	// A run that a signal interrupts is repeated from its beginning.
	if got := uint64(had) + skipped + rest.Skipped; got < sent || got > sent+sent/100 {
		t.Errorf("%d events and %d + %d left out, %d sent", had, skipped, rest.Skipped, sent)
	}
}

// TestEventsOverwritten writes more than the ring holds: a reader that comes late gets the last ones, and sees by the
// numbers what it has missed; one that kept up has all; a number from elsewhere begins anew.
func TestEventsOverwritten(t *testing.T) {
	r := newRunner(t)
	late, steady := r.eventReader(), r.eventReader()
	r.use(compiledAlone(t, map[string]string{"xdp.drop": "all"}))
	size := uint64(r.k.Events.MaxEntries())
	var all []uint64
	next := uint64(0)
	const each = 64
	for written := uint64(0); written < size+3*each; written += each {
		must(t, r.k.EventTimes.Put(uint32(0), filterEventTime{}))
		r.flood(udpTo(uint16(written/each)), each)
		events, n, err := steady.Events(next)
		must(t, err)
		for _, e := range events {
			all = append(all, e.Number)
			if uint64(e.SrcPort) != e.Number/each {
				t.Fatalf("event %d is of packet %d", e.Number, e.SrcPort)
			}
		}
		next = n
	}
	for i, n := range all {
		if n != uint64(i) {
			t.Fatalf("the %dth event has the number %d", i, n)
		}
	}
	events, n, err := late.Events(10)
	must(t, err)
	if n != next || uint64(len(events)) != size || events[0].Number != n-size || events[size-1].Number != n-1 {
		t.Errorf("%d events up to %d, want the last %d of %d", len(events), n, size, next)
	}
	again, m, err := late.Events(n + 1)
	must(t, err)
	if m != n || len(again) != len(events) {
		t.Errorf("a number from elsewhere: %d events up to %d", len(again), m)
	}
	if none, m, err := late.Events(n); err != nil || len(none) > 0 || m != n {
		t.Errorf("nothing new: %d events up to %d, %v", len(none), m, err)
	}
}

// TestEventsAreWhole reads while programs write the same slots on all processors: what is read is of one packet.
func TestEventsAreWhole(t *testing.T) {
	r := newRunner(t)
	reader := r.eventReader()
	r.use(compiledAlone(t, map[string]string{"xdp.drop": "all"}))
	var done atomic.Bool
	var writers sync.WaitGroup
	for port := uint16(1); port <= 3; port++ {
		writers.Go(func() {
			frame := append(udpTo(port), make([]byte, port)...)
			for !done.Load() {
				_ = r.k.EventTimes.Put(uint32(0), filterEventTime{})
				_, _ = r.k.VethwallReceived.Run(&ebpf.RunOptions{Data: frame, Repeat: 64})
			}
		})
	}
	next, read := uint64(0), 0
	for begin := time.Now(); time.Since(begin) < 2*time.Second && !t.Failed(); {
		events, n, err := reader.Events(next)
		if err != nil {
			t.Error(err)
		}
		for _, e := range events {
			if e.SrcPort != e.DstPort || e.Bytes != 14+20+8+int(e.SrcPort) {
				t.Errorf("%+v is of two packets", e)
			}
		}
		next, read = n, read+len(events)
	}
	done.Store(true)
	writers.Wait()
	t.Logf("%d of %d events were read", read, next)
	if read < 1000 {
		t.Error("hardly any event was read")
	}
}

// TestRing reads slots in each state.
func TestRing(t *testing.T) {
	const slots = 4
	r := make(ring, slots*eventWords)
	write := func(number uint64, stored uint64) {
		words := r[number%slots*uint64(eventWords):][:eventWords]
		words[0], words[1] = stored, number*100
	}
	for n := range uint64(3) {
		write(4+n, 4+n+1)
	}
	write(7, 0)
	for number, want := range map[uint64]slotState{
		4: slotWhole, 6: slotWhole, 7: slotNotYet, 8: slotNotYet, 0: slotGone, 2: slotGone, 3: slotNotYet,
	} {
		e, got := r.read(number)
		if got != want || got == slotWhole && e.Time != number*100 {
			t.Errorf("number %d: %d, time %d; want %d", number, got, e.Time, want)
		}
	}
}

// What a rule is called is told under the names that its policy has given, and not under those of another.
func TestEventRule(t *testing.T) {
	was := compiledAlone(t, map[string]string{"xdp.drop": "53/udp,25/tcp", "xdp.ingress.drop": "igmp"})
	for _, tc := range []struct {
		now  map[string]string
		want string
	}{
		{map[string]string{"xdp.drop": "53/udp,25/tcp", "xdp.ingress.drop": "igmp"}, "25/tcp"},
		{map[string]string{"xdp.drop": "10/tcp,25/tcp,53/udp", "xdp.ingress.drop": "igmp"}, ""},
		{map[string]string{"xdp.drop": "53/udp,25/tcp"}, ""},
		{map[string]string{"xdp.drop": "53/udp,25/tcp", "xdp.ingress.drop": "igmp", "xdp.mode": "audit"}, ""},
	} {
		i := slices.IndexFunc(was.Rules[0], func(c Counted) bool { return c.Rule == "25/tcp" })
		p, _ := was.place(1)
		e := parseEvent(filterEvent{Number: 1, Reason: 1, Rule: uint8(i), Names: p.Names}, time.Now())
		now := compiledAlone(t, tc.now)
		if c, ok := e.Rule(now.Rules); c.Rule != tc.want || ok != (tc.want != "") {
			t.Errorf("under %v it is called %q, want %q", tc.now, c.Rule, tc.want)
		}
	}
}

// A reader sees that what it reads is no longer what stands in its place.
func TestReaderReplaced(t *testing.T) {
	needPrivileges(t)
	dir := bpffs(t)
	for range 2 {
		if _, err := OpenReader(dir); !errors.Is(err, ErrNothing) {
			t.Fatalf("with nothing there: %v", err)
		}
		f := open(t, dir)
		f.Close()
		r, err := OpenReader(dir)
		must(t, err)
		defer r.Close()
		if events, next, err := r.Events(0); err != nil || next != 0 || len(events) > 0 || r.Replaced() {
			t.Errorf("%d events up to %d, %v; replaced %t", len(events), next, err, r.Replaced())
		}
		must(t, Uninstall(dir))
		if !r.Replaced() {
			t.Error("uninstalled, and the reader does not see it")
		}
	}
}
