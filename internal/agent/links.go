package agent

import (
	"context"
	"log/slog"
	"time"

	"github.com/vishvananda/netlink"
)

// receiveBuffer holds the link messages of a thousand containers that come and go at once.
const receiveBuffer = 8 << 20

// watchLinks rings the bell whenever a link of this network namespace changes, until ctx ends. The
// subscription ends on any error, lost messages included: it is opened anew, and the bell rung for what
// nobody heard.
func watchLinks(ctx context.Context, log *slog.Logger, ring func()) {
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
			sleep(ctx, time.Second)
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
