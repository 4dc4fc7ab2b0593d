package agent

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/xdp"
)

// tells has the kernel tell of links.
func (r *rig) tells(changes ...xdp.Change) {
	for _, c := range changes {
		r.agent.tell(func() { r.agent.changed(c) })
	}
	synctest.Wait()
}

// looks are the devices that were attached to since n calls, in order.
func (r *rig) looks(n int) (out []int) {
	r.kernel.mu.Lock()
	defer r.kernel.mu.Unlock()
	for _, call := range r.kernel.calls[n:] {
		var ifindex int
		if _, err := fmt.Sscanf(call, "attach %d", &ifindex); err == nil {
			out = append(out, ifindex)
		}
	}
	return out
}

func (r *rig) calls() int {
	r.kernel.mu.Lock()
	defer r.kernel.mu.Unlock()
	return len(r.kernel.calls)
}

// TestWhomItConcerns has messages of links wake those whom they concern, and nobody else.
func TestWhomItConcerns(t *testing.T) {
	a, b, bare := box(10, true, "xdp.drop=udp"), box(20, true, "xdp.drop=udp"), box(30, true, "xdp.drop=udp")
	inTime(t, []docker.Container{a, b, bare}, func(r *rig) { r.kernel.namespaces[bare.SandboxKey] = nil }, func(r *rig) {
		for _, tc := range []struct {
			what   string
			change xdp.Change
			looks  []int
		}{
			{"its own device", xdp.Change{Index: 10, NsID: -1}, []int{10}},
			{"that of another", xdp.Change{Index: 20, NsID: 20}, []int{20}},
			{"nobody's device", xdp.Change{Index: 99, NsID: -1}, nil},
			{"nobody's namespace", xdp.Change{Index: 99, NsID: 99}, nil},
			{"the host's device", xdp.Change{Index: 2, NsID: -1, Host: true}, nil},
			{"an address that the host had", xdp.Change{NsID: -1, Host: true}, nil},
		} {
			n := r.calls()
			r.tells(tc.change)
			if got := r.looks(n); !slices.Equal(got, tc.looks) {
				t.Errorf("%s: looked at %v, want %v", tc.what, got, tc.looks)
			}
		}

		r.after(2 * rousePause)
		// A veth that leads into a known namespace, and one into a namespace that had none.
		n := r.calls()
		r.kernel.set(func() {
			r.kernel.namespaces[a.SandboxKey] = append(vethsFor(a), xdp.Veth{Index: 77, Name: "veth77", Bridge: "br-net", NsID: 10})
			r.kernel.namespaces[bare.SandboxKey] = vethsFor(bare)
		})
		r.tells(xdp.Change{Index: 77, NsID: 10})
		r.device(77, "open")
		r.device(30, "open") // whose namespace has no number that anybody knew
		if got := r.looks(n); slices.Contains(got, 20) {
			t.Errorf("looked at %v", got)
		}

		// An address that is new concerns all; that of a container's port nobody.
		r.kernel.set(func() { r.kernel.host = &host{addrs: addrsOf("198.51.100.9")} })
		n = r.calls()
		r.kernel.hold.set(func() { r.kernel.hold.released[10] = true })
		r.tells(xdp.Change{NsID: -1, Host: true, Unless: 10})
		if got := r.looks(n); got != nil {
			t.Errorf("a port's own address: looked at %v", got)
		}
		r.tells(xdp.Change{NsID: -1, Host: true, Unless: 5})
		if got := r.looks(n); !slices.Contains(got, 10) || !slices.Contains(got, 20) || !slices.Contains(got, 30) {
			t.Errorf("an address of the host's: looked at %v", got)
		}
	})
}

// TestDeviceIsGone forgets a device when the kernel says so, and holds the next port that has its number.
func TestDeviceIsGone(t *testing.T) {
	a, b := box(10, true, "xdp.drop=udp"), box(20, true, "xdp.drop=udp")
	inTime(t, []docker.Container{a, b}, listBridge, func(r *rig) {
		r.kernel.hold.set(func() { r.kernel.hold.released[10], r.kernel.hold.released[20] = true, true })
		r.kernel.hold.set(func() { r.kernel.hold.ports[20] = in(near(20), 20) })
		r.plug(docker.Container{SandboxKey: a.SandboxKey})
		r.tells(xdp.Change{Index: 10, NsID: -1, Gone: true}, xdp.Change{Index: 20, NsID: 20, Gone: true}) // the second is not true
		r.device(10, "")
		r.device(20, "open")
		r.released(10, false)
		r.released(20, true)
	})
}

// TestNamespaceIsAskedOnce looks a namespace up again only where something may have happened to it.
func TestNamespaceIsAskedOnce(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		asked := func() int { return r.kernel.count("in " + c.SandboxKey) }
		before := asked()
		r.after(3 * resync)
		if got := asked(); got != before {
			t.Errorf("asked %d times for what nobody has touched", got-before)
		}
		r.tells(xdp.Change{Index: 10, NsID: 10})
		if got := asked(); got != before+1 {
			t.Errorf("asked %d times after a message", got-before)
		}
		r.ring() // messages were lost
		if got := asked(); got != before+2 {
			t.Errorf("asked %d times after messages were lost", got-before)
		}
		// Unheard, its veth leads elsewhere.
		r.kernel.set(func() {
			moved := vethsFor(c)
			moved[0].NsID = 99
			r.kernel.namespaces["elsewhere"], r.kernel.namespaces[c.SandboxKey] = moved, nil
		})
		r.after(resync)
		if got := asked(); got == before+2 {
			t.Error("a veth that is not its own any more is taken for its own")
		}
	})
}

// TestFlapping has a container's device change all the time, as CAP_NET_ADMIN in its network can have it: it is looked at now and then, and after the last
// change.
func TestFlapping(t *testing.T) {
	c, other := box(10, true, "xdp.drop=udp"), box(20, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c, other}, nil, func(r *rig) {
		r.after(resync / 10)
		n := r.calls()
		const changes, every = 520, time.Millisecond
		for range changes {
			r.tells(xdp.Change{Index: 10, NsID: 10})
			r.after(every)
		}
		if got, most := len(r.looks(n)), int(changes*every/rousePause)+1; got < 2 || got > most {
			t.Errorf("looked %d times, want %d at the most", got, most)
		}
		n = r.calls()
		r.tells(xdp.Change{Index: 20, NsID: 20})
		if got := r.looks(n); !slices.Contains(got, 20) {
			t.Errorf("another one waits for it: looked at %v", got)
		}
		r.after(rousePause)
		if got := r.looks(n); !slices.Contains(got, 10) {
			t.Errorf("not looked at after the last change: %v", got)
		}
	})
}
