package docker_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/docker/dockertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const image = "sha256:754a17981f80c4c49940ef553acf05224013322aec005bc93f642af6c1edbe8b"

func id(c string) string { return strings.Repeat(c, 64) }

// engine starts a fake engine and points DOCKER_HOST at it, and at nothing else.
func engine(t *testing.T) (*dockertest.Engine, context.Context) {
	t.Helper()
	for _, v := range []string{"DOCKER_API_VERSION", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY"} {
		t.Setenv(v, "")
	}
	e := dockertest.New(t)
	t.Setenv("DOCKER_HOST", e.Host())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return e, ctx
}

func connect(ctx context.Context, t *testing.T) *docker.Client {
	t.Helper()
	c, err := docker.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// web is a container as Debian's engine 20.10 described it (testdata/inspect-20.10.json).
var web = docker.Container{
	ID:          "975bbdf59b5f0883afe0c54ab07a885b02351c88c5b6296dabea2f7d97a97366",
	Name:        "web",
	Labels:      map[string]string{"from": "image", "xdp.drop": "udp"},
	Image:       "busybox:1.36",
	ImageID:     image,
	ImageLabels: map[string]string{"from": "image"},
	ImageKnown:  true,
	Running:     true,
	Pid:         16889,
	StartedAt:   time.Date(2026, 11, 22, 14, 49, 18, 276836289, time.UTC),
	SandboxID:   "6d50dc32f8fe9e05ba8e138b85658e1c0214ea018b13e640820c6099f83b65ec",
	SandboxKey:  "/var/run/docker/netns/6d50dc32f8fe",
	NetworkMode: "shop",
	Networks: []docker.Endpoint{{
		Network:    "bridge",
		NetworkID:  "9fd93343ee7cfe12c0e9b006514a0949bf89547bcbc7397c771255879e920073",
		Driver:     "bridge",
		EndpointID: "4ec82b64ee608940bff27dcf87c7ef8bde9e3bf01d8bf95e786a27950a7b69b2",
		MAC:        net.HardwareAddr{0, 0, 0x5e, 0, 0x53, 2},
		Addrs:      []netip.Addr{netip.MustParseAddr("203.0.113.2")},
		Gateways:   []netip.Addr{netip.MustParseAddr("203.0.113.1")},
	}, {
		Network:    "shop",
		NetworkID:  "210fd8ef9eebd0c5e9131908e9c1b4d7f27bcd748f8039d2102cd02502d3e944",
		Driver:     "macvlan",
		EndpointID: "b0b07c7c4b9ed7ec93573aca316b04eea2bf1765f27a6ec3270eef24b2aa6fbe",
		MAC:        net.HardwareAddr{0, 0, 0x5e, 0, 0x53, 1},
		Addrs:      []netip.Addr{netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8:1::2")},
		Gateways:   []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:1::1")},
	}},
	CapAdd:    []string{"NET_ADMIN"},
	Runtime:   "runc",
	DNS:       []string{"192.0.2.53"},
	Published: true,
}

var compare = cmp.Options{cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()}

func TestInspect(t *testing.T) {
	// An engine 29, asked in the newest version that both know, gave no gateway for a network without one.
	web29 := web
	web29.Networks = slices.Clone(web.Networks)
	web29.Networks[1].Gateways = nil
	for version, want := range map[string]docker.Container{"20.10": web, "29": web29} {
		t.Run(version, func(t *testing.T) {
			e, ctx := engine(t)
			e.Put(web)
			e.PutRaw(web.ID, recorded(t, version))
			if version == "29" {
				e.SetAPIVersion("1.51")
				e.Handle("/images/", ofPlatforms(manifest, "linux"))
			}
			c := connect(ctx, t)
			for range 2 { // the second time from the caches
				got, err := c.Inspect(ctx, web.ID)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(want, got, compare); d != "" {
					t.Error(d)
				}
			}
			count := func(suffix string) (n int) {
				for _, r := range e.Requests() {
					if strings.HasSuffix(r, suffix) {
						n++
					}
				}
				return n
			}
			if n := count("/networks"); n != 1 {
				t.Errorf("networks were listed %d times, want once", n)
			}
			if n := count(image + "/json"); n != 1 {
				t.Errorf("the image was inspected %d times, want once", n)
			}
		})
	}
}

func recorded(t *testing.T, version string) string {
	t.Helper()
	text, err := os.ReadFile("testdata/inspect-" + version + ".json")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// manifest is the one of several in image from which inspect-29.json was made.
const manifest = "sha256:a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1"

// ofPlatforms answers for an image that holds manifest for amd64, and another whose labels are what an engine shows that
// is not told which one is meant.
func ofPlatforms(manifest, os string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		digest, label := image, "other"
		if strings.Contains(r.URL.Query().Get("platform"), `"amd64"`) {
			digest, label = manifest, "image"
		}
		_ = json.NewEncoder(w).Encode(map[string]any{
			"Id": digest, "Os": os, "Descriptor": map[string]any{"digest": digest},
			"Config": map[string]any{"Labels": map[string]string{"from": label}},
		})
	}
}

// Only the labels of the very manifest that a container was made from are its image's.
func TestImageOfPlatforms(t *testing.T) {
	for name, tc := range map[string]struct {
		api, manifest, os string
		known             bool
	}{
		"that one":         {"1.51", manifest, "linux", true},
		"another":          {"1.51", "sha256:" + id("b"), "linux", false},
		"its content gone": {"1.51", manifest, "", false},
		"cannot be told":   {"1.48", manifest, "linux", false},
	} {
		t.Run(name, func(t *testing.T) {
			e, ctx := engine(t)
			e.Put(web)
			e.SetAPIVersion(tc.api)
			e.PutRaw(web.ID, recorded(t, "29"))
			e.Handle("/images/", ofPlatforms(tc.manifest, tc.os))
			listed := `[{"Id":"` + web.ID + `","Names":["/web"],"ImageID":"` + image + `","ImageManifestDescriptor":{"digest":"` + manifest + `","platform":{"os":"linux","architecture":"amd64"}}}]`
			e.Handle("/containers/json", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(listed)) })
			c := connect(ctx, t)
			for what, ask := range map[string]func(context.Context, string) (docker.Container, error){"inspect": c.Inspect, "outline": c.Outline} {
				got, err := ask(ctx, web.ID)
				if err != nil || got.ImageKnown != tc.known || tc.known != (got.ImageLabels["from"] == "image") {
					t.Errorf("%s: known %v, labels %v, error %v", what, got.ImageKnown, got.ImageLabels, err)
				}
			}
		})
	}
}

