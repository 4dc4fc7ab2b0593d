package xdp

import (
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Port is a port of a bridge in this network namespace.
type Port struct {
	Index  int
	Name   string
	Bridge string
	Master int // the bridge's ifindex
	// NsID is the namespace id of the other end of a veth, -1 where that is in this namespace, as it is at first with
	// engines before 28. Peer is the other end's ifindex there, 0 for what is no veth.
	NsID, Peer int
	// Carrier says that frames can come from it: the other end of a veth is up.
	Carrier bool
}

// ListPorts asks the kernel for all ports of bridges.
func ListPorts() ([]Port, error) {
	links, err := ListLinks()
	return links.Ports(), err
}

// Ports are those of bridges.
func (links Links) Ports() (out []Port) {
	bridges := map[int]string{}
	for _, l := range links {
		if l.kind == "bridge" {
			bridges[l.index] = l.name
		}
	}
	for _, l := range links {
		if bridge := bridges[l.master]; bridge != "" {
			out = append(out, portOf(l, bridge))
		}
	}
	return out
}

func portOf(l hostLink, bridge string) Port {
	p := Port{Index: l.index, Name: l.name, Bridge: bridge, Master: l.master, NsID: -1, Carrier: l.flags&unix.IFF_LOWER_UP != 0}
	if l.kind == "veth" {
		p.NsID, p.Peer = l.nsid, l.peer
	}
	return p
}

// Dockers reports whether a port has a name such as Docker gives the host's end of a veth: "veth" and seven lower case
// hex digits.
func (p Port) Dockers() bool {
	digits, ok := strings.CutPrefix(p.Name, "veth")
	return ok && len(digits) == 7 && strings.Trim(digits, "0123456789abcdef") == ""
}

// Hairpin reports whether a bridge sends back by a port what has come in by it: so Docker configures its own where it
// has no proxy for published ports, and the host's rules lead from one container to the other.
func (p Port) Hairpin() (bool, error) {
	info, err := netlink.LinkGetProtinfo(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: p.Index}})
	if err != nil {
		return false, fmt.Errorf("ask how %s is a port of its bridge: %w", p.Name, err)
	}
	return info.Hairpin, nil
}

// PeerMAC is the address of the other end of a veth, nil where that cannot be seen. The kernel says it of a
// namespace that nobody has to enter.
func (p Port) PeerMAC() net.HardwareAddr {
	if p.Peer == 0 {
		return nil
	}
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	about := nl.NewIfInfomsg(unix.AF_UNSPEC)
	about.Index = int32(p.Peer)
	request.AddData(about)
	if p.NsID >= 0 {
		request.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(p.NsID))))
	}
	answers, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil || len(answers) != 1 {
		return nil
	}
	l, err := netlink.LinkDeserialize(nil, answers[0])
	if err != nil || l.Type() != "veth" {
		return nil
	}
	return l.Attrs().HardwareAddr
}
