package agent

import (
	"bytes"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

// nameLimit is how long a network may take to name what is behind a port of a container without a filter, which waits for no more than
// the others' sake.
const nameLimit = time.Second / 2

// watches reports whether c judges by who has sent what it receives on a network.
func (w want) watches(network string) bool {
	return w.antispoof && w.tables != nil && w.tables.Receives && network != gatewayBridge
}

// guard is told that a container judges what it receives by who its neighbours are. From now on it is followed who is
// behind the ports of the bridge.
func (a *agent) guard(bridge string) {
	if n, listed := a.around.behind(bridge); listed && !a.guarded[bridge] {
		a.guarded[bridge] = true
		a.askAttachments(n)
	}
}

// lookAtNeighbors asks those of networks who is there whose neighbours are judged.
func (a *agent) lookAtNeighbors(networks ...string) {
	for _, id := range networks {
		if n := a.around.networks[id]; a.guarded[n.Bridge] {
			a.askAttachments(n)
		}
	}
}

// welcome releases a port whose container has no filter; where others judge by who has sent, not before they know him.
func (a *agent) welcome(p *port, n docker.Network) {
	if a.guarded[p.Bridge] && p.end == nil && !p.silent && (p.live.IsZero() || time.Since(p.live) < nameLimit) {
		a.seek(p, n)
		return
	}
	a.letGo(p)
}

// members are who is on a network whose neighbours are judged: its bridge's ifindex, and what its last list has.
type members struct {
	bridge int
	ends   []docker.Attachment
}

func (m members) same(o members) bool {
	return m.bridge == o.bridge && slices.EqualFunc(m.ends, o.ends, func(x, y docker.Attachment) bool {
		return x.ContainerID == y.ContainerID && bytes.Equal(x.MAC, y.MAC) && slices.Equal(x.Addrs, y.Addrs)
	})
}

// introduce tells the kernel who is behind the ports of a network, of which ends are all that is attached to it. A port that is
// held is told of when it is released. A list that lacks somebody changes nothing for him, and nobody gets by it what another
// port has: he may have taken the other's MAC.
func (a *agent) introduce(n docker.Network, ends []docker.Attachment) {
	bridge := 0
	macs := map[string][]int{}
	var nameless []int
	for _, p := range a.ports {
		if p.Bridge != n.Bridge || a.held[p.Index] != nil {
			continue
		}
		if bridge = p.Master; a.kernel.Introduced(p.Index) {
			continue
		}
		var mac net.HardwareAddr
		if p.NsID >= 0 { // else nobody is behind it: the kernel, which keeps one waiting, need not be asked
			mac = a.peerMAC(p)
		}
		if !slices.ContainsFunc(ends, func(e docker.Attachment) bool { return mac != nil && bytes.Equal(e.MAC, mac) }) {
			nameless = append(nameless, p.Index)
			continue
		}
		macs[mac.String()] = append(macs[mac.String()], p.Index)
	}
	if bridge == 0 {
		return
	}
	gateways, others := a.around.hosts(n)
	errs := []error{a.askRouting(n, bridge), a.kernel.Introduce(bridge, bridge, gateways, true), a.kernel.IntroduceElsewhere(bridge, bridge, others, nil)}
	for _, e := range ends {
		if ports := macs[e.MAC.String()]; len(ports) == 1 {
			errs = append(errs, a.kernel.Introduce(bridge, ports[0], addressesOf(e.MAC, e.Addrs), false))
		} else {
			nameless = append(nameless, ports...) // one has taken the other's MAC
		}
	}
	before := a.members[n.ID]
	a.members[n.ID] = members{bridge, ends}
	if len(a.held) == 0 || !before.same(a.members[n.ID]) { // it looks at every container, for which a port that is held need not wait
		errs = append(errs, a.setApart(n)...)
	}
	for _, ifindex := range nameless {
		// A list may be older than a port, or its network slow to name what is behind it.
		since, before := a.nameless[ifindex]
		if !before {
			a.nameless[ifindex] = time.Now()
		} else if time.Since(since) > holdLimit {
			errs = append(errs, a.kernel.Introduce(bridge, ifindex, nil, false))
		}
	}
	a.complain(&a.neighborTrouble, errors.Join(errs...), "cannot tell the kernel who the neighbours are", "network", n.Name)
}

// setApart tells the kernel who is on the other networks of those who judge on network n, and on them who is on n: nobody may send by
// one network in the name of somebody on another.
func (a *agent) setApart(n docker.Network) (errs []error) {
	maps.DeleteFunc(a.members, func(id string, _ members) bool { _, there := a.around.networks[id]; return !there })
	if len(a.members) < 2 {
		return nil
	}
	others := map[string]bool{}
	for _, c := range a.containers {
		judges := c.want.watches(n.Name) && slices.ContainsFunc(c.Networks, func(e docker.Endpoint) bool { return e.NetworkID == n.ID })
		for _, e := range c.Networks {
			others[e.NetworkID] = others[e.NetworkID] || judges
		}
	}
	for id := range a.members {
		if others[id] && id != n.ID {
			errs = append(errs, a.introduceElsewhere(n.ID, id), a.introduceElsewhere(id, n.ID))
		}
	}
	return errs
}

// introduceElsewhere tells the kernel, for the ports of one network, who is on another. A container that is on both may send on either with
// its addresses on the other.
func (a *agent) introduceElsewhere(on, other string) error {
	here, there, subnets := a.members[on], a.members[other], a.around.networks[on].Subnets
	both := map[string][]netip.Addr{}
	for _, e := range here.ends {
		both[e.ContainerID] = e.Addrs
	}
	delete(both, "") // not named yet
	var errs []error
	for _, e := range there.ends {
		errs = append(errs, a.kernel.IntroduceElsewhere(here.bridge, there.bridge, outside(subnets, e.Addrs), both[e.ContainerID]))
	}
	return errors.Join(errs...)
}

// outside are those of addresses that are in no subnet of a network.
func outside(subnets []netip.Prefix, addrs []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return within(subnets, a) })
}

