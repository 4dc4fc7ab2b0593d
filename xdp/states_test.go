package xdp

import (
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// TestExpire checks that a sweep forgets what has been idle for too long, and nothing else.
func TestExpire(t *testing.T) {
	f := open(t, bpffs(t))
	defer f.Close()
	s := f.maps.states
	stateful := &Tables{Stateful: true}
	must(t, s.give(1, nil, stateful))
	var table *ebpf.Map
	must(t, f.objs.Answered.Lookup(s.tables.of[1], &table))
	defer table.Close()
	now, err := monotonic()
	must(t, err)
	type entry struct {
		proto   uint8
		closing uint8
		idle    time.Duration
		stays   bool
	}
	entries := []entry{
		{protoTCP, 0, 0, true},
		{protoTCP, 0, 23 * time.Hour, true},
		{protoTCP, 0, 25 * time.Hour, false},
		{protoTCP, 1, 23 * time.Hour, true},
		{protoTCP, 4, 40 * time.Second, false},
		{protoTCP, 3, 20 * time.Second, true},
		{protoTCP, 3, 40 * time.Second, false},
		{protoUDP, 0, 170 * time.Second, true},
		{protoUDP, 0, 190 * time.Second, false},
		{47, 0, 20 * time.Second, true},
		{47, 0, 40 * time.Second, false},
	}
	now += uint64(48 * time.Hour) // this machine may have started a moment ago
	for i, e := range entries {
		key := filterFlowKey{LocalPort: uint16(i), Proto: e.proto, Family: 4}
		must(t, table.Put(key, conversation{Seen: now - uint64(e.idle), Closing: e.closing}))
	}
	must(t, s.expireAt(s.tables.of[1], now))
	for i, e := range entries {
		var got conversation
		err := table.Lookup(filterFlowKey{LocalPort: uint16(i), Proto: e.proto, Family: 4}, &got)
		if (err == nil) != e.stays {
			t.Errorf("%+v: %v", e, err)
		}
	}
	must(t, s.sweep())
}

// TestBound checks that tables are as large as it says from then on, and that those in use stay.
func TestBound(t *testing.T) {
	f := open(t, bpffs(t))
	defer f.Close()
	s := f.maps.states
	size := func(block uint16, outer *ebpf.Map) uint32 {
		var table *ebpf.Map
		must(t, outer.Lookup(s.tables.of[block], &table))
		defer table.Close()
		return table.MaxEntries()
	}
	stateful := &Tables{Stateful: true}
	must(t, s.give(1, nil, stateful))
	must(t, f.Bound(65536))
	must(t, s.give(2, nil, stateful))
	must(t, f.Bound(1024))
	must(t, s.give(3, nil, stateful))
	for block, want := range map[uint16]uint32{1: policy.MaxAnswered, 2: 65536, 3: 1024} {
		if got, unanswered := size(block, f.objs.Answered), size(block, f.objs.Unanswered); got != want || unanswered != want/4 {
			t.Errorf("block %d: %d answered and %d not, want %d", block, got, unanswered, want)
		}
	}
}

// TestBoundHolds gives the programs a table that is smaller than the one that they were loaded with.
func TestBoundHolds(t *testing.T) {
	r := newRunner(t)
	m := newMemory(r, 2)
	p, _, err := policy.Parse(map[string]string{"xdp.egress.allow": "udp", "xdp.ingress.default": "drop"})
	must(t, err)
	stack := policy.Stack{{Origin: "labels", Policy: p}}
	use(t, r, stack)
	talk := func(port uint16, want policy.Reason) {
		t.Helper()
		ask := policytest.IP("192.0.2.1", "198.51.100.1", 17, policytest.UDP(1000+port, 53))
		answer := policytest.IP("198.51.100.1", "192.0.2.1", 17, policytest.UDP(53, 1000+port))
		if v := r.run(hooks[0], stack, ask); v.Reason != policy.Pass {
			t.Errorf("question %d: %v", port, v)
		}
		if v := r.run(hooks[2], stack, answer); v.Reason != want {
			t.Errorf("answer %d: %v, want %v", port, v, want)
		}
	}
	talk(0, policy.Pass)
	talk(1, policy.Pass)
	talk(2, policy.TableFull)
	// Without an agent, too, what is over makes room, though not more often than once a second.
	m.age(t, 181*time.Second)
	talk(3, policy.TableFull)
	mayReclaim(r)
	talk(4, policy.Pass)
	talk(5, policy.Pass)
	talk(6, policy.TableFull)
}

// TestHalfClosedGivesWay fills a table with TCP that one side has closed: after two minutes, and no sooner, it makes room for another.
func TestHalfClosedGivesWay(t *testing.T) {
	r := newRunner(t)
	m := newMemory(r, 1)
	p, _, err := policy.Parse(map[string]string{"xdp.ingress.allow": "443/tcp", "xdp.egress.default": "drop"})
	must(t, err)
	use(t, r, policy.Stack{{Origin: "labels", Policy: p}})
	const fin, syn, ack = 1, 2, 16
	// send gives a segment of the client, or of the server, which acknowledges what came first.
	send := func(dir policy.Direction, client uint16, flags uint8) policy.Reason {
		h, frame := hooks[2], policytest.IP("198.51.100.1", "192.0.2.1", protoTCP, policytest.With(policytest.TCP(client, 443), 13, flags))
		if dir == policy.Egress {
			h, frame = hooks[0], policytest.IP("192.0.2.1", "198.51.100.1", protoTCP, policytest.With(policytest.TCP(443, client), 13, flags))
		}
		return r.run(h, nil, frame).Reason
	}
	opens := func(client uint16, want policy.Reason) {
		t.Helper()
		mayReclaim(r)
		got := []policy.Reason{send(policy.Ingress, client, syn), send(policy.Egress, client, syn|ack), send(policy.Ingress, client, ack)}
		if !slices.Equal(got, []policy.Reason{policy.Pass, policy.Pass, want}) {
			t.Errorf("client %d: %v, want the last to be %s", client, got, want)
		}
	}
	opens(1000, policy.Pass)
	opens(1001, policy.TableFull)
	if why := send(policy.Egress, 1000, fin|ack); why != policy.Pass {
		t.Errorf("the first is closed by one side: %s", why)
	}
	m.age(t, 119*time.Second)
	opens(1002, policy.TableFull)
	m.age(t, time.Second)
	opens(1003, policy.Pass)
}

// TestHalfOpenTakesNoRoom answers SYNs whose senders never go on, and goes on where nobody answers: none of them is one of the answered conversations, of which
// there may be so many.
func TestHalfOpenTakesNoRoom(t *testing.T) {
	r := newRunner(t)
	m := newMemory(r)
	p, _, err := policy.Parse(map[string]string{"xdp.ingress.allow": "443/tcp", "xdp.egress.default": "drop"})
	must(t, err)
	stack := policy.Stack{{Origin: "labels", Policy: p}}
	use(t, r, stack)
	segment := func(dir policy.Direction, port uint16, flags, acknowledges uint8) {
		t.Helper()
		h, frame := hooks[2], policytest.IP("198.51.100.1", "192.0.2.1", 6, policytest.With(policytest.With(policytest.TCP(port, 443), 11, acknowledges), 13, flags))
		if dir == policy.Egress {
			h, frame = hooks[0], policytest.IP("192.0.2.1", "198.51.100.1", 6, policytest.With(policytest.TCP(443, port), 13, flags))
		}
		if v := r.run(h, stack, frame); v.Reason != policy.Pass {
			t.Errorf("port %d: %v", port, v)
		}
	}
	const syn, ack = 2, 16
	answered := func() (n int) {
		var table *ebpf.Map
		must(t, r.k.Answered.Lookup(uint32(1), &table))
		defer table.Close()
		var key, value []byte
		for all := table.Iterate(); all.Next(&key, &value); n++ {
		}
		return n
	}
	for port := range uint16(100) {
		segment(policy.Ingress, port+1000, syn, 0)
		segment(policy.Egress, port+1000, syn|ack, 1)
		segment(policy.Ingress, port+1000, ack, 0) // of somebody who has not seen the answer
	}
	if n := answered(); n != 0 {
		t.Errorf("%d conversations count as answered", n)
	}
	segment(policy.Ingress, 1000, ack, 1)
	segment(policy.Ingress, 1001, ack, 255) // data came with the answer
	if n := answered(); n != 2 {
		t.Errorf("%d conversations count as answered, want the two whose senders have gone on", n)
	}
	m.forget(t)
	for port := range uint16(100) { // as if of connections that are older than the filter
		segment(policy.Ingress, port+1000, ack, 1)
		segment(policy.Ingress, port+1000, ack, 1)
	}
	if n := answered(); n != 0 {
		t.Errorf("%d conversations count as answered that one side alone has", n)
	}
	segment(policy.Egress, 1000, ack, 1)
	if n := answered(); n != 1 {
		t.Errorf("%d conversations count as answered, want the one that was", n)
	}
	m.forget(t)
}

// TestStatesAreGivenEmpty checks that a container never gets the conversations of one that has gone, and that the
// devices of one container share theirs.
func TestStatesAreGivenEmpty(t *testing.T) {
	f := open(t, bpffs(t))
	defer f.Close()
	s := f.maps.states
	stateful := &Tables{Stateful: true}
	must(t, s.give(1, nil, stateful))
	must(t, s.give(2, []uint16{1}, stateful))
	must(t, s.give(3, nil, stateful))
	if s.tables.of[1] != s.tables.of[2] || s.tables.of[1] == s.tables.of[3] {
		t.Fatalf("states %v", s.tables.of)
	}
	var table *ebpf.Map
	must(t, f.objs.Answered.Lookup(s.tables.of[3], &table))
	must(t, table.Put(filterFlowKey{}, conversation{}))
	must(t, table.Close())
	must(t, s.take(3))
	for block := uint16(10); block < 20; block++ {
		must(t, s.give(block, nil, stateful))
		must(t, f.objs.Answered.Lookup(s.tables.of[block], &table))
		var key filterFlowKey
		if table.NextKey(nil, &key) == nil {
			t.Errorf("state %d has conversations of another container", s.tables.of[block])
		}
		must(t, table.Close())
	}
	must(t, s.take(1))
	if s.tables.users[s.tables.of[2]] != 1 {
		t.Errorf("users %v", s.tables.users)
	}
}

// TestNoMemoryForStates has the kernel refuse to make tables: who needs one is closed, nobody else is, and there is one as soon
// as there is room.
func TestNoMemoryForStates(t *testing.T) {
	n := newNetwork(t)
	other := n.veth("host1", "eth1")
	dir := bpffs(t)
	f := open(t, dir)
	defer f.Close()
	const stateful = "xdp.egress.drop=1-65535/udp"
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, stateful), Mode: Generic}))
	s := f.maps.states
	entries := s.inner["answered"].MaxEntries
	s.inner["answered"].MaxEntries, s.ready = 1<<31, nil
	err := f.Attach(other.Index, Want{Policy: labelled(t, stateful), Mode: Generic})
	if err == nil || !strings.Contains(err.Error(), "table of conversations") {
		t.Errorf("attached without a table: %v", err)
	}
	if byFilter, err := f.Shut(other.Index); err != nil || !byFilter || !f.maps.isShut(other.Index) {
		t.Errorf("shut by filter: %v, %v", byFilter, err)
	}
	n.wantUDPTo("192.0.2.1:0", false, "it has a table")
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.egress.drop=1-65535/tcp"), Mode: Generic}))
	n.wantUDPTo("192.0.2.1:0", true, "it has a table, and another policy")
	if s.sweep() == nil {
		t.Error("a sweep does not say that there is no memory")
	}

	s.inner["answered"].MaxEntries = entries
	must(t, f.Attach(other.Index, Want{Policy: labelled(t, stateful), Mode: Generic}))
	if f.maps.isShut(other.Index) {
		t.Error("still closed")
	}

	// An agent that starts then goes on with what there is.
	none := f.objs
	none.Answered = f.objs.Devices // takes no tables
	again, err := newStates(&none, f.maps.devices)
	if err != nil || len(again.ready) > 0 || len(again.tables.of) != 2 {
		t.Errorf("%v: ready are %v, in use %v", err, again.ready, again.tables.of)
	}
}

