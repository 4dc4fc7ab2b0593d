package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

func TestResolverIsClosed(t *testing.T) {
	c, open := box(10, true, "xdp.drop=udp"), box(20, true, "xdp.drop=25/tcp")
	c.NetworkMode, open.NetworkMode = "shop", "shop"
	inTime(t, []docker.Container{c, open}, func(r *rig) { r.kernel.host = &host{resolvers: addrsOf("127.0.0.53")} }, func(r *rig) {
		closed := func(c docker.Container) resolverClosed {
			r.kernel.mu.Lock()
			defer r.kernel.mu.Unlock()
			return r.kernel.resolvers[c.SandboxKey]
		}
		if closed(c) != (resolverClosed{udp: true}) || closed(open) != (resolverClosed{}) {
			t.Errorf("closed: %+v %+v", closed(c), closed(open))
		}
	})
}

// TestResolverOfBefore changes the host's resolv.conf. An engine asks what it was told when a run of the container began.
func TestResolverOfBefore(t *testing.T) {
	c, list := box(10, true, "xdp.drop=udp"), box(20, true, "xdp.egress.allow=dns")
	c.NetworkMode, list.NetworkMode, list.FromHost = "shop", "shop", docker.AllFromHost
	old := known{fromHost: addrsOf("127.0.0.53")}
	recorded := Record{ID: c.ID, State: Enforced, Upstream: upstream{c.SandboxID, old.fromHost}}.encode()
	for name, tc := range map[string]struct {
		before, after *host
		record        []byte
		closed        bool
	}{
		"another":                            {&host{resolvers: old.fromHost}, &host{resolvers: addrsOf("192.0.2.53")}, nil, true},
		"none, while it is written anew":     {&host{resolvers: old.fromHost}, &host{}, nil, true},
		"none, and what was is as it was":    {&host{resolvers: addrsOf("192.0.2.53")}, &host{}, nil, false},
		"one on loopback":                    {&host{resolvers: addrsOf("192.0.2.53")}, &host{resolvers: old.fromHost}, nil, true},
		"before this agent":                  {&host{resolvers: addrsOf("192.0.2.53")}, &host{resolvers: addrsOf("192.0.2.53")}, recorded, true},
		"before this agent, in another run":  {&host{resolvers: addrsOf("192.0.2.53")}, &host{resolvers: addrsOf("192.0.2.53")}, Record{ID: c.ID, State: Enforced, Upstream: upstream{"x", old.fromHost}}.encode(), false},
		"never, and nobody has written that": {&host{resolvers: addrsOf("192.0.2.53")}, &host{resolvers: addrsOf("192.0.2.54")}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, []docker.Container{c, list}, func(r *rig) {
				listBridge(r)
				r.kernel.host = tc.before
				if tc.record != nil {
					r.kernel.records[c.ID] = tc.record
				}
			}, func(r *rig) {
				want := func(when string, c docker.Container, closed bool) {
					t.Helper()
					r.kernel.set(func() {
						if got := r.kernel.resolvers[c.SandboxKey]; got.udp != closed || (r.kernel.askers[c.ID] != asker{}) != closed {
							t.Errorf("%s: %+v, %+v", when, got, r.kernel.askers[c.ID])
						}
					})
				}
				r.kernel.set(func() { r.kernel.host = tc.after })
				r.ring()
				r.after(resync)
				want("later", c, tc.closed)
				want("who may ask what the engine asks", list, false)
				if got, _ := json.Marshal(r.kernel.record(c.ID).Upstream); tc.closed && !strings.Contains(string(got), "127.0.0.53") {
					t.Errorf("record %s", got)
				}
				r.kernel.set(func() { r.kernel.host = &host{resolvers: addrsOf("192.0.2.55")} })
				r.after(recent + 2*resync)
				want("before it is started again", c, tc.closed)
				again := started(c, 11)
				again.NetworkMode = "shop"
				r.kernel.set(func() { r.kernel.namespaces[again.SandboxKey] = r.kernel.namespaces[c.SandboxKey] })
				r.happens(again, docker.ActionStart)
				r.after(resync)
				want("started again", again, false)
			})
		})
	}
}

