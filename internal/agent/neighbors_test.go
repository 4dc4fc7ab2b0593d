package agent

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

const bridgeIndex = 3

// port8 is that of a neighbour, and its end.
func port8() xdp.Port {
	p := in(near(8), 6)
	p.Master = bridgeIndex
	return p
}

var end8 = docker.Attachment{MAC: net.HardwareAddr{0, 0, 0x5e, 0, 0x53, 8}, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.8"), netip.MustParseAddr("2001:db8::8")}}

// addresses8 are all that come in by port8.
var addresses8 = append(slices.Clone(end8.Addrs), policy.LinkLocal([6]byte(end8.MAC)))

// plugged has ports that were there before the agent.
func (r *rig) plugged(mac net.HardwareAddr, p xdp.Port) {
	p.Master = bridgeIndex
	h := r.kernel.hold
	h.set(func() { h.ports[p.Index], h.macs[p.Index], h.released[p.Index] = p, mac, true })
}

// knows checks which addresses a port is known to have; nil where nothing of it is known.
func (r *rig) knows(port int, want []netip.Addr) {
	r.t.Helper()
	r.kernel.mu.Lock()
	defer r.kernel.mu.Unlock()
	if got := r.kernel.neighbors[port]; !slices.Equal(got, want) {
		r.t.Errorf("port %d is known for %v, want %v", port, got, want)
	}
}

func (r *rig) judgesBy(ifindex, want int) {
	r.t.Helper()
	r.kernel.mu.Lock()
	defer r.kernel.mu.Unlock()
	if got := r.kernel.last[ifindex].Bridge; got != want {
		r.t.Errorf("device %d judges by the ports of %d, want %d", ifindex, got, want)
	}
}

// guarding is a running container that judges by who has sent what it receives, and a neighbour that runs as well.
func guarding(r *rig) {
	gateway := netip.MustParseAddr("192.0.2.1")
	n := bridge
	n.Subnets = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	r.engine.networks = []docker.Network{n}
	r.kernel.host.addrs = []netip.Addr{netip.MustParseAddr("127.0.0.1"), gateway, netip.MustParseAddr("203.0.113.1")}
	r.plugged(itsMAC, in(near(7), 5))
	r.plugged(end8.MAC, port8())
	r.engine.attached[bridge.ID] = []docker.Attachment{itsEnd(""), end8}
}

// TestNeighborsAreKnown has neighbours that were there before, and a list that lacks them later.
func TestNeighborsAreKnown(t *testing.T) {
	inTime(t, []docker.Container{box(7, true, "xdp.ingress.drop=udp")}, guarding, func(r *rig) {
		r.judgesBy(7, bridgeIndex)
		r.knows(7, []netip.Addr{itsAddr, policy.LinkLocal([6]byte(itsMAC))})
		r.knows(8, addresses8)
		r.knows(bridgeIndex, []netip.Addr{netip.MustParseAddr("192.0.2.1")})
		r.attaches()
		r.after(time.Minute)
		r.knows(8, addresses8)
		r.engine.set(func() { r.engine.broken["attachments"] = errors.New("no answer") })
		r.after(time.Minute)
		r.knows(8, addresses8)
	})
}

// TestNeighborGivenAnothersMAC starts one that was given the MAC of a neighbour: what IPv6 makes of it stays that neighbour's.
func TestNeighborGivenAnothersMAC(t *testing.T) {
	c := box(9, false)
	inTime(t, []docker.Container{box(7, true, "xdp.ingress.drop=udp"), c}, guarding, func(r *rig) {
		end9 := docker.Attachment{ContainerID: c.ID, MAC: end8.MAC, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.9")}}
		r.attaches(itsEnd(""), end8, end9)
		r.process(90, 9, c.ID)
		p := in(near(9), 9)
		p.Master = bridgeIndex
		r.port(p, end8.MAC)
		r.after(time.Second)
		r.released(9, true)
		r.knows(8, addresses8)
		r.knows(9, end9.Addrs)
	})
}

// TestNeighborsOfHalfAList has the list of networks lack one whose neighbours are judged, while a port comes there: the host keeps its addresses.
func TestNeighborsOfHalfAList(t *testing.T) {
	inTime(t, []docker.Container{box(7, true, "xdp.ingress.drop=udp")}, func(r *rig) {
		guarding(r)
		r.engine.networks = append(r.engine.networks, docker.Network{ID: "d" + bridge.ID[1:], Name: "host", Driver: "host"})
	}, func(r *rig) {
		asked := len(r.engine.order)
		r.engine.set(func() { r.engine.half = map[string]bool{bridge.ID: true} })
		r.engine.emit(docker.ActionNetworks, "")
		p := in(near(9), 9)
		p.Master = bridgeIndex
		r.port(p, nil)
		r.after(time.Second)
		if !slices.Contains(r.engine.order[asked:], "attachments") {
			t.Error("the network is not asked for by itself")
		}
		r.knows(bridgeIndex, []netip.Addr{netip.MustParseAddr("192.0.2.1")})
		r.knows(8, addresses8)
	})
}

// TestRoutesBack has an engine without a proxy for published ports.
func TestRoutesBack(t *testing.T) {
	for _, hairpin := range []bool{false, true} {
		inTime(t, []docker.Container{box(7, true, "xdp.ingress.drop=udp")}, func(r *rig) {
			guarding(r)
			r.kernel.hairpin = hairpin
		}, func(r *rig) {
			r.after(time.Minute)
			told := r.kernel.count("routes back 3")
			r.kernel.mu.Lock()
			defer r.kernel.mu.Unlock()
			if r.kernel.routesBack != hairpin || told != 1 {
				t.Errorf("hairpin is %v, the kernel is told %v, %d times", hairpin, r.kernel.routesBack, told)
			}
		})
	}
}

// TestNobodyJudgesNeighbors has policies that need not know who has sent what.
func TestNobodyJudgesNeighbors(t *testing.T) {
	for _, label := range []string{"xdp.enable=true", "xdp.antispoof=false xdp.ingress.drop=udp", "xdp.drop=nonsense"} {
		inTime(t, []docker.Container{box(7, true, strings.Fields(label)...)}, guarding, func(r *rig) {
			r.judgesBy(7, 0)
			r.after(time.Minute)
			r.knows(8, nil)
		})
	}
}

// TestNewNeighbor starts a container without labels: its first packet finds that it is known.
func TestNewNeighbor(t *testing.T) {
	inTime(t, []docker.Container{box(7, true, "xdp.ingress.drop=udp")}, func(r *rig) {
		guarding(r)
		h := r.kernel.hold
		delete(h.ports, 8)
		delete(h.released, 8)
		r.engine.attached[bridge.ID] = []docker.Attachment{itsEnd("")}
		h.releasing = func(ifindex int) {
			if ifindex == 8 && (len(r.kernel.neighbors[8]) == 0 || !r.kernel.sure[8]) {
				t.Error("released before it is known, and before whoever had its addresses has them no more")
			}
		}
	}, func(r *rig) {
		created := box(8, false)
		r.happens(created, docker.ActionCreate)
		r.process(80, 6, created.ID)
		r.port(port8(), end8.MAC)
		// Other containers start, and the network says each time what there is.
		for range 20 {
			r.agent.tell(func() { r.agent.lookAtNeighbors(bridge.ID) })
			r.after(5 * time.Millisecond)
		}
		r.released(8, false)
		r.knows(8, nil)
		r.attaches(itsEnd(""), end8)
		r.after(100 * time.Millisecond)
		r.released(8, true)
		r.knows(8, addresses8)
	})
}

// TestNewNeighborBesideOneWithoutPort starts a container without labels, while one with a filter runs that has joined no network: it is released as soon as
// the network has named it, however often its processes were looked at before.
func TestNewNeighborBesideOneWithoutPort(t *testing.T) {
	portless := box(20, true, "xdp.drop=udp")
	portless.NetworkMode, portless.Networks = "none", nil
	inTime(t, []docker.Container{box(7, true, "xdp.ingress.drop=udp"), portless}, func(r *rig) {
		guarding(r)
		delete(r.kernel.hold.ports, 8)
		delete(r.kernel.hold.released, 8)
		r.kernel.namespaces[portless.SandboxKey] = nil
		r.engine.attached[bridge.ID] = []docker.Attachment{itsEnd("")}
	}, func(r *rig) {
		created := box(8, false)
		r.happens(created, docker.ActionCreate)
		r.process(80, 6, created.ID)
		r.port(port8(), end8.MAC)
		r.after(100 * time.Millisecond)
		r.released(8, false)
		named := end8
		named.ContainerID = created.ID
		r.attaches(itsEnd(""), named)
		r.after(100 * time.Millisecond)
		r.released(8, true)
		r.knows(8, addresses8)
	})
}

// TestNewNeighborUnnamed has the network not name a new neighbour, or not answer: it is not held for long, and the next lists
// say who it is.
func TestNewNeighborUnnamed(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		wait time.Duration
	}{
		"not named": {nil, time.Second}, "no answer": {errors.New("forbidden"), 10 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, []docker.Container{box(7, true, "xdp.ingress.drop=udp")}, func(r *rig) {
				guarding(r)
				delete(r.kernel.hold.ports, 8)
				delete(r.kernel.hold.released, 8)
				r.engine.attached[bridge.ID] = []docker.Attachment{itsEnd("")}
			}, func(r *rig) {
				r.engine.set(func() { r.engine.broken["attachments"] = tc.err })
				created := box(8, false)
				r.happens(created, docker.ActionCreate)
				r.process(80, 6, created.ID)
				r.port(port8(), end8.MAC)
				r.after(tc.wait)
				r.released(8, true)
				r.knows(8, nil)
				r.engine.set(func() { r.engine.broken["attachments"] = nil })
				r.attaches(itsEnd(""), end8)
				r.after(2 * resync)
				r.knows(8, addresses8)
			})
		})
	}
}

