// Package agent keeps the kernel in step with Docker: it asks what containers want, looks what the kernel has,
// and brings the one to the other. An event only wakes it. It judges no packet and keeps no state of its
// own: after a crash it finds everything in Docker and in the kernel.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vethwall/vethwall/docker"
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
	ForgetConversations(ifindex int) error
	Unseen(ifindex int) uint64
	Lost(ifindex int) bool
	Introduce(bridge, port int, addrs []netip.Addr, sure bool) error
	IntroduceElsewhere(bridge, other int, addrs, here []netip.Addr) error
	Introduced(port int) bool
	Bearer(bridge int, addr netip.Addr) (port int)
	RoutesBack(bridge int, does bool) error
	CloseResolver(path string, ifindex int, udp, tcp bool) error
	ResolverStands(path string) bool
	CloseResolverTo(id string, ifindex int, udp, tcp bool) error
	SweepResolver(known func(id string) bool) error
	Filters(ifindex int) bool
	Filtered() []int
	ByHand(ifindex int) bool
	Both(ifindex int) bool
	Bound(answered int) error
	Forget(ifindexes ...int) error
	Sweep(xdp.Links) error
	Misplaced() bool
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
const resync = 15 * time.Second

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
	named    map[string]string // labels of it and more, as an event or a list has named them last
	renamed  bool              // since its name was asked for, by which the configuration may pick
	trouble  string            // the last error of a question, that the log has
	missing  int               // how many lists in a row did not have it
	stirred  time.Time         // when it was created, or has ended
	seen     bool              // its namespace was there when we last looked
	lost     time.Time         // when its veths were gone
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
	upstream upstream
	rests    map[int]*leftover // by ifindex
	devices  []int             // its veths, as far as they have been filtered
	nsid     int               // the id of its namespace, -1 while no veth leads there
	path     string            // of the namespace that was last found to be its own, "" if that need not hold any more
	// uninvited are veths that Docker has not made, by ifindex, since when.
	uninvited   map[int]time.Time
	outlets     outlets
	finding     bool      // them, beside the loop, or some time ago
	findAgain   bool      // it has been looked at since that began
	roused      time.Time // when it was looked at last because of what had happened to its devices
	rousing     bool      // it will be soon
	pastTrouble string    // as trouble
	// guardTrouble is as trouble.
	guardTrouble string
}

