package agent

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/xdp"
)

// admin is a box that can do what its veth's filter does not see.
func admin(pid int, labels ...string) docker.Container {
	c := box(pid, true, labels...)
	c.CapAdd = []string{"NET_ADMIN"}
	return c
}

var macvlan = xdp.Outlet{Name: "eth9", Kind: "macvlan", Through: "docker0"}

// errors are what the interfaces of a container's record say.
func (r *rig) errors(c docker.Container) string {
	var out []string
	for _, i := range r.kernel.record(c.ID).Interfaces {
		out = append(out, i.Error)
	}
	return strings.Join(out, "; ")
}

// A device that sends past the veth is told within a resync, or at once where the kernel tells of it, and is no more once it is
// gone.
func TestOutlets(t *testing.T) {
	c, plain := admin(10, "xdp.drop=udp"), box(20, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c, plain}, nil, func(r *rig) {
		r.want(c, enforced10)
		r.kernel.set(func() {
			r.kernel.outlets[c.SandboxKey], r.kernel.outlets[plain.SandboxKey] = []xdp.Outlet{macvlan}, []xdp.Outlet{macvlan}
		})
		r.after(resync)
		r.want(c, "partial [bridge enforced 10:open] [ partial 0:]")
		if got := r.errors(c); !strings.Contains(got, `"eth9" (macvlan), sends by the host's "docker0" past the filter`) {
			t.Errorf("it says %q", got)
		}
		if !r.said("ERROR", "container=box10") || !r.said("ERROR", "eth9") {
			t.Error("the log does not say it")
		}
		if n := strings.Count(r.log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%d errors in the log", n)
		}
		r.after(3 * resync)
		if n := strings.Count(r.log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%d errors in the log, some time later", n)
		}
		// Who cannot make any is not looked at.
		r.want(plain, "enforced [bridge enforced 20:open]")
		if n := r.kernel.count("outlets " + plain.SandboxKey); n > 0 {
			t.Errorf("looked %d times at a container that can do nothing", n)
		}
		r.kernel.set(func() { delete(r.kernel.outlets, c.SandboxKey) })
		r.after(resync)
		r.want(c, enforced10)
		r.after(3 * outletPause)
		r.kernel.set(func() { r.kernel.outlets[c.SandboxKey] = []xdp.Outlet{macvlan} })
		r.agent.tell(r.agent.lookPast)
		synctest.Wait()
		r.want(c, "partial [bridge enforced 10:open] [ partial 0:]")
	})
}

// An outlet in the container's next namespace is told as well, and one that cannot be listed is not forgotten.
func TestOutletsOfTheNextRun(t *testing.T) {
	c := admin(10, "xdp.drop=udp")
	again := started(c, 11)
	inTime(t, []docker.Container{c}, func(r *rig) {
		r.kernel.outlets[c.SandboxKey], r.kernel.outlets[again.SandboxKey] = []xdp.Outlet{macvlan}, []xdp.Outlet{macvlan}
	}, func(r *rig) {
		r.want(c, "partial [bridge enforced 10:open] [ partial 0:]")
		r.plug(docker.Container{SandboxKey: c.SandboxKey})
		r.happens(again, docker.ActionDie, docker.ActionStart)
		r.ring()
		r.after(outletPause)
		r.want(again, "partial [bridge enforced 11:open] [ partial 0:]")
		r.kernel.set(func() { r.kernel.fail["outlets "+again.SandboxKey] = errGone })
		r.after(resync)
		r.want(again, "partial [bridge enforced 11:open] [ partial 0:]")
		if !r.said("WARN", "cannot look for ways past") {
			t.Error("the log does not say that it cannot be looked")
		}
	})
}

// Whoever makes outlets and takes them away without end does not fill the log.
func TestOutletsWithoutEnd(t *testing.T) {
	c := admin(10, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		r.after(resync / 2)
		for i := range 1000 {
			r.kernel.set(func() { r.kernel.outlets[c.SandboxKey] = []xdp.Outlet{macvlan}[:(i+1)%2] })
			r.agent.tell(r.agent.lookPast)
			r.after(time.Millisecond)
		}
		r.after(2 * outletPause)
		if n := strings.Count(r.log.String(), "\n"); n > 20 || !r.said("ERROR", "eth9") {
			t.Errorf("%d lines in the log", n)
		}
		r.want(c, enforced10)
	})
}

// What Docker has made is told as a way out and not as something that has appeared.
func TestDockersOutlets(t *testing.T) {
	c := admin(10, "xdp.drop=udp")
	c.Networks = append(c.Networks, docker.Endpoint{Network: "lan", NetworkID: strings.Repeat("d", 64), Driver: "macvlan"})
	inTime(t, []docker.Container{c}, func(r *rig) {
		r.kernel.namespaces[c.SandboxKey] = r.kernel.namespaces[c.SandboxKey][:1]
		r.kernel.outlets[c.SandboxKey] = []xdp.Outlet{macvlan}
	}, func(r *rig) {
		r.after(resync)
		r.want(c, "partial [lan partial 0:] [bridge enforced 10:open]")
		if r.said("ERROR", "") {
			t.Error("an error in the log")
		}
		// One of another kind is none of Docker's.
		r.kernel.set(func() { r.kernel.outlets[c.SandboxKey] = []xdp.Outlet{{Name: "tun9", Kind: "gre"}} })
		r.after(resync)
		r.want(c, "partial [lan partial 0:] [bridge enforced 10:open] [ partial 0:]")
	})
}

