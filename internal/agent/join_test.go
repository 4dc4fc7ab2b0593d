package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/xdp"
)

// joiner is a container without labels that joins another's network.
func joiner(pid int, running bool, owner string, change func(*docker.Container)) docker.Container {
	c := box(pid, false)
	c.Networks, c.NetworkMode, c.Running, c.Pid = nil, "container:"+owner, running, pid
	if change != nil {
		change(&c)
	}
	return c
}

func netAdminToo(c *docker.Container) { c.CapAdd = []string{"NET_ADMIN"} }

// wantHeld compares what an owner was attached with, and what its record says, with whether its joiners leave it alone.
func (r *rig) wantHeld(owner docker.Container, both bool, loophole string) {
	r.t.Helper()
	r.kernel.mu.Lock()
	got := r.kernel.last[owner.Pid].BothHooks
	r.kernel.mu.Unlock()
	record := r.kernel.record(owner.ID)
	if got != both || record.Holds != (loophole == "") || loophole == "" && record.Loophole != "" || !strings.Contains(record.Loophole, loophole) {
		r.t.Errorf("both hooks %t, holds %t, %q; want both hooks %t, %q", got, record.Holds, record.Loophole, both, loophole)
	}
}

// What a joiner may do decides, whatever the owner may.
func TestJoiner(t *testing.T) {
	owner := box(10, true, "xdp.drop=udp")
	for _, tc := range []struct {
		name     string
		change   func(*docker.Container)
		both     bool
		loophole string
	}{
		{"plain", nil, false, ""},
		{"with NET_RAW", func(c *docker.Container) { c.CapAdd = []string{"NET_RAW"} }, false, ""},
		{"with NET_ADMIN", netAdminToo, true, "container box20 shares its network and has CAP_NET_ADMIN"},
		{"privileged", func(c *docker.Container) { c.Privileged = true }, true, "container box20 shares"},
		{"in a user namespace", func(c *docker.Container) { c.Privileged, c.UserNS = true, true }, true, ""},
		{"with SYS_ADMIN", func(c *docker.Container) { c.CapAdd = []string{"SYS_ADMIN"} }, false, "has CAP_SYS_ADMIN"},
		{"of another runtime", func(c *docker.Container) { c.Runtime = "kata" }, true, ""},
		{"with the processes of all", func(c *docker.Container) { c.PidMode = "host" }, false, "container box20 shares its network and sees processes of others"},
		{"with those of another", func(c *docker.Container) { c.PidMode = "container:" + box(30, false).ID }, false, "sees processes of others"},
		{"with the owner's, as who debugs it", func(c *docker.Container) { c.PidMode = "container:" + owner.ID }, false, ""},
		{"of crun", func(c *docker.Container) { c.Runtime = "crun" }, false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for name, mode := range map[string]string{"id": owner.ID, "name": owner.Name, "short id": owner.ID[:12]} {
				inTime(t, []docker.Container{owner, joiner(20, true, mode, tc.change), box(30, true, "xdp.drop=tcp")}, nil, func(r *rig) {
					r.want(owner, enforced10)
					r.wantHeld(owner, tc.both, tc.loophole)
					r.wantHeld(box(30, true), false, "")
					if t.Failed() {
						t.Log("by", name)
					}
				})
			}
		})
	}
}

// A joiner that carries no label and comes hours later is noticed before it starts; what it has done stays until its owner
// starts again.
func TestJoinerComesAndGoes(t *testing.T) {
	owner := box(10, true, "xdp.drop=udp")
	created := joiner(20, false, owner.ID, netAdminToo)
	inTime(t, []docker.Container{owner, box(30, true)}, nil, func(r *rig) {
		r.wantHeld(owner, false, "")
		plain := joiner(21, false, owner.ID, nil)
		r.happens(plain, docker.ActionCreate)
		r.wantHeld(owner, false, "")
		stranger := box(22, false)
		r.happens(stranger, docker.ActionCreate)
		if r.agent.containers[stranger.ID] != nil {
			t.Error("a container that neither asks nor joins is kept")
		}

		r.happens(created, docker.ActionCreate)
		r.wantHeld(owner, true, "box20 shares")
		r.engine.set(func() { delete(r.engine.containers, created.ID) })
		r.engine.emit(docker.ActionDestroy, created.ID)
		r.after(2 * resync)
		r.wantHeld(owner, true, "box20 shares")
		if !r.agent.containers[owner.ID].stay.NetAdmin {
			t.Error("that it had CAP_NET_ADMIN is forgotten")
		}
		if !r.said("WARN", "box20 shares its network") {
			t.Error("the log does not say it")
		}

		r.plug(docker.Container{SandboxKey: owner.SandboxKey})
		again := started(owner, 11)
		r.happens(again, docker.ActionDie, docker.ActionStart)
		r.ring()
		r.wantHeld(again, false, "")
	})
}

// A joiner whose create event was lost is in the next list.
func TestJoinerUnheard(t *testing.T) {
	owner := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{owner}, nil, func(r *rig) {
		r.happens(joiner(20, true, owner.ID, netAdminToo))
		r.wantHeld(owner, false, "")
		r.after(resync)
		r.wantHeld(owner, true, "box20 shares")
	})
}

