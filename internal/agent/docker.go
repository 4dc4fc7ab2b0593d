package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/vethwall/vethwall/docker"
)

const (
	// answerTimeout bounds one question to the engine; a start that takes longer is asked about again.
	answerTimeout = 30 * time.Second
	// retryAfter is when a question that failed is asked again.
	retryAfter = time.Second
	// maxWait is how long it takes at the most until an engine that is back is found.
	maxWait = 2 * time.Second
	// inspectors is how many inspects may begin at once, and patience how long one counts: an engine answers in
	// milliseconds, or not before a start has ended, and those that wait for that are in nobody's way.
	inspectors = 64
	patience   = 250 * time.Millisecond
	// ghostLists is how many lists in a row must lack a container that nobody saw destroyed. An engine that has just
	// started may list none, and starts them all a moment later: within the 30 s that these take.
	ghostLists = 3
)

// session is a connection to one run of the engine.
type session struct {
	Engine
	ctx     context.Context // ends with it
	listing bool            // a list has been asked for
	listed  bool            // it has listed its containers
	lists   int             // how often
	trouble string          // the last error of a list, that the log has

	askingNetworks  bool   // networks have been asked for
	networksAgain   bool   // and have changed since
	networksLater   bool   // are going to be asked for after an error
	networksTrouble string // as trouble
	attachTrouble   string // as trouble
}

// connect is a first contact that does not wait for ever. Through systemd's socket it waits for an engine that starts.
func connect(ctx context.Context, to func(context.Context) (Engine, error)) (Engine, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return to(ctx)
}

// sessions talks to one engine after another until ctx ends. A lost engine changes nothing in the kernel.
func (a *agent) sessions(ctx context.Context, e Engine) {
	wait, lost := time.Duration(0), ""
	for ctx.Err() == nil {
		if e == nil {
			sleep(ctx, wait)
			wait = min(max(2*wait, 100*time.Millisecond), maxWait)
			var err error
			if e, err = connect(ctx, a.connect); err != nil {
				e = nil
				a.log.Debug("no engine", "error", err)
				continue
			}
		}
		began := time.Now()
		err := a.follow(ctx, e)
		e.Close()
		e = nil
		if time.Since(began) > resync {
			wait, lost = 0, ""
		}
		if why := fmt.Sprint(err); why != lost && ctx.Err() == nil {
			a.log.Warn("lost the engine; the filters stay in force", "error", err)
			lost = why
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// follow subscribes, then lists, then passes events on until the stream ends.
func (a *agent) follow(ctx context.Context, e Engine) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	unanswered := time.AfterFunc(answerTimeout, cancel)
	stream := e.Watch(ctx)
	if !unanswered.Stop() {
		return fmt.Errorf("event stream: no answer in %v", answerTimeout)
	}
	a.tell(func() {
		a.session = &session{Engine: e, ctx: ctx}
		clear(a.asked) // it may have been configured anew
		for _, c := range a.containers {
			c.stale = true // nobody heard what has happened meanwhile
		}
		a.relist()
	})
	defer a.tell(func() { a.session, a.lost = nil, true })
	for event := range stream.C {
		a.tell(func() { a.heard(event) })
	}
	return stream.Err()
}

// later calls f in the loop some time later, unless s has ended by then.
func (a *agent) later(s *session, f func()) {
	a.beside.Go(func() {
		sleep(s.ctx, retryAfter)
		a.tell(func() {
			if a.session == s {
				f()
			}
		})
	})
}

// complain warns of an error, once until it changes. It is over with nil.
func (a *agent) complain(told *string, err error, what string, args ...any) {
	once(a.log.Warn, told, err, what, args...)
}

// once has say tell of err, unless it has been told already.
func once(say func(string, ...any), told *string, err error, what string, args ...any) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != *told && err != nil {
		say(what, append(args, "error", err)...)
	}
	*told = text
}

// relist asks for the lists of containers and of networks beside the loop.
func (a *agent) relist() {
	s := a.session
	if s == nil || s.listing {
		return
	}
	a.askNetworks()
	a.lookAtNeighbors(slices.Collect(maps.Keys(a.around.networks))...)
	s.listing = true
	a.beside.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, answerTimeout)
		defer cancel()
		list, err := s.List(ctx)
		a.tell(func() {
			s.listing = false
			if a.session != s {
				return
			}
			a.complain(&s.trouble, err, "cannot list containers; trying again")
			if err != nil {
				a.later(s, a.relist)
				return
			}
			a.compare(s, list)
		})
	})
}

