package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/xdp"
)

// The network bridge, as Docker lists it.
var bridge = docker.Network{ID: box(0, false).Networks[0].NetworkID, Name: "bridge", Driver: "bridge", Bridge: "docker0"}

var (
	itsMAC  = net.HardwareAddr{2, 0x42, 0xc0, 0, 2, 7}
	itsAddr = netip.MustParseAddr("192.0.2.7")
)

func itsEnd(id string) docker.Attachment {
	return docker.Attachment{ContainerID: id, MAC: itsMAC, Addrs: []netip.Addr{itsAddr}}
}

// listBridge has Docker list its bridge network.
func listBridge(r *rig) { r.engine.networks = []docker.Network{bridge} }

// attaches has the bridge network name what is attached to it.
func (r *rig) attaches(ends ...docker.Attachment) {
	r.engine.set(func() { r.engine.attached[bridge.ID] = ends })
}

// process puts a process into a namespace; its cgroup names containers, the outermost first.
func (r *rig) process(pid, nsid int, ids ...string) {
	r.t.Helper()
	dir := filepath.Join(r.agent.proc, strconv.Itoa(pid))
	group := "0::/"
	for _, id := range ids {
		group += "system.slice/docker-" + id + ".scope/"
	}
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "cgroup"), []byte(group+"\n"), 0o600)); err != nil {
		r.t.Fatal(err)
	}
	r.kernel.hold.set(func() { r.kernel.hold.pids[nsid] = append(r.kernel.hold.pids[nsid], pid) })
}

// port has a port arrive, or change.
func (r *rig) port(p xdp.Port, mac net.HardwareAddr) {
	h := r.kernel.hold
	h.set(func() { h.ports[p.Index], h.macs[p.Index] = p, mac })
	r.agent.tell(func() { r.agent.arrived(p) })
	synctest.Wait()
}

func (r *rig) released(ifindex int, want bool) {
	r.t.Helper()
	if got := r.kernel.hold.Known(ifindex); got != want {
		r.t.Errorf("port %d is released: %v, want %v", ifindex, got, want)
	}
}

// near is a port as engines before 28 make it at first, in the place where they move it later.
func near(index int) xdp.Port {
	return xdp.Port{Index: index, Name: fmt.Sprintf("veth%07x", index), Bridge: "docker0", NsID: -1, Peer: index + 1000}
}

func in(p xdp.Port, nsid int) xdp.Port {
	p.NsID, p.Carrier = nsid, true
	return p
}

// TestFirstPacketNewOrder starts a container as engines from 28 on do.
func TestFirstPacketNewOrder(t *testing.T) {
	for _, tc := range []struct {
		label    string
		drops    []string // capabilities
		prepared []string
		device   string
		state    string
	}{
		{"xdp.enable=true", []string{"NET_RAW"}, nil, "open", "enforced [bridge enforced 7:open]"},
		{"xdp.enable=true", nil, []string{"7 sent true received false"}, "open", "enforced [bridge enforced 7:open]"},
		{"xdp.egress.allow=53/udp", []string{"ALL"}, []string{"7 sent false received true"}, "open", "enforced [bridge enforced 7:open]"},
		{"xdp.egress.allow=53/udp", nil, []string{"7 sent true received true"}, "open", "enforced [bridge enforced 7:open]"},
		{"xdp.drop=nonsense", nil, nil, "closed", "quarantined [bridge quarantined 7:closed]"},
	} {
		t.Run(fmt.Sprint(tc.label, tc.drops), func(t *testing.T) {
			inTime(t, nil, listBridge, func(r *rig) {
				created := box(7, false, tc.label)
				created.CapDrop = tc.drops
				r.happens(created, docker.ActionCreate)
				r.kernel.set(func() { r.kernel.unseen[7] = 3 }) // it has tried; the hold has dropped them
				r.process(70, 5, created.ID)
				r.port(in(near(7), 5), nil)
				if tc.device == "open" {
					r.released(7, false)
					if prepared := r.kernel.hold.prepared; !slices.Equal(prepared, tc.prepared) {
						t.Errorf("prepared are %v", prepared)
					}
				}
				r.attaches(itsEnd(""))
				r.kernel.hold.set(func() { r.kernel.hold.macs[7] = itsMAC })
				r.after(100 * time.Millisecond)
				r.released(7, true)
				r.device(7, tc.device)
				if w := r.kernel.last[7]; tc.device == "open" && (w.Raw != (tc.drops == nil) || w.MAC.String() != itsMAC.String() || w.Own == nil) {
					t.Errorf("raw %t, antispoof judges by %s, %v", w.Raw, w.MAC, w.Own)
				}
				r.want(created, "none")
				before := r.kernel.count("attach 7")
				up := started(created, 7)
				up.Networks[0].MAC, up.Networks[0].Addrs = itsMAC, []netip.Addr{itsAddr}
				r.happens(up, docker.ActionConnect, docker.ActionStart)
				r.want(up, tc.state)
				if got := r.kernel.count("attach 7"); tc.device == "open" && got == before {
					t.Error("not looked at after the start")
				}
				if len(r.agent.held) > 0 || r.said("WARN", "held for") {
					t.Error("still held")
				}
			})
		})
	}
}

// TestFirstPacketOldOrder starts a container as engines before 28 do: the network names it while both ends are here.
func TestFirstPacketOldOrder(t *testing.T) {
	inTime(t, nil, listBridge, func(r *rig) {
		created, free := box(7, false, "xdp.egress.allow=53/udp"), box(8, false)
		r.happens(created, docker.ActionCreate)
		r.happens(free, docker.ActionCreate)
		r.port(near(7), net.HardwareAddr{0, 0, 0x5e, 0, 0x53, 1})
		r.attaches(docker.Attachment{ContainerID: free.ID, MAC: net.HardwareAddr{0, 0, 0x5e, 0, 0x53, 2}}, itsEnd(created.ID))
		r.after(8 * time.Second) // as long as it takes: nothing can come from it yet
		r.released(7, false)
		if !slices.Equal(r.kernel.hold.prepared, []string{"7 sent true received true"}) {
			t.Errorf("prepared are %v", r.kernel.hold.prepared)
		}
		asked := len(r.engine.order)
		r.port(in(near(7), 5), itsMAC)
		r.released(7, true)
		r.device(7, "open")
		if got := len(r.engine.order); got != asked {
			t.Errorf("asked %v before it was released", r.engine.order[asked:])
		}
		// The other one arrives meanwhile, and is nobody's business.
		r.port(near(8), nil)
		r.port(in(near(8), 6), net.HardwareAddr{0, 0, 0x5e, 0, 0x53, 2})
		r.after(100 * time.Millisecond)
		r.released(8, true)
		r.device(8, "")
	})
}

