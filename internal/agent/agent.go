// Package agent keeps the kernel in step with Docker: it asks what containers want, looks what the kernel has,
// and brings the one to the other. An event only wakes it. It judges no packet and keeps no state of its
// own: after a crash it finds everything in Docker and in the kernel.
package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

// Options are what an agent needs from outside.
type Options struct {
	Dir string // on a bpffs
	Log *slog.Logger
	// Config is the path of the configuration, which is followed; there need not be a file. Again makes the agent
	// read it when it has not changed, too; nil is never.
	Config string
	Again  <-chan os.Signal
	// Programs is the directory of the operator's objects; there need not be one.
	Programs string
	// Connect opens the engine's API; nil for docker.Connect.
	Connect func(context.Context) (Engine, error)
	// Ready is called once, after the first look at everything.
	Ready func()
}

// Engine is what the agent asks Docker for.
type Engine interface {
	List(context.Context) ([]docker.Summary, error)
	Inspect(context.Context, string) (docker.Container, error)
	Networks(context.Context) ([]docker.Network, error)
	Outline(context.Context, string) (docker.Container, error)
	Attachments(ctx context.Context, networkID string) ([]docker.Attachment, error)
	Watch(context.Context) *docker.Stream
	Close()
}

// kernel is what the agent asks of the data plane; *xdp.Filter is one.
type kernel interface {
	Attach(ifindex int, w xdp.Want) error
	Begin(ifindex int, w xdp.Want) (*xdp.Rest, error)
	Take(*xdp.Rest) error
	Shut(ifindex int) (byFilter bool, err error)
	Detach(ifindex int) error
	Unseen(ifindex int) uint64
	Introduce(bridge, port int, addrs []netip.Addr, sure bool) error
	Introduced(port int) bool
	RoutesBack(bridge int, does bool) error
	CloseResolver(path string, ifindex int, udp, tcp bool) error
	CloseResolverTo(id string, ifindex int, udp, tcp bool) error
	Filters(ifindex int) bool
	ByHand(ifindex int) bool
	Both(ifindex int) bool
	Bound(answered int) error
	Forget(ifindexes ...int) error
	Sweep(xdp.Links) error
	Retire() error
	Records() (map[string][]byte, error)
	SaveRecord(id string, text []byte) error
	DeleteRecord(id string) error
}

// namespaces tells which veths of the host lead into a network namespace, by its path or the id that the kernel gives it; xdp.Veths
// does.
type namespaces interface {
	In(path string) ([]xdp.Veth, error)
	At(ifindex int) (xdp.Veth, bool)
	With(nsid int) []xdp.Veth
}

// links are the host's: its veths by namespace, the ports of its bridges, and all of them.
type links struct {
	veths namespaces
	ports []xdp.Port
	links xdp.Links
}

// hostProc is where the host's processes are seen, in a container only with the host's pid namespace.
const hostProc = "/proc"

// resync is the safety net under the events: what they did not tell is seen by then.
const resync = 10 * time.Second

// Run keeps the kernel in step until ctx ends, and returns nil then. It returns an error only where it could
// not begin: a wrong configuration, no engine, no right to load programs, another agent. The filters stay in force.
func Run(ctx context.Context, o Options) error {
	if o.Connect == nil {
		o.Connect = func(ctx context.Context) (Engine, error) { return docker.Connect(ctx) }
	}
	file := &configFile{path: o.Config}
	conf, _, err := file.look()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	first, err := connect(ctx, o.Connect)
	if err != nil {
		return err
	}
	filter, err := open(o.Dir)
	if err != nil {
		first.Close()
		return err
	}
	defer filter.Close()
	if err := filter.Damage(); err != nil {
		o.Log.Warn("maps are damaged and made anew; filters stay in force, conversations begin anew", "error", err)
	}
	ports, err := xdp.ListPorts()
	if err != nil {
		first.Close()
		return err
	}
	hold := xdp.OpenHold(filter, ports)
	defer hold.Close()
	a := newAgent(filter, hold, o)
	a.around.conf = conf
	a.bound(conf)
	a.watchConfig = func(ctx context.Context) { file.follow(ctx, o.Again, func() { a.reload(file) }) }
	a.run(ctx, first)
	return nil
}

