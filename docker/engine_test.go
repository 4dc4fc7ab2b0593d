package docker_test

import (
	"context"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// TestEngine follows one container through its life.
func TestEngine(t *testing.T) {
	e := enginetest.Own(t)
	t.Setenv("DOCKER_HOST", "unix://"+e.Dir+"/docker.sock")
	d := e.Docker
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := connect(ctx, t)
	image := d.ImageWithLabels(map[string]string{"org.example": "image"})
	tag := image + "-tag"
	d.Run("tag", image, tag)
	net := d.Network("net", "--subnet", "198.51.100.0/24")

	s := c.Watch(ctx)
	defer func() { s.Close(); drain(s) }()
	box := d.Create(tag, "box", []string{"--network", net, "--label", "xdp.drop=udp", "--cap-add", "net_admin", "--dns", "192.0.2.53"})
	created := wait(ctx, t, s, box.ID, docker.ActionCreate)
	if created.Labels["xdp.drop"] != "udp" {
		t.Errorf("labels of the create event: %v", created.Labels)
	}
	got := inspect(ctx, t, c, box.ID)
	if got.Running || got.Name != box.Name || len(got.Networks) != 1 || got.Networks[0].Driver != "bridge" {
		t.Errorf("created: %+v", got)
	}
	if !got.ImageKnown || got.ImageLabels["org.example"] != "image" || got.Labels["org.example"] != "image" {
		t.Errorf("image: known %v, %v; all labels %v", got.ImageKnown, got.ImageLabels, got.Labels)
	}
	if !slices.Equal(got.CapAdd, []string{"NET_ADMIN"}) || !slices.Equal(got.DNS, []string{"192.0.2.53"}) {
		t.Errorf("CapAdd %v, DNS %v", got.CapAdd, got.DNS)
	}

	outline, err := c.Outline(ctx, box.ID)
	if err != nil || outline.Name != got.Name || outline.Image != tag || got.Image != tag || !maps.Equal(outline.Labels, got.Labels) || !outline.ImageKnown || len(outline.Networks) != 1 || outline.Networks[0].Driver != "bridge" {
		t.Errorf("outline: %+v, %v; inspect: %+v", outline, err, got)
	}

	d.Run("image", "rm", tag) // the image has another name still
	if outline, err = c.Outline(ctx, box.ID); err != nil || outline.Image != "" {
		t.Errorf("outline of an image whose name is gone: %q, %v", outline.Image, err)
	}

	d.Run("start", box.ID)
	connected := wait(ctx, t, s, box.ID, docker.ActionConnect)
	wait(ctx, t, s, box.ID, docker.ActionStart)
	got = inspect(ctx, t, c, box.ID)
	if !got.Running || got.Pid == 0 || got.StartedAt.IsZero() || !strings.HasSuffix(got.SandboxKey, "/netns/"+got.SandboxID[:12]) {
		t.Errorf("started: %+v", got)
	}
	if ep := got.Networks[0]; ep.NetworkID != connected.NetworkID || len(ep.MAC) != 6 || ep.Addrs[0] != box.Addr(net, 4) || len(ep.Gateways) != 1 {
		t.Errorf("endpoint %+v, connected to %s", ep, connected.NetworkID)
	}
	attached, err := c.Attachments(ctx, connected.NetworkID)
	if err != nil || len(attached) != 1 || attached[0].ContainerID != box.ID || attached[0].MAC.String() != got.Networks[0].MAC.String() || !slices.Equal(attached[0].Addrs, got.Networks[0].Addrs) {
		t.Errorf("attached: %+v, %v", attached, err)
	}
	d.Run("network", "connect", "bridge", box.ID)
	wait(ctx, t, s, box.ID, docker.ActionConnect)
	if got = inspect(ctx, t, c, box.ID); len(got.Networks) != 2 || got.Networks[0].Network != "bridge" {
		t.Errorf("networks: %+v", got.Networks)
	}
	list, err := c.List(ctx)
	if i := slices.IndexFunc(list, func(s docker.Summary) bool { return s.ID == box.ID }); err != nil || i < 0 || list[i].State != "running" || len(list[i].Networks) != 2 {
		t.Errorf("list: %+v, %v", list, err)
	}

	d.Run("rm", "--force", box.ID)
	wait(ctx, t, s, box.ID, docker.ActionDie)
	wait(ctx, t, s, box.ID, docker.ActionDestroy)
	if _, err := c.Inspect(ctx, box.ID); !errdefs.IsNotFound(err) {
		t.Errorf("removed: %v, want not found", err)
	}
	if info, err := c.Info(ctx); err != nil || info.ServerVersion == "" || info.CgroupVersion == "" {
		t.Errorf("%+v, %v", info, err)
	}
}

// TestEngineImageOfPlatforms: an image's labels are those of the platform that the container was made for.
func TestEngineImageOfPlatforms(t *testing.T) {
	if os.Getenv(enginetest.BuiltVar) == "" {
		t.Skipf("Debian's engine keeps one platform of an image: set %s", enginetest.BuiltVar)
	}
	e := enginetest.Own(t)
	t.Setenv("DOCKER_HOST", "unix://"+e.Dir+"/docker.sock")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := connect(ctx, t)
	own, foreign := map[string]string{"of": "own"}, map[string]string{"of": "foreign", "xdp.drop": "udp"}
	image := e.ImageOfPlatforms(map[string]map[string]string{runtime.GOARCH: own, "s390x": foreign})
	for platform, want := range map[string]map[string]string{"": own, "linux/" + runtime.GOARCH: own, "linux/s390x": foreign} {
		box := e.Create(image, "box-"+path.Base(platform), []string{"--platform", platform})
		for what, ask := range map[string]func(context.Context, string) (docker.Container, error){"inspect": c.Inspect, "outline": c.Outline} {
			if got, err := ask(ctx, box.ID); err != nil || !got.ImageKnown || !maps.Equal(got.ImageLabels, want) || !maps.Equal(got.Labels, want) {
				t.Errorf("%s of %q: known %v, labels %v, all %v, error %v", what, platform, got.ImageKnown, got.ImageLabels, got.Labels, err)
			}
		}
	}
}

// TestEngineGoesAway: a stream ends with its engine, and a new connection works with the next one.
func TestEngineGoesAway(t *testing.T) {
	e := enginetest.Own(t)
	t.Setenv("DOCKER_HOST", "unix://"+e.Dir+"/docker.sock")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, end := range []func(){e.Down, e.Kill} {
		e.Up()
		c := connect(ctx, t)
		s := c.Watch(ctx)
		if _, err := c.List(ctx); err != nil {
			t.Fatal(err)
		}
		end()
		drain(s)
		if s.Err() == nil || ctx.Err() != nil {
			t.Errorf("stream error %v, context %v", s.Err(), ctx.Err())
		}
		if _, err := docker.Connect(ctx); err == nil {
			t.Error("connected to an engine that is down")
		}
	}
}

func inspect(ctx context.Context, t *testing.T, c *docker.Client, id string) docker.Container {
	t.Helper()
	got, err := c.Inspect(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// wait reads on until the event comes; the engine's other containers are others' business.
func wait(ctx context.Context, t *testing.T, s *docker.Stream, id string, action docker.Action) docker.Event {
	t.Helper()
	for {
		select {
		case e, ok := <-s.C:
			if !ok {
				t.Fatalf("no event %s: %v", action, s.Err())
			}
			if e.ID == id && e.Action == action {
				return e
			}
		case <-ctx.Done():
			t.Fatalf("no event %s: %v", action, ctx.Err())
		}
	}
}
