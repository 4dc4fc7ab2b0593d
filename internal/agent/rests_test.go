package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/xdp"
)

// slowly has the filters of devices take the kernel long. Begin lets all be looked at in one round, and the first rest waits
// until it is let go.
func slowly(r *rig, devices ...int) (begin, letGo func()) {
	r.kernel.fail["veths"] = errors.New("not yet")
	hang := make(chan struct{})
	r.kernel.hangRest = hang
	for _, i := range devices {
		r.kernel.slow[i] = true
	}
	begin = func() {
		r.kernel.set(func() { delete(r.kernel.fail, "veths") })
		r.ring()
	}
	letGo = func() {
		r.kernel.set(func() { r.kernel.hangRest = nil })
		close(hang)
		synctest.Wait()
	}
	return begin, letGo
}

// TestRestsComeLast has what is quick in force on all before the kernel is asked for what takes long, and for one container after the other.
func TestRestsComeLast(t *testing.T) {
	var all []docker.Container
	for i := range 2 * mostFinished {
		all = append(all, box(100+i, true, "xdp.drop=udp"))
	}
	quick := box(20, true, "xdp.enable=true")
	var begin, letGo func()
	inTime(t, append(all, quick), func(r *rig) {
		begin, letGo = slowly(r, 100)
		for i := range all {
			r.kernel.slow[100+i] = true
		}
	}, func(r *rig) {
		begin()
		r.want(quick, "enforced [bridge enforced 20:open]")
		for i, c := range all {
			r.want(c, fmt.Sprintf("pending [bridge pending %d:half]", 100+i))
		}
		if n := r.kernel.count("rest 100") + r.kernel.count("rest 101"); n != 1 || r.readys != 0 {
			t.Errorf("%d under way at once; ready %d times", n, r.readys)
		}
		if r.said("ERROR", "attaching") || r.said("WARN", "") {
			t.Error("noise in the log")
		}
		letGo()
		for i, c := range all {
			r.want(c, fmt.Sprintf("enforced [bridge enforced %d:open]", 100+i))
		}
		if r.readys != 1 {
			t.Errorf("ready %d times", r.readys)
		}
		first := slices.Index(r.kernel.calls, "rest 100")
		for i := range all {
			if n := r.kernel.count(fmt.Sprintf("rest %d", 100+i)); n != 1 {
				t.Errorf("the rest of %d was attached %d times", 100+i, n)
			}
			if begun := slices.Index(r.kernel.calls, fmt.Sprintf("attach %d", 100+i)); begun > first {
				t.Errorf("%d was begun after the first rest", 100+i)
			}
		}
	})
}

// TestOpenRestsComeFirst attaches those first without which nothing judges what is sent, and counts what had passed until then.
func TestOpenRestsComeFirst(t *testing.T) {
	first, second, open := box(10, true, "xdp.drop=udp"), box(11, true, "xdp.drop=udp"), box(90, true, "xdp.drop=udp", "xdp.hook=tcx")
	var begin, letGo func()
	inTime(t, []docker.Container{first, second, open}, func(r *rig) {
		begin, letGo = slowly(r, 10, 11, 90)
	}, func(r *rig) {
		begin()
		r.kernel.set(func() { r.kernel.unseen[90], r.kernel.unseen[10] = 5, 5 })
		letGo()
		r.want(first, enforced10) // was counted when XDP came
		r.want(open, "late [bridge late 90:open]")
		order := func(call string) int { return slices.Index(r.kernel.calls, call) }
		if order("rest 90") > order("rest 10") {
			t.Error("what is open has waited for what is not")
		}
	})
}