// compare takes in a list. It may be older than an event that was heard before it, so it never has the last word on
// a container.
func (a *agent) compare(s *session, list []docker.Summary) {
	if a.lost {
		a.lost = false
		a.log.Info("the engine is back")
	}
	s.listed, a.orphans = true, true
	s.lists++
	there := map[string]bool{}
	for _, l := range list {
		there[l.ID] = true
		c := a.containers[l.ID]
		if c == nil && !a.worthAsking(l.ID, l.Labels) && !joins(l.NetworkMode) {
			a.plain[l.ID] = true
			continue
		}
		running := l.State == "running" || l.State == "paused"
		if c == nil || c.stale || c.Running != running || c.Name != l.Name {
			a.ask(l.ID)
			a.containers[l.ID].named = l.Labels
		}
	}
	maps.DeleteFunc(a.plain, func(id string, _ bool) bool { return !there[id] })
	for id, c := range a.containers {
		if there[id] {
			c.missing = 0
			continue
		}
		if c.missing++; c.missing >= ghostLists {
			a.part(c)
		}
	}
}

// heard takes in an event. It says where to look, no more.
func (a *agent) heard(event docker.Event) {
	c := a.containers[event.ID]
	if event.Action == docker.ActionConnect {
		a.wake(event.NetworkID)
		a.lookAtNeighbors(event.NetworkID)
	}
	switch {
	case event.Action == docker.ActionNetworks:
		a.askNetworks()
	case event.Action == docker.ActionCreate:
		if c != nil || a.worthAsking(event.ID, event.Labels) {
			a.ask(event.ID)
			a.containers[event.ID].stirred, a.containers[event.ID].named = time.Now(), event.Labels
		} else {
			a.plain[event.ID] = true
			a.peek(event.ID)
		}
	case c == nil && event.Action == docker.ActionDestroy:
		delete(a.plain, event.ID)
	case c == nil:
		// It asks for nothing and joins nobody. One whose create event was lost is seen by the next list.
	case event.Action == docker.ActionDestroy:
		runs := c.Running && !a.asking(c)
		a.forget(c)
		a.part(c)
		if runs { // its end comes before: that was not heard, or this is not so
			a.relist()
		}
	case event.Action == docker.ActionConnect || event.Action == docker.ActionDisconnect:
		// One that is not up is about to start, and its start event follows.
		if c.Running || a.asking(c) {
			a.dirty[c.ID] = true
			a.ask(event.ID)
		}
	default: // die, too: it may have been started again since
		c.renamed = c.renamed || event.Action == docker.ActionRename
		if event.Action == docker.ActionDie {
			c.stirred = time.Now()
		}
		a.dirty[c.ID] = true
		a.ask(event.ID)
	}
}

// asking says whether Docker has been asked about c and is going to answer.
func (a *agent) asking(c *container) bool { return c.asked != nil && c.asked == a.session }

// ask inspects a container beside the loop: an answer may take as long as its start does. Without an engine it is
// asked for when there is one.
func (a *agent) ask(id string) {
	c := a.containers[id]
	if c == nil {
		c = a.meet(id)
	}
	s := a.session
	switch {
	case s == nil:
		c.stale = true
		return
	case a.asking(c):
		c.again = true
		return
	}
	c.asked, c.again = s, false
	a.beside.Go(func() {
		answer, err := a.inspect(s, id)
		a.tell(func() { a.answered(s, c, answer, err) })
	})
}