// open opens the data plane; the default directory is made where the host has none.
func open(dir string) (*xdp.Filter, error) {
	if dir == xdp.DefaultDir {
		if err := xdp.EnsureBPFFS(filepath.Dir(dir)); err != nil {
			return nil, err
		}
	}
	filter, err := xdp.Open(dir)
	if err != nil && !errors.Is(err, xdp.ErrBusy) {
		err = fmt.Errorf("%w; vethwall doctor says what this kernel lacks", err)
	}
	return filter, err
}

// container is one that the agent has heard of.
type container struct {
	docker.Container
	// inspected is false until Docker has answered once, and stale says that what it answered need not hold any more. Of
	// what is outlined less is known.
	inspected, stale, outlined bool
	// asked is the session that a question is out to, and again says that something has happened since it went out.
	asked    *session
	again    bool
	renamed  bool      // since its name was asked for, by which the configuration may pick
	trouble  string    // the last error of a question, that the log has
	missing  int       // how many lists in a row did not have it
	seen     bool      // its namespace was there when we last looked
	lost     time.Time // when its veths were gone
	want     want
	known    known // what want was made of
	asks     bool
	saved    string // the record in the kernel
	told     Record // what the log has
	late     map[int]uint64
	own      ownAddresses
	resolver resolverState
	object   object
	stay     stay
	rests    map[int]*leftover // by ifindex
	devices  []int             // its veths, as far as they have been filtered
	nsid     int               // the id of its namespace, -1 while no veth leads there
	path     string            // of the namespace that was last found to be its own, "" if that need not hold any more
	// uninvited are veths that Docker has not made, by ifindex, since when.
	uninvited   map[int]time.Time
	outlets     outlets
	finding     bool   // them, beside the loop, or some time ago
	findAgain   bool   // it has been looked at since that began
	pastTrouble string // as trouble
}

type agent struct {
	kernel       kernel
	hold         holder
	log          *slog.Logger
	ready        func() // nil once it was called
	connect      func(context.Context) (Engine, error)
	list         func() (links, error)
	portAt       func(ifindex int) (xdp.Port, bool)
	peerMAC      func(xdp.Port) net.HardwareAddr
	hairpin      func(xdp.Port) (bool, error)
	processes    func(proc string, nsids []int) (map[int][]int, error)
	listOutlets  func(path string) ([]xdp.Outlet, error)
	attachRest   func(*xdp.Rest) error
	watchHost    func(ctx context.Context, lost func(), changed func(xdp.Change))
	watchRules   func(ctx context.Context, ring func())
	watchOthers  func(ctx context.Context, ring func())
	watchConfig  func(ctx context.Context)
	readHost     func(xdp.Links) (*host, error)
	readProgram  func(name string) (xdp.Program, error)
	detachByHand func(ifindex int) error
	proc         string

	containers  map[string]*container
	records     map[string]string // what stands in the kernel of containers that are none of these
	dirty       map[string]bool   // containers to look at
	sweep       bool              // devices may be gone
	swept       time.Time         // when that was looked after
	orphans     bool              // records may belong to nobody
	around      surroundings
	touched     touched
	compiled    map[string][]compiled // by stack
	hostStale   bool                  // around.host may be out of date
	readingHost bool                  // beside the loop
	portsStale  bool                  // ports may have come or gone
	session     *session              // nil while there is no engine
	hostTrouble string                // the last error of reading it, that the log has
	lost        bool                  // there was one, and it has not listed its containers since

	plain                    map[string]bool // containers that ask for nothing
	held                     map[int]*port   // by ifindex
	beaten                   time.Time       // when the hold was refreshed last
	looking                  bool            // at processes, beside the loop
	attaching, outlining     map[string]bool // by id of the network, of the container
	holdTrouble, procTrouble string          // as hostTrouble
	resolverTrouble          string          // as hostTrouble
	askerTrouble             string          // as hostTrouble

	// Who is behind the ports of bridges. Bridges in guarded are those by whose ports it is judged who has sent what is
	// received; of those in asked, by ifindex, it is known whether the host routes back to them.
	ports           map[int]xdp.Port
	nameless        map[int]time.Time // ports, since when their networks do not name who is there
	guarded         map[string]bool
	asked           map[int]bool
	neighborTrouble string // as hostTrouble

	// What is attached beside the loop: what waits for a place in the lane, how many there are with those in it, and whose
	// containers are to be looked at.
	waiting, finished []*leftover
	underWay          int
	lane              chan *leftover

	ctx    context.Context // ends with the agent
	news   chan func()
	bell   chan struct{}
	ended  chan struct{} // closed when the loop has ended
	slots  chan struct{} // bounds how many inspects begin at once
	beside sync.WaitGroup
}

