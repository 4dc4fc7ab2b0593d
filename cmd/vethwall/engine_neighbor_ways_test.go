package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// advertised is a router advertisement: who sends it wants to be the better way to everywhere.
func (s *neighbors) advertised() []byte {
	body := []byte{64, 8, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1} // hop limit, preference high, half an hour; its MAC
	advert := append(policytest.ICMP(134, 0)[:4], append(body, s.me.mac...)...)
	from := policy.LinkLocal([6]byte(s.me.mac))
	return s.frame(s.me.mac, policytest.With(policytest.IP(from.String(), "ff02::1", 58, advert), 14+7, 255), 2)
}

// routed reports whether the sink sends by way of the forger what is for elsewhere.
func (s *neighbors) routed() bool {
	s.t.Helper()
	return bytes.Contains(s.inSink("ip", "-6", "route", "show", "default"), []byte(policy.LinkLocal([6]byte(s.me.mac)).String()))
}

// TestNeighborRouter has a neighbour advertise itself as the network's router: whoever judges his neighbours, by what he may send alone
// too, does not send by it.
func TestNeighborRouter(t *testing.T) {
	t.Parallel()
	s := newNeighbors(t)
	s.v.StartAgent("-v")
	s.serve(t, "off", "xdp.antispoof=false")
	s.v.Wait("the sink believes what is forged", func() error {
		if s.send(s.advertised()); !s.routed() {
			return errors.New("it does not")
		}
		return nil
	})
	s.serve(t, "db")
	before := s.refused()
	s.send(s.advertised(), s.advertised())
	s.dials(s.peer, s.to.v4, s.to.v6)
	if s.routed() {
		t.Errorf("a neighbour is the router:\n%s", s.inSink("ip", "-6", "route"))
	}
	if got := s.refused() - before; got != 2 {
		t.Errorf("%d packets are refused, want 2", got)
	}
}

