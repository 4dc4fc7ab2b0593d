package agent

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/xdp"
)

// enforce brings one container in line, and its record.
func (a *agent) enforce(c *container, veths namespaces) {
	a.rethink(c)
	if !c.asks || !c.Running {
		if c.Running && !a.release(c, veths) {
			return
		}
		a.forget(c)
		return
	}
	a.readObject(c)
	r := Record{
		ID: c.ID, Name: c.Name, Policy: c.want.policy, Error: c.problem(), Warnings: c.want.warnings,
		Holds: c.want.holds, Loophole: c.want.loophole, Program: c.want.program, Joined: c.stay, Upstream: c.upstream,
	}
	if c.want.tables != nil {
		r.Rules, r.Receives = c.want.tables.Rules, c.want.tables.Receives
	}
	r.Interfaces = Obstacles(c.Container)
	if !shares(c.NetworkMode) {
		attached, known := a.interfaces(c, veths)
		if !known {
			return
		}
		r.Interfaces = append(waysOut(r.Interfaces, attached), attached...)
	}
	if c.resolver.udp || c.resolver.tcp {
		r.Resolver = c.resolver.path
	}
	r.settle()
	a.save(c, r)
}

// rethink works out anew what a container wants, where that depends on groups and they have changed.
func (a *agent) rethink(c *container) {
	if !c.asks {
		return
	}
	if k := a.knownOf(c); !k.equal(c.known) {
		a.decide(c, k)
	}
}

// release takes the filters off a running container that asks for none. It may have asked for one under another configuration or name, or have
// been closed before it was known; nobody need have recorded that. It is false where that failed; the next look tries again.
func (a *agent) release(c *container, veths namespaces) bool {
	if shares(c.NetworkMode) {
		return true
	}
	a.giveUp(c, nil)
	told, first := c.saved != "" || c.told.ID != "", c.path == ""
	found, path, err := a.vethsOf(c, veths)
	if errors.Is(err, xdp.ErrOwnNamespace) || err != nil && !told {
		return true
	}
	ifindex := 0
	if len(found) > 0 {
		c.devices, c.nsid, c.path = indexes(found), found[0].NsID, path
		ifindex = found[0].Index
	}
	if path != "" && (told || first && ifindex != 0 || c.resolver != resolverState{}) {
		// First, because what closes it counts under a device's block; an agent before this one may have done it.
		err = errors.Join(err, a.kernel.CloseResolver(path, ifindex, false, false))
		c.resolver = resolverState{}
	}
	for _, v := range found {
		if a.kernel.Filters(v.Index) {
			told = true
			err = errors.Join(err, a.hold.Unguard(v.Index), a.kernel.Detach(v.Index))
		}
	}
	if err != nil {
		c.path = ""
		a.log.Warn("cannot take the filter off a container that asks for none; trying again", "container", c.Name, "id", short(c.ID), "error", err)
		return false
	}
	if told {
		a.log.Info("not filtered any more", "container", c.Name, "id", short(c.ID))
	}
	return true
}

// untold is for how long Docker may be yet to tell that a container whose veths are gone has ended.
const untold = 5 * time.Second

// interfaces attaches to every veth of c, or closes it. It is false where c has ended or been started again, and
// Docker has not yet said which: the record stays as it is until then.
func (a *agent) interfaces(c *container, veths namespaces) (out []Interface, known bool) {
	found, path, err := a.vethsOf(c, veths)
	if errors.Is(err, xdp.ErrOwnNamespace) {
		return []Interface{{Network: c.NetworkMode, State: Unsupported, Error: "lives in the host's own network namespace: there is no veth to filter"}}, true
	}
	if err != nil {
		fresh := !c.stale && !a.asking(c) && c.missing == 0
		c.stale = true
		if c.seen {
			c.seen, c.lost = false, time.Now()
			a.ask(c.ID)
			return nil, false
		}
		if time.Since(c.lost) < untold {
			return nil, false
		}
		return []Interface{{Network: c.NetworkMode, State: Pending, Error: OneLine(err)}}, fresh
	}
	strayed := a.strayed(c, veths, found)
	found = append(found, strayed...)
	if len(found) == 0 && c.seen { // it has ended, or left its last network: Docker knows, if not at once
		c.seen, c.stale, c.lost = false, true, time.Now()
		a.ask(c.ID)
		return nil, false
	}
	if len(found) == 0 && len(c.Networks) > 0 && time.Since(c.lost) < untold {
		return nil, false
	}
	c.seen = len(found) > 0
	if c.devices, c.nsid = indexes(found), -1; len(found) > len(strayed) {
		c.nsid, c.path = found[0].NsID, path
	}
	maps.DeleteFunc(c.late, func(ifindex int, _ uint64) bool {
		return !slices.Contains(c.devices, ifindex) && !a.kernel.Filters(ifindex) // of a port that was filtered as it came an older list does not know
	})
	a.giveUp(c, c.devices)
	maps.DeleteFunc(c.uninvited, func(ifindex int, _ time.Time) bool { return !slices.Contains(c.devices, ifindex) })
	networks := place(c.Networks, found, a.around.bridge)
	for _, v := range found {
		delete(a.strays, v.Index)
		i := Interface{Network: networks[v.Index], Ifname: v.Name, Ifindex: v.Index, State: Enforced}
		before, filtered := a.filtered(c, i)
		switch {
		case c.want.waits && filtered:
			i, err = before, nil // stays in force
		case c.problem() != "":
			err = a.close(c, &i, c.problem())
		default:
			err = a.attach(c, &i, v.Bridge, indexes(found))
		}
		if xdp.IsGone(err) {
			continue // it went while we looked
		}
		if err == nil {
			a.freed(c, i)
		}
		out = append(out, a.surprising(c, v, i, slices.Contains(strayed, v)))
	}
	if len(found) == 0 {
		out = unseen(c.Container, !c.lost.IsZero())
		a.closeResolver(c, path, 0) // for the network that it joins next
	} else {
		out = append(out, a.closeResolver(c, path, found[0].Index)...)
	}
	return append(out, a.outletsOf(c, path)...), true
}

