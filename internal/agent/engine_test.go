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
	answer := func(code int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = w.Write([]byte(text))
		}
	}
	for name, misbehave := range map[string]func(*dockertest.Engine){
		"stream ends":       func(e *dockertest.Engine) { e.EndStreams() },
		"garbage":           func(e *dockertest.Engine) { e.EmitRaw("garbage") },
		"half an event":     func(e *dockertest.Engine) { e.EmitRaw(`{"Type":"container"`); e.EndStreams() },
		"killed":            func(e *dockertest.Engine) { e.Stop(); e.Start() },
		"list is 500":       func(e *dockertest.Engine) { e.Handle("/containers/json", answer(500, "no")); e.EndStreams() },
		"list is garbage":   func(e *dockertest.Engine) { e.Handle("/containers/json", answer(200, "garbage")); e.EndStreams() },
		"list is empty":     func(e *dockertest.Engine) { e.Handle("/containers/json", answer(200, "[]")); e.EndStreams() },
		"list is null":      func(e *dockertest.Engine) { e.Handle("/containers/json", answer(200, "null")); e.EndStreams() },
		"everything is 404": func(e *dockertest.Engine) { e.Handle("/containers/", answer(404, "{}")); e.EndStreams() },
		"everything is 500": func(e *dockertest.Engine) { e.Handle("/", answer(500, "{}")); e.EndStreams() },
	} {
		t.Run(name, func(t *testing.T) {
			e, k := dockertest.New(t), newFakeKernel()
			c, after := box(10, true, "xdp.drop=udp"), box(20, true, "xdp.drop=udp")
			for _, b := range []docker.Container{c, after} {
				k.namespaces[b.SandboxKey] = vethsFor(b)
			}
			e.Put(c)
			t.Cleanup(runAgent(t, e, k))
			waitState(t, k, c, enforced10)

			before := len(e.Requests())
			misbehave(e)
			waitUntil(t, "the agent is back", func() bool { return len(e.Requests()) >= before+3 })
			for _, prefix := range []string{"/", "/containers/", "/containers/json"} {
				e.Handle(prefix, nil)
			}
			e.Put(after)
			e.WaitStreams(1)
			e.Emit(docker.ActionCreate, after.ID)
			waitState(t, k, after, "enforced [bridge enforced 20:open]")
			if got := k.state(c.ID); got != enforced10 {
				t.Errorf("%s", got)
			}
		})
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
