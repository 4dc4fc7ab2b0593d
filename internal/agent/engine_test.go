package agent

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/docker/dockertest"
)

// TestEngineMisbehaves runs the loop against an engine behind a real socket that fails in every way that one can. A
// container that is filtered stays so, and one that is started when the engine is well again is filtered.
func TestEngineMisbehaves(t *testing.T) {
	c, after := box(10, true, "xdp.drop=udp"), box(20, true, "xdp.drop=udp")
	for name, misbehave := range map[string]func(*dockertest.Engine){
		"stream ends":       func(e *dockertest.Engine) { e.EndStreams() },
		"garbage":           func(e *dockertest.Engine) { e.EmitRaw("garbage") },
		"half an event":     func(e *dockertest.Engine) { e.EmitRaw(`{"Type":"container"`); e.EndStreams() },
		"killed":            func(e *dockertest.Engine) { e.Stop(); e.Start() },
		"list is 500":       answers("/containers/json", 500, "no"),
		"list is garbage":   answers("/containers/json", 200, "garbage"),
		"list is cut off":   answers("/containers/json", 200, `[{"Id":"`+c.ID+`","State":"exited"},`),
		"list is empty":     answers("/containers/json", 200, "[]"),
		"list is null":      answers("/containers/json", 200, "null"),
		"everything is 404": answers("/containers/", 404, "{}"),
		"everything is 500": answers("/", 500, "{}"),
		"inspect without labels": answers("/containers/"+c.ID, 200,
			`{"Id":"`+c.ID+`","Name":"/other","State":{"Running":true,"Pid":10},"HostConfig":{},"NetworkSettings":{"SandboxKey":"`+c.SandboxKey+`"}}`),
		"inspect without state": answers("/containers/"+c.ID, 200,
			`{"Id":"`+c.ID+`","Config":{},"HostConfig":{},"NetworkSettings":{}}`),
		"inspect of another": answers("/containers/"+c.ID, 200,
			`{"Id":"`+after.ID+`","State":{"Running":true,"Pid":10},"Config":{},"HostConfig":{},"NetworkSettings":{"SandboxKey":"`+c.SandboxKey+`"}}`),
		"networks are none": answers("/networks", 200, "[]"),
		"events in disorder": func(e *dockertest.Engine) {
			for _, id := range []string{c.ID, after.ID} {
				for _, a := range []docker.Action{docker.ActionDie, docker.ActionStart, docker.ActionRename, docker.ActionStart, docker.ActionCreate, docker.ActionCreate} {
					e.Emit(a, id)
				}
				e.EmitNetwork(docker.ActionDisconnect, c.Networks[0].NetworkID, id)
			}
			e.EndStreams()
		},
		"destroyed, it says": func(e *dockertest.Engine) { e.Emit(docker.ActionDestroy, c.ID); e.EndStreams() },
		"forged events": func(e *dockertest.Engine) {
			forged := map[string]string{"id": c.ID, "container": c.ID, "Type": "network", "Action": "destroy", "exitCode": "0", "name": c.Name, "image": ""}
			for _, a := range []docker.Action{docker.ActionCreate, docker.ActionStart, docker.ActionConnect, docker.ActionDie, docker.ActionDestroy} {
				e.EmitRaw(dockertest.Message("container", string(a), box(30, true).ID, forged))
			}
			e.EndStreams()
		},
	} {
		t.Run(name, func(t *testing.T) {
			e, k := dockertest.New(t), newFakeKernel()
			for _, b := range []docker.Container{c, after} {
				k.namespaces[b.SandboxKey] = vethsFor(b)
			}
			e.Put(c)
			t.Cleanup(runAgent(t, e, k))
			waitState(t, k, c, enforced10)

			before := len(e.Requests())
			misbehave(e)
			waitUntil(t, "the agent is back", func() bool { return len(e.Requests()) >= before+3 })
			for _, prefix := range []string{"/", "/containers/", "/containers/json", "/containers/" + c.ID, "/networks"} {
				e.Handle(prefix, nil)
			}
			e.Put(after)
			e.WaitStreams(1)
			e.Emit(docker.ActionCreate, after.ID)
			waitState(t, k, after, "enforced [bridge enforced 20:open]")
			waitState(t, k, c, enforced10)
			if k.count("detach 10") > 0 || k.count("shut 10") > 0 {
				t.Error("the filter was taken off meanwhile, or closed")
			}
		})
	}
}