// TestUnlabelledIsReleasedAtOnce needs no answer of Docker's.
func TestUnlabelledIsReleasedAtOnce(t *testing.T) {
	inTime(t, []docker.Container{box(9, false)}, listBridge, func(r *rig) {
		r.engine.set(func() {
			r.engine.broken["attachments"], r.engine.broken["outline"] = errors.New("hangs"), errors.New("hangs")
		})
		created := box(7, false, "other=label")
		r.happens(created, docker.ActionCreate)
		r.process(70, 5, created.ID)
		r.port(in(near(7), 5), nil)
		r.released(7, true)
		r.device(7, "")
		r.process(90, 6, box(9, false).ID) // known from the list
		r.port(in(near(9), 6), nil)
		r.released(9, true)
		r.engine.emit(docker.ActionDestroy, created.ID)
		r.after(0)
		if r.agent.plain[created.ID] {
			t.Error("a destroyed container is still known")
		}
	})
}

// TestAskedAboutOnce starts a container that asks for nothing as engines before 28 do, which are slowed down by each question in
// the middle of a start, beside one that has ended long ago; one that asks for a filter is looked for more often.
func TestAskedAboutOnce(t *testing.T) {
	for label, most := range map[string]int{"other=label": 1, "xdp.drop=udp": 20} {
		inTime(t, []docker.Container{box(9, false, "xdp.drop=udp")}, listBridge, func(r *rig) {
			created := box(7, false, label)
			r.happens(created, docker.ActionCreate)
			asked := func() (n int) {
				r.engine.set(func() {
					for _, what := range r.engine.order {
						if what == "attachments" {
							n++
						}
					}
				})
				return n
			}
			before := asked()
			r.port(near(7), nil)
			r.after(20 * time.Millisecond)
			r.attaches(itsEnd(created.ID))
			r.engine.emit(docker.ActionConnect, created.ID)
			r.after(500 * time.Millisecond)
			r.released(7, false)
			r.port(in(near(7), 5), itsMAC)
			r.after(time.Millisecond)
			r.released(7, true)
			if n := asked() - before; n == 0 || n > most || most > 1 && n < 3 {
				t.Errorf("%s: asked %d times, at most %d", label, n, most)
			}
		})
	}
}

// TestCreateUnheard has the create event lost: an outline says what the container is.
func TestCreateUnheard(t *testing.T) {
	inTime(t, nil, listBridge, func(r *rig) {
		labelled, free := box(7, false, "xdp.drop=udp"), box(8, false)
		r.happens(labelled)
		r.happens(free)
		r.engine.set(func() { r.engine.hang[labelled.ID] = make(chan struct{}) })
		r.attaches(itsEnd(labelled.ID), docker.Attachment{ContainerID: free.ID, MAC: net.HardwareAddr{0, 0, 0x5e, 0, 0x53, 2}})
		r.process(70, 5, labelled.ID)
		r.process(80, 6, free.ID)
		r.port(in(near(7), 5), itsMAC)
		r.port(in(near(8), 6), nil)
		r.after(10 * time.Millisecond)
		r.released(7, true)
		r.device(7, "open")
		r.released(8, true)
		r.device(8, "")
	})
}

// TestInspectHangs has a start keep the inspect of a container waiting whose policy takes more than an outline, or the outline, too, so that
// nobody knows whether it has one.
func TestInspectHangs(t *testing.T) {
	for name, outline := range map[string]bool{"the inspect": false, "both": true} {
		t.Run(name, func(t *testing.T) {
			inTime(t, nil, listBridge, func(r *rig) {
				c := box(7, false, "xdp.egress.allow=neighbors")
				gate := make(chan struct{})
				r.engine.set(func() {
					r.engine.hang[c.ID] = gate
					if outline {
						r.engine.hang["outline"] = gate
					}
				})
				r.happens(c, docker.ActionCreate)
				r.attaches(itsEnd(c.ID))
				r.process(70, 5, c.ID)
				r.port(in(near(7), 5), itsMAC)
				r.after(4 * time.Second)
				r.released(7, false)
				r.device(7, "")
				r.after(1100 * time.Millisecond)
				r.released(7, true)
				r.device(7, "closed")
				if !r.said("WARN", "what its container wants is not known") {
					t.Error("not reported")
				}
				up := started(c, 7)
				r.engine.set(func() { r.engine.containers[c.ID] = up })
				r.plug(up)
				close(gate)
				r.after(0)
				r.want(up, "enforced [bridge enforced 7:open]")
			})
		})
	}
}

func TestNobodySaysWhose(t *testing.T) {
	inTime(t, nil, listBridge, func(r *rig) {
		r.port(in(near(7), 5), itsMAC)
		r.after(4900 * time.Millisecond)
		r.released(7, false)
		r.after(200 * time.Millisecond)
		r.released(7, true)
		r.device(7, "")
		if !r.said("WARN", "nobody said whose it is") {
			t.Error("not reported")
		}
	})
}

// TestForeignBridge has a port of somebody else's bridge bear a name such as Docker gives.
func TestForeignBridge(t *testing.T) {
	inTime(t, nil, listBridge, func(r *rig) {
		p := in(near(7), 5)
		p.Bridge = "virbr0"
		r.port(p, nil)
		r.released(7, true)
		// Of a network that Docker has just made there may be a port before there is news of it.
		p = in(near(8), 6)
		p.Bridge = "shop0"
		c := box(8, false, "xdp.drop=udp")
		c.Networks[0] = docker.Endpoint{Network: "shop", Driver: "bridge"}
		r.happens(c, docker.ActionCreate)
		shop := docker.Network{ID: "5" + bridge.ID[1:], Name: "shop", Driver: "bridge", Bridge: "shop0"}
		r.engine.set(func() {
			r.engine.networks = append(r.engine.networks, shop)
			r.engine.attached[shop.ID] = []docker.Attachment{itsEnd(c.ID)}
		})
		r.process(80, 6, c.ID)
		r.port(p, itsMAC)
		r.after(20 * time.Millisecond)
		r.released(8, true)
		r.device(8, "open")
	})
}