// A veth that leads into a container's network and that Docker has not made is filtered, and told once Docker has had its
// say: one of a network that is being joined is not.
func TestUninvitedVeth(t *testing.T) {
	other := docker.Network{ID: strings.Repeat("c", 64), Name: "other", Driver: "bridge", Bridge: "br-" + strings.Repeat("c", 12)}
	more := xdp.Veth{Index: 99, Name: "veth99", Bridge: "docker0"}
	for _, c := range []docker.Container{admin(10, "xdp.drop=udp"), box(10, true, "xdp.drop=udp")} {
		inTime(t, []docker.Container{c}, func(r *rig) { r.engine.networks = []docker.Network{bridge, other} }, func(r *rig) {
			r.kernel.set(func() { r.kernel.namespaces[c.SandboxKey] = append(r.kernel.namespaces[c.SandboxKey], more) })
			r.ring()
			r.device(99, "open")
			r.want(c, "enforced [bridge enforced 10:open] [docker0 enforced 99:open]")
			if r.said("ERROR", "") {
				t.Error("an error in the log before Docker has had its say")
			}
			r.after(resync)
			r.want(c, "enforced [bridge enforced 10:open] [docker0 enforced 99:open]")
			if told := strings.Contains(r.errors(c), "Docker has not made it"); told == r.kernel.record(c.ID).Holds || told != r.said("ERROR", "network bridge") {
				t.Errorf("told: %v; it says %q", told, r.errors(c))
			}
		})
	}
	c := admin(10, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, func(r *rig) { r.engine.networks = []docker.Network{bridge, other} }, func(r *rig) {
		joining := joined(c, "other")
		r.kernel.set(func() { r.kernel.namespaces[c.SandboxKey] = vethsFor(joining) })
		r.ring()
		r.after(holdLimit / 2)
		r.happens(joining, docker.ActionConnect)
		r.after(3 * resync)
		r.want(c, "enforced [bridge enforced 10:open] [other enforced 11:open]")
		if r.said("ERROR", "") {
			t.Error("an error in the log about a network that was joined")
		}
	})
}

// A veth whose other end has been moved out of the container's namespace stays the container's: also when its policy
// changes, and for an agent that starts later.
func TestVethThatIsMovedAway(t *testing.T) {
	c := admin(10, "xdp.drop=udp")
	away := func(r *rig) {
		moved := slices.Clone(r.kernel.namespaces[c.SandboxKey])
		moved[0].NsID += 1000
		r.kernel.namespaces["elsewhere"], r.kernel.namespaces[c.SandboxKey] = moved, nil
	}
	wantMoved := func(r *rig) {
		t.Helper()
		r.want(c, enforced10)
		if !strings.Contains(r.errors(c), movedAway) || !r.said("ERROR", "moved out of") {
			t.Errorf("it says %q", r.errors(c))
		}
	}
	var records map[string][]byte
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		r.kernel.set(func() { away(r) })
		r.after(resync)
		wantMoved(r)
		attached := r.kernel.count("attach 10")
		r.after(resync)
		if r.kernel.count("attach 10") == attached {
			t.Error("its filter is not looked after any more")
		}
		records, _ = r.kernel.Records()
		r.kernel.set(func() {
			r.kernel.namespaces[c.SandboxKey] = vethsFor(c)
			delete(r.kernel.namespaces, "elsewhere")
		})
		r.after(resync)
		if got := r.errors(c); got != "" {
			t.Errorf("back again, it says %q", got)
		}
	})
	inTime(t, []docker.Container{c}, func(r *rig) {
		away(r)
		r.kernel.records, r.kernel.attached = records, map[int]string{10: "open"}
	}, wantMoved)

	// A number that is another's by now is none of its.
	inTime(t, []docker.Container{c}, func(r *rig) {
		r.kernel.namespaces["elsewhere"], r.kernel.namespaces[c.SandboxKey] = []xdp.Veth{{Index: 10, Name: "another", Bridge: "docker0"}}, nil
		r.kernel.records, r.kernel.attached = records, map[int]string{10: "closed"}
	}, func(r *rig) {
		r.after(2 * resync)
		r.device(10, "closed")
	})
}

// A veth that somebody has deleted is told so.
func TestVethThatIsDeleted(t *testing.T) {
	c := admin(10, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		r.kernel.set(func() { r.kernel.namespaces[c.SandboxKey] = nil })
		r.ring()
		r.after(2 * resync)
		r.want(c, "pending [bridge pending 0:]")
		if got := r.errors(c); !strings.Contains(got, "its veth is gone") {
			t.Errorf("it says %q", got)
		}
	})
}