// TestRestOvertaken changes what a container wants, and ends it, while its rest is under way or waits.
func TestRestOvertaken(t *testing.T) {
	c, other := box(10, true, "xdp.drop=udp"), box(11, true, "xdp.drop=udp")
	t.Run("another policy", func(t *testing.T) {
		var begin, letGo func()
		inTime(t, []docker.Container{c, other}, func(r *rig) { begin, letGo = slowly(r, 10, 11) }, func(r *rig) {
			begin()
			before := r.kernel.last[11].Policy
			r.agent.tell(func() { r.agent.configure(parseConfig(t, "floor: {xdp.drop: metadata}")) })
			letGo()
			if r.kernel.last[11].Policy == before {
				t.Error("the old policy is in force")
			}
			r.want(c, enforced10)
			r.want(other, "enforced [bridge enforced 11:open]")
		})
	})
	t.Run("ends", func(t *testing.T) {
		var begin, letGo func()
		inTime(t, []docker.Container{c, other}, func(r *rig) { begin, letGo = slowly(r, 10, 11) }, func(r *rig) {
			begin()
			r.happens(box(11, false, "xdp.drop=udp"), docker.ActionDie)
			letGo()
			r.want(other, "none")
			r.want(c, enforced10)
			if r.kernel.count("rest 11") > 0 {
				t.Error("attached to what has ended")
			}
			if n := r.readys; n != 1 {
				t.Errorf("ready %d times", n)
			}
		})
	})
	t.Run("ends in the kernel's hands", func(t *testing.T) {
		var begin, letGo func()
		inTime(t, []docker.Container{c, other}, func(r *rig) { begin, letGo = slowly(r, 10, 11) }, func(r *rig) {
			begin()
			gone := box(10, false, "xdp.drop=udp")
			r.engine.set(func() { r.engine.containers[c.ID] = gone })
			r.plug(docker.Container{SandboxKey: c.SandboxKey})
			go r.engine.emit(docker.ActionDie, c.ID)
			synctest.Wait()
			letGo()
			r.want(c, "none")
			r.want(other, "enforced [bridge enforced 11:open]")
			if took, closed := r.kernel.count("take 10"), r.kernel.count("close 10"); took != 0 || closed != 1 {
				t.Errorf("taken %d times for what has ended, closed %d times", took, closed)
			}
		})
	})
	t.Run("held", func(t *testing.T) {
		var begin, letGo func()
		inTime(t, []docker.Container{c}, func(r *rig) { begin, letGo = slowly(r, 10, 11) }, func(r *rig) {
			begin()
			r.agent.tell(func() { r.agent.held[10] = &port{Port: xdp.Port{Index: 10}}; r.agent.dirty[c.ID] = true })
			letGo()
			r.want(c, enforced10)
		})
	})
}

// TestRestFails tries once more where somebody waits for the answer, and closes what cannot be filtered.
func TestRestFails(t *testing.T) {
	c, other := box(10, true, "xdp.drop=udp"), box(11, true, "xdp.drop=udp")
	var begin, letGo func()
	inTime(t, []docker.Container{c, other}, func(r *rig) {
		begin, letGo = slowly(r, 10, 11)
		r.kernel.fail["rest 10"], r.kernel.fail["rest 11"] = errors.New("refused"), errors.New("refused")
		r.kernel.called = func(call string) {
			if call == "rest 10" && slices.Contains(r.kernel.calls[:len(r.kernel.calls)-1], call) {
				delete(r.kernel.fail, call) // else who tries it so again would do it for ever
			}
		}
	}, func(r *rig) {
		begin()
		r.kernel.set(func() { r.kernel.fail["attach 11"] = errors.New("refused") })
		letGo()
		r.want(c, enforced10) // with the second try
		if n := r.kernel.count("rest 10"); n != 1 {
			t.Errorf("what was refused was left to the lane %d times", n)
		}
		r.want(other, "quarantined [bridge quarantined 11:down]")
		if got := r.kernel.record(other.ID).Interfaces[0].Error; !strings.Contains(got, "refused") {
			t.Errorf("error %q", got)
		}
	})
}

// TestHeldLeavesNoRest has the kernel take long for the filter of a port that is held: it is released with all of it, and does not
// wait for the lane. What runs already leaves that to it.
func TestHeldLeavesNoRest(t *testing.T) {
	running := box(10, true, "xdp.drop=udp")
	var begin, letGo func()
	inTime(t, []docker.Container{running}, func(r *rig) {
		listBridge(r)
		begin, letGo = slowly(r, 7, 10)
	}, func(r *rig) {
		begin()
		c := box(7, false, "xdp.drop=udp")
		r.happens(c, docker.ActionCreate)
		r.attaches(itsEnd(c.ID))
		r.process(70, 5, c.ID)
		r.port(in(near(7), 5), itsMAC)
		r.after(10 * time.Millisecond)
		r.released(7, true)
		r.device(7, "open")
		r.device(10, "half")
		letGo()
		r.device(10, "open")
	})
}
