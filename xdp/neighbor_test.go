package xdp

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// neighborRig is a container on a bridge that has two other ports: a peer's, and that of somebody who forges. What arrives
// is looked for in the container.
type neighborRig struct {
	*network
	f                  *Filter
	sink, peer, forger *rawEnd
	stranger           *rawEnd // by a port of which nothing is known
	gateway            *rawEnd // the bridge, by which the host sends
	elsewhere          *rawEnd // on another bridge
	bridge             int
	ports              map[*rawEnd]int // their other ends
	marks              uint32
}

const ( // beside those of spoof_rows_test.go
	peer4, peer6     = "192.0.2.5", "2001:db8::5"
	forger4, forger6 = other4, other6
)

var (
	peerMAC, forgerMAC        = [6]byte{0, 0, 0x5e, 0, 0x53, 5}, otherMAC
	bridgeMAC, otherBridgeMAC = [6]byte{2, 0, 0x5e, 0, 0x53, 0xb0}, [6]byte{2, 0, 0x5e, 0, 0x53, 0xb1}
)

func newNeighborRig(t *testing.T) *neighborRig {
	t.Helper()
	n := newNetwork(t)
	must(t, onCPU(0))
	silence(t)
	for _, tables := range []string{"ip", "ip6", "arp"} {
		sysctl(t, "bridge/bridge-nf-call-"+tables+"tables", "0")
	}
	sysctl(t, "ipv4/ip_forward", "1")
	for _, of := range []string{"all", "default"} {
		sysctl(t, "ipv4/conf/"+of+"/rp_filter", "0")
	}
	br, other := newBridge(t, "br0", bridgeMAC), newBridge(t, "br1", otherBridgeMAC)
	r := &neighborRig{network: n, f: open(t, bpffs(t)), ports: map[*rawEnd]int{}, bridge: br.Attrs().Index}
	t.Cleanup(r.f.Close)
	host, err := netlink.LinkByName("host0")
	must(t, err)
	gateway, err := netlink.ParseAddr(gateway4 + "/24")
	must(t, err)
	must(t, netlink.AddrDel(host, gateway))
	must(t, netlink.LinkSetMaster(host, br))
	must(t, netlink.AddrAdd(br, gateway))
	must(t, netlink.NeighAdd(&netlink.Neigh{LinkIndex: br.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(own4), HardwareAddr: ownMAC[:]}))
	r.peer, r.forger, r.stranger, r.elsewhere = r.port("peer"), r.port("forger"), r.port("stranger"), r.portOf("elsewhere", 0, other)
	r.gateway = newRawEnd(t, "br0")
	n.inContainer(func() {
		silence(t)
		r.sink = newRawEnd(t, "eth0")
	})
	return r
}

func newBridge(t *testing.T, name string, mac [6]byte) netlink.Link {
	t.Helper()
	no := false
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: mac[:]}, MulticastSnooping: &no}
	must(t, netlink.LinkAdd(br))
	must(t, netlink.LinkSetUp(br))
	return br
}

// port adds a port to the container's bridge; its other end stays here.
func (r *neighborRig) port(name string) *rawEnd {
	r.t.Helper()
	br, err := netlink.LinkByIndex(r.bridge)
	must(r.t, err)
	return r.portOf(name, 0, br)
}

// portOf gives the port a number, 0 for any.
func (r *neighborRig) portOf(name string, index int, br netlink.Link) *rawEnd {
	r.t.Helper()
	must(r.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}, PeerName: name + "-end"}))
	l, err := netlink.LinkByName(name)
	must(r.t, err)
	end, err := netlink.LinkByName(name + "-end")
	must(r.t, err)
	must(r.t, netlink.LinkSetMaster(l, br))
	must(r.t, netlink.LinkSetUp(l))
	must(r.t, netlink.LinkSetUp(end))
	// The bridge takes nothing from a port before it has heard of its carrier.
	for deadline := time.Now().Add(soon); l.Attrs().OperState != netlink.OperUp; {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s does not come up", name)
		}
		l, err = netlink.LinkByName(name)
		must(r.t, err)
	}
	e := newRawEnd(r.t, name+"-end")
	r.ports[e] = l.Attrs().Index
	return e
}