func newAgent(k kernel, h holder, o Options) *agent {
	return &agent{
		kernel: k, hold: h, log: o.Log, ready: o.Ready, connect: o.Connect, proc: hostProc,
		list: func() (links, error) {
			all, err := xdp.ListLinks()
			return links{all.Veths(), all.Ports(), all}, err
		},
		portAt:      xdp.PortAt,
		peerMAC:     xdp.Port.PeerMAC,
		hairpin:     xdp.Port.Hairpin,
		processes:   xdp.Processes,
		listOutlets: xdp.Outlets,
		attachRest:  (*xdp.Rest).Attach,
		readHost:    readHost,
		readProgram: func(name string) (xdp.Program, error) { return xdp.ReadProgram(o.Programs, name) },
		watchConfig: func(context.Context) {},
		watchHost: func(ctx context.Context, lost func(), changed func(xdp.Change)) {
			xdp.WatchHost(ctx, o.Log, lost, changed)
		},
		watchRules:   func(ctx context.Context, ring func()) { xdp.WatchRules(ctx, o.Log, ring) },
		watchOthers:  func(ctx context.Context, ring func()) { xdp.WatchOthers(ctx, o.Log, ring) },
		detachByHand: func(ifindex int) error { return xdp.DetachByHand(o.Dir, ifindex) },
		containers:   map[string]*container{}, records: map[string]string{}, dirty: map[string]bool{}, touched: newTouched(), compiled: map[string][]compiled{}, hostStale: true,
		plain: map[string]bool{}, held: map[int]*port{}, attaching: map[string]bool{}, outlining: map[string]bool{},
		ports: map[int]xdp.Port{}, nameless: map[int]time.Time{}, guarded: map[string]bool{}, asked: map[int]bool{},
		lane: make(chan *leftover, laneDepth), news: make(chan func(), 64), slots: make(chan struct{}, inspectors), bell: make(chan struct{}, 1), ended: make(chan struct{}),
	}
}

// run returns when ctx has ended and nothing that it started runs any more.
func (a *agent) run(ctx context.Context, first Engine) {
	ctx, cancel := context.WithCancel(ctx)
	a.ctx = ctx
	a.adopt()
	a.sayHold()
	a.beside.Go(func() { a.sessions(ctx, first) })
	a.beside.Go(func() { a.attachRests(ctx) })
	a.beside.Go(func() {
		a.watchHost(ctx, a.doorbell, func(c xdp.Change) { a.tell(func() { a.changed(c) }) })
	})
	if way, _ := a.hold.Way(); way == xdp.HeldNFT {
		a.beside.Go(func() { a.watchRules(ctx, func() { a.tell(a.mendHold) }) })
	}
	a.beside.Go(func() { a.watchConfig(ctx) })
	a.beside.Go(func() { a.watchOthers(ctx, func() { a.tell(a.lookPast) }) })
	a.loop(ctx)
	cancel()
	a.beside.Wait()
}

// adopt takes over what an agent before this one had recorded. What is damaged is of no use to anybody.
func (a *agent) adopt() {
	records, err := a.kernel.Records()
	if err != nil {
		a.log.Warn("cannot read the records of the agent before this one", "error", err)
	}
	for id, text := range records {
		if _, err := ParseRecord(text); err == nil {
			a.records[id] = string(text)
		} else if err := a.kernel.DeleteRecord(id); err != nil {
			a.log.Warn("cannot delete a damaged record", "id", short(id), "error", err)
		}
	}
}

// loop owns the state. Everything that others find out comes to it as a function to call.
func (a *agent) loop(ctx context.Context) {
	defer close(a.ended)
	tick := time.NewTicker(resync)
	defer tick.Stop()
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-a.news:
			a.beat() // before anything is done for ports that are not held any more
			f()
			a.hear()
		case <-a.bell:
			a.lostMessages()
		case <-tick.C:
			clear(a.compiled)
			a.everythingDirty()
			a.relist()
		case <-beat.C:
		}
		a.beat()
		for a.reconcile() {
			a.feed(busyDepth)
			a.beat()
		}
		a.feed(laneDepth)
		if a.ready != nil && a.lookedAtEverything() {
			a.ready()
			a.ready = nil
			if err := a.kernel.Retire(); err != nil {
				a.log.Warn("maps of another version stay", "error", err)
			}
		}
	}
}

