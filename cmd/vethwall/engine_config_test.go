package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

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

// TestAsksForNothingAfterAll has containers be filtered by a configuration that does not concern them when Docker says that they run: they are let go.
func TestAsksForNothingAfterAll(t *testing.T) {
	t.Parallel()
	r := newHoldRig(t)
	const pickWeb = "policies:\n  - {pick: {name: \"*web*\"}, labels: {xdp.egress.drop: udp}}\n"
	r.v.Configure(pickWeb)
	r.v.AwaitLog("policies=1")
	arrives := func(text string) {
		t.Helper()
		before := r.arrived(t)[text]
		r.v.Wait("packets of "+text, func() error {
			if n := r.arrived(t)[text]; n == before {
				return fmt.Errorf("%d as before", n)
			}
			return nil
		})
	}
	create := func(name string) *enginetest.Container {
		return r.v.Create(r.image, name, labelled(r.network), steadily(r.to, name)...)
	}
	for i := range times(3, 20) {
		away, stays := create(fmt.Sprintf("web-a%d", i)), create(fmt.Sprintf("web-s%d", i))
		var wg sync.WaitGroup
		for c, name := range map[*enginetest.Container]string{away: "db", stays: "web-r"} {
			wg.Go(func() { _, _ = r.v.Try("start", c.ID) })
			wg.Go(func() {
				time.Sleep(time.Duration(i%10) * 40 * time.Millisecond)
				_, _ = r.v.Try("rename", c.ID, fmt.Sprintf("%s%s%d", enginetest.Prefix, name, i))
			})
		}
		wg.Wait()
		arrives(fmt.Sprintf("web-a%d", i))
		if n := r.arrived(t)[fmt.Sprintf("web-s%d", i)]; n > 0 {
			t.Errorf("%d packets of a container got through that was picked by both its names", n)
		}
		r.v.Run("rm", "--force", away.ID, stays.ID)
	}
	// The agent is killed when it has filtered one, and the next one has another configuration.
	r.v.Wait("no filter is left", func() error {
		if left := r.v.Filtered(); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	killed := create("web-killed")
	go func() { _, _ = r.v.Try("start", killed.ID) }()
	r.v.Wait("its filter", func() error {
		if len(r.v.Filtered()) == 0 {
			return errors.New("none")
		}
		return nil
	})
	r.v.EndAgent(syscall.SIGKILL)
	r.v.Configure("{}")
	r.v.StartAgent("-v")
	arrives("web-killed")
}
