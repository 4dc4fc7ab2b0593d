package xdp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// receiveBuffer holds the messages of a thousand containers that come and go at once.
const receiveBuffer = 8 << 20

// Change is what a message of the kernel tells of a device of this network namespace, or of the namespace.
type Change struct {
	// Index is the device's, 0 where the message tells of an address or a route.
	Index int
	// Gone: there is no such device any more. Else Port is what it was when the message was sent as a port of a bridge, with Index 0 for one that
	// is none, and NsID is the namespace id of the other end of a veth, -1 for none.
	Gone bool
	Port Port
	NsID int
	// Host: HostAddresses may say something else now; but not where Unless is a bridge's port.
	Host   bool
	Unless int
}

// WatchHost tells of every change of a link or an address of this network namespace, and of the routes that lead to
// neighbours, until ctx ends. The subscription ends on any error, lost messages included: it is opened anew, and lost called for
// what nobody heard, and once at the beginning.
func WatchHost(ctx context.Context, log *slog.Logger, lost func(), changed func(Change)) {
	from := source{protocol: unix.NETLINK_ROUTE, groups: []uint{
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	}}
	names := bridgeNames{}
	watch(ctx, log, from, func() { clear(names); lost() }, func(_ int, messages []syscall.NetlinkMessage) {
		for _, m := range messages {
			if c, ok := changeOf(m, names); ok {
				changed(c)
			}
		}
	})
}

// bridgeNames are those of bridges by ifindex, and "" of devices that have ports and are no bridges. A message about a port does not say it, and
// to ask the kernel waits for the lock that it makes and removes devices under, which under load is tens of milliseconds.
type bridgeNames map[int]string

// tell takes in what a message says of a device.
func (b bridgeNames) tell(l hostLink, gone bool) {
	delete(b, l.index)
	if l.kind == "bridge" && !gone {
		b[l.index] = l.name
	}
}

// of asks the kernel once for each.
func (b bridgeNames) of(ifindex int) string {
	name, known := b[ifindex]
	if known {
		return name
	}
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return ""
	}
	if l.Type() == "bridge" {
		name = l.Attrs().Name
	}
	b[ifindex] = name
	return name
}

// changeOf is what a message tells; false where it matters to nobody.
func changeOf(m syscall.NetlinkMessage, bridges bridgeNames) (Change, bool) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		l, ok := parseLink(m.Data)
		c := Change{Index: l.index, Gone: m.Header.Type == unix.RTM_DELLINK, NsID: l.nsid}
		if bridges.tell(l, c.Gone); ok && !c.Gone && l.master != 0 {
			if bridge := bridges.of(l.master); bridge != "" {
				c.Port = portOf(l, bridge)
			}
		}
		c.Host = l.kind != "veth" // whose addresses come and go with messages of their own
		return c, ok
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Data) < unix.SizeofIfAddrmsg {
			return Change{}, false
		}
		about := nl.DeserializeIfAddrmsg(m.Data)
		c := Change{NsID: -1, Host: true}
		if about.Family == unix.AF_INET6 && about.Scope == unix.RT_SCOPE_LINK {
			c.Unless = int(about.Index)
		}
		return c, true
	}
	return Change{NsID: -1, Host: true}, matters(m)
}

// WatchRules rings whenever somebody removes nftables rules for bridges in this network namespace, until ctx ends.
func WatchRules(ctx context.Context, log *slog.Logger, ring func()) {
	from := source{protocol: unix.NETLINK_NETFILTER, groups: []uint{unix.NFNLGRP_NFTABLES}}
	watch(ctx, log, from, ring, func(_ int, messages []syscall.NetlinkMessage) {
		if slices.ContainsFunc(messages, removesRules) {
			ring()
		}
	})
}

// WatchOthers rings whenever what may be an Outlet appears or changes in a network namespace that this one has a number for, and tells ends of the
// other ends of veths there, until ctx ends. The kernel tells that only to who has CAP_NET_BROADCAST.
func WatchOthers(ctx context.Context, log *slog.Logger, ring func(), ends *Ends) {
	from := source{protocol: unix.NETLINK_ROUTE, groups: []uint{unix.RTNLGRP_LINK}, everywhere: true}
	watch(ctx, log, from, func() { ends.clear(); ring() }, func(nsid int, messages []syscall.NetlinkMessage) {
		for _, m := range messages {
			ends.tell(nsid, m)
		}
		if slices.ContainsFunc(messages, leadsElsewhere) {
			ring()
		}
	})
}

// Ends are the ends of veths in other network namespaces that WatchOthers has heard of. The zero value has none.
type Ends struct {
	mu sync.Mutex
	of map[int]end // by the ifindex of the end in this namespace
}

// end is a veth's other one: its namespace id, its ifindex there, and its MAC.
type end struct {
	nsid, index int
	mac         net.HardwareAddr
}

// mostEnds bounds what those cost who make veths without end.
const mostEnds = 8192

// PeerMAC is that of Port without asking the kernel, which keeps one waiting while it makes and removes devices; nil where nothing was heard.
func (e *Ends) PeerMAC(p Port) net.HardwareAddr {
	e.mu.Lock()
	defer e.mu.Unlock()
	if its, heard := e.of[p.Index]; heard && p.NsID >= 0 && its.nsid == p.NsID && its.index == p.Peer {
		return its.mac
	}
	return nil
}

