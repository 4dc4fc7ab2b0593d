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
// until ctx ends. The subscription ends on any error, lost messages included: it is opened anew, and ring called for
// what nobody heard.
func WatchHost(ctx context.Context, log *slog.Logger, ring func()) {
	for ctx.Err() == nil {
		s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
		if err != nil {
			log.Warn("cannot subscribe to messages of the network; trying again", "error", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		}
		_ = s.SetReceiveBufferSize(receiveBuffer, true) // without it more messages are lost, and lost ones are rung for
		stop := context.AfterFunc(ctx, s.Close)
		ring()
		err = forward(s, ring)
		if stop() {
			log.Debug("messages of the network were lost; looking at everything", "error", err)
			s.Close()
		}
	}
}

// forward rings for what it receives until there is an error.
func forward(s *nl.NetlinkSocket, ring func()) error {
	for {
		messages, from, err := s.Receive()
		if err != nil {
			return err
		}
		if from.Pid == nl.PidKernel && slices.ContainsFunc(messages, matters) {
			ring()
		}
	}
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
