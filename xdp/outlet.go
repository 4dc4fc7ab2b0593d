package xdp

import (
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Outlet is a device in a container's network namespace by which it sends past its veths: a macvlan on a device of the host's, a
// tunnel whose packets are the host's, a network card. Who has CAP_NET_ADMIN over the host's user namespace makes one
// from inside (RTM_NEWLINK with IFLA_LINK_NETNSID).
type Outlet struct {
	Name string
	Kind string // as ip -d link calls it, "device" for a network card
	// Through is the name of the host's device that it sends by, "" where it names none.
	Through string
}

// networkCard is the type of what has no driver in software, and of lo.
const networkCard = "device"

// Outlets asks the kernel for the outlets in the network namespace at path, as Veths.In takes it. They cannot be forged or
// hidden there, but for kinds that do not say by which namespace they send, of which WireGuard is one. No thread enters
// the namespace.
func Outlets(path string) ([]Outlet, error) {
	ns, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if err := checkNamespace(ns); err != nil {
		return nil, err
	}
	nsid, err := netlink.GetNetNsIdByFd(int(ns.Fd()))
	if err != nil {
		return nil, fmt.Errorf("namespace id of %s: %w", path, err)
	}
	if nsid < 0 {
		return nil, nil // nothing of ours was ever there
	}
	links, err := linksIn(nsid)
	if err != nil {
		return nil, fmt.Errorf("list the links in %s: %w", path, err)
	}
	// Looked up afterwards: the kernel gives this namespace a number for itself as it names it in the list.
	here, err := ownNsID()
	if err != nil {
		return nil, err
	}
	var out []Outlet
	for _, l := range links {
		a := l.Attrs()
		switch {
		case a.NetNsID >= 0 && a.NetNsID == here && l.Type() != "veth":
			out = append(out, Outlet{Name: a.Name, Kind: l.Type(), Through: nameOf(a.ParentIndex)})
		case l.Type() == networkCard && a.Flags&net.FlagLoopback == 0:
			out = append(out, Outlet{Name: a.Name, Kind: l.Type()})
		}
	}
	return out, nil
}

// linksIn are the links of the namespace with a namespace id. The ids that they name are those of this namespace.
func linksIn(nsid int) ([]netlink.Link, error) {
	return uninterrupted(func() (out []netlink.Link, err error) {
		request := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		request.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(nsid))))
		answers, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
		if err != nil {
			return nil, err
		}
		for _, m := range answers {
			l, err := netlink.LinkDeserialize(nil, m)
			if err != nil {
				return nil, err
			}
			out = append(out, l)
		}
		return out, nil
	})
}

// ownNsID is the number of this thread's namespace for itself, -1 where it has none.
func ownNsID() (int, error) {
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return -1, err
	}
	defer here.Close()
	return netlink.GetNetNsIdByFd(int(here.Fd()))
}

func nameOf(ifindex int) string {
	if ifindex == 0 {
		return ""
	}
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return ""
	}
	return l.Attrs().Name
}
