package agent

import (
	"slices"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/docker"
)

// TestMisplaced takes the directory away in which everything is pinned: everything is looked at at the next beat, once, and not at the next resync.
func TestMisplaced(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		r.want(c, "enforced [bridge enforced 10:open]")
		looks := func() int {
			r.kernel.mu.Lock()
			defer r.kernel.mu.Unlock()
			calls := slices.Clone(r.kernel.calls)
			r.kernel.calls = nil
			return len(slices.DeleteFunc(calls, func(call string) bool { return !strings.HasPrefix(call, "attach") && !strings.HasPrefix(call, "begin") }))
		}
		r.after(resync)
		looks()
		r.kernel.set(func() { r.kernel.misplaced = true })
		r.after(2 * heartbeat)
		if n := looks(); n != 1 || !r.said("ERROR", "everything is pinned again") {
			t.Errorf("%d looks, want one: %s", n, r.log)
		}
		r.after(resync / 2)
		if n := looks(); n != 0 {
			t.Errorf("%d more looks", n)
		}
		r.kernel.set(func() { r.kernel.misplaced = false })
		r.after(2 * heartbeat)
		r.kernel.set(func() { r.kernel.misplaced = true })
		r.after(2 * heartbeat)
		if n := strings.Count(r.log.String(), "everything is pinned again"); n != 2 {
			t.Errorf("told %d times", n)
		}
	})
}

// TestMisplacedWhileOneStarts takes the directory away while a port is held: it is made anew before that, as nothing can be filtered without.
func TestMisplacedWhileOneStarts(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, listBridge, func(r *rig) {
		swept := func() (n int) { r.kernel.set(func() { n = r.kernel.swept }); return n }
		r.after(resync)
		r.port(in(near(7), 5), itsMAC) // nobody says whose it is
		before := swept()
		r.kernel.set(func() { r.kernel.misplaced = true })
		r.after(2 * heartbeat)
		r.released(7, false)
		if swept() == before {
			t.Error("nobody has made the directory anew")
		}
	})
}