type agent struct {
	kernel      kernel
	hold        holder
	log         *slog.Logger
	ready       func() // nil once it was called
	connect     func(context.Context) (Engine, error)
	list        func() (links, error)
	peerMAC     func(xdp.Port) net.HardwareAddr // asks the kernel
	heardMAC    func(xdp.Port) net.HardwareAddr // nil where nothing was heard
	hairpin     func(xdp.Port) (bool, error)
	processes   func(proc string, nsids []int) (map[int][]int, error)
	listOutlets func(path string) ([]xdp.Outlet, error)
	attachRest  func(*xdp.Rest) error
	closeRest   func(*xdp.Rest) error
	watchHost   func(ctx context.Context, lost func(), changed func(xdp.Change))
	watchRules  func(ctx context.Context, ring func())
	watchOthers func(ctx context.Context, ring func())
	watchConfig func(ctx context.Context)
	readHost    func(xdp.Links) (*host, error)
	// readResolvers reads those that the host's resolv.conf names; watchResolvers does whenever they may be others.
	readResolvers  func() []netip.Addr
	watchResolvers func(ctx context.Context, tell func([]netip.Addr))
	readProgram    func(name string) (xdp.Program, error)
	// noLayouts says why the filter cannot look at checksums (xdp.HasLayouts), nil where it can.
	noLayouts    error
	detachByHand func(ifindex int) error
	proc         string

	containers  map[string]*container
	records     map[string]string // what stands in the kernel of containers that are none of these
	strays      map[int]bool      // devices that an agent before this one has filtered and recorded of nobody
	dirty       map[string]bool   // containers to look at
	sweep       bool              // devices may be gone
	swept       time.Time         // when that was looked after
	misplaced   bool              // the directory was, at the last beat
	orphans     bool              // records may belong to nobody
	around      surroundings
	touched     touched
	compiled    map[string][]compiled // by stack
	hostStale   bool                  // around.host may be out of date
	readingHost bool                  // beside the loop
	listing     *listing              // beside the loop, nil for none
	portsStale  bool                  // ports may have come or gone
	session     *session              // nil while there is no engine
	hostTrouble string                // the last error of reading it, that the log has
	listTrouble string                // of listing the host's links
	lost        bool                  // there was one, and it has not listed its containers since

	plain                    map[string]bool // containers that ask for nothing
	held                     map[int]*port   // by ifindex
	beaten                   time.Time       // when the hold was refreshed last
	heldBy                   xdp.Held        // as the log has it
	looking                  bool            // at processes, beside the loop
	attaching, outlining     map[string]bool // by id of the network, of the container
	holdTrouble, procTrouble string          // as hostTrouble
	resolverTrouble          string          // as hostTrouble
	askerTrouble             string          // as hostTrouble
	gotPast                  uint64          // packets past both hooks that the log has, since saidGotPast
	saidGotPast              time.Time

	// Who is behind the ports of bridges. Bridges in guarded are those by whose ports it is judged who has sent what is
	// received; of those in asked, by ifindex, it is known whether the host routes back to them.
	ports           map[int]xdp.Port
	nameless        map[int]time.Time // ports, since when their networks do not name who is there
	guarded         map[string]bool
	members         map[string]members // by id of the network
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
	ends := &xdp.Ends{}
	return &agent{
		kernel: k, hold: h, log: o.Log, ready: o.Ready, connect: o.Connect, proc: hostProc,
		list: func() (links, error) {
			all, err := xdp.ListLinks()
			return links{all.Veths(), all.Ports(), all}, err
		},
		peerMAC:        xdp.Port.PeerMAC,
		heardMAC:       ends.PeerMAC,
		hairpin:        xdp.Port.Hairpin,
		processes:      xdp.Processes,
		listOutlets:    xdp.Outlets,
		attachRest:     (*xdp.Rest).Attach,
		closeRest:      (*xdp.Rest).Close,
		readHost:       readHost,
		readResolvers:  resolvConf.read,
		watchResolvers: func(ctx context.Context, tell func([]netip.Addr)) { resolvConf.follow(ctx, o.Log, tell) },
		readProgram:    func(name string) (xdp.Program, error) { return xdp.ReadProgram(o.Programs, name) },
		watchConfig:    func(context.Context) {},
		watchHost: func(ctx context.Context, lost func(), changed func(xdp.Change)) {
			xdp.WatchHost(ctx, o.Log, lost, changed)
		},
		watchRules:   func(ctx context.Context, ring func()) { xdp.WatchRules(ctx, o.Log, ring) },
		watchOthers:  func(ctx context.Context, ring func()) { xdp.WatchOthers(ctx, o.Log, ring, ends) },
		detachByHand: func(ifindex int) error { return xdp.DetachByHand(o.Dir, ifindex) }, noLayouts: xdp.HasLayouts(),
		containers: map[string]*container{}, records: map[string]string{}, strays: map[int]bool{}, around: surroundings{chosen: map[string]string{}}, dirty: map[string]bool{}, touched: newTouched(), compiled: map[string][]compiled{}, hostStale: true,
		plain: map[string]bool{}, held: map[int]*port{}, attaching: map[string]bool{}, outlining: map[string]bool{},
		ports: map[int]xdp.Port{}, nameless: map[int]time.Time{}, guarded: map[string]bool{}, members: map[string]members{}, asked: map[int]bool{},
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
	a.beside.Go(func() {
		a.watchResolvers(ctx, func(now []netip.Addr) { a.tell(func() { a.learnResolvers(now) }) })
	})
	a.beside.Go(func() { a.watchOthers(ctx, func() { a.tell(a.lookPast) }) })
	a.loop(ctx)
	cancel()
	a.beside.Wait()
}
