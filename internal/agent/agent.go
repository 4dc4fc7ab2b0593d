// Package agent keeps the kernel in step with Docker: it asks what containers want, looks what the kernel has,
// and brings the one to the other. An event only wakes it. It judges no packet and keeps no state of its
// own: after a crash it finds everything in Docker and in the kernel.
package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

// Options are what an agent needs from outside.
type Options struct {
	Dir string // on a bpffs
	Log *slog.Logger
	// Connect opens the engine's API; nil for docker.Connect.
	Connect func(context.Context) (Engine, error)
	// Ready is called once, after the first look at everything.
	Ready func()
}

// Engine is what the agent asks Docker for.
type Engine interface {
	List(context.Context) ([]docker.Summary, error)
	Inspect(context.Context, string) (docker.Container, error)
	Watch(context.Context) *docker.Stream
	Close()
}

// kernel is what the agent asks of the data plane; *xdp.Filter is one.
type kernel interface {
	Attach(ifindex int, t *xdp.Tables, mode xdp.Mode) error
	Shut(ifindex int) (byFilter bool, err error)
	Detach(ifindex int) error
	Devices() []int
	ByHand(ifindex int) bool
	Sweep() error
	Retire() error
	Records() (map[string][]byte, error)
	SaveRecord(id string, text []byte) error
	DeleteRecord(id string) error
}

const (
	// resync is the safety net under the events: what they did not tell is seen by then.
	resync = 10 * time.Second
	// inspectTimeout bounds one question about one container; a start that takes longer is asked about again.
	inspectTimeout = 30 * time.Second
	inspectors     = 8
)

// Run keeps the kernel in step until ctx ends, and returns nil then. It returns an error only where it could
// not begin: no engine, no right to load programs, another agent. The filters stay in force.
func Run(ctx context.Context, o Options) error {
	if o.Connect == nil {
		o.Connect = func(ctx context.Context) (Engine, error) { return docker.Connect(ctx) }
	}
	first, err := o.Connect(ctx)
	if err != nil {
		return err
	}
	filter, err := xdp.Open(o.Dir)
	if err != nil {
		first.Close()
		return err
	}
	defer filter.Close()

	ctx, cancel := context.WithCancel(ctx)
	a := newAgent(filter, o)
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.sessions(ctx, first, o.Connect)
	}()
	links := make(chan struct{})
	go func() {
		defer close(links)
		watchLinks(ctx, a.log, a.doorbell)
	}()
	defer func() { cancel(); <-done; <-links; a.inspecting.Wait() }()
	return a.loop(ctx)
}

// container is one that the agent has heard of.
type container struct {
	docker.Container
	// inspected is false until Docker has answered once, and stale says that what it answered need not hold any
	// more; asking says that a question is out, and again that something has happened since it went out.
	inspected, stale, asking, again bool
	want                            want
	asks                            bool
	saved                           string // the record in the kernel
	late                            map[int]uint64
}

func newAgent(k kernel, o Options) *agent {
	return &agent{
		kernel: k, log: o.Log, ready: o.Ready, veths: xdp.ListVeths,
		containers: map[string]*container{}, dirty: map[string]bool{},
		news: make(chan func(), 64), slots: make(chan struct{}, inspectors), bell: make(chan struct{}, 1), ended: make(chan struct{}),
	}
}

// loop owns the state. Everything that others find out comes to it as a function to call.
func (a *agent) loop(ctx context.Context) error {
	defer close(a.ended)
	tick := time.NewTicker(resync)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-a.news:
			f()
			a.drain()
		case <-a.bell:
			a.everythingDirty()
		case <-tick.C:
			a.everythingDirty()
			if a.session != nil {
				a.relist(ctx, a.session)
			}
		}
		a.reconcile()
		if a.ready != nil && a.listed && len(a.questions()) == 0 {
			a.ready()
			a.ready = nil
			if err := a.kernel.Retire(); err != nil {
				a.log.Warn("maps of another version stay", "error", err)
			}
		}
	}
}

