package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// TestChaos does to containers, agent, engine, pins and configuration whatever comes to a random mind, and knows what must
// become of each container. All of them send and are sent to all the time what they may and what they may not; nothing that is
// forbidden ever arrives, and what is allowed goes on. Only what starts while no agent runs may leak, and is called late then.
//
// A failure prints the seed, and VETHWALL_SEED does the same again.
func TestChaos(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	if s := os.Getenv("VETHWALL_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("VETHWALL_SEED=%d", seed)
	m := newChaos(t, rand.New(rand.NewPCG(seed, 0)))
	for i := range times(20, 300) {
		m.step(i)
	}
	m.end()
}

// kind is what a container asks for by its labels.
type kind struct {
	name   string
	labels []string
	denies byPort
	deaf   bool   // it may not be asked
	policy string // canonical
	state  agent.State
}

var chaosKinds = []kind{
	{"drop", []string{"xdp.egress.drop=5000/udp"}, byPort{true, false}, false, "xdp.egress.drop=5000/udp", agent.Enforced},
	{"list", []string{"xdp.egress.allow=5001/udp", "xdp.ingress.default=drop"}, byPort{true, false}, true, "xdp.egress.allow=5001/udp xdp.ingress.default=drop", agent.Enforced},
	{"wrong", []string{"xdp.drop=upd"}, byPort{true, true}, true, "", agent.Quarantined},
	{"audit", []string{"xdp.egress.drop=5000/udp", "xdp.mode=audit"}, byPort{}, false, "xdp.egress.drop=5000/udp xdp.mode=audit", agent.Audit},
	{"free", nil, byPort{}, false, "", agent.Unfiltered},
	{"picked", nil, byPort{}, false, "", agent.Unfiltered},
}

// setting is a configuration, and what it says of containers: of those of kind picked, or of all.
type setting struct {
	text   string
	all    bool
	denies byPort
	policy string
}

var chaosSettings = []setting{
	{"{}", false, byPort{}, ""},
	{"policies: [{pick: {name: \"*-picked-*\"}, labels: {xdp.egress.drop: 5000/udp}}]", false, byPort{true, false}, "config(xdp.egress.drop=5000/udp)"},
	{"policies: [{pick: {name: \"*-picked-*\"}, labels: {xdp.egress.drop: 5001/udp}}]", false, byPort{false, true}, "config(xdp.egress.drop=5001/udp)"},
	{"floor: {xdp.egress.drop: 5001/udp}", true, byPort{false, true}, "floor(xdp.egress.drop=5001/udp)"},
}

// under is what holds for a container of a kind under a configuration.
func (k kind) under(s setting) (denies byPort, policy string, state agent.State) {
	switch {
	case k.state == agent.Quarantined || s.policy == "" || !s.all && k.name != "picked":
		return k.denies, k.policy, k.state
	case k.labels == nil:
		return s.denies, s.policy, agent.Enforced
	}
	return byPort{k.denies[0] || s.denies[0], k.denies[1] || s.denies[1]}, s.policy + " labels(" + k.policy + ")", k.state
}

// box is what the model knows of a container.
type box struct {
	*enginetest.Container
	kind     kind
	networks []string
	running  bool
	// unseen: no agent has run since it started; blind are the networks that it has joined without one. open: it may have
	// sent before its filter came, on some network.
	unseen, open bool
	blind        []string
	// before is what had arrived from it when it last started, or joined or left a network without an agent.
	before [2]int
}

// chaos is the model, and the means to make it come true.
type chaos struct {
	t        *testing.T
	rnd      *rand.Rand
	v        *enginetest.Vethwall
	sink     *leakDetector
	image    string
	networks []string
	to       []string // where everybody sends
	boxes    []*box
	n        int     // containers made so far
	setting  setting // what the file says
	inForce  setting // what an agent has put in force
	agent    bool    // one runs
	restores bool    // the engine's containers live on without it
	unpinned bool
	files    int // that the first agent had open when it had nothing to do
}

func newChaos(t *testing.T, rnd *rand.Rand) *chaos {
	t.Helper()
	m := &chaos{t: t, rnd: rnd, agent: true, setting: chaosSettings[0], inForce: chaosSettings[0], restores: rnd.IntN(3) > 0}
	var flags []string
	if m.restores {
		flags = []string{"--live-restore"}
	}
	m.v = enginetest.Own(t, flags...).Install()
	m.image = m.v.Image()
	for i, subnet := range []string{"192.0.2", "198.51.100", "203.0.113"} {
		v6 := fmt.Sprintf("2001:db8:%d:", i)
		m.networks = append(m.networks, m.v.Network(fmt.Sprint("net", i), "--ipv6", "--subnet", subnet+".0/24", "--subnet", v6+":/64"))
		for _, port := range chaosPorts {
			m.to = append(m.to, fmt.Sprintf("%s.1:%d", subnet, port), fmt.Sprintf("[%s:1]:%d", v6, port))
		}
	}
	m.sink = newLeakDetector(t, m.v)
	m.v.StartAgent()
	m.files = m.v.AgentFiles()
	return m
}

// step does something, waits until everything is as it must be, and looks whether anything has leaked.
func (m *chaos) step(i int) {
	m.t.Helper()
	actions := []func() string{
		m.run, m.run, m.run, m.remove, m.stop, m.start, m.start, m.restart, m.connect, m.connect, m.disconnect,
		m.killAgent, m.bringAgent, m.bringAgent, m.bringAgent, m.configure, m.configure, m.spoil, m.engine, m.stall, m.unpin,
	}
	what := ""
	for what == "" {
		what = actions[m.rnd.IntN(len(actions))]()
	}
	m.t.Logf("%d: %s", i, what)
	m.settle()
	m.tight()
}

// tight says that nothing has leaked.
func (m *chaos) tight() {
	m.t.Helper()
	if leaks := m.sink.leaks(); len(leaks) > 0 {
		m.t.Fatalf("leaked:\n%s", strings.Join(leaks, "\n"))
	}
}

// pick is a random box of which ok holds, nil for none.
func (m *chaos) pick(ok func(*box) bool) *box {
	var fit []*box
	for _, b := range m.boxes {
		if ok(b) {
			fit = append(fit, b)
		}
	}
	if len(fit) == 0 {
		return nil
	}
	return fit[m.rnd.IntN(len(fit))]
}

func running(b *box) bool { return b.running }
func stopped(b *box) bool { return !b.running }

// names is for the log.
func names(boxes ...*box) string {
	var out []string
	for _, b := range boxes {
		out = append(out, strings.TrimPrefix(b.Name, enginetest.Prefix))
	}
	return strings.Join(out, ", ")
}

// does tells the leak detector what is being done.
func (m *chaos) does(format string, args ...any) string {
	what := fmt.Sprintf(format, args...)
	m.sink.during(what)
	return what
}

// run starts up to three containers at once.
func (m *chaos) run() string {
	var fresh []*box
	for range 1 + m.rnd.IntN(3) {
		if len(m.boxes) == 8 {
			break
		}
		k := chaosKinds[m.rnd.IntN(len(chaosKinds))]
		m.n++
		name := fmt.Sprintf("%s-%d", k.name, m.n)
		if k.name == "picked" {
			name = "a-" + name // so that the pattern finds it with and without a prefix
		}
		network := m.networks[m.rnd.IntN(len(m.networks))]
		b := &box{kind: k, networks: []string{network}}
		b.Container = m.v.Create(m.image, name, labelled(network, k.labels...), append([]string{"beacon", "-port", strconv.Itoa(chaosPort), enginetest.Prefix + name}, m.to...)...)
		m.boxes, fresh = append(m.boxes, b), append(fresh, b)
	}
	if fresh == nil {
		return ""
	}
	what := m.does("run %s", names(fresh...))
	var all sync.WaitGroup
	for _, b := range fresh {
		m.begins(b)
		all.Go(func() {
			if _, err := m.v.Try("start", b.ID); err != nil {
				m.t.Error(err)
			}
		})
	}
	all.Wait()
	return what
}

// begins says of a box that it is about to start, on new veths.
func (m *chaos) begins(b *box) {
	b.running, b.unseen, b.open, b.blind, b.before = true, !m.agent, !m.agent, nil, m.sink.count(b.Name)
	denies, _, _ := b.kind.under(m.inForce)
	if !m.agent {
		denies = byPort{}
	}
	m.sink.forbid(b.Name, denies, m.agent && b.kind.deaf)
}

// ends says of a box that it has ended.
func (m *chaos) ends(b *box) { b.running, b.unseen, b.open, b.blind = false, false, false, nil }

func (m *chaos) remove() string {
	b := m.pick(func(*box) bool { return true })
	if b == nil {
		return ""
	}
	what := m.does("remove %s", names(b))
	m.v.Run("rm", "--force", b.ID)
	m.boxes = slices.DeleteFunc(m.boxes, func(other *box) bool { return other == b })
	return what
}

func (m *chaos) stop() string {
	b := m.pick(running)
	if b == nil {
		return ""
	}
	what := m.does("stop %s", names(b))
	m.v.Run("stop", b.ID)
	m.ends(b)
	return what
}

func (m *chaos) start() string {
	b := m.pick(stopped)
	if b == nil {
		return ""
	}
	what := m.does("start %s", names(b))
	m.begins(b)
	m.v.Run("start", b.ID)
	return what
}

func (m *chaos) restart() string {
	b := m.pick(running)
	if b == nil {
		return ""
	}
	what := m.does("restart %s", names(b))
	m.begins(b)
	m.v.Run("restart", b.ID)
	return what
}

func (m *chaos) connect() string {
	b := m.pick(func(b *box) bool { return len(b.networks) < len(m.networks) })
	if b == nil {
		return ""
	}
	free := without(m.networks, b.networks)
	network := free[m.rnd.IntN(len(free))]
	what := m.does("connect %s to %s", names(b), network)
	if b.running && !m.agent {
		b.open, b.blind, b.before = true, append(b.blind, network), m.sink.count(b.Name)
		m.sink.forbid(b.Name, byPort{}, false)
	}
	m.v.Run("network", "connect", network, b.ID)
	b.networks = append(b.networks, network)
	return what
}

func (m *chaos) disconnect() string {
	b := m.pick(func(b *box) bool { return len(b.networks) > 1 })
	if b == nil {
		return ""
	}
	i := m.rnd.IntN(len(b.networks))
	what := m.does("disconnect %s from %s", names(b), b.networks[i])
	m.v.Run("network", "disconnect", b.networks[i], b.ID)
	if !m.agent {
		m.sink.mark(m.t, m.v)
		b.blind, b.before = without(b.blind, b.networks[i:i+1]), m.sink.count(b.Name)
	}
	b.networks = slices.Delete(b.networks, i, i+1)
	return what
}

func (m *chaos) killAgent() string {
	if !m.agent {
		return ""
	}
	sig := []syscall.Signal{syscall.SIGKILL, syscall.SIGKILL, syscall.SIGTERM}[m.rnd.IntN(3)]
	what := m.does("end the agent: %v", sig)
	m.v.EndAgent(sig)
	m.agent = false
	if m.rnd.IntN(2) == 0 {
		m.bringAgent()
		what += ", and start another"
	}
	return what
}

func (m *chaos) bringAgent() string {
	if m.agent {
		return ""
	}
	what := m.does("start an agent")
	m.relax(m.setting)
	m.v.StartAgent()
	m.agent = true
	return what
}

// relax leaves forbidden only what is so under a setting that is about to come as well.
func (m *chaos) relax(next setting) {
	for _, b := range m.boxes {
		now := m.sink.forbids(b.Name)
		then, _, state := b.kind.under(next)
		m.sink.forbid(b.Name, byPort{now[0] && then[0], now[1] && then[1]}, b.kind.deaf && !b.unseen && b.blind == nil)
		_, _, before := b.kind.under(m.inForce)
		b.open = b.open || b.running && before == agent.Unfiltered && state != agent.Unfiltered
	}
}

func (m *chaos) configure() string {
	next := chaosSettings[m.rnd.IntN(len(chaosSettings))]
	what := m.does("configure %q", next.text)
	changed := next.text != m.setting.text
	m.setting = next
	if !m.agent || !changed {
		m.v.Configure(next.text + "\n")
		return what
	}
	m.relax(next)
	m.write(next.text, "has been read again")
	return what
}

// write writes a configuration, and waits for what the agent says to it.
func (m *chaos) write(text, says string) {
	before := strings.Count(m.v.Log(), says)
	m.v.Configure(text + "\n")
	m.v.Wait("the agent reads a configuration", func() error {
		if strings.Count(m.v.Log(), says) == before {
			return fmt.Errorf("no word of it")
		}
		return nil
	})
}

// spoil writes a configuration with a mistake, which changes nothing, and the one before again.
func (m *chaos) spoil() string {
	if !m.agent {
		return ""
	}
	what := m.does("write a wrong configuration")
	m.write("floor: {xdp.drop: 443}", "the one before stays in force")
	m.write(m.setting.text, "has been read again")
	return what
}

// engine takes the engine away, and with it the containers, unless they live on without it.
func (m *chaos) engine() string {
	kill := m.rnd.IntN(2) == 0
	what := m.does("restart the engine, kill it first: %t", kill)
	if kill {
		m.v.Engine.Kill()
		m.v.Engine.Up()
	} else {
		m.v.Engine.Restart()
	}
	for _, b := range m.boxes {
		if !m.restores {
			m.ends(b)
		}
	}
	return what
}

// stall stops the agent for less time than the hold lasts without it.
func (m *chaos) stall() string {
	if !m.agent {
		return ""
	}
	what := m.does("stop the agent for a moment")
	m.v.SignalAgent(syscall.SIGSTOP)
	time.Sleep(time.Duration(m.rnd.IntN(1000)) * time.Millisecond)
	m.v.SignalAgent(syscall.SIGCONT)
	return what
}

// unpin removes pins, once in a short run: the agent puts them back within 15 s.
func (m *chaos) unpin() string {
	if !m.agent || m.unpinned {
		return ""
	}
	m.unpinned = os.Getenv("VETHWALL_LONG") == ""
	what := m.does("remove pins")
	all, err := filepath.Glob(filepath.Join(m.v.Dir, "*", "*"))
	if err != nil {
		m.t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(pin string) bool { return m.rnd.IntN(2) == 0 || os.Remove(pin) != nil })
	m.v.Wait("pins are back", func() error {
		for _, pin := range all {
			if _, err := os.Lstat(pin); err != nil {
				return err
			}
		}
		return nil
	})
	return what
}

// settle waits until everything is as the model says.
func (m *chaos) settle() {
	m.t.Helper()
	if !m.agent {
		for _, b := range m.boxes {
			if s, _ := statusOf(m.t, m.v, b.Name); (b.unseen || b.blind != nil) && b.kind.labels != nil && s.State != agent.Pending {
				m.t.Errorf("%s started or joined %v without an agent, and is called %s", b.Name, b.blind, s.State)
			}
		}
		return
	}
	m.v.Wait("everything is as it must be", func() error {
		m.tight()
		all := m.statuses()
		for _, b := range m.boxes {
			if err := m.agrees(b, all[b.Name]); err != nil {
				return err
			}
		}
		return nil
	})
	settled(m.t, m.v)
	before := m.inForce
	m.inForce = m.setting
	m.sink.mark(m.t, m.v)
	for _, b := range m.boxes {
		if denies, _, _ := b.kind.under(m.inForce); b.running {
			denied, _, _ := b.kind.under(before)
			m.wantLate(b, byPort{denies[0] && denied[0], denies[1] && denied[1]})
			m.sink.forbid(b.Name, denies, b.kind.deaf)
			b.unseen, b.blind = false, nil
		}
	}
	m.goesOn()
}

func (m *chaos) statuses() map[string]agent.ContainerStatus {
	m.t.Helper()
	var doc struct{ Containers []agent.ContainerStatus }
	if err := json.Unmarshal([]byte(m.v.MustAsk("status", "--all", "-o", "json")), &doc); err != nil {
		m.t.Fatal(err)
	}
	out := map[string]agent.ContainerStatus{}
	for _, s := range doc.Containers {
		out[s.Name] = s
	}
	return out
}

// agrees says what of a container's status is not as the model has it.
func (m *chaos) agrees(b *box, s agent.ContainerStatus) error {
	_, policy, state := b.kind.under(m.setting)
	mayBeLate := b.open && (state == agent.Enforced || state == agent.Audit)
	switch {
	case !b.running && s.Name != "":
		return fmt.Errorf("%s does not run: %+v", b.Name, s)
	case !b.running:
		return nil
	case s.State != state && (s.State != agent.Late || !mayBeLate):
		return fmt.Errorf("%s is %s, want %s: %+v", b.Name, s.State, state, s)
	case s.Policy != policy:
		return fmt.Errorf("%s has the policy %q, want %q", b.Name, s.Policy, policy)
	case state != agent.Unfiltered && len(s.Interfaces) != len(b.networks):
		return fmt.Errorf("%s has %d interfaces, want %d: %+v", b.Name, len(s.Interfaces), len(b.networks), s)
	}
	return nil
}

// wantLate: what has arrived of what was and is denied, from a container that no agent had seen, or by a network that none
// had seen it join, must have been counted.
func (m *chaos) wantLate(b *box, denies byPort) {
	m.t.Helper()
	now, leaked := m.sink.count(b.Name), false
	for i, denied := range denies {
		leaked = leaked || denied && now[i] > b.before[i]
	}
	if !leaked || b.kind.state == agent.Quarantined || !b.unseen && b.blind == nil {
		return
	}
	if s, _ := statusOf(m.t, m.v, b.Name); s.State != agent.Late {
		m.t.Errorf("%s had sent before its filter came, and is called %s", b.Name, s.State)
	}
}

// goesOn waits for new packets of everybody to where he may send.
func (m *chaos) goesOn() {
	m.t.Helper()
	before := map[string][2]int{}
	for _, b := range m.boxes {
		for _, name := range []string{b.Name, b.Name + "!"} {
			before[name] = m.sink.count(name)
		}
	}
	m.v.Wait("what is allowed arrives", func() error {
		for _, b := range m.boxes {
			for name, then := range before {
				now, denies := m.sink.count(name), m.sink.forbids(name)
				for i, denied := range denies {
					if b.running && strings.TrimSuffix(name, "!") == b.Name && !denied && now[i] == then[i] {
						return fmt.Errorf("nothing of %s to port %d", name, chaosPorts[i])
					}
				}
			}
		}
		return nil
	})
}

// end removes everything, and looks whether anything is left.
func (m *chaos) end() {
	m.t.Helper()
	m.bringAgent()
	m.settle()
	for len(m.boxes) > 0 {
		m.remove()
	}
	m.settle()
	have := pins(m.t, m.v)
	others := heldByOthers(m.t, m.v, have, nil)
	if with := m.v.Filtered(); len(with) > 0 && len(others) == 0 || len(have) > len(others) {
		m.t.Errorf("programs on %v, pins %v, of namespaces that others hold %v", with, have, others)
	}
	m.tight()
	m.v.Wait("the agent closes what it has opened", func() error {
		// A few connections to the engine come and go.
		if n := m.v.AgentFiles(); n > m.files+10 {
			return fmt.Errorf("%d files, and %d at first", n, m.files)
		}
		return nil
	})
}
