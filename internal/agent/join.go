package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/vethwall/vethwall/docker"
)

// A container that joins another's network (--network container:OWNER) lives behind the owner's filter with capabilities and
// a runtime of its own, and with CAP_NET_ADMIN it can lay detours around that filter.

// sharing is what follows for an owner from those who join its network.
type sharing struct {
	// Both: what comes out of the network may get around one hook.
	Both bool `json:"both"`
	// NetAdmin: one of them may configure the network namespace.
	NetAdmin bool `json:"net_admin,omitempty"`
	// Raw: one of them may send frames of its own making.
	Raw      bool   `json:"raw,omitempty"`
	Loophole string `json:"loophole,omitempty"` // see Loophole
}

// stay is what has followed from joiners in one run of the owner. What they have laid there outlives them; a restart makes
// a new namespace.
type stay struct {
	Sandbox string `json:"sandbox"`
	sharing
}

const joinMode = "container:"

// joins reports whether a network mode is that of a container in another's network.
func joins(mode string) bool { return strings.HasPrefix(mode, joinMode) }

// ownerOf is the container that c joins, by its id or as the engine was told, "" for none.
func ownerOf(c docker.Container) string {
	if !joins(c.NetworkMode) {
		return ""
	}
	return strings.TrimPrefix(c.NetworkMode, joinMode)
}

// isOwner reports whether an owner that was named so is c.
func isOwner(name string, c docker.Container) bool {
	return name != "" && (name == c.ID || name == c.Name || len(name) >= 12 && strings.HasPrefix(c.ID, name))
}

// joiners are all that join somebody's network, sorted by id. One that does not run may be started before anybody hears of it.
func (a *agent) joiners() (out []docker.Container) {
	for _, c := range a.containers {
		if c.inspected && joins(c.NetworkMode) {
			out = append(out, c.Container)
		}
	}
	slices.SortFunc(out, func(a, b docker.Container) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// sharedWith is what follows for c from the joiners that there are.
func (s surroundings) sharedWith(c docker.Container) (out sharing) {
	for _, j := range s.joiners {
		if !s.livesIn(j, c) {
			continue
		}
		out.Both = out.Both || detours(j)
		out.NetAdmin = out.NetAdmin || netAdmin(j)
		out.Raw = out.Raw || sendsRaw(j)
		if capability, how, options := overrides(j); capability != "" {
			why := fmt.Sprintf("container %s shares its network and has %s, so no filter on the veth holds it: %s; start that one without %s, and restart this one",
				j.Name, capability, how, options)
			out.Loophole = cmp.Or(out.Loophole, why)
		}
		if seesOthers(j) && !isOwner(strings.TrimPrefix(j.PidMode, joinMode), c) { // those of the owner are behind the same filter
			why := fmt.Sprintf("container %s shares its network and sees processes of others (--pid), so no filter on the veth holds it: %s; start that one without --pid, and restart this one",
				j.Name, processDetour)
			out.Loophole = cmp.Or(out.Loophole, why)
		}
	}
	return out
}

// livesIn reports whether j joins c, or one that joins c.
func (s surroundings) livesIn(j, c docker.Container) bool {
	for range s.joiners { // a longer chain goes round in a circle
		owner := ownerOf(j)
		if isOwner(owner, c) {
			return true
		}
		i := slices.IndexFunc(s.joiners, func(o docker.Container) bool { return isOwner(owner, o) })
		if i < 0 {
			return false
		}
		j = s.joiners[i]
	}
	return false
}

// sharedIn adds to what follows from the joiners of now what has followed from others before in this run of c.
func (c *container) sharedIn(now sharing) sharing {
	if c.stay.Sandbox == c.SandboxID {
		now.Both = now.Both || c.stay.Both
		now.NetAdmin = now.NetAdmin || c.stay.NetAdmin
		now.Raw = now.Raw || c.stay.Raw
		now.Loophole = cmp.Or(c.stay.Loophole, now.Loophole)
	}
	if c.stay = (stay{}); now != (sharing{}) && c.SandboxID != "" {
		c.stay = stay{c.SandboxID, now}
	}
	return now
}

// forgetStay is called where c gets a veth. If its namespace of before is gone, that is a new run, which Docker may be yet to tell.
func (a *agent) forgetStay(c *container) {
	if c.stay.Sandbox == "" || len(c.devices) > 0 {
		return
	}
	all, err := a.list()
	if err != nil {
		return
	}
	if _, _, err := vethsOf(c.Container, all.veths, a.proc); err != nil {
		c.stay = stay{}
	}
}

// anybodyAsks reports whether there is a filter that a joiner could undo.
func (a *agent) anybodyAsks() bool {
	for _, c := range a.containers {
		if c.asks {
			return true
		}
	}
	return false
}

// peek asks Docker beside the loop whether a container that asks for nothing joins another's network. What cannot be learnt
// so is in the next list.
func (a *agent) peek(id string) {
	s := a.session
	if s == nil || !a.anybodyAsks() {
		return
	}
	a.beside.Go(func() {
		answer, err := a.inspect(s, id)
		if err != nil || !joins(answer.NetworkMode) {
			return
		}
		a.tell(func() {
			if a.session == s && a.containers[id] == nil {
				a.learn(a.meet(id), answer)
			}
		})
	})
}

// lookAtOwner lets the container be looked at whose network c joins, and the one whose network that joins.
func (a *agent) lookAtOwner(c docker.Container) {
	owner := ownerOf(c)
	if owner == "" {
		return
	}
	for id, o := range a.containers {
		if isOwner(owner, o.Container) && !a.dirty[id] {
			a.dirty[id] = true
			a.lookAtOwner(o.Container)
		}
	}
}

// knownOf is all that the want of c depends on beside what Docker says of it.
func (a *agent) knownOf(c *container) known {
	k := a.surroundingsOf(c).needed(c.want.live)
	k.sharing = c.sharedIn(a.around.sharedWith(c.Container))
	return k
}
