package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/xdp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeKernel keeps in memory what the data plane keeps in maps and links. Devices and namespaces are the test's.
type fakeKernel struct {
	mu         sync.Mutex
	namespaces map[string][]xdp.Veth // path -> veths
	attached   map[int]string        // ifindex -> "open", "closed" or "down"
	byHand     map[int]bool
	foreign    map[int]bool   // somebody else has the XDP slot
	unseen     map[int]uint64 // packets sent before the filter came
	records    map[string][]byte
	host       *host
	last       map[int]xdp.Want          // what was attached last
	objects    map[string]xdp.Program    // the program directory
	resolvers  map[string]resolverClosed // by path of the namespace
	lost       map[int]bool
	askers     map[string]asker     // by id of the container
	neighbors  map[int][]netip.Addr // by port, where it is known
	sure       map[int]bool         // nobody else has them
	elsewhere  map[string]string    // addresses on bridges: of which other bridge, and what is here of who has them
	routesBack bool                 // the host does, to whichever bridge
	hairpin    bool                 // ports are so configured
	fail       map[string]error     // "attach 7", "shut 7", "save", "veths" -> error
	calls      []string
	outlets    map[string][]xdp.Outlet // by path of the namespace
	slow       map[int]bool            // devices whose filters take the kernel long
	begun      map[*xdp.Rest]int       // by rest, the device
	refused    map[*xdp.Rest]bool      // what the kernel would not attach
	rested     map[int]*xdp.Rest       // by device, what was taken
	hangRest   chan struct{}           // attaching a rest waits
	called     func(call string)       // told of each call, with mu held
	retired    int
	misplaced  bool
	swept      int
	hold       *fakeHold
}

// asker is what a container may not ask, and the device by which that counts.
type asker struct {
	resolverClosed
	ifindex int
}

func newFakeKernel() *fakeKernel {
	return &fakeKernel{
		namespaces: map[string][]xdp.Veth{}, attached: map[int]string{}, byHand: map[int]bool{}, foreign: map[int]bool{}, unseen: map[int]uint64{},
		records: map[string][]byte{}, fail: map[string]error{}, host: &host{}, last: map[int]xdp.Want{},
		neighbors: map[int][]netip.Addr{}, elsewhere: map[string]string{}, sure: map[int]bool{}, objects: map[string]xdp.Program{}, resolvers: map[string]resolverClosed{}, lost: map[int]bool{}, askers: map[string]asker{}, outlets: map[string][]xdp.Outlet{}, hold: newFakeHold(),
		slow: map[int]bool{}, begun: map[*xdp.Rest]int{}, refused: map[*xdp.Rest]bool{}, rested: map[int]*xdp.Rest{},
	}
}

func (k *fakeKernel) call(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	k.calls = append(k.calls, text)
	if k.called != nil {
		k.called(text)
	}
	return k.fail[text]
}

func (k *fakeKernel) exists(ifindex int) bool {
	for _, veths := range k.namespaces {
		if slices.ContainsFunc(veths, func(v xdp.Veth) bool { return v.Index == ifindex }) {
			return true
		}
	}
	return slices.ContainsFunc(k.hold.list(), func(p xdp.Port) bool { return p.Index == ifindex })
}

func (k *fakeKernel) Attach(ifindex int, w xdp.Want) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.call("attach %d", ifindex)
	switch {
	case err != nil:
		return err
	case !k.exists(ifindex):
		return fmt.Errorf("attach: %w", netlink.LinkNotFoundError{})
	}
	k.attached[ifindex], k.last[ifindex] = "open", w
	if w.Program != (xdp.Program{}) {
		delete(k.byHand, ifindex)
	}
	return nil
}

func (k *fakeKernel) Introduce(_, port int, addrs []netip.Addr, sure bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.neighbors[port], k.sure[port] = addrs, sure
	return k.call("introduce %d", port)
}

