package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vethwall/vethwall/docker"
)

// configure puts a configuration into force.
func (r *rig) configure(yaml string) {
	conf := parseConfig(r.t, yaml)
	r.agent.tell(func() { r.agent.configure(conf) })
	synctest.Wait()
}

func TestReload(t *testing.T) {
	c, free := box(10, true, "xdp.drop=udp"), box(20, true)
	const free20 = "enforced [bridge enforced 20:open]"
	inTime(t, []docker.Container{c, free}, nil, func(r *rig) {
		r.want(free, "none")
		r.configure("floor: {xdp.drop: metadata}")
		r.want(c, enforced10)
		r.want(free, free20)
		if got := r.kernel.record(c.ID).Policy; got != "floor(xdp.drop=metadata) labels(xdp.drop=udp)" {
			t.Errorf("policy %q", got)
		}
		if got := r.kernel.record(free.ID).Policy; got != "floor(xdp.drop=metadata)" {
			t.Errorf("policy %q", got)
		}

		// Two policies pick one container: it is closed, and the other is not.
		const two = "policies: [{pick: {name: box10}, labels: {xdp.drop: udp}}, {pick: {name: 'box1*'}, labels: {xdp.drop: tcp}}]\n"
		r.configure(floorMetadata + two)
		r.want(c, quarantined10)
		r.want(free, free20)
		if got := r.kernel.record(c.ID).Error; !strings.Contains(got, "{name: box10}") || !strings.Contains(got, "{name: box1*}") {
			t.Errorf("error %q", got)
		}
		r.configure(two)
		r.want(c, quarantined10)
		r.want(free, "none")
		r.device(20, "")
		if !r.said("INFO", "not filtered any more") {
			t.Error("the log does not say that a container is not filtered any more")
		}

		r.configure("policies: [{pick: {name: box10}, replace: true, labels: {xdp.enable: false}}]")
		r.want(c, "none")
		r.device(10, "")
		r.configure("{}")
		r.want(c, enforced10)
		r.want(free, "none")
	})
}

// What starts under a floor is filtered, and what is renamed is picked by its new name.
func TestConfiguredStart(t *testing.T) {
	created := box(10, false)
	inTime(t, nil, func(r *rig) {
		r.conf = "floor: {xdp.drop: metadata}\npolicies: [{pick: {name: other}, labels: {xdp.drop: udp}}]"
	}, func(r *rig) {
		r.happens(created, docker.ActionCreate)
		up := started(created, 10)
		r.happens(up, docker.ActionStart)
		r.want(up, enforced10)
		up.Name = "other"
		r.happens(up, docker.ActionRename)
		if got := r.kernel.record(up.ID).Policy; got != "floor(xdp.drop=metadata) config(xdp.drop=udp)" {
			t.Errorf("policy %q", got)
		}
		down := up
		down.Running = false
		r.happens(down, docker.ActionDie)
		r.want(down, "none")
		if r.kernel.count("detach 10") > 0 {
			t.Error("a container that has ended is detached from")
		}
	})
}

// A container that an agent with another configuration had filtered is let go by the next one.
func TestReleaseAtStart(t *testing.T) {
	free := box(20, true)
	inTime(t, []docker.Container{free}, func(r *rig) {
		r.kernel.attached[20] = "open"
		r.kernel.records[free.ID] = Record{ID: free.ID, State: Enforced, Policy: "floor(xdp.drop=udp)"}.encode()
	}, func(r *rig) {
		r.want(free, "none")
		r.device(20, "")
	})
}

// One that cannot be let go keeps its record, and is tried again; the veths of an owner are no matter of a joiner.
func TestReleaseFails(t *testing.T) {
	free := box(20, true)
	joiner := started(docker.Container{ID: strings.Repeat("e", 64), Name: "joiner", ImageKnown: true, NetworkMode: "container:" + free.ID}, 20)
	joiner.SandboxKey = free.SandboxKey
	inTime(t, []docker.Container{free}, func(r *rig) {
		r.conf = floorMetadata
		r.kernel.fail["detach 20"] = errors.New("no")
		r.engine.containers[joiner.ID] = joiner
	}, func(r *rig) {
		r.configure("{}")
		r.want(free, "enforced [bridge enforced 20:open]")
		r.want(joiner, "none")
		if n := r.kernel.count("detach 20"); n != 1 {
			t.Errorf("%d times detached", n)
		}
		r.kernel.set(func() { delete(r.kernel.fail, "detach 20") })
		r.after(resync + time.Second)
		r.want(free, "none")
		r.device(20, "")
	})
}

// Hook, resolvers and addresses of the configuration reach the containers, also those that are not its own.
func TestReloadReachesGroups(t *testing.T) {
	c := box(10, true, "xdp.drop=host")
	inTime(t, []docker.Container{c}, func(r *rig) {
		r.engine.networks = []docker.Network{netOf("192.0.2.0/24", "192.0.2.1")}
	}, func(r *rig) {
		before := r.kernel.last[10].Policy
		r.configure("host_addresses: 203.0.113.7\nconversations: 4096")
		if r.kernel.last[10].Policy == before {
			t.Error("the policy has not changed")
		}
		r.configure("{}")
		if n, back := r.kernel.count("bound 4096"), r.kernel.count("bound 16384"); n != 1 || back != 1 {
			t.Errorf("bounded %d times, and %d times as without a configuration", n, back)
		}
	})
}

