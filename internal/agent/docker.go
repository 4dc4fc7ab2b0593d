package agent

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/xdp"
)

type agent struct {
	kernel kernel
	log    *slog.Logger
	ready  func() // nil once it was called
	veths  func() (xdp.Veths, error)

	containers map[string]*container
	dirty      map[string]bool // containers to look at
	sweep      bool
	session    Engine // nil while there is no engine
	listed     bool   // Docker has listed its containers at least once
	relisting  bool   // a list has been asked for

	news       chan func()
	bell       chan struct{}
	ended      chan struct{} // closed when the loop has ended
	slots      chan struct{} // bounds how many inspects are under way
	inspecting sync.WaitGroup
}

func itoa(n int) string { return strconv.Itoa(n) }

// doorbell says that some link of the host has changed.
func (a *agent) doorbell() {
	select {
	case a.bell <- struct{}{}:
	default: // it has rung already
	}
}

// tell hands f to the loop; after the loop's end it is lost.
func (a *agent) tell(f func()) {
	select {
	case a.news <- f:
	case <-a.ended:
	}
}

// sessions talks to one engine after another until ctx ends. A lost engine changes nothing in the kernel.
func (a *agent) sessions(ctx context.Context, e Engine, connect func(context.Context) (Engine, error)) {
	wait := time.Duration(0)
	for ctx.Err() == nil {
		if e == nil {
			var err error
			if e, err = connect(ctx); err != nil {
				wait = min(max(2*wait, 100*time.Millisecond), 2*time.Second)
				a.log.Debug("no engine", "error", err)
				sleep(ctx, wait)
				continue
			}
			a.log.Info("the engine is back")
		}
		wait = 0
		err := a.follow(ctx, e)
		e.Close()
		e = nil
		if ctx.Err() == nil {
			a.log.Warn("lost the engine; the filters stay in force", "error", err)
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
	stream := e.Watch(ctx)
	a.tell(func() {
		a.session = e
		for _, c := range a.containers {
			c.stale = true // nobody heard what has happened meanwhile
		}
		a.relist(ctx, e)
	})
	defer a.tell(func() { a.session = nil })
	for event := range stream.C {
		a.tell(func() { a.heard(ctx, e, event) })
	}
	return stream.Err()
}

// relist asks for the list of containers beside the loop.
func (a *agent) relist(ctx context.Context, e Engine) {
	if a.relisting {
		return
	}
	a.relisting = true
	a.inspecting.Go(func() {
		limited, cancel := context.WithTimeout(ctx, inspectTimeout)
		defer cancel()
		list, err := e.List(limited)
		a.tell(func() {
			a.relisting = false
			if err != nil {
				if ctx.Err() == nil {
					a.log.Warn("cannot list containers; trying again", "error", err)
				}
				return
			}
			a.compare(ctx, e, list)
		})
	})
}

// compare takes in a list. What is not in it is forgotten only when its devices are gone.
func (a *agent) compare(ctx context.Context, e Engine, list []docker.Summary) {
	a.listed = true
	a.sweep = true
	there := map[string]bool{}
	for _, s := range list {
		there[s.ID] = true
		c := a.containers[s.ID]
		if !asksAtAll(s.Labels) {
			continue
		}
		running := s.State == "running" || s.State == "paused"
		if c == nil || c.stale || c.Running != running || c.Name != s.Name {
			a.ask(ctx, e, s.ID)
		}
	}
	for id, c := range a.containers {
		if !there[id] && !c.asking {
			a.leave(c)
		}
	}
}

// leave forgets a container that Docker no longer knows. Its record stays until its devices are gone.
func (a *agent) leave(c *container) { delete(a.containers, c.ID) }

// heard takes in an event. It says where to look, no more.
func (a *agent) heard(ctx context.Context, e Engine, event docker.Event) {
	c := a.containers[event.ID]
	switch event.Action {
	case docker.ActionCreate:
		if asksAtAll(event.Labels) {
			a.ask(ctx, e, event.ID)
		}
	case docker.ActionStart, docker.ActionRename:
		if c != nil {
			a.ask(ctx, e, event.ID)
		}
	case docker.ActionConnect, docker.ActionDisconnect:
		// An inspect would wait for a start that is under way.
		if c != nil && c.Running {
			a.dirty[c.ID] = true
			a.ask(ctx, e, event.ID)
		}
	case docker.ActionDie:
		if c != nil {
			c.Running = false
			a.dirty[c.ID] = true
			a.sweep = true
			a.ask(ctx, e, event.ID) // it may have been started again since
		}
	case docker.ActionDestroy:
		if c != nil {
			a.forget(c)
			a.leave(c)
			a.sweep = true
		}
	}
}

// ask inspects a container beside the loop: an answer may take as long as its start does.
func (a *agent) ask(ctx context.Context, e Engine, id string) {
	c := a.containers[id]
	if c == nil {
		c = &container{Container: docker.Container{ID: id}, stale: true, late: map[int]uint64{}}
		a.containers[id] = c
	}
	if c.asking {
		c.again = true
		return
	}
	c.asking = true
	a.inspecting.Go(func() {
		select {
		case a.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		limited, cancel := context.WithTimeout(ctx, inspectTimeout)
		answer, err := e.Inspect(limited, id)
		cancel()
		<-a.slots
		a.tell(func() { a.answered(ctx, e, c, answer, err) })
	})
}

// answered takes in what Docker says of a container.
func (a *agent) answered(ctx context.Context, e Engine, c *container, answer docker.Container, err error) {
	again := c.again
	c.asking, c.again = false, false
	switch {
	case errdefs.IsNotFound(err):
		a.forget(c)
		a.leave(c)
		return
	case err != nil:
		if ctx.Err() == nil {
			a.log.Warn("cannot inspect a container; trying again", "id", short(c.ID), "error", err)
		}
	default:
		restarted := c.SandboxID != answer.SandboxID
		if restarted {
			clear(c.late)
		}
		if !c.inspected {
			c.want, c.asks = wanted(answer)
		}
		c.Container, c.inspected, c.stale = answer, true, false
		a.dirty[c.ID] = true
	}
	if again && ctx.Err() == nil {
		a.ask(ctx, e, c.ID)
	}
}