// TestNamelessNeighbor has a list lack a port. It may be older than the port: what comes in there is nobody's not at once, but after 5 s.
func TestNamelessNeighbor(t *testing.T) {
	inTime(t, []docker.Container{box(7, true, "xdp.ingress.drop=udp")}, func(r *rig) {
		guarding(r)
		r.engine.attached[bridge.ID] = []docker.Attachment{itsEnd("")}
	}, func(r *rig) {
		told := func() (told bool) {
			r.kernel.set(func() { _, told = r.kernel.neighbors[8] })
			return told
		}
		look := func() {
			r.agent.tell(func() { r.agent.lookAtNeighbors(bridge.ID) })
			r.after(10 * time.Millisecond)
		}
		look()
		r.after(time.Second)
		look()
		if told() {
			t.Error("a port is nobody's after a second")
		}
		r.after(holdLimit)
		look()
		if !told() {
			t.Error("a port is not nobody's after more than 5 s")
		}
	})
}

// TestSameMAC has a neighbour take another's MAC before the agent comes: neither is taken for the other.
func TestSameMAC(t *testing.T) {
	inTime(t, []docker.Container{box(7, true, "xdp.ingress.drop=udp")}, func(r *rig) {
		guarding(r)
		r.plugged(end8.MAC, in(near(9), 7))
	}, func(r *rig) {
		r.after(time.Minute)
		r.knows(8, nil)
		r.knows(9, nil)
		r.knows(7, []netip.Addr{itsAddr, policy.LinkLocal([6]byte(itsMAC))})
		if n := r.kernel.count("introduce 9"); n == 0 {
			t.Error("who has another's MAC may send what he likes")
		}
	})
}

