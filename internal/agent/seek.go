package agent

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/vethwall/vethwall/docker"
)

// soonest and latest bound the time between two looks for whose a port is, and calm is the first while nothing can send by it:
// a look keeps the engine from what it does for that very start. Each pause is twice the one before.
const (
	soonest = 4 * time.Millisecond
	calm    = 50 * time.Millisecond
	latest  = 250 * time.Millisecond
)

// recognise looks whether a port's other end is one that its network has named, by the address that Docker gives it. Where the kernel has not told of
// it already it is asked, beside the loop: while it starts other containers it does not answer for tens of milliseconds.
func (a *agent) recognise(p *port) {
	news := p.news && p.end == nil && len(p.ends) > 0 && (p.NsID >= 0 || p.Carrier)
	p.news = false
	if mac := a.heardMAC(p.Port); news && mac != nil {
		a.match(p, mac)
	}
	switch {
	case !news || p.end != nil:
	case p.asking:
		p.askAgain = true
	default:
		p.asking, p.askAgain = true, false
		of := p.Port
		a.beside.Go(func() {
			mac := a.peerMAC(of)
			a.tell(func() {
				p.asking = false
				if p.end == nil && p.NsID == of.NsID {
					a.match(p, mac)
				}
				p.news = p.news || p.askAgain
				a.settle(p)
			})
		})
	}
}

// seek looks beside the loop for whose a port is. The network names what is being attached to it, with engines from 28 on at
// first without the container's id; but there a process lives in the container's namespace from the beginning, some
// 50 ms before it becomes the container's own program, and its cgroup has the id. Engines before 28 make both
// ends here, and give the other one its address as they move it into the namespace.
func (a *agent) seek(p *port, n docker.Network) {
	if p.id == "" && p.NsID >= 0 && !p.looked {
		a.lookInside()
	}
	if !p.resting && !p.asking && (p.attached || !p.live.IsZero() || a.anybodyIsDue()) {
		a.askAttachments(n)
	}
}

// dueFor is how long a container may be expected to start after it was created, or has ended.
const dueFor = 10 * time.Second

// anybodyIsDue reports whether a container that asks for a filter is likely to start now. For others it is soon enough to look whose
// a port is when its network says that somebody was attached, or something can send by it.
func (a *agent) anybodyIsDue() bool {
	for _, c := range a.containers {
		if c.asks && !c.Running && time.Since(c.stirred) < dueFor {
			return true
		}
	}
	return false
}

// lookInside looks for the processes of all ports that are held. One look serves all that came before it.
func (a *agent) lookInside() {
	if a.looking {
		return
	}
	var nsids []int
	var ports []*port
	for _, p := range a.held {
		if (p.id == "" || p.enter) && p.NsID >= 0 && !p.looked {
			ports, nsids = append(ports, p), append(nsids, p.NsID)
		}
	}
	a.looking = true
	proc, processes := a.proc, a.processes
	a.beside.Go(func() {
		ids := map[int][][]string{}
		found, err := processes(proc, nsids)
		for nsid, pids := range found {
			for _, pid := range pids {
				ids[nsid] = append(ids[nsid], idsOf(proc, pid))
			}
		}
		a.tell(func() {
			a.looking = false
			a.complain(&a.procTrouble, err, "cannot look at the host's processes")
			for _, p := range ports {
				p.looked, p.pids = true, found[p.NsID]
				if p.id == "" {
					p.inside = a.owner(ids[p.NsID])
					p.id, p.news = p.inside, true
				}
			}
			a.settlePorts()
		})
	})
}

var containerID = regexp.MustCompile(`\b[0-9a-f]{64}\b`)

// idsOf are the ids of containers that the cgroup of a process names, the outermost first.
func idsOf(proc string, pid int) (out []string) {
	group, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return nil
	}
	for id := range bytes.Lines(group) {
		for _, match := range containerID.FindAll(id, -1) {
			if !slices.Contains(out, string(match)) {
				out = append(out, string(match))
			}
		}
	}
	return out
}

// owner is the container whose processes were found in a namespace, "" where they are of several: one of them has
// joined the other's, and the network knows which, unless Docker has said of all but one that they have no network of their own. Nor does a cgroup say it that names two: one may be only the parent that the other was
// started under (--cgroup-parent), which the engine may have created just now. An engine within a container has processes of its own above those
// that it starts, of which the one outside knows nothing.
func (a *agent) owner(processes [][]string) (id string) {
	known := func(id string) bool { return a.plain[id] || a.containers[id] != nil }
	guest := func(id string) bool { c := a.containers[id]; return c != nil && c.inspected && shares(c.NetworkMode) }
	below := true
	for _, ids := range processes {
		if len(ids) == 0 {
			continue // of the host: somebody looks around there
		}
		mine := slices.IndexFunc(ids, known)
		if mine < 0 {
			mine = len(ids) - 1
		}
		switch {
		case slices.ContainsFunc(ids[mine+1:], known):
			return ""
		case guest(ids[mine]):
			continue
		case id == "":
			id = ids[mine]
		case id != ids[mine]:
			return ""
		}
		below = below && mine < len(ids)-1
	}
	if below {
		return ""
	}
	return id
}