// One who joins a joiner lives in the same namespace, whichever is heard of first.
func TestJoinerOfAJoiner(t *testing.T) {
	owner := box(10, true, "xdp.drop=udp")
	middle := joiner(20, true, owner.ID, nil)
	inTime(t, []docker.Container{owner, middle}, nil, func(r *rig) {
		r.happens(joiner(30, true, middle.ID, netAdminToo), docker.ActionCreate, docker.ActionStart)
		r.wantHeld(owner, true, "box30 shares")
	})
	circle := joiner(20, true, box(30, false).ID, nil)
	inTime(t, []docker.Container{owner, circle, joiner(30, true, circle.ID, netAdminToo)}, nil, func(r *rig) {
		r.wantHeld(owner, false, "")
	})
}

// An agent that starts later knows what a joiner that is gone may have done.
func TestJoinerBeforeARestartOfTheAgent(t *testing.T) {
	owner := box(10, true, "xdp.drop=udp")
	var records map[string][]byte
	inTime(t, []docker.Container{owner, joiner(20, true, owner.ID, netAdminToo)}, nil, func(r *rig) {
		records, _ = r.kernel.Records()
	})
	inTime(t, []docker.Container{owner}, func(r *rig) { r.kernel.records = records }, func(r *rig) {
		r.wantHeld(owner, true, "box20 shares")
	})
	inTime(t, []docker.Container{started(owner, 11)}, func(r *rig) { r.kernel.records = records }, func(r *rig) {
		r.wantHeld(started(owner, 11), false, "")
	})
}

// What a joiner may have begun around what judges its owner before Docker told of it is forgotten when that way is closed, once. So it is by an agent that
// comes later.
func TestJoinerBegan(t *testing.T) {
	kata := func(c *docker.Container) { c.Runtime = "kata" }
	remapped := func(c *docker.Container) { netAdminToo(c); c.UserNS = true }
	for name, tc := range map[string]struct {
		drops  []string // the owner's
		joins  func(*docker.Container)
		slow   bool // the kernel takes long for tc
		forget int
	}{
		"plain":                        {[]string{"NET_RAW"}, nil, false, 0},
		"around one hook":              {[]string{"NET_RAW"}, kata, false, 1},
		"around one hook, slowly":      {[]string{"NET_RAW"}, kata, true, 1},
		"where there are two":          {nil, kata, false, 0},
		"around both":                  {nil, remapped, false, 1},
		"around one or both":           {[]string{"NET_RAW"}, remapped, false, 1},
		"around one or both, and slow": {[]string{"NET_RAW"}, remapped, true, 1},
	} {
		for _, before := range []bool{false, true} { // the agent
			owner := box(10, true, "xdp.egress.allow=53/udp")
			owner.CapDrop = tc.drops
			comes := joiner(20, true, owner.ID, tc.joins)
			comes.CapDrop = tc.drops
			all := []docker.Container{owner}
			if before {
				all = append(all, comes)
			}
			inTime(t, all, func(r *rig) {
				r.kernel.slow[10] = tc.slow
				if before {
					r.kernel.attached[10], r.kernel.last[10] = "open", xdp.Want{Raw: tc.drops == nil}
				}
			}, func(r *rig) {
				r.after(time.Second)
				if !before {
					r.happens(comes, docker.ActionCreate, docker.ActionStart)
				}
				r.after(3 * resync)
				r.want(owner, enforced10)
				if n := r.kernel.count("forget conversations 10"); n != tc.forget {
					t.Errorf("%s, before the agent %t: forgotten %d times, want %d", name, before, n, tc.forget)
				}
			})
		}
	}
}

// Where nobody asks for a filter nobody is asked about.
func TestNobodyPeeks(t *testing.T) {
	c := box(20, false)
	inTime(t, []docker.Container{box(10, true)}, nil, func(r *rig) {
		r.happens(c, docker.ActionCreate)
		if got := r.engine.asked(c.ID); got != 0 {
			t.Errorf("asked %d times", got)
		}
	})
}

// Where two hooks are needed and there is room for one, the way around it is named.
func TestOneHookOfTwo(t *testing.T) {
	needs, plain := box(10, true, "xdp.drop=udp"), box(20, true, "xdp.drop=udp")
	needs.Runtime = "kata"
	inTime(t, []docker.Container{needs, plain}, func(r *rig) {
		r.kernel.foreign[10], r.kernel.foreign[20] = true, true
	}, func(r *rig) {
		r.want(needs, "partial [bridge partial 10:open]")
		if got := r.kernel.record(needs.ID).Interfaces[0].Error; !strings.Contains(got, "can get around one hook") {
			t.Errorf("error %q", got)
		}
		r.want(plain, "enforced [bridge enforced 20:open]")
		r.kernel.set(func() { delete(r.kernel.foreign, 10) })
		r.after(resync)
		r.want(needs, enforced10)
	})
}