// arrives reports whether a frame comes out at the container. It looks until one that the peer has sent later has come.
func (r *neighborRig) arrives(from *rawEnd, frame []byte) (arrived bool) {
	r.t.Helper()
	r.marks++
	mark := policytest.IP(peer4, own4, protoUDP, policytest.UDP(9, 9, binary.BigEndian.AppendUint32(nil, r.marks)...))
	mark = policytest.With(mark, 6, peerMAC[:]...)
	from.send(frame)
	r.peer.send(mark)
	for {
		got := r.sink.receive(soon)
		switch {
		case got == nil:
			r.t.Fatal("a frame of the peer does not arrive")
		case bytes.Equal(got, mark):
			return arrived
		case bytes.Equal(got, frame) || bytes.Equal(got, untagged(frame)) || routed(got, frame):
			arrived = true
		}
	}
}

// routed reports whether got is what the host makes of a packet that it forwards.
func routed(got, frame []byte) bool {
	const from = 14 + 12 // TTL and checksum are others
	return len(got) == len(frame) && got[12] == 0x08 && [6]byte(got[6:]) == bridgeMAC && bytes.Equal(got[from:], frame[from:])
}

func (r *neighborRig) counted(audited bool) (n uint64) {
	r.t.Helper()
	list, err := readCounts(r.f.objs.Counters, r.f.maps.devices[r.host.Index].Counters)
	must(r.t, err)
	for _, c := range list {
		if c.Direction == policy.Ingress && c.Reason == policy.NeighborSpoof && c.Audited == audited {
			n += c.Packets
		}
	}
	return n
}

// introduce says who has which addresses.
func (r *neighborRig) introduce(end *rawEnd, addrs ...string) {
	r.t.Helper()
	must(r.t, r.f.Introduce(r.bridge, r.ports[end], addresses(addrs...), false))
}