// TestListedTooEarly has a port come of a network that Docker has just made, while a list is on its way that lacks it: that list does not
// say that its bridge is nobody's.
func TestListedTooEarly(t *testing.T) {
	inTime(t, nil, listBridge, func(r *rig) {
		early, late := make(chan struct{}), make(chan struct{})
		r.engine.set(func() { r.engine.hang["networks"] = early })
		r.engine.emit(docker.ActionNetworks, "")
		r.after(0)
		c := box(7, false, "xdp.drop=udp")
		c.Networks[0] = docker.Endpoint{Network: "shop", Driver: "bridge"}
		r.happens(c, docker.ActionCreate)
		shop := docker.Network{ID: "5" + bridge.ID[1:], Name: "shop", Driver: "bridge", Bridge: "shop0"}
		r.engine.set(func() {
			r.engine.hang["networks"] = late
			r.engine.networks = append(r.engine.networks, shop)
			r.engine.attached[shop.ID] = []docker.Attachment{itsEnd(c.ID)}
		})
		r.process(70, 5, c.ID)
		for index, name := range map[int]string{7: "shop0", 8: "virbr0"} {
			p := in(near(index), index-2)
			p.Bridge = name
			r.port(p, itsMAC)
		}
		close(early)
		r.ring()
		r.released(7, false)
		r.released(8, false)
		close(late)
		r.after(20 * time.Millisecond)
		r.released(7, true)
		r.device(7, "open")
		r.released(8, true)
		r.device(8, "")
	})
}

// TestHalfOfTheNetworks has a list of networks lack one, to whose bridge a port comes: only where the engine has no such network the bridge is nobody's.
func TestHalfOfTheNetworks(t *testing.T) {
	other := docker.Network{ID: "0123456789ab" + bridge.ID[12:], Name: "shop", Driver: "bridge", Bridge: "br-0123456789ab"}
	chosen := other
	chosen.Bridge = "shop0"
	for _, tc := range []struct {
		name    string
		network docker.Network
		bridge  string // of the port
		before  bool   // a list has had it
		waits   bool
	}{
		{"made by Docker", other, other.Bridge, false, true},
		{"made by another engine", other, "br-0123456789ac", false, false},
		{"named otherwise", other, "br-0123456789abc", false, false},
		{"chosen, and listed before", chosen, "shop0", true, true},
		{"chosen, and never listed", chosen, "shop0", false, false},
		{"the default one", bridge, "docker0", false, true},
		{"the default one, listed before", bridge, "docker0", true, true},
		{"another engine's default one", docker.Network{ID: bridge.ID, Name: "bridge", Driver: "bridge", Bridge: "mine0"}, "docker0", true, false},
	} {
		for label, device := range map[string]string{"xdp.drop=udp": "open", "other=label": ""} {
			t.Run(tc.name+", "+label, func(t *testing.T) {
				inTime(t, nil, func(r *rig) {
					r.engine.networks = []docker.Network{tc.network, {ID: "d" + bridge.ID[1:], Name: "host", Driver: "host"}}
					r.engine.half = map[string]bool{tc.network.ID: !tc.before}
				}, func(r *rig) {
					if r.engine.set(func() { r.engine.half[tc.network.ID] = tc.bridge != "docker0" || tc.waits }); tc.before {
						r.engine.emit(docker.ActionNetworks, "")
						r.after(0)
					}
					c := box(7, false, label)
					c.Networks[0].NetworkID, c.Networks[0].Network = tc.network.ID, tc.network.Name
					r.happens(c, docker.ActionCreate)
					r.engine.set(func() { r.engine.attached[tc.network.ID] = []docker.Attachment{itsEnd(c.ID)} })
					p := in(near(7), 7)
					p.Bridge = tc.bridge
					r.port(p, itsMAC)
					r.after(4 * time.Second)
					if r.released(7, !tc.waits || device == ""); !tc.waits {
						return
					}
					r.device(7, "")
					up := started(c, 7)
					up.Networks[0].MAC, up.Networks[0].Addrs = itsMAC, []netip.Addr{itsAddr}
					r.happens(up, docker.ActionStart)
					r.released(7, true)
					r.device(7, device)
				})
			})
		}
	}
}

// TestHalfThenWhole has the list name the network a moment later.
func TestHalfThenWhole(t *testing.T) {
	inTime(t, nil, func(r *rig) {
		r.engine.networks = []docker.Network{bridge, {ID: "d" + bridge.ID[1:], Name: "host", Driver: "host"}}
		r.engine.half = map[string]bool{bridge.ID: true}
	}, func(r *rig) {
		c := box(7, false, "xdp.drop=udp")
		r.happens(c, docker.ActionCreate)
		r.attaches(itsEnd(c.ID))
		r.port(in(near(7), 7), itsMAC)
		r.after(time.Second)
		r.released(7, false)
		r.engine.set(func() { clear(r.engine.half) })
		r.after(latest + time.Millisecond)
		r.released(7, true)
		r.device(7, "open")
	})
}

// TestJoinerIsNotTheOwner finds processes of two containers in one namespace, or of the one that has joined alone: the network knows
// whose its veth is.
func TestJoinerIsNotTheOwner(t *testing.T) {
	owner, joiner := box(7, false, "xdp.drop=udp"), box(8, false)
	owner.NetworkMode, owner.Networks, joiner.NetworkMode = "none", nil, "container:"+owner.ID
	for name, ids := range map[string][]string{"both": {owner.ID, joiner.ID}, "the joiner": {joiner.ID}} {
		t.Run(name, func(t *testing.T) {
			inTime(t, []docker.Container{owner, joiner}, listBridge, func(r *rig) {
				for i, id := range ids {
					r.process(70+i, 5, id)
				}
				r.process(1, 5) // of the host
				r.port(in(near(7), 5), itsMAC)
				r.released(7, false)
				r.attaches(itsEnd(owner.ID))
				r.after(50 * time.Millisecond)
				r.released(7, true)
				r.device(7, "open")
			})
		})
	}
}

