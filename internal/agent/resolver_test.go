package agent

import (
	"errors"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/docker"
)

func TestResolverIsClosed(t *testing.T) {
	c, open := box(10, true, "xdp.drop=udp"), box(20, true, "xdp.drop=25/tcp")
	c.NetworkMode, open.NetworkMode = "shop", "shop"
	inTime(t, []docker.Container{c, open}, func(r *rig) { r.kernel.host = &host{resolvers: addrsOf("127.0.0.53")} }, func(r *rig) {
		closed := func(c docker.Container) resolverClosed {
			r.kernel.mu.Lock()
			defer r.kernel.mu.Unlock()
			return r.kernel.resolvers[c.SandboxKey]
		}
		if closed(c) != (resolverClosed{udp: true}) || closed(open) != (resolverClosed{}) {
			t.Errorf("closed: %+v %+v", closed(c), closed(open))
		}
		// The host gets another resolver, and the containers ask it themselves.
		r.kernel.set(func() { r.kernel.host = &host{resolvers: addrsOf("192.0.2.53")} })
		r.ring()
		if closed(c) != (resolverClosed{}) {
			t.Errorf("closed: %+v", closed(c))
		}
	})
}

func TestResolverCannotBeClosed(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	c.NetworkMode = "shop"
	inTime(t, []docker.Container{c}, func(r *rig) {
		r.kernel.host = &host{resolvers: addrsOf("127.0.0.53")}
		r.kernel.fail["resolver "+c.SandboxKey] = errors.New("no")
	}, func(r *rig) {
		record := r.kernel.record(c.ID)
		if record.State != Partial || !strings.Contains(record.Interfaces[1].Error, "could not be closed") {
			t.Errorf("%+v", record)
		}
		r.kernel.set(func() { delete(r.kernel.fail, "resolver "+c.SandboxKey) })
		r.after(resync)
		if record := r.kernel.record(c.ID); record.State != Enforced {
			t.Errorf("%+v", record)
		}
	})
}
