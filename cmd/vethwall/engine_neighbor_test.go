package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vethwall/vethwall/internal/enginetest"
	"github.com/vethwall/vethwall/policy"
)

// The peer that is let in, and somebody else who is, by TCP alone, and the host.
const (
	peer4, peer6 = "192.0.2.5", "2001:db8:2::5"
	friend4      = "192.0.2.6"
	gateway4     = "192.0.2.1"
)

// neighbors is an engine with containers that let in one peer of their network, and with a neighbour without labels that has no
// more than what Docker gives everybody.
type neighbors struct {
	*forgery
	v              *enginetest.Vethwall
	image, network string
	gateway        net.HardwareAddr
	peer           *enginetest.Container
}

func newNeighbors(t *testing.T, flags ...string) *neighbors {
	t.Helper()
	v := enginetest.Own(t, flags...).Install()
	s := &neighbors{v: v, image: v.Image(), forgery: &forgery{t: t, tr: &traffic{v: v, sinks: map[string]sink{}}, device: "eth0"}}
	s.network = v.Network("one", "--ipv6", "--subnet", subnet4, "--ip-range", "192.0.2.128/25", "--gateway", gateway4, "--subnet", subnet6)
	s.gateway = s.macOf(s.bridgeOf(s.network))
	s.peer = v.Start(s.image, "peer", []string{"--network", s.network, "--ip", peer4, "--ip6", peer6})
	s.tr.marker = v.Start(s.image, "friend", []string{"--network", s.network, "--ip", friend4})
	s.from = v.Start(s.image, "forger", []string{"--network", s.network})
	return s
}

// bridgeOf is the bridge of a network.
func (s *neighbors) bridgeOf(network string) string {
	s.t.Helper()
	return "br-" + s.v.With(s.t).Run("network", "inspect", "--format", "{{.Id}}", network)[:12]
}

// macOf is the MAC of a bridge, and so of a network's gateway.
func (s *neighbors) macOf(bridge string) net.HardwareAddr {
	s.t.Helper()
	out, err := s.v.Command("ip", "-j", "link", "show", "dev", bridge).Output()
	if err != nil {
		s.t.Fatal(err)
	}
	var links []struct{ Address string }
	if err := json.Unmarshal(out, &links); err != nil || len(links) != 1 {
		s.t.Fatalf("%v: %s", err, out)
	}
	mac, err := net.ParseMAC(links[0].Address)
	if err != nil {
		s.t.Fatal(err)
	}
	return mac
}

// serve starts a container that lets in the peer alone, and aims at it.
func (s *neighbors) serve(t *testing.T, name string, labels ...string) {
	t.Helper()
	labels = append(labels, "xdp.ingress.allow=443/tcp@"+peer4+"+"+peer6+"+"+friend4+",53/udp@"+peer4+"+"+peer6+"+"+gateway4)
	c := s.v.With(t).Serve(s.image, name, labelled(s.network, labels...), "53/udp", "443/tcp")
	s.tr.sinks[name] = sink{Container: c, v4: c.Addr(s.network, 4), v6: c.Addr(s.network, 6)}
	awaitFilter(t, s.v, c.Name, 1)
	s.aim(t, name)
}

// aim makes a container the one that is lied to, in the name of the peer.
func (s *neighbors) aim(t *testing.T, name string) {
	t.Helper()
	s.t, s.sink = t, name
	s.to, s.me = identityOf(t, s.v, s.tr.sinks[name].Container, s.network), identityOf(t, s.v, s.from, s.network)
	if s.v.With(t).Run("inspect", "--format", "{{.State.Running}}", s.peer.ID) == "true" {
		s.other = identityOf(t, s.v, s.peer, s.network)
	}
}

// dials lets a container open a connection to the one that is aimed at, by each of addresses.
func (s *neighbors) dials(from *enginetest.Container, addresses ...netip.Addr) {
	s.t.Helper()
	for _, a := range addresses {
		s.tr.n++
		// A SYN that is lost would be sent again after a second.
		from.With(s.v.Docker.With(s.t)).MustDo("tcp-dial", "-wait", "900ms", net.JoinHostPort(a.String(), "443"), fmt.Sprintf("%s dials %d", from.Name, s.tr.n))
	}
}

// refused is how many packets the container that is aimed at has refused for who has sent them.
func (s *neighbors) refused() uint64 {
	s.t.Helper()
	got, _ := statusOf(s.t, s.v, s.tr.sinks[s.sink].Name)
	return dropsFor(got, policy.NeighborSpoof)
}

