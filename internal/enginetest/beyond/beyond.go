// Package beyond does to the host's devices what a container with CAP_NET_ADMIN over the host's user namespace can do by
// netlink, from its own network namespace and past its veth. The host's is named by the number (nsid) that the namespace of
// the calling thread has for it; whoever calls has made sure that it is the one that a test plays the host in.
//
// Only tests import it.
package beyond

import (
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Device makes a macvlan in this namespace on a device of the host's, or a vxlan whose packets are the host's.
func Device(host int, kind, name string, lower int) error {
	request := newLink(name)
	request.AddData(nl.NewRtAttr(unix.IFLA_LINK, nl.Uint32Attr(uint32(lower))))
	request.AddData(nl.NewRtAttr(unix.IFLA_LINK_NETNSID, nl.Uint32Attr(uint32(host))))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(kind))
	switch data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil); kind {
	case "macvlan":
		data.AddRtAttr(nl.IFLA_MACVLAN_MODE, nl.Uint32Attr(nl.MACVLAN_MODE_BRIDGE))
	case "vxlan":
		data.AddRtAttr(nl.IFLA_VXLAN_ID, nl.Uint32Attr(7))
	}
	request.AddData(info)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// Port makes a veth of which one end is a port of a bridge of the host's and the other, peer, is here.
func Port(host, bridge int, name, peer string) error {
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer func() { _ = here.Close() }()
	request := newLink(name)
	request.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(host))))
	request.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	end := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(end, unix.AF_UNSPEC)
	end.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(peer))
	end.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(here.Fd())))
	request.AddData(info)
	if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return err
	}
	l, err := netlink.LinkByName(peer)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// newLink asks for a new device that is up.
func newLink(name string) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	about := nl.NewIfInfomsg(unix.AF_UNSPEC)
	about.Flags, about.Change = unix.IFF_UP, unix.IFF_UP
	request.AddData(about)
	request.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	return request
}

// Delete deletes a device of the host's.
func Delete(host, ifindex int) error {
	request := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	about := nl.NewIfInfomsg(unix.AF_UNSPEC)
	about.Index = int32(ifindex)
	request.AddData(about)
	request.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(host))))
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
