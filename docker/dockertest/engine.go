// Package dockertest is an engine for tests: it speaks as much of Docker's API over a unix socket as
// package docker asks for, says what the test tells it to say, and fails when told to.
//
// It runs nothing. What a real engine does is tested against a real one.
package dockertest

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vethwall/vethwall/docker"
)

// Engine is one fake engine. Its methods may be called by several goroutines at once.
type Engine struct {
	t      testing.TB
	socket string
	srv    *http.Server

	mu         sync.Mutex
	apiVersion string
	containers map[string]docker.Container
	raw        map[string]string // container id -> the answer to inspect, word for word
	images     map[string]map[string]string
	networks   map[string]docker.Network // by id
	handlers   map[string]http.HandlerFunc
	history    []event
	streams    map[chan string]bool
	changed    chan struct{} // closed and replaced when streams or requests change
	requests   []string
}

type event struct {
	at   time.Time
	line string
}

// None is a network that every engine has.
var None = docker.Network{ID: strings.Repeat("f", 64), Name: "none", Driver: "null"}

// New starts an engine that has no containers and the network None, and speaks API version 1.41. It is stopped at
// the test's end. Tests reach it by setting DOCKER_HOST to Host.
func New(t testing.TB) *Engine {
	t.Helper()
	// Not t.TempDir: a socket's path has room for 108 bytes only.
	dir, err := os.MkdirTemp("", "vethwall-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	e := &Engine{
		t: t, socket: filepath.Join(dir, "docker.sock"), apiVersion: "1.41",
		containers: map[string]docker.Container{}, raw: map[string]string{},
		images: map[string]map[string]string{}, networks: map[string]docker.Network{None.ID: None},
		handlers: map[string]http.HandlerFunc{}, streams: map[chan string]bool{}, changed: make(chan struct{}),
	}
	e.Start()
	t.Cleanup(e.Stop)
	return e
}

// Host is the value for DOCKER_HOST.
func (e *Engine) Host() string { return "unix://" + e.socket }

// Start listens again after Stop.
func (e *Engine) Start() {
	e.t.Helper()
	l, err := net.Listen("unix", e.socket)
	if err != nil {
		e.t.Fatal(err)
	}
	srv := &http.Server{Handler: e}
	e.mu.Lock()
	e.srv = srv
	e.mu.Unlock()
	go func() { _ = srv.Serve(l) }()
}

// Stop goes away as an engine does that is killed: the socket is gone, calls and streams are cut off,
// and past events are forgotten. Containers stay.
func (e *Engine) Stop() {
	e.mu.Lock()
	srv := e.srv
	e.history = nil
	e.mu.Unlock()
	_ = srv.Close()
	_ = os.Remove(e.socket)
}

// SetAPIVersion changes the newest API version that the engine speaks.
func (e *Engine) SetAPIVersion(v string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.apiVersion = v
}

// Put adds or replaces a container, the networks of its endpoints, and its image where ImageKnown. No
// event is sent.
func (e *Engine) Put(c docker.Container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.containers[c.ID] = c
	for _, ep := range c.Networks {
		if _, known := e.networks[ep.NetworkID]; !known && ep.NetworkID != "" {
			e.networks[ep.NetworkID] = docker.Network{ID: ep.NetworkID, Name: ep.Network, Driver: ep.Driver}
		}
	}
	if c.ImageKnown {
		e.images[c.ImageID] = c.ImageLabels
	}
}

// PutNetwork adds or replaces a network, with a gateway for each of its first subnets. No event is sent.
func (e *Engine) PutNetwork(n docker.Network) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.networks[n.ID] = n
}

// PutRaw makes json the answer to the inspection of container id, which need not be in the list.
func (e *Engine) PutRaw(id, json string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.raw[id] = json
}

// Remove takes a container away. No event is sent.
func (e *Engine) Remove(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.containers, id)
	delete(e.raw, id)
}

// RemoveImage takes an image away, as docker rmi -f does.
func (e *Engine) RemoveImage(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.images, id)
}

// Handle lets h answer requests whose path without the version begins with prefix ("/containers/json",
// "/images/"), until it is set to nil. A handler that waits for its request's context hangs as a busy
// engine does.
func (e *Engine) Handle(prefix string, h http.HandlerFunc) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.handlers[prefix] = h
}

// Emit sends an event of a container (create, start, ...), with the container's labels among the
// attributes as engines do.
func (e *Engine) Emit(action docker.Action, id string) {
	e.mu.Lock()
	c := e.containers[id]
	e.mu.Unlock()
	attrs := map[string]string{}
	for k, v := range c.Labels {
		attrs[k] = v
	}
	attrs["name"], attrs["image"] = c.Name, c.ImageID
	e.EmitRaw(Message("container", string(action), id, attrs))
}

