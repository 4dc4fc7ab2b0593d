package xdp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// spoofRig is a container whose veth is a port of a bridge, another port of which is the sink.
type spoofRig struct {
	*network
	f               *Filter
	container, sink *rawEnd
	id              policy.Identity
	marks           uint32
}

func newSpoofRig(t *testing.T) *spoofRig {
	t.Helper()
	n := newNetwork(t)
	must(t, onCPU(0))
	quiet := func() {
		silence(t)
		for _, tables := range []string{"ip", "ip6", "arp"} {
			sysctl(t, "bridge/bridge-nf-call-"+tables+"tables", "0")
		}
	}
	quiet()
	no := false
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}, MulticastSnooping: &no}
	must(t, netlink.LinkAdd(bridge))
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out0"}, PeerName: "sink0"}))
	for _, name := range []string{"br0", "host0", "out0", "sink0"} {
		l, err := netlink.LinkByName(name)
		must(t, err)
		if name == "host0" || name == "out0" {
			must(t, netlink.LinkSetMaster(l, bridge))
		}
		must(t, netlink.LinkSetUp(l))
	}
	rig := &spoofRig{network: n, f: open(t, bpffs(t)), sink: newRawEnd(t, "sink0"), id: policy.Identity{MAC: ownMAC}}
	t.Cleanup(rig.f.Close)
	n.inContainer(func() {
		quiet()
		rig.container = newRawEnd(t, "eth0")
	})
	for _, a := range []string{own4, own6, elsewhere4, ownLocal} {
		rig.id.Own = append(rig.id.Own, netipx.IPRangeFrom(netip.MustParseAddr(a), netip.MustParseAddr(a)))
	}
	return rig
}

// arrives reports whether a frame of the container comes out of the bridge. It looks until one that was sent later has come: the
// thread stays on one CPU, so that they keep their order.
func (r *spoofRig) arrives(frame []byte) (arrived bool) {
	r.t.Helper()
	r.marks++
	mark := policytest.IP(own4, gateway4, protoUDP, policytest.UDP(9, 9, binary.BigEndian.AppendUint32(nil, r.marks)...))
	r.container.send(frame)
	r.container.send(mark)
	for {
		got := r.sink.receive(soon)
		switch {
		case got == nil:
			r.t.Fatal("a frame of the container's own does not arrive")
		case bytes.Equal(got, mark):
			return arrived
		case bytes.Equal(got, frame) || bytes.Equal(got, untagged(frame)):
			arrived = true
		}
	}
}

// untagged is a frame without its first tag, as packet(7) sockets get it.
func untagged(frame []byte) []byte {
	if t := binary.BigEndian.Uint16(frame[12:]); t != 0x8100 && t != 0x88a8 {
		return frame
	}
	return append(frame[:12:12], frame[16:]...)
}

// counted is how many packets that the container sent have been counted for a reason.
func (r *spoofRig) counted(why policy.Reason, audited bool) (n uint64) {
	r.t.Helper()
	list, err := readCounts(r.f.objs.Counters, r.f.maps.devices[r.host.Index].Counters)
	must(r.t, err)
	for _, c := range list {
		if c.Direction == policy.Egress && c.Reason == why && c.Audited == audited {
			n += c.Packets
		}
	}
	return n
}

// spoofCase is a way to judge what the container sends. Where it is off or audited, what is forged passes.
type spoofCase struct {
	name, labels     string
	mode             Mode
	both, off, audit bool
}

// TestSpoof sends what is a container's own and what is forged, and looks at the sink what arrives: at every hook, and with
// antispoof switched off and in audit mode, where all of it does.
func TestSpoof(t *testing.T) {
	r := newSpoofRig(t)
	own, err := CompileOwn(r.id.Own)
	must(t, err)
	for _, c := range []spoofCase{
		{name: "generic", mode: Generic, labels: "xdp.enable=true"},
		{name: "native", mode: Native, labels: "xdp.enable=true"},
		{name: "tcx", mode: TCX, labels: "xdp.enable=true"},
		{name: "generic and tcx", mode: Generic, labels: "xdp.enable=true", both: true},
		{name: "with conversations", mode: Generic, labels: "xdp.egress.drop=1/tcp"},
		{name: "with limits", mode: Generic, labels: "xdp.limit=all=1gbit"},
		{name: "off", mode: Generic, labels: "xdp.antispoof=false", off: true},
		{name: "audit", mode: Generic, labels: "xdp.mode=audit", audit: true},
	} {
		want := Want{Policy: labelled(t, c.labels), MAC: ownMAC[:], Own: own, Mode: c.mode, BothHooks: c.both}
		if c.off {
			want.Own = nil
		}
		must(t, r.f.Detach(r.host.Index))
		must(t, r.f.Attach(r.host.Index, want))
		frames := 0
		for _, row := range spoofRows {
			r.check(c, row)
			frames += len(row.own) + len(row.forged)
		}
		t.Logf("%s: %d frames", c.name, frames)
	}
}

// check sends the frames of a row.
func (r *spoofRig) check(c spoofCase, row spoofRow) {
	r.t.Helper()
	name, why := c.name+": "+row.name, row.why
	if why == policy.Pass {
		why = policy.Spoof
	}
	for i, frame := range row.own {
		if got := r.id.Judge(frame); got != policy.Pass {
			r.t.Errorf("%s: the specification says %s of what is its own, frame %d", name, got, i)
		}
		if !r.arrives(frame) {
			r.t.Errorf("%s: what is its own does not arrive, frame %d\n%x", name, i, frame)
		}
	}
	before, passes := r.counted(why, c.audit), c.off || c.audit
	for i, frame := range row.forged {
		if got := r.id.Judge(frame); got != why {
			r.t.Errorf("%s: the specification says %s of what is forged, want %s, frame %d", name, got, why, i)
		}
		if got := r.arrives(frame); got != passes {
			r.t.Errorf("%s: what is forged arrives: %v, frame %d\n%x", name, got, i, frame)
		}
	}
	if got := r.counted(why, c.audit) - before; !c.off && got != uint64(len(row.forged)) {
		r.t.Errorf("%s: %d counted for %s, want %d", name, got, why, len(row.forged))
	}
}
