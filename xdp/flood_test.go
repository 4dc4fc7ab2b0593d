package xdp

import (
	"bytes"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// wireEnd is a container's veth with a socket at each end. Nothing else is sent on it.
type wireEnd struct {
	t               *testing.T
	ifindex         int
	container, host *rawEnd
	marks           uint16
}

// ask is a datagram of the container's from a port, and answerTo that from who was asked.
func ask(port uint16) []byte {
	return policytest.IP("192.0.2.2", "198.51.100.9", protoUDP, policytest.UDP(port, 53, 'a', 's', 'k'))
}

func answerTo(port uint16) []byte {
	return policytest.IP("198.51.100.9", "192.0.2.2", protoUDP, policytest.UDP(53, port, 'a', 'n', 's'))
}

// crosses tells whether a frame comes out at the other end.
func (w *wireEnd) crosses(from, at *rawEnd, frame []byte) bool {
	w.t.Helper()
	from.send(frame)
	return w.crossed(from, at, frame)
}

// crossed is crosses for a frame that was sent already. It looks until one that is sent now and always passes has come.
func (w *wireEnd) crossed(from, at *rawEnd, frame []byte) (crossed bool) {
	w.t.Helper()
	w.marks++
	mark := policytest.With(policytest.ARP(), 28, 0, 0, byte(w.marks>>8), byte(w.marks))
	from.send(mark)
	for {
		switch got := at.receive(soon); {
		case got == nil:
			w.t.Fatal("what always passes does not arrive")
		case bytes.Equal(got, mark):
			return crossed
		case bytes.Equal(got, frame):
			crossed = true
		}
	}
}

func (w *wireEnd) asks(port uint16) bool       { return w.crosses(w.container, w.host, ask(port)) }
func (w *wireEnd) isAnswered(port uint16) bool { return w.crosses(w.host, w.container, answerTo(port)) }

// newWires are two containers' veths.
func newWires(t *testing.T) (a, b *wireEnd) {
	t.Helper()
	n := newNetwork(t)
	must(t, onCPU(0))
	other := n.veth("host1", "eth1")
	silence(t)
	a, b = &wireEnd{t: t, ifindex: n.host.Index, host: newRawEnd(t, "host0")}, &wireEnd{t: t, ifindex: other.Index, host: newRawEnd(t, "host1")}
	n.inContainer(func() {
		silence(t)
		eth1, err := netlink.LinkByName("eth1")
		must(t, err)
		must(t, netlink.LinkSetUp(eth1))
		a.container, b.container = newRawEnd(t, "eth0"), newRawEnd(t, "eth1")
	})
	return a, b
}

// TestFloodOfConversations opens more conversations than there is room for, in one container. Another's stay, whether they have been
// answered or not, and so do its own that have been answered; its own that have not give way.
func TestFloodOfConversations(t *testing.T) {
	a, b := newWires(t)
	f := open(t, bpffs(t))
	defer f.Close()
	answered := 1024
	if isLong() {
		answered = policy.MaxAnswered
	}
	must(t, f.Bound(answered))
	const talks, waits, early = 1, 2, 3 // ports of conversations: answered, not answered yet, not answered when the flood came
	for _, w := range []*wireEnd{a, b} {
		must(t, f.Attach(w.ifindex, Want{Policy: labelled(t, "xdp.egress.allow=53/udp xdp.ingress.default=drop")}))
		if w.isAnswered(talks) {
			t.Error("an answer to what nobody has asked")
		}
		if !w.asks(talks) || !w.isAnswered(talks) || !w.asks(waits) || !w.asks(early) {
			t.Error("a conversation does not begin")
		}
	}
	lives := func(when string) {
		t.Helper()
		if !a.isAnswered(talks) || !b.isAnswered(talks) || !b.asks(talks) || !a.asks(talks) {
			t.Errorf("%s: an answered conversation has ended", when)
		}
	}

	// Nobody answers.
	for i := range answered {
		a.container.send(ask(uint16(1000 + i)))
	}
	lives("a flood that nobody answers")
	if a.isAnswered(early) {
		t.Error("the flood had room for all")
	}
	if !b.isAnswered(waits) {
		t.Error("the flood has taken the place of another container's conversation")
	}

	// Somebody answers, who is in league with it.
	full := 0
	for i := range answered + 100 {
		port := uint16(1000 + i)
		a.container.send(ask(port))
		if i%64 > 0 {
			a.host.send(answerTo(port))
		} else if !a.isAnswered(port) {
			full++
		}
	}
	lives("a flood that is answered")
	if full == 0 || a.count(f, policy.TableFull) == 0 {
		t.Errorf("%d answers of those looked at did not arrive, %d were counted: the flood had room", full, a.count(f, policy.TableFull))
	}
	if !b.asks(early+1) || !b.isAnswered(early+1) {
		t.Error("another container can begin nothing")
	}
}

// count is how many packets were counted for a reason.
func (w *wireEnd) count(f *Filter, why policy.Reason) (n uint64) {
	w.t.Helper()
	list, err := readCounts(f.objs.Counters, f.maps.devices[w.ifindex].Counters)
	must(w.t, err)
	for _, c := range list {
		if c.Reason == why {
			n += c.Packets
		}
	}
	return n
}

// TestFloodOfEvents drops a flood of one container's and a packet of another's. All are counted; of the flood there are as many
// events as a container has, and the other has its own.
func TestFloodOfEvents(t *testing.T) {
	a, b := newWires(t)
	dir := bpffs(t)
	f := open(t, dir)
	defer f.Close()
	for _, w := range []*wireEnd{a, b} {
		must(t, f.Attach(w.ifindex, Want{Policy: labelled(t, "xdp.drop=udp")}))
	}
	flood := 50_000
	if isLong() {
		flood = 2_000_000
	}
	begin := time.Now()
	for i := range flood {
		a.container.send(ask(uint16(i)))
		if i == flood/2 && b.asks(1) {
			t.Error("what is forbidden arrives")
		}
	}
	if a.asks(1) { // when it returns the flood is over
		t.Error("what is forbidden arrives")
	}
	took := time.Since(begin)
	r, err := OpenReader(dir)
	must(t, err)
	defer r.Close()
	events, _, err := r.Events(0)
	must(t, err)
	had := map[int]int{}
	for _, e := range events {
		had[e.Ifindex]++
	}
	if got := a.count(f, policy.ByRule); got != uint64(flood)+1 {
		t.Errorf("%d packets were counted, %d sent", got, flood+1)
	}
	if most := 64 + int(took.Seconds()*32) + 2; had[a.ifindex] < 64 || had[a.ifindex] > most || had[b.ifindex] != 1 {
		t.Errorf("%d events of the flood, want 64 to %d; %d of the other container, want 1", had[a.ifindex], most, had[b.ifindex])
	}
}