func TestInspectStates(t *testing.T) {
	created := docker.Container{ID: id("a"), Name: "new", NetworkMode: "default", Networks: []docker.Endpoint{{Network: "bridge", Driver: "bridge"}}}
	host := docker.Container{ID: id("b"), Name: "h", NetworkMode: "host", SandboxKey: "/var/run/docker/netns/default", Privileged: true}
	joiner := docker.Container{ID: id("c"), Name: "j", NetworkMode: "container:" + web.ID}
	gone := docker.Container{ID: id("d"), Name: "g", ImageID: "sha256:" + id("0")}
	e, ctx := engine(t)
	for _, c := range []docker.Container{web, created, host, joiner, gone} {
		e.Put(c)
	}
	c := connect(ctx, t)
	for _, want := range []docker.Container{created, host, joiner, gone} {
		got, err := c.Inspect(ctx, want.ID)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, compare); d != "" {
			t.Errorf("%s: %s", want.Name, d)
		}
	}
}

func TestInspectRestarting(t *testing.T) {
	e, ctx := engine(t)
	e.PutRaw(id("a"), `{"Id":"`+id("a")+`","State":{"Status":"restarting","Running":true,"Restarting":true,"Pid":0},"HostConfig":{"CapAdd":["net_raw","CAP_SYS_ADMIN","ALL"]},"Config":{},"NetworkSettings":{}}`)
	got, err := connect(ctx, t).Inspect(ctx, id("a"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Running {
		t.Error("a container without a process is Running")
	}
	if d := cmp.Diff([]string{"NET_RAW", "SYS_ADMIN", "ALL"}, got.CapAdd); d != "" {
		t.Error(d)
	}
}

func TestInspectErrors(t *testing.T) {
	e, ctx := engine(t)
	e.Put(web)
	c := connect(ctx, t)
	if _, err := c.Inspect(ctx, id("0")); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "000000000000") {
		t.Errorf("missing container: %v, want not found with its id", err)
	}
	for _, status := range []int{http.StatusInternalServerError, http.StatusForbidden} {
		e.Handle("/containers/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		if _, err := c.Inspect(ctx, web.ID); err == nil || errdefs.IsNotFound(err) {
			t.Errorf("status %d: %v, want an error that is not 'not found'", status, err)
		}
	}
	for name, answer := range unfit(t) {
		e.Handle("/containers/", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(answer)) })
		if got, err := c.Inspect(ctx, web.ID); err == nil {
			t.Errorf("%s became a container: %+v", name, got)
		}
	}
	e.Handle("/containers/", nil)
	if _, err := c.Inspect(ctx, web.ID); err != nil {
		t.Errorf("after the errors: %v", err)
	}
}