// TestSeenAMomentLater meets a conversation that another processor has seen a tick later than this one's clock.
func TestSeenAMomentLater(t *testing.T) {
	r := newRunner(t)
	m := newMemory(r)
	p, _, err := policy.Parse(map[string]string{"xdp.egress.allow": "udp", "xdp.ingress.default": "drop"})
	must(t, err)
	stack := policy.Stack{{Origin: "labels", Policy: p}}
	use(t, r, stack)
	ask := policytest.IP("192.0.2.1", "198.51.100.1", 17, policytest.UDP(1000, 53))
	answer := policytest.IP("198.51.100.1", "192.0.2.1", 17, policytest.UDP(53, 1000))
	r.run(hooks[0], stack, ask)
	r.run(hooks[2], stack, answer)
	for range 2 {
		m.age(t, -time.Second)
		if v := r.run(hooks[2], stack, answer); v.Reason != policy.Pass {
			t.Errorf("an answer: %v", v)
		}
	}
}

// TestForgetConversations has a container answer, under a policy that lets it open nothing, and once more after what it had been asked is forgotten; its
// other device shares that.
func TestForgetConversations(t *testing.T) {
	n := newBridged(t)
	f, h := n.open(bpffs(t))
	defer f.Close()
	defer h.Close()
	p, other := n.plug("veth0000001", 0), n.plug("veth0000002", 0)
	must(t, h.Release(p.Index, other.Index))
	w := Want{Policy: labelled(t, "xdp.egress.drop=udp"), Siblings: []int{p.Index, other.Index}}
	must(t, f.Attach(p.Index, w))
	must(t, f.Attach(other.Index, w))
	asks, err := net.ListenPacket("udp4", "192.0.2.1:0")
	must(t, err)
	defer asks.Close()
	var answers net.PacketConn
	n.in(p, func() {
		answers, err = net.ListenPacket("udp4", p.addr.String()+":0")
		must(t, err)
	})
	defer answers.Close()
	answered := func(wait time.Duration) bool {
		_, err := answers.WriteTo([]byte("answer"), asks.LocalAddr())
		must(t, err)
		must(t, asks.SetReadDeadline(time.Now().Add(wait)))
		_, _, err = asks.ReadFrom(make([]byte, 64))
		return err == nil
	}
	if answered(long) {
		t.Error("it answers what nobody has asked")
	}
	for range 2 {
		_, err = asks.WriteTo([]byte("question"), answers.LocalAddr())
		must(t, err)
		if !answered(soon) {
			t.Error("it does not answer")
		}
		must(t, f.ForgetConversations(p.Index))
		if answered(long) {
			t.Error("it answers what is forgotten")
		}
		tables := f.maps.states.tables
		if a, b := tables.of[f.maps.devices[p.Index].Counters], tables.of[f.maps.devices[other.Index].Counters]; a == 0 || a != b || tables.users[a] != 2 || len(tables.users) != 1 {
			t.Errorf("tables %d and %d, with users %v", a, b, tables.users)
		}
	}
	must(t, f.ForgetConversations(999))
}