// hear takes in what others have found out meanwhile.
func (a *agent) hear() {
	for range len(a.news) {
		(<-a.news)()
	}
}

// doorbell says that anything may have happened to the host's links and addresses.
func (a *agent) doorbell() {
	select {
	case a.bell <- struct{}{}:
	default: // it has rung already
	}
}

// after calls f in the loop some time later.
func (a *agent) after(d time.Duration, f func()) {
	time.AfterFunc(d, func() { a.tell(f) })
}

// tell hands f to the loop; after the loop's end it is lost.
func (a *agent) tell(f func()) {
	select {
	case a.news <- f:
	case <-a.ended:
	}
}

// lostMessages is called where nobody knows what has happened to links.
func (a *agent) lostMessages() {
	for _, c := range a.containers {
		c.path = ""
	}
	a.everythingDirty()
}

func (a *agent) everythingDirty() {
	for id := range a.containers {
		a.dirty[id] = true
	}
	a.sweep, a.portsStale, a.hostStale = true, true, true
}

// touched is what link messages have told since the last look: devices, gone ones among them, and namespaces into which
// veths lead.
type touched struct{ devices, gone, namespaces map[int]bool }

// changed takes in a message about a link or an address of the host.
func (a *agent) changed(c xdp.Change) {
	if c.Host && a.held[c.Unless] == nil && !a.hold.Known(c.Unless) {
		a.hostStale = true
	}
	if c.Index == 0 {
		return
	}
	a.touched.devices[c.Index] = true
	switch {
	case c.Gone:
		a.touched.gone[c.Index] = true
		delete(a.held, c.Index)
		delete(a.ports, c.Index)
	case c.NsID >= 0:
		a.touched.namespaces[c.NsID] = true
	}
	if c.Port && !c.Gone {
		a.arrived(c.Index)
	}
}

// wakeTouched makes those containers dirty whom messages concern: by a device of theirs, by one that leads into their namespace,
// and, because a namespace has no id before a veth leads there, those of whose it is not known. It forgets devices that are gone.
func (a *agent) wakeTouched() {
	t := a.touched
	if len(t.devices) == 0 {
		return
	}
	for id, c := range a.containers {
		is := func(ifindex int) bool { return t.devices[ifindex] }
		if slices.ContainsFunc(c.devices, is) || t.namespaces[c.nsid] || len(t.namespaces) > 0 && c.nsid < 0 && c.Running && !shares(c.NetworkMode) {
			a.dirty[id], c.path = true, ""
		}
	}
	if len(t.gone) > 0 {
		gone := slices.Sorted(maps.Keys(t.gone))
		if err := errors.Join(a.kernel.Forget(gone...), a.hold.Forget(gone...)); err != nil {
			a.log.Warn("cannot remove what belongs to devices that are gone; trying again", "error", err)
			a.sweep = true
		}
	}
	a.touched = newTouched()
}

func newTouched() touched {
	return touched{devices: map[int]bool{}, gone: map[int]bool{}, namespaces: map[int]bool{}}
}

// lookedAtEverything says whether Docker has listed its containers and answered for each that asks for a filter, and
// the kernel has been brought in line with the answers.
func (a *agent) lookedAtEverything() bool {
	if a.session == nil || !a.session.listed || len(a.dirty) > 0 || a.underWay > 0 {
		return false
	}
	for _, c := range a.containers {
		if !c.inspected && a.asking(c) {
			return false
		}
	}
	return true
}