func (k *fakeKernel) IntroduceElsewhere(bridge, other int, addrs, here []netip.Addr) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, a := range addrs {
		k.elsewhere[fmt.Sprintf("%v on %d", a, bridge)] = fmt.Sprintf("of %d %v", other, here)
	}
	return nil
}

func (k *fakeKernel) Introduced(port int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.neighbors[port]) > 0
}

func (k *fakeKernel) Bearer(_ int, addr netip.Addr) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	for port, addrs := range k.neighbors {
		if slices.Contains(addrs, addr) {
			return port
		}
	}
	return 0
}

func (k *fakeKernel) RoutesBack(bridge int, does bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.routesBack = does
	return k.call("routes back %d", bridge)
}

func (k *fakeKernel) CloseResolver(path string, _ int, udp, tcp bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.call("resolver %s", path); err != nil {
		return err
	}
	k.resolvers[path] = resolverClosed{udp, tcp}
	return nil
}

func (k *fakeKernel) ResolverStands(path string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.resolvers[path] != resolverClosed{}
}

func (k *fakeKernel) Lost(ifindex int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	lost := k.lost[ifindex]
	delete(k.lost, ifindex)
	return lost
}

func (k *fakeKernel) CloseResolverTo(id string, ifindex int, udp, tcp bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !udp && !tcp {
		delete(k.askers, id)
		return nil
	}
	k.askers[id] = asker{resolverClosed{udp, tcp}, ifindex}
	return k.fail["asker"]
}

func (k *fakeKernel) SweepResolver(known func(id string) bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.askers, func(id string, _ asker) bool { return !known(id) })
	return nil
}

func (k *fakeKernel) Shut(ifindex int) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.call("shut %d", ifindex)
	switch {
	case err != nil:
		return false, err
	case !k.exists(ifindex):
		return false, fmt.Errorf("shut: %w", netlink.LinkNotFoundError{})
	case k.fail[fmt.Sprintf("attach %d", ifindex)] != nil:
		k.attached[ifindex] = "down"
		return false, nil
	}
	k.attached[ifindex] = "closed"
	return true, nil
}

func (k *fakeKernel) Detach(ifindex int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.call("detach %d", ifindex); err != nil {
		return err
	}
	delete(k.attached, ifindex)
	return nil
}

func (k *fakeKernel) ForgetConversations(ifindex int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.call("forget conversations %d", ifindex)
}

func (k *fakeKernel) Unseen(ifindex int) uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.unseen[ifindex]
}

func (k *fakeKernel) Filters(ifindex int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.attached[ifindex] != ""
}

func (k *fakeKernel) Filtered() []int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Collect(maps.Keys(k.attached))
}

func (k *fakeKernel) ByHand(ifindex int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.byHand[ifindex]
}

func (k *fakeKernel) Both(ifindex int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := k.last[ifindex]
	return (w.BothHooks || w.Raw) && k.attached[ifindex] != "half" && !k.foreign[ifindex] && !k.byHand[ifindex]
}

func (k *fakeKernel) detachByHand(ifindex int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.byHand, ifindex)
	return nil
}

// readProgram makes a fakeKernel the program directory too.
func (k *fakeKernel) readProgram(name string) (xdp.Program, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p, ok := k.objects[name]; ok {
		return p, nil
	}
	return xdp.Program{}, fmt.Errorf("xdp.program=%s: no file", name)
}

func (k *fakeKernel) Bound(answered int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.call("bound %d", answered)
}

// Begin leaves a rest for devices in slow that have no filter.
func (k *fakeKernel) Begin(ifindex int, w xdp.Want) (*xdp.Rest, error) {
	k.mu.Lock()
	slow := k.slow[ifindex] && k.rested[ifindex] == nil
	k.mu.Unlock()
	if err := k.Attach(ifindex, w); err != nil || !slow {
		return nil, err
	}
	r := &xdp.Rest{Open: w.Mode == xdp.TCX}
	k.set(func() { k.begun[r] = ifindex; k.attached[ifindex] = "half" })
	return r, nil
}

