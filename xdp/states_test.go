package xdp

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
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
		{protoTCP, 1, 20 * time.Second, true},
		{protoTCP, 1, 40 * time.Second, false},
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
