package xdp

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// Guard has the bridge of a port take from it only what tc ingress has judged and let pass, as long as the rules stand, with an agent or
// without: so that no detour gets past both hooks. What it sends to the bridge itself (01:80:c2:00:00:0X) is dropped. tc ingress marks it with a bit that nobody in another network namespace can set, and the
// rule takes the bit away. It does nothing where the filter has not both hooks on the port (Filter.Both), or where it is no rules that hold
// ports; see Guarded.
func (h *Hold) Guard(ifindex int) error {
	f := h.filter
	if h.inXDP || f.guarded[ifindex] || !f.Both(ifindex) {
		return nil
	}
	if err := setLink(ifindex, seesGroups(everyGroup)); err != nil {
		return err
	}
	// Marked before the rules look for it, or what comes meanwhile would be dropped.
	f.guarded[ifindex] = true
	if err := f.mark(ifindex); err != nil {
		delete(f.guarded, ifindex)
		return err
	}
	if !h.known[ifindex] {
		return nil // Release does the rest
	}
	// In two steps: in between it is in both sets, of which the rules ask known first.
	h.guards[ifindex] = true
	both := []int{ifindex}
	return h.mend(errors.Join(h.rules.release(nil, both), h.rules.forget(both, nil)))
}

// Guarded reports whether a port has been given to Guard, and is guarded or will be when it is released.
func (h *Hold) Guarded(ifindex int) bool { return h.filter.guarded[ifindex] }

// Unguard ends what Guard has begun. Call it before Filter.Detach, after which nothing would get past the rules.
func (h *Hold) Unguard(ifindex int) error {
	var errs []error
	if h.guards[ifindex] {
		delete(h.guards, ifindex)
		both := []int{ifindex}
		errs = append(errs, h.mend(errors.Join(h.rules.release(both, nil), h.rules.forget(nil, both))))
	}
	if h.filter.guarded[ifindex] {
		delete(h.filter.guarded, ifindex)
		errs = append(errs, h.filter.mark(ifindex), setLink(ifindex, seesGroups(0)))
	}
	return errors.Join(errs...)
}

// A bridge keeps frames to 01:80:c2:00:00:0X to itself: they come to the host past its prerouting. Those that a port's mask names, by X, it takes
// as any other (br_handle_frame). That of pauses, 1, no port may name: the bridge drops it.
const everyGroup = 0xffff &^ (1 << 1)

func seesGroups(mask uint16) func(netlink.Link) error {
	return func(l netlink.Link) error { return netlink.LinkSetBRSlaveGroupFwdMask(l, mask) }
}

// GotPast is how many packets guarded ports have sent past both hooks since the rules were installed. They were dropped.
func (h *Hold) GotPast() uint64 {
	if len(h.guards) == 0 {
		return 0
	}
	return h.rules.dropped(h.rules.guard)
}

// mark tells tc ingress of a device whether it is guarded.
func (f *Filter) mark(ifindex int) error {
	d, ok := f.maps.devices[ifindex]
	if !ok {
		return fmt.Errorf("ifindex %d has no policy", ifindex)
	}
	id := f.maps.identities[d.Counters]
	id.Own = id.Own&ownPolicy | f.bits(ifindex)
	return f.maps.putIdentity(d.Counters, id)
}
