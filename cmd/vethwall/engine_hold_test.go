package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// times is how often something is done that must work each time.
func times(short, long int) int {
	if os.Getenv("VETHWALL_LONG") != "" {
		return long
	}
	return short
}

// holdRig is an engine with an agent, and a sink on one of its networks.
type holdRig struct {
	v       *enginetest.Vethwall
	image   string
	network string
	sink    *enginetest.Container
	to      string // the sink's port
}

func newHoldRig(t *testing.T) *holdRig {
	t.Helper()
	v := enginetest.Own(t).Install()
	r := &holdRig{v: v, image: v.Image()}
	r.network = v.Network("one", "--subnet", subnet4)
	r.sink = v.Serve(r.image, "sink", []string{"--network", r.network}, "53/udp", "443/tcp")
	r.to = net.JoinHostPort(r.sink.Addr(r.network, 4).String(), "53")
	v.StartAgent("-v")
	return r
}

// arrived is how often each text has arrived at the sink.
func (r *holdRig) arrived(t *testing.T) map[string]int {
	t.Helper()
	got := map[string]int{}
	for _, a := range r.sink.With(r.v.Docker.With(t)).Received() {
		got[a.Text] += a.Count
	}
	return got
}

// dropped is how many packets the hold has dropped.
func (r *holdRig) dropped(t *testing.T) uint64 {
	t.Helper()
	var doc struct {
		Hold struct {
			By      string
			Dropped uint64
		}
	}
	if err := json.Unmarshal([]byte(r.v.MustAsk("status", "-o", "json")), &doc); err != nil || doc.Hold.By != "nftables" {
		t.Errorf("held by %q, %v", doc.Hold.By, err)
	}
	return doc.Hold.Dropped
}

// unsurprised looks whether the agent had anything to report that must not happen.
func (r *holdRig) unsurprised(t *testing.T) {
	t.Helper()
	for line := range strings.Lines(r.v.Log()) {
		for _, bad := range []string{"had sent before", "was held for 5 s", "the agent was stopped", "level=ERROR"} {
			if strings.Contains(line, bad) {
				t.Errorf("the agent's log: %s", line)
			}
		}
	}
}

// burn keeps every core busy until stop is called.
func burn() (stop func()) {
	var enough atomic.Bool
	var wg sync.WaitGroup
	for range runtime.NumCPU() {
		wg.Go(func() {
			for !enough.Load() {
			}
		})
	}
	return func() { enough.Store(true); wg.Wait() }
}

// TestFirstPacket starts containers whose first instruction is to send, and which end then, one at a time and eight at
// a time; those that must not reach anybody on a machine whose cores are busy.
func TestFirstPacket(t *testing.T) {
	t.Parallel()
	r := newHoldRig(t)
	for _, f := range []struct {
		kind   string
		labels []string
		send   []string // followed by the sink's port and a text
		want   int      // how many arrive
	}{
		{"blocked", []string{"xdp.egress.drop=udp"}, []string{"udp-send", "-n", "5", "-every", "1ms"}, 0},
		{"allowed", []string{"xdp.egress.allow=53/udp"}, []string{"udp-send"}, 1},
		{"unlabelled", nil, []string{"udp-send"}, 1},
		// A SYN that was lost would be sent again after a second.
		{"unlabelled, by TCP", nil, []string{"tcp-dial", "-wait", "900ms"}, 1},
	} {
		for _, parallel := range []int{1, 8} {
			t.Run(fmt.Sprintf("%s, %d at a time", f.kind, parallel), func(t *testing.T) {
				v, before := r.v.With(t), r.dropped(t)
				var all []*enginetest.Container
				for i := range times(max(3, parallel), 500) {
					to := r.to
					if f.send[0] == "tcp-dial" {
						to = strings.TrimSuffix(to, "53") + "443"
					}
					name := fmt.Sprintf("%s-%d-%d", strings.NewReplacer(",", "", " ", "-").Replace(f.kind), parallel, i)
					all = append(all, v.Create(r.image, name, labelled(r.network, f.labels...), append(slices.Clone(f.send), to, name)...))
				}
				idle := func() {}
				if f.want == 0 {
					idle = burn()
				}
				startAll(t, v, all, parallel)
				idle()
				got, lost := r.arrived(t), 0
				for _, c := range all {
					name := strings.TrimPrefix(c.Name, enginetest.Prefix)
					switch {
					case got[name] == f.want:
					case got[name] == 0 && f.kind == "allowed" && parallel > 1:
						lost++
					default:
						t.Errorf("%d packets of %s arrived, want %d", got[name], name, f.want)
					}
				}
				// The engine leaves 50 ms: on two cores that others use, too, one may come too early (docs/guarantees.md has how many did).
				if t.Logf("%d of %d were lost", lost, len(all)); lost > 1 {
					t.Errorf("%d of %d allowed first packets were lost", lost, len(all))
				}
				if f.labels == nil && r.dropped(t) != before {
					t.Errorf("the hold has dropped %d packets of containers that ask for nothing", r.dropped(t)-before)
				}
				r.unsurprised(t)
				v.Run(append([]string{"rm", "--force"}, ids(all)...)...)
			})
		}
	}
	settled(t, r.v)
}

