package agent

import (
	"errors"
	"slices"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/xdp"
)

// holder keeps new ports of bridges from sending until they are released; *xdp.Hold is one.
type holder interface {
	Way() (xdp.Held, error)
	Sync([]xdp.Port) ([]xdp.Port, error)
	Arrived(xdp.Port) (held bool, err error)
	Known(ifindex int) bool
	Unseen(ifindex int) (packets uint64, held bool)
	Prepare(ifindex int, sent, received bool) (*xdp.Rest, error)
	Release(ifindexes ...int) error
	Forget(ifindexes ...int) error
	Refresh() (lapsed bool, err error)
	Mend() error
	Guard(ifindex int) error
	Guarded(ifindex int) bool
	Unguard(ifindex int) error
	GotPast() uint64
}

const (
	// holdLimit is how long a port is held at most.
	holdLimit = 5 * time.Second
	// heartbeat is how often the hold is refreshed.
	heartbeat = time.Second
)

// port is one that is held until it is known whose it is.
type port struct {
	xdp.Port
	live     time.Time           // since when frames may come from it; zero before
	id       string              // the container's, "" until known
	proved   bool                // by the namespace behind it, and not by what can be changed in there
	looked   bool                // at the processes in its namespace
	inside   string              // the container whose they are, "" until known
	enter    bool                // that is needed to close the engine's resolver there
	pids     []int               // of those, by their numbers in proc
	ends     []docker.Attachment // what its network has said since it came
	end      *docker.Attachment  // the one of them that is its other end, nil until known
	news     bool                // there is something new to recognise it by
	silent   bool                // the network has not said what there is
	foreign  bool                // the engine has no such network
	prepared bool                // has hooks, which let pass what the hold does, or gets them
	coming   *leftover           // those, while they are being attached
	asking   bool                // for the address of its other end
	askAgain bool                // something has happened since
	resting  bool                // until it is looked for again
	attached bool                // something has been to its network since that was asked
	pause    time.Duration       // how long that is
	lists    int                 // how many lists of networks there must have been to call its bridge nobody's; 0 before one was asked for
}

// arrived is told of a port of a bridge.
func (a *agent) arrived(found xdp.Port) {
	a.ports[found.Index] = found
	if a.hold.Known(found.Index) {
		return
	}
	held, err := a.hold.Arrived(found)
	a.complain(&a.holdTrouble, err, "cannot hold a new port", "port", found.Name)
	if held {
		a.holds(found)
	}
}

// holds takes up a port that is held, or what is new of it.
func (a *agent) holds(found xdp.Port) {
	p := a.held[found.Index]
	if p == nil {
		p = &port{pause: calm}
		a.held[found.Index] = p
	}
	if p.live.IsZero() && (found.Carrier || found.NsID >= 0) {
		p.live, p.pause = time.Now(), soonest
		a.after(holdLimit, func() { a.expire(p) })
	}
	if p.NsID != found.NsID {
		p.proved, p.inside = false, ""
		p.looked, p.resting, p.pause = false, false, soonest
	}
	p.Port, p.news = found, true
	a.settle(p)
}

// syncPorts compares what is held with all ports that there are.
func (a *agent) syncPorts(ports []xdp.Port) {
	for ifindex := range a.held {
		if !slices.ContainsFunc(ports, func(p xdp.Port) bool { return p.Index == ifindex }) {
			delete(a.held, ifindex)
		}
	}
	held, err := a.hold.Sync(ports)
	a.complain(&a.holdTrouble, err, "cannot hold all new ports")
	for _, p := range held {
		a.holds(p)
	}
}

// settlePorts is called when there is news that may say whose a port is.
func (a *agent) settlePorts() {
	for _, p := range a.held {
		a.settle(p)
	}
}

