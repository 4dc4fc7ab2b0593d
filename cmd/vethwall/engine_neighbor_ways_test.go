package main

import (
	"bytes"
	"errors"
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
