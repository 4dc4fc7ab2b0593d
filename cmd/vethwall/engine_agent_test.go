package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// flood lets a filtered container send all the time to a sink that must see none of it.
type flood struct {
	v    *enginetest.Vethwall
	c    *enginetest.Container
	tr   *traffic
	last uint64
}

// newFlood starts a container that may not send udp, and does, once it is filtered.
func newFlood(t *testing.T, v *enginetest.Vethwall, tr *traffic, image string, options ...string) *flood {
	t.Helper()
	f := &flood{v: v, tr: tr, c: v.With(t).Start(image, "flood", options)}
	awaitFilter(t, v, f.c.Name, 1)
	v.With(t).Run("exec", "--detach", f.c.ID, "/peer", "loop-send", addrA4+":53", "flood")
	return f
}

// blocked says that packets were dropped since the last time it was asked, and that none has ever passed.
func (f *flood) blocked(t *testing.T) {
	t.Helper()
	s := await(t, f.v, f.c.Name, "sends and is dropped", func(s agent.ContainerStatus) bool { return drops(s) > f.last })
	f.last = drops(s)
	f.tr.shows(t, f.c, deniedUDP, allowedUDP)
	if n := f.tr.sinks["A"].With(f.v.Docker.With(t)).Count("flood"); n > 0 {
		t.Errorf("%d packets got through", n)
	}
}

// isHurried says that an agent which leads a session, as a service does, goes before others: each of its threads, and the session.
func isHurried(t *testing.T, pid int) {
	t.Helper()
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	threads, err := os.ReadDir(filepath.Join(proc, "task"))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		id, _ := strconv.Atoi(thread.Name())
		// The system call says 20 less the nice value.
		if got, err := unix.Getpriority(unix.PRIO_PROCESS, id); err != nil || 20-got != niceness {
			t.Errorf("thread %d has a nice value of %d, %v", id, 20-got, err)
		}
	}
	group, err := os.ReadFile(filepath.Join(proc, "autogroup"))
	if err == nil && !strings.HasSuffix(string(group), fmt.Sprintf(" nice %d\n", niceness)) || err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its session: %q, %v", group, err)
	}
}

// TestAgentEnds takes the agent away in every way and brings it back.
func TestAgentEnds(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	v.StartAgent()
	f := newFlood(t, v, tr, image, labelled(network, "xdp.drop=udp")...)
	first := awaitFilter(t, v, f.c.Name, 1)
	same := func(t *testing.T) {
		t.Helper()
		if s, _ := statusOf(t, v, f.c.Name); !slices.Equal(linkIDs(s), linkIDs(first)) {
			t.Errorf("links %v, want %v: %+v", linkIDs(s), linkIDs(first), s)
		}
		f.blocked(t)
	}
	same(t)

	t.Run("its priority", func(t *testing.T) { isHurried(t, v.AgentPid()) })
	t.Run("a second agent", func(t *testing.T) {
		refused(t, v.Ask("agent"), "another vethwall agent runs")
		refused(t, v.Ask("uninstall"), "stop it first")
		same(t)
	})
	t.Run("SIGTERM", func(t *testing.T) {
		if code := v.EndAgent(syscall.SIGTERM); code != 0 || !strings.Contains(v.Log(), "the filters stay in force") || !strings.Contains(v.Log(), "vethwall uninstall") {
			t.Errorf("exit code %d: %s", code, v.Log())
		}
		same(t)
		a := v.Ask("status", f.c.Name)
		if a.Code != 0 || !strings.Contains(a.Stdout, "enforced") && !strings.Contains(a.Stdout, "late") || !strings.Contains(a.Stderr, "no agent runs") {
			t.Errorf("status without an agent: %+v", a)
		}
		v.StartAgent()
		same(t)
	})
	t.Run("kill -9", func(t *testing.T) {
		if code := v.EndAgent(syscall.SIGKILL); code != -1 {
			t.Errorf("exit code %d", code)
		}
		same(t)
		v.StartAgent()
		same(t)
	})
	t.Run("damaged state", func(t *testing.T) {
		v.EndAgent(syscall.SIGKILL)
		damage(t, v, f.c.ID)
		if s, _ := statusOf(t, v, f.c.ID); s.State != agent.Pending || !strings.Contains(s.Error, "damaged") {
			t.Errorf("status of a damaged record: %+v", s)
		}
		for _, pattern := range []string{"maps-*/nodes", "maps-*/policies"} {
			pins, err := filepath.Glob(filepath.Join(v.Dir, pattern))
			if err != nil || len(pins) != 1 || os.Remove(pins[0]) != nil {
				t.Fatal(pins, err)
			}
		}
		v.StartAgent()
		if log := v.Log(); !strings.Contains(log, "maps are damaged") || !strings.Contains(log, "nodes, policies") {
			t.Errorf("the log does not say what is damaged: %s", log)
		}
		awaitFilter(t, v, f.c.Name, 1)
		f.last = 0
		same(t)
		settled(t, v)
	})
	t.Run("meanwhile", func(t *testing.T) {
		v := v.With(t)
		ends := v.Start(image, "ends", labelled(network, "xdp.drop=udp"))
		awaitFilter(t, v, ends.Name, 1)
		v.EndAgent(syscall.SIGKILL)
		v.Run("rm", "--force", ends.ID)
		begins := v.Start(image, "begins", labelled(network, "xdp.drop=udp"))
		if a := v.Ask("status", begins.Name); a.Code != 1 || !strings.Contains(a.Stdout, "NOT FILTERED") {
			t.Errorf("status of what no agent has seen: %+v", a)
		}
		v.With(t).Wait("the end of what the agent held", func() error {
			if !strings.Contains(v.MustAsk("status", "-o", "json"), `"by": "none"`) {
				return errors.New("it holds")
			}
			return nil
		})
		tr.shows(t, begins, nil, append(deniedUDP, allowedUDP...))
		v.StartAgent()
		if s := awaitFilter(t, v, begins.Name, 1); s.State != agent.Late || s.Interfaces[0].Late == 0 {
			t.Errorf("it had sent and is not called late: %+v", s)
		}
		tr.shows(t, begins, deniedUDP, allowedUDP)
		awaitGone(t, v, ends.Name)
		settled(t, v)
		same(t)
	})
	t.Run("uninstall", func(t *testing.T) {
		v.EndAgent(syscall.SIGTERM)
		v.MustAsk("uninstall")
		if with := v.With(t).Filtered(); len(with) > 0 {
			t.Errorf("programs on %v", with)
		}
		if _, err := os.Stat(v.Dir); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", v.Dir, err)
		}
		v.With(t).Wait("what was dropped all the time arrives", func() error {
			if tr.sinks["A"].With(v.Docker.With(t)).Count("flood") == 0 {
				return errors.New("it does not")
			}
			return nil
		})
		v.MustAsk("uninstall") // of nothing
	})
	t.Run("no engine", func(t *testing.T) {
		v.Engine.With(t).Down()
		refused(t, v.Ask("agent"), "docker.sock")
		if _, err := os.Stat(v.Dir); !os.IsNotExist(err) {
			t.Errorf("half done: %s is there: %v", v.Dir, err)
		}
	})
}