// writer changes a configuration that is followed.
type writer struct {
	t    *testing.T
	path string
	log  *lockedBuffer
	conf chan string
}

// newWriter follows a file that is not there yet.
func newWriter(t *testing.T, path string, again chan os.Signal) *writer {
	w := &writer{t, path, &lockedBuffer{}, make(chan string, 10)}
	a := &agent{kernel: newFakeKernel(), log: slog.New(slog.NewTextHandler(w.log, nil)), news: make(chan func(), 10), ended: make(chan struct{})}
	f := &configFile{path: path}
	if _, _, err := f.look(); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.follow(ctx, again, func() {
			a.reload(f)
			for range len(a.news) {
				(<-a.news)()
				w.conf <- fmt.Sprint(a.around.conf.DNS)
			}
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

func (w *writer) becomes(want string) {
	w.t.Helper()
	select {
	case got := <-w.conf:
		if got != want {
			w.t.Errorf("%s, want %s", got, want)
		}
	case <-time.After(2 * resync):
		w.t.Fatalf("no new configuration; the log:\n%s", w.log)
	}
}

// says waits for a line of the log.
func (w *writer) says(text string) {
	w.t.Helper()
	for end := time.Now().Add(2 * resync); !strings.Contains(w.log.String(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("the log does not say %q:\n%s", text, w.log)
		}
	}
}

func (w *writer) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func TestFollow(t *testing.T) {
	dir := t.TempDir()
	again := make(chan os.Signal)
	w := newWriter(t, filepath.Join(dir, "config.yaml"), again)
	w.must(os.WriteFile(w.path, []byte("dns: 192.0.2.1"), 0o644))
	w.becomes("[192.0.2.1]")

	// As editors do.
	w.must(os.WriteFile(w.path+"~", []byte("dns: 192.0.2.2"), 0o644))
	w.must(os.Rename(w.path+"~", w.path))
	w.becomes("[192.0.2.2]")

	// What is wrong changes nothing, and what is right again is in force.
	w.must(os.WriteFile(w.path, []byte("dns: 192.0.2.3\nhook: xpd\nfloor: {xdp.drop: 443}\n"), 0o644))
	w.says("line=2 column=7 why=")
	w.says("line=3 column=19 why=\"a bare port, expected a protocol beside it; write 443/tcp")
	w.says("the one before stays in force")
	w.must(os.Remove(w.path))
	w.says("no such file")
	w.must(os.WriteFile(w.path, []byte("\n# dns: 192.0.2.3\n"), 0o644))
	w.says("a file without content")
	w.must(os.WriteFile(w.path, []byte("dns: 192.0.2.4"), 0o644))
	w.becomes("[192.0.2.4]")
	w.must(os.Chmod(w.path, 0o666))
	w.says("chmod go-w")
	w.must(os.Chmod(w.path, 0o644))
	w.becomes("[192.0.2.4]")
	again <- syscall.SIGHUP
	w.becomes("[192.0.2.4]")
	if n := strings.Count(w.log.String(), "stays in force"); n != 4 {
		t.Errorf("rejected %d times:\n%s", n, w.log)
	}
}

// A directory that is made later, and one that is a symlink to a version, as Kubernetes mounts it.
func TestFollowSymlinks(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, filepath.Join(dir, "vethwall", "config.yaml"), nil)
	for version, text := range []string{"dns: 192.0.2.1", "dns: 192.0.2.2"} {
		name := fmt.Sprintf("version%d", version)
		w.must(os.MkdirAll(filepath.Join(dir, "vethwall", name), 0o755))
		w.must(os.WriteFile(filepath.Join(dir, "vethwall", name, "config.yaml"), []byte(text), 0o644))
		w.must(os.Symlink(name, filepath.Join(dir, "vethwall", "..new")))
		w.must(os.Rename(filepath.Join(dir, "vethwall", "..new"), filepath.Join(dir, "vethwall", "..data")))
		if version == 0 {
			w.must(os.Symlink("..data/config.yaml", w.path))
		}
		w.becomes(fmt.Sprintf("[192.0.2.%d]", version+1))
	}
}

// TestReleaseWithoutNetwork lets a container go that has no network and whom the floor had closed the engine's resolver to: when it joins one, or another
// agent comes, nobody would look there.
func TestReleaseWithoutNetwork(t *testing.T) {
	c := box(10, true)
	c.FromHost, c.NetworkMode, c.Networks = docker.AllFromHost, "none", nil
	inTime(t, []docker.Container{c}, func(r *rig) {
		r.conf = "floor: {xdp.drop: udp}"
		r.kernel.namespaces[c.SandboxKey] = nil
	}, func(r *rig) {
		r.resolver(c, resolverClosed{udp: true})
		r.configure("{}")
		r.want(c, "none")
		r.resolver(c, resolverClosed{})
	})
}
