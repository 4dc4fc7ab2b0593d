package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// TestResolverOnTheHostsLoopback asks names of an engine whose host has its resolver on its loopback, as Ubuntu's hosts
// do: the engine asks it from the host, past every veth. What arrives there is looked up at the resolver.
func TestResolverOnTheHostsLoopback(t *testing.T) {
	t.Parallel()
	const stub = "127.0.0.53"
	v := enginetest.OwnAsking(t, stub).Install()
	image := v.Image()
	network := v.Network("names")
	resolver := v.Serve(image, "resolver", []string{"--network", "host"}, "53/udp", "53/tcp")
	v.Configure("dns: " + stub + "\n")
	v.StartAgent()

	asks := func(c *enginetest.Container, name string) bool {
		_, _ = c.Do("resolve", name) // the sink answers nothing of use
		return mentioned(resolver.Received(), strings.Split(name, ".")[0])
	}
	for _, tc := range []struct {
		name   string
		labels []string
		passes bool
	}{
		{"free", nil, true},
		{"nothing-out", []string{"xdp.drop=all"}, false},
		{"no-udp", []string{"xdp.drop=udp", "xdp.mode=enforce"}, false},
		{"list", []string{"xdp.egress.allow=443/tcp"}, false},
		{"list-with-dns", []string{"xdp.egress.allow=443/tcp,dns"}, true},
		{"other-rule", []string{"xdp.drop=25/tcp"}, true},
		{"limited", []string{"xdp.egress.limit=53/udp=1000pps"}, false},
		{"limited-as-a-whole", []string{"xdp.egress.limit=all=50mbit"}, true},
		{"limited-elsewhere", []string{"xdp.egress.limit=54/udp=1pps"}, true},
		{"audit", []string{"xdp.drop=all", "xdp.mode=audit"}, true},
		{"wrong", []string{"xdp.drop=upd"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := v.With(t).Start(image, tc.name, labelled(network, tc.labels...))
			if tc.labels != nil {
				await(t, v, c.Name, "is in force", func(s agent.ContainerStatus) bool { return s.State != agent.Pending && len(s.Interfaces) == 1 })
			}
			if got := asks(c, tc.name+".example."); got != tc.passes {
				t.Errorf("asks the resolver: %t, want %t", got, tc.passes)
			}
			if !tc.passes && tc.name != "wrong" {
				s := await(t, v, c.Name, "shows what was asked", func(s agent.ContainerStatus) bool {
					for _, d := range s.Interfaces[0].Drops {
						if d.Reason == "resolver" {
							return true
						}
					}
					return false
				})
				if len(s.Warnings) == 0 || !strings.Contains(strings.Join(s.Warnings, " "), "127.0.0.11") {
					t.Errorf("warnings %q", s.Warnings)
				}
			}
		})
	}

	c := v.Start(image, "opened", labelled(network, "xdp.drop=all"))
	const name = "is as it was closed"
	closed := func(s agent.ContainerStatus) bool { return s.State == agent.Enforced && len(s.Interfaces) == 1 }
	await(t, v, c.Name, name, closed)
	v.EndAgent(syscall.SIGTERM)
	await(t, v, c.Name, name, closed)
	for _, pin := range pins(t, v) {
		if closesResolver(pin) {
			if err := os.Remove(filepath.Join(v.Dir, "links", pin)); err != nil {
				t.Fatal(err)
			}
		}
	}
	await(t, v, c.Name, "says that it is open", func(s agent.ContainerStatus) bool {
		return s.State == agent.Pending && len(s.Interfaces) == 2 && strings.HasPrefix(s.Interfaces[1].Error, "NOT CLOSED")
	})
	v.StartAgent()
	await(t, v, c.Name, name, closed)
	if asks(c, "again.example.") {
		t.Error("the resolver is open although an agent has come back")
	}
}

