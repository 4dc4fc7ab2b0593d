package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vethwall/vethwall/docker"
)

// asking are two containers of an engine that asks from the host: one may ask 192.0.2.53 alone, and one whomever the host names.
func asking(pid int) (one, any docker.Container) {
	one, any = box(pid, false, "xdp.egress.allow=53/udp@192.0.2.53,53/tcp@192.0.2.53"), box(pid+1, false, "xdp.egress.allow=dns")
	for _, c := range []*docker.Container{&one, &any} {
		c.NetworkMode, c.FromHost = "shop", docker.AllFromHost
	}
	return one, any
}

// become has the host's resolv.conf name others, of which a watch tells.
func (r *rig) become(servers ...string) {
	now := addrsOf(servers...)
	r.kernel.set(func() { r.kernel.host = &host{resolvers: now} })
	r.agent.tell(func() { r.agent.learnResolvers(now) })
	synctest.Wait()
}

// mayAsk fails the test where the resolver is not closed to c, by its id and in its namespace, or is not open.
func (r *rig) mayAsk(when string, c docker.Container, may bool) {
	r.t.Helper()
	r.kernel.set(func() {
		byID, inside := r.kernel.askers[c.ID].resolverClosed, r.kernel.resolvers[c.SandboxKey]
		if want := (resolverClosed{!may, !may}); byID != want || c.Running && inside != want {
			r.t.Errorf("%s: to %s closed %+v, inside %+v; want %+v", when, c.Name, byID, inside, want)
		}
	})
}

// TestResolverChangesAndOneStarts has the host's resolv.conf name another, or nobody, of which nobody tells, and a container start at once: by
// its port, while its process does not run yet, or, where no port was held, as soon as Docker has answered.
func TestResolverChangesAndOneStarts(t *testing.T) {
	for name, tc := range map[string]struct {
		now    []netip.Addr
		byPort bool
	}{
		"another, by its port":  {addrsOf("192.0.2.54"), true},
		"another, by an answer": {addrsOf("192.0.2.54"), false},
		"nobody, by its port":   {nil, true},
		"nobody, by an answer":  {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			one, any := asking(7)
			inTime(t, nil, func(r *rig) {
				listBridge(r)
				r.kernel.host = &host{resolvers: addrsOf("192.0.2.53")}
			}, func(r *rig) {
				for _, c := range []docker.Container{one, any} {
					r.happens(c, docker.ActionCreate)
					r.mayAsk("created", c, true)
				}
				r.kernel.set(func() { r.kernel.host = &host{resolvers: tc.now} })
				for i, c := range []docker.Container{one, any} {
					if pid := 7 + i; tc.byPort {
						r.process(70+i, pid, c.ID)
						r.attaches(itsEnd(c.ID))
						r.port(in(near(pid), pid), itsMAC)
						r.released(pid, true)
					} else {
						c = started(c, pid)
						r.happens(c, docker.ActionStart)
					}
					r.mayAsk("it starts", c, i == 1 && tc.now != nil) // where nobody is named the engine has others
				}
			})
		})
	}
}

// TestResolverChangesForAWhile has the host's resolv.conf name another for a moment. The engine may have read that, or what was before, for whoever
// starts a short time later, and asks it until that has ended.
func TestResolverChangesForAWhile(t *testing.T) {
	for name, tc := range map[string]struct{ before, meanwhile []string }{
		"one that may not be asked":          {[]string{"192.0.2.53"}, []string{"192.0.2.54"}},
		"one that may be asked is there now": {[]string{"192.0.2.54"}, nil},
		"nobody":                             {[]string{"192.0.2.53"}, []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			first, firstAny := asking(10)
			later, laterAny := asking(20)
			inTime(t, nil, func(r *rig) {
				listBridge(r)
				r.kernel.host = &host{resolvers: addrsOf(tc.before...)}
			}, func(r *rig) {
				r.become(tc.before...) // as the watch does at first
				if tc.meanwhile != nil {
					r.become(tc.meanwhile...)
				}
				r.after(1500 * time.Millisecond)
				r.become("192.0.2.53")
				start := func(c docker.Container) docker.Container {
					r.happens(c, docker.ActionCreate)
					c = started(c, pidOf(c))
					r.happens(c, docker.ActionStart)
					return c
				}
				r.after(recent / 2)
				first, firstAny = start(first), start(firstAny)
				want := func(when string) {
					t.Helper()
					r.mayAsk(when, first, false)
					r.mayAsk(when, firstAny, name != "nobody") // the engine may have others, whom nobody knows
				}
				want("it starts")
				r.after(recent + 2*resync)
				want("later")
				later, laterAny = start(later), start(laterAny)
				r.mayAsk("who starts later", later, true)
				r.mayAsk("who starts later", laterAny, true)
				want("at last")
			})
		})
	}
}

// TestResolverOfOneThatRuns has the host name another for a moment, and the next one at once: what counts for who runs is all of it.
func TestResolverOfOneThatRuns(t *testing.T) {
	one, any := asking(10)
	one, any = started(one, 10), started(any, 11)
	inTime(t, []docker.Container{one, any}, func(r *rig) {
		listBridge(r)
		r.kernel.host = &host{resolvers: addrsOf("192.0.2.53")}
	}, func(r *rig) {
		r.mayAsk("before", one, true)
		r.agent.tell(func() {
			r.agent.learnResolvers(addrsOf("192.0.2.54"))
			r.agent.learnResolvers(addrsOf("192.0.2.53"))
		})
		r.after(recent + 2*resync)
		r.mayAsk("later", one, false)
		r.mayAsk("later", any, true)
	})
}

