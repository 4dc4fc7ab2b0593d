package xdp

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// receiveBuffer holds the messages of a thousand containers that come and go at once.
const receiveBuffer = 8 << 20

// WatchHost rings whenever a link or an address of this network namespace changes, or a route that leads to neighbours,
// until ctx ends. Of a link that has become a port of another device, or was one before and has changed, arrived is told
// first. The subscription ends on any error, lost messages included: it is opened anew, and ring called for
// what nobody heard.
func WatchHost(ctx context.Context, log *slog.Logger, ring func(), arrived func(ifindex int)) {
	from := source{protocol: unix.NETLINK_ROUTE, groups: []uint{
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	}}
	watch(ctx, log, from, ring, func(messages []syscall.NetlinkMessage) {
		for _, m := range messages {
			if ifindex := enslaved(m); ifindex != 0 {
				arrived(ifindex)
			}
		}
		if slices.ContainsFunc(messages, matters) {
			ring()
		}
	})
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

// enslaved is the ifindex of the link that a message tells of, where that is a port of another device; else 0.
func enslaved(m syscall.NetlinkMessage) int {
	if m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg {
		return 0
	}
	about := nl.DeserializeIfInfomsg(m.Data)
	attrs, err := nl.ParseRouteAttr(m.Data[about.Len():])
	hasMaster := func(a syscall.NetlinkRouteAttr) bool { return a.Attr.Type == unix.IFLA_MASTER }
	if err != nil || about.Family != unix.AF_UNSPEC || !slices.ContainsFunc(attrs, hasMaster) {
		return 0
	}
	return int(about.Index)
}

// leadsElsewhere reports whether a message tells of a link, no veth, that sends by another namespace than its own.
func leadsElsewhere(m syscall.NetlinkMessage) bool {
	if m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg || nl.DeserializeIfInfomsg(m.Data).Family != unix.AF_UNSPEC {
		return false
	}
	l, err := netlink.LinkDeserialize(nil, m.Data)
	return err == nil && l.Attrs().NetNsID >= 0 && l.Type() != "veth"
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

// matters leaves out the routes that have a gateway, of which a router changes hundreds in a second, and those of other
// tables than the main one.
func matters(m syscall.NetlinkMessage) bool {
	if m.Header.Type != unix.RTM_NEWROUTE && m.Header.Type != unix.RTM_DELROUTE {
		return true
	}
	if len(m.Data) < unix.SizeofRtMsg {
		return true
	}
	route := nl.DeserializeRtMsg(m.Data)
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofRtMsg:])
	return err != nil || route.Table == unix.RT_TABLE_MAIN && route.Type == unix.RTN_UNICAST &&
		!slices.ContainsFunc(attrs, func(a syscall.NetlinkRouteAttr) bool {
			return a.Attr.Type == unix.RTA_GATEWAY || a.Attr.Type == unix.RTA_VIA || a.Attr.Type == unix.RTA_MULTIPATH
		})
}

// IsGone reports whether err says that a device does not exist, or no longer.
func IsGone(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none) || errors.Is(err, unix.ENODEV)
}