func (k *fakeKernel) attachRest(r *xdp.Rest) error {
	k.mu.Lock()
	err, hang := k.call("rest %d", k.begun[r]), k.hangRest
	k.refused[r] = err != nil
	k.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return err
}

func (k *fakeKernel) Take(r *xdp.Rest) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.refused[r] {
		k.rested[k.begun[r]] = r
	}
	return k.call("take %d", k.begun[r])
}

func (k *fakeKernel) closeRest(r *xdp.Rest) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.call("close %d", k.begun[r])
}

func (k *fakeKernel) Forget(ifindexes ...int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, i := range ifindexes {
		if !k.exists(i) {
			delete(k.attached, i)
		}
	}
	return nil
}

func (k *fakeKernel) Sweep(xdp.Links) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.attached, func(ifindex int, _ string) bool { return !k.exists(ifindex) })
	k.swept++
	return nil
}

func (k *fakeKernel) Misplaced() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.misplaced
}

func (k *fakeKernel) Retire() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.retired++
	return nil
}

func (k *fakeKernel) Records() (map[string][]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.records), nil
}

func (k *fakeKernel) SaveRecord(id string, text []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.call("save"); err != nil {
		return err
	}
	k.records[id] = text
	return nil
}

func (k *fakeKernel) DeleteRecord(id string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.records, id)
	return nil
}

// In makes a fakeKernel the namespaces too.
func (k *fakeKernel) In(path string) ([]xdp.Veth, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	_ = k.call("in %s", path)
	veths, ok := k.namespaces[path]
	switch {
	case path == "host":
		return nil, xdp.ErrOwnNamespace
	case !ok:
		return nil, fmt.Errorf("open %s: %w", path, os.ErrNotExist)
	}
	return slices.Clone(veths), nil
}

func (k *fakeKernel) At(ifindex int) (xdp.Veth, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, veths := range k.namespaces {
		for _, v := range veths {
			if v.Index == ifindex {
				return v, true
			}
		}
	}
	return xdp.Veth{}, false
}

func (k *fakeKernel) listOutlets(path string) ([]xdp.Outlet, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.outlets[path], k.call("outlets %s", path)
}

func (k *fakeKernel) With(nsid int) []xdp.Veth {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, veths := range k.namespaces {
		if len(veths) > 0 && veths[0].NsID == nsid {
			return slices.Clone(veths)
		}
	}
	return nil
}

func (k *fakeKernel) set(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change()
}

// count is how often a call was made.
func (k *fakeKernel) count(call string) (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.calls {
		if c == call {
			n++
		}
	}
	return n
}

// state is one line for a container, and its interfaces in brackets: network, state, device's state.
func (k *fakeKernel) state(id string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	text, ok := k.records[id]
	if !ok {
		return "none"
	}
	r, err := ParseRecord(text)
	if err != nil {
		return "damaged"
	}
	out := string(r.State)
	for _, i := range r.Interfaces {
		out += fmt.Sprintf(" [%s %s %d:%s]", i.Network, i.State, i.Ifindex, k.attached[i.Ifindex])
	}
	return out
}

func (k *fakeKernel) record(id string) Record {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, _ := ParseRecord(k.records[id])
	return r
}

// fakeEngine is an engine in memory, for tests that let time pass. (docker/dockertest speaks over a socket.)
type fakeEngine struct {
	mu         sync.Mutex
	containers map[string]docker.Container
	unlisted   bool // the list is empty
	moved      bool // tags name other images by now, so that an outline names none
	down       bool // nobody can connect
	refuse     error
	order      []string
	inspects   map[string]int
	hang       map[string]chan struct{} // an inspect of this id waits; "outline": every outline; "networks": the list, which tells what was so when it began
	hangList   chan struct{}
	hangWatch  chan struct{}
	deaf       chan struct{}    // inspects wait, whatever becomes of who asked, and answer what was so when they began
	broken     map[string]error // "list", "networks" or an id
	networks   []docker.Network
	half       map[string]bool                // networks, by id, that the list lacks
	attached   map[string][]docker.Attachment // by network
	streams    map[chan docker.Event]context.CancelFunc
}