// reconcile brings every container that something may have happened to in line. The failure of one is its own: it
// is recorded, and tried again at the next resync. It listens meanwhile, and says whether there is more to do.
func (a *agent) reconcile() (again bool) {
	a.wakeTouched()
	// Sweeping takes its time, which a port that is held may not have.
	sweep := a.sweep && (len(a.held) == 0 || time.Since(a.swept) > 2*resync)
	host := a.hostStale && !a.readingHost && a.anybodyAsks()
	if len(a.dirty) == 0 && !a.portsStale && !a.orphans && !sweep && !host {
		return false
	}
	var veths namespaces
	if a.portsStale || sweep || host || a.anyRunning() { // once for all of them: there may be a thousand
		all, err := a.list()
		if err != nil {
			a.log.Error("cannot list the host's links; trying again", "error", err)
			return false
		}
		veths = all.veths
		if sweep {
			a.sweep, a.swept = false, time.Now()
			if err := a.kernel.Sweep(all.links); err != nil {
				a.log.Warn("cannot remove what belongs to devices that are gone", "error", err)
			}
		}
		if host {
			a.lookAround(all.links)
		}
		a.seePorts(all.ports)
		if a.portsStale {
			a.portsStale = false
			a.syncPorts(all.ports)
		}
	}
	a.around.joiners = a.joiners()
	a.settlePorts()
	ids := slices.Sorted(maps.Keys(a.dirty))
	clear(a.dirty)
	for _, id := range ids {
		if a.ctx.Err() != nil {
			return false
		}
		c := a.containers[id]
		switch {
		case c == nil || !c.inspected || a.dirty[id]:
		case c.Running && veths == nil: // it was started meanwhile
			a.dirty[id] = true
		default:
			a.enforce(c, veths)
		}
		a.beat()
		a.hear()
	}
	if a.orphans {
		a.orphans = false
		a.forgetOrphans()
	}
	return len(a.dirty) > 0
}

// anyRunning reports whether a container is dirty whose veths are looked at.
func (a *agent) anyRunning() bool {
	for id := range a.dirty {
		if c := a.containers[id]; c != nil && c.inspected && c.Running {
			return true
		}
	}
	return false
}

// enforce brings one container in line, and its record.
func (a *agent) enforce(c *container, veths namespaces) {
	a.rethink(c)
	if !c.asks || !c.Running {
		if c.Running && !a.release(c, veths) {
			return
		}
		a.forget(c)
		return
	}
	a.readObject(c)
	r := Record{
		ID: c.ID, Name: c.Name, Policy: c.want.policy, Error: c.problem(), Warnings: c.want.warnings,
		Holds: c.want.holds, Loophole: c.want.loophole, Program: c.want.program, Joined: c.stay,
	}
	if c.want.tables != nil {
		r.Rules, r.Receives = c.want.tables.Rules, c.want.tables.Receives
	}
	r.Interfaces = Obstacles(c.Container)
	if !shares(c.NetworkMode) {
		attached, known := a.interfaces(c, veths)
		if !known {
			return
		}
		r.Interfaces = append(waysOut(r.Interfaces, attached), attached...)
	}
	if c.resolver.udp || c.resolver.tcp {
		r.Resolver = c.resolver.path
	}
	r.settle()
	a.save(c, r)
}

// rethink works out anew what a container wants, where that depends on groups and they have changed.
func (a *agent) rethink(c *container) {
	if !c.asks {
		return
	}
	if k := a.knownOf(c); !k.equal(c.known) {
		c.known = k
		c.want, c.asks = a.wanted(c.Container, k)
		a.closeResolverTo(c)
	}
}

// release takes the filters off a running container that had asked for them, under a configuration that did. It is
// false where that failed; the next look tries again.
func (a *agent) release(c *container, veths namespaces) bool {
	if c.saved == "" && c.told.ID == "" || shares(c.NetworkMode) {
		return true
	}
	a.giveUp(c, nil)
	found, path, err := vethsOf(c.Container, veths, a.proc)
	if errors.Is(err, xdp.ErrOwnNamespace) {
		return true
	}
	if len(found) > 0 {
		// First, because what closes it counts under a device's block; an agent before this one may have done it.
		err = errors.Join(err, a.kernel.CloseResolver(path, found[0].Index, false, false))
		c.resolver = resolverState{}
	}
	for _, v := range found {
		if a.kernel.Filters(v.Index) {
			err = errors.Join(err, a.kernel.Detach(v.Index))
		}
	}
	if err != nil {
		a.log.Warn("cannot take the filter off a container that asks for none; trying again", "container", c.Name, "id", short(c.ID), "error", err)
		return false
	}
	a.log.Info("not filtered any more", "container", c.Name, "id", short(c.ID))
	return true
}

