package agent

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
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
		// The host gets another resolver, and the containers ask it themselves.
		r.kernel.set(func() { r.kernel.host = &host{resolvers: addrsOf("192.0.2.53")} })
		r.ring()
		if closed(c) != (resolverClosed{}) {
			t.Errorf("closed: %+v", closed(c))
		}
	})
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
		"a user namespace":            {"xdp.drop=all", remapped, nil, "192.0.2.53", past},
		"and privileged":              {"xdp.drop=all", func(c *docker.Container) { c.UserNS, c.Privileged = true, true }, nil, "192.0.2.53", past},
		"without the capability":      {"xdp.drop=all", func(c *docker.Container) { c.UserNS = true }, nil, "192.0.2.53", open},
		"of a joiner":                 {"xdp.drop=all", func(c *docker.Container) { c.UserNS = true }, remapped, "192.0.2.53", past},
		"a joiner without it":         {"xdp.drop=all", func(c *docker.Container) { c.UserNS = true }, func(*docker.Container) {}, "192.0.2.53", open},
		"names may be asked":          {"xdp.egress.allow=dns", remapped, nil, "192.0.2.53", open},
		"no name server":              {"xdp.drop=all", remapped, nil, "", open},
		"its own name server":         {"xdp.drop=all", func(c *docker.Container) { remapped(c); c.DNS = []string{"192.0.2.53"} }, nil, "192.0.2.53", open},
		"no user namespace, no holds": {"xdp.drop=all", netAdminToo, nil, "192.0.2.53", open},
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
		want("another resolver", map[string]asker{})
		r.kernel.set(func() { r.kernel.host = &host{resolvers: addrsOf("127.0.0.53")} })
		r.ring()
		r.after(resync)
		want("the first resolver again", map[string]asker{created.ID: {noUDP, 0}})
		r.happens(created, docker.ActionDestroy)
		want("destroyed", map[string]asker{})
	})
}
