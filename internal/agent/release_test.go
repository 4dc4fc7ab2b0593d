package agent

import (
	"errors"
	"testing"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/xdp"
)

const pickShops = "policies:\n- {pick: {name: 'shop*'}, labels: {xdp.egress.allow: neighbors}}\n"

// TestRenamedWhileStarting starts a container that the configuration picks by its name, and gives it another one before Docker says that it runs: what
// was attached meanwhile, and what no record tells of, is taken off where the new name is picked by nobody.
func TestRenamedWhileStarting(t *testing.T) {
	for name, want := range map[string]struct{ device, state string }{
		"other": {"", "none"},
		"shop2": {"open", "enforced [bridge enforced 7:open]"},
	} {
		inTime(t, nil, func(r *rig) { listBridge(r); r.conf = pickShops }, func(r *rig) {
			c, gate := box(7, false), make(chan struct{})
			c.Name = "shop1"
			r.happens(c, docker.ActionCreate)
			r.attaches(itsEnd(c.ID))
			r.process(70, 5, c.ID)
			r.engine.set(func() { r.engine.hang[c.ID] = gate })
			r.port(in(near(7), 5), itsMAC)
			r.after(100 * time.Millisecond)
			r.released(7, true)
			r.device(7, "open")
			r.want(c, "none")
			up := started(c, 7)
			up.Name = name
			r.happens(up, docker.ActionRename, docker.ActionStart)
			close(gate)
			r.after(0)
			r.device(7, want.device)
			r.want(up, want.state)
			if got := r.said("INFO", "not filtered any more"); got != (want.device == "") {
				t.Errorf("%s: the log says that it is not filtered any more: %t", name, got)
			}
		})
	}
}

// TestClosedForNothing has a port closed because Docker does not say in time what its container wants: that opens when it turns out that it asks for
// nothing.
func TestClosedForNothing(t *testing.T) {
	for name, device := range map[string]string{"other": "", "shop1": "open"} {
		inTime(t, nil, func(r *rig) { listBridge(r); r.conf = pickShops }, func(r *rig) {
			c, gate := box(7, false), make(chan struct{})
			c.Name = name
			r.engine.set(func() { r.engine.hang[c.ID], r.engine.hang["outline"] = gate, gate })
			r.happens(c, docker.ActionCreate)
			r.attaches(itsEnd(c.ID))
			r.process(70, 5, c.ID)
			r.port(in(near(7), 5), itsMAC)
			r.after(holdLimit + time.Second)
			r.released(7, true)
			r.device(7, "closed")
			r.happens(started(c, 7), docker.ActionStart)
			close(gate)
			r.after(0)
			r.device(7, device)
		})
	}
}

// TestStrays starts an agent where the one before it was killed after it had filtered devices, and before it could record whose they are. That of a
// container that asks for nothing any more is let go, and what Docker knows nothing of is left alone. Until that is gone every container is looked after.
func TestStrays(t *testing.T) {
	labelled, free := box(10, true, "xdp.drop=udp"), box(20, true)
	for _, conf := range []string{"", pickShops} {
		inTime(t, []docker.Container{labelled, free}, func(r *rig) {
			r.conf = conf
			r.kernel.namespaces["/netns/others"] = []xdp.Veth{{Index: 30, Name: "veth30", NsID: 30}}
			for _, ifindex := range []int{10, 20, 30} {
				r.kernel.attached[ifindex] = "open"
			}
			r.kernel.resolvers[free.SandboxKey] = resolverClosed{true, true}
		}, func(r *rig) {
			r.want(labelled, enforced10)
			r.device(20, "")
			r.device(30, "open")
			if r.kernel.resolvers[free.SandboxKey] != (resolverClosed{}) {
				t.Error("the resolver of a container that asks for nothing is closed")
			}
			created := box(40, false)
			r.happens(created, docker.ActionCreate)
			r.kernel.set(func() { delete(r.kernel.namespaces, "/netns/others") })
			r.after(3 * resync)
			last := box(50, false)
			r.happens(last, docker.ActionCreate)
			if before, after := r.agent.containers[created.ID] != nil, r.agent.containers[last.ID] != nil; !before || after != (conf != "") {
				t.Errorf("looked after while a device was a stray: %t; after it was gone: %t", before, after)
			}
		})
	}
}

// TestNoStrays starts an agent where the one before it has recorded whose device it filters: nobody else is looked after.
func TestNoStrays(t *testing.T) {
	labelled, free := box(10, true, "xdp.drop=udp"), box(20, true)
	inTime(t, []docker.Container{labelled, free}, func(r *rig) {
		r.kernel.attached[10] = "open"
		r.kernel.records[labelled.ID] = Record{ID: labelled.ID, State: Enforced, Interfaces: []Interface{{Network: "bridge", State: Enforced, Ifindex: 10}}}.encode()
	}, func(r *rig) {
		if got := r.engine.asked(free.ID); got != 0 {
			t.Errorf("asked %d times about a container that asks for nothing", got)
		}
	})
}

// TestNothingToRelease lets time pass beside containers of which nothing is to be taken off, one of which is not seen from here: nobody asks the kernel
// about the other again and again, and the log is silent. What fails is tried again.
func TestNothingToRelease(t *testing.T) {
	free, unseen, failing := box(20, true), box(30, true), box(40, true)
	inTime(t, []docker.Container{free, unseen}, func(r *rig) {
		r.conf = pickShops
		delete(r.kernel.namespaces, unseen.SandboxKey)
	}, func(r *rig) {
		r.after(5 * resync)
		looked, opened := r.kernel.count("in "+free.SandboxKey), r.kernel.count("resolver "+free.SandboxKey)
		if looked != 1 || opened != 1 || r.kernel.count("detach 20") != 0 || r.said("INFO", "not filtered any more") || r.said("WARN", "") {
			t.Errorf("looked into its namespace %d times, opened its resolver %d times", looked, opened)
		}
	})
	inTime(t, []docker.Container{failing}, func(r *rig) {
		r.conf = pickShops
		r.kernel.resolvers[failing.SandboxKey] = resolverClosed{true, true}
		r.kernel.fail["resolver "+failing.SandboxKey] = errors.New("no")
	}, func(r *rig) {
		r.kernel.set(func() { clear(r.kernel.fail) })
		r.after(resync)
		if r.kernel.resolvers[failing.SandboxKey] != (resolverClosed{}) {
			t.Error("a resolver that could not be opened stays closed")
		}
	})
}