// drain takes the news that have come meanwhile, so that one look at the kernel serves all of them.
func (a *agent) drain() {
	for {
		select {
		case f := <-a.news:
			f()
		default:
			return
		}
	}
}

func (a *agent) everythingDirty() {
	for id := range a.containers {
		a.dirty[id] = true
	}
	a.sweep = true
}

// questions are the containers that Docker has been asked about and has not answered.
func (a *agent) questions() (out []string) {
	for id, c := range a.containers {
		if c.asking && !c.inspected {
			out = append(out, id)
		}
	}
	return out
}

// reconcile brings every container that something may have happened to in line. The failure of one is its own: it
// is recorded, and tried again at the next resync.
func (a *agent) reconcile() {
	if len(a.dirty) == 0 && !a.sweep {
		return
	}
	veths, err := a.veths()
	if err != nil {
		a.log.Error("cannot list the host's links; trying again", "error", err)
		return
	}
	dirty := slices.Sorted(maps.Keys(a.dirty))
	clear(a.dirty)
	for _, id := range dirty {
		if c := a.containers[id]; c != nil && c.inspected {
			a.enforce(c, veths)
		}
	}
	if a.sweep {
		a.sweep = false
		if err := a.kernel.Sweep(); err != nil {
			a.log.Warn("cannot remove what belongs to devices that are gone", "error", err)
		}
		a.forgetStale()
	}
}

// enforce brings one container in line, and its record.
func (a *agent) enforce(c *container, veths xdp.Veths) {
	if !c.asks || !c.Running {
		a.forget(c)
		return
	}
	r := Record{
		ID: c.ID, Name: c.Name, Policy: c.want.policy, Error: c.want.problem, Warnings: c.want.warnings,
		Holds: c.want.holds, Loophole: c.want.loophole,
	}
	if c.want.tables != nil {
		r.Rules = c.want.tables.Rules
	}
	r.Interfaces = Obstacles(c.Container)
	if unattachable(c.NetworkMode) == "" {
		r.Interfaces = append(r.Interfaces, a.interfaces(c, veths)...)
	}
	r.settle()
	a.save(c, r)
}

// interfaces attaches to every veth of c, or closes it.
func (a *agent) interfaces(c *container, veths xdp.Veths) []Interface {
	found, err := a.vethsOf(c, veths)
	if errors.Is(err, xdp.ErrOwnNamespace) {
		return []Interface{{Network: c.NetworkMode, State: Unsupported, Error: "lives in the host's own network namespace: there is no veth to filter"}}
	}
	if err != nil {
		c.stale = true // its sandbox is gone: it has been started again, or has ended
		return []Interface{{Network: c.NetworkMode, State: Pending, Error: oneLine(err)}}
	}
	var out []Interface
	networks := place(c.Networks, found)
	for _, v := range found {
		i := Interface{Network: networks[v.Index], Ifname: v.Name, Ifindex: v.Index, State: Enforced}
		if c.want.tables == nil {
			a.shut(&i, c.want.problem)
		} else {
			a.attach(c, &i, v)
		}
		out = append(out, i)
	}
	return out
}

// vethsOf finds the host's ends of the veths of c by its sandbox, or where that is not visible by its process.
func (a *agent) vethsOf(c *container, veths xdp.Veths) ([]xdp.Veth, error) {
	found, err := veths.In(c.SandboxKey)
	if err == nil || errors.Is(err, xdp.ErrOwnNamespace) {
		return found, err
	}
	byPid, pidErr := veths.In(processNamespace(c.Pid))
	if pidErr != nil && !errors.Is(pidErr, xdp.ErrOwnNamespace) {
		return nil, err
	}
	return byPid, pidErr
}