func newFakeEngine(containers ...docker.Container) *fakeEngine {
	e := &fakeEngine{
		containers: map[string]docker.Container{}, inspects: map[string]int{}, hang: map[string]chan struct{}{},
		broken: map[string]error{}, attached: map[string][]docker.Attachment{}, streams: map[chan docker.Event]context.CancelFunc{},
	}
	for _, c := range containers {
		e.containers[c.ID] = c
	}
	return e
}

func (e *fakeEngine) connect(context.Context) (Engine, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.order = append(e.order, "connect")
	if e.down {
		return nil, errors.New("no engine")
	}
	return e, nil
}

func (e *fakeEngine) Close() {}

func (e *fakeEngine) List(ctx context.Context) ([]docker.Summary, error) {
	e.mu.Lock()
	e.order = append(e.order, "list")
	hang := e.hangList
	e.mu.Unlock()
	if err := waitFor(ctx, hang); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.broken["list"]; err != nil {
		return nil, err
	}
	var out []docker.Summary
	for _, c := range e.containers {
		state := "exited"
		if c.Running {
			state = "running"
		}
		if !e.unlisted {
			out = append(out, docker.Summary{ID: c.ID, Name: c.Name, Labels: c.Labels, State: state, NetworkMode: c.NetworkMode})
		}
	}
	return out, nil
}

