package main

import (
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vethwall/vethwall/internal/enginetest"
)

// Labels of simulated containers: what takes generic XDP alone, and what takes tcx both ways and a table of conversations, too.
var (
	scaleLight = map[string]string{"xdp.enable": "true", enginetest.CapDrop: "NET_RAW", "com.docker.compose.project": "shop"}
	scaleHeavy = map[string]string{"xdp.egress.allow": "internet,dns", "com.docker.compose.project": "shop"}
	scaleWrong = map[string]string{"xdp.drop": "upd"}
)

// mostRSS is how much memory an agent may take, in KiB.
const mostRSS = 80 << 10

// TestScale has an agent look after many simulated containers. It asserts what does not depend on the machine's speed, and
// prints the rest.
func TestScale(t *testing.T) {
	n := times(100, 1000)
	r := newScaleRig(t, n+16)
	r.plug(0, n, scaleLight)

	r.wear(n, scaleLight)
	t.Logf("%d containers, cold start with generic XDP: %v; %v", n, r.start(), r.stands(n, 1))
	r.EndAgent(syscall.SIGKILL)
	t.Logf("adopted: %v; %v", r.start(), r.stands(n, 1))
	r.EndAgent(syscall.SIGTERM)
	tables := r.tables()
	r.MustAsk("uninstall")

	bare := r.bare(n, tables)
	r.wear(n, scaleHeavy)
	began := r.spawn()
	r.overtakes(n, bare.slow())
	cold := r.awaitReady(began)
	u := r.stands(n, 3)
	if !r.noTCX {
		kernels := bare.xdp + bare.tcx + bare.tables
		t.Logf("cold start with tcx: %v, %.2f times the kernel's own %v (%v); %v", cold, float64(cold)/float64(kernels), kernels, bare, u)
	}
	r.EndAgent(syscall.SIGKILL)
	t.Logf("adopted: %v; %v", r.start(), r.stands(n, 3))
	if d := times(0, 31); d > 0 {
		r.idle(time.Duration(d) * time.Second)
	}
	r.starts(n, times(10, 300))
	r.stands(n, 3)
	if g := r.goroutines(); g > 200 {
		t.Errorf("%d goroutines", g)
	}
}

// stands is what the agent takes when n containers are enforced, by hooks each.
func (r *scaleRig) stands(n, hooks int) footprint {
	r.t.Helper()
	u := r.footprint()
	if r.noTCX {
		hooks = 1 // is pinned
	}
	if u.pins != n*hooks || u.devices != n || u.rss > mostRSS {
		r.t.Errorf("%d containers are to be enforced: %v", n, u)
	}
	if enforced := len(statusAll(r.t, r.Vethwall)); enforced != n {
		r.t.Errorf("status lists %d containers", enforced)
	}
	return u
}

// overtakes starts a container that needs no tcx while n that do are under way; slow says that these have to wait for the kernel.
func (r *scaleRig) overtakes(n int, slow bool) {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); r.count() < min(10, n/2) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	port, run := r.startOne(n, scaleLight)
	before := r.count()
	r.t.Logf("meanwhile a container without tcx: released after %v, enforced %v after its start event, with %d done", port, run, before)
	if slow && before >= n {
		r.t.Error("a container that is fast to enforce has waited for all that are slow")
	}
	if err := r.Remove(n); err != nil {
		r.t.Fatal(err)
	}
}

// idle is what an agent takes that has nothing to do.
func (r *scaleRig) idle(d time.Duration) {
	before := r.footprint()
	time.Sleep(d)
	after := r.footprint()
	r.t.Logf("idle for %v: %.2f %% of a core; %v", d, float64(after.cpu-before.cpu)/float64(d)*100, after)
}

// starts starts containers one after the other beside n that run.
func (r *scaleRig) starts(n, times int) {
	r.t.Helper()
	before := r.footprint()
	var hold, event [2][]time.Duration
	for k := range times {
		labels := []map[string]string{scaleLight, scaleHeavy}[k%2]
		port, run := r.startOne(n+k, labels)
		hold[k%2], event[k%2] = append(hold[k%2], port), append(event[k%2], run)
		if err := r.Remove(n + k); err != nil {
			r.t.Fatal(err)
		}
	}
	for i, name := range []string{"generic XDP", "tcx"} {
		r.t.Logf("%s: from port to released %s; from start event to enforced %s", name, quantiles(hold[i]), quantiles(event[i]))
	}
	r.settles(n, before.pins)
}

// startOne starts a container, and returns how long its port was held, and how long after its start event it was enforced.
func (r *scaleRig) startOne(i int, labels map[string]string) (port, run time.Duration) {
	r.t.Helper()
	r.Create(i, labels)
	ported, err := r.Plug(i, labels)
	if err != nil {
		r.t.Fatal(err)
	}
	freed := r.await(r.freed, enginetest.Port(i))
	ran := time.Now()
	r.Run(i, labels)
	return freed.Sub(ported), r.await(r.enforced, enginetest.NameOf(i)).Sub(ran)
}

// fewTables is how many tables of conversations an agent has that looks after nobody: some it has ready, up to 64 after many
// starts at once, some it has not given back yet, which does not depend on how many there were.
const fewTables = 80

// settles returns when the agent has forgotten all containers but n. What is pinned for their namespaces goes with the next
// sweep, and so do policies and tables that nobody has; it is waited for unless pins is negative.
func (r *scaleRig) settles(n, pins int) {
	r.t.Helper()
	r.With(r.t).Wait("the end of containers that are gone", func() error {
		u := r.footprint()
		if u.devices != n || pins >= 0 && (u.pins != pins || n == 0 && (u.policies > 0 || u.shared > 0 || u.tables > fewTables)) {
			return fmt.Errorf("%v", u)
		}
		if listed := len(statusAll(r.t, r.Vethwall)); listed != n {
			return fmt.Errorf("status lists %d containers", listed)
		}
		return nil
	})
}

// TestStartsAndStops looks for what an agent loses while containers come and go, eight at a time.
func TestStartsAndStops(t *testing.T) {
	r := newScaleRig(t, 100)
	r.start()
	rounds := func(from, to, pins int) {
		var all sync.WaitGroup
		for lane := range 8 {
			all.Go(func() {
				for i := from + lane; i < to; i += 8 {
					if err := r.comesAndGoes(i); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		r.settles(0, pins)
	}
	few, many := 80, times(240, 10000)
	rounds(0, few, -1)
	before := r.footprint()
	began := time.Now()
	rounds(few, few+many, 0)
	after := r.footprint()
	r.startOne(few+many, scaleHeavy)
	if block := r.footprint().block; block != 1 {
		t.Errorf("the only container has counter block %d: others are not given back", block)
	}
	goroutines := r.goroutines()
	t.Logf("%d starts and stops in %v: %v, before: %v; %d goroutines", many, time.Since(began), after, before, goroutines)
	if after.fds > before.fds+40 || after.threads > before.threads+100 || after.rss > mostRSS || goroutines > 200 {
		t.Error("the agent has grown")
	}
}

// comesAndGoes starts a container of one kind or another and removes it again.
func (r *scaleRig) comesAndGoes(i int) error {
	labels := []map[string]string{scaleLight, scaleHeavy, nil, scaleWrong}[i%4]
	r.Create(i, labels)
	if _, err := r.Plug(i, labels); err != nil {
		return err
	}
	r.await(r.freed, enginetest.Port(i))
	r.Run(i, labels)
	if i%8 < 4 && i%4 < 2 { // others go before they are enforced
		r.await(r.enforced, enginetest.NameOf(i))
	}
	return r.Remove(i)
}