// lies sends datagrams in the peer's name: with the sender's MAC, the peer's and the gateway's, and by way of the host; and says
// in the name of the peer where he is. Whoever marks sends something true afterwards.
func (s *neighbors) lies(passes bool, marks *enginetest.Container) {
	s.t.Helper()
	s.tr.n++
	var frames [][]byte
	var texts []string
	lie := func(mac net.HardwareAddr, src netip.Addr, how string) []byte {
		texts = append(texts, fmt.Sprintf("%s %d %s %s", s.t.Name(), s.tr.n, how, src))
		frames = append(frames, s.datagram(mac, src, texts[len(texts)-1]))
		return frames[len(frames)-1]
	}
	for how, mac := range map[string]net.HardwareAddr{"its own MAC": s.me.mac, "the peer's MAC": s.other.mac, "the gateway's MAC": s.gateway} {
		lie(mac, s.other.v4, how)
		lie(mac, s.other.v6, how)
	}
	copy(lie(s.me.mac, s.other.v4, "by way of the host"), s.gateway)
	lie(s.gateway, netip.MustParseAddr(gateway4), "as the host")
	before := s.refused()
	s.send(append(frames, s.poison()...)...)
	s.dials(marks, netip.MustParseAddr(s.to.v4.String()))
	if passes {
		s.await(texts...)
		s.succeeds()
		return
	}
	for _, text := range texts {
		if n := s.arrived(text); n > 0 {
			s.t.Errorf("%q arrived %d times", text, n)
		}
	}
	if got := s.poisoned(); len(got) > 0 {
		s.t.Errorf("the container believes that it is %v", got)
	}
	if got, want := s.refused()-before, uint64(len(frames)+2); got != want {
		s.t.Errorf("%d packets are refused, want %d", got, want)
	}
}

// honest lets the peer dial, and shows that none of his packets was refused.
func (s *neighbors) honest() {
	s.t.Helper()
	before := s.refused()
	s.dials(s.peer, s.to.v4, s.to.v6, s.to.v4)
	if got := s.refused() - before; got > 0 {
		s.t.Errorf("%d packets of the peer are refused", got)
	}
}

// TestNeighborSpoof lets a neighbour without labels send in the name of the only one who is let in.
func TestNeighborSpoof(t *testing.T) {
	t.Parallel()
	s := newNeighbors(t)
	s.v.StartAgent("-v")
	t.Run("off", func(t *testing.T) {
		s.serve(t, "off", "xdp.antispoof=false")
		s.lies(true, s.peer)
	})
	s.serve(t, "db")
	subtest := func(name string, do func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			s.aim(t, "db")
			do(t)
		})
	}
	subtest("on", func(*testing.T) {
		s.honest()
		s.lies(false, s.peer)
		s.honest()
	})
	subtest("the peer is stopped, and starts again", func(t *testing.T) {
		s.v.With(t).Run("stop", "--time", "0", s.peer.ID)
		s.lies(false, s.tr.marker)
		s.v.With(t).Run("start", s.peer.ID)
		s.honest()
		s.aim(t, "db")
		s.lies(false, s.peer)
	})
	subtest("no agent", func(t *testing.T) {
		s.v.With(t).EndAgent(syscall.SIGKILL)
		s.lies(false, s.peer)
		s.v.With(t).Run("restart", "--time", "0", s.peer.ID)
		before := s.refused()
		s.v.With(t).Wait("who starts while no agent runs is not cut off", func() error { // but held for up to 5 s
			_, err := s.peer.With(s.v.Docker.With(t)).Do("tcp-dial", "-wait", "900ms", net.JoinHostPort(s.to.v4.String(), "443"), "held")
			return err
		})
		if got := s.refused() - before; got > 0 {
			t.Errorf("%d packets of the peer are refused", got)
		}
		s.v.With(t).StartAgent("-v")
		s.honest()
		s.aim(t, "db")
		s.lies(false, s.peer)
	})
	t.Run("peers that come and go", s.comeAndGo)
}

// TestNeighborsWithoutProxy lets a neighbour reach a published port by an address of the host, which forwards that with the
// neighbour's address.
func TestNeighborsWithoutProxy(t *testing.T) {
	t.Parallel()
	s := newNeighbors(t, "--userland-proxy=false")
	s.v.StartAgent()
	options := append(labelled(s.network, "xdp.ingress.allow=53/udp@"+peer4+"+"+peer6), "--publish", "5353:53/udp")
	c := s.v.Serve(s.image, "published", options, "53/udp")
	s.tr.sinks["published"] = sink{Container: c, v4: c.Addr(s.network, 4), v6: c.Addr(s.network, 6)}
	awaitFilter(t, s.v, c.Name, 1)
	s.aim(t, "published")
	s.peer.MustDo("udp-send", net.JoinHostPort(gateway4, "5353"), "by way of the host")
	s.await("by way of the host")
	if got := s.refused(); got > 0 {
		t.Errorf("%d packets are refused", got)
	}
	s.send(s.datagram(s.me.mac, s.other.v4, "forged"))
	s.peer.MustDo("udp-send", net.JoinHostPort(s.to.v4.String(), "53"), "true")
	s.await("true")
	if got := s.arrived("forged"); got > 0 || s.refused() != 1 {
		t.Errorf("what is forged arrives %d times, and %d packets are refused", got, s.refused())
	}
}