// TestTwoInOneNamespace has processes of two containers in a namespace, of which one has joined the other's: which one is not known
// before the network says it.
func TestTwoInOneNamespace(t *testing.T) {
	free, closed := box(7, false), box(8, false, "xdp.drop=udp", "xdp.antispoof=off")
	for _, ids := range [][]string{{free.ID, closed.ID}, {closed.ID, free.ID}} {
		inTime(t, []docker.Container{free, closed}, listBridge, func(r *rig) {
			r.process(70, 5, ids[0])
			r.process(80, 5, ids[1])
			r.port(in(near(7), 5), itsMAC)
			r.after(50 * time.Millisecond)
			r.released(7, false)
			r.attaches(itsEnd(closed.ID))
			r.after(250 * time.Millisecond)
			r.released(7, true)
			r.device(7, "open")
		})
	}
}

// TestDockerInDocker has an engine in a container: cgroups there name two containers, of which the engine outside knows the one.
func TestDockerInDocker(t *testing.T) {
	outer := box(7, false)
	inTime(t, []docker.Container{outer}, listBridge, func(r *rig) {
		r.process(70, 5, outer.ID)
		r.process(71, 5, outer.ID, box(0xffff, false).ID)
		r.port(in(near(7), 5), nil)
		r.released(7, true)
	})
}

// TestCgroupParent starts a container whose cgroup is under that of another on its network: its address says whose the port is.
func TestCgroupParent(t *testing.T) {
	parent, c := box(30, true, "xdp.drop=tcp"), box(7, false, "xdp.drop=udp")
	inTime(t, []docker.Container{parent, c}, func(r *rig) {
		listBridge(r)
		r.plugged(nil, in(near(30), 30))
	}, func(r *rig) {
		r.happens(c, docker.ActionCreate)
		r.process(70, 5, parent.ID, c.ID)
		r.attaches(itsEnd(c.ID), docker.Attachment{ContainerID: parent.ID, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}})
		mac := r.agent.peerMAC
		r.agent.peerMAC = func(p xdp.Port) net.HardwareAddr { time.Sleep(3 * time.Millisecond); return mac(p) } // until the processes are known
		r.port(in(near(7), 5), itsMAC)
		r.after(time.Second)
		r.released(7, true)
		r.kernel.set(func() {
			if w := r.kernel.last[7]; w.Policy == r.kernel.last[30].Policy || w.MAC.String() != itsMAC.String() {
				t.Errorf("the port has the parent's policy, or its MAC: %s", w.MAC)
			}
		})
	})
}

// TestPlainCgroupParent starts a container under the cgroup of one that asks for nothing, which the agent has heard of or not yet: it is not let go as that one.
func TestPlainCgroupParent(t *testing.T) {
	for _, heard := range []bool{false, true} {
		parent, c := box(30, true), box(7, false, "xdp.drop=udp")
		inTime(t, []docker.Container{parent}, listBridge, func(r *rig) {
			r.engine.set(func() { r.engine.containers[c.ID] = c })
			if heard {
				r.happens(c, docker.ActionCreate)
			}
			r.process(70, 5, parent.ID, c.ID)
			r.port(in(near(7), 5), itsMAC)
			r.after(100 * time.Millisecond)
			r.released(7, false)
			r.attaches(itsEnd(c.ID))
			r.after(time.Second)
			r.released(7, true)
			r.device(7, "open")
		})
	}
}

// TestConnectSends joins a running container to another network while it sends.
func TestConnectSends(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, listBridge, func(r *rig) {
		r.want(c, enforced10)
		two := joined(c, "net")
		net := docker.Network{ID: two.Networks[1].NetworkID, Name: "net", Driver: "bridge", Bridge: surroundings{}.bridge(two.Networks[1])}
		r.engine.set(func() {
			r.engine.networks = append(r.engine.networks, net)
			r.engine.attached[net.ID] = []docker.Attachment{itsEnd(c.ID)}
		})
		r.plug(two)
		r.process(70, 5, c.ID)
		p := in(near(11), 5)
		p.Bridge = net.Bridge
		r.kernel.set(func() { r.kernel.unseen[11] = 5 })
		r.port(p, itsMAC)
		r.after(20 * time.Millisecond)
		r.released(11, true)
		r.device(11, "open")
		r.want(c, "enforced [bridge enforced 10:open] [net enforced 11:open]")
		r.happens(two, docker.ActionConnect)
		r.want(c, "enforced [bridge enforced 10:open] [net enforced 11:open]")
	})
}

// TestConnectedWithAnothersMAC joins a running container to a network, where it takes the MAC of another of which a policy is known: before the agent
// has looked at its namespace, or after.
func TestConnectedWithAnothersMAC(t *testing.T) {
	for _, looked := range []bool{false, true} {
		t.Run(fmt.Sprintf("looked at %t", looked), func(t *testing.T) { connectWithAnothersMAC(t, looked) })
	}
}

