package xdp

import (
	"errors"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Rest is what Begin has left: the programs of a device at tcx, each of which the kernel takes 8 ms and more to attach, one after the
// other under the lock that all of networking has.
type Rest struct {
	// Open: until then nothing judges what the container sends.
	Open bool

	ifindex  int
	programs map[string]*ebpf.Program // by hook
	links    map[string]link.Link     // those that Attach has made
	// prepares: it is of a port that is held, with tables for containers to come.
	prepares bool
	tables   *newTables
}

// Begin is Attach without what takes the kernel long: when it returns without an error the policy is in force at XDP and
// where there were hooks before. nil: that is all of w. Else the rest is to be attached, by whom and when the caller likes, and to be
// given to Take; then Begin and Attach find it there. Until they have, it ends with this process.
func (f *Filter) Begin(ifindex int, w Want) (*Rest, error) {
	if f.stands(ifindex, w) {
		return nil, nil
	}
	rest := f.restOf(ifindex, w)
	if err := f.attach(ifindex, w, rest); err != nil {
		return nil, err
	}
	return rest, nil
}

// restOf is what of w may come later, nil for nothing. An operator's program has to find the policy behind it, and a device that is down
// comes up with all that it is to have.
func (f *Filter) restOf(ifindex int, w Want) *Rest {
	if !f.tcx || f.noTCX || w.Program != (Program{}) || f.has(hookID{ifindex, hookProgram}) || f.ByHand(ifindex) || f.maps.isShut(ifindex) || f.downed[ifindex] {
		return nil
	}
	r := &Rest{ifindex: ifindex, programs: map[string]*ebpf.Program{}, links: map[string]link.Link{}}
	hooks := f.hooks(ifindex, w)
	for _, hook := range hooks {
		switch {
		case isSlot(hook) || f.has(hookID{ifindex, hook}):
		case hook == hookSent:
			r.programs[hook] = f.objs.VethwallSent
			r.Open = !slices.Contains(hooks, hookXDP)
		default:
			r.programs[hook] = f.objs.VethwallReceived
		}
	}
	if len(r.programs) == 0 {
		return nil
	}
	return r
}

func (r *Rest) has(hook string) bool { return r != nil && r.programs[hook] != nil }

// Attach attaches them. It may be called beside whoever has the Filter, which must stay open, on a thread in the Filter's network namespace.
func (r *Rest) Attach() error {
	for _, hook := range []string{hookXDP, hookSent, hookReceived} { // what is sent first, as Attach does
		program := r.programs[hook]
		if program == nil {
			continue
		}
		var l link.Link
		var err error
		if hook == hookXDP {
			l, err = attachXDP(r.ifindex, program, Generic)
		} else {
			l, err = attachTCX(hookID{r.ifindex, hook}, program)
		}
		if err != nil {
			return err
		}
		r.links[hook] = l
	}
	return r.tables.make()
}

// Close takes off what Attach has attached and nobody has taken.
func (r *Rest) Close() error {
	var errs []error
	for hook, l := range r.links {
		errs = append(errs, l.Close())
		delete(r.links, hook)
	}
	return errors.Join(errs...)
}

// Take makes what r has attached the filter's own. Of a device that is gone, or that has the hook by now, it is closed, and so is what
// was to prepare a port that is not held any more.
func (f *Filter) Take(r *Rest) error {
	f.maps.states.takeNew(r.tables)
	for hook, l := range r.links {
		id := hookID{r.ifindex, hook}
		switch {
		case r.prepares && f.held[r.ifindex] && f.links[id] == nil:
			f.links[id], f.loose[id] = l, true
			delete(r.links, hook)
			continue
		case r.prepares || deviceOf(l) != id.device() || f.live(id) != nil:
			continue
		}
		_ = os.Remove(f.pin(id)) // of a device that had this number before
		f.links[id] = l
		delete(r.links, hook)
	}
	if r.prepares && f.held[r.ifindex] && f.Both(r.ifindex) { // each would count what passes
		return errors.Join(f.mark(r.ifindex), r.Close())
	}
	return r.Close()
}