// unfit are answers to an inspection of web that do not describe it.
func unfit(t *testing.T) map[string]string {
	t.Helper()
	full := recorded(t, "20.10")
	out := map[string]string{
		"an empty answer": "{}", "nothing": "", "null": "null", "an answer that is cut off": full[:len(full)/2],
		"another container": strings.ReplaceAll(full, web.ID, id("a")),
	}
	for _, part := range []string{"State", "Config", "HostConfig", "NetworkSettings"} {
		var answer map[string]any
		if err := json.Unmarshal([]byte(full), &answer); err != nil || answer[part] == nil {
			t.Fatalf("%s is not there: %v", part, err)
		}
		delete(answer, part)
		text, err := json.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		out["an answer without "+part] = string(text)
		if part == "State" {
			answer[part] = map[string]any{}
			if text, err = json.Marshal(answer); err != nil {
				t.Fatal(err)
			}
			out["an answer with nothing of the state"] = string(text)
		}
	}
	return out
}

// An image that the engine does not show is unknown; one that it did not get to show is an error.
func TestImageUnknown(t *testing.T) {
	e, ctx := engine(t)
	e.Put(web)
	c := connect(ctx, t)
	for _, status := range []int{http.StatusNotFound, http.StatusForbidden, http.StatusInternalServerError} {
		e.Handle("/images/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		got, err := c.Inspect(ctx, web.ID)
		if err != nil || got.ImageKnown || got.ImageLabels != nil {
			t.Errorf("status %d: known %v, labels %v, error %v", status, got.ImageKnown, got.ImageLabels, err)
		}
	}
	short, cancel := context.WithCancel(ctx)
	e.Handle("/images/", func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() })
	if _, err := c.Inspect(short, web.ID); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v, want canceled", err)
	}
	e.Handle("/images/", nil)
	if got, err := c.Inspect(ctx, web.ID); err != nil || !got.ImageKnown {
		t.Errorf("afterwards: known %v, error %v", got.ImageKnown, err)
	}
}

func TestList(t *testing.T) {
	e, ctx := engine(t)
	e.Put(web)
	c := connect(ctx, t)
	got, err := c.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []docker.Summary{{ID: web.ID, Name: "web", Labels: web.Labels, State: "running", ImageID: image, Image: web.Image, NetworkMode: "shop"}}
	for _, ep := range web.Networks {
		ep.Driver = ""
		want[0].Networks = append(want[0].Networks, ep)
	}
	if d := cmp.Diff(want, got, compare); d != "" {
		t.Error(d)
	}
	for body, ok := range map[string]bool{
		"[]":   true,
		"null": true,
		`[{"Id":"` + id("a") + `","Names":["/web/db","/db"]}]`: true,
		`[{"Id":"../../etc"}]`:                                 false,
		`garbage`:                                              false,
	} {
		e.Handle("/containers/json", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) })
		got, err := c.List(ctx)
		if (err == nil) != ok {
			t.Errorf("%s: error %v", body, err)
		}
		if len(got) == 1 && got[0].Name != "db" {
			t.Errorf("%s: name %q, want the container's own, db", body, got[0].Name)
		}
	}
}