// The ports of whoever can combine detours are guarded, and where that cannot be, status says so of those that nothing else gets past.
func TestPortsAreGuarded(t *testing.T) {
	const unguarded = "partial [bridge partial 10:open]"
	remapped := func(c *docker.Container) { c.UserNS = true }
	for name, tc := range map[string]struct {
		change  func(*docker.Container)
		joiner  func(*docker.Container)
		way     xdp.Held
		guarded bool
		want    string
	}{
		"plain":                        {func(c *docker.Container) { c.CapAdd = nil }, nil, xdp.HeldNFT, false, enforced10},
		"CAP_NET_ADMIN":                {func(*docker.Container) {}, nil, xdp.HeldNFT, true, enforced10},
		"without nftables":             {func(*docker.Container) {}, nil, xdp.HeldXDP, false, enforced10}, // "holds": false says it
		"a user namespace":             {remapped, nil, xdp.HeldNFT, true, enforced10},
		"the same without nftables":    {remapped, nil, xdp.HeldXDP, false, unguarded},
		"a joiner's":                   {func(c *docker.Container) { c.CapAdd = nil }, netAdminToo, xdp.HeldNFT, true, enforced10},
		"another runtime":              {func(c *docker.Container) { c.CapAdd, c.Runtime = nil, "kata" }, nil, xdp.HeldNFT, false, enforced10},
		"a joiner's in user namespace": {func(c *docker.Container) { c.CapAdd, c.UserNS = nil, true }, func(c *docker.Container) { netAdminToo(c); remapped(c) }, xdp.HeldXDP, false, unguarded},
	} {
		t.Run(name, func(t *testing.T) {
			c := admin(10, "xdp.drop=udp")
			tc.change(&c)
			all := []docker.Container{c}
			if tc.joiner != nil {
				all = append(all, joiner(20, true, c.ID, tc.joiner))
			}
			inTime(t, all, func(r *rig) { r.kernel.hold.way = tc.way }, func(r *rig) {
				r.after(resync)
				r.want(c, tc.want)
				if got := r.kernel.hold.Guarded(10); got != tc.guarded {
					t.Errorf("guarded: %v, want %v", got, tc.guarded)
				}
			})
		})
	}
}

// The kernel may refuse the rules for a while: which ports are not guarded then is said, and they are guarded as soon as there are rules again.
func TestGuardComesBack(t *testing.T) {
	c := admin(10, "xdp.drop=udp")
	c.UserNS = true
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		r.want(c, enforced10)
		turns := func(way xdp.Held, want string) {
			t.Helper()
			h := r.kernel.hold
			h.set(func() { h.way, h.guarded = way, map[int]bool{} })
			r.after(2 * heartbeat)
			r.want(c, want)
			if got := h.Guarded(10); got != (way == xdp.HeldNFT) {
				t.Errorf("held by %s, guarded: %v", way, got)
			}
		}
		turns(xdp.HeldXDP, "partial [bridge partial 10:open]")
		turns(xdp.HeldNFT, enforced10)
	})
}

// A port of which the filter is taken off is not guarded any more: nothing would get through.
func TestGuardEndsWithTheFilter(t *testing.T) {
	c := admin(10)
	inTime(t, []docker.Container{c}, func(r *rig) { r.conf = "floor: {xdp.drop: udp}" }, func(r *rig) {
		r.want(c, enforced10)
		if !r.kernel.hold.Guarded(10) {
			t.Error("not guarded")
		}
		r.kernel.set(func() {
			r.kernel.called = func(call string) {
				if call == "detach 10" && r.kernel.hold.Guarded(10) {
					t.Error("the filter goes first")
				}
			}
		})
		r.configure("{}")
		r.want(c, "none")
		if r.kernel.hold.Guarded(10) {
			t.Error("still guarded")
		}
	})
}

// What the guard has dropped is told once a minute, and once more after somebody has removed the rules.
func TestGotPastIsTold(t *testing.T) {
	c := admin(10, "xdp.drop=udp")
	inTime(t, []docker.Container{c, box(20, true, "xdp.drop=tcp")}, nil, func(r *rig) {
		says := func(lines int, text string) {
			t.Helper()
			if n := strings.Count(r.log.String(), "sends past the filter"); n != lines || !r.said("ERROR", text) {
				t.Errorf("%d lines, want %d with %q", n, lines, text)
			}
		}
		for i, step := range []struct {
			packets uint64
			after   time.Duration
			lines   int
			text    string
		}{
			{3, 2 * heartbeat, 1, "packets=3"},
			{5, alarmPause / 2, 1, "packets=3"},
			{5, alarmPause, 2, "packets=2"},
			{5, 2 * alarmPause, 2, "packets=2"},
			{4, 2 * alarmPause, 3, "packets=4"},
		} {
			r.kernel.hold.set(func() { r.kernel.hold.gotPast = step.packets })
			r.after(step.after)
			says(step.lines, step.text)
			if t.Failed() {
				t.Fatalf("step %d", i)
			}
		}
		if !r.said("ERROR", `"one of the containers"=box10`) {
			t.Error("the log does not say whose it may be")
		}
	})
}
