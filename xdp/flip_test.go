package xdp

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/policy"
)

// TestFlip changes a policy over and over while both sides send: one policy drops what goes to target 1, the other what goes to
// 2; both drop 3 and let 4 pass. Target n is port 1000+n, of a peer whose address is 192.0.2.(100+n).
func TestFlip(t *testing.T) {
	flips := 250
	if os.Getenv("VETHWALL_LONG") != "" {
		flips = 10000
	}
	const (
		ports1     = "xdp.drop=1001/udp,1001/tcp,1003/udp,1003/tcp"
		ports2     = "xdp.drop=1002/udp,1002/tcp,1003/udp,1003/tcp"
		addresses1 = "xdp.drop=udp@192.0.2.101+192.0.2.103,tcp@192.0.2.101+192.0.2.103"
		addresses2 = "xdp.drop=udp@192.0.2.102+192.0.2.103,tcp@192.0.2.102+192.0.2.103"
		allow2     = "xdp.allow=1001/udp,1001/tcp,1004/udp,1004/tcp"
	)
	for _, c := range []struct {
		name     string
		policies [2]string
		stateful [2]bool
	}{
		{"stateful", [2]string{ports1, ports2}, [2]bool{true, true}},
		{"stateless", [2]string{addresses1, addresses2}, [2]bool{false, false}},
		{"stateless and stateful", [2]string{addresses1, ports2}, [2]bool{false, true}},
		{"drop-list and allow-list", [2]string{ports1, allow2}, [2]bool{true, true}},
	} {
		for _, mode := range []Mode{Generic, TCX} {
			t.Run(c.name+", "+string(mode), func(t *testing.T) {
				var tables [2]*Tables
				for i, labels := range c.policies {
					tables[i] = labelled(t, labels)
					if tables[i].Stateful != c.stateful[i] {
						t.Fatalf("%s: stateful is %v", labels, tables[i].Stateful)
					}
				}
				// Who has opened a conversation of datagrams is not known of one from before there was state: if the
				// peer is the first to be seen, it is he.
				silent := c.stateful[0] != c.stateful[1]
				flip(t, tables, mode, flips, silent)
			})
		}
	}
}

// flipped is the state that the one who changes the policy and those who send share.
type flipped struct {
	// changes is odd while the policy is being changed, else twice the number of changes.
	changes atomic.Uint64
	stop    atomic.Bool
	// certain counts, by direction, the rounds during all of which one policy held, rounds all of them.
	certain, rounds [2]atomic.Uint64
}

// inForce is the policy that holds at both moments of changes and between them; none if more than one may.
func inForce(from, to uint64) (which int, ok bool) {
	return int(from / 2 % 2), from == to && from%2 == 0
}

func flip(t *testing.T, tables [2]*Tables, mode Mode, flips int, silent bool) {
	n := newNetwork(t)
	host, err := netns.Get()
	must(t, err)
	defer host.Close()
	l, err := netlink.LinkByIndex(n.host.Index)
	must(t, err)
	for k := range targets {
		addr, err := netlink.ParseAddr(fmt.Sprintf("192.0.2.%d/32", 101+k))
		must(t, err)
		must(t, netlink.AddrAdd(l, addr))
	}
	f := open(t, bpffs(t))
	defer f.Close()

	must(t, unix.Setpriority(unix.PRIO_PROCESS, 0, -10)) // of this thread: the senders never rest

	var shared flipped
	ends := [2]netns.NsHandle{n.container, host}
	var lines [2]*line
	for dir := range lines {
		lines[dir] = newLine(t, policy.Direction(dir), ends, host)
		lines[dir].silent = silent
		must(t, lines[dir].meet())
	}
	must(t, f.Attach(n.host.Index, Want{Policy: tables[0], Mode: mode}))
	failed := make(chan error, len(lines))
	for dir, line := range lines {
		go func() {
			runtime.LockOSThread() // the thread ends with the goroutine
			failed <- errors.Join(onCPU(dir), netns.Set(ends[dir]), line.talk(&shared))
		}()
	}
	err = shared.change(flips, func(i int) error { return f.Attach(n.host.Index, Want{Policy: tables[i], Mode: mode}) }, failed)
	must(t, err)
	for dir, line := range lines {
		rounds, certain := shared.rounds[dir].Load(), shared.certain[dir].Load()
		t.Logf("%s: %d rounds of datagrams, of which %d met one policy; %d of connections", policy.Direction(dir), rounds, certain, line.connections)
		if rounds == certain || line.connections == 0 {
			t.Errorf("%s: nothing was sent during a change, or no connection opened", policy.Direction(dir))
		}
	}
}

// change changes the policy many times, as fast as it can but for one change in eight, after which it waits until both
// sides have sent under that policy alone. Then it stops the senders and returns what they have to say.
func (s *flipped) change(times int, attach func(int) error, failed chan error) error {
	var err error
	for i := 1; i <= times && err == nil && len(failed) == 0; i++ {
		s.changes.Add(1)
		err = attach(i % 2)
		s.changes.Add(1)
		if i%16 == 0 || i%16 == 9 { // under either policy
			s.awaitCertain(failed)
		}
	}
	s.stop.Store(true)
	return errors.Join(err, <-failed, <-failed)
}

func (s *flipped) awaitCertain(failed chan error) {
	before := [2]uint64{s.certain[0].Load(), s.certain[1].Load()}
	for len(failed) == 0 && (s.certain[0].Load() == before[0] || s.certain[1].Load() == before[1]) {
		time.Sleep(10 * time.Microsecond)
	}
}