// unseen says of a container without any veth why that is, if Obstacles does not.
func unseen(c docker.Container, before bool) (out []Interface) {
	why := "its veth is not seen from here: the agent has to run in the host's network; see vethwall doctor"
	if before {
		why = "its veth is gone: somebody has deleted it, or moved its other end to the host"
	}
	for _, e := range c.Networks {
		if unfilteredDriver(e) == "" {
			out = append(out, Interface{Network: e.Network, State: Pending, Error: why})
		}
	}
	if len(out) == 0 && len(Obstacles(c)) == 0 {
		out = append(out, Interface{State: Unsupported, Error: noNetwork})
	}
	return out
}

// Veths are the host's ends of the veths of a running container. xdp.ErrOwnNamespace: it has the host's own network.
func Veths(c docker.Container) ([]xdp.Veth, error) {
	all, err := xdp.ListLinks()
	if err != nil {
		return nil, err
	}
	found, _, err := vethsOf(c, all.Veths(), hostProc)
	return found, err
}

// vethsOf is vethsOf for a container that has been looked at before. While no message has told of its veths and they are those
// that they were, with the same id of the namespace, they have been in that namespace all the time: so it is the same one.
func (a *agent) vethsOf(c *container, veths namespaces) ([]xdp.Veth, string, error) {
	if c.path != "" {
		if found := veths.With(c.nsid); len(found) > 0 && slices.Equal(indexes(found), c.devices) {
			return found, c.path, nil
		}
	}
	c.path = ""
	return vethsOf(c.Container, veths, a.proc)
}

// vethsOf finds the host's ends of the veths of c by its sandbox, or where that is not visible by its process; path is that of
// the namespace.
func vethsOf(c docker.Container, veths namespaces, proc string) (found []xdp.Veth, path string, err error) {
	found, err = veths.In(c.SandboxKey)
	if err == nil || errors.Is(err, xdp.ErrOwnNamespace) {
		return found, c.SandboxKey, err
	}
	process := filepath.Join(proc, strconv.Itoa(c.Pid))
	path = filepath.Join(process, "ns/net")
	byPid, pidErr := veths.In(path)
	// By now, or in our pid namespace, the number may be another's. After the look, because it proves what came before it.
	if group, readErr := os.ReadFile(filepath.Join(process, "cgroup")); readErr != nil || !bytes.Contains(group, []byte(c.ID)) {
		return nil, "", err
	}
	if pidErr != nil && !errors.Is(pidErr, xdp.ErrOwnNamespace) {
		return nil, "", err
	}
	return byPid, path, pidErr
}

func indexes(veths []xdp.Veth) (out []int) {
	for _, v := range veths {
		out = append(out, v.Index)
	}
	return out
}