// mentioned reports whether a query for a name has arrived.
func mentioned(received []enginetest.Arrival, name string) bool {
	return slices.ContainsFunc(received, func(a enginetest.Arrival) bool { return strings.Contains(a.Text, name) })
}

// askingTheHost is an engine whose host has a name server that is none of its loopback's.
func askingTheHost(t *testing.T) *enginetest.Vethwall {
	t.Helper()
	const server = "198.18.7.53"
	v := enginetest.OwnAsking(t, server).Install()
	for _, args := range []string{"link add names0 type bridge", "addr add " + server + "/32 dev names0", "link set names0 up"} {
		if out, err := v.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	v.Inside = true
	return v
}

// TestResolverOfTheHost is the same, in short, for a host whose name server is none of its loopback's. Engines from 28 on ask that
// one from the host, too, and those before 26 from the container, by its veth.
func TestResolverOfTheHost(t *testing.T) {
	t.Parallel()
	v := askingTheHost(t)
	image := v.Image()
	network := v.Network("names")
	resolver := v.Serve(image, "resolver", []string{"--network", "host"}, "53/udp", "53/tcp")
	v.StartAgent()
	major, err := strconv.Atoi(strings.Split(v.Run("version", "--format", "{{.Server.Version}}"), ".")[0])
	fromHost := err != nil || major >= 28 || major < 17 // a build of one's own has no version
	for _, tc := range []struct {
		name   string
		labels []string
		passes bool
	}{
		{"free", nil, true},
		{"nothing-out", []string{"xdp.drop=all"}, false},
		{"list", []string{"xdp.egress.allow=443/tcp"}, false},
		{"list-with-dns", []string{"xdp.egress.allow=dns"}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := v.With(t)
			options := labelled(network, tc.labels...)
			for range times(1, 20) { // what the first instruction asks; the resolver answers nothing of use
				first := v.Create(image, tc.name+"-first", options, "resolve", tc.name+"-first.example.")
				v.Run("start", first.ID)
				v.Run("wait", first.ID)
				v.Run("rm", first.ID)
			}
			c := v.Start(image, tc.name, options)
			if tc.labels != nil {
				awaitFilter(t, v, c.Name, 1)
			}
			_, _ = c.Do("resolve", tc.name+"-later.example.")
			received := resolver.With(v.Docker).Received()
			for _, query := range []string{tc.name + "-first", tc.name + "-later"} {
				if got := mentioned(received, query); got != tc.passes {
					t.Errorf("%s arrives: %t, want %t", query, got, tc.passes)
				}
			}
			if tc.passes {
				return
			}
			s := await(t, v, c.Name, "shows what was asked, and where", func(s agent.ContainerStatus) bool {
				return len(s.Interfaces[0].Drops) > 0 && dropsFor(s, policy.Resolver) > 0 == fromHost
			})
			if warned := strings.Contains(strings.Join(s.Warnings, " "), "127.0.0.11"); warned != fromHost {
				t.Errorf("warnings %q", s.Warnings)
			}
		})
	}
}

