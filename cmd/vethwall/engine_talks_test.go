package main

import (
	"testing"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// TestTalksUnderOtherPolicies changes the policy of a container that talks both ways: from one without state to one with
// state, and on to one that allows the other half.
func TestTalksUnderOtherPolicies(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	v.Configure("policies:\n  - {pick: {name: \"*-changing\"}, labels: {xdp.drop: udp}}\n")
	v.StartAgent()
	network, tr := twoSinks(t, v, image)
	c := asked(t, v, tr, image, network, "changing", "25/tcp")
	a := tr.sinks["A"].Container
	awaitFilter(t, v, c.Name, 1)

	now, later := []talk{newTalk(t, v, c, a, network, "443"), newTalk(t, v, tr.marker, c, network, "25")},
		[]talk{newTalk(t, v, c, a, network, "25"), newTalk(t, v, tr.marker, c, network, "443")}
	change := func(text, want string, goOn, end []talk) {
		t.Helper()
		v.Configure("policies:\n  - {pick: {name: \"*-changing\"}, labels: {" + text + "}}\n")
		await(t, v, c.Name, "has the policy "+want, func(s agent.ContainerStatus) bool { return filtered(s) && s.Policy == want })
		var ended []int
		for _, k := range end {
			ended = append(ended, k.to.With(v.With(t).Docker).Count(k.text))
		}
		for _, k := range goOn {
			k.goesOn(t, v)
		}
		for i, k := range end {
			if n := k.to.With(v.With(t).Docker).Count(k.text); n != ended[i] {
				t.Errorf("%s, %s: %d arrivals, then %d", want, k.text, ended[i], n)
			}
		}
	}
	change("xdp.egress.allow: 443/tcp, xdp.ingress.allow: 25/tcp", "config(xdp.egress.allow=443/tcp xdp.ingress.allow=25/tcp)", now, later)
	change("xdp.drop: udp", "config(xdp.drop=udp)", append(now, later...), nil)
	change("xdp.egress.allow: 25/tcp, xdp.ingress.allow: 443/tcp", "config(xdp.egress.allow=25/tcp xdp.ingress.allow=443/tcp)", later, now)
}