// tell takes in a message from the network namespace with an id.
func (e *Ends) tell(nsid int, m syscall.NetlinkMessage) {
	if nsid < 0 || m.Header.Type != unix.RTM_NEWLINK {
		return
	}
	l, ok := parseLink(m.Data)
	if !ok || l.kind != "veth" || l.nsid < 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.of == nil || len(e.of) >= mostEnds {
		e.of = map[int]end{}
	}
	its := end{nsid: nsid, index: l.index}
	eachAttribute(m.Data[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) {
		if kind == unix.IFLA_ADDRESS {
			its.mac = slices.Clone(value)
		}
	})
	e.of[l.peer] = its
}

func (e *Ends) clear() {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.of)
}

// source is where messages of the kernel come from; everywhere: of every network namespace that this one has a number for.
type source struct {
	protocol   int
	groups     []uint
	everywhere bool
}

// watch passes messages of the kernel on, with the id of the network namespace that they are from, -1 for this one, and calls lost at the beginning
// and whenever some may have been lost.
func watch(ctx context.Context, log *slog.Logger, from source, lost func(), take func(nsid int, messages []syscall.NetlinkMessage)) {
	for ctx.Err() == nil {
		s, err := subscribe(from)
		if err != nil {
			log.Warn("cannot subscribe to messages of the network; trying again", "error", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		}
		stop := context.AfterFunc(ctx, func() { _ = s.Close() })
		lost()
		err = forward(s, take)
		if stop() {
			log.Debug("messages of the network were lost; looking at everything", "error", err)
			_ = s.Close()
		}
	}
}

// subscribe opens a socket of netlink that hears a source. The library's own does not say from which namespace a message is.
func subscribe(from source) (*os.File, error) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, from.protocol)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(s), "netlink")
	if err := unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	for _, g := range from.groups {
		if err := unix.SetsockoptInt(s, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(g)); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	if from.everywhere {
		_ = unix.SetsockoptInt(s, unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 1)
	}
	_ = unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) // without it more messages are lost, and lost ones are rung for
	return f, nil
}

// forward passes on what it receives from the kernel until there is an error.
func forward(s *os.File, take func(int, []syscall.NetlinkMessage)) error {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	buffer, more := make([]byte, nl.RECEIVE_BUFFER_SIZE), make([]byte, unix.CmsgSpace(4))
	for {
		var n, moreLength int
		var from unix.Sockaddr
		var receiveErr error
		err := raw.Read(func(fd uintptr) bool {
			n, moreLength, _, from, receiveErr = unix.Recvmsg(int(fd), buffer, more, 0)
			return !errors.Is(receiveErr, unix.EAGAIN)
		})
		if err = errors.Join(err, receiveErr); err != nil {
			return err
		}
		if k, ok := from.(*unix.SockaddrNetlink); !ok || k.Pid != nl.PidKernel {
			continue
		}
		messages, err := syscall.ParseNetlinkMessage(append([]byte(nil), buffer[:n]...))
		if err != nil {
			return err
		}
		take(nsidIn(more[:moreLength]), messages)
	}
}

// nsidIn is the id of the namespace that the control message of NETLINK_LISTEN_ALL_NSID names, -1 without one.
func nsidIn(control []byte) int {
	all, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return -1
	}
	for _, c := range all {
		if c.Header.Level == unix.SOL_NETLINK && c.Header.Type == unix.NETLINK_LISTEN_ALL_NSID && len(c.Data) >= 4 {
			return number32(c.Data)
		}
	}
	return -1
}

// leadsElsewhere reports whether a message tells of a link, no veth, that sends by another namespace than its own.
func leadsElsewhere(m syscall.NetlinkMessage) bool {
	if m.Header.Type != unix.RTM_NEWLINK {
		return false
	}
	l, ok := parseLink(m.Data)
	return ok && l.nsid >= 0 && l.kind != "veth"
}

// removesRules reports whether a table, chain or rule for bridges is removed.
func removesRules(m syscall.NetlinkMessage) bool {
	const nft = unix.NFNL_SUBSYS_NFTABLES << 8
	switch m.Header.Type {
	case nft | unix.NFT_MSG_DELTABLE, nft | unix.NFT_MSG_DELCHAIN, nft | unix.NFT_MSG_DELRULE:
		return len(m.Data) > 0 && m.Data[0] == unix.NFPROTO_BRIDGE
	}
	return false
}

// matters leaves out the routes that have a gateway, of which a router changes hundreds in a second, those of other
// tables than the main one, and that to link-local addresses, which each container's veth brings along.
func matters(route syscall.NetlinkMessage) bool {
	if len(route.Data) < unix.SizeofRtMsg {
		return false
	}
	about := nl.DeserializeRtMsg(route.Data)
	direct := about.Table == unix.RT_TABLE_MAIN && about.Type == unix.RTN_UNICAST
	eachAttribute(route.Data[unix.SizeofRtMsg:], func(kind uint16, value []byte) {
		switch kind {
		case unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH:
			direct = false
		case unix.RTA_DST:
			a, _ := netip.AddrFromSlice(value)
			direct = direct && (a.Is4() || !a.IsLinkLocalUnicast())
		}
	})
	return direct
}

// IsGone reports whether err says that a device does not exist, or no longer.
func IsGone(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none) || errors.Is(err, unix.ENODEV)
}