// answers has an engine answer questions about path with text, and returns when one has been asked. The agent asks
// everything anew when the stream ends.
func answers(path string, code int, text string) func(*dockertest.Engine) {
	return func(e *dockertest.Engine) {
		asked := make(chan bool, 1)
		e.Handle(path, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = w.Write([]byte(text))
			select {
			case asked <- true:
			default:
			}
		})
		e.EndStreams()
		<-asked
	}
}

// TestBlockedStartsOverASocket has inspects hang, as those of containers that start do. Nobody else waits.
func TestBlockedStartsOverASocket(t *testing.T) {
	e, k := dockertest.New(t), newFakeKernel()
	for i := range 2 * inspectors {
		blocked := box(1000+i, false, "xdp.drop=udp")
		e.Put(blocked)
		e.Handle("/containers/"+blocked.ID, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	}
	t.Cleanup(runAgent(t, e, k))
	for i := range 2 * inspectors {
		e.WaitRequest("/containers/" + box(1000+i, false).ID)
	}
	for i := range 5 {
		c := box(10+i, true, "xdp.drop=udp")
		k.set(func() { k.namespaces[c.SandboxKey] = vethsFor(c) })
		e.Put(c)
		began := time.Now()
		e.Emit(docker.ActionCreate, c.ID)
		waitUntil(t, c.Name+" is filtered", func() bool { return k.state(c.ID) != "none" })
		if took := time.Since(began); took > time.Second {
			t.Errorf("it was filtered after %v", took)
		}
	}
}

// runAgent runs the loop against e until the function that it returns is called.
func runAgent(t *testing.T, e *dockertest.Engine, k *fakeKernel) func() {
	t.Helper()
	t.Setenv("DOCKER_HOST", e.Host())
	connect := func(ctx context.Context) (Engine, error) { return docker.Connect(ctx) }
	a := fakeAgent(k, Options{Connect: connect})
	first, err := connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); a.run(ctx, first) }()
	return func() { cancel(); <-done }
}

func waitState(t *testing.T, k *fakeKernel, c docker.Container, want string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("it is %s", k.state(c.ID))
		}
	}()
	waitUntil(t, c.Name+" is "+want, func() bool { return k.state(c.ID) == want })
}

func waitUntil(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never so: %s", what)
		}
	}
}

// TestHalfInspect has the engine answer about a running container without its labels, which its list has: nothing is detached.
func TestHalfInspect(t *testing.T) {
	for _, config := range []string{`{}`, `{"Labels":null}`, `{"Labels":{"com.example":"x"}}`} {
		c := box(10, true, "xdp.drop=udp")
		e, k := dockertest.New(t), newFakeKernel()
		k.namespaces[c.SandboxKey] = vethsFor(c)
		e.Put(c)
		end := runAgent(t, e, k)
		waitState(t, k, c, enforced10)
		end()
		asked := make(chan struct{}, 1000)
		e.Handle("/containers/"+c.ID, func(w http.ResponseWriter, _ *http.Request) {
			asked <- struct{}{}
			_, _ = w.Write([]byte(`{"Id":"` + c.ID + `","Name":"/` + c.Name + `","State":{"Status":"running","Running":true,"Pid":10},"Config":` + config +
				`,"HostConfig":{},"NetworkSettings":{"SandboxKey":"` + c.SandboxKey + `"}}`))
		})
		end = runAgent(t, e, k)
		<-asked
		<-asked // it asks again, so it has taken in the first answer
		if k.count("detach 10") > 0 || k.record(c.ID).State != Enforced {
			t.Errorf("%s: detached %d times, record %+v", config, k.count("detach 10"), k.record(c.ID))
		}
		e.Handle("/containers/"+c.ID, nil)
		waitState(t, k, c, enforced10)
		end()
	}
}