// interfaces attaches to every veth of c, or closes it. It is false where c has ended or been started again, and
// Docker has not yet said which: the record stays as it is until then.
func (a *agent) interfaces(c *container, veths namespaces) (out []Interface, known bool) {
	found, path, err := a.vethsOf(c, veths)
	if errors.Is(err, xdp.ErrOwnNamespace) {
		return []Interface{{Network: c.NetworkMode, State: Unsupported, Error: "lives in the host's own network namespace: there is no veth to filter"}}, true
	}
	if err != nil {
		fresh := !c.stale && !a.asking(c) && c.missing == 0
		c.stale = true
		if c.seen {
			c.seen, c.lost = false, time.Now()
			a.ask(c.ID)
			return nil, false
		}
		if time.Since(c.lost) < resync/2 { // Docker may be yet to tell that it has ended
			return nil, false
		}
		return []Interface{{Network: c.NetworkMode, State: Pending, Error: OneLine(err)}}, fresh
	}
	strayed := a.strayed(c, veths, found)
	found = append(found, strayed...)
	if len(found) == 0 && c.seen { // it has ended, or left its last network: Docker knows, if not at once
		c.seen, c.stale, c.lost = false, true, time.Now()
		a.ask(c.ID)
		return nil, false
	}
	if len(found) == 0 && len(c.Networks) > 0 && time.Since(c.lost) < resync/2 {
		return nil, false
	}
	c.seen = len(found) > 0
	if c.devices, c.nsid = indexes(found), -1; len(found) > len(strayed) {
		c.nsid, c.path = found[0].NsID, path
	}
	maps.DeleteFunc(c.late, func(ifindex int, _ uint64) bool { return !slices.Contains(c.devices, ifindex) })
	a.giveUp(c, c.devices)
	maps.DeleteFunc(c.uninvited, func(ifindex int, _ time.Time) bool { return !slices.Contains(c.devices, ifindex) })
	networks := place(c.Networks, found, a.around.bridge)
	for _, v := range found {
		i := Interface{Network: networks[v.Index], Ifname: v.Name, Ifindex: v.Index, State: Enforced}
		before, filtered := a.filtered(c, i)
		switch {
		case c.want.waits && filtered:
			i, err = before, nil // stays in force
		case c.problem() != "":
			err = a.close(c, &i, c.problem())
		default:
			err = a.attach(c, &i, indexes(found))
		}
		if xdp.IsGone(err) {
			continue // it went while we looked
		}
		if err == nil {
			a.freed(c, i)
		}
		out = append(out, a.surprising(c, v, i, slices.Contains(strayed, v)))
	}
	if len(found) == 0 {
		out = unseen(c.Container, !c.lost.IsZero())
	} else {
		out = append(out, a.closeResolver(c, path, found[0].Index)...)
	}
	return append(out, a.outletsOf(c, path)...), true
}

// unseen says of a container without any veth why that is, if Obstacles does not.
func unseen(c docker.Container, before bool) (out []Interface) {
	why := "its veth is not seen from here: the agent has to run in the host's network; see vethwall doctor"
	if before {
		why = "its veth is gone: somebody has deleted it, or moved its other end to the host"
	}
	for _, e := range c.Networks {
		if unfilteredDriver(e) == "" {
			out = append(out, Interface{Network: e.Network, State: Pending, Error: why})
		}
	}
	if len(out) == 0 && len(Obstacles(c)) == 0 {
		out = append(out, Interface{State: Unsupported, Error: noNetwork})
	}
	return out
}

// Veths are the host's ends of the veths of a running container. xdp.ErrOwnNamespace: it has the host's own network.
func Veths(c docker.Container) ([]xdp.Veth, error) {
	all, err := xdp.ListLinks()
	if err != nil {
		return nil, err
	}
	found, _, err := vethsOf(c, all.Veths(), hostProc)
	return found, err
}

// vethsOf is vethsOf for a container that has been looked at before. While no message has told of its veths and they are those
// that they were, with the same id of the namespace, they have been in that namespace all the time: so it is the same one.
func (a *agent) vethsOf(c *container, veths namespaces) ([]xdp.Veth, string, error) {
	if c.path != "" {
		if found := veths.With(c.nsid); len(found) > 0 && slices.Equal(indexes(found), c.devices) {
			return found, c.path, nil
		}
	}
	c.path = ""
	return vethsOf(c.Container, veths, a.proc)
}