// networkOf is a network of a container's own; its bridge's ifindex is pid + 100.
func networkOf(pid int) docker.Network {
	name := fmt.Sprintf("net%d", pid)
	return docker.Network{ID: fmt.Sprintf("%064x", pid), Name: name, Driver: "bridge", Bridge: name}
}

func on(n docker.Network) docker.Endpoint {
	return docker.Endpoint{Network: n.Name, NetworkID: n.ID, Driver: n.Driver}
}

// TestOtherNetworks has a container that judges its neighbours on two networks: on each it is known who is on the other, and who is on both. What is
// on a third does not matter to it.
func TestOtherNetworks(t *testing.T) {
	var all []docker.Container
	for _, pid := range []int{7, 9, 10} {
		all = append(all, box(pid, true, "xdp.ingress.drop=udp"))
	}
	all[0].Networks = append(all[0].Networks, on(networkOf(9)))
	all[1].Networks, all[2].Networks = []docker.Endpoint{on(networkOf(9))}, []docker.Endpoint{on(networkOf(10))}
	end := func(id string, mac net.HardwareAddr, addr string) docker.Attachment {
		return docker.Attachment{ContainerID: id, MAC: mac, Addrs: []netip.Addr{netip.MustParseAddr(addr)}}
	}
	inTime(t, all, func(r *rig) {
		guarding(r)
		r.engine.attached[bridge.ID] = []docker.Attachment{itsEnd(all[0].ID), end("both", end8.MAC, "192.0.2.8")}
		for _, pid := range []int{9, 10} {
			n, mac := networkOf(pid), net.HardwareAddr{0, 0, 0x5e, 0, 0x53, byte(pid)}
			r.engine.networks = append(r.engine.networks, n)
			r.engine.attached[n.ID] = []docker.Attachment{end("other", mac, fmt.Sprintf("198.51.100.%d", pid)), end("both", end8.MAC, "198.51.100.8")}
			p := in(near(pid), pid-2)
			p.Bridge, p.Master = n.Bridge, pid+100
			h := r.kernel.hold
			h.set(func() { h.ports[pid], h.macs[pid], h.released[pid] = p, mac, true })
		}
	}, func(r *rig) {
		r.after(time.Minute)
		want := map[string]string{
			"192.0.2.7 on 109": "of 3 []", "192.0.2.8 on 109": "of 3 [198.51.100.8]",
			"198.51.100.9 on 3": "of 109 []", "198.51.100.8 on 3": "of 109 [192.0.2.8]",
			// The host's.
			"203.0.113.1 on 3": "of 3 []", "203.0.113.1 on 109": "of 109 []", "203.0.113.1 on 110": "of 110 []", "192.0.2.1 on 109": "of 109 []", "192.0.2.1 on 110": "of 110 []",
		}
		r.kernel.mu.Lock()
		defer r.kernel.mu.Unlock()
		if got := r.kernel.elsewhere; !maps.Equal(got, want) {
			t.Errorf("the kernel knows %v, want %v", got, want)
		}
	})
}

// TestConnectedWithANeighborsMAC joins a running container without labels to a network, where it takes the MAC of a neighbour at once: the neighbour's
// addresses stay the neighbour's.
func TestConnectedWithANeighborsMAC(t *testing.T) {
	neighbor, forger := box(8, true), box(9, true)
	judge := box(7, true, "xdp.ingress.drop=udp")
	inTime(t, []docker.Container{judge, neighbor, forger}, func(r *rig) {
		guarding(r)
		its := end8
		its.ContainerID = neighbor.ID
		r.engine.attached[bridge.ID] = []docker.Attachment{itsEnd(judge.ID), its}
	}, func(r *rig) {
		r.knows(8, addresses8)
		r.process(90, 9, forger.ID)
		p := in(near(9), 9)
		p.Master = bridgeIndex
		own := docker.Attachment{ContainerID: forger.ID, MAC: net.HardwareAddr{0, 0, 0x5e, 0, 0x53, 9}, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.9")}}
		its := end8
		its.ContainerID = neighbor.ID
		r.attaches(itsEnd(judge.ID), its, own)
		r.port(p, end8.MAC)
		r.after(time.Minute)
		r.knows(9, addressesOf(own.MAC, own.Addrs))
	})
}
