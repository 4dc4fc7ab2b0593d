package xdp

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/vethwall/vethwall/policy"
)

// probe sends datagrams from the container to two ports of the host's end of a veth: some 50 kbit at once to the one that may
// be limited.
type probe struct {
	t             *testing.T
	limited, free *stream
}

// newProbe opens the sockets for a veth whose host's end has this address.
func newProbe(n *network, addr string) probe {
	n.t.Helper()
	open := func(port uint16, parts int) *stream {
		return newStreamTo(n, limited{size: 1000, parts: parts}, addr, port, n.inContainer, func(open func()) { open() })
	}
	return probe{n.t, open(1001, 6), open(1002, 1)}
}

// passes reports whether what is sent to port 1001 arrives. It looks when what was sent to port 1002 later has; the caller's
// thread stays on one CPU, so that they keep their order.
func (p probe) passes() bool {
	p.t.Helper()
	p.limited.arrived, p.free.arrived = 0, 0
	must(p.t, p.limited.send())
	must(p.t, p.free.send())
	for deadline := time.Now().Add(soon); p.free.arrived == 0; p.free.drain(p.t) {
		if time.Now().After(deadline) {
			p.t.Fatal("what has no limit does not arrive")
		}
	}
	p.limited.drain(p.t)
	return p.limited.arrived > 0
}

// TestBuckets follows a bucket that is full for 50 s: it is the container's, on all its veths, and stays when the agent or the
// policy is another.
func TestBuckets(t *testing.T) {
	n := newNetwork(t)
	must(t, onCPU(0))
	other := n.veth("host1", "eth1")
	n.address("host1", "198.51.100.1/24", "eth1", "198.51.100.2/24")
	first, second := newProbe(n, "192.0.2.1"), newProbe(n, "198.51.100.1")
	dir := bpffs(t)
	f := open(t, dir)
	both := func(labels string, siblings ...int) {
		t.Helper()
		for _, v := range []Veth{n.host, other} {
			must(t, f.Attach(v.Index, Want{Policy: labelled(t, labels), Mode: Generic, Siblings: siblings}))
		}
	}
	want := func(when string, wantFirst, wantSecond bool) {
		t.Helper()
		if a, b := first.passes(), second.passes(); a != wantFirst || b != wantSecond {
			t.Errorf("%s: passes on the one veth: %v, on the other: %v; want %v, %v", when, a, b, wantFirst, wantSecond)
		}
	}
	const limit = "xdp.egress.limit=1001/udp=1kbit"
	siblings := []int{n.host.Index, other.Index}
	both(limit, siblings...)
	want("one bucket for both", true, false)
	want("full", false, false)
	f.Close()
	want("no agent", false, false)
	f = open(t, dir)
	defer func() { f.Close() }()
	both(limit, siblings...)
	want("another agent", false, false)
	both(limit+" xdp.drop=tcp", siblings...)
	want("another policy", false, false)
	for _, i := range siblings {
		must(t, f.Detach(i))
	}
	want("no filter", true, true)
	both(limit)
	want("a bucket for each", true, true)
	want("both full", false, false)
}

// TestLargerThanBurst sends at once more than a bucket holds: it passes and is paid for afterwards.
func TestLargerThanBurst(t *testing.T) {
	n := newNetwork(t)
	must(t, onCPU(0))
	f := open(t, bpffs(t))
	defer f.Close()
	const parts, rate = 30, 640_000
	s := newStreamTo(n, limited{size: 1000, parts: parts}, "192.0.2.1", 1001, n.inContainer, func(open func()) { open() })
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.egress.limit=udp=640kbit"), Mode: Generic}))
	send := func() int {
		s.arrived = 0
		must(t, s.send())
		s.settle(t)
		return s.arrived
	}
	begin := time.Now()
	if got := send(); got != parts {
		t.Fatalf("%d of %d pass", got, parts)
	}
	if got := send(); got != 0 {
		t.Errorf("%d pass while the bucket is full", got)
	}
	for send() == 0 {
		if time.Since(begin) > soon {
			t.Fatal("nothing passes any more")
		}
	}
	paid := time.Duration(parts*(1000+udpHeaders4)*8*1e9/rate) - burst
	if took := time.Since(begin); took < paid {
		t.Errorf("the next passes after %v, want %v at least", took, paid)
	}
}

// TestAuditedLimit counts what is over the rate, and lets it pass.
func TestAuditedLimit(t *testing.T) {
	n := newNetwork(t)
	must(t, onCPU(0))
	f := open(t, bpffs(t))
	defer f.Close()
	for _, mode := range []Mode{Generic, TCX} {
		must(t, f.Detach(n.host.Index))
		p := newProbe(n, "192.0.2.1")
		tables := labelled(t, "xdp.egress.limit=1001/udp=1kbit xdp.mode=audit")
		must(t, f.Attach(n.host.Index, Want{Policy: tables, Mode: mode}))
		for i := range 10 {
			if !p.passes() {
				t.Errorf("%s: datagram %d does not pass", mode, i)
			}
		}
		counts, err := readCounts(f.objs.Counters, f.maps.devices[n.host.Index].Counters)
		must(t, err)
		var over, passed uint64
		for _, c := range counts {
			switch c.Reason {
			case policy.ByRule:
				over += c.Packets
			case policy.Pass:
				passed += c.Packets
			}
		}
		if counted := tables.Rules[policy.Egress][0]; over != 9 || passed < 11 || !counted.Audit || !counted.Limit {
			t.Errorf("%s: %d over the limit, %d not, counted as %+v", mode, over, passed, counted)
		}
		p.limited.close()
		p.free.close()
	}
}

// address gives addresses to a veth's ends.
func (n *network) address(host, hostAddr, container, containerAddr string) {
	n.t.Helper()
	add := func(device, addr string) {
		l, err := netlink.LinkByName(device)
		must(n.t, err)
		must(n.t, netlink.LinkSetUp(l))
		a, err := netlink.ParseAddr(addr)
		must(n.t, err)
		must(n.t, netlink.AddrAdd(l, a))
	}
	add(host, hostAddr)
	n.inContainer(func() { add(container, containerAddr) })
}