func (a *agent) attach(c *container, i *Interface, v xdp.Veth) {
	known := slices.Contains(a.kernel.Devices(), v.Index)
	if err := a.kernel.Attach(v.Index, c.want.tables, c.want.mode); err != nil {
		a.shut(i, oneLine(err))
		return
	}
	if !known && v.Received > 0 {
		c.late[v.Index] = v.Received
		a.log.Warn("the container had sent before its filter came", "container", c.Name, "id", short(c.ID), "veth", v.Name, "packets", v.Received)
	}
	if n := c.late[v.Index]; n > 0 {
		i.State, i.Late = Late, n
	}
	if a.kernel.ByHand(v.Index) {
		i.State, i.Error = Partial, "a program attached by hand stands in place of the policy; vethwall detach puts it back"
	}
}

// shut closes an interface of a container that must be closed.
func (a *agent) shut(i *Interface, why string) {
	i.State, i.Error = Quarantined, why
	byFilter, err := a.kernel.Shut(i.Ifindex)
	switch {
	case err != nil:
		// From here on it is neither filtered nor closed; say so as loudly as can be.
		i.State, i.Error = Pending, why+"; and it could not be closed: "+oneLine(err)
		a.log.Error("NOT CLOSED", "veth", i.Ifname, "error", err)
	case !byFilter:
		i.Error = why + "; the veth is set down"
	}
}

// save writes a record that has changed, and tells the log what a user would want to know.
func (a *agent) save(c *container, r Record) {
	text := r.encode()
	if string(text) == c.saved {
		return
	}
	before, _ := ParseRecord([]byte(c.saved))
	if err := a.kernel.SaveRecord(c.ID, text); err != nil {
		a.log.Warn("cannot write the record", "container", c.Name, "error", err)
		return
	}
	c.saved = string(text)
	if before.State == r.State && before.Error == r.Error && len(before.Interfaces) == len(r.Interfaces) {
		return
	}
	level, why := slog.LevelInfo, r.Error
	for _, i := range r.Interfaces {
		if why == "" {
			why = i.Error
		}
	}
	if r.State != Enforced {
		level = slog.LevelWarn
	}
	args := []any{"container", c.Name, "id", short(c.ID), "policy", r.Policy}
	if why != "" {
		args = append(args, "why", why)
	}
	a.log.Log(context.Background(), level, string(r.State), args...)
	if before.ID == "" {
		for _, w := range r.Warnings {
			a.log.Warn(w, "container", c.Name, "id", short(c.ID))
		}
	}
}

// forget removes the record of a container that does not run or asks for nothing. Its filters go with its devices.
func (a *agent) forget(c *container) {
	if c.saved == "" {
		return
	}
	if err := a.kernel.DeleteRecord(c.ID); err != nil {
		a.log.Warn("cannot delete the record", "container", c.Name, "error", err)
		return
	}
	c.saved = ""
	clear(c.late)
}

// forgetStale deletes the records of containers that Docker does not know, once none of their devices is left. That
// a container is missing from an answer is not enough.
func (a *agent) forgetStale() {
	if !a.listed {
		return
	}
	records, err := a.kernel.Records()
	if err != nil {
		a.log.Warn("cannot read the records", "error", err)
		return
	}
	devices := a.kernel.Devices()
	for id, text := range records {
		if a.containers[id] != nil {
			continue
		}
		r, _ := ParseRecord(text) // a damaged one has no devices that could be asked for
		if slices.ContainsFunc(r.Interfaces, func(i Interface) bool { return slices.Contains(devices, i.Ifindex) }) {
			continue
		}
		if err := a.kernel.DeleteRecord(id); err != nil {
			a.log.Warn("cannot delete a record", "id", short(id), "error", err)
		}
	}
}

func short(id string) string { return id[:min(12, len(id))] }

// asksAtAll tells from labels alone whether a container is worth an inspect.
func asksAtAll(labels map[string]string) bool {
	_, asks, err := policy.Parse(labels)
	return asks || err != nil
}

func processNamespace(pid int) string {
	if pid == 0 {
		return os.DevNull
	}
	return "/proc/" + itoa(pid) + "/ns/net"
}
