package agent

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/vethwall/vethwall/xdp"
)

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

// hear takes in what others have found out meanwhile. It may be called by what it calls, which then has heard the rest.
func (a *agent) hear() {
	for range len(a.news) {
		select {
		case f := <-a.news:
			f()
		default:
			return
		}
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
	if a.listing != nil {
		a.listing.since[c.Index] = true
	}
	switch {
	case c.Gone:
		a.touched.gone[c.Index] = true
		delete(a.held, c.Index)
		delete(a.ports, c.Index)
	case c.NsID >= 0:
		a.touched.namespaces[c.NsID] = true
	}
	if c.Port.Index != 0 {
		a.arrived(c.Port)
	}
}

// wakeTouched makes those containers dirty whom messages concern: by a device of theirs, by one that leads into their namespace,
// and, because a namespace has no id before a veth leads there, those of whose it is not known. It forgets devices that are gone.
func (a *agent) wakeTouched() {
	t := a.touched
	if len(t.devices) == 0 {
		return
	}
	for _, c := range a.containers {
		is := func(ifindex int) bool { return t.devices[ifindex] }
		if slices.ContainsFunc(c.devices, is) || t.namespaces[c.nsid] || len(t.namespaces) > 0 && c.nsid < 0 && c.Running && !shares(c.NetworkMode) {
			a.rouse(c)
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

// rousePause is the least time between two looks at a container because of what has happened to its devices.
const rousePause = 50 * time.Millisecond

// rouse has a container looked at because of what has happened to its devices, now or soon: who may change them could do so without end, and keep
// the agent busy, which goes before others on the processor.
func (a *agent) rouse(c *container) {
	if c.rousing {
		return
	}
	look := func() {
		c.rousing, c.roused = false, time.Now()
		a.dirty[c.ID], c.path = true, ""
	}
	wait := rousePause - time.Since(c.roused)
	if wait <= 0 {
		look()
		return
	}
	c.rousing = true
	a.after(wait, look)
}

func newTouched() touched {
	return touched{devices: map[int]bool{}, gone: map[int]bool{}, namespaces: map[int]bool{}}
}

// lookedAtEverything says whether Docker has listed its containers and answered for each that asks for a filter, and
// the kernel has been brought in line with the answers.
func (a *agent) lookedAtEverything() bool {
	if a.session == nil || !a.session.listed || len(a.dirty) > 0 || a.listing != nil || a.underWay > 0 {
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
	// Sweeping takes its time, which a port that is held may not have; nor may it wait for the kernel's list of links, which takes the lock
	// of all of networking, as all does that engines start containers by. Without the directory nothing that starts can be filtered.
	sweep := a.sweep && (len(a.held) == 0 || a.misplaced || time.Since(a.swept) > 2*resync)
	host := a.hostStale && !a.readingHost && a.anybodyAsks()
	if len(a.dirty) == 0 && !a.portsStale && !a.orphans && !sweep && !host {
		return false
	}
	var veths namespaces
	switch {
	case a.portsStale || sweep || host && a.around.host == nil: // once for all of them: there may be a thousand
		all, err := a.list()
		a.sayListed(err)
		if err != nil {
			return false
		}
		if l := a.listing; l != nil { // what it brings is older
			a.listing = nil
			for _, id := range l.ids {
				a.dirty[id] = true
			}
			host = host || l.host && !a.readingHost
		}
		veths = all.veths
		if sweep {
			a.sweep, a.swept = false, time.Now()
			if err := a.kernel.Sweep(all.links); err != nil {
				a.log.Warn("cannot remove what belongs to devices that are gone", "error", err)
			}
		}
		if host {
			a.hostStale = false
			a.lookAround(all.links)
		}
		a.seePorts(all.ports, nil)
		if a.portsStale {
			a.portsStale = false
			a.syncPorts(all.ports)
		}
	case (host || a.anyRunning()) && a.listing == nil: // the kernel may keep one waiting, and a port may come meanwhile
		a.listBeside(host)
	}
	a.around.joiners = a.joiners()
	a.settlePorts()
	ids := slices.Sorted(maps.Keys(a.dirty))
	clear(a.dirty)
	a.enforceAll(ids, veths)
	if a.orphans {
		a.orphans = false
		a.forgetOrphans()
	}
	for id := range a.dirty {
		if c := a.containers[id]; a.listing == nil || c == nil || !c.Running {
			return true
		}
	}
	return false
}

// sayListed tells the log, once, that the host's links cannot be listed: nothing new is filtered then.
func (a *agent) sayListed(err error) {
	once(a.log.Error, &a.listTrouble, err, "cannot list the host's links; trying again")
}

// enforceAll brings containers in line, and keeps those dirty that run while veths is nil.
func (a *agent) enforceAll(ids []string, veths namespaces) {
	for _, id := range ids {
		if a.ctx.Err() != nil {
			return
		}
		c := a.containers[id]
		switch {
		case c == nil || !c.inspected || a.dirty[id]:
		case c.Running && veths == nil: // a list is under way, or it was started meanwhile
			a.dirty[id] = true
		default:
			a.enforce(c, veths)
		}
		a.beat()
		a.hear()
	}
}

// listing is a list of links that is asked for beside the loop, and who is looked at then.
type listing struct {
	ids  []string
	host bool
	// since are the devices of which a message has told since it was asked for.
	since map[int]bool
}

// listBeside asks for the host's links beside the loop, for the containers that are dirty and run.
func (a *agent) listBeside(host bool) {
	l := &listing{host: host, since: map[int]bool{}}
	for id := range a.dirty {
		if c := a.containers[id]; c != nil && c.inspected && c.Running {
			l.ids = append(l.ids, id)
			delete(a.dirty, id)
		}
	}
	slices.Sort(l.ids)
	if host {
		a.hostStale = false
	}
	a.listing = l
	a.beside.Go(func() {
		all, err := a.list()
		a.tell(func() { a.listed(l, all, err) })
	})
}

// listed takes in what listBeside has asked for. Whoever has become dirty meanwhile is looked at all the same, and once more with the next list:
// who makes messages without end keeps nobody from looking.
func (a *agent) listed(l *listing, all links, err error) {
	if a.listing != l {
		return // a later one was faster
	}
	a.sayListed(err)
	if err != nil { // nobody has looked at those in it until then
		a.after(time.Second, func() {
			if a.listing != l {
				return
			}
			a.listing = nil
			a.hostStale = a.hostStale || l.host
			for _, id := range l.ids {
				a.dirty[id] = true
			}
		})
		return
	}
	a.listing = nil
	if l.host {
		a.lookAround(all.links)
	}
	a.seePorts(all.ports, l.since)
	a.around.joiners = a.joiners()
	again := map[string]bool{}
	for _, id := range l.ids {
		if a.dirty[id] {
			again[id] = true
			delete(a.dirty, id)
		}
	}
	a.enforceAll(l.ids, all.veths)
	maps.Copy(a.dirty, again)
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
