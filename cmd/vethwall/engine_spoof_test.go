package main

import (
	"net/netip"
	"testing"

	"github.com/vethwall/vethwall/internal/enginetest"
	"github.com/vethwall/vethwall/policy"
)

// spoofing is an engine with a network, sinks in it, and a neighbour without a filter whose name is used in vain.
type spoofing struct {
	v       *enginetest.Vethwall
	tr      *traffic
	image   string
	network string
}

// TestSpoofing lets containers forge, and use what is their own.
func TestSpoofing(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	s := spoofing{v: v, image: v.Image()}
	s.network, s.tr = twoSinks(t, v, s.image)
	v.StartAgent()

	for _, label := range []string{"xdp.enable=true", "xdp.hook=tcx", "xdp.hook=native", "xdp.ingress.drop=1/tcp", "xdp.limit=all=1gbit"} {
		t.Run(label, func(t *testing.T) {
			c := s.start(t, "own", s.image, "--label", label)
			s.normal(t, c)
			f := s.forger(t, c)
			f.shows(false, f.me.v4, f.me.v6, f.me.linkLocal())
			s.wantSpoofed(t, c)
		})
	}
	t.Run("off", func(t *testing.T) {
		c := s.start(t, "off", s.image, "--label", "xdp.antispoof=false", "--label", "xdp.drop=1/tcp")
		s.normal(t, c)
		f := s.forger(t, c)
		f.shows(true, f.me.v4, f.me.v6)
	})
	t.Run("more addresses", func(t *testing.T) {
		c := s.start(t, "more", s.image, "--label", "xdp.antispoof=192.0.2.200/29,2001:db8:2::200-2001:db8:2::2ff")
		s.normal(t, c)
		f := s.forger(t, c)
		f.shows(false, f.me.v4, f.me.v6, netip.MustParseAddr("192.0.2.201"), netip.MustParseAddr("2001:db8:2::201"))
	})
	t.Run("an image switches nothing off", s.looseImage)
	t.Run("given MAC and addresses", s.given)
	t.Run("joiner", s.joiner)
	t.Run("restart", s.restart)
}

// start starts a container that ends with the subtest.
func (s spoofing) start(t *testing.T, name, image string, options ...string) *enginetest.Container {
	t.Helper()
	c := s.v.With(t).Start(image, name, append([]string{"--network", s.network}, options...))
	t.Cleanup(func() { s.v.With(t).Run("rm", "--force", c.ID) })
	awaitFilter(t, s.v, c.Name, 1)
	return c
}

func (s spoofing) forger(t *testing.T, c *enginetest.Container) *forgery {
	t.Helper()
	return &forgery{
		t: t, tr: s.tr, from: c, device: "eth0", sink: "A", me: identityOf(t, s.v, c, s.network),
		other: identityOf(t, s.v, s.tr.marker, s.network), to: identityOf(t, s.v, s.tr.sinks["A"].Container, s.network),
	}
}

// normal shows that nothing that ordinary programs send, or the kernel by itself, is taken for forged; nothing else may
// have been sent yet.
func (s spoofing) normal(t *testing.T, c *enginetest.Container) {
	t.Helper()
	c.With(s.v.Docker.With(t)).MustDo("tcp-dial", s.tr.sinks["A"].Name+":443", "asked by name")
	s.tr.shows(t, c, nil, []string{"53/udp@A", "443/tcp@A", "ping@A", "53/udp@A6", "443/tcp@A6", "ping@A6"})
}

func (s spoofing) wantSpoofed(t *testing.T, c *enginetest.Container) {
	t.Helper()
	// ARP, an advertisement and four datagrams.
	if got, _ := statusOf(t, s.v, c.Name); dropsFor(got, policy.Spoof) != 6 {
		t.Errorf("%s: %+v", c.Name, got)
	}
}