// TestResolverOfNewEngines has a resolver that is not on the host's loopback. Only engines that ask it from the host need another's
// closed, and one that may be asked stays open.
func TestResolverOfNewEngines(t *testing.T) {
	old, closed, list := box(10, true, "xdp.drop=all"), box(20, true, "xdp.drop=all"), box(30, true, "xdp.egress.allow=dns")
	old.NetworkMode, closed.NetworkMode, list.NetworkMode = "shop", "shop", "shop"
	closed.FromHost, list.FromHost = docker.AllFromHost, docker.AllFromHost
	inTime(t, []docker.Container{old, closed, list}, func(r *rig) {
		listBridge(r)
		r.kernel.host = &host{resolvers: addrsOf("192.0.2.53")}
	}, func(r *rig) {
		want := map[string]resolverClosed{old.SandboxKey: {}, closed.SandboxKey: {true, true}, list.SandboxKey: {}}
		r.kernel.set(func() {
			for key, want := range want {
				if got := r.kernel.resolvers[key]; got != want {
					t.Errorf("%s: %+v, want %+v", key, got, want)
				}
			}
		})
		r.groups(list, policy.Groups{Resolvers: addrsOf("192.0.2.53")})
	})
}

// TestResolverOfOneThatJoins connects containers of the default network, where the engine's resolver is not, to another. It is closed by
// the container's id and in its namespace before, because nobody has heard of that when the first query is sent.
func TestResolverOfOneThatJoins(t *testing.T) {
	closed, list := box(10, true, "xdp.drop=udp"), box(20, true, "xdp.egress.allow=dns")
	closed.FromHost, list.FromHost = docker.AllFromHost, docker.AllFromHost
	inTime(t, []docker.Container{closed, list}, func(r *rig) {
		r.engine.networks = []docker.Network{netOf("192.0.2.0/24", "192.0.2.1"), {ID: strings.Repeat("c", 64)}}
		r.kernel.host = &host{resolvers: addrsOf("192.0.2.53", "127.0.0.53")}
	}, func(r *rig) {
		noUDP := resolverClosed{udp: true}
		want := func(warned bool, dns ...string) {
			t.Helper()
			r.kernel.set(func() {
				if !maps.Equal(r.kernel.askers, map[string]asker{closed.ID: {noUDP, 10}}) || r.kernel.resolvers[closed.SandboxKey] != noUDP || r.kernel.resolvers[list.SandboxKey] != (resolverClosed{}) {
					t.Errorf("closed to %+v, in %+v", r.kernel.askers, r.kernel.resolvers)
				}
			})
			if warns := strings.Contains(fmt.Sprint(r.kernel.record(closed.ID).Warnings), enginesResolver); warns != warned {
				t.Errorf("warns: %t", warns)
			}
			r.groups(list, policy.Groups{Resolvers: addrsOf(dns...)})
		}
		want(false, "192.0.2.53")
		r.happens(joined(closed, "new"), docker.ActionConnect)
		r.happens(joined(list, "new"), docker.ActionConnect)
		want(true, "127.0.0.53", "192.0.2.53")
	})
}

func TestResolverCannotBeClosed(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	c.NetworkMode = "shop"
	inTime(t, []docker.Container{c}, func(r *rig) {
		r.kernel.host = &host{resolvers: addrsOf("127.0.0.53")}
		r.kernel.fail["resolver "+c.SandboxKey] = errors.New("no")
	}, func(r *rig) {
		record := r.kernel.record(c.ID)
		if record.State != Partial || !strings.Contains(record.Interfaces[1].Error, "could not be closed") {
			t.Errorf("%+v", record)
		}
		r.kernel.set(func() { delete(r.kernel.fail, "resolver "+c.SandboxKey) })
		r.after(resync)
		if record := r.kernel.record(c.ID); record.State != Enforced {
			t.Errorf("%+v", record)
		}
	})
}