// TestNoRoomForADevice has no counter block for a device: Shut sets it down, and it comes up with its filter when there is one.
func TestNoRoomForADevice(t *testing.T) {
	n := newBridged(t)
	f, h := n.open(bpffs(t))
	defer f.Close()
	defer h.Close()
	p := n.plug("veth0000001", 0)
	must(t, h.Release(p.Index))
	n.want(p, true, "without a filter")
	const others = 1_000_000
	for b := 1; b < int(f.objs.Counters.MaxEntries()); b++ {
		f.maps.devices[others+b] = filterDevice{Ifindex: uint32(others + b), Counters: uint16(b)}
	}
	w := Want{Policy: labelled(t, "xdp.drop=tcp")}
	if err := f.Attach(p.Index, w); err == nil {
		t.Error("attached without room")
	}
	if byFilter, err := f.Shut(p.Index); byFilter || err != nil || up(t, p.Index) {
		t.Errorf("shut by filter %v, %v, up %v", byFilter, err, up(t, p.Index))
	}
	delete(f.maps.devices, others+1)
	must(t, f.Attach(p.Index, w))
	if !up(t, p.Index) {
		t.Error("it stays down")
	}
	n.in(p, func() {
		eth0, err := netlink.LinkByName("eth0")
		must(t, err)
		n.addresses(eth0, "2001:db8::99") // the others went with the carrier
	})
	n.want(p, true, "with a filter that allows it")
	must(t, f.Attach(p.Index, Want{Policy: labelled(t, "xdp.drop=udp")}))
	n.want(p, false, "with one that does not")
}
