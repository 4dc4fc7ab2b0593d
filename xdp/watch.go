package xdp

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// receiveBuffer holds the link messages of a thousand containers that come and go at once.
const receiveBuffer = 8 << 20

// WatchLinks rings whenever a link of this network namespace changes, until ctx ends. The subscription ends on any
// error, lost messages included: it is opened anew, and ring called for what nobody heard.
func WatchLinks(ctx context.Context, log *slog.Logger, ring func()) {
	for ctx.Err() == nil {
		updates := make(chan netlink.LinkUpdate, 256)
		done := make(chan struct{})
		err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{
			ReceiveBufferSize: receiveBuffer, ReceiveBufferForceSize: true,
			ErrorCallback: func(err error) { log.Debug("link messages were lost; looking at everything", "error", err) },
		})
		if err != nil {
			log.Warn("cannot subscribe to link messages; trying again", "error", err)
			close(done)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		}
		ring()
		forward(ctx, updates, ring)
		close(done)
		for range updates { // until the library has closed its socket
		}
	}
}

func forward(ctx context.Context, updates <-chan netlink.LinkUpdate, ring func()) {
	for {
		select {
		case _, ok := <-updates:
			if !ok {
				return
			}
			ring()
		case <-ctx.Done():
			return
		}
	}
}

// IsGone reports whether err says that a device does not exist, or no longer.
func IsGone(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none) || errors.Is(err, unix.ENODEV)
}
