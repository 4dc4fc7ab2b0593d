package xdp

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// limited is a stream of datagrams under a limit of its own.
type limited struct {
	name, rate string
	v6         bool
	size       int // bytes of payload
	// parts is how many datagrams the kernel makes of what is sent at once; raw: of a raw frame.
	parts int
	raw   bool
	// passes is how many datagrams a second the limit lets pass.
	passes float64
}

const udpHeaders4, udpHeaders6 = 14 + 20 + 8, 14 + 40 + 8 // bytes of layer 2

var limitedStreams = []limited{
	{name: "packets", rate: "2kpps", size: 100, parts: 1, passes: 2000},
	{name: "bits", rate: "8mbit", size: 1000, parts: 1, passes: 8e6 / 8 / (1000 + udpHeaders4)},
	{name: "packets of IPv6", rate: "1500pps", v6: true, size: 100, parts: 1, passes: 1500},
	{name: "bits of IPv6", rate: "4mbit", v6: true, size: 500, parts: 1, passes: 4e6 / 8 / (500 + udpHeaders6)},
	{name: "segments", rate: "3kpps", size: 100, parts: 20, passes: 3000},
	{name: "bits of segments", rate: "6mbit", size: 100, parts: 30, passes: 6e6 / 8 / (100 + udpHeaders4)},
	{name: "bits of segments of IPv6", rate: "5mbit", v6: true, size: 200, parts: 30, passes: 5e6 / 8 / (200 + udpHeaders6)},
	{name: "segments of raw frames", rate: "2500pps", size: 100, parts: 20, raw: true, passes: 2500},
	{name: "no limit", size: 100, parts: 1, passes: 3000},
}

// ratedHook is where a direction is held to rates.
type ratedHook struct {
	name, dir string
	mode      Mode
	clsact    bool
	long      bool // only where there is time
}

var ratedHooks = []ratedHook{
	{name: "generic", dir: "egress", mode: Generic},
	{name: "native", dir: "egress", mode: Native, long: true},
	{name: "tcx", dir: "egress", mode: TCX},
	{name: "clsact", dir: "egress", mode: TCX, clsact: true, long: true},
	{name: "received", dir: "ingress", mode: Generic},
	{name: "received by clsact", dir: "ingress", mode: Generic, clsact: true, long: true},
}

// TestRates holds streams of datagrams to rates, in both directions and at every hook. They run beside each other, each with three
// times what its limit lets pass; the last one shows what passes without a limit.
func TestRates(t *testing.T) {
	n := newNetwork(t)
	hurry()
	f := open(t, bpffs(t))
	defer f.Close()
	for _, h := range ratedHooks {
		if h.long && !isLong() {
			continue
		}
		must(t, f.Detach(n.host.Index))
		had := f.noTCX
		f.noTCX = had || h.clsact
		var limits []string
		var streams []*stream
		for i, l := range limitedStreams {
			s := newStream(n, h.dir, l, uint16(1001+i))
			if l.rate != "" {
				s.offered = 3 * s.passes
				limits = append(limits, fmt.Sprintf("%d/udp=%s", 1001+i, l.rate))
			}
			streams = append(streams, s)
		}
		must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp."+h.dir+".limit="+strings.Join(limits, ",")), Mode: h.mode}))
		wantRates(t, h.name, streams)
		for _, s := range streams {
			s.close()
		}
		f.noTCX = had
	}
}

// TestLimitsTogether holds packets to several limits at once: each to the tightest that it counts against, and what is dropped by
// one takes nothing of another.
func TestLimitsTogether(t *testing.T) {
	n := newNetwork(t)
	hurry()
	f := open(t, bpffs(t))
	defer f.Close()
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.limit=all=50mbit,udp=4kpps,1001/udp=1kpps xdp.ingress.limit.more=udp=500pps"), Mode: Generic}))
	var streams []*stream
	for _, c := range []struct {
		dir             string
		port            uint16
		offered, passes float64
	}{
		{"egress", 1001, 5000, 1000},
		{"egress", 1002, 9000, 3000}, // what the other leaves of udp=4kpps
		{"ingress", 1003, 2000, 500},
	} {
		s := newStream(n, c.dir, limited{name: fmt.Sprintf("%s %d/udp", c.dir, c.port), size: 100, parts: 1, passes: c.passes}, c.port)
		s.offered = c.offered
		streams = append(streams, s)
	}
	wantRates(t, "together", streams)
}

