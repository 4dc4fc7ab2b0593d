package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/xdp"
)

// Who has CAP_NET_ADMIN in a container's network can move the veth's end out of it, and over the host's user namespace reach the
// host's devices past the veth. No filter holds that; what appears so is filtered where it is a veth, and told.

// strayed are those veths of c whose other ends have left its namespace for another one, with their filters. What was filtered
// before is known from the record, so that an agent that starts later knows it, too.
func (a *agent) strayed(c *container, veths namespaces, found []xdp.Veth) (out []xdp.Veth) {
	if !c.want.both {
		return nil // nobody in there can move anything
	}
	r, _ := ParseRecord([]byte(c.saved))
	for _, i := range r.Interfaces {
		v, there := veths.At(i.Ifindex)
		if there && v.Name == i.Ifname && !slices.Contains(found, v) && a.kernel.Filters(v.Index) {
			out = append(out, v)
		}
	}
	return out
}

// surprising adds to an interface that is filtered what is wrong with its veth.
func (a *agent) surprising(c *container, v xdp.Veth, i Interface, strayed bool) Interface {
	why := a.uninvited(c, i, v.Bridge)
	if strayed {
		why = movedAway
	}
	if why == "" || i.Error != "" {
		return i
	}
	i.Error = why
	return a.alarm(c, i)
}

const movedAway = "its other end has been moved out of the container's network namespace; it stays filtered"

// uninvited says why a veth of c should not be there, "" where it should: it is a port of a Docker network, and Docker has had
// time to say of c that it is in that network, and did not. place has named the veths that Docker knows of.
func (a *agent) uninvited(c *container, i Interface, bridge string) string {
	n, listed := a.around.behind(bridge)
	if c.want.holds || !listed || n.Name == gatewayBridge || i.Network == n.Name {
		delete(c.uninvited, i.Ifindex)
		return ""
	}
	since, known := c.uninvited[i.Ifindex]
	if !known {
		c.uninvited[i.Ifindex] = time.Now()
		a.ask(c.ID)
		a.after(holdLimit, func() { a.dirty[c.ID] = true })
	}
	if !known || time.Since(since) < holdLimit || c.stale || a.asking(c) {
		return ""
	}
	return fmt.Sprintf("it joins the container to network %s, and Docker has not made it; it is filtered", n.Name)
}

// outlets are what was found last in the network namespace of a container.
type outlets struct {
	path  string
	found []xdp.Outlet
}

// outletsOf are the ways of c past its veths, where it can make some. They are looked for beside the loop: it decides how long
// that takes by how many devices it makes.
func (a *agent) outletsOf(c *container, path string) (out []Interface) {
	if c.want.holds {
		return nil
	}
	a.findOutlets(c, path)
	if c.outlets.path != path {
		return nil
	}
	for _, o := range c.outlets.found {
		if slices.ContainsFunc(c.Networks, func(e docker.Endpoint) bool { return e.Driver == o.Kind }) {
			continue // Docker's own, of which Obstacles tells
		}
		by := ""
		if o.Through != "" {
			by = fmt.Sprintf(" by the host's %q", o.Through)
		}
		out = append(out, a.alarm(c, Interface{
			State: Partial, Error: fmt.Sprintf("a device in the container's network namespace, %q (%s), sends%s past the filter", o.Name, o.Kind, by),
		}))
	}
	return out
}

// outletPause is how long after a look for outlets the next one begins at the earliest: whoever makes them and takes them away
// again without end shall fill neither the log nor the agent's time.
const outletPause = time.Second

// findOutlets looks for them, and has c looked at again where they are others than before or may be.
func (a *agent) findOutlets(c *container, path string) {
	if c.finding {
		c.findAgain = true
		return
	}
	c.finding, c.findAgain = true, false
	a.beside.Go(func() {
		found, err := a.listOutlets(path)
		if errors.Is(err, fs.ErrNotExist) {
			found, err = nil, nil // the container has ended
		}
		a.tell(func() {
			a.complain(&c.pastTrouble, err, "cannot look for ways past a container's filter", "container", c.Name, "id", short(c.ID))
			a.after(outletPause, func() {
				if c.finding = false; c.findAgain {
					a.dirty[c.ID] = true
				}
			})
			if err != nil {
				return
			}
			if !slices.Equal(found, c.outlets.found) || len(found) > 0 && path != c.outlets.path {
				a.dirty[c.ID] = true
			}
			c.outlets = outlets{path, found}
		})
	})
}

// lookPast looks at all containers that can make outlets. It is called when one may have appeared in some namespace.
func (a *agent) lookPast() {
	for _, c := range a.containers {
		if c.asks && !c.want.holds {
			a.rouse(c)
		}
	}
}

// alarm tells the log of what somebody has done behind a container's filter, once.
func (a *agent) alarm(c *container, i Interface) Interface {
	if !slices.ContainsFunc(c.told.Interfaces, func(b Interface) bool { return b.Ifindex == i.Ifindex && b.Error == i.Error }) {
		a.log.Error("somebody with CAP_NET_ADMIN works around the filter", "container", c.Name, "id", short(c.ID), "veth", i.Ifname, "what", i.Error)
	}
	return i
}

// alarmPause is how long after telling of what has got past both hooks it is told again at the earliest.
const alarmPause = time.Minute

// sayGotPast tells the log of what somebody has sent past both hooks, and the rule behind them has dropped.
func (a *agent) sayGotPast() {
	n := a.hold.GotPast()
	if n < a.gotPast {
		a.gotPast = 0 // the rules are new
	}
	if n == a.gotPast || time.Since(a.saidGotPast) < alarmPause {
		return
	}
	var names []string
	for _, c := range a.containers {
		if c.want.pastBoth && c.Running {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	a.log.Error("somebody with CAP_NET_ADMIN sends past the filter; it was dropped", "packets", n-a.gotPast, "one of the containers", strings.Join(names, " "))
	a.gotPast, a.saidGotPast = n, time.Now()
}