// askAttachments asks a network what is attached to it, for all of its ports that are held.
func (a *agent) askAttachments(n docker.Network) {
	s := a.session
	if s == nil || a.attaching[n.ID] {
		return
	}
	a.attaching[n.ID] = true
	var ports []*port
	for _, p := range a.held {
		if p.Bridge == n.Bridge {
			ports, p.attached = append(ports, p), false
		}
	}
	a.beside.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, answerTimeout)
		defer cancel()
		ends, err := s.Attachments(ctx, n.ID)
		a.tell(func() {
			delete(a.attaching, n.ID)
			if a.session == s && !errdefs.IsNotFound(err) {
				a.complain(&s.attachTrouble, err, "cannot ask a network what is attached to it", "network", n.Name)
			}
			// Of a network that the list lacks it is not known which addresses there are the host's.
			if now, listed := a.around.behind(n.Bridge); err == nil && listed && a.guarded[n.Bridge] {
				a.introduce(now, ends)
			}
			for _, p := range ports {
				p.ends, p.news = ends, true
				p.silent, p.foreign = err != nil, errdefs.IsNotFound(err)
				a.rest(p)
			}
			a.settlePorts()
		})
	})
}

// match finds the container's end of a port among those of its network: by its address, else by the container's id. An
// end that was named before the port came may be another's, which had the address until then: there is none among them. A
// container that runs may have taken another's address: its port is nobody else's.
func (a *agent) match(p *port, mac net.HardwareAddr) {
	found := slices.DeleteFunc(slices.Clone(p.ends), func(e docker.Attachment) bool {
		return mac == nil || !bytes.Equal(e.MAC, mac) || a.isElsewhere(e, p)
	})
	if len(found) != 1 && p.id != "" {
		found = slices.DeleteFunc(slices.Clone(p.ends), func(e docker.Attachment) bool { return e.ContainerID != p.id })
	}
	if len(found) != 1 {
		return
	}
	if a.plain[found[0].ContainerID] && p.id == "" && p.NsID >= 0 && !p.looked && a.anybodyIsPortless() {
		return // the processes come first, and are news
	}
	p.end = &found[0]
	if p.end.ContainerID != "" {
		p.id = p.end.ContainerID
	}
}

// anybodyIsPortless reports whether a container with a filter runs that has left all networks, or has joined none yet. When it does it may have the MAC of
// one that asks for nothing, of which nothing else tells it than the processes behind the port.
func (a *agent) anybodyIsPortless() bool {
	for _, c := range a.containers {
		if c.asks && c.Running && !shares(c.NetworkMode) && !slices.ContainsFunc(c.devices, func(ifindex int) bool { _, there := a.ports[ifindex]; return there }) {
			return true
		}
	}
	return false
}

// isElsewhere reports whether an end with the address of a port's is not its other end: another container lives there, or the end's own has a port of that
// bridge already. Where only the kernel says that another port has the end's addresses, that may be one of before: the processes there tell.
func (a *agent) isElsewhere(e docker.Attachment, p *port) bool {
	if e.ContainerID == "" {
		return false
	}
	lives := p.inside
	switch {
	case p.proved:
		lives = p.id
	case lives == "":
		lives = a.resident(p)
	}
	if lives != "" && e.ContainerID != lives {
		return true
	}
	here := func(ifindex int) bool {
		other, there := a.ports[ifindex]
		return there && ifindex != p.Index && other.Bridge == p.Bridge && a.held[ifindex] == nil
	}
	if c := a.containers[e.ContainerID]; c != nil && slices.ContainsFunc(c.devices, here) {
		return true
	}
	return lives == "" && slices.ContainsFunc(e.Addrs, func(addr netip.Addr) bool { return here(a.kernel.Bearer(p.Master, addr)) })
}

// resident is the container that is known to live in the namespace behind a port, because another port of its leads there, too: it runs, and joins a
// network. "" for one that starts.
func (a *agent) resident(p *port) string {
	leads := func(ifindex int) bool {
		other, there := a.ports[ifindex]
		return there && ifindex != p.Index && other.NsID == p.NsID
	}
	for id, c := range a.containers {
		if p.NsID >= 0 && c.nsid == p.NsID && !shares(c.NetworkMode) && slices.ContainsFunc(c.devices, leads) {
			return id
		}
	}
	return ""
}

// rest puts a port aside for a while, before it is looked for again.
func (a *agent) rest(p *port) {
	p.resting = true
	a.after(p.pause, func() {
		p.resting, p.looked, p.news = false, false, true
		a.settle(p)
	})
	p.pause = min(2*p.pause, latest)
}

// wake looks again at once for whose the ports of a network are, because something was attached to it.
func (a *agent) wake(networkID string) {
	for _, p := range a.held {
		if p.Bridge == a.around.networks[networkID].Bridge {
			p.resting, p.attached, p.pause = false, true, calm
			if !p.live.IsZero() {
				p.pause = soonest
			}
			a.settle(p)
		}
	}
}

// outline asks beside the loop for what is known of a container while its start keeps an inspect waiting.
func (a *agent) outline(id string) {
	s := a.session
	if s == nil || a.outlining[id] {
		return
	}
	a.outlining[id] = true
	a.beside.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, answerTimeout)
		defer cancel()
		answer, err := s.Outline(ctx, id)
		a.tell(func() {
			if err == nil {
				delete(a.outlining, id)
				a.outlined(answer)
				a.settlePorts()
				return
			}
			for _, p := range a.held {
				if p.id == id {
					p.id, p.inside = "", "" // perhaps another engine's
				}
			}
			a.after(latest, func() { delete(a.outlining, id); a.settlePorts() })
		})
	})
}

// outlined takes in an outline. What HostConfig would say, that one hook is not enough for the container, is known a moment
// after its process runs; where it has been inspected once, before.
func (a *agent) outlined(answer docker.Container) {
	c := a.containers[answer.ID]
	if c == nil && !a.worthAsking(answer.ID, answer.Labels) {
		a.plain[answer.ID] = true
		return
	}
	if c == nil {
		a.ask(answer.ID)
		c = a.containers[answer.ID]
	}
	c.renamed = false
	if c.inspected { // its name alone may be news
		name := answer.Name
		answer = c.Container
		answer.Name = name
	}
	c.Container, c.outlined = answer, true
	a.decide(c, a.surroundingsOf(c))
}