// TestOneWayLimit shows that a limit leaves the other direction alone.
func TestOneWayLimit(t *testing.T) {
	n := newNetwork(t)
	hurry()
	f := open(t, bpffs(t))
	defer f.Close()
	for _, dirs := range [][2]string{{"egress", "ingress"}, {"ingress", "egress"}} {
		must(t, f.Detach(n.host.Index))
		must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp."+dirs[0]+".limit=udp=500pps"), Mode: Generic}))
		held := newStream(n, dirs[0], limited{name: dirs[0], size: 100, parts: 1, passes: 500}, 1001)
		held.offered = 2000
		free := newStream(n, dirs[1], limited{name: dirs[1], size: 100, parts: 1, passes: 2000}, 1002)
		wantRates(t, dirs[0]+" held", []*stream{held, free})
		held.close()
		free.close()
	}
}

func isLong() bool { return os.Getenv("VETHWALL_LONG") != "" }

// hurry lets the thread run before all others, where that is permitted, so that a busy machine does not keep it from sending. The
// thread sleeps most of the time, and it ends with the test.
func hurry() {
	const fifo, notForChildren = 1, 1 // SCHED_FIFO, SCHED_FLAG_RESET_ON_FORK
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: fifo, Flags: notForChildren, Priority: 1}, 0)
}

// burst is BURST of bpf/limit.h.
const burst = 250 * time.Millisecond

// wantRates overloads the streams, once more where that was not done steadily, and checks that each arrives at its rate, within
// 5 %. The long run is of ten seconds and what the buckets hold at the begin counts; the short one begins when they are full.
func wantRates(t *testing.T, when string, streams []*stream) {
	t.Helper()
	lead, d := 2*burst, 2*time.Second
	if isLong() {
		lead, d = 0, 10*time.Second
	}
	counted, steady := overload(t, streams, lead, d)
	for try := 1; !steady; try++ {
		if try == 10 {
			t.Fatalf("%s: this machine was too busy to send without a pause, %d times", when, try)
		}
		counted, steady = overload(t, streams, lead, d)
	}
	for _, s := range streams {
		got, sent := float64(s.arrived)/counted, float64(s.sent)/counted
		t.Logf("%s: %s: of %.0f datagrams a second %.0f pass, the limit is %.0f: %+.1f %%", when, s.name, sent, got, s.passes, 100*(got/s.passes-1))
		if got < s.passes*0.95 || got > s.passes*1.05 {
			t.Errorf("%s: %s: %.0f datagrams a second pass, want %.0f", when, s.name, got, s.passes)
		}
	}
}

// overload sends on all streams beside each other for lead and d, and counts for d, which is counted in seconds. steady is false
// where the thread was kept from sending for so long that a bucket may have run empty: what arrived is no measure of the rate then.
func overload(t *testing.T, streams []*stream, lead, d time.Duration) (counted float64, steady bool) {
	t.Helper()
	steady = true
	begin := time.Now()
	for _, s := range streams {
		s.sent, s.before, s.last = 0, 0, begin
	}
	from, to := begin, begin
	for to.Sub(begin) < lead+d {
		to = time.Now()
		for _, s := range streams {
			steady = steady && time.Since(s.last) < burst*3/5
			s.last = time.Now()
			s.keepUp(t, to.Sub(begin))
			s.drain(t)
		}
		if from.Equal(begin) && to.Sub(begin) >= lead {
			from = to
			for _, s := range streams {
				s.before, s.arrived = s.sent, 0
			}
		}
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil) // by the thread itself: Go's other threads are in no hurry
	}
	for _, s := range streams {
		s.settle(t)
		s.sent -= s.before
	}
	return to.Sub(from).Seconds(), steady
}