// settle releases a port as soon as it is known whose it is and, where that container asks for one, its filter is in force.
func (a *agent) settle(p *port) {
	if a.held[p.Index] != p || p.coming != nil {
		return
	}
	network, listed := a.around.behind(p.Bridge)
	a.recognise(p)
	c := a.containers[p.id]
	switch {
	case !listed:
		a.nobodys(p)
	case p.id == "":
		a.anticipate(p)
		a.seek(p, network)
	case c == nil && a.plain[p.id]:
		a.welcome(p, network)
	case c == nil || !c.inspected && !c.outlined || c.renamed && len(a.around.conf.Policies) > 0:
		a.outline(p.id)
	case !c.asks && !a.mayBePicked(c):
		a.welcome(p, network)
	case !c.inspected && (!c.asks || c.want.live || len(a.around.conf.Policies) > 0):
		// What it wants takes more than its outline: an inspect is out.
	case p.end == nil && c.want.antispoof && network.Name != gatewayBridge:
		a.prepare(p, c)
		a.seek(p, network)
	default:
		a.filter(c, p, network)
	}
}

// mayBePicked reports whether a policy of the configuration may pick c by its image, which an outline need not name.
func (a *agent) mayBePicked(c *container) bool {
	return !c.inspected && c.Image == "" && slices.ContainsFunc(a.around.conf.Policies, func(p config.Policy) bool {
		byImage := p.Pick.Image != ""
		p.Pick.Image = ""
		return byImage && p.Pick.Matches(c.Name, "", c.Labels)
	})
}

// nobodys releases a port of a bridge that is not Docker's. A list of networks that was asked for after the port came decides that; where the bridge
// has been Docker's, or its name is one that Docker gives, the network itself is asked for, too: a list may be half of one. While it is there, and the
// list lacks it, the port waits, unless its container asks for nothing.
func (a *agent) nobodys(p *port) {
	id := a.around.lacking(p.Bridge)
	switch {
	case p.lists == 0:
		p.lists = a.freshNetworks()
	case a.around.lists < p.lists:
		// on its way
	case id == "" || p.foreign || a.asksForNothing(p.id):
		a.letGo(p)
	case !p.resting && !a.attaching[id]:
		p.lists = a.freshNetworks()
		a.askAttachments(docker.Network{ID: id, Name: p.Bridge, Bridge: p.Bridge})
	}
}

// asksForNothing reports whether Docker has said of a container all that it takes to know that it asks for no filter.
func (a *agent) asksForNothing(id string) bool {
	c := a.containers[id]
	return a.plain[id] || c != nil && c.inspected && !c.renamed && !c.asks
}

// filter puts the policy of a container into force on one of its ports, before its process runs, and releases the port.
func (a *agent) filter(c *container, p *port, network docker.Network) {
	if p.end != nil {
		c.Networks = withEnd(c.Networks, network, *p.end)
	}
	c.devices = slices.DeleteFunc(c.devices, func(ifindex int) bool { return !a.kernel.Filters(ifindex) })
	a.forgetStay(c)
	a.seeResolvers()
	a.rethink(c)
	if c.want.waits {
		return
	}
	i := Interface{Network: network.Name, Ifname: p.Name, Ifindex: p.Index, State: Enforced}
	if !c.Running {
		c.object = object{} // of an earlier run
	}
	a.readObject(c)
	if c.want.watches(network.Name) {
		a.guarded[network.Bridge] = true
		a.introduce(network, p.ends)
	}
	a.closeResolverEarly(c, p) // first: nothing holds what asks it, and to attach may take long
	var err error
	if why := c.problem(); why != "" {
		err = a.shut(c, &i, why)
	} else {
		err = a.attach(c, &i, p.Bridge, c.devices)
	}
	switch {
	case xdp.IsGone(err):
		return
	case err != nil:
		a.complain(&a.holdTrouble, err, "cannot filter or close a port that is held", "container", c.Name, "port", p.Name)
		return // held on, until the limit
	}
	if !slices.Contains(c.devices, p.Index) {
		c.devices = append(c.devices, p.Index)
	}
	a.dirty[c.ID] = true
	if a.closeResolverEarly(c, p) {
		a.letGo(p)
	}
}

