package xdp

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestLostMessages has more links change than the kernel keeps messages for while nobody reads them, as of an agent that is
// stopped. What came meanwhile is rung for, and held; what comes after that is told again.
func TestLostMessages(t *testing.T) {
	n := newBridged(t)
	f, h := n.open(bpffs(t))
	defer f.Close()
	defer h.Close()
	first := n.plug("veth0000001", 0)

	ctx, cancel := context.WithCancel(t.Context())
	stuck, gate, ended := make(chan bool, 1), make(chan bool), make(chan bool)
	var rings atomic.Int64
	told := make(chan int, 100)
	changed := func(c Change) {
		if c.Index == first.Index {
			select {
			case stuck <- true:
				<-gate
			default:
			}
		}
		select {
		case told <- c.Index:
		default:
		}
	}
	n.onHost(func() {
		WatchHost(ctx, slog.New(slog.NewTextHandler(io.Discard, nil)), func() { rings.Add(1) }, changed)
		close(ended)
	})
	defer func() { cancel(); <-ended }()
	for rings.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	touch(t, first) // from here on nobody reads
	<-stuck
	for i := 0; lostMessages(t) == 0; i++ {
		if i == 100000 {
			t.Fatal("the kernel keeps them all")
		}
		touch(t, first)
	}
	unheard := n.plug("veth0000002", 0)
	before := rings.Load()
	close(gate)
	for deadline := time.Now().Add(soon); rings.Load() == before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody says that messages are lost")
		}
	}
	ports, err := ListPorts()
	must(t, err)
	held, err := h.Sync(ports)
	must(t, err)
	if !slices.ContainsFunc(held, func(p Port) bool { return p.Index == unheard.Index }) {
		t.Errorf("held are %v, not %s", held, unheard.Name)
	}
	n.want(unheard, false, "it came while messages were lost")

	// The new subscription hears again.
	for deadline := time.Now().Add(soon); ; {
		touch(t, unheard)
		select {
		case ifindex := <-told:
			if ifindex == unheard.Index {
				return
			}
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing is heard after messages were lost")
		}
	}
}

// touch changes a port.
func touch(t *testing.T, p plug) {
	t.Helper()
	l, err := netlink.LinkByIndex(p.Index)
	must(t, err)
	must(t, netlink.LinkSetAlias(l, fmt.Sprint(time.Now().UnixNano())))
}

// lostMessages is how many messages of links this network namespace's sockets have lost.
func lostMessages(t *testing.T) (n int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/net/netlink", unix.Gettid()))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		var sk, groups, rmem, wmem, dump, locks string
		var protocol, pid, drops int
		_, err := fmt.Sscan(line, &sk, &protocol, &pid, &groups, &rmem, &wmem, &dump, &locks, &drops)
		if err == nil && protocol == unix.NETLINK_ROUTE {
			n += drops
		}
	}
	return n
}