// TestFirstQuery starts containers that ask the engine's resolver, which asks the host's, with their first instruction and once more
// a moment later, one at a time and then several, while every core is busy.
func TestFirstQuery(t *testing.T) {
	t.Parallel()
	const stub = "127.0.0.53"
	v := enginetest.OwnAsking(t, stub).Install()
	image := v.Image()
	network := v.Network("names")
	resolver := v.Serve(image, "resolver", []string{"--network", "host"}, "53/udp", "53/tcp")
	v.Configure("dns: " + stub + "\n")
	v.StartAgent()
	defer burn()()
	for _, tc := range []struct {
		name, label string
		passes      bool
	}{
		{"nothing", "xdp.drop=all", false},
		{"wrong", "xdp.drop=upd", false},
		{"list", "xdp.egress.allow=dns", true},
	} {
		ask := func(name string) {
			c := v.Create(image, name, labelled(network, tc.label), "resolve", name+"-first.example.", name+"-later.example.")
			for _, verb := range []string{"start", "restart"} {
				// The resolver answers nothing of use, so that peer fails.
				v.Run(verb, c.ID)
				v.Run("wait", c.ID)
			}
		}
		var names []string
		for i := range times(2, 40) {
			names = append(names, fmt.Sprintf("%s-%d", tc.name, i))
		}
		for _, name := range names[:len(names)/2] {
			ask(name)
		}
		var all sync.WaitGroup
		for some := range slices.Chunk(names[len(names)/2:], 4) {
			for _, name := range some {
				all.Go(func() { ask(name) })
			}
			all.Wait()
		}
		received := resolver.Received()
		for _, name := range names {
			for _, query := range []string{name + "-first", name + "-later"} {
				got := mentioned(received, query)
				if got != tc.passes {
					t.Errorf("%s: arrives: %t, want %t", query, got, tc.passes)
				}
			}
		}
	}
}

// TestResolverChanges gives the host another resolver while containers run, with an agent and without one. The engine goes on asking
// the one that it was told of.
func TestResolverChanges(t *testing.T) {
	t.Parallel()
	engine := enginetest.OwnAsking(t, "127.0.0.53")
	v := engine.Install()
	image := v.Image()
	network := v.Network("names")
	resolver := v.Serve(image, "resolver", []string{"--network", "host"}, "53/udp", "53/tcp")
	v.Inside = true
	v.StartAgent()
	closed := v.Start(image, "closed", labelled(network, "xdp.drop=all"))
	list := v.Start(image, "list", labelled(network, "xdp.egress.allow=dns"))
	for _, c := range []*enginetest.Container{closed, list} {
		awaitFilter(t, v, c.Name, 1)
	}
	want := func(when string) {
		t.Helper()
		for _, c := range []*enginetest.Container{closed, list} {
			_, _ = c.Do("resolve", when+"-"+c.ID[:12]+".example.") // the sink answers nothing of use
			if got := mentioned(resolver.Received(), when+"-"+c.ID[:12]); got != (c == list) {
				t.Errorf("%s: what %s asks arrives: %t", when, c.Name, got)
			}
		}
	}
	want("before")
	hostAsks(t, engine, "198.51.100.9")
	v.EndAgent(syscall.SIGKILL)
	v.StartAgent()
	want("another-agent")
	hostAsks(t, engine, "198.51.100.10")
	rings := v.Start(image, "rings", labelled(network, "xdp.drop=udp")) // the agent looks at the host
	awaitFilter(t, v, rings.Name, 1)
	want("the-same-agent")
}