// damage writes what nobody can read into the records of a container, and of one that there is not, and pins what is no
// link among the links.
func damage(t *testing.T, v *enginetest.Vethwall, id string) {
	t.Helper()
	pins, err := filepath.Glob(filepath.Join(v.Dir, "maps-*", "containers"))
	if err != nil || len(pins) != 1 {
		t.Fatal(pins, err)
	}
	m, err := ebpf.LoadPinnedMap(pins[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	for _, name := range []string{id, strings.Repeat("ab", 32)} {
		key, err := hex.DecodeString(name)
		if err != nil {
			t.Fatal(err)
		}
		garbage := []byte(strings.Repeat("?", int(m.ValueSize())))
		for _, part := range []byte{0, 7} {
			if err := m.Put(append(slices.Clone(key), part, 0, 0, 0), garbage); err != nil {
				t.Fatal(err)
			}
		}
	}
	other, err := m.Clone()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	links := filepath.Join(v.Dir, "links")
	if err := errors.Join(other.Pin(filepath.Join(links, "77-xdp")), os.Mkdir(filepath.Join(links, "78-xdp"), 0o700)); err != nil {
		t.Fatal(err)
	}
}

// refused says that a command could not run, in one line, which holds text.
func refused(t *testing.T, a enginetest.Answer, text string) {
	t.Helper()
	if a.Code != 2 || a.Stdout != "" || strings.Count(a.Stderr, "\n") != 1 || !strings.Contains(a.Stderr, text) {
		t.Errorf("want exit code 2 and one line with %q, got %+v", text, a)
	}
}

// TestEngineEnds takes the engine away in every way; the agent lives through it.
func TestEngineEnds(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{"plain": nil, "live-restore": {"--live-restore"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := enginetest.Own(t, flags...).Install()
			image := v.Image()
			network, tr := twoSinks(t, v, image)
			v.StartAgent()
			always := append(labelled(network, "xdp.drop=udp"), "--restart", "always")
			for _, c := range []*enginetest.Container{tr.sinks["A"].Container, tr.sinks["B"].Container, tr.marker} {
				v.Run("update", "--restart", "always", c.ID)
			}
			f := newFlood(t, v, tr, image, always...)
			f.blocked(t)
			for _, end := range []struct {
				name string
				do   func()
			}{
				{"restart", v.Engine.Restart},
				{"down for a while", func() { v.Engine.Down(); v.AwaitLog("lost the engine"); v.Engine.Up() }},
				{"kill", func() { v.Engine.Kill(); v.Engine.Up() }},
			} {
				before := awaitFilter(t, v, f.c.Name, 1)
				end.do()
				tr.sinks["A"].WaitServing()
				after := awaitFilter(t, v, f.c.Name, 1)
				if flags != nil {
					if !slices.Equal(linkIDs(before), linkIDs(after)) {
						t.Errorf("%s: links %v became %v", end.name, linkIDs(before), linkIDs(after))
					}
					f.blocked(t)
				} else {
					await(t, v, f.c.Name, "is filtered on a new veth", func(s agent.ContainerStatus) bool {
						return filtered(s) && len(s.Interfaces) == 1 && s.Interfaces[0].Ifindex != before.Interfaces[0].Ifindex
					})
					tr.shows(t, f.c, deniedUDP, allowedUDP)
				}
				later := v.Start(image, "later", labelled(network, "xdp.drop=tcp"))
				awaitFilter(t, v, later.Name, 1)
				tr.shows(t, later, []string{"443/tcp@A"}, []string{"53/udp@A"})
				v.Run("rm", "--force", later.ID)
				settled(t, v)
			}
		})
	}
}