func connectWithAnothersMAC(t *testing.T, looked bool) {
	c, other := box(10, true, "xdp.drop=all"), joined(box(20, true, "xdp.drop=25/tcp"), "net")
	c.CapAdd = []string{"NET_ADMIN"}
	inTime(t, []docker.Container{c, other}, func(r *rig) {
		listBridge(r)
		its := in(near(21), 20)
		its.Bridge = surroundings{}.bridge(other.Networks[1])
		r.plugged(itsMAC, its)
	}, func(r *rig) {
		last := func(ifindex int) (w xdp.Want) {
			r.kernel.set(func() { w = r.kernel.last[ifindex] })
			return w
		}
		two := joined(c, "net")
		network := docker.Network{ID: two.Networks[1].NetworkID, Name: "net", Driver: "bridge", Bridge: surroundings{}.bridge(two.Networks[1])}
		mine := docker.Attachment{ContainerID: c.ID, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
		r.engine.set(func() { r.engine.networks = append(r.engine.networks, network) })
		r.engine.emit(docker.ActionNetworks, "")
		r.after(0)
		r.plug(two)
		r.process(70, 5, c.ID)
		p := in(near(11), 5)
		p.Bridge = network.Bridge
		ends := []docker.Attachment{itsEnd(other.ID), mine}
		if !looked {
			r.engine.set(func() { r.engine.attached[network.ID] = ends })
		}
		r.port(p, itsMAC)
		if looked {
			r.ring() // its namespace says whose it is
			r.engine.set(func() { r.engine.attached[network.ID] = ends })
		}
		for range 100 {
			r.after(time.Millisecond)
			if w := last(11); w.Policy != nil && w.Policy != last(10).Policy || w.MAC.String() == itsMAC.String() {
				t.Fatalf("the port has another's policy, and MAC %s", w.MAC)
			}
		}
		r.released(11, true)
		if w := last(11); w.MAC.String() != mine.MAC.String() {
			t.Errorf("judged by MAC %s", w.MAC)
		}
	})
}

// TestPortMoves has a port's other end move into another namespace while it is held: who is there now is found at once.
func TestPortMoves(t *testing.T) {
	for label, device := range map[string]string{"xdp.drop=udp": "open", "other=label": ""} {
		inTime(t, nil, listBridge, func(r *rig) {
			c := box(7, false, label)
			r.happens(c, docker.ActionCreate)
			r.port(in(near(7), 5), itsMAC)
			r.after(600 * time.Millisecond)
			r.released(7, false) // and looked for at long intervals by now
			if device != "" {    // else its process alone says whose it is
				r.attaches(itsEnd(c.ID))
			}
			r.process(70, 6, c.ID)
			r.port(in(near(7), 6), itsMAC)
			r.released(7, true)
			r.device(7, device)
		})
	}
}

// TestPortLeavesItsOwner has the other end of a port that was found in a container's namespace move into another's: that one may have a MAC
// that the first may not take.
func TestPortLeavesItsOwner(t *testing.T) {
	first, second := box(10, true, "xdp.drop=all"), box(20, false, "xdp.drop=25/tcp")
	inTime(t, []docker.Container{first, second}, listBridge, func(r *rig) {
		net := docker.Network{ID: joined(first, "net").Networks[1].NetworkID, Name: "net", Driver: "bridge", Bridge: surroundings{}.bridge(joined(first, "net").Networks[1])}
		r.engine.set(func() { r.engine.networks = append(r.engine.networks, net) })
		r.plug(joined(first, "net"))
		p := in(near(11), 10)
		p.Bridge = net.Bridge
		r.port(p, itsMAC)
		r.ring()
		r.device(11, "open") // by the first's policy, until the network says more
		r.released(11, false)
		r.plug(first)
		r.engine.set(func() { r.engine.attached[net.ID] = []docker.Attachment{itsEnd(second.ID)} })
		p.NsID = 20
		r.port(p, itsMAC)
		r.after(100 * time.Millisecond)
		r.released(11, true)
		r.kernel.set(func() {
			if w := r.kernel.last[11]; w.Policy == r.kernel.last[10].Policy || w.MAC.String() != itsMAC.String() {
				t.Errorf("judged by MAC %s, by the first's policy: %v", w.MAC, w.Policy == r.kernel.last[10].Policy)
			}
		})
	})
}

// TestStaleAddresses reconnects a running container to its network while nobody hears of it: what Docker said of it before is not what its new
// port is judged by when it is released.
func TestStaleAddresses(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	c.Networks[0].MAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	inTime(t, []docker.Container{c}, listBridge, func(r *rig) {
		gate := make(chan struct{})
		again := c
		again.Networks = slices.Clone(c.Networks)
		again.Networks[0].MAC = itsMAC
		r.engine.set(func() { r.engine.hang[c.ID], r.engine.containers[c.ID] = gate, again })
		r.engine.cut()
		r.after(time.Second)
		r.kernel.set(func() { r.kernel.namespaces[c.SandboxKey][0].Index = 11 })
		r.port(in(near(11), 10), itsMAC)
		r.ring()
		r.device(11, "open")
		r.released(11, false)
		close(gate)
		r.after(0)
		r.released(11, true)
		if w := r.kernel.last[11]; w.MAC.String() != itsMAC.String() {
			t.Errorf("judged by MAC %s", w.MAC)
		}
	})
}

// TestReleasedByItsSandbox is for an agent that sees no processes, and whose socket proxy hides networks.
func TestReleasedByItsSandbox(t *testing.T) {
	inTime(t, nil, listBridge, func(r *rig) {
		r.engine.set(func() { r.engine.broken["attachments"] = errors.New("forbidden") })
		created := box(7, false, "xdp.drop=udp")
		r.happens(created, docker.ActionCreate)
		r.port(in(near(7), 5), itsMAC)
		r.after(100 * time.Millisecond)
		r.released(7, false)
		up := started(created, 7)
		up.Networks[0].MAC, up.Networks[0].Addrs = itsMAC, []netip.Addr{itsAddr}
		r.happens(up, docker.ActionStart)
		r.released(7, true)
		r.want(up, "enforced [bridge enforced 7:open]")
	})
}

// TestHeldByXDP counts what was faster than the program.
func TestHeldByXDP(t *testing.T) {
	prepare := func(r *rig) {
		listBridge(r)
		h := r.kernel.hold
		h.way, h.fail["way"], h.unseen = xdp.HeldXDP, errors.New("no nftables"), 2
	}
	inTime(t, nil, prepare, func(r *rig) {
		c := box(7, false, "xdp.drop=udp")
		r.happens(c, docker.ActionCreate)
		r.attaches(itsEnd(c.ID))
		r.port(in(near(7), 5), itsMAC)
		r.after(10 * time.Millisecond)
		r.released(7, true)
		r.happens(started(c, 7), docker.ActionStart)
		r.want(c, "late [bridge late 7:open]")
		if !r.said("WARN", "no nftables") {
			t.Error("the log does not say why")
		}
	})
}

// TestLateOfANewPort has a port be filtered that was faster than what holds it, while a list is on its way that lacks it: how much has passed is not
// forgotten over that.
func TestLateOfANewPort(t *testing.T) {
	c := joined(box(10, true, "xdp.drop=udp"), "other")
	one := c
	one.Networks = c.Networks[:1]
	other := docker.Network{ID: c.Networks[1].NetworkID, Name: "other", Driver: "bridge", Bridge: surroundings{}.bridge(c.Networks[1])}
	inTime(t, []docker.Container{one}, func(r *rig) {
		r.engine.networks = []docker.Network{bridge, other}
		r.kernel.hold.way, r.kernel.hold.unseen = xdp.HeldXDP, 2
	}, func(r *rig) {
		r.want(c, enforced10)
		gate, first, list := make(chan struct{}), true, r.agent.list
		r.agent.list = func() (links, error) {
			l, err := list()
			if first {
				first, l.veths = false, oldVeths{r.kernel, vethsFor(one)}
				<-gate
			}
			return l, err
		}
		r.port(near(5), nil)                     // is held
		r.tells(xdp.Change{Index: 10, NsID: 10}) // so this is listed beside the loop
		r.engine.set(func() { r.engine.containers[c.ID], r.engine.attached[other.ID] = c, []docker.Attachment{itsEnd(c.ID)} })
		r.plug(c)
		r.process(70, 10, c.ID)
		p := in(near(11), 10)
		p.Bridge = other.Bridge
		r.port(p, itsMAC)
		r.after(20 * time.Millisecond)
		r.released(11, true)
		r.device(11, "open")
		close(gate)
		r.after(time.Second)
		r.want(c, "late [bridge enforced 10:open] [other late 11:open]")
		r.plug(one)
		r.happens(one, docker.ActionDisconnect)
		r.kernel.hold.set(func() { delete(r.kernel.hold.ports, 11) })
		r.tells(xdp.Change{Index: 11, Gone: true, NsID: -1})
		r.after(resync)
		r.want(c, enforced10)
		if n := len(r.agent.containers[c.ID].late); n > 0 {
			t.Errorf("%d devices that are gone are late", n)
		}
	})
}

// TestHeldFor is for a port by which nothing could come yet.
func TestHeldFor(t *testing.T) {
	if got := (&port{}).heldFor(); got != 0 {
		t.Errorf("held for %v", got)
	}
	if got := (&port{live: time.Now().Add(-time.Minute)}).heldFor(); got < time.Minute {
		t.Errorf("held for %v", got)
	}
}

// TestAgentWasStopped looks at everything when the hold has ended meanwhile.
func TestAgentWasStopped(t *testing.T) {
	inTime(t, nil, listBridge, func(r *rig) {
		beats := r.kernel.hold.count()
		r.after(10 * time.Second)
		if n := r.kernel.hold.count() - beats; n < 9 || n > 11 {
			t.Errorf("refreshed %d times in 10 s", n)
		}
		c := box(7, true, "xdp.drop=udp")
		r.happens(c) // unheard
		r.kernel.set(func() { r.kernel.unseen[7] = 4 })
		r.kernel.hold.set(func() { r.kernel.hold.ports[7] = in(near(7), 5); r.kernel.hold.lapsed = true })
		r.after(1100 * time.Millisecond)
		r.want(c, "late [bridge late 7:open]")
		if !r.said("WARN", "the agent was stopped") {
			t.Error("not reported")
		}
	})
}

// TestRenamedAndStarted gives a container a name by which the configuration picks it, and starts it before an inspect can say so.
func TestRenamedAndStarted(t *testing.T) {
	inTime(t, nil, listBridge, func(r *rig) {
		conf, err := config.Parse("config.yaml", []byte("policies:\n  - pick: {name: shop*}\n    labels: {xdp.drop: udp}\n"))
		if err != nil {
			t.Fatal(err)
		}
		r.agent.tell(func() { r.agent.around.conf = conf })
		c := box(7, false)
		r.happens(c, docker.ActionCreate)
		gate := make(chan struct{})
		r.engine.set(func() { r.engine.hang[c.ID] = gate })
		c.Name = "shop1"
		r.happens(c, docker.ActionRename)
		r.attaches(itsEnd(c.ID))
		r.process(70, 5, c.ID)
		r.port(in(near(7), 5), itsMAC)
		r.after(100 * time.Millisecond)
		r.released(7, true)
		r.device(7, "open")
		close(gate)
		r.after(0)
	})
}

// TestPickedByImage starts containers before an inspect can say of which image they are: the list says it, unless the image's tag has moved.
func TestPickedByImage(t *testing.T) {
	for _, tc := range []struct {
		name, image string
		moved       bool
		atOnce      bool   // released before the inspect
		device      string // in the end
	}{
		{"shop1", "nginx:1", false, false, "open"},
		{"shop1", "redis:7", false, true, ""},
		{"shop1", "nginx:1", true, false, "open"},
		{"shop1", "redis:7", true, false, ""},
		{"other", "nginx:1", true, true, ""}, // its name alone says that no policy is its
	} {
		t.Run(fmt.Sprintf("%s of %s, moved %t", tc.name, tc.image, tc.moved), func(t *testing.T) {
			inTime(t, nil, func(r *rig) {
				listBridge(r)
				r.engine.moved = tc.moved
				r.conf = "policies:\n- {pick: {name: 'shop*', image: 'nginx:*'}, labels: {xdp.drop: udp}}\n"
			}, func(r *rig) {
				c, gate := box(7, false), make(chan struct{})
				c.Name, c.Image = tc.name, tc.image
				r.engine.set(func() { r.engine.hang[c.ID] = gate })
				r.happens(c, docker.ActionCreate)
				r.attaches(itsEnd(c.ID))
				r.process(70, 5, c.ID)
				r.port(in(near(7), 5), itsMAC)
				r.after(100 * time.Millisecond)
				r.released(7, tc.atOnce)
				r.device(7, "")
				close(gate)
				r.after(0)
				r.released(7, true)
				r.device(7, tc.device)
			})
		})
	}
}

// TestPortGoes has a port end while it is held.
func TestPortGoes(t *testing.T) {
	inTime(t, nil, listBridge, func(r *rig) {
		r.port(in(near(7), 5), itsMAC)
		r.kernel.hold.set(func() { delete(r.kernel.hold.ports, 7) })
		r.ring()
		if len(r.agent.held) > 0 {
			t.Errorf("still held: %v", r.agent.held)
		}
		r.after(6 * time.Second)
		if r.said("WARN", "") {
			t.Error("noise in the log")
		}
	})
}

// TestFloorReachesThePlain has a configuration come that concerns containers which nothing did.
func TestFloorReachesThePlain(t *testing.T) {
	inTime(t, []docker.Container{box(7, false)}, listBridge, func(r *rig) {
		c := box(7, false)
		conf, err := config.Parse("config.yaml", []byte("floor: {xdp.drop: udp}\n"))
		if err != nil {
			t.Fatal(err)
		}
		r.agent.tell(func() { r.agent.configure(conf) })
		r.after(0)
		r.attaches(itsEnd(c.ID))
		r.process(70, 5, c.ID)
		r.port(in(near(7), 5), itsMAC)
		r.after(10 * time.Millisecond)
		r.released(7, true)
		r.device(7, "open")
	})
}

// TestNobodyWaitsForTheKernel has the kernel keep three questions waiting, of which each is about one port or about what runs, while another port
// comes: that one is settled at once.
func TestNobodyWaitsForTheKernel(t *testing.T) {
	for _, what := range []string{"links", "address", "hooks"} {
		t.Run(what, func(t *testing.T) {
			running := box(9, true, "xdp.drop=udp")
			slow, quick, other := box(6, false, "xdp.egress.allow=53/udp"), box(7, false, "xdp.drop=udp"), box(8, false)
			inTime(t, []docker.Container{running}, func(r *rig) {
				listBridge(r)
				r.kernel.hold.rest = &xdp.Rest{}
			}, func(r *rig) {
				gate, stuck := make(chan struct{}), 0
				wait := func(is bool) {
					if is {
						stuck++
						<-gate
					}
				}
				list, mac, attach := r.agent.list, r.agent.peerMAC, r.agent.attachRest
				r.agent.list = func() (links, error) { wait(what == "links"); return list() }
				r.agent.peerMAC = func(p xdp.Port) net.HardwareAddr { wait(what == "address" && p.Index == 6); return mac(p) }
				r.agent.attachRest = func(rest *xdp.Rest) error { wait(what == "hooks"); return attach(rest) }
				end := itsEnd(slow.ID)
				end.MAC, end.Addrs = net.HardwareAddr{0, 0, 0x5e, 0, 0x53, 6}, []netip.Addr{netip.MustParseAddr("192.0.2.6")}
				for _, c := range []docker.Container{slow, quick, other} {
					r.happens(c, docker.ActionCreate)
				}
				r.attaches(itsEnd(quick.ID), end)
				if what == "hooks" {
					r.port(near(6), end.MAC)
				}
				r.port(near(5), nil) // of which nothing can come yet
				r.after(time.Second)
				r.port(in(near(6), 4), end.MAC)
				r.tells(xdp.Change{Index: 9, NsID: 9}) // what runs is looked at
				r.port(in(near(7), 5), itsMAC)
				r.after(time.Millisecond)
				r.released(7, true)
				r.device(7, "open")
				r.released(6, what == "links")
				if stuck == 0 {
					t.Error("nothing waits for the kernel")
				}
				close(gate)
				r.after(time.Second)
				r.released(6, true)
				r.device(6, "open")
				r.want(running, "enforced [bridge enforced 9:open]")
			})
		})
	}
}

// TestHeldTooLongWhilePrepared ends the hold of a port whose hooks the kernel is attaching: what does so is waited for, and taken, before the port
// is closed.
func TestHeldTooLongWhilePrepared(t *testing.T) {
	inTime(t, nil, func(r *rig) {
		listBridge(r)
		r.kernel.hold.rest = &xdp.Rest{}
	}, func(r *rig) {
		c := box(7, false, "xdp.egress.allow=neighbors,53/udp")
		gate, inspect := make(chan struct{}), make(chan struct{})
		attach := r.agent.attachRest
		r.agent.attachRest = func(rest *xdp.Rest) error { <-gate; return attach(rest) }
		r.happens(c, docker.ActionCreate)
		r.engine.set(func() { r.engine.hang[c.ID] = inspect })
		r.attaches(itsEnd(c.ID))
		r.port(near(7), net.HardwareAddr{0, 0, 0x5e, 0, 0x53, 1})
		r.after(time.Second)
		r.port(in(near(7), 5), itsMAC)
		r.after(holdLimit - time.Millisecond)
		r.released(7, false)
		time.AfterFunc(time.Second, func() { close(gate) })
		r.after(2 * time.Second)
		r.released(7, true)
		if n, took := r.kernel.count("take 0"), r.kernel.count("rest 0"); n != 1 || took != 1 {
			t.Errorf("taken %d times of %d", n, took)
		}
		close(inspect)
	})
}

// TestOutlinedOfTwoHooks starts containers of which Docker says only after the start what they are: by the engine's runtimes and user namespaces
// they may take two hooks, and are told so at first. What one has begun that takes a guard after all is forgotten; two hooks judge each, because of any of
// them it may be that it sends raw frames.
func TestOutlinedOfTwoHooks(t *testing.T) {
	runc := []string{"io.containerd.runc.v2", "runc"}
	for name, tc := range map[string]struct {
		mayRun              []string
		mayRemap            bool
		change              func(*docker.Container) // what the inspect says
		first, last, forget bool
	}{
		"plain":                          {runc, false, func(*docker.Container) {}, false, false, false},
		"the engine has kata":            {append(runc, "kata"), false, func(*docker.Container) {}, true, false, false},
		"and it is kata":                 {append(runc, "kata"), false, func(c *docker.Container) { c.Runtime = "kata" }, true, true, false},
		"the engine remaps users":        {runc, true, func(c *docker.Container) { c.UserNS = true }, true, false, false},
		"NET_ADMIN":                      {runc, false, func(c *docker.Container) { c.CapAdd = []string{"NET_ADMIN"} }, false, true, true},
		"a runtime that nobody has told": {runc, false, func(c *docker.Container) { c.Runtime = "io.containerd.kata.v2" }, false, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, nil, listBridge, func(r *rig) {
				c := box(7, false, "xdp.egress.allow=53/udp")
				c.MayRun, c.MayRemap = tc.mayRun, tc.mayRemap
				gate := make(chan struct{})
				r.engine.set(func() { r.engine.hang[c.ID] = gate })
				r.happens(c, docker.ActionCreate)
				r.attaches(itsEnd(c.ID))
				r.process(70, 5, c.ID)
				r.port(in(near(7), 5), itsMAC)
				r.after(100 * time.Millisecond)
				r.released(7, true)
				r.kernel.set(func() {
					if got := r.kernel.last[7].BothHooks; got != tc.first {
						t.Errorf("both hooks at first: %v, want %v", got, tc.first)
					}
				})
				if got := r.kernel.hold.Guarded(7); got != tc.mayRemap {
					t.Errorf("guarded: %v, want %v", got, tc.mayRemap)
				}
				up := started(c, 7)
				up.MayRun, up.MayRemap = nil, false
				tc.change(&up)
				r.engine.set(func() { r.engine.containers[c.ID] = up })
				r.plug(up)
				close(gate)
				r.after(resync)
				r.want(up, "enforced [bridge enforced 7:open]")
				r.kernel.set(func() {
					if got := r.kernel.last[7].BothHooks; got != tc.last {
						t.Errorf("both hooks at last: %v, want %v", got, tc.last)
					}
				})
				if got := r.kernel.count("forget conversations 7") > 0; got != tc.forget {
					t.Errorf("conversations are forgotten: %v, want %v", got, tc.forget)
				}
			})
		})
	}
}

