package xdp

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// gets sends a datagram from the host and tells whether the container's socket gets it in time.
func (n *network) gets(wait time.Duration) (got bool) {
	n.t.Helper()
	var sink net.PacketConn
	n.inContainer(func() {
		var err error
		sink, err = net.ListenPacket("udp", "192.0.2.2:0")
		must(n.t, err)
	})
	defer sink.Close()
	c, err := net.Dial("udp", sink.LocalAddr().String())
	must(n.t, err)
	defer c.Close()
	_, err = c.Write([]byte("datagram"))
	must(n.t, err)
	must(n.t, sink.SetReadDeadline(time.Now().Add(wait)))
	_, _, err = sink.ReadFrom(make([]byte, 64))
	return err == nil
}

func (n *network) wantGets(want bool, when string) {
	n.t.Helper()
	wait := long
	if want {
		wait = soon
	}
	if got := n.gets(wait); got != want {
		n.t.Errorf("%s: UDP reaches the container: %v, want %v", when, got, want)
	}
}

// TestBegin has in force at once what is judged at XDP, and what is judged at tcx once the rest is attached and taken.
func TestBegin(t *testing.T) {
	n := newNetwork(t)
	dir := bpffs(t)
	f := open(t, dir)
	if !f.tcx {
		f.Close()
		t.Skip("no tcx")
	}
	drop, other := Want{Policy: labelled(t, "xdp.drop=udp")}, Want{Policy: labelled(t, "xdp.drop=tcp")}
	begin := func(w Want) *Rest {
		t.Helper()
		r, err := f.Begin(n.host.Index, w)
		must(t, err)
		if r == nil || r.Open != (w.Mode == TCX) {
			t.Fatalf("rest %+v", r)
		}
		return r
	}
	n.wantGets(true, "before")
	begin(drop) // is given up
	n.wantUDP(false, "begun")
	n.wantGets(true, "begun")
	begin(other)
	n.wantUDP(true, "begun with another policy")
	f.Close() // crashes
	f = open(t, dir)
	defer func() { f.Close() }()
	r := begin(drop)
	n.wantUDP(false, "begun by the next agent")
	must(t, r.Attach())
	n.wantGets(false, "attached")
	must(t, f.Take(r))
	if r, err := f.Begin(n.host.Index, drop); r != nil || err != nil {
		t.Errorf("another rest: %+v, %v", r, err)
	}
	must(t, r.Close()) // what is taken stays
	n.wantUDP(false, "complete")
	n.wantGets(false, "complete")
	if r, err := f.Begin(n.host.Index, other); r != nil || err != nil {
		t.Errorf("a rest of a policy that takes the same hooks: %+v, %v", r, err)
	}
	n.wantUDP(true, "complete, with another policy")
	n.wantGets(true, "complete, with another policy")
	must(t, f.Attach(n.host.Index, drop))
	f.Close()
	if pins, err := os.ReadDir(f.linksDir()); err != nil || len(pins) != 2 {
		t.Errorf("pins %v, %v", pins, err)
	}
	n.wantUDP(false, "without a process")
	n.wantGets(false, "without a process")
	f = open(t, dir)
	must(t, f.Detach(n.host.Index))
	r = begin(Want{Policy: labelled(t, "xdp.drop=udp"), Mode: TCX})
	n.wantUDP(true, "nothing but tcx")
	must(t, r.Attach())
	must(t, f.Take(r))
	n.wantUDP(false, "tcx")
}

// TestRestIsNotTaken gives up rests of devices that have been filtered otherwise meanwhile, or are gone.
func TestRestIsNotTaken(t *testing.T) {
	n := newNetwork(t)
	f := open(t, bpffs(t))
	defer f.Close()
	if !f.tcx {
		t.Skip("no tcx")
	}
	w := Want{Policy: labelled(t, "xdp.drop=udp")}
	late, err := f.Begin(n.host.Index, w)
	must(t, err)
	must(t, f.Attach(n.host.Index, w))
	if err := late.Attach(); err == nil {
		t.Error("two links of one program at a hook")
	}
	must(t, f.Take(late))
	n.wantUDP(false, "attached otherwise")
	n.wantGets(false, "attached otherwise")

	must(t, f.Detach(n.host.Index))
	gone, err := f.Begin(n.host.Index, w)
	must(t, err)
	must(t, gone.Attach())
	l, err := netlink.LinkByIndex(n.host.Index)
	must(t, err)
	must(t, netlink.LinkDel(l))
	must(t, f.Take(gone))
	if len(gone.links) > 0 || f.links[hookID{n.host.Index, hookReceived}] != nil {
		t.Error("the link of a device that is gone is kept")
	}
	if err := gone.Attach(); !IsGone(err) {
		t.Errorf("attached to a device that is gone: %v", err)
	}
	if _, err := f.Begin(n.host.Index, w); err == nil {
		t.Errorf("begun on a device that is gone: %v", err)
	}
}