// vethsOf finds the host's ends of the veths of c by its sandbox, or where that is not visible by its process; path is that of
// the namespace.
func vethsOf(c docker.Container, veths namespaces, proc string) (found []xdp.Veth, path string, err error) {
	found, err = veths.In(c.SandboxKey)
	if err == nil || errors.Is(err, xdp.ErrOwnNamespace) {
		return found, c.SandboxKey, err
	}
	process := filepath.Join(proc, strconv.Itoa(c.Pid))
	path = filepath.Join(process, "ns/net")
	byPid, pidErr := veths.In(path)
	// By now, or in our pid namespace, the number may be another's. After the look, because it proves what came before it.
	if group, readErr := os.ReadFile(filepath.Join(process, "cgroup")); readErr != nil || !bytes.Contains(group, []byte(c.ID)) {
		return nil, "", err
	}
	if pidErr != nil && !errors.Is(pidErr, xdp.ErrOwnNamespace) {
		return nil, "", err
	}
	return byPid, path, pidErr
}

func indexes(veths []xdp.Veth) (out []int) {
	for _, v := range veths {
		out = append(out, v.Index)
	}
	return out
}

// attach puts the policy of c into force on i, or closes it. An error means that neither was possible.
func (a *agent) attach(c *container, i *Interface, siblings []int) error {
	want := xdp.Want{Policy: c.want.tables, Mode: c.want.mode, BothHooks: c.want.both, Program: c.object.program, Siblings: siblings}
	if err := a.identify(c, i, &want); err != nil {
		return a.shut(c, i, OneLine(err))
	}
	if want.Bridge != 0 {
		a.guard(a.ports[i.Ifindex].Bridge)
	}
	if c.want.program != "" && a.kernel.ByHand(i.Ifindex) {
		a.log.Warn("a program by hand gives way to xdp.program", "container", c.Name, "id", short(c.ID), "veth", i.Ifname)
	}
	unseen, held := a.hold.Unseen(i.Ifindex)
	known := a.kernel.Filters(i.Ifindex)
	r, opened, err := a.begin(c, i.Ifindex, want)
	if err != nil {
		return a.shut(c, i, OneLine(err))
	}
	i.State, i.Error = a.attached(c, i.Ifindex)
	// What has passed is counted when the first program is there that judges what is sent.
	counts := (!known || opened) && (r == nil || !r.Open)
	if counts && !held {
		unseen = a.kernel.Unseen(i.Ifindex)
	}
	if counts && unseen > 0 {
		c.late[i.Ifindex] = unseen
		a.log.Warn("the container had sent before its filter came", "container", c.Name, "id", short(c.ID), "veth", i.Ifname, "packets", unseen)
	}
	if n := c.late[i.Ifindex]; n > 0 {
		i.State, i.Late = Worst(i.State, Late), n
	}
	if r != nil {
		i.State, i.Error = Pending, underWay
	}
	return nil
}

// attached is the state of an interface whose filter is in force, and why it is not a better one.
func (a *agent) attached(c *container, ifindex int) (State, string) {
	switch {
	case c.want.both && c.want.program == "" && !a.kernel.Both(ifindex):
		return Partial, "what it sends can get around one hook, by CAP_NET_ADMIN or as its runtime or a joiner's is wired, and another program has the XDP slot; see bpftool net"
	case c.want.audits:
		return Audit, ""
	}
	return Enforced, ""
}

// close is shut, as far as it can be done at once; the rest of it follows.
func (a *agent) close(c *container, i *Interface, why string) error {
	r, _, err := a.begin(c, i.Ifindex, xdp.Want{Policy: xdp.Closed()})
	if err != nil || r == nil {
		return a.shut(c, i, why)
	}
	i.State, i.Error = Pending, underWay
	return nil
}

// shut closes an interface of a container that must be closed. An error means that it is open.
func (a *agent) shut(c *container, i *Interface, why string) error {
	i.State, i.Error = Quarantined, why
	a.overtake(c, i.Ifindex)
	byFilter, err := a.kernel.Shut(i.Ifindex)
	if err == nil && a.kernel.ByHand(i.Ifindex) {
		err = a.detachByHand(i.Ifindex) // what root's own program sends by itself no policy closes
	}
	switch {
	case err != nil:
		i.State, i.Error = Pending, "NOT CLOSED: "+why+"; and it could not be closed: "+OneLine(err)
	case !byFilter:
		i.Error = why + "; the veth is set down"
	}
	return err
}