// part gives a container up that there is no more. A record that is left is looked after with the next list.
func (a *agent) part(c *container) {
	delete(a.containers, c.ID)
	a.giveUp(c, nil)
	if c.saved != "" { // the next lists open the resolver to it when none of its devices is left
		a.records[c.ID] = c.saved
		return
	}
	c.asks = false
	a.closeResolverTo(c)
}

// meet takes up a container, with what an agent before this one has recorded of it.
func (a *agent) meet(id string) *container {
	c := &container{
		Container: docker.Container{ID: id}, stale: true, nsid: -1, late: map[int]uint64{}, rests: map[int]*leftover{}, uninvited: map[int]time.Time{}, saved: a.records[id],
	}
	delete(a.records, id)
	if r, err := ParseRecord([]byte(c.saved)); err == nil {
		c.stay, c.upstream = r.Joined, r.Upstream
		for _, i := range r.Interfaces {
			if i.Late > 0 {
				c.late[i.Ifindex] = i.Late
			}
		}
	}
	a.containers[id] = c
	return c
}

func (a *agent) inspect(s *session, id string) (docker.Container, error) {
	select {
	case a.slots <- struct{}{}:
	case <-s.ctx.Done():
		return docker.Container{}, s.ctx.Err()
	}
	release := sync.OnceFunc(func() { <-a.slots })
	defer release()
	defer time.AfterFunc(patience, release).Stop()
	ctx, cancel := context.WithTimeout(s.ctx, answerTimeout)
	defer cancel()
	return s.Inspect(ctx, id)
}

// answered takes in what Docker says of a container.
func (a *agent) answered(s *session, c *container, answer docker.Container, err error) {
	if c.asked != s || a.session != s || a.containers[c.ID] != c {
		return // destroyed meanwhile, or asked anew of the engine that came after
	}
	again := c.again
	c.asked, c.again = nil, false
	if err == nil {
		err = c.lacksLabels(answer)
	}
	switch {
	case errdefs.IsNotFound(err):
		c.stale = true // the next lists decide whether it is gone
	case err != nil:
		c.stale = true
		a.complain(&c.trouble, err, "cannot inspect a container; trying again", "id", short(c.ID))
		a.later(s, func() {
			if c.stale && a.containers[c.ID] == c && !a.asking(c) {
				a.ask(c.ID)
			}
		})
	default:
		a.complain(&c.trouble, nil, "")
		c.renamed = c.renamed && again
		a.learn(c, answer)
	}
	if again {
		a.ask(c.ID)
	}
}

// lacksLabels says what is wrong with an answer that does not name a label of ours that Docker has named before: they never change, and
// to believe it would take the filter off.
func (c *container) lacksLabels(answer docker.Container) error {
	for _, before := range []map[string]string{c.named, c.Labels} {
		for key := range before {
			if _, there := answer.Labels[key]; !there && strings.HasPrefix(strings.ToLower(key), "xdp") {
				return fmt.Errorf("the answer lacks label %q, which Docker has named before", key)
			}
		}
	}
	return nil
}

// learn takes in an answer. What c wants follows from labels, which never change, from whether its image is known,
// from its name where the configuration picks by it, and from its groups, which enforce looks after.
func (a *agent) learn(c *container, answer docker.Container) {
	news := !c.inspected || answer.ImageKnown && !c.ImageKnown || answer.Name != c.Name
	if answer.SandboxKey != c.SandboxKey || answer.Pid != c.Pid {
		c.path = ""
	}
	c.Container, c.inspected, c.stale = answer, true, false
	if a.around.host == nil { // what an agent before this one has closed is not to be opened for a moment, nor the other way
		a.meetHost()
	}
	if news {
		a.decide(c, a.surroundingsOf(c))
	}
	if c.want.live && a.around.lacks(answer) {
		a.askNetworks()
	}
	a.dirty[c.ID] = true
	a.lookAtOwner(answer)
}