// inParts are the fragments, of size bytes, of a datagram in the name of src, sent to everybody on the network.
func (s *neighbors) inParts(src netip.Addr, text string, size int) (out [][]byte) {
	whole, header := s.datagram(s.me.mac, src, text), 54
	if src.Is4() {
		header = 34
	}
	datagram := whole[header:]
	for at := 0; at < len(datagram); at += size {
		part, more := datagram[at:min(at+size, len(datagram))], at+size < len(datagram)
		var frame []byte
		if src.Is4() {
			frame = policytest.IP(src.String(), s.to.v4.String(), 17, part)
			binary.BigEndian.PutUint16(frame[14+4:], uint16(s.tr.n))
			binary.BigEndian.PutUint16(frame[14+6:], uint16(at/8))
			if more {
				frame[14+6] |= 0x20
			}
			binary.BigEndian.PutUint16(frame[14+10:], 0)
			binary.BigEndian.PutUint16(frame[14+10:], ^onesSum(0, frame[14:34]))
		} else {
			frame = policytest.IP(src.String(), s.to.v6.String(), 44, policytest.FragmentHeader(17, uint16(at/8), more, part))
			binary.BigEndian.PutUint32(frame[54+4:], uint32(s.tr.n))
		}
		copy(frame, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
		copy(frame[6:], s.me.mac)
		out = append(out, frame)
	}
	return out
}

// TestNeighborFragments has the host put together and cut anew what a neighbour sends to all in fragments in another's name (br_netfilter). The
// fragments of the peer and of the host arrive.
func TestNeighborFragments(t *testing.T) {
	t.Parallel()
	s := newNeighbors(t)
	for _, command := range [][]string{
		{"sysctl", "net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1"},
		{"iptables", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"},
		{"ip6tables", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"},
	} {
		if out, err := s.v.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", command, err, out)
		}
	}
	s.v.StartAgent("-v")
	long := strings.Repeat(".", 2500)
	// What is short the host need not cut again.
	lie := func() (texts []string) {
		for size, rest := range map[int]string{16: "", 1208: long} {
			s.tr.n++
			for _, src := range []netip.Addr{s.other.v4, s.other.v6} {
				texts = append(texts, fmt.Sprintf("forged in parts %d from %s%s", s.tr.n, src, rest))
				s.send(s.inParts(src, texts[len(texts)-1], size)...)
			}
		}
		return texts
	}
	s.serve(t, "off", "xdp.antispoof=false")
	s.await(lie()...)

	s.serve(t, "db", "xdp.ingress.allow.host=53/udp@host")
	honest := func(from string) {
		before := s.refused()
		for i, to := range []netip.Addr{s.to.v4, s.to.v6} {
			text := fmt.Sprintf("%s %d %d%s", from, s.tr.n, i, long)
			if from == "peer" {
				s.peer.MustDo("udp-send", net.JoinHostPort(to.String(), "53"), text)
			} else if out, err := s.v.Command("bash", "-c", fmt.Sprintf("printf %%s '%s' >/dev/udp/%s/53", text, to)).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			s.await(text)
		}
		if got := s.refused() - before; got > 0 {
			t.Errorf("%d packets of the %s are refused", got, from)
		}
	}
	honest("peer")
	honest("host")
	before := s.refused()
	texts := lie()
	honest("peer")
	honest("host")
	for _, text := range texts {
		if n := s.arrived(text); n > 0 {
			t.Errorf("%.40q arrived %d times", text, n)
		}
	}
	if s.refused() == before {
		t.Error("nothing is refused")
	}
}

// TestNeighborOfAnotherNetwork has somebody who is on one of a container's networks send in the name of a peer on the other, and of the host there.
func TestNeighborOfAnotherNetwork(t *testing.T) {
	t.Parallel()
	s := newNeighbors(t)
	two := s.v.Network("two", "--ipv6", "--subnet", "198.51.100.0/24", "--subnet", "2001:db8:22::/64")
	// As where br_netfilter is not loaded; Docker's own rules drop some of it.
	if out, err := s.v.Command("sysctl", "net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.v.StartAgent("-v")
	s.from = s.v.Start(s.image, "stranger", []string{"--network", two})
	serve := func(name string, labels ...string) {
		labels = append(labels, "xdp.ingress.allow=53/udp@"+peer4+"+"+peer6+"+host")
		c := s.v.Create(s.image, name, labelled(s.network, labels...), "serve", "53/udp")
		s.v.Run("network", "connect", two, c.ID)
		s.v.Run("start", c.ID)
		c.WaitServing()
		awaitFilter(t, s.v, c.Name, 2)
		s.tr.sinks[name], s.sink = sink{Container: c, v4: c.Addr(two, 4), v6: c.Addr(two, 6)}, name
		s.to, s.me, s.other = identityOf(t, s.v, c, two), identityOf(t, s.v, s.from, two), identityOf(t, s.v, s.peer, s.network)
	}
	lie := func() (texts []string) {
		for _, src := range []netip.Addr{s.other.v4, s.other.v6, netip.MustParseAddr(gateway4)} {
			s.tr.n++
			texts = append(texts, fmt.Sprintf("forged %d from %s", s.tr.n, src))
			s.send(s.datagram(s.me.mac, src, texts[len(texts)-1]))
		}
		return texts
	}
	serve("off", "xdp.antispoof=false")
	s.await(lie()...)

	serve("db")
	texts := lie()
	s.v.Run("network", "connect", two, s.peer.ID) // he may send on either network with either address
	text := "his own"
	on := identityOf(t, s.v, s.peer, two)
	own := &forgery{t: t, tr: s.tr, from: s.peer, device: "eth1", sink: "db", me: on, to: s.to}
	s.v.Wait("a peer on both networks sends on one with his address on the other", func() error {
		own.send(own.datagram(on.mac, s.other.v4, text))
		if s.arrived(text) == 0 {
			return errors.New("it does not arrive")
		}
		return nil
	})
	for _, text := range append(texts, lie()...) {
		if n := s.arrived(text); n > 0 {
			t.Errorf("%q arrived %d times", text, n)
		}
	}
	if got := s.refused(); got < 6 {
		t.Errorf("%d packets are refused, want 6", got)
	}
}