// save writes a record that has changed, and tells the log what a user would want to know.
func (a *agent) save(c *container, r Record) {
	if text := r.encode(); string(text) != c.saved {
		if err := a.kernel.SaveRecord(c.ID, text); err != nil {
			a.log.Warn("cannot write the record", "container", c.Name, "error", err)
		} else {
			c.saved = string(text)
		}
	}
	before := c.told
	c.told = r
	if slices.ContainsFunc(r.Interfaces, func(i Interface) bool { return i.Error == underWay }) {
		return // there is more to tell in a moment
	}
	if before.State != r.State || before.Error != r.Error || before.Policy != r.Policy || !slices.Equal(before.Interfaces, r.Interfaces) {
		a.tellState(c, r)
	}
	for _, w := range r.Warnings {
		if !slices.Contains(before.Warnings, w) {
			a.log.Warn(w, "container", c.Name, "id", short(c.ID))
		}
	}
}

func (a *agent) tellState(c *container, r Record) {
	level, why := slog.LevelInfo, r.Error
	if r.State != Enforced && r.State != Audit {
		level = slog.LevelWarn
	}
	for _, i := range r.Interfaces {
		switch {
		case why == "":
			why = i.Error
		case i.State == Partial && !strings.Contains(why, i.Error): // what is said first may be that it is closed
			why += "; " + i.Error
		}
		if i.State == Pending && i.Ifindex != 0 {
			level, why = slog.LevelError, fmt.Sprintf("%s: %s", i.Ifname, i.Error)
		}
	}
	args := []any{"container", c.Name, "id", short(c.ID), "policy", r.Policy}
	if why != "" {
		args = append(args, "why", why)
	}
	a.log.Log(context.Background(), level, string(r.State), args...)
}

// forget removes the record of a container that does not run or asks for nothing. Its filters go with its devices.
func (a *agent) forget(c *container) {
	c.told = Record{}
	a.giveUp(c, nil)
	a.closeResolverTo(c) // counted as nobody's from now on
	maps.DeleteFunc(c.late, func(ifindex int, _ uint64) bool { return !a.kernel.Filters(ifindex) })
	if c.saved == "" {
		return
	}
	if err := a.kernel.DeleteRecord(c.ID); err != nil {
		a.log.Warn("cannot delete the record", "container", c.Name, "error", err)
		return
	}
	c.saved = ""
}

// forgetOrphans deletes the records of containers that Docker does not list, once none of their devices is left. That
// a container is missing from an answer is not enough.
func (a *agent) forgetOrphans() {
	if a.session == nil || !a.session.listed {
		return
	}
	ended := func(text string) bool {
		r, _ := ParseRecord([]byte(text))
		return !slices.ContainsFunc(r.Interfaces, func(i Interface) bool { return a.kernel.Filters(i.Ifindex) })
	}
	if records, err := a.kernel.Records(); err != nil {
		a.log.Warn("cannot read the records", "error", err)
	} else {
		a.mendRecords(records)
	}
	for _, c := range a.containers {
		if c.missing > 0 && c.saved != "" && ended(c.saved) {
			a.forget(c)
		}
	}
	for id, text := range a.records {
		if !ended(text) {
			continue
		}
		if err := a.kernel.DeleteRecord(id); err != nil {
			a.log.Warn("cannot delete the record", "id", short(id), "error", err)
			continue
		}
		delete(a.records, id)
	}
}

// mendRecords deletes the records that are damaged, and has those written anew that somebody has damaged or removed.
func (a *agent) mendRecords(records map[string][]byte) {
	for id, text := range records {
		if text != nil {
			continue
		}
		if err := a.kernel.DeleteRecord(id); err != nil {
			a.log.Warn("cannot delete a damaged record", "id", short(id), "error", err)
		}
		delete(records, id)
	}
	for _, c := range a.containers {
		if c.saved != "" && c.saved != string(records[c.ID]) {
			c.saved = ""
			a.dirty[c.ID] = true
		}
	}
}

func short(id string) string { return id[:min(12, len(id))] }

// worthAsking tells from labels alone whether a container is worth an inspect. One that was filtered by the agent before
// this one is, because that one may have had another configuration.
func (a *agent) worthAsking(id string, labels map[string]string) bool {
	conf := a.around.conf
	return conf.Floor != nil || len(conf.Policies) > 0 || a.records[id] != "" || asksAtAll(labels)
}

// asksAtAll tells whether labels ask for a filter. xdp.enable may be the image's, which switches nothing off: only Stack,
// which knows the image, decides about it.
func asksAtAll(labels map[string]string) bool {
	labels = maps.Clone(labels)
	_, switched := labels["xdp.enable"]
	delete(labels, "xdp.enable")
	_, asks, err := policy.Parse(labels)
	return asks || switched || err != nil
}