func (s spoofing) looseImage(t *testing.T) {
	loose := s.v.With(t).ImageWithLabels(map[string]string{"xdp.antispoof": "false", "xdp.mode": "audit"})
	// A label that the container has like the image counts as the image's.
	for _, labels := range [][]string{{"xdp.enable=true"}, {"xdp.antispoof=false", "xdp.drop=1/tcp"}} {
		c := s.start(t, "loose", loose, labelled(s.network, labels...)[2:]...)
		s.normal(t, c)
		f := s.forger(t, c)
		f.shows(false, f.me.v4, f.me.v6)
		s.wantSpoofed(t, c)
		s.v.With(t).Run("rm", "--force", c.ID)
	}
}

func (s spoofing) given(t *testing.T) {
	const mac, v4, v6 = "02:00:5e:00:53:44", "192.0.2.100", "2001:db8:2::100"
	id := createGiven(t, s.v, s.image, s.network, mac, v4, v6)
	t.Cleanup(func() { s.v.With(t).Run("rm", "--force", id) })
	c := s.tr.marker.With(s.v.Docker.With(t))
	c.ID, c.Name = id, s.v.With(t).Run("inspect", "--format", "{{.Name}}", id)[1:]
	s.v.With(t).Run("start", id)
	awaitFilter(t, s.v, c.Name, 1)
	s.normal(t, c)
	f := s.forger(t, c)
	if f.me.mac.String() != mac || f.me.v4.String() != v4 || f.me.v6.String() != v6 {
		t.Errorf("it is %+v", f.me)
	}
	f.shows(false, f.me.v4, f.me.v6, f.me.linkLocal())
	s.wantSpoofed(t, c)
}

// createGiven creates a container by the API, which takes a MAC in one of two places: docker run knows only the newer one.
func createGiven(t *testing.T, v *enginetest.Vethwall, image, network, mac, v4, v6 string) (id string) {
	t.Helper()
	type object = map[string]any
	var created struct{ ID string }
	err := callEngine(t, v, "/containers/create?name="+enginetest.Prefix+"given", object{
		"Image": image, "Labels": object{"xdp.enable": "true"}, "MacAddress": mac, "HostConfig": object{"NetworkMode": network},
		"NetworkingConfig": object{"EndpointsConfig": object{network: object{
			"MacAddress": mac, "IPAMConfig": object{"IPv4Address": v4, "IPv6Address": v6},
		}}},
	}, &created)
	if err != nil {
		t.Fatal(err)
	}
	return created.ID
}

func (s spoofing) joiner(t *testing.T) {
	owner := s.start(t, "owner", s.image, "--label", "xdp.enable=true")
	joiner := s.v.With(t).Start(s.image, "joiner", []string{"--network", "container:" + owner.Name})
	t.Cleanup(func() { s.v.With(t).Run("rm", "--force", joiner.ID) })
	s.normal(t, joiner)
	s.normal(t, owner)
	f := s.forger(t, owner)
	f.from = joiner
	f.shows(false, f.me.v4, f.me.v6)
	s.wantSpoofed(t, owner)
}

// restart lets another container take the address of one that is stopped.
func (s spoofing) restart(t *testing.T) {
	v := s.v.With(t)
	c := s.start(t, "again", s.image, "--label", "xdp.enable=true")
	before := identityOf(t, s.v, c, s.network)
	v.Run("stop", "--time", "0", c.ID)
	taker := v.Start(s.image, "taker", []string{"--network", s.network})
	t.Cleanup(func() { v.Run("rm", "--force", taker.ID) })
	v.Run("start", c.ID)
	awaitFilter(t, s.v, c.Name, 1)
	s.normal(t, c)
	f := s.forger(t, c)
	if f.me.v4 == before.v4 || f.me.mac.String() == before.mac.String() {
		t.Errorf("it is %+v, and was %+v", f.me, before)
	}
	f.shows(false, f.me.v4, f.me.v6, f.me.linkLocal())
	s.wantSpoofed(t, c)
	// As who it was before.
	f.send(f.datagram(before.mac, before.v4, "before"), f.datagram(f.me.mac, before.v4, "between"), f.datagram(f.me.mac, f.me.v4, "now"))
	f.await("now")
	if a, b := f.arrived("before"), f.arrived("between"); a+b > 0 {
		t.Errorf("what it was before the restart passes: %d and %d times", a, b)
	}
}
