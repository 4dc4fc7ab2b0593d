package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// TestNeighborTakesMAC has a container with CAP_NET_ADMIN join a network, and take a peer's MAC there as soon as it sees the device.
func TestNeighborTakesMAC(t *testing.T) {
	t.Parallel()
	s := newNeighbors(t)
	other := s.v.Network("two")
	s.v.Run("rm", "--force", s.from.ID)
	s.from = s.v.Start(s.image, "joiner", []string{"--network", other, "--cap-add", "NET_ADMIN"})
	pid, err := strconv.Atoi(strings.TrimSpace(s.v.Run("inspect", "--format", "{{.State.Pid}}", s.from.ID)))
	if err != nil {
		t.Fatal(err)
	}
	s.v.StartAgent("-v")
	s.v.Run("network", "connect", s.network, s.from.ID)
	s.serve(t, "db")
	s.v.Run("network", "disconnect", s.network, s.from.ID)
	for range times(10, 100) {
		stop := takeMAC(t, pid, s.other.mac)
		s.v.Run("network", "connect", s.network, s.from.ID)
		s.device = stop()
		s.aim(t, "db")
		var frames [][]byte
		var texts []string
		s.tr.n++
		for _, src := range []netip.Addr{s.other.v4, s.other.v6} {
			texts = append(texts, fmt.Sprintf("%d as %s", s.tr.n, src))
			frames = append(frames, s.datagram(s.other.mac, src, texts[len(texts)-1]))
		}
		s.send(frames...)
		s.dials(s.peer, s.to.v4, s.to.v6) // it is heard, as before
		for _, text := range texts {
			if n := s.arrived(text); n > 0 {
				t.Errorf("%q arrived %d times", text, n)
			}
		}
		s.v.Run("network", "disconnect", s.network, s.from.ID)
		if t.Failed() {
			return
		}
	}
}

// takeMAC gives the device that appears in the network namespace of a process beside the first one a MAC, as somebody in there would, until stop is
// called, which says how it is named.
func takeMAC(t *testing.T, pid int, mac []byte) (stop func() string) {
	t.Helper()
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		t.Fatal(err)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	end, name := make(chan struct{}), ""
	var done sync.WaitGroup
	done.Go(func() {
		defer ns.Close()
		defer h.Close()
		for {
			select {
			case <-end:
				return
			default:
			}
			links, _ := h.LinkList()
			for _, l := range links {
				a := l.Attrs()
				if l.Type() != "veth" || a.Name == "eth0" {
					continue
				}
				name = a.Name
				if !bytes.Equal(a.HardwareAddr, mac) {
					_ = h.LinkSetHardwareAddr(l, mac)
				}
			}
		}
	})
	return func() string { close(end); done.Wait(); return name }
}