// What can be known of a container while its start keeps an inspect waiting.
func TestOutline(t *testing.T) {
	e, ctx := engine(t)
	e.Put(web)
	e.Handle("/info", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"ServerVersion":"29.6.2","Runtimes":{"runc":{},"kata":{}},"SecurityOptions":["name=userns"]}`))
	})
	c := connect(ctx, t)
	e.Handle("/containers/"+web.ID, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	got, err := c.Outline(ctx, web.ID)
	want := docker.Container{
		ID: web.ID, Name: web.Name, Labels: web.Labels, Image: web.Image, ImageID: web.ImageID, ImageLabels: web.ImageLabels, ImageKnown: true,
		NetworkMode: web.NetworkMode, Networks: web.Networks,
		MayRun: []string{"kata", "runc"}, MayRemap: true, FromHost: docker.AllFromHost,
	}
	if d := cmp.Diff(want, got, compare); d != "" || err != nil {
		t.Error(err, d)
	}
	moved := web
	moved.Image = web.ImageID // as a list says where the name is another image's by now
	e.Put(moved)
	if got, err := c.Outline(ctx, web.ID); err != nil || got.Image != "" {
		t.Errorf("image %q, %v", got.Image, err)
	}
	e.Put(web)
	if _, err := c.Outline(ctx, id("9")); !errdefs.IsNotFound(err) {
		t.Errorf("no such container: %v", err)
	}
	e.Handle("/containers/json", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	if _, err := c.Outline(ctx, web.ID); err == nil || errdefs.IsNotFound(err) {
		t.Errorf("a list that fails: %v", err)
	}
}

// A container that is starting answers late; nobody else waits for it.
func TestSlowInspect(t *testing.T) {
	e, ctx := engine(t)
	e.Put(web)
	e.Put(docker.Container{ID: id("a"), Name: "other"})
	c := connect(ctx, t)
	e.Handle("/containers/"+web.ID, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	slow, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() {
		_, err := c.Inspect(slow, web.ID)
		done <- err
	}()
	e.WaitRequest("/containers/" + web.ID)
	if l, err := c.List(ctx); err != nil || len(l) != 2 {
		t.Errorf("list: %v, %v", l, err)
	}
	if _, err := c.Inspect(ctx, id("a")); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("slow inspect: %v, want canceled", err)
	}
}

func TestVersionIsNegotiatedAnew(t *testing.T) {
	e, ctx := engine(t)
	for _, version := range []string{"1.41", "1.51", "1.43"} {
		e.SetAPIVersion(version)
		c := connect(ctx, t)
		info, err := c.Info(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if info.APIVersion != version {
			t.Errorf("agreed on %s, the engine speaks %s", info.APIVersion, version)
		}
		if last := e.Requests()[len(e.Requests())-1]; last != "GET /v"+version+"/info" {
			t.Errorf("asked %q", last)
		}
		c.Close()
		e.Stop()
		e.Start()
	}
	t.Setenv("DOCKER_API_VERSION", "1.42")
	if info, err := connect(ctx, t).Info(ctx); err != nil || info.APIVersion != "1.42" {
		t.Errorf("DOCKER_API_VERSION=1.42: %q, %v", info.APIVersion, err)
	}
}

func TestInfo(t *testing.T) {
	e, ctx := engine(t)
	e.Handle("/info", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"ServerVersion":"28.5.2","CgroupVersion":"2","DefaultRuntime":"kata","Runtimes":{"runc":{"path":"runc"},"kata":{"path":"kata-runtime"}},"SecurityOptions":["name=seccomp,profile=builtin","name=rootless","name=userns,x=y"]}`))
	})
	got, err := connect(ctx, t).Info(ctx)
	want := docker.Info{ServerVersion: "28.5.2", APIVersion: "1.41", CgroupVersion: "2", DefaultRuntime: "kata", Runtimes: []string{"kata", "runc"}, Rootless: true, UserNS: true}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	// What was started without a runtime has the engine's.
	e.Put(docker.Container{ID: id("1"), ImageKnown: true})
	if c, err := connect(ctx, t).Inspect(ctx, id("1")); err != nil || c.Runtime != "kata" {
		t.Errorf("runtime %q, %v", c.Runtime, err)
	}
	e.Handle("/info", nil)
	if got, err := connect(ctx, t).Info(ctx); err != nil || got.Rootless || got.UserNS {
		t.Errorf("%+v, %v", got, err)
	}
}