// TestHeardAddress recognises a port by what the kernel has told, without asking, and asks where it has told of an address that the port has not any more.
func TestHeardAddress(t *testing.T) {
	for name, tc := range map[string]struct {
		heard net.HardwareAddr
		asks  int
	}{"heard": {itsMAC, 0}, "nothing": {nil, 1}, "of before": {net.HardwareAddr{0, 0, 0x5e, 0, 0x53, 9}, 1}} {
		t.Run(name, func(t *testing.T) {
			inTime(t, nil, listBridge, func(r *rig) {
				asks, ask := 0, r.agent.peerMAC
				r.agent.peerMAC = func(p xdp.Port) net.HardwareAddr { asks++; return ask(p) }
				r.agent.heardMAC = func(xdp.Port) net.HardwareAddr { return tc.heard }
				c := box(7, false, "xdp.drop=udp")
				r.happens(c, docker.ActionCreate)
				r.attaches(itsEnd(c.ID))
				r.port(near(7), nil)
				r.after(time.Second)
				r.port(in(near(7), 5), itsMAC)
				r.released(7, true)
				r.device(7, "open")
				if asks != tc.asks {
					t.Errorf("asked %d times, want %d", asks, tc.asks)
				}
			})
		})
	}
}

// slowProcesses has a look at the host's processes take long.
func (r *rig) slowProcesses() {
	processes := r.agent.processes
	r.agent.processes = func(proc string, nsids []int) (map[int][]int, error) {
		time.Sleep(20 * time.Millisecond) // there are thousands
		return processes(proc, nsids)
	}
}