// TestFirstPacketUnderAnother starts containers that send with their first instruction in a cgroup that bears the id of one that asks for nothing
// (--cgroup-parent).
func TestFirstPacketUnderAnother(t *testing.T) {
	t.Parallel()
	r := newHoldRig(t)
	parent := enginetest.Prefix + r.v.Start(r.image, "free", labelled(r.network)).ID
	t.Cleanup(func() { // nobody else removes it
		for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			left, _ := filepath.Glob(filepath.Join(root, parent))
			for _, dir := range left {
				_ = os.Remove(dir)
			}
		}
	})
	for i := range times(3, 50) {
		name := fmt.Sprint("under-", i)
		options := append(labelled(r.network, "xdp.egress.drop=udp"), "--cgroup-parent", "/"+parent)
		c := r.v.Create(r.image, name, options, "udp-send", "-n", "20", "-every", "1ms", r.to, name)
		r.v.Run("start", "--attach", c.ID)
		if n := r.arrived(t)[name]; n > 0 {
			t.Errorf("%d packets of %s arrived", n, name)
		}
	}
	r.unsurprised(t)
}

func ids(all []*enginetest.Container) (out []string) {
	for _, c := range all {
		out = append(out, c.ID)
	}
	return out
}

// startAll starts containers, so many at a time, and waits until each has ended.
func startAll(t *testing.T, v *enginetest.Vethwall, all []*enginetest.Container, parallel int) {
	t.Helper()
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for _, c := range all {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if _, err := v.Try("start", "--attach", c.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// steadily sends from the first instruction on, for longer than any test runs.
func steadily(to, text string) []string {
	return []string{"udp-send", "-n", "1000000", "-every", "2ms", to, text}
}

// TestConnectLeaksNothing joins a container that sends all the time to the network of what it must not reach.
func TestConnectLeaksNothing(t *testing.T) {
	t.Parallel()
	r := newHoldRig(t)
	away := r.v.Network("away", "--subnet", "198.51.100.0/24")
	blocked := r.v.Start(r.image, "blocked", labelled(away, "xdp.egress.drop=udp"), steadily(r.to, "blocked")...)
	free := r.v.Start(r.image, "free", labelled(away), steadily(r.to, "free")...)
	awaitFilter(t, r.v, blocked.Name, 1)
	for range times(5, 200) {
		for _, c := range []*enginetest.Container{blocked, free} {
			r.v.Run("network", "connect", r.network, c.ID)
		}
		awaitFilter(t, r.v, blocked.Name, 2)
		before := r.arrived(t)["free"]
		r.v.Wait("packets of the one without a filter", func() error {
			if n := r.arrived(t)["free"]; n == before {
				return fmt.Errorf("%d as before", n)
			}
			return nil
		})
		for _, c := range []*enginetest.Container{blocked, free} {
			r.v.Run("network", "disconnect", r.network, c.ID)
		}
	}
	if n := r.arrived(t)["blocked"]; n > 0 {
		t.Errorf("%d packets got through", n)
	}
	r.unsurprised(t)
}

// TestCrashLoop has containers start again and again, each time on a new veth, as their restart policy says.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	r := newHoldRig(t)
	// Docker waits 100 ms before it starts one again, and twice as long each time.
	restarts := times(4, 10)
	var all []*enginetest.Container
	for i := range times(3, 100) {
		options := append(labelled(r.network, "xdp.egress.drop=53/udp"), "--restart", fmt.Sprintf("on-failure:%d", restarts))
		// The answer never comes, so that peer fails.
		all = append(all, r.v.Start(r.image, "crash-"+strconv.Itoa(i), options, "udp-send", "-n", "3", "-every", "1ms", "-echo", "1ms", r.to, "crash"))
	}
	for _, c := range all {
		deadline := time.Now().Add(3 * time.Minute)
		for r.v.Run("inspect", "--format", "{{.State.Status}} {{.RestartCount}}", c.ID) != fmt.Sprintf("exited %d", restarts) {
			if time.Now().After(deadline) {
				t.Fatalf("%s does not end", c.Name)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	if n := r.arrived(t)["crash"]; n > 0 {
		t.Errorf("%d packets got through", n)
	}
	r.unsurprised(t)
	settled(t, r.v)
}

// TestAgentStopped stops the agent with SIGSTOP while containers start: they are held at first, then they send, and are filtered
// and called late when the agent goes on.
func TestAgentStopped(t *testing.T) {
	t.Parallel()
	r := newHoldRig(t)
	// A network of 256 addresses is too small for all.
	networks := []string{r.network, r.v.Network("two", "--subnet", "198.51.100.0/24")}
	r.v.Run("network", "connect", networks[1], r.sink.ID)
	// Both directions are closed: of a conversation from before the filter nobody knows who has opened it, and where the
	// sink's echo is the first that the filter sees, it is the sink.
	send := func(name, network string) *enginetest.Container {
		to := net.JoinHostPort(r.sink.Addr(network, 4).String(), "53")
		return r.v.Create(r.image, name, labelled(network, "xdp.drop=udp"), "udp-send", "-n", "1000000", "-every", "50ms", to, name)
	}
	var all []*enginetest.Container
	for i := range times(8, 300) {
		all = append(all, send("stopped-"+strconv.Itoa(i), networks[i%2]))
	}
	r.v.SignalAgent(syscall.SIGSTOP)
	stopped := time.Now()
	started := make(chan error)
	go func() { started <- startSome(r.v, all, 4) }()
	// The hold has been refreshed a second before the signal at the earliest.
	for n := map[string]int(nil); time.Since(stopped) < 4*time.Second; n = r.arrived(t) {
		if len(n) > 0 {
			t.Fatalf("sent %v after the agent was stopped: %v", time.Since(stopped), n)
		}
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	r.v.Wait("the end of the hold", func() error {
		if n := len(r.arrived(t)); n < len(all) {
			return fmt.Errorf("packets of %d containers arrive %v after the agent was stopped", n, time.Since(stopped))
		}
		return nil
	})
	if os.Getenv("VETHWALL_LONG") != "" {
		time.Sleep(time.Minute - time.Since(stopped))
	}
	r.v.SignalAgent(syscall.SIGCONT)
	went := time.Now()
	r.v.Wait("all are late", func() error {
		late := 0
		for _, s := range statusAll(t, r.v) {
			if s.State == agent.Late && len(s.Interfaces) == 1 && s.Interfaces[0].Late > 0 {
				late++
			}
		}
		if late < len(all) {
			return fmt.Errorf("%d of %d", late, len(all))
		}
		return nil
	})
	took := time.Since(went)
	// What is sent is judged when it is said how much had been sent before; then the kernel takes 8 ms and more for each of what is
	// received, one after the other.
	t.Logf("%d containers: what they send was judged after %v, all after %v; status shows it after %v", len(all),
		lastSaid(t, r.v.Log(), "had sent before its filter came").Sub(went), lastSaid(t, r.v.Log(), "msg=late").Sub(went), took)
	// 2 s are wanted, and had for a few on a machine that does nothing else.
	if took > 10*time.Second+time.Duration(len(all))*50*time.Millisecond {
		t.Errorf("it took %v to filter %d containers", took, len(all))
	}
	before := r.arrived(t)
	r.v.Run("run", "--network", r.network, r.image, "udp-send", "-echo", "2s", r.to, "marker")
	for text, n := range r.arrived(t) {
		if text != "marker" && n != before[text] {
			t.Errorf("%s: %d packets got through after it was filtered", text, n-before[text])
		}
	}
	// From here on it holds again.
	after := send("after", r.network)
	r.v.Run("start", after.ID)
	if s := awaitFilter(t, r.v, after.Name, 1); s.State != agent.Enforced || r.arrived(t)["after"] > 0 {
		t.Errorf("%d packets got through: %+v", r.arrived(t)["after"], s)
	}
}

// TestRulesAreRemoved removes the rules of the hold while the agent is too busy to notice, for less time than the hold would have
// outlived it. What was sent then is called late.
func TestRulesAreRemoved(t *testing.T) {
	t.Parallel()
	r := newHoldRig(t)
	out, err := r.v.Command("nft", "list", "tables", "bridge").Output()
	table := strings.Fields(string(out))
	if err != nil || len(table) != 3 {
		t.Fatalf("%q, %v", out, err)
	}
	c := r.v.Create(r.image, "sends", labelled(r.network, "xdp.egress.drop=udp"), steadily(r.to, "sends")...)
	r.v.SignalAgent(syscall.SIGSTOP)
	if out, err := r.v.Command("nft", "delete", "table", table[1], table[2]).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r.v.Run("start", c.ID)
	r.v.Wait("packets", func() error {
		if r.arrived(t)["sends"] == 0 {
			return errors.New("none")
		}
		return nil
	})
	r.v.SignalAgent(syscall.SIGCONT)
	if s := awaitFilter(t, r.v, c.Name, 1); s.State != agent.Late || s.Interfaces[0].Late == 0 {
		t.Errorf("it had sent and is not called late: %+v", s)
	}
}

// lastSaid is when a text stands in the agent's log for the last time.
func lastSaid(t *testing.T, log, text string) (at time.Time) {
	t.Helper()
	for line := range strings.Lines(log) {
		if !strings.Contains(line, text) {
			continue
		}
		said, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
		var err error
		if at, err = time.Parse(time.RFC3339Nano, said); err != nil {
			t.Error(err)
		}
	}
	return at
}

// startSome starts containers, so many at a time.
func startSome(v *enginetest.Vethwall, all []*enginetest.Container, parallel int) error {
	var wg sync.WaitGroup
	slots, errs := make(chan struct{}, parallel), make(chan error, len(all))
	for _, c := range all {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			_, err := v.Try("start", c.ID)
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	var out error
	for err := range errs {
		out = errors.Join(out, err)
	}
	return out
}