func (e *fakeEngine) Outline(ctx context.Context, id string) (docker.Container, error) {
	e.mu.Lock()
	hang := e.hang["outline"]
	e.mu.Unlock()
	if err := waitFor(ctx, hang); err != nil {
		return docker.Container{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c, ok := e.containers[id]
	if !ok || e.broken["outline"] != nil {
		return docker.Container{}, cmp.Or(e.broken["outline"], fmt.Errorf("list: %w", errdefs.ErrNotFound))
	}
	if e.moved {
		c.Image = ""
	}
	return docker.Container{
		ID: c.ID, Name: c.Name, Labels: c.Labels, Image: c.Image, ImageID: c.ImageID, ImageLabels: c.ImageLabels, ImageKnown: c.ImageKnown,
		NetworkMode: c.NetworkMode, Networks: c.Networks, MayRun: c.MayRun, MayRemap: c.MayRemap, FromHost: c.FromHost,
	}, nil
}

func (e *fakeEngine) Attachments(ctx context.Context, networkID string) ([]docker.Attachment, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.order = append(e.order, "attachments")
	for _, n := range e.networks {
		if n.Name == networkID || strings.HasPrefix(n.ID, networkID) {
			return slices.Clone(e.attached[n.ID]), e.broken["attachments"]
		}
	}
	return nil, fmt.Errorf("inspect network: %w", errdefs.ErrNotFound)
}

func (e *fakeEngine) Networks(ctx context.Context) ([]docker.Network, error) {
	e.mu.Lock()
	networks, err, hang := slices.Clone(e.networks), e.broken["networks"], e.hang["networks"]
	networks = slices.DeleteFunc(networks, func(n docker.Network) bool { return e.half[n.ID] })
	e.mu.Unlock()
	return networks, cmp.Or(err, waitFor(ctx, hang))
}

func (e *fakeEngine) Inspect(ctx context.Context, id string) (docker.Container, error) {
	e.mu.Lock()
	e.inspects[id]++
	hang, deaf, before := e.hang[id], e.deaf, e.containers[id]
	e.mu.Unlock()
	if deaf != nil {
		<-deaf
		return before, nil
	}
	if err := waitFor(ctx, hang); err != nil {
		return docker.Container{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.broken[id]; err != nil {
		return docker.Container{}, err
	}
	c, ok := e.containers[id]
	if !ok {
		return c, fmt.Errorf("inspect: %w", errdefs.ErrNotFound)
	}
	return c, nil
}

// waitFor waits until gate is closed; nil is open.
func waitFor(ctx context.Context, gate chan struct{}) error {
	if gate == nil {
		return ctx.Err()
	}
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *fakeEngine) Watch(ctx context.Context) *docker.Stream {
	ctx, cancel := context.WithCancel(ctx)
	in, out := make(chan docker.Event), make(chan docker.Event)
	e.mu.Lock()
	e.order = append(e.order, "watch")
	e.streams[in] = cancel
	refuse, hang := e.refuse, e.hangWatch
	e.mu.Unlock()
	_ = waitFor(ctx, hang)
	if refuse != nil {
		cancel()
	}
	go func() {
		defer close(out)
		defer func() { e.mu.Lock(); delete(e.streams, in); e.mu.Unlock() }()
		for {
			select {
			case event := <-in:
				select {
				case out <- event:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return &docker.Stream{C: out}
}

func (e *fakeEngine) emit(action docker.Action, id string) {
	e.mu.Lock()
	event := docker.Event{Action: action, ID: id}
	if action == docker.ActionCreate {
		event.Labels = e.containers[id].Labels
	}
	if action == docker.ActionConnect && len(e.networks) > 0 {
		event.NetworkID = e.networks[0].ID
	}
	streams := slices.Collect(maps.Keys(e.streams))
	e.mu.Unlock()
	for _, s := range streams {
		s <- event
	}
}

// cut ends every stream, as an engine does that goes away.
func (e *fakeEngine) cut() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, cancel := range e.streams {
		cancel()
	}
}

func (e *fakeEngine) set(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
}

func (e *fakeEngine) asked(id string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.inspects[id]
}

// rig is an agent between a fake engine and a fake kernel, in a bubble of time.
type rig struct {
	t      *testing.T
	engine *fakeEngine
	kernel *fakeKernel
	agent  *agent
	log    *lockedBuffer
	conf   string // what the agent begins with
	readys int
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// inTime runs test with an agent whose time passes only while nothing else can happen; r.settle waits for that.
func inTime(t *testing.T, containers []docker.Container, prepare func(r *rig), test func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, engine: newFakeEngine(containers...), kernel: newFakeKernel(), log: &lockedBuffer{}}
		for _, c := range containers {
			r.plug(c)
		}
		if prepare != nil {
			prepare(r)
		}
		r.agent = fakeAgent(r.kernel, Options{Log: slog.New(slog.NewTextHandler(r.log, nil)), Connect: r.engine.connect, Ready: func() { r.readys++ }})
		r.agent.proc = t.TempDir()
		r.agent.around.conf = parseConfig(t, r.conf)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); r.agent.run(ctx, r.engine) }()
		synctest.Wait()
		test(r)
		cancel()
		<-done
		if t.Failed() {
			t.Logf("log:\n%s", r.log)
		}
	})
}

// fakeAgent is an agent that asks nothing of the real kernel.
func fakeAgent(k *fakeKernel, o Options) *agent {
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	a := newAgent(k, k.hold, o)
	a.list = func() (links, error) {
		k.mu.Lock()
		defer k.mu.Unlock()
		return links{veths: k, ports: k.hold.list()}, k.fail["veths"]
	}
	a.heardMAC = func(xdp.Port) net.HardwareAddr { return nil }
	a.peerMAC, a.processes, a.listOutlets = k.hold.mac, k.hold.processes, k.listOutlets
	a.attachRest, a.closeRest = k.attachRest, k.closeRest
	a.hairpin = func(xdp.Port) (bool, error) {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.hairpin, nil
	}
	a.watchRules = func(ctx context.Context, _ func()) { <-ctx.Done() }
	a.watchOthers = func(ctx context.Context, _ func()) { <-ctx.Done() }
	a.readHost = func(xdp.Links) (*host, error) {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.host, k.fail["host"]
	}
	a.readResolvers = func() []netip.Addr {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.host.resolvers
	}
	a.watchResolvers = func(ctx context.Context, _ func([]netip.Addr)) { <-ctx.Done() }
	a.watchHost = func(ctx context.Context, _ func(), _ func(xdp.Change)) { <-ctx.Done() }
	a.detachByHand = k.detachByHand
	a.readProgram = k.readProgram
	return a
}

// plug gives a running container a namespace with a veth for each of its networks, or takes them away.
func (r *rig) plug(c docker.Container) {
	r.kernel.set(func() {
		if c.Running {
			r.kernel.namespaces[c.SandboxKey] = vethsFor(c)
		} else {
			delete(r.kernel.namespaces, c.SandboxKey)
		}
	})
}

// vethsFor numbers the veths of a container by its pid, which its tests choose.
func vethsFor(c docker.Container) (out []xdp.Veth) {
	for n, e := range c.Networks {
		i := c.Pid + n
		out = append(out, xdp.Veth{Index: i, Name: fmt.Sprintf("veth%d", i), Bridge: surroundings{}.bridge(e), NsID: c.Pid})
	}
	return out
}

// happens changes a container in engine and kernel, and emits what Docker would.
func (r *rig) happens(c docker.Container, actions ...docker.Action) {
	r.engine.set(func() { r.engine.containers[c.ID] = c })
	r.plug(c)
	for _, a := range actions {
		r.engine.emit(a, c.ID)
	}
	synctest.Wait()
}

func (r *rig) ring() { r.agent.doorbell(); synctest.Wait() }

// after lets time pass.
func (r *rig) after(d time.Duration) { time.Sleep(d); synctest.Wait() }

func (r *rig) want(c docker.Container, state string) {
	r.t.Helper()
	if got := r.kernel.state(c.ID); got != state {
		r.t.Errorf("%s is %q, want %q", c.Name, got, state)
	}
}

func (r *rig) device(ifindex int, state string) {
	r.t.Helper()
	r.kernel.mu.Lock()
	defer r.kernel.mu.Unlock()
	if got := r.kernel.attached[ifindex]; got != state {
		r.t.Errorf("device %d is %q, want %q", ifindex, got, state)
	}
}

func (r *rig) said(level, text string) bool {
	for line := range strings.Lines(r.log.String()) {
		if strings.Contains(line, "level="+level) && strings.Contains(line, text) {
			return true
		}
	}
	return false
}

// box is a container on the network bridge, whose veth has the number pid.
func box(pid int, running bool, labels ...string) docker.Container {
	c := docker.Container{
		ID: strings.Repeat(fmt.Sprintf("%04x", pid), 16), Name: fmt.Sprintf("box%d", pid), Labels: map[string]string{}, ImageKnown: true,
		NetworkMode: "default", Networks: []docker.Endpoint{{Network: "bridge", NetworkID: strings.Repeat("b", 64), Driver: "bridge"}},
	}
	for _, l := range labels {
		key, value, _ := strings.Cut(l, "=")
		c.Labels[key] = value
	}
	if running {
		return started(c, pid)
	}
	return c
}

// started is a new run of a container, with a sandbox and numbers of its own.
func started(c docker.Container, pid int) docker.Container {
	c.Running, c.Pid = true, pid
	c.SandboxID = fmt.Sprintf("sandbox%d", pid)
	c.SandboxKey = filepath.Join("/netns", c.SandboxID)
	return c
}

// joined is c with one more network.
func joined(c docker.Container, name string) docker.Container {
	c.Networks = append(slices.Clone(c.Networks), docker.Endpoint{Network: name, NetworkID: strings.Repeat("c", 64), Driver: "bridge"})
	return c
}

var errGone = fmt.Errorf("ifindex: %w", netlink.LinkNotFoundError{})

// pidOf is the number that box was given.
func pidOf(c docker.Container) int {
	var n int
	_, _ = fmt.Sscanf(c.Name, "box%d", &n)
	return n
}