// Through a filtering socket proxy nothing but reading is possible.
func TestOnlyReads(t *testing.T) {
	e, ctx := engine(t)
	e.Put(web)
	c := connect(ctx, t)
	s := c.Watch(ctx)
	e.WaitStreams(1)
	_, listErr := c.List(ctx)
	_, inspectErr := c.Inspect(ctx, web.ID)
	_, infoErr := c.Info(ctx)
	_, outlineErr := c.Outline(ctx, web.ID)
	_, attachedErr := c.Attachments(ctx, web.Networks[0].NetworkID)
	if err := errors.Join(listErr, inspectErr, infoErr, outlineErr, attachedErr); err != nil {
		t.Fatal(err)
	}
	s.Close()
	drain(s)
	for _, r := range e.Requests() {
		if !strings.HasPrefix(r, "GET ") && r != "HEAD /_ping" {
			t.Errorf("asked %q", r)
		}
	}
}

func TestConnectErrors(t *testing.T) {
	dir, err := os.MkdirTemp("", "vethwall-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	for _, tc := range []struct {
		name, host, want string
		is               error
	}{
		{"no socket", "unix:///nonexistent/docker.sock", "no socket at /nonexistent/docker.sock: start Docker, or set DOCKER_HOST", fs.ErrNotExist},
		{"nobody listens", "unix://" + dead, "start Docker, or set DOCKER_HOST", syscall.ECONNREFUSED},
		{"tcp, nobody listens", "tcp://127.0.0.1:1", "start Docker, or set DOCKER_HOST", syscall.ECONNREFUSED},
		{"no scheme", "docker.sock", "check DOCKER_HOST", nil},
		{"ssh", "ssh://docker.example", "the engine's own host", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("DOCKER_HOST", tc.host)
			_, err := docker.Connect(t.Context())
			oneLine(t, err, tc.want)
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("%v is not %v", err, tc.is)
			}
		})
	}
}

func TestConnectAnswers(t *testing.T) {
	e, ctx := engine(t)
	for name, tc := range map[string]struct {
		h    http.HandlerFunc
		want string
	}{
		"error":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, "check DOCKER_HOST"},
		"forbidden": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, "check DOCKER_HOST"},
		"no engine": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Del("Api-Version") }, "no Docker engine"},
		"no http": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			_, _ = conn.Write([]byte("garbage\n\n"))
			_ = conn.Close()
		}, "check DOCKER_HOST"},
	} {
		t.Run(name, func(t *testing.T) {
			e.Handle("/_ping", tc.h)
			_, err := docker.Connect(ctx)
			oneLine(t, err, tc.want)
		})
	}
	t.Run("hangs", func(t *testing.T) {
		e.Handle("/_ping", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		_, err := docker.Connect(short)
		oneLine(t, err, "no answer")
	})
	t.Run("answers again", func(t *testing.T) {
		e.Handle("/_ping", nil)
		connect(ctx, t)
	})
}

func oneLine(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v, want one line with %q", err, want)
	}
}