// TestResolverAndNetAdmin: who may rewrite destinations in a namespace with a closed resolver can ask it, which its record says.
func TestResolverAndNetAdmin(t *testing.T) {
	const open = "enforced [bridge enforced 10:open]"
	const past = "partial [bridge enforced 10:open] [127.0.0.11 partial 0:]"
	remapped := func(c *docker.Container) { c.UserNS, c.CapAdd = true, []string{"NET_ADMIN"} }
	for name, tc := range map[string]struct {
		label  string
		change func(*docker.Container)
		joins  func(*docker.Container) // nil where nobody does
		server string
		want   string
	}{
		"a user namespace":             {"xdp.drop=all", remapped, nil, "192.0.2.53", past},
		"and privileged":               {"xdp.drop=all", func(c *docker.Container) { c.UserNS, c.Privileged = true, true }, nil, "192.0.2.53", past},
		"without the capability":       {"xdp.drop=all", func(c *docker.Container) { c.UserNS = true }, nil, "192.0.2.53", open},
		"of a joiner":                  {"xdp.drop=all", func(c *docker.Container) { c.UserNS = true }, remapped, "192.0.2.53", past},
		"a joiner without it":          {"xdp.drop=all", func(c *docker.Container) { c.UserNS = true }, func(*docker.Container) {}, "192.0.2.53", open},
		"names may be asked":           {"xdp.egress.allow=dns", remapped, nil, "192.0.2.53", open},
		"no name server that is known": {"xdp.drop=all", remapped, nil, "", past},
		"its own name server":          {"xdp.drop=all", func(c *docker.Container) { remapped(c); c.DNS = []string{"192.0.2.53"} }, nil, "192.0.2.53", open},
		"no user namespace, no holds":  {"xdp.drop=all", netAdminToo, nil, "192.0.2.53", open},
	} {
		t.Run(name, func(t *testing.T) {
			c := box(10, true, tc.label)
			c.NetworkMode, c.FromHost = "shop", docker.AllFromHost
			tc.change(&c)
			all := []docker.Container{c}
			if tc.joins != nil {
				all = append(all, joiner(20, true, c.ID, tc.joins))
			}
			inTime(t, all, func(r *rig) {
				listBridge(r)
				r.kernel.host = &host{}
				if tc.server != "" {
					r.kernel.host.resolvers = addrsOf(tc.server)
				}
			}, func(r *rig) {
				r.want(c, tc.want)
				if record := r.kernel.record(c.ID); tc.want == past && !strings.Contains(fmt.Sprint(record.Interfaces), "CAP_NET_ADMIN") {
					t.Errorf("%+v", record)
				}
				r.after(2 * resync)
				r.want(c, tc.want)
			})
		})
	}
}

// TestResolverIsClosedEarly starts a container in both orders. What it asks the engine's resolver no hold keeps back.
func TestResolverIsClosedEarly(t *testing.T) {
	for name, move := range map[string]bool{"engines before 28": true, "engines from 28 on": false} {
		t.Run(name, func(t *testing.T) {
			inTime(t, nil, func(r *rig) {
				listBridge(r)
				r.kernel.host = &host{resolvers: addrsOf("127.0.0.53")}
			}, func(r *rig) {
				created := box(7, false, "xdp.drop=udp")
				created.NetworkMode = "shop"
				r.happens(created, docker.ActionCreate)
				path := filepath.Join(r.agent.proc, "70", "ns/net")
				r.process(60, 5) // of the host: the number may have been another's before
				r.process(70, 5, created.ID)
				r.attaches(itsEnd(created.ID))
				if move {
					r.port(near(7), nil)
					r.after(100 * time.Millisecond)
				}
				r.kernel.hold.set(func() {
					r.kernel.hold.releasing = func(int) {
						r.kernel.mu.Lock()
						defer r.kernel.mu.Unlock()
						if got := r.kernel.resolvers[path]; got != (resolverClosed{udp: true}) {
							t.Errorf("released while the resolver is %+v", got)
						}
					}
				})
				r.port(in(near(7), 5), itsMAC)
				r.after(100 * time.Millisecond)
				r.released(7, true)
				if got := len(r.kernel.resolvers); got != 1 {
					t.Errorf("%d namespaces: %v", got, r.kernel.resolvers)
				}
			})
		})
	}
}