// filteredFirst checks that a port is released soon, and never without its filter.
func (r *rig) filteredFirst(port int) {
	r.t.Helper()
	for range 100 {
		r.after(time.Millisecond)
		var filtered bool
		r.kernel.set(func() { filtered = r.kernel.attached[port] == "open" })
		if r.kernel.hold.Known(port) && !filtered {
			r.t.Error("released as another's, without a filter")
			break
		}
	}
	r.released(port, true)
	r.device(port, "open")
}

// TestConnectedWithAPlainNeighborsMAC joins a running container to a network, where it takes the MAC of one that asks for nothing, before anybody has looked
// at the processes behind its port: that is not released as the other's.
func TestConnectedWithAPlainNeighborsMAC(t *testing.T) {
	c, other := box(10, true, "xdp.egress.drop=all"), joined(box(20, true), "net")
	inTime(t, []docker.Container{c, other}, func(r *rig) {
		listBridge(r)
		its := in(near(21), 20)
		its.Bridge = surroundings{}.bridge(other.Networks[1])
		r.plugged(itsMAC, its)
		r.plugged(nil, in(near(10), 10))
	}, func(r *rig) {
		two := joined(c, "net")
		network := docker.Network{ID: two.Networks[1].NetworkID, Name: "net", Driver: "bridge", Bridge: surroundings{}.bridge(two.Networks[1])}
		mine := docker.Attachment{ContainerID: c.ID, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
		r.engine.set(func() {
			r.engine.networks = append(r.engine.networks, network)
			r.engine.attached[network.ID] = []docker.Attachment{itsEnd(other.ID), mine}
		})
		r.engine.emit(docker.ActionNetworks, "")
		r.after(0)
		r.slowProcesses()
		r.process(70, 10, c.ID)
		p := in(near(11), 10)
		p.Bridge = network.Bridge
		r.port(p, itsMAC)
		r.plug(two)
		r.filteredFirst(11)
	})
}

// TestBackWithAPlainNeighborsMAC joins a running container that has left all networks to one, where it takes the MAC of one that asks for nothing: no port of
// its tells who it is, but the processes there, also where another container has joined its network.
func TestBackWithAPlainNeighborsMAC(t *testing.T) {
	for _, shared := range []bool{false, true} {
		c, other := box(10, true, "xdp.egress.drop=all"), joined(box(20, true), "net")
		guest := joiner(30, shared, c.ID, nil)
		back := joined(c, "net")
		back.Networks, c.Networks = back.Networks[1:], nil
		inTime(t, []docker.Container{c, other, guest}, func(r *rig) {
			listBridge(r)
			its := in(near(21), 20)
			its.Bridge = surroundings{}.bridge(other.Networks[1])
			r.plugged(itsMAC, its)
		}, func(r *rig) {
			network := docker.Network{ID: back.Networks[0].NetworkID, Name: "net", Driver: "bridge", Bridge: surroundings{}.bridge(back.Networks[0])}
			mine := docker.Attachment{ContainerID: c.ID, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
			r.engine.set(func() {
				r.engine.networks = append(r.engine.networks, network)
				r.engine.attached[network.ID] = []docker.Attachment{itsEnd(other.ID), mine}
			})
			r.engine.emit(docker.ActionNetworks, "")
			r.after(0)
			r.slowProcesses()
			r.process(70, 10, c.ID)
			if shared {
				r.process(71, 10, guest.ID)
			}
			p := in(near(11), 10)
			p.Bridge = network.Bridge
			r.port(p, itsMAC)
			r.filteredFirst(11)
		})
	}
}