// stream sends datagrams from one socket to another and never waits for them.
type stream struct {
	name  string
	send  func() error // parts datagrams at once
	parts int
	to    int // the socket that they arrive at
	from  int
	// offered is what is sent and passes what is to arrive, in datagrams a second.
	offered, passes float64
	sent, arrived   int
	before          int       // of sent, what was sent before it was counted
	last            time.Time // that it was sent
}

// keepUp sends what is due so long after the begin.
func (s *stream) keepUp(t *testing.T, after time.Duration) {
	t.Helper()
	for float64(s.sent) < s.offered*after.Seconds() {
		// A drop at tc egress comes back as ENOBUFS to some.
		if err := s.send(); err != nil && !errors.Is(err, unix.ENOBUFS) {
			t.Fatalf("%s: %v", s.name, err)
		}
		s.sent += s.parts
	}
}

// drain counts what has arrived.
func (s *stream) drain(t *testing.T) {
	t.Helper()
	for {
		_, _, err := unix.Recvfrom(s.to, make([]byte, 1), unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		must(t, err)
		s.arrived++
	}
}

// settle counts what arrives after the last call too: the kernel may have put it off.
func (s *stream) settle(t *testing.T) {
	t.Helper()
	for before := -1; before != s.arrived; {
		before = s.arrived
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(s.to), Events: unix.POLLIN}}, 20)
		s.drain(t)
	}
}

func (s *stream) close() { _, _ = unix.Close(s.from), unix.Close(s.to) }

// newStream opens the sockets of a stream that the container sends (egress) or receives.
func newStream(n *network, dir string, l limited, port uint16) *stream {
	n.t.Helper()
	here := func(open func()) { open() }
	sender, receiver, to := n.inContainer, here, "192.0.2.1"
	if dir == "ingress" {
		sender, receiver, to = here, n.inContainer, "192.0.2.2"
	}
	if l.v6 {
		to = map[string]string{"egress": "2001:db8::1", "ingress": "2001:db8::2"}[dir]
	}
	return newStreamTo(n, l, to, port, sender, receiver)
}

// newStreamTo opens the sockets in the namespaces that sender and receiver lead to, and sends one by which the ends get to
// know each other.
func newStreamTo(n *network, l limited, addr string, port uint16, sender, receiver func(func())) *stream {
	n.t.Helper()
	to := netip.MustParseAddr(addr)
	s := &stream{name: l.name, parts: l.parts, offered: l.passes, passes: l.passes}
	receiver(func() {
		s.to = datagrams(n.t, to, 0)
		must(n.t, unix.SetsockoptInt(s.to, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
		must(n.t, unix.Bind(s.to, sockaddr(to, port)))
	})
	sender(func() {
		s.from = datagrams(n.t, to, l.size)
		must(n.t, unix.Connect(s.from, sockaddr(to, port)))
		data := make([]byte, l.size*l.parts)
		s.send = func() error { _, err := unix.Write(s.from, data); return err }
	})
	must(n.t, s.send())
	for deadline := time.Now().Add(soon); s.arrived == 0; s.settle(n.t) {
		if time.Now().After(deadline) {
			n.t.Fatalf("nothing arrives at %s", addr)
		}
	}
	if l.raw {
		sender(func() { s.send = newSuperFrame(n.t, to, port, l) })
	}
	return s
}

// datagrams is a UDP socket that takes several datagrams of size bytes at once; 0 for one.
func datagrams(t *testing.T, to netip.Addr, size int) int {
	t.Helper()
	family := unix.AF_INET
	if to.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	const udpSegment = 103 // UDP_SEGMENT
	must(t, unix.SetsockoptInt(fd, unix.IPPROTO_UDP, udpSegment, size))
	return fd
}

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: int(port), Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: int(port), Addr: a.As16()}
}
