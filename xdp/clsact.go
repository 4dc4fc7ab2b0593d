package xdp

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Where the kernel has no tcx (before 6.6), tc programs hang on filters of a clsact qdisc. These are no links: they
// need no pin to stay, a replacement is one step, and whoever flushes the qdisc removes them.

const clsactName = "vethwall"

func clsactAttach(id hookID, program *ebpf.Program) error {
	qdisc := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: id.ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add a clsact qdisc to ifindex %d: %w", id.ifindex, err)
	}
	if err := netlink.FilterReplace(clsactFilter(id, program.FD())); err != nil {
		return fmt.Errorf("attach tc to ifindex %d: %w", id.ifindex, err)
	}
	return nil
}

func clsactFilter(id hookID, fd int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: id.ifindex, Parent: clsactParent(id), Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1,
		},
		Fd: fd, Name: clsactName, DirectAction: true,
	}
}

func clsactParent(id hookID) uint32 {
	if id.hook == hookSent {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.HANDLE_MIN_EGRESS
}

func clsactFind(id hookID) (*netlink.BpfFilter, bool) {
	l, err := netlink.LinkByIndex(id.ifindex)
	if err != nil {
		return nil, false
	}
	filters, err := netlink.FilterList(l, clsactParent(id))
	if err != nil {
		return nil, false
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name == clsactName {
			return b, true
		}
	}
	return nil, false
}

func clsactHas(id hookID) bool {
	_, ok := clsactFind(id)
	return ok
}

func clsactDetach(id hookID) error {
	f, ok := clsactFind(id)
	if !ok {
		return nil
	}
	if err := netlink.FilterDel(f); err != nil {
		return fmt.Errorf("detach tc from ifindex %d: %w", id.ifindex, err)
	}
	return nil
}