func within(subnets []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// askRouting looks once in the life of an engine whether a network is one to which the host routes back what neighbours send to
// its own addresses: what it forwards to a published port where Docker has no proxy. All ports of such a network tell.
func (a *agent) askRouting(n docker.Network, bridge int) error {
	if a.asked[bridge] {
		return nil
	}
	for _, p := range a.ports {
		if p.Bridge != n.Bridge || !p.Dockers() {
			continue
		}
		does, err := a.hairpin(p)
		if err == nil {
			a.asked[bridge] = true
			err = a.kernel.RoutesBack(bridge, does)
		}
		return err
	}
	return nil
}

// introduceHeld tells the kernel who is behind a port that is about to be released. No process of his could have changed his
// MAC, so whoever had his addresses before, and has left a port behind, has them no more.
func (a *agent) introduceHeld(p *port) {
	if !a.guarded[p.Bridge] || p.end == nil {
		return
	}
	addrs := addressesOf(p.end.MAC, p.end.Addrs)
	if slices.ContainsFunc(p.ends, func(e docker.Attachment) bool {
		return bytes.Equal(e.MAC, p.end.MAC) && !slices.Equal(e.Addrs, p.end.Addrs)
	}) {
		addrs = p.end.Addrs // it was given the MAC of another (--mac-address), whose link-local address is not up for that
	}
	err := a.kernel.Introduce(p.Master, p.Index, addrs, true)
	a.complain(&a.neighborTrouble, err, "cannot tell the kernel who a new neighbour is", "port", p.Name)
}

// addressesOf are the addresses of an endpoint.
func addressesOf(mac net.HardwareAddr, addrs []netip.Addr) []netip.Addr {
	out := slices.Clone(addrs)
	if len(mac) == 6 {
		out = append(out, policy.LinkLocal([6]byte(mac)))
	}
	return out
}

// hosts are the host's addresses in the subnets of a network, its gateways, which Docker does not list where it chose them itself; and
// those that are in none of them. What is the host's on another bridge, or outside, none of its neighbours may bear either.
func (s surroundings) hosts(n docker.Network) (gateways, others []netip.Addr) {
	if s.host == nil {
		return nil, nil
	}
	for _, a := range slices.Concat(s.host.addrs, s.conf.HostAddresses) {
		switch {
		case within(n.Subnets, a):
			gateways = append(gateways, a)
		case !a.IsLoopback():
			others = append(others, a)
		}
	}
	return gateways, others
}

// seePorts takes in the ports that there were when they were asked for. Of devices in since a message has told more.
func (a *agent) seePorts(ports []xdp.Port, since map[int]bool) {
	maps.DeleteFunc(a.ports, func(ifindex int, _ xdp.Port) bool { return !since[ifindex] })
	for _, p := range ports {
		if !since[p.Index] {
			a.ports[p.Index] = p
		}
	}
	for ifindex := range a.nameless {
		if _, there := a.ports[ifindex]; !there {
			delete(a.nameless, ifindex)
		}
	}
}
