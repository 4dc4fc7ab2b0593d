package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// hostLink is what the kernel says of a link of this network namespace: no more than is needed of a thousand of them.
type hostLink struct {
	index  int
	name   string
	kind   string // "veth", "bridge", ...
	flags  uint32 // IFF_*
	master int    // ifindex of what it is a port of, 0 for none
	// peer is the ifindex of a veth's other end, in the namespace with the id nsid, -1 for this one.
	peer, nsid int
}

// Links are the links of this network namespace as they were at one moment.
type Links []hostLink

const skipStats = 8 // RTEXT_FILTER_SKIP_STATS: counters that nobody reads

// ListLinks asks the kernel for the links of this network namespace. With a thousand of them that takes it some 10 ms.
func ListLinks() (Links, error) {
	links, err := uninterrupted(func() (out []hostLink, err error) {
		request := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		request.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
		answers, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
		for _, a := range answers {
			if l, ok := parseLink(a); ok {
				out = append(out, l)
			}
		}
		return out, err
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return links, nil
}

// parseLink reads a message that tells of a link; false for one that does not, or of a part only, such as its being a port.
func parseLink(message []byte) (l hostLink, ok bool) {
	if len(message) < unix.SizeofIfInfomsg {
		return l, false
	}
	about := nl.DeserializeIfInfomsg(message)
	l = hostLink{index: int(about.Index), flags: about.Flags, nsid: -1}
	whole := eachAttribute(message[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.name = unix.ByteSliceToString(value)
		case unix.IFLA_MASTER:
			l.master = number32(value)
		case unix.IFLA_LINK:
			l.peer = number32(value)
		case unix.IFLA_LINK_NETNSID:
			l.nsid = number32(value)
		case unix.IFLA_LINKINFO:
			eachAttribute(value, func(kind uint16, value []byte) {
				if kind == unix.IFLA_INFO_KIND {
					l.kind = unix.ByteSliceToString(value)
				}
			})
		}
	})
	return l, whole && about.Family == unix.AF_UNSPEC
}

func number32(value []byte) int {
	if len(value) < 4 {
		return 0
	}
	return int(int32(binary.NativeEndian.Uint32(value)))
}

// eachAttribute calls f for every attribute of a netlink message. It is false where they do not add up.
func eachAttribute(data []byte, f func(kind uint16, value []byte)) bool {
	for len(data) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(data))
		if size < unix.SizeofRtAttr || size > len(data) {
			return false
		}
		f(binary.NativeEndian.Uint16(data[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), data[unix.SizeofRtAttr:size])
		data = data[min(len(data), (size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
	}
	return len(data) == 0
}

// nsidOf asks for the id (nsid) of a network namespace, -1 for one that no device here leads into. It is asked for each
// container at each look, so it is asked with as little as there is.
func nsidOf(ns *os.File) (int, error) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return 0, err
	}
	defer unix.Close(s)
	const question = unix.SizeofNlMsghdr + 4 + unix.SizeofRtAttr + 4
	q := make([]byte, question)
	binary.NativeEndian.PutUint32(q, question)
	binary.NativeEndian.PutUint16(q[4:], unix.RTM_GETNSID)
	binary.NativeEndian.PutUint16(q[6:], unix.NLM_F_REQUEST)
	attribute := q[unix.SizeofNlMsghdr+4:]
	binary.NativeEndian.PutUint16(attribute, unix.SizeofRtAttr+4)
	binary.NativeEndian.PutUint16(attribute[2:], unix.NETNSA_FD)
	binary.NativeEndian.PutUint32(attribute[unix.SizeofRtAttr:], uint32(ns.Fd()))
	if err := unix.Sendto(s, q, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	answer := make([]byte, 512)
	n, _, err := unix.Recvfrom(s, answer, 0) // the kernel has answered when the question has been sent
	if err != nil {
		return 0, err
	}
	if n < unix.SizeofNlMsghdr+4 {
		return 0, errors.New("the kernel's answer is too short")
	}
	body := answer[unix.SizeofNlMsghdr:n]
	switch binary.NativeEndian.Uint16(answer[4:]) {
	case unix.NLMSG_ERROR:
		return 0, unix.Errno(-number32(body))
	case unix.RTM_NEWNSID:
	default:
		return 0, fmt.Errorf("the kernel answers with message %d", binary.NativeEndian.Uint16(answer[4:]))
	}
	nsid, found := 0, false
	eachAttribute(body[4:], func(kind uint16, value []byte) {
		if kind == unix.NETNSA_NSID {
			nsid, found = number32(value), true
		}
	})
	if !found {
		return 0, errors.New("the kernel's answer names no id")
	}
	return nsid, nil
}