// EmitNetwork sends connect or disconnect.
func (e *Engine) EmitNetwork(action docker.Action, networkID, containerID string) {
	e.EmitRaw(Message("network", string(action), networkID, map[string]string{"container": containerID}))
}

// Message is an event as it goes over the wire.
func Message(kind, action, id string, attrs map[string]string) string {
	now := time.Now()
	b, _ := json.Marshal(map[string]any{
		"Type": kind, "Action": action, "Actor": map[string]any{"ID": id, "Attributes": attrs},
		"scope": "local", "time": now.Unix(), "timeNano": now.UnixNano(),
	})
	return string(b)
}

// EmitRaw sends line to every stream, whatever it is, and keeps it for streams that ask for the past. A
// stream whose reader is 1,024 events behind loses it, as with a real engine.
func (e *Engine) EmitRaw(line string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.history = append(e.history, event{time.Now(), line})
	for ch := range e.streams {
		select {
		case ch <- line:
		default:
		}
	}
}

// EndStreams ends every stream of events in good order, as an engine does that shuts down.
func (e *Engine) EndStreams() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for ch := range e.streams {
		close(ch)
		delete(e.streams, ch)
	}
	e.wake()
}

// WaitStreams waits until n streams of events are open.
func (e *Engine) WaitStreams(n int) {
	e.t.Helper()
	e.wait(fmt.Sprintf("%d event streams", n), func() bool { return len(e.streams) == n })
}

// WaitRequest waits until a request whose path without the version begins with prefix has arrived.
func (e *Engine) WaitRequest(prefix string) {
	e.t.Helper()
	e.wait("a request for "+prefix, func() bool {
		return slices.ContainsFunc(e.requests, func(r string) bool {
			_, path, _ := strings.Cut(r, " ")
			return strings.HasPrefix(versionless(path), prefix)
		})
	})
}

// Requests returns what was asked so far, as "GET /v1.41/containers/json".
func (e *Engine) Requests() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.requests)
}

// wait returns when cond, called with mu held, is true, and fails the test after 10 s.
func (e *Engine) wait(what string, cond func() bool) {
	e.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		e.mu.Lock()
		ok, changed := cond(), e.changed
		e.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			e.t.Fatalf("fake engine: no sign of %s", what)
		}
	}
}

// wake tells wait to look again; mu is held.
func (e *Engine) wake() {
	close(e.changed)
	e.changed = make(chan struct{})
}

var version = regexp.MustCompile(`^/v[0-9]+\.[0-9]+/`)

func versionless(path string) string { return version.ReplaceAllString(path, "/") }

// ServeHTTP answers one request.
func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := versionless(r.URL.Path)
	e.mu.Lock()
	e.requests = append(e.requests, r.Method+" "+r.URL.Path)
	e.wake()
	w.Header().Set("Api-Version", e.apiVersion)
	var handler http.HandlerFunc
	for prefix, h := range e.handlers {
		if h != nil && strings.HasPrefix(path, prefix) {
			handler = h
		}
	}
	e.mu.Unlock()
	switch {
	case handler != nil:
		handler(w, r)
	case path == "/_ping":
		_, _ = w.Write([]byte("OK"))
	case path == "/events":
		e.serveEvents(w, r)
	default:
		e.serveObject(w, path, r.URL.Query().Get("filters"))
	}
}

func (e *Engine) serveObject(w http.ResponseWriter, path, filters string) {
	e.mu.Lock()
	var body any
	if path == "/containers/json" {
		body = e.list(filters)
	} else {
		body = e.object(path)
	}
	e.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if body == nil {
		w.WriteHeader(http.StatusNotFound)
		body = map[string]string{"message": "No such object: " + path}
	}
	_ = json.NewEncoder(w).Encode(body)
}

// serveEvents replays what is not older than since, then sends what comes.
func (e *Engine) serveEvents(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	ch := make(chan string, len(e.history)+1024)
	if since, err := strconv.ParseFloat(r.URL.Query().Get("since"), 64); err == nil {
		for _, ev := range e.history {
			if float64(ev.at.UnixNano())/1e9 >= since {
				ch <- ev.line
			}
		}
	}
	e.streams[ch] = true
	e.wake()
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(e.streams, ch)
		e.wake()
		e.mu.Unlock()
	}()
	flush := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	_ = flush.Flush()
	for {
		select {
		case line, ok := <-ch:
			if !ok {
				return
			}
			_, _ = w.Write([]byte(line + "\n"))
			_ = flush.Flush()
		case <-r.Context().Done():
			return
		}
	}
}