// attach puts the policy of c into force on i, a port of a bridge unless that is "", or closes it. An error means that neither was possible.
func (a *agent) attach(c *container, i *Interface, bridge string, siblings []int) error {
	want := xdp.Want{Policy: c.want.tables, Mode: c.want.mode, BothHooks: c.want.both, Raw: c.want.raw, Program: c.object.program, Siblings: siblings}
	if err := a.identify(c, i, &want); err != nil {
		return a.shut(c, i, OneLine(err))
	}
	if want.Bridge != 0 {
		a.guard(a.ports[i.Ifindex].Bridge)
	}
	if c.want.program != "" && a.kernel.ByHand(i.Ifindex) {
		a.log.Warn("a program by hand gives way to xdp.program", "container", c.Name, "id", short(c.ID), "veth", i.Ifname)
	}
	unseen, held := a.hold.Unseen(i.Ifindex)
	known, ways := a.kernel.Filters(i.Ifindex), a.waysAround(c, i.Ifindex)
	r, opened, err := a.begin(c, i.Ifindex, want)
	if err != nil {
		return a.shut(c, i, OneLine(err))
	}
	if c.want.pastBoth && r == nil && bridge != "" {
		a.guardPort(c, i)
	}
	if known && ways > 0 && a.waysAround(c, i.Ifindex) < ways {
		a.forgetBegun(c, i)
	}
	i.State, i.Error = a.attached(c, i.Ifindex)
	// What has passed is counted when the first program is there that judges what is sent.
	lost := a.kernel.Lost(i.Ifindex)
	if lost {
		a.log.Error("somebody had taken the filter off, which takes CAP_SYS_ADMIN; it is back", "container", c.Name, "id", short(c.ID), "veth", i.Ifname)
	}
	counts := (!known || opened || lost) && (r == nil || !r.Open)
	if counts && !held {
		unseen = a.kernel.Unseen(i.Ifindex)
	}
	if counts && unseen > 0 {
		c.late[i.Ifindex] = unseen
		a.log.Warn("the container had sent before its filter came", "container", c.Name, "id", short(c.ID), "veth", i.Ifname, "packets", unseen)
	}
	if n := c.late[i.Ifindex]; n > 0 {
		i.State, i.Late = Worst(i.State, Late), n
	}
	if r != nil {
		i.State, i.Error = Pending, underWay
	}
	return nil
}

// waysAround is how many ways around what judges a device of c are open that somebody in there may know to go.
func (a *agent) waysAround(c *container, ifindex int) (n int) {
	if c.want.both && !a.kernel.Both(ifindex) {
		n++
	}
	if c.want.pastBoth && !a.hold.Guarded(ifindex) {
		n++
	}
	return n
}

// forgetBegun is called when a way around a filter of c has been closed, which was open while Docker had not said who is in there, or somebody else
// kept it open. What was sent that way may have been answered, and is no conversation that c was asked for.
func (a *agent) forgetBegun(c *container, i *Interface) {
	err := a.kernel.ForgetConversations(i.Ifindex)
	a.complain(&c.guardTrouble, err, "cannot forget what a container may have begun past its filter", "container", c.Name, "id", short(c.ID), "veth", i.Ifname)
}

// guardPort has nothing pass that gets around both hooks of a port of c.
func (a *agent) guardPort(c *container, i *Interface) {
	err := a.hold.Guard(i.Ifindex)
	a.complain(&c.guardTrouble, err, "cannot guard a port", "container", c.Name, "id", short(c.ID), "veth", i.Ifname)
}

// attached is the state of an interface whose filter is in force, and why it is not a better one.
func (a *agent) attached(c *container, ifindex int) (State, string) {
	switch {
	case c.want.both && c.want.program == "" && !a.kernel.Both(ifindex):
		return Partial, "what it sends can get around one hook, by CAP_NET_ADMIN or as its runtime or a joiner's is wired, and another program has the XDP slot; see bpftool net"
	case c.want.pastBoth && c.want.holds && !a.hold.Guarded(ifindex):
		return Partial, "by CAP_NET_ADMIN what it sends can get around both hooks at once, and nftables cannot guard its port; see vethwall doctor"
	case c.want.raw && a.noLayouts != nil:
		return Partial, "by CAP_NET_RAW it can have the kernel change what it sends after its filter, and " + OneLine(a.noLayouts) + "; start it with --cap-drop NET_RAW"
	case c.want.audits:
		return Audit, ""
	}
	return Enforced, ""
}

// close is shut, as far as it can be done at once; the rest of it follows.
func (a *agent) close(c *container, i *Interface, why string) error {
	r, _, err := a.begin(c, i.Ifindex, xdp.ShutWant())
	if err != nil || r == nil {
		return a.shut(c, i, why)
	}
	i.State, i.Error = Pending, underWay
	return nil
}

// shut closes an interface of a container that must be closed. An error means that it is open.
func (a *agent) shut(c *container, i *Interface, why string) error {
	i.State, i.Error = Quarantined, why
	a.overtake(c, i.Ifindex)
	byFilter, err := a.kernel.Shut(i.Ifindex)
	if err == nil && byFilter && c.want.pastBoth {
		a.guardPort(c, i)
		if _, why := a.attached(c, i.Ifindex); why != "" {
			i.Error += "; " + why
		}
	}
	if err == nil && a.kernel.ByHand(i.Ifindex) {
		err = a.detachByHand(i.Ifindex) // what root's own program sends by itself no policy closes
	}
	switch {
	case err != nil:
		i.State, i.Error = Pending, "NOT CLOSED: "+why+"; and it could not be closed: "+OneLine(err)
	case !byFilter:
		i.Error = why + "; the veth is set down"
	}
	return err
}
