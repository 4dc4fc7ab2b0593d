package agent

import (
	"context"
	"slices"
	"sync/atomic"

	"github.com/vethwall/vethwall/xdp"
)

// The kernel attaches programs at tcx one after the other, for 8 ms and more each, while it has the lock that attaching XDP takes, too.
// So what is quick comes first: XDP for every container that there is to look at. The rest is attached beside the loop, which
// looks at a container once more when its rest is there.

const (
	// laneDepth is how many rests are out of the loop's hands when it has nothing else to do, so that the kernel has the next ones
	// while the loop looks at those that are through. busyDepth is how many when there is more to do: each may keep one waiting for
	// its XDP.
	laneDepth = 2 * mostFinished
	busyDepth = 2
	// mostFinished is how many containers wait for that look, which takes a list of all links, and for each other.
	mostFinished = 32
)

// underWay is what is wrong with an interface meanwhile.
const underWay = "not all that the container sends and receives is judged yet: the kernel is attaching the rest of its filter"

// leftover is what is attached beside the loop for one device of a container.
type leftover struct {
	*xdp.Rest
	c       *container
	ifindex int
	claimed atomic.Bool   // by who is going to attach it, or to give it up
	done    chan struct{} // closed when it is attached, or err says why not
	err     error
}

func (r *leftover) claim() bool { return r.claimed.CompareAndSwap(false, true) }

// begin puts w into force on a device of c, and leaves to the lane what takes long: that is what it returns. A port that is held
// is released after it, so for that nothing is left. opened says that until now nothing had judged what the container sends.
func (a *agent) begin(c *container, ifindex int, w xdp.Want) (r *xdp.Rest, opened bool, err error) {
	before, failed := a.overtake(c, ifindex)
	opened = before != nil && before.Open
	if failed || a.held[ifindex] != nil {
		return nil, opened, a.kernel.Attach(ifindex, w)
	}
	if r, err = a.kernel.Begin(ifindex, w); err != nil || r == nil {
		return nil, opened, err
	}
	next := &leftover{Rest: r, c: c, ifindex: ifindex, done: make(chan struct{})}
	c.rests[ifindex] = next
	a.underWay++
	at := len(a.waiting)
	if r.Open { // what is open comes first
		if i := slices.IndexFunc(a.waiting, func(r *leftover) bool { return !r.Open }); i >= 0 {
			at = i
		}
	}
	a.waiting = slices.Insert(a.waiting, at, next)
	return r, opened, nil
}

// overtake ends what is under way for a device, so that nobody but the loop attaches to it: what is in the kernel's hands is waited for,
// what is attached is taken. It returns nil where there was nothing; failed says that the kernel has refused it.
func (a *agent) overtake(c *container, ifindex int) (r *leftover, failed bool) {
	a.takePrepared(a.held[ifindex])
	if r = c.rests[ifindex]; r == nil {
		return nil, false
	}
	delete(c.rests, ifindex)
	if r.claim() {
		return r, false
	}
	<-r.done
	if err := a.kernel.Take(r.Rest); err != nil {
		a.log.Debug("cannot close a link", "container", c.Name, "ifindex", ifindex, "error", err)
	}
	return r, r.err != nil
}

// giveUp ends what is under way for those devices of c that are none of devices.
func (a *agent) giveUp(c *container, devices []int) {
	for ifindex, r := range c.rests {
		if slices.Contains(devices, ifindex) {
			continue
		}
		delete(c.rests, ifindex)
		if !r.claim() {
			<-r.done
			_ = a.closeRest(r.Rest) // nobody has pinned it: it ends here or with the process
		}
	}
}

// feed fills the lane.
func (a *agent) feed(depth int) {
	for len(a.waiting) > 0 && len(a.lane) < depth {
		a.lane <- a.waiting[0]
		a.waiting = a.waiting[1:]
	}
}

// attachRests is the lane.
func (a *agent) attachRests(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-a.lane:
			if r.claim() {
				r.err = a.attachRest(r.Rest)
				close(r.done)
			}
			a.tell(func() { a.isThrough(r) })
		}
	}
}

// isThrough has containers looked at whose rests have gone through the lane, some at a time.
func (a *agent) isThrough(r *leftover) {
	a.underWay--
	a.finished = append(a.finished, r)
	if a.underWay > 0 && len(a.finished) < mostFinished {
		return
	}
	for _, r := range a.finished {
		if r.c.rests[r.ifindex] == r {
			a.dirty[r.c.ID] = true
		}
	}
	a.finished = nil
}