// TestResolverIsClosedFirst has it closed before the filter is attached, which may take long, where the processes behind a port are known by then.
// To who may ask, it stays open.
func TestResolverIsClosedFirst(t *testing.T) {
	for label, want := range map[string]resolverClosed{"xdp.drop=udp": {udp: true}, "xdp.drop=25/tcp": {}} {
		inTime(t, nil, func(r *rig) {
			listBridge(r)
			r.kernel.host = &host{resolvers: addrsOf("127.0.0.53")}
		}, func(r *rig) {
			created := box(7, false, label)
			created.NetworkMode = "shop"
			r.happens(created, docker.ActionCreate)
			path, gate := filepath.Join(r.agent.proc, "70", "ns/net"), make(chan struct{})
			mac := r.agent.peerMAC
			r.agent.peerMAC = func(p xdp.Port) net.HardwareAddr { <-gate; return mac(p) } // until the processes are known
			r.kernel.set(func() {
				r.kernel.called = func(call string) {
					if got := r.kernel.resolvers[path]; call == "attach 7" && got != want {
						t.Errorf("%s: attached while the resolver is %+v", label, got)
					}
				}
			})
			r.process(70, 5, created.ID)
			r.attaches(itsEnd(created.ID))
			r.port(in(near(7), 5), itsMAC)
			r.released(7, false)
			close(gate)
			r.after(0)
			r.released(7, true)
			r.device(7, "open")
		})
	}
}

// TestResolverStays has an agent come that does not know yet who is in the groups of a container: what it may ask stays what it was.
func TestResolverStays(t *testing.T) {
	c := box(10, true, "xdp.egress.allow=internet,dns")
	c.NetworkMode = "shop"
	inTime(t, []docker.Container{c}, func(r *rig) {
		r.kernel.host = &host{resolvers: addrsOf("127.0.0.53")}
		r.kernel.attached[10] = "open"
		r.kernel.records[c.ID] = Record{ID: c.ID, Name: c.Name, State: Enforced, Interfaces: []Interface{{Network: "bridge", State: Enforced, Ifindex: 10}}}.encode()
		r.engine.broken["networks"] = errors.New("no")
	}, func(r *rig) {
		closed := func() (n int) {
			r.kernel.set(func() {
				n = len(r.kernel.askers)
				for _, path := range r.kernel.resolvers {
					if path != (resolverClosed{}) {
						n++
					}
				}
			})
			return n
		}
		r.after(resync)
		if !r.agent.containers[c.ID].want.waits || closed() != 0 {
			t.Errorf("waits %t, %d closed", r.agent.containers[c.ID].want.waits, closed())
		}
	})
}

// TestResolverWithoutProcesses is an agent that sees none, in a container without the host's pid namespace.
func TestResolverWithoutProcesses(t *testing.T) {
	inTime(t, nil, func(r *rig) {
		listBridge(r)
		r.kernel.host = &host{resolvers: addrsOf("127.0.0.53")}
	}, func(r *rig) {
		created := box(7, false, "xdp.drop=udp")
		created.NetworkMode = "shop"
		r.happens(created, docker.ActionCreate)
		r.attaches(itsEnd(created.ID))
		r.port(in(near(7), 5), itsMAC)
		r.after(100 * time.Millisecond)
		r.released(7, true)
	})
}

// resolver checks what of the engine's resolver is closed in a container's namespace.
func (r *rig) resolver(c docker.Container, want resolverClosed) {
	r.t.Helper()
	r.kernel.set(func() {
		if got := r.kernel.resolvers[c.SandboxKey]; got != want {
			r.t.Errorf("closed to %+v, want %+v", got, want)
		}
	})
}

// TestClosedResolverIsTakenOff has root take off what closes the engine's resolver to a container: it is put back, and the log says so.
func TestClosedResolverIsTakenOff(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	c.FromHost = docker.AllFromHost
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		r.resolver(c, resolverClosed{udp: true})
		r.kernel.set(func() { delete(r.kernel.resolvers, c.SandboxKey) })
		r.after(resync)
		r.resolver(c, resolverClosed{udp: true})
		if !r.said("ERROR", "resolver") {
			t.Error("the log does not say so")
		}
	})
}