func addresses(texts ...string) (out []netip.Addr) {
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// from makes who has the MAC the sender of frames.
func from(mac [6]byte, frames ...[]byte) (out [][]byte) {
	for _, f := range frames {
		out = append(out, policytest.With(f, 6, mac[:]...))
	}
	return out
}

// forgeries are frames in which who has the MAC says that he has the peer's addresses, or the host's.
func forgeries(mac [6]byte) [][]byte {
	advert, routers := nd(advertise, forger6, own6, peer6, 2, forgerMAC), nd(routerAdvert, policy.LinkLocal(mac).String(), allNodes, "::", 1, mac)
	long := append(policytest.ICMP(advertise, 0, netip.MustParseAddr(peer6).AsSlice()...), 2, 1, 0, 0, 0x5e, 0, 0x53, 7, 14, 1, 1, 2, 3, 4, 5, 6)
	first := policytest.With(udpFrom(peer4, own4), 14+6, 0x20)
	return from(mac, slices.Concat(
		each(to(own4), peer4, gateway4), each(to(own6), peer6),
		tagged(udpFrom(peer4, own4)),
		[][]byte{
			policytest.IP(peer4, own4, protoTCP, policytest.TCP(1, 443)), first, policytest.With(first, 14+6, 0, 30),
			arp(1, mac, peer4, own4), arp(2, mac, peer4, own4), arp(2, forgerMAC, peer4, own4), arp(2, peerMAC, peer4, own4), arp(2, mac, gateway4, own4),
			policytest.With(arp(2, forgerMAC, peer4, own4), 14, 0, 6),
			advert, nd(advertise, forger6, allNodes, peer6, 2, mac), nd(advertise, policy.LinkLocal(forgerMAC).String(), own6, peer6, 2),
			nd(solicit, peer6, own6, own6, 1, forgerMAC),
			routers, nd(routerAdvert, forger6, own6, "", 1), hops(64, routers), nd(redirect, policy.LinkLocal(mac).String(), own6, peer6, 2, mac),
			hops(255, policytest.IP(forger6, own6, destinationOptions, policytest.Extension(protoICMPv6, 0, routers[14+40:]))),
			policytest.IP(forger4, own4, protoICMP, policytest.ICMP(9, 0)),
			hops(255, policytest.IP(forger6, own6, protoICMPv6, long)),
			hops(255, policytest.IP(forger6, own6, destinationOptions, policytest.Extension(protoICMPv6, 0, advert[14+40:]))),
		})...)
}

// tagged are a frame with a priority tag and with two tags.
func tagged(frame []byte) [][]byte {
	return [][]byte{policytest.With(policytest.Tagged(frame, 0x8100), 14, 0, 0), policytest.Tagged(frame, 0x88a8, 0x8100)}
}

// honest are frames of who has the MAC and the addresses.
func honest(mac [6]byte, v4, v6 string) [][]byte {
	return from(mac,
		udpFrom(v4, own4), udpFrom(v6, own6), policytest.IP(v4, own4, protoTCP, policytest.TCP(1, 443)),
		arp(1, mac, v4, own4), arp(2, mac, v4, own4), arp(1, mac, "0.0.0.0", own4), nd(advertise, v6, own6, v6, 2, mac), nd(solicit, v6, own6, own6, 1, mac),
		nd(solicit, "::", "ff02::1:ff00:5", v6, 1), udpFrom("203.0.113.9", own4), udpFrom("192.0.2.77", own4), udpFrom("2001:db8::77", own6),
		policytest.Eth(0x88b5, make([]byte, 40)))
}

// parts are the fragments of one packet from each of some addresses, and in IPv6 one that is the only one.
func parts(sources ...string) (out [][]byte) {
	for _, src := range sources {
		if whole := udpFrom(src, own4); netip.MustParseAddr(src).Is4() {
			out = append(out, policytest.With(whole, 14+6, 0x20), policytest.With(whole, 14+6, 0, 30))
			continue
		}
		datagram := policytest.UDP(1000, 53, 'd', 'a', 't', 'a', 1, 2, 3, 4)
		out = append(out, policytest.IP(src, own6, fragmentHeader, policytest.FragmentHeader(protoUDP, 0, true, datagram[:8])),
			policytest.IP(src, own6, fragmentHeader, policytest.FragmentHeader(protoUDP, 1, false, datagram[8:])),
			policytest.IP(src, own6, fragmentHeader, policytest.FragmentHeader(protoUDP, 0, false, datagram)))
	}
	return out
}

// unread are frames of which a kernel reads more than the programs: in the peer's name, and what is the sender's own.
func unread(mac [6]byte) [][]byte {
	tags := func(frame []byte) []byte {
		for range 4 { // one of them travels beside the frame
			frame = tagged(frame)[0]
		}
		return frame
	}
	headers := policytest.ICMP(advertise, 0, append(netip.MustParseAddr(peer6).AsSlice(), 2, 1, 0, 0, 0x5e, 0, 0x53, 7)...)
	kind := uint8(protoICMPv6)
	for range 9 {
		headers, kind = policytest.Extension(kind, 0, headers), destinationOptions
	}
	return from(mac, tags(udpFrom(peer4, own4)), tags(udpFrom(peer6, own6)), tags(arp(2, mac, peer4, own4)), tags(udpFrom(forger4, own4)),
		policytest.Cut(udpFrom(peer4, own4), 1), hops(255, policytest.IP(forger6, own6, kind, headers)))
}

// neighborCase is a policy under which a peer's name is used in vain. Where it is off or audited, what is forged passes. Where it
// lets in all, what could not be read is let in by its rules.
type neighborCase struct {
	name, labels   string
	off, audit, in bool
}

// TestNeighbors sends in a peer's name by another port, with whatever MAC, and looks in the container what arrives: nothing,
// but what is the peer's own, and what is nobody's. (Subtests would run in other threads, and so in another network.)
func TestNeighbors(t *testing.T) {
	r := newNeighborRig(t)
	for _, c := range []neighborCase{
		{name: "without conversations", labels: "xdp.ingress.drop=sctp xdp.drop=gre"},
		{name: "with conversations", labels: "xdp.ingress.drop=1/tcp"},
		{name: "with limits", labels: "xdp.limit=all=1gbit"},
		{name: "of what it sends", labels: "xdp.egress.allow=443/tcp", in: true},
		{name: "off", labels: "xdp.ingress.drop=1/tcp", off: true},
		{name: "off, of what it sends", labels: "xdp.egress.allow=443/tcp", off: true, in: true},
		{name: "audit", labels: "xdp.ingress.drop=1/tcp xdp.mode=audit", audit: true},
	} {
		want := Want{Policy: labelled(t, c.labels), Bridge: r.bridge}
		if c.off {
			want.Bridge = 0
		}
		must(t, r.f.Detach(r.host.Index))
		must(t, r.f.Attach(r.host.Index, want))
		r.introduce(r.peer, peer4, peer6)
		r.introduce(r.forger, forger4, forger6)
		must(t, r.f.Introduce(r.bridge, r.host.Index, addresses(own4, own6), false))
		must(t, r.f.Introduce(r.bridge, r.bridge, addresses(gateway4), false))
		must(t, sweep(r.f))
		r.check(c)
	}
}

func (r *neighborRig) check(c neighborCase) {
	r.t.Helper()
	before, forged := r.counted(c.audit), uint64(0)
	for _, mac := range [][6]byte{forgerMAC, peerMAC, bridgeMAC} {
		for i, frame := range forgeries(mac) {
			forged++
			if got := r.arrives(r.forger, frame); got != (c.off || c.audit) {
				r.t.Errorf("%s: a forged frame arrives: %v, frame %d from %x\n%x", c.name, got, i, mac, frame)
			}
		}
	}
	// The host routes it to where it came from, or from another network, with its own MAC.
	for by, mac := range map[*rawEnd][6]byte{r.forger: bridgeMAC, r.elsewhere: otherBridgeMAC} {
		routed := from(forgerMAC, policytest.With(udpFrom(peer4, own4), 0, mac[:]...))[0]
		checksum(routed[14:34])
		forged++
		if got := r.arrives(by, routed); got != (c.off || c.audit) {
			r.t.Errorf("%s: what the host routes from %x arrives: %v", c.name, mac, got)
		}
		routed = from(forgerMAC, policytest.With(udpFrom("203.0.113.9", own4), 0, mac[:]...))[0]
		checksum(routed[14:34])
		if !r.arrives(by, routed) {
			r.t.Errorf("%s: what the host routes from outside does not arrive from %x", c.name, mac)
		}
	}
	if got := r.counted(c.audit) - before; !c.off && got != forged {
		r.t.Errorf("%s: %d are counted, want %d", c.name, got, forged)
	}
	// A port that is new is not judged, but as a router.
	advert := from(forgerMAC, nd(routerAdvert, policy.LinkLocal(forgerMAC).String(), allNodes, "::", 1, forgerMAC))[0]
	forged++
	if got := r.arrives(r.stranger, advert); got != (c.off || c.audit) {
		r.t.Errorf("%s: what a new port advertises arrives: %v", c.name, got)
	}
	if !r.arrives(r.stranger, from(forgerMAC, udpFrom(peer4, own4))[0]) {
		r.t.Errorf("%s: what is sent by a new port does not arrive", c.name)
	}
	// What the host has cut anew does not tell by which port it came.
	for i, frame := range from(forgerMAC, parts(peer4, peer6)...) {
		forged++
		if got := r.arrives(r.gateway, frame); got != (c.off || c.audit) {
			r.t.Errorf("%s: a forged part that the host has made arrives: %v, frame %d\n%x", c.name, got, i, frame)
		}
	}
	// The host is the router.
	own := append(parts(gateway4, "203.0.113.9", "2001:db8:9::1"), nd(routerAdvert, policy.LinkLocal(bridgeMAC).String(), allNodes, "::", 1, bridgeMAC), udpFrom(peer4, own4))
	for i, frame := range from(bridgeMAC, own...) {
		if !r.arrives(r.gateway, frame) {
			r.t.Errorf("%s: what is the host's own does not arrive, frame %d\n%x", c.name, i, frame)
		}
	}
	if c.in {
		r.checkUnread(c)
	}
	for who, frames := range map[*rawEnd][][]byte{r.peer: honest(peerMAC, peer4, peer6), r.forger: honest(forgerMAC, forger4, forger6)} {
		for i, frame := range frames {
			if !r.arrives(who, frame) {
				r.t.Errorf("%s: what is its own does not arrive, frame %d\n%x", c.name, i, frame)
			}
		}
	}
	if got := r.counted(c.audit) - before; !c.off && got != forged {
		r.t.Errorf("%s: %d are counted, want %d: what is their own counts", c.name, got, forged)
	}
}

// checkUnread sends what cannot be read by a port that is known, and by one that is not: the bridge has named nobody there.
func (r *neighborRig) checkUnread(c neighborCase) {
	r.t.Helper()
	for i, frame := range unread(forgerMAC) {
		if got := r.arrives(r.forger, frame); got != c.off {
			r.t.Errorf("%s: what cannot be read arrives: %v, frame %d\n%x", c.name, got, i, frame)
		}
		if !r.arrives(r.stranger, frame) {
			r.t.Errorf("%s: what cannot be read does not arrive by a port that is not known, frame %d\n%x", c.name, i, frame)
		}
	}
}

// TestRoutesBack has the host forward what neighbours send to its own addresses, as where Docker has no proxy for
// published ports: who has sent that is not judged, and who has sent all else is.
func TestRoutesBack(t *testing.T) {
	r := newNeighborRig(t)
	must(t, r.f.Attach(r.host.Index, Want{Policy: labelled(t, "xdp.ingress.drop=1/tcp"), Bridge: r.bridge}))
	r.introduce(r.peer, peer4)
	r.introduce(r.forger, forger4)
	must(t, r.f.Introduce(r.bridge, r.bridge, addresses(gateway4), false))
	must(t, sweep(r.f))
	routed := from(forgerMAC, policytest.With(udpFrom(peer4, own4), 0, bridgeMAC[:]...))[0]
	checksum(routed[14:34])
	for _, does := range []bool{false, true, false} {
		must(t, r.f.RoutesBack(r.bridge, does))
		if got := r.arrives(r.forger, routed); got != does {
			t.Errorf("the host routes back: %v; it arrives: %v", does, got)
		}
		if r.arrives(r.forger, from(forgerMAC, udpFrom(peer4, own4))[0]) {
			t.Errorf("the host routes back: %v; what is forged arrives", does)
		}
	}
	l, err := netlink.LinkByName("peer")
	must(t, err)
	for _, does := range []bool{false, true} {
		must(t, netlink.LinkSetHairpin(l, does))
		got, err := Port{Index: l.Attrs().Index}.Hairpin()
		must(t, err)
		if got != does {
			t.Errorf("hairpin is %v, want %v", got, does)
		}
	}
}

// TestNewNeighbors follows an address from one port to the next.
func TestNewNeighbors(t *testing.T) {
	r := newNeighborRig(t)
	must(t, r.f.Attach(r.host.Index, Want{Policy: labelled(t, "xdp.ingress.drop=1/tcp"), Bridge: r.bridge}))
	frame := from(peerMAC, udpFrom("192.0.2.6", own4))[0]
	wants := func(when string, end *rawEnd, want bool) {
		t.Helper()
		if got := r.arrives(end, frame); got != want {
			t.Errorf("%s: it arrives: %v", when, got)
		}
	}
	first := r.port("first")
	wants("from nobody", r.forger, true)
	r.introduce(first, "192.0.2.6")
	wants("from who has it", first, true)
	wants("by a port that is not known", r.forger, true)
	r.introduce(r.forger, forger4)
	wants("from somebody else", r.forger, false)
	r.introduce(r.forger, "192.0.2.6")
	wants("from somebody else who has it, too", r.forger, false)
	wants("from who has it still", first, true)
	must(t, r.f.Introduce(r.bridge, r.ports[r.forger], addresses("192.0.2.6"), true))
	wants("from somebody else who surely has it now", r.forger, true)
	wants("from who had it", first, false)
	must(t, r.f.Introduce(r.bridge, r.ports[first], addresses("192.0.2.6"), true))

	// The next process knows what this one has known.
	dir := r.f.dir
	r.f.Close()
	r.f = open(t, dir)
	wants("after a restart, from who has it", first, true)
	wants("after a restart, from somebody else", r.forger, false)

	l, err := netlink.LinkByName("first")
	must(t, err)
	must(t, netlink.LinkDel(l))
	wants("once he is gone", r.forger, false)
	must(t, sweep(r.f))
	if r.f.Introduced(l.Attrs().Index) {
		t.Error("who is gone is known")
	}
	wants("once that is known", r.forger, false)
	br, err := netlink.LinkByIndex(r.bridge)
	must(t, err)
	again := r.portOf("again", r.ports[first], br)
	r.introduce(again, "192.0.2.8")
	wants("from another device with his number", again, false)
	if !r.arrives(again, from(peerMAC, udpFrom("192.0.2.8", own4))[0]) {
		t.Error("what is that device's own does not arrive")
	}
	second := r.port("second")
	wants("from who comes after, before it is known", second, true)
	r.introduce(second, "192.0.2.6")
	wants("from who comes after", second, true)
	wants("beside who comes after", r.forger, false)
	if !r.f.Introduced(r.ports[second]) {
		t.Error("who came after is not known")
	}

	must(t, netlink.LinkDel(br))
	must(t, sweep(r.f))
	if n := len(r.f.neighbors.entries); n > 0 {
		t.Errorf("%d entries of a bridge that is gone", n)
	}
}

// TestOtherNetworks sends in the name of somebody on another network, by a port of this one and by way of the host, and of a container that is on both.
func TestOtherNetworks(t *testing.T) {
	const theirs, boths, nobodys = "198.51.100.5", "198.51.100.6", "198.51.100.7"
	r := newNeighborRig(t)
	must(t, r.f.Attach(r.host.Index, Want{Policy: labelled(t, "xdp.egress.allow=443/tcp"), Bridge: r.bridge}))
	other, err := netlink.LinkByName("br1")
	must(t, err)
	r.introduce(r.peer, peer4)
	r.introduce(r.forger, forger4)
	must(t, r.f.Introduce(r.bridge, r.bridge, addresses(gateway4), false))
	must(t, r.f.IntroduceElsewhere(r.bridge, other.Attrs().Index, addresses(theirs), nil))
	must(t, r.f.IntroduceElsewhere(r.bridge, other.Attrs().Index, addresses(boths), addresses(peer4)))
	must(t, sweep(r.f))
	routed := func(src string, mac [6]byte) []byte {
		frame := from(forgerMAC, policytest.With(udpFrom(src, own4), 0, mac[:]...))[0]
		checksum(frame[14:34])
		return frame
	}
	bridged := func(src string) []byte { return from(forgerMAC, udpFrom(src, own4))[0] }
	for _, c := range []struct {
		what  string
		by    *rawEnd
		frame []byte
		want  bool
	}{
		{"another's, who is elsewhere", r.forger, bridged(theirs), false},
		{"another's, who is here and elsewhere", r.forger, bridged(boths), false},
		{"another's, by way of the host", r.forger, routed(theirs, bridgeMAC), false},
		{"another's, of who is here and elsewhere himself", r.peer, bridged(theirs), false},
		{"his own elsewhere", r.peer, bridged(boths), true},
		{"his own, by way of the host", r.elsewhere, routed(theirs, otherBridgeMAC), true},
		{"nobody's", r.forger, bridged(nobodys), true},
		{"nobody's, by way of the host", r.elsewhere, routed(nobodys, otherBridgeMAC), true},
		{"his own here", r.forger, bridged(forger4), true},
	} {
		if got := r.arrives(c.by, c.frame); got != c.want {
			t.Errorf("%s: it arrives: %v", c.what, got)
		}
	}

	many := make([]netip.Addr, 40000)
	for i, a := 0, netip.MustParseAddr("2001:db8:1::"); i < len(many); i, a = i+1, a.Next() {
		many[i] = a
	}
	if err := r.f.IntroduceElsewhere(r.bridge, other.Attrs().Index, many, nil); err == nil {
		t.Error("there is room for 40,000 addresses of other networks")
	}
	third := r.port("third")
	r.introduce(third, "192.0.2.9")
	if r.arrives(r.forger, bridged("192.0.2.9")) || !r.arrives(third, bridged("192.0.2.9")) {
		t.Error("there is no room left for who is here")
	}

	must(t, netlink.LinkDel(other))
	must(t, sweep(r.f))
	if !r.arrives(r.forger, bridged(theirs)) {
		t.Error("an address of a network that is gone is still somebody's")
	}
	if r.arrives(r.forger, bridged(boths)) {
		t.Error("an address of who is here is nobody's")
	}
	if n := len(r.f.neighbors.entries); n > 20 {
		t.Errorf("%d entries, of them many of a network that is gone", n)
	}
}