// TestRemember: however often the host's resolv.conf changes, whom it has named lately is remembered once.
func TestRemember(t *testing.T) {
	inTime(t, nil, nil, func(r *rig) {
		r.become()
		r.agent.tell(func() {
			for i := range 1000 {
				r.agent.learnResolvers(addrsOf(fmt.Sprintf("192.0.2.%d", 1+i%2)))
			}
			if got := len(r.agent.around.lately); got != 3 { // and nobody, at first
				t.Errorf("%d remembered", got)
			}
		})
		r.after(2 * recent)
		r.agent.tell(func() {
			r.agent.learnResolvers(nil)
			if got := len(r.agent.around.lately); got != 1 {
				t.Errorf("%d remembered", got)
			}
		})
	})
}

// named follows files in dir, and is what is told of them.
func named(t *testing.T, dir string) (f resolvConfs, becomes func(servers ...string)) {
	t.Helper()
	f = resolvConfs{filepath.Join(dir, "etc", "resolv.conf"), filepath.Join(dir, "resolve", "resolv.conf")}
	told := make(chan []netip.Addr, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.follow(ctx, slog.New(slog.DiscardHandler), func(now []netip.Addr) { told <- now })
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return f, func(servers ...string) {
		t.Helper()
		late := time.After(resync / 2) // the next look is later
		for {
			select {
			case now := <-told:
				if len(now) == 0 && len(servers) > 0 {
					t.Error("it is told that nobody is named although the file was only being written")
				}
				if slices.Equal(now, addrsOf(servers...)) {
					return
				}
			case <-late:
				t.Fatalf("it is not told that %v are named", servers)
			}
		}
	}
}

// must fails the test where a file could not be changed.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// writeServer has the file at path name a server.
func writeServer(t *testing.T, path, server string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte("nameserver "+server+"\n"), 0o600))
}

// TestFollowResolvConf changes files in all ways that programs do which write them.
func TestFollowResolvConf(t *testing.T) {
	dir := t.TempDir()
	stub := filepath.Join(dir, "resolve", "stub-resolv.conf")
	writeServer(t, filepath.Join(dir, "etc", "resolv.conf"), "192.0.2.1")
	writeServer(t, stub, systemdStub.String())
	f, becomes := named(t, dir)
	becomes("192.0.2.1")
	writeServer(t, f[0], "192.0.2.2")
	becomes("192.0.2.2")

	writeServer(t, f[0]+"~", "192.0.2.3")
	must(t, os.Rename(f[0]+"~", f[0]))
	becomes("192.0.2.3")
	writeServer(t, f[0], "192.0.2.4")
	becomes("192.0.2.4")

	// By another name, as of what is mounted there.
	other := filepath.Join(dir, "other")
	must(t, os.Link(f[0], other))
	becomes("192.0.2.4")
	writeServer(t, other, "192.0.2.5")
	becomes("192.0.2.5")

	// systemd's: the file becomes a link, to what names the stub, and then its own file comes.
	must(t, os.Symlink(stub, f[0]+"~"))
	must(t, os.Rename(f[0]+"~", f[0]))
	becomes("127.0.0.53")
	writeServer(t, f[1]+"~", "192.0.2.6")
	must(t, os.Rename(f[1]+"~", f[1]))
	becomes("127.0.0.53", "192.0.2.6")
	writeServer(t, f[1], "192.0.2.7")
	becomes("127.0.0.53", "192.0.2.7")
	writeServer(t, stub+"~", "192.0.2.8")
	must(t, os.Rename(stub+"~", stub))
	becomes("192.0.2.8")

	must(t, os.Remove(f[0]))
	becomes()
	writeServer(t, f[0], "192.0.2.9")
	becomes("192.0.2.9")

	// While it is being written nobody is named.
	file, err := os.Create(f[0])
	must(t, err)
	time.Sleep(settle / 4)
	_, err = file.WriteString("nameserver 192.0.2.10\n")
	must(t, err)
	must(t, file.Close())
	becomes("192.0.2.10")
}

// TestFollowLinkToResolvConf begins with a link, as NetworkManager makes it, to a file that comes and goes.
func TestFollowLinkToResolvConf(t *testing.T) {
	dir := t.TempDir()
	target, other := filepath.Join(dir, "run", "resolv.conf"), filepath.Join(dir, "run2", "resolv.conf")
	writeServer(t, target, "192.0.2.1")
	writeServer(t, other, "192.0.2.3")
	link := filepath.Join(dir, "etc", "resolv.conf")
	must(t, os.Mkdir(filepath.Dir(link), 0o755))
	must(t, os.Symlink(target, link))
	_, becomes := named(t, dir)
	becomes("192.0.2.1")
	must(t, os.Remove(target))
	becomes()
	writeServer(t, target, "192.0.2.2")
	becomes("192.0.2.2")
	must(t, os.Symlink(other, link+"~"))
	must(t, os.Rename(link+"~", link))
	becomes("192.0.2.3")
}