// prepare has the usual hooks attached to a port that is held, beside the loop, where its container wants them: later it takes too long.
// Nothing else is done to the port meanwhile.
func (a *agent) prepare(p *port, c *container) {
	if p.prepared || !usual(c) {
		return
	}
	p.prepared = true
	r, err := a.hold.Prepare(p.Index, c.want.both || c.want.raw, c.want.tables.Receives)
	if err != nil || r == nil {
		a.cannotPrepare(p, err)
		return
	}
	coming := &leftover{Rest: r, ifindex: p.Index, done: make(chan struct{})}
	p.coming = coming
	a.beside.Go(func() {
		coming.err = a.attachRest(r)
		close(coming.done)
		a.tell(func() {
			if p.coming == coming {
				a.takePrepared(p)
				a.settle(p)
			}
		})
	})
}

// takePrepared waits until what prepares a port, if anything does, is out of the kernel's hands, and makes it ours.
func (a *agent) takePrepared(p *port) {
	if p == nil || p.coming == nil {
		return
	}
	<-p.coming.done
	a.cannotPrepare(p, errors.Join(p.coming.err, a.kernel.Take(p.coming.Rest)))
	p.coming = nil
}

func (a *agent) cannotPrepare(p *port, err error) {
	if err != nil && !xdp.IsGone(err) {
		a.log.Debug("cannot prepare a port", "port", p.Name, "error", err) // attaching the filter will say what is wrong
	}
}

// usual reports whether the filter of a container takes what the hold can prepare.
func usual(c *container) bool {
	return c.want.tables != nil && (c.want.tables.Receives || c.want.both || c.want.raw) && c.want.mode == xdp.Auto && c.want.program == ""
}

// anticipate prepares a port of which nobody can tell yet whose it is, for one of the containers that are being attached to
// its network. Engines before 28 leave hundreds of milliseconds for that, and some 50 ms once it is known whose it is.
func (a *agent) anticipate(p *port) {
	if p.prepared || p.NsID >= 0 || p.Carrier {
		return
	}
	var candidates []*container
	for _, e := range p.ends {
		if c := a.containers[e.ContainerID]; c != nil && c.asks && !c.Running && usual(c) {
			candidates = append(candidates, c)
		}
	}
	for _, other := range a.held {
		if other.Bridge == p.Bridge && other.prepared && other.id == "" && len(candidates) > 0 {
			candidates = candidates[1:]
		}
	}
	if len(candidates) > 0 {
		a.prepare(p, candidates[0])
	}
}

// withEnd is networks with what a network says of a container's end. Slices may be shared between snapshots.
func withEnd(networks []docker.Endpoint, n docker.Network, end docker.Attachment) []docker.Endpoint {
	out := slices.Clone(networks)
	i := slices.IndexFunc(out, func(e docker.Endpoint) bool { return e.NetworkID == n.ID || e.NetworkID == "" && e.Network == n.Name })
	if i < 0 {
		i = len(out)
		out = append(out, docker.Endpoint{})
	}
	out[i].Network, out[i].NetworkID, out[i].Driver = n.Name, n.ID, n.Driver
	out[i].MAC, out[i].Addrs, out[i].Gateways = end.MAC, end.Addrs, n.Gateways
	return out
}

// freed is told that an interface of a running container is filtered or closed, and releases it if it is held
// and nothing is missing that antispoof judges by.
func (a *agent) freed(c *container, i Interface) {
	p := a.held[i.Ifindex]
	if p == nil {
		return
	}
	p.id, p.proved = c.ID, true
	n := slices.IndexFunc(c.Networks, func(e docker.Endpoint) bool {
		return e.Network == i.Network && e.MAC != nil && !c.stale
	})
	if n >= 0 && p.end == nil {
		p.end = &docker.Attachment{ContainerID: c.ID, MAC: c.Networks[n].MAC, Addrs: c.Networks[n].Addrs}
	}
	if n >= 0 || !c.want.antispoof || i.Network == gatewayBridge {
		a.letGo(p)
	}
}

