package docker_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/docker/dockertest"
)

func drain(s *docker.Stream) (got []docker.Event) {
	for e := range s.C {
		got = append(got, e)
	}
	return got
}

func TestWatch(t *testing.T) {
	e, ctx := engine(t)
	e.Put(web)
	net := id("e")
	c := connect(ctx, t)
	s := c.Watch(ctx)
	e.WaitStreams(1)
	for _, a := range []docker.Action{docker.ActionCreate, docker.ActionStart, docker.ActionRename, docker.ActionDie, docker.ActionDestroy} {
		e.Emit(a, web.ID)
	}
	e.EmitNetwork(docker.ActionConnect, net, web.ID)
	e.EmitNetwork(docker.ActionDisconnect, net, web.ID)
	e.EmitRaw(dockertest.Message("network", "create", net, nil))
	e.EmitRaw(dockertest.Message("network", "destroy", net, nil))
	e.EndStreams()
	want := []docker.Event{
		{Action: docker.ActionCreate, ID: web.ID, Labels: map[string]string{"from": "image", "xdp.drop": "udp", "name": "web", "image": image}},
		{Action: docker.ActionStart, ID: web.ID},
		{Action: docker.ActionRename, ID: web.ID},
		{Action: docker.ActionDie, ID: web.ID},
		{Action: docker.ActionDestroy, ID: web.ID},
		{Action: docker.ActionConnect, ID: web.ID, NetworkID: net},
		{Action: docker.ActionDisconnect, ID: web.ID, NetworkID: net},
		{Action: docker.ActionNetworks, NetworkID: net},
		{Action: docker.ActionNetworks, NetworkID: net},
	}
	if d := cmp.Diff(want, drain(s), cmpopts.IgnoreFields(docker.Event{}, "Time")); d != "" {
		t.Error(d)
	}
	if s.Err() == nil {
		t.Error("a stream ended without saying why")
	}
}

// What a container can write into an event must not change what the event says.
func TestForgedEvents(t *testing.T) {
	a, b, net := id("a"), id("b"), id("e")
	forged := map[string]string{
		"container": b, "id": b, "ID": b, "Action": "destroy", "Type": "network", "exitCode": "0", "name": "\x1b[2J",
	}
	for _, tc := range []struct {
		name, line string
		want       []docker.Event
	}{
		{"labels named like fields", dockertest.Message("container", "die", a, forged), []docker.Event{{Action: docker.ActionDie, ID: a}}},
		{"container event that poses as connect", dockertest.Message("container", "connect", net, forged), nil},
		{"network event named start", dockertest.Message("network", "start", a, forged), nil},
		{"exec", dockertest.Message("container", "exec_start: start", a, nil), nil},
		{"health", dockertest.Message("container", "health_status: healthy", a, nil), nil},
		{"action with a tail", dockertest.Message("container", "start: x", a, nil), nil},
		{"other type", dockertest.Message("image", "create", a, nil), nil},
		{"short id", dockertest.Message("container", "start", "abc", nil), nil},
		{"path for an id", dockertest.Message("container", "start", strings.Repeat("../", 21)+"x", nil), nil},
		{"upper case id", dockertest.Message("container", "start", id("A"), nil), nil},
		{"connect without a container", dockertest.Message("network", "connect", net, nil), nil},
		{"connect of an endpoint", dockertest.Message("network", "connect", net, map[string]string{"container": "ep-" + a[:61]}), nil},
		{"network that no id names", dockertest.Message("network", "create", "x", map[string]string{"container": a}), nil},
		{"connect to no network", dockertest.Message("network", "connect", "x", map[string]string{"container": a}), nil},
		{"empty object", "{}", nil},
		{"null", "null", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, ctx := engine(t)
			s := connect(ctx, t).Watch(ctx)
			e.WaitStreams(1)
			e.EmitRaw(tc.line)
			e.EmitRaw(dockertest.Message("container", "start", a, nil)) // the twin: a true one comes through
			e.EndStreams()
			want := append(tc.want, docker.Event{Action: docker.ActionStart, ID: a})
			if d := cmp.Diff(want, drain(s), cmpopts.IgnoreFields(docker.Event{}, "Time")); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestWatchEnds(t *testing.T) {
	for name, end := range map[string]func(*dockertest.Engine, *docker.Stream, context.CancelFunc){
		"garbage":   func(e *dockertest.Engine, _ *docker.Stream, _ context.CancelFunc) { e.EmitRaw("<html>") },
		"wrong":     func(e *dockertest.Engine, _ *docker.Stream, _ context.CancelFunc) { e.EmitRaw(`{"Actor":[]}`) },
		"shut down": func(e *dockertest.Engine, _ *docker.Stream, _ context.CancelFunc) { e.EndStreams() },
		"killed":    func(e *dockertest.Engine, _ *docker.Stream, _ context.CancelFunc) { e.Stop() },
		"closed":    func(_ *dockertest.Engine, s *docker.Stream, _ context.CancelFunc) { s.Close() },
		"cancelled": func(_ *dockertest.Engine, _ *docker.Stream, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			e, ctx := engine(t)
			e.Put(web)
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			s := connect(ctx, t).Watch(ctx)
			e.WaitStreams(1)
			e.Emit(docker.ActionStart, web.ID)
			if got := <-s.C; got.ID != web.ID {
				t.Errorf("before the end: %+v", got)
			}
			end(e, s, cancel)
			if got := drain(s); len(got) != 0 {
				t.Errorf("after the end: %+v", got)
			}
			if s.Err() == nil {
				t.Error("no reason given")
			}
			if name == "cancelled" && !errors.Is(s.Err(), context.Canceled) {
				t.Errorf("%v is not canceled", s.Err())
			}
		})
	}
}

func TestWatchRefused(t *testing.T) {
	e, ctx := engine(t)
	e.Handle("/events", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	s := connect(ctx, t).Watch(ctx)
	if got := drain(s); len(got) != 0 || s.Err() == nil {
		t.Errorf("%v, %v", got, s.Err())
	}
}

// The engine answers before the subscription takes effect. What happens in between comes from its memory.
func TestWatchMissesNothing(t *testing.T) {
	e, ctx := engine(t)
	e.Put(web)
	c := connect(ctx, t)
	e.Emit(docker.ActionStart, web.ID)
	s := c.Watch(ctx)
	if got := <-s.C; got.Action != docker.ActionStart || got.ID != web.ID {
		t.Errorf("%+v", got)
	}
	s.Close()
	drain(s)
}

// A reader that has stopped reading must not keep a closed stream alive.
func TestWatchUnread(t *testing.T) {
	e, ctx := engine(t)
	e.Put(web)
	s := connect(ctx, t).Watch(ctx)
	e.WaitStreams(1)
	for range 500 {
		e.Emit(docker.ActionStart, web.ID)
	}
	s.Close()
	e.WaitStreams(0)
	drain(s)
}
