package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// TestConfiguration edits the configuration while containers send.
func TestConfiguration(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.ImageWithLabels(map[string]string{"com.docker.compose.project": "shop"})
	v.Configure("floor: {xdp.egress.drop: 25/tcp}\n")
	v.StartAgent()
	network, tr := twoSinks(t, v, image)
	plain := v.Start(image, "plain", []string{"--network", network})
	shop := v.Start(image, "in-shop", []string{"--network", network, "--label", "com.docker.compose.project=shop", "--label", "com.docker.compose.service=web", "--label", "xdp.drop=54/udp"})
	db := v.Start(image, "db", []string{"--network", network, "--label", "com.docker.compose.project=shop2", "--label", "xdp.drop=54/udp"})
	policyIs := func(t *testing.T, c *enginetest.Container, want string) {
		t.Helper()
		await(t, v, c.Name, "has the policy "+want, func(s agent.ContainerStatus) bool {
			return (s.State == agent.Enforced || s.State == agent.Late) && s.Policy == want
		})
	}

	t.Run("floor", func(t *testing.T) {
		policyIs(t, plain, "floor(xdp.egress.drop=25/tcp)")
		policyIs(t, shop, "floor(xdp.egress.drop=25/tcp) labels(xdp.drop=54/udp)")
		tr.shows(t, plain, []string{"25/tcp@A"}, []string{"443/tcp@A", "54/udp@A", "53/udp@A6"})
		tr.shows(t, shop, []string{"25/tcp@A", "54/udp@A"}, []string{"443/tcp@A", "53/udp@A6"})
	})
	t.Run("edited under traffic", func(t *testing.T) {
		goesOn, ends := newTalk(t, v, plain, tr.sinks["A"].Container, network, "443"), newTalk(t, v, plain, tr.sinks["B"].Container, network, "443")
		v.Configure("floor: {xdp.egress.drop: 25/tcp, xdp.drop.b: " + addrB4 + "+" + addrB6 + "}\n")
		policyIs(t, plain, "floor(xdp.drop.b="+addrB4+"+"+addrB6+" xdp.egress.drop=25/tcp)")
		stopped := ends.to.With(v.With(t).Docker).Count(ends.text)
		goesOn.goesOn(t, v)
		if n := ends.to.With(v.With(t).Docker).Count(ends.text); n != stopped {
			t.Errorf("%s: %d arrivals, then %d", ends.text, stopped, n)
		}
		tr.shows(t, plain, []string{"25/tcp@A"}, []string{"443/tcp@A", "53/udp@A6"})
	})
	t.Run("a mistake changes nothing", func(t *testing.T) {
		v.Configure("floor: {xdp.drop: 443}\n")
		v.With(t).AwaitLog("line=1 column=19")
		v.With(t).AwaitLog("the one before stays in force")
		tr.shows(t, plain, []string{"25/tcp@A"}, []string{"443/tcp@A", "53/udp@A6"})
		if a := v.With(t).Ask("explain", plain.Name, "egress", "25/tcp@"+addrA4); a.Code != 2 || !strings.Contains(a.Stderr, ":1:19: a bare port") {
			t.Errorf("explain: %+v", a)
		}
	})
	t.Run("picked", func(t *testing.T) {
		// The image says that it is of the project shop, as images that Compose builds do: that picks only to close, and replaces nothing.
		v.Configure("policies:\n  - {pick: {project: shop2}, replace: true, labels: {xdp.drop: 53/udp}}\n  - {pick: {project: shop}, replace: true, labels: {xdp.drop: 26/tcp, xdp.mode: audit}}\n")
		policyIs(t, db, "config(xdp.drop=53/udp)")
		policyIs(t, shop, "config(xdp.drop=26/tcp) labels(xdp.drop=54/udp)")
		policyIs(t, plain, "config(xdp.drop=26/tcp)")
		tr.shows(t, db, []string{"53/udp@A"}, []string{"54/udp@A", "25/tcp@A"})
		tr.shows(t, plain, nil, []string{"25/tcp@A", "443/tcp@B", "53/udp@A"})
		if a := v.With(t).Ask("explain", db.Name, "egress", "53/udp@"+addrA4); a.Code != 1 || !strings.Contains(a.Stdout, "xdp.drop=53/udp (config)") {
			t.Errorf("explain: %+v", a)
		}
		if text := v.With(t).MustAsk("check", db.Name); !strings.HasPrefix(text, "config: xdp.drop=53/udp\n") {
			t.Errorf("check: %s", text)
		}
	})
	t.Run("two policies", func(t *testing.T) {
		v.Configure("policies:\n  - {pick: {name: " + db.Name + "}, labels: {xdp.drop: 53/udp}}\n  - {pick: {project: shop2}, labels: {xdp.drop: 54/udp}}\n")
		s := await(t, v, db.Name, "is closed", func(s agent.ContainerStatus) bool { return s.State == agent.Quarantined })
		if !strings.Contains(s.Error, "{name: "+db.Name+"}") || !strings.Contains(s.Error, "{project: shop2}") {
			t.Errorf("error %q", s.Error)
		}
		tr.shows(t, db, []string{"53/udp@A", "443/tcp@A", "ping@A"}, nil)
		v.Configure("{}")
		policyIs(t, db, "xdp.drop=54/udp")
		v.With(t).Wait("what asks for nothing is released", func() error {
			if a := v.With(t).Ask("status", plain.Name); a.Code == 0 {
				return errors.New("still filtered: " + a.Stdout)
			}
			return nil
		})
		tr.shows(t, db, []string{"54/udp@A"}, []string{"53/udp@A", "443/tcp@A"})
	})
	t.Run("SIGHUP", func(t *testing.T) {
		v.SignalAgent(syscall.SIGHUP)
		v.With(t).AwaitLog("read again")
	})
	t.Run("start with a mistake", func(t *testing.T) {
		v.EndAgent(syscall.SIGTERM)
		v.Configure("floor: {xdp.drop: 443}\n")
		if a := v.With(t).Ask("agent"); a.Code != 2 || !strings.Contains(a.Stderr, "                    ^\n") || !strings.Contains(a.Stderr, "nothing was changed") {
			t.Errorf("%+v", a)
		}
		tr.shows(t, db, []string{"54/udp@A"}, []string{"53/udp@A", "443/tcp@A"})
		if err := os.Remove(v.Config); err != nil {
			t.Fatal(err)
		}
		if a := v.With(t).Ask("agent"); a.Code != 2 || !strings.Contains(a.Stderr, filepath.Base(v.Config)+": no such file") {
			t.Errorf("%+v", a)
		}
	})
}
