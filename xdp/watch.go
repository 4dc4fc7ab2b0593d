package xdp

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
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
	watch(ctx, log, from, func() { clear(names); lost() }, func(messages []syscall.NetlinkMessage) {
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
	watch(ctx, log, from, ring, func(messages []syscall.NetlinkMessage) {
		if slices.ContainsFunc(messages, removesRules) {
			ring()
		}
	})
}

// WatchOthers rings whenever what may be an Outlet appears or changes in a network namespace that this one has a number for, until
// ctx ends. The kernel tells that only to who has CAP_NET_BROADCAST.
func WatchOthers(ctx context.Context, log *slog.Logger, ring func()) {
	from := source{protocol: unix.NETLINK_ROUTE, groups: []uint{unix.RTNLGRP_LINK}, everywhere: true}
	watch(ctx, log, from, ring, func(messages []syscall.NetlinkMessage) {
		if slices.ContainsFunc(messages, leadsElsewhere) {
			ring()
		}
	})
}

// source is where messages of the kernel come from; everywhere: of every network namespace that this one has a number for.
type source struct {
	protocol   int
	groups     []uint
	everywhere bool
}

// watch passes messages of the kernel on, and calls lost at the beginning and whenever some may have been lost.
func watch(ctx context.Context, log *slog.Logger, from source, lost func(), take func([]syscall.NetlinkMessage)) {
	for ctx.Err() == nil {
		s, err := nl.Subscribe(from.protocol, from.groups...)
		if err != nil {
			log.Warn("cannot subscribe to messages of the network; trying again", "error", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		}
		if from.everywhere {
			_ = unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 1)
		}
		_ = s.SetReceiveBufferSize(receiveBuffer, true) // without it more messages are lost, and lost ones are rung for
		stop := context.AfterFunc(ctx, s.Close)
		lost()
		err = forward(s, take)
		if stop() {
			log.Debug("messages of the network were lost; looking at everything", "error", err)
			s.Close()
		}
	}
}

// forward passes on what it receives from the kernel until there is an error.
func forward(s *nl.NetlinkSocket, take func([]syscall.NetlinkMessage)) error {
	for {
		messages, from, err := s.Receive()
		if err != nil {
			return err
		}
		if from.Pid == nl.PidKernel {
			take(messages)
		}
	}
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