// TestFirstQueryIsClosed follows a container from its creation on: what it asks is closed to its id before it has a namespace.
func TestFirstQueryIsClosed(t *testing.T) {
	created, open := box(7, false, "xdp.drop=udp"), box(8, false, "xdp.drop=25/tcp")
	created.NetworkMode, open.NetworkMode = "shop", "shop"
	joins := joiner(9, false, open.ID, func(c *docker.Container) { c.Labels = created.Labels }) // open's labels hold
	inTime(t, nil, func(r *rig) { r.kernel.host = &host{resolvers: addrsOf("127.0.0.53")} }, func(r *rig) {
		want := func(when string, want map[string]asker) {
			t.Helper()
			r.kernel.set(func() {
				if !maps.Equal(r.kernel.askers, want) {
					t.Errorf("%s: %+v, want %+v", when, r.kernel.askers, want)
				}
			})
		}
		noUDP := resolverClosed{udp: true}
		r.happens(created, docker.ActionCreate)
		r.happens(open, docker.ActionCreate)
		r.happens(joins, docker.ActionCreate)
		want("created", map[string]asker{created.ID: {noUDP, 0}})
		r.happens(started(created, 70), docker.ActionStart)
		want("it runs", map[string]asker{created.ID: {noUDP, 70}})
		r.happens(created, docker.ActionDie)
		want("it has ended", map[string]asker{created.ID: {noUDP, 0}})
		r.kernel.set(func() { r.kernel.host = &host{resolvers: addrsOf("192.0.2.53")} })
		r.ring()
		r.after(resync)
		want("another resolver, but an engine may have read of the first", map[string]asker{created.ID: {noUDP, 0}})
		r.after(recent)
		want("another resolver", map[string]asker{})
		r.kernel.set(func() { r.kernel.host = &host{resolvers: addrsOf("127.0.0.53")} })
		r.ring()
		r.after(resync)
		want("the first resolver again", map[string]asker{created.ID: {noUDP, 0}})
		r.happens(created, docker.ActionDestroy)
		want("destroyed", map[string]asker{})
	})
}

// TestResolverOfTheGone: an agent before this one has closed the resolver to containers, of which some are not there any more, and one
// is not to be filtered any more. An engine that has just begun may list none.
func TestResolverOfTheGone(t *testing.T) {
	created, plain, gone := box(7, false, "xdp.drop=udp"), box(8, false), box(9, false, "xdp.drop=udp")
	created.NetworkMode = "shop"
	inTime(t, []docker.Container{created, plain}, func(r *rig) {
		r.kernel.host = &host{resolvers: addrsOf("127.0.0.53")}
		for _, c := range []docker.Container{created, plain, gone} {
			r.kernel.askers[c.ID] = asker{resolverClosed{udp: true}, 0}
		}
	}, func(r *rig) {
		want := func(when string, ids ...string) {
			t.Helper()
			r.kernel.set(func() {
				if got := slices.Sorted(maps.Keys(r.kernel.askers)); !slices.Equal(got, ids) {
					t.Errorf("%s: closed to %v, want %v", when, got, ids)
				}
			})
		}
		want("at first", created.ID, gone.ID)
		r.after(ghostLists * resync)
		want("later", created.ID)
	})
}

// TestResolverOfTheMissing: a container that runs is missing from lists without end. As its filter does, what it may not ask stays closed as long as it
// has a device.
func TestResolverOfTheMissing(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, func(r *rig) { r.kernel.host = &host{resolvers: addrsOf("127.0.0.53")} }, func(r *rig) {
		closed := func() (is bool) {
			r.kernel.set(func() { _, is = r.kernel.askers[c.ID] })
			return is
		}
		if !closed() {
			t.Error("open from the beginning")
		}
		r.engine.set(func() { r.engine.unlisted = true })
		r.after((ghostLists + 2) * resync)
		r.device(10, "open")
		if !closed() {
			t.Error("opened because lists lack the container")
		}
		r.plug(docker.Container{SandboxKey: c.SandboxKey})
		r.after(2 * resync)
		if closed() {
			t.Error("closed although its device is gone")
		}
	})
}