// TestNeighborMasquerade lets a container of another network in by way of the host, which gives what it sends its own address
// there: to a published port, and to the container itself where the operator lets one network into the other. Who forges is
// dropped all the same, on either network.
func TestNeighborMasquerade(t *testing.T) {
	t.Parallel()
	const subnet, gateway = "198.51.100.0/24", "198.51.100.1" // of the other network
	s := newNeighbors(t, "--userland-proxy=false")
	two := s.v.Network("two", "--subnet", subnet, "--gateway", gateway)
	client := s.v.Start(s.image, "client", []string{"--network", two})
	one, other := s.bridgeOf(s.network), s.bridgeOf(two)
	for in, out := range map[string]string{one: other, other: one} {
		if text, err := s.v.Command("iptables", "-I", "DOCKER-USER", "-i", in, "-o", out, "-j", "ACCEPT").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
	}
	s.v.StartAgent()
	options := append(labelled(s.network, "xdp.ingress.allow=53/udp@"+peer4+"+"+gateway4), "--publish", "5353:53/udp")
	c := s.v.Serve(s.image, "published", options, "53/udp")
	s.tr.sinks["published"] = sink{Container: c, v4: c.Addr(s.network, 4), v6: c.Addr(s.network, 6)}
	awaitFilter(t, s.v, c.Name, 1)
	s.aim(t, "published")
	// Engines from 28 on drop earlier what comes for a container from another network.
	_, _ = s.v.Command("iptables", "-t", "raw", "-F", "PREROUTING").CombinedOutput()
	for round := range 2 {
		if round > 0 {
			time.Sleep(16 * time.Second) // meanwhile the agent looks which devices there are
		}
		for _, to := range []string{net.JoinHostPort(gateway, "5353"), net.JoinHostPort(gateway4, "5353"), net.JoinHostPort(s.to.v4.String(), "53")} {
			text := fmt.Sprintf("%d to %s", round, to)
			client.MustDo("udp-send", to, text)
			s.await(text)
		}
		if got := s.refused(); got > 0 {
			t.Fatalf("round %d: %d packets are refused", round, got)
		}
	}
	for _, a := range c.Received() {
		if a.From.String() != gateway4 {
			t.Errorf("%q is from %v: nothing has been masqueraded", a.Text, a.From)
		}
	}

	s.send(s.datagram(s.me.mac, s.other.v4, "forged"), s.datagram(s.me.mac, netip.MustParseAddr(gateway4), "forged"))
	routed := s.datagram(s.me.mac, s.other.v4, "forged")
	copy(routed, s.macOf(other))
	client.MustDo("raw", "eth0", hex.EncodeToString(routed))
	s.peer.MustDo("udp-send", net.JoinHostPort(s.to.v4.String(), "53"), "true")
	s.await("true")
	if got := s.arrived("forged"); got > 0 || s.refused() != 3 {
		t.Errorf("what is forged arrives %d times, and %d packets are refused, want 3", got, s.refused())
	}
}

// comeAndGo starts a peer anew each time, engines from 28 on with another MAC, and neighbours that get addresses which others had: the first packet of
// each arrives.
func (s *neighbors) comeAndGo(t *testing.T) {
	s.aim(t, "db")
	v := s.v.With(t)
	v.Run("rm", "--force", s.peer.ID)
	before, text := s.refused(), "comes as a peer"
	n := times(6, 200)
	for i := range n {
		to := []netip.Addr{s.to.v4, s.to.v6}[i%2]
		c := v.Create(s.image, fmt.Sprintf("peer-%d", i), []string{
			"--network", s.network, "--ip", peer4, "--ip6", peer6,
		}, "tcp-dial", "-wait", "900ms", net.JoinHostPort(to.String(), "443"), text)
		startAll(t, v, []*enginetest.Container{c}, 1)
		v.Run("rm", "--force", c.ID)
	}
	if got := s.arrived(text); got != n {
		t.Errorf("%d of %d peers arrived", got, n)
	}
	open := v.Serve(s.image, "open", labelled(s.network, "xdp.ingress.allow=443/tcp@neighbors"), "443/tcp")
	s.tr.sinks["open"] = sink{Container: open, v4: open.Addr(s.network, 4)}
	awaitFilter(t, s.v, open.Name, 1)
	for round := range times(2, 40) {
		var all []*enginetest.Container
		for i := range 4 {
			all = append(all, v.Create(s.image, fmt.Sprintf("new-%d-%d", round, i), []string{"--network", s.network},
				"tcp-dial", "-wait", "900ms", net.JoinHostPort(open.Addr(s.network, 4).String(), "443"), text))
		}
		startAll(t, v, all, 4)
		for _, c := range all {
			v.Run("rm", "--force", c.ID)
		}
	}
	if got, want := open.Count(text), 4*times(2, 40); got != want {
		t.Errorf("%d of %d neighbours arrived", got, want)
	}
	got := s.refused() - before
	s.sink = "open"
	if got += s.refused(); got > 0 {
		t.Errorf("%d packets of who is new are refused:\n%s", got, s.v.MustAsk("events"))
	}
}