// hostAsks gives the host of an engine that OwnAsking has made another name server.
func hostAsks(t *testing.T, e *enginetest.Engine, server string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(e.Dir, "resolv.conf"), []byte("nameserver "+server+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestResolverChangesAndOneStarts gives the host another resolver, starts containers at once, and takes it back
// before the agent looks at the host. The engine asks that one for them as long as they run.
func TestResolverChangesAndOneStarts(t *testing.T) {
	t.Parallel()
	const before, meanwhile = "127.0.0.53", "127.0.0.54"
	engine := enginetest.OwnAsking(t, before)
	v := engine.Install()
	image := v.Image()
	network := v.Network("names")
	resolver := v.Serve(image, "resolver", []string{"--network", "host"}, "53/udp", "53/tcp")
	v.Inside = true
	v.StartAgent()
	one := "xdp.egress.allow=53/udp@" + before + ",53/tcp@" + before
	sleeps := v.Start(image, "sleeps", labelled(network, one)) // everybody has been seen when it is filtered
	awaitFilter(t, v, sleeps.Name, 1)
	if _, _ = sleeps.Do("resolve", "sleeps.example."); !mentioned(resolver.Received(), "sleeps") {
		t.Error("who may ask that one cannot")
	}
	for i := range times(1, 20) {
		for _, label := range []string{one, "xdp.egress.allow=dns"} {
			passes := label != one
			time.Sleep(2 * time.Second) // until nothing makes the agent look
			name := fmt.Sprintf("starts-%d-%t", i, passes)
			hostAsks(t, engine, meanwhile)
			c := v.Start(image, name, labelled(network, label))
			for _, when := range []string{"first-", "later-"} {
				_, _ = c.Do("resolve", when+name+".example.") // the sink answers nothing of use
				if got := mentioned(resolver.Received(), when+name); got != passes {
					t.Errorf("%s%s arrives: %t, want %t", when, name, got, passes)
				}
				hostAsks(t, engine, before)
				time.Sleep(time.Second)
			}
			v.Run("rm", "--force", c.ID)
		}
	}
}

// TestResolverOfOneThatJoins connects containers of the default network, which ask the engine's resolver all the time, to a network
// that has it.
func TestResolverOfOneThatJoins(t *testing.T) {
	t.Parallel()
	v := askingTheHost(t)
	image := v.Image()
	network := v.Network("names")
	resolver := v.Serve(image, "resolver", []string{"--network", "host"}, "53/udp", "53/tcp")
	v.StartAgent()
	for i := range times(3, 50) {
		for label, passes := range map[string]bool{"xdp.drop=all": false, "xdp.egress.allow=dns": true} {
			name := fmt.Sprintf("joins-%d-%t", i, passes)
			c := v.Start(image, name, []string{"--label", label}, "query", name+".example")
			awaitFilter(t, v, c.Name, 1)
			v.Run("network", "connect", network, c.ID)
			awaitFilter(t, v, c.Name, 2)
			v.With(t).Wait(name+" has asked", func() error {
				if s, _ := statusOf(t, v, c.Name); passes != mentioned(resolver.Received(), name) || passes == (drops(s) > 0) {
					return fmt.Errorf("status: %+v", s)
				}
				return nil
			})
			v.Run("rm", "--force", c.ID)
		}
		if mentioned(resolver.Received(), fmt.Sprintf("joins-%d-false", i)) {
			t.Error("what must not be asked arrives")
		}
	}
}

// TestFirstQueryWithoutAgent kills the agent and starts containers that it knew before another comes. What they may not ask the engine's
// resolver stays closed to them by their cgroups.
func TestFirstQueryWithoutAgent(t *testing.T) {
	t.Parallel()
	const stub = "127.0.0.53"
	v := enginetest.OwnAsking(t, stub).Install()
	image := v.Image()
	network := v.Network("names")
	resolver := v.Serve(image, "resolver", []string{"--network", "host"}, "53/udp", "53/tcp")
	v.Configure("dns: " + stub + "\n")
	v.StartAgent()
	create := func(name, label string) *enginetest.Container {
		return v.Create(image, name, labelled(network, label), "resolve", name+"-first.example.")
	}
	closed, list, gone := create("closed", "xdp.drop=all"), create("list", "xdp.egress.allow=dns"), create("gone", "xdp.drop=all")
	sleeps := v.Start(image, "sleeps", labelled(network, "xdp.drop=all")) // everybody has been seen when it is filtered
	awaitFilter(t, v, sleeps.Name, 1)
	v.EndAgent(syscall.SIGKILL)
	run := func(c *enginetest.Container) {
		v.Run("start", c.ID)
		v.Run("wait", c.ID)
	}
	run(closed)
	run(list)
	v.Run("rm", gone.ID)
	v.StartAgent()
	run(closed)
	received := resolver.Received()
	if mentioned(received, "closed-first") || !mentioned(received, "list-first") {
		t.Errorf("arrived: %+v", received)
	}
	for _, c := range []*enginetest.Container{closed, list, sleeps} {
		v.Run("rm", "--force", c.ID)
	}
	v.Wait("nobody is closed any more", func() error {
		_, err := os.Lstat(filepath.Join(v.Dir, "askers"))
		if err == nil {
			return errors.New("the program is there")
		}
		return nil
	})
}

// TestResolverByRawFrames has containers that join a network which has the engine's resolver ask that by frames on lo all the time, which no cgroup sees. It
// takes CAP_NET_RAW and a sysctl of their own.
func TestResolverByRawFrames(t *testing.T) {
	t.Parallel()
	v := askingTheHost(t)
	image := v.Image()
	network := v.Network("names")
	resolver := v.Serve(image, "resolver", []string{"--network", "host"}, "53/udp", "53/tcp")
	v.StartAgent()
	for i := range times(2, 50) {
		for _, from := range []string{"none", "bridge"} {
			for label, passes := range map[string]bool{"xdp.drop=all": false, "xdp.egress.allow=dns": true} {
				name := fmt.Sprintf("%s-%d-%t", from, i, passes)
				options := []string{"--network", from, "--label", label}
				for _, set := range []string{"lo.route_localnet=1", "lo.rp_filter=0", "all.rp_filter=0"} {
					options = append(options, "--sysctl", "net.ipv4.conf."+set)
				}
				c := v.Start(image, name, options)
				await(t, v, c.Name, "is known", func(s agent.ContainerStatus) bool { return s.State != agent.Pending })
				if from == "none" {
					v.Run("network", "disconnect", from, c.ID)
				}
				stop := queryByFrames(t, v, c, name)
				v.Run("network", "connect", network, c.ID)
				await(t, v, c.Name, "is filtered", filtered)
				if passes {
					v.With(t).Wait("a query of "+name, func() error {
						if !mentioned(resolver.Received(), name) {
							return errors.New("none")
						}
						return nil
					})
				}
				stop()
				if !passes && mentioned(resolver.Received(), name) {
					t.Errorf("what %s must not ask arrives", name)
				}
				v.Run("rm", "--force", c.ID)
			}
		}
	}
}

// queryByFrames asks for a name, until stop is called, whatever listens at 127.0.0.11 in the network namespace of a container, as somebody in there
// would that has CAP_NET_RAW.
func queryByFrames(t *testing.T, v *enginetest.Vethwall, c *enginetest.Container, name string) (stop func()) {
	t.Helper()
	process := "/proc/" + strings.TrimSpace(v.Run("inspect", "--format", "{{.State.Pid}}", c.ID))
	question := append([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, byte(len(name))}, name...)
	question = append(question, 0, 0, 1, 0, 1)
	fd := make(chan int)
	go func() {
		runtime.LockOSThread() // and it ends with this
		ns, err := netns.GetFromPath(process + "/ns/net")
		if err == nil {
			err = errors.Join(netns.Set(ns), ns.Close())
		}
		socket := -1
		if err == nil {
			socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		}
		if err != nil {
			t.Error(err)
		}
		fd <- socket
	}()
	socket, end := <-fd, make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		const lo, ipv4 = 1, 0x0008
		for {
			select {
			case <-end:
				return
			case <-time.After(time.Millisecond):
			}
			sockets, _ := os.ReadFile(process + "/net/udp")
			for _, at := range regexp.MustCompile(`\b0B00007F:([0-9A-F]{4})`).FindAllSubmatch(sockets, -1) {
				port, _ := strconv.ParseUint(string(at[1]), 16, 16)
				frame := policytest.IP("198.51.100.9", "127.0.0.11", unix.IPPROTO_UDP, policytest.UDP(1000, uint16(port), question...))
				copy(frame, make([]byte, 12))
				binary.BigEndian.PutUint16(frame[14+10:], ^onesSum(0, frame[14:34]))
				_ = unix.Sendto(socket, frame, 0, &unix.SockaddrLinklayer{Protocol: ipv4, Ifindex: lo, Halen: 6})
			}
		}
	})
	return func() { close(end); done.Wait(); _ = unix.Close(socket) }
}