// letGo releases a port.
func (a *agent) letGo(p *port) {
	a.introduceHeld(p)
	delete(a.held, p.Index)
	a.log.Debug("a new port may send", "port", p.Name, "id", short(p.id), "held", p.heldFor(), "prepared", p.prepared)
	if err := a.hold.Release(p.Index); err != nil {
		a.log.Warn("cannot release a port; it is held for 5 s at most", "port", p.Name, "error", err)
	}
}

// heldFor is how long the hold was in the way of a port so far.
func (p *port) heldFor() time.Duration {
	if p.live.IsZero() {
		return 0
	}
	return time.Since(p.live)
}

// expire ends the hold of a port that nobody has settled in time. That of a container that asks for a filter is closed: its
// policy will open it.
func (a *agent) expire(p *port) {
	if a.held[p.Index] != p {
		return
	}
	a.takePrepared(p)
	if c := a.containers[p.id]; c != nil && (c.asks || !c.inspected) {
		i := Interface{Ifname: p.Name, Ifindex: p.Index}
		if err := a.shut(c, &i, "what the container wants was not known in time"); err != nil {
			a.log.Error(i.Error, "container", c.Name, "id", short(c.ID), "port", p.Name)
		}
		a.log.Warn("a new port was held for 5 s and what its container wants is not known: it is closed until that is known",
			"container", c.Name, "id", short(c.ID), "port", p.Name)
		a.dirty[c.ID] = true
		a.ask(c.ID)
	} else {
		a.log.Warn("a new port was held for 5 s and nobody said whose it is: it may send from now on", "port", p.Name, "bridge", p.Bridge)
	}
	a.letGo(p)
}

// beat keeps the hold going. It is called between all that may take long: without it the hold ends after 5 s, so that an
// agent that is stuck cuts nobody off.
func (a *agent) beat() {
	if time.Since(a.beaten) < heartbeat*9/10 {
		return
	}
	a.beaten = time.Now()
	lapsed, err := a.hold.Refresh()
	a.complain(&a.holdTrouble, err, "cannot keep the hold on new ports going")
	if way, _ := a.hold.Way(); way != a.heldBy { // rules guard ports, a program does not
		a.sayHold()
		a.everythingDirty()
	}
	a.sayGotPast()
	if before := a.misplaced; a.kernel.Misplaced() != before {
		if a.misplaced = !before; a.misplaced {
			a.log.Error("somebody has removed the directory for what is pinned, or its bpffs; the filters stay in force, and everything is pinned again")
			a.everythingDirty()
		}
	}
	if lapsed {
		a.log.Warn("the agent was stopped for more than 5 s: what came meanwhile was not held; looking at everything")
		for _, p := range a.held {
			a.takePrepared(p) // it ends: nothing is held any more
		}
		clear(a.held)
		a.everythingDirty()
		a.relist()
	}
}

// mendHold puts the hold back after somebody has flushed the ruleset.
func (a *agent) mendHold() {
	err := a.hold.Mend()
	a.complain(&a.holdTrouble, err, "somebody has removed the rules that hold new ports, and they cannot be put back")
}

// sayHold tells the log how new ports are held.
func (a *agent) sayHold() {
	way, why := a.hold.Way()
	a.heldBy = way
	if why != nil {
		a.log.Warn("new ports are held by an XDP program once they are seen, because nftables cannot do it: a first packet may be faster; see vethwall doctor", "why", OneLine(why))
		return
	}
	a.log.Info("new ports are held until their filter is in force", "by", string(way))
}
