package agent

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/xdp"
)

const (
	enforced10    = "enforced [bridge enforced 10:open]"
	quarantined10 = "quarantined [bridge quarantined 10:closed]"
)

func TestStart(t *testing.T) {
	c, free := box(10, true, "xdp.drop=udp"), box(20, true, "other=label")
	inTime(t, []docker.Container{c, free}, nil, func(r *rig) {
		r.want(c, enforced10)
		r.want(free, "none")
		r.device(20, "")
		if got := r.engine.asked(free.ID); got != 0 {
			t.Errorf("asked %d times about a container that asks for nothing", got)
		}
		r.engine.set(func() {
			if got := r.engine.order; !slices.Equal(got, []string{"watch", "list"}) {
				t.Errorf("%v: subscribe, then list", got)
			}
		})
		if r.readys != 1 || r.kernel.retired != 1 {
			t.Errorf("ready %d times, retired %d times", r.readys, r.kernel.retired)
		}
		if !r.said("INFO", "enforced") {
			t.Error("the log does not say what is enforced")
		}
	})
}

func TestLife(t *testing.T) {
	created := box(10, false, "xdp.drop=udp")
	inTime(t, nil, nil, func(r *rig) {
		r.happens(created, docker.ActionCreate)
		r.want(created, "none")
		up := started(created, 10)
		r.happens(up, docker.ActionStart)
		r.want(up, enforced10)

		saves := r.kernel.count("save")
		r.after(3 * resync)
		r.ring()
		if got := r.kernel.count("save"); got != saves {
			t.Errorf("%d writes of a record that has not changed", got-saves)
		}

		up.Name = "renamed"
		r.happens(up, docker.ActionRename)
		if got := r.kernel.record(up.ID).Name; got != "renamed" {
			t.Errorf("name %q", got)
		}

		// A restart: Docker tells of it in three events at once.
		r.plug(docker.Container{SandboxKey: up.SandboxKey})
		again := started(created, 11)
		r.happens(again, docker.ActionDie, docker.ActionStart)
		r.ring()
		r.want(again, "enforced [bridge enforced 11:open]")
		r.device(10, "")

		two := joined(again, "net")
		r.happens(two, docker.ActionConnect)
		r.want(two, "enforced [bridge enforced 11:open] [net enforced 12:open]")
		r.happens(again, docker.ActionDisconnect)
		r.want(again, "enforced [bridge enforced 11:open]")

		down := again
		down.Running = false
		r.happens(down, docker.ActionDie)
		r.want(down, "none")
		r.happens(started(created, 13), docker.ActionStart)
		r.want(created, "enforced [bridge enforced 13:open]")

		r.engine.set(func() { delete(r.engine.containers, created.ID) })
		r.engine.emit(docker.ActionDestroy, created.ID)
		r.after(0)
		r.want(created, "none")
		if len(r.agent.containers) != 0 {
			t.Error("a destroyed container is still known")
		}
		if r.said("WARN", "") || r.said("ERROR", "") {
			t.Error("noise in the log")
		}
	})
}

// The link messages of a container that ends come before Docker's word; they are no reason for an alarm.
func TestEndSeenByLinksFirst(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		down := c
		down.Running = false
		gate := make(chan struct{})
		r.engine.set(func() { r.engine.hang[c.ID] = gate })
		r.plug(down)
		r.ring()
		r.ring()
		r.engine.set(func() { r.engine.containers[c.ID] = down; r.engine.hang = nil })
		close(gate)
		r.after(0)
		r.want(c, "none")
		if r.said("WARN", "") {
			t.Error("noise in the log")
		}
	})
}

// A network whose veth is there before Docker says so.
func TestLinkBeforeEvent(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		r.kernel.set(func() {
			r.kernel.namespaces[c.SandboxKey] = append(vethsFor(c), xdp.Veth{Index: 77, Name: "veth77", Bridge: "br-net"})
		})
		r.ring()
		r.want(c, "enforced [bridge enforced 10:open] [br-net enforced 77:open]")
	})
}

// connect arrives while the question that the start rang for is out: its answer is too old.
func TestConnectWhileAsking(t *testing.T) {
	created := box(10, false, "xdp.drop=udp")
	inTime(t, []docker.Container{created}, nil, func(r *rig) {
		gate := make(chan struct{})
		r.engine.set(func() { r.engine.hang[created.ID] = gate })
		up := started(created, 10)
		r.happens(up, docker.ActionStart)
		r.happens(joined(up, "net"), docker.ActionConnect)
		r.engine.set(func() { r.engine.hang = nil })
		asked := r.engine.asked(up.ID)
		close(gate)
		r.after(0)
		r.want(up, "enforced [bridge enforced 10:open] [net enforced 11:open]")
		if got := r.engine.asked(up.ID); got != asked+1 {
			t.Errorf("asked %d times more, want once", got-asked)
		}
	})
}

func TestMissedEvents(t *testing.T) {
	c, later := box(10, true, "xdp.drop=udp"), box(20, true, "xdp.drop=tcp")
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		r.happens(later)
		restarted := started(c, 11)
		r.plug(docker.Container{SandboxKey: c.SandboxKey})
		r.happens(restarted)
		r.want(later, "none")
		r.after(resync + time.Second)
		r.want(later, "enforced [bridge enforced 20:open]")
		r.want(c, "enforced [bridge enforced 11:open]")
	})
}

func TestUnknownContainerIsNoMatter(t *testing.T) {
	free := box(20, true)
	inTime(t, []docker.Container{free}, nil, func(r *rig) {
		r.happens(free, docker.ActionCreate, docker.ActionStart, docker.ActionConnect, docker.ActionRename, docker.ActionDie, docker.ActionDestroy)
		if r.engine.asked(free.ID) != 0 || len(r.agent.containers) != 0 {
			t.Errorf("asked %d times, knows %d containers", r.engine.asked(free.ID), len(r.agent.containers))
		}
	})
}

// As many starts as there are slots, and more, hang; another container waits less than a second.
func TestBlockedStartsDelayNobody(t *testing.T) {
	var hanging []docker.Container
	for i := range 2 * inspectors {
		hanging = append(hanging, box(1000+i, false, "xdp.drop=udp"))
	}
	c := box(10, true, "xdp.drop=udp")
	inTime(t, hanging, func(r *rig) {
		for _, h := range hanging {
			r.engine.hang[h.ID] = make(chan struct{})
		}
	}, func(r *rig) {
		r.happens(c, docker.ActionCreate, docker.ActionStart)
		r.after(time.Second)
		r.want(c, enforced10)
		if r.readys != 0 {
			t.Error("ready before Docker has answered")
		}
		// Each is asked about again after its time is out, and enforced when its start is through.
		r.after(answerTimeout + 5*time.Second)
		for _, h := range hanging {
			gate := r.engine.hang[h.ID]
			r.engine.set(func() { delete(r.engine.hang, h.ID); r.engine.containers[h.ID] = started(h, pidOf(h)) })
			r.plug(started(h, pidOf(h)))
			close(gate)
		}
		r.after(answerTimeout)
		r.want(hanging[0], "enforced [bridge enforced 1000:open]")
		r.want(hanging[len(hanging)-1], "enforced [bridge enforced "+strconv.Itoa(1000+len(hanging)-1)+":open]")
		if r.readys != 1 {
			t.Errorf("ready %d times", r.readys)
		}
	})
}

func TestInspectError(t *testing.T) {
	c, other := box(10, true, "xdp.drop=udp"), box(20, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c, other}, func(r *rig) { r.engine.broken[c.ID] = errors.New("500") }, func(r *rig) {
		r.want(c, "none")
		r.want(other, "enforced [bridge enforced 20:open]")
		r.after(5 * retryAfter)
		if got := strings.Count(r.log.String(), "cannot inspect"); got != 1 {
			t.Errorf("%d complaints about one error", got)
		}
		r.engine.set(func() { r.engine.broken = map[string]error{} })
		r.after(retryAfter)
		r.want(c, enforced10)
		asked := r.engine.asked(c.ID)
		r.after(5 * retryAfter)
		if got := r.engine.asked(c.ID); got != asked {
			t.Errorf("asked %d times more about what is known", got-asked)
		}
	})
}

func TestListError(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, func(r *rig) { r.engine.broken["list"] = errors.New("500") }, func(r *rig) {
		r.after(5 * retryAfter)
		if got := strings.Count(r.log.String(), "cannot list"); got != 1 || r.readys != 0 {
			t.Errorf("%d complaints about one error, ready %d times", got, r.readys)
		}
		r.engine.set(func() { r.engine.broken = map[string]error{} })
		r.after(retryAfter)
		r.want(c, enforced10)
	})
}

func TestEngineLost(t *testing.T) {
	c, new := box(10, true, "xdp.drop=udp"), box(20, true, "xdp.drop=udp")
	for name, hang := range map[string]func(r *rig){
		"idle":         func(*rig) {},
		"while asking": func(r *rig) { r.engine.hang[c.ID] = make(chan struct{}) },
		"while listing": func(r *rig) {
			r.engine.hangList = make(chan struct{})
			r.agent.news <- r.agent.relist
		},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, []docker.Container{c}, nil, func(r *rig) {
				r.after(2 * resync)
				r.engine.set(func() { hang(r) })
				r.engine.emit(docker.ActionRename, c.ID)
				r.after(0)
				r.engine.set(func() { r.engine.down = true })
				r.engine.cut()
				r.after(time.Minute)
				r.want(c, enforced10) // nothing that Docker does not say takes a filter away
				r.device(10, "open")
				if !r.said("WARN", "filters stay in force") {
					t.Error("the log does not say that the engine is lost")
				}
				restarted := started(c, 11)
				r.plug(docker.Container{SandboxKey: c.SandboxKey})
				r.happens(restarted)
				r.happens(new)
				r.engine.set(func() { r.engine.down, r.engine.hang, r.engine.hangList = false, nil, nil })
				r.after(maxWait)
				r.want(c, "enforced [bridge enforced 11:open]")
				r.want(new, "enforced [bridge enforced 20:open]")
				if !r.said("INFO", "the engine is back") {
					t.Error("the log does not say that the engine is back")
				}
				if r.readys != 1 {
					t.Errorf("ready %d times", r.readys)
				}
			})
		})
	}
}

// An engine that takes the subscription and ends it at once is not asked a thousand times a second.
func TestEngineRefusesEvents(t *testing.T) {
	inTime(t, nil, func(r *rig) { r.engine.refuse = errors.New("no") }, func(r *rig) {
		r.after(time.Minute)
		r.engine.set(func() {
			if n := len(r.engine.order); n > 120 {
				t.Errorf("%d calls in a minute", n)
			}
		})
		if n := strings.Count(r.log.String(), "lost the engine"); n != 1 {
			t.Errorf("said %d times that the engine is lost", n)
		}
	})
}

// An engine that does not answer the request for events is left for the next one that does.
func TestEngineHangsEvents(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, func(r *rig) { r.engine.hangWatch = make(chan struct{}) }, func(r *rig) {
		r.after(answerTimeout - time.Second)
		r.want(c, "none")
		r.engine.set(func() { r.engine.hangWatch = nil })
		r.after(maxWait)
		r.want(c, enforced10)
		if !r.said("WARN", "no answer") {
			t.Error("the log does not say what is wrong")
		}
	})
}

// An engine that has just started may list nothing, and start its containers a moment later.
func TestEmptyList(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		r.engine.set(func() { r.engine.containers = map[string]docker.Container{} })
		r.engine.cut()
		r.after((ghostLists-1)*resync - time.Second)
		r.want(c, enforced10)
		r.device(10, "open")

		r.plug(docker.Container{SandboxKey: c.SandboxKey})
		restarted := started(c, 11)
		r.happens(restarted, docker.ActionStart)
		r.want(c, "enforced [bridge enforced 11:open]")
	})
}

// A container that was removed while nobody heard keeps filter and record as long as it has a device.
func TestMissingFromLists(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		r.engine.set(func() { r.engine.containers = map[string]docker.Container{} })
		r.after((ghostLists + 2) * resync)
		r.want(c, enforced10)
		if len(r.agent.containers) != 0 {
			t.Error("still known")
		}
		r.plug(docker.Container{SandboxKey: c.SandboxKey})
		r.after(resync)
		r.want(c, "none")
		r.device(10, "")
	})
}

// The same, where the device goes before the agent has given the container up.
func TestRemovedUnheard(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		r.engine.set(func() { r.engine.containers = map[string]docker.Container{} })
		r.plug(docker.Container{SandboxKey: c.SandboxKey})
		r.after(resync)
		r.want(c, "none")
		r.after((ghostLists + 2) * resync)
		r.want(c, "none")
		if len(r.agent.containers) != 0 || r.said("WARN", "") {
			t.Errorf("%d containers still known, or noise", len(r.agent.containers))
		}
	})
}

// An older list and an older answer do not undo what an event has told since.
func TestListOlderThanCreate(t *testing.T) {
	c := box(10, false, "xdp.drop=udp")
	inTime(t, nil, nil, func(r *rig) {
		gate := make(chan struct{})
		r.engine.set(func() { r.engine.hangList, r.engine.unlisted = gate, true })
		r.agent.news <- r.agent.relist
		r.happens(c, docker.ActionCreate)
		close(gate)
		r.after(0)
		r.happens(started(c, 10), docker.ActionStart)
		r.want(c, enforced10)
	})
}

// An answer that comes after its engine was lost says nothing about now.
func TestAnswerOfAnEngineThatIsLost(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		gate := make(chan struct{})
		r.engine.set(func() { r.engine.deaf = gate })
		r.engine.emit(docker.ActionRename, c.ID)
		r.after(0)
		r.engine.set(func() { r.engine.deaf = nil })
		r.engine.cut()
		r.plug(docker.Container{SandboxKey: c.SandboxKey})
		restarted := started(c, 11)
		r.happens(restarted)
		r.after(maxWait)
		r.want(c, "enforced [bridge enforced 11:open]")
		r.engine.set(func() { r.engine.down = true }) // nobody to correct it
		r.engine.cut()
		close(gate)
		r.after(0)
		r.ring()
		r.want(c, "enforced [bridge enforced 11:open]")
		r.kernel.set(func() {
			veths := vethsFor(joined(restarted, "net"))
			r.kernel.namespaces[restarted.SandboxKey] = veths
		})
		r.ring()
		r.want(c, "enforced [bridge enforced 11:open] [br-cccccccccccc enforced 12:open]")
	})
}

func TestDestroyedWhileAsking(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		gate := make(chan struct{})
		r.engine.set(func() { r.engine.hang[c.ID] = gate })
		r.engine.emit(docker.ActionRename, c.ID)
		r.engine.emit(docker.ActionRename, c.ID) // to be asked about again
		r.engine.emit(docker.ActionDestroy, c.ID)
		close(gate)
		r.after(0)
		r.want(c, "none")
		if len(r.agent.containers) != 0 {
			t.Error("an answer brought it back")
		}
	})
}

func TestInvalidLabels(t *testing.T) {
	bad, good := box(10, true, "xdp.drop=upd"), box(20, true, "xdp.drop=udp")
	inTime(t, []docker.Container{bad, good}, func(r *rig) { r.kernel.byHand[10] = true }, func(r *rig) {
		r.want(bad, quarantined10)
		r.want(good, "enforced [bridge enforced 20:open]")
		if got := r.kernel.record(bad.ID).Error; !strings.Contains(got, `xdp.drop="upd": at 0`) {
			t.Errorf("error %q", got)
		}
		if !r.said("WARN", "xdp.drop") {
			t.Error("the log does not name the label")
		}
		if r.kernel.ByHand(10) {
			t.Error("a program attached by hand opens what must be closed")
		}
	})
}

func TestAttachFails(t *testing.T) {
	c, other := box(10, true, "xdp.drop=udp"), box(20, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c, other}, func(r *rig) { r.kernel.fail["attach 10"] = xdp.ErrTaken }, func(r *rig) {
		r.want(c, "quarantined [bridge quarantined 10:down]")
		r.want(other, "enforced [bridge enforced 20:open]")
		if got := r.kernel.record(c.ID).Interfaces[0].Error; !strings.Contains(got, "taken") || !strings.Contains(got, "set down") {
			t.Errorf("error %q", got)
		}
		r.kernel.set(func() { r.kernel.fail["shut 10"] = errors.New("refused") })
		r.after(resync)
		r.want(c, "pending [bridge pending 10:down]")
		if got := r.kernel.record(c.ID).Interfaces[0].Error; !strings.Contains(got, "NOT CLOSED") {
			t.Errorf("error %q", got)
		}
		if !r.said("ERROR", "NOT CLOSED") {
			t.Error("the log does not say that it is open")
		}
		r.kernel.set(func() { r.kernel.fail = map[string]error{} })
		r.after(resync)
		r.want(c, enforced10)
	})
}

// A device that goes between look and attach is no alarm.
func TestDeviceGoesMeanwhile(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, func(r *rig) { r.kernel.fail["attach 10"] = errGone; r.kernel.fail["shut 10"] = errGone }, func(r *rig) {
		if r.said("ERROR", "") {
			t.Error("noise in the log")
		}
	})
}

func TestKernelErrorsAreRetried(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	for _, what := range []string{"veths", "save"} {
		t.Run(what, func(t *testing.T) {
			inTime(t, []docker.Container{c}, func(r *rig) { r.kernel.fail[what] = errors.New("refused") }, func(r *rig) {
				r.want(c, "none")
				if what == "veths" && r.readys != 0 {
					t.Error("ready before it has looked at the kernel")
				}
				r.kernel.set(func() { r.kernel.fail = map[string]error{} })
				r.after(resync)
				r.want(c, enforced10)
			})
		})
	}
}

// xdp.enable among the labels may be the image's, and an image switches nothing off.
func TestImageSwitchesNothingOff(t *testing.T) {
	image, own := box(10, true, "xdp.drop=udp", "xdp.enable=false"), box(20, true, "xdp.drop=udp", "xdp.enable=false")
	image.ImageLabels = map[string]string{"xdp.enable": "false"}
	inTime(t, []docker.Container{image, own}, nil, func(r *rig) {
		r.want(image, enforced10)
		r.want(own, "none")
	})
}

// The veths of a container that ends go before Docker says so: no alarm, until it has had time to.
func TestVethsGoFirst(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		r.want(c, enforced10)
		r.kernel.set(func() { r.kernel.namespaces[c.SandboxKey] = nil })
		for range 3 {
			r.ring()
			r.want(c, "enforced [bridge enforced 10:]")
		}
		if r.said("WARN", "pending") {
			t.Error("an alarm while it ends")
		}
		r.after(resync)
		r.want(c, "pending [bridge pending 0:]")
	})
}

func TestLate(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, func(r *rig) { r.kernel.unseen[10] = 3 }, func(r *rig) {
		r.want(c, "late [bridge late 10:open]")
		if got := r.kernel.record(c.ID).Interfaces[0].Late; got != 3 {
			t.Errorf("%d packets", got)
		}
		if !r.said("WARN", "packets=3") {
			t.Error("the log does not say so")
		}
		r.after(2 * resync)
		r.engine.emit(docker.ActionRename, c.ID)
		r.after(0)
		r.want(c, "late [bridge late 10:open]")
		r.plug(docker.Container{SandboxKey: c.SandboxKey})
		r.happens(started(c, 11), docker.ActionDie, docker.ActionStart)
		r.want(c, "enforced [bridge enforced 11:open]")
	})
}

// TestFilterIsTakenOff has a container take its filter off: what it has sent since is counted.
func TestFilterIsTakenOff(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		r.want(c, "enforced [bridge enforced 10:open]")
		r.kernel.set(func() { r.kernel.lost[10], r.kernel.unseen[10] = true, 4 })
		r.after(resync)
		r.want(c, "late [bridge late 10:open]")
		if !r.said("ERROR", "taken the filter off") || !r.said("WARN", "packets=4") {
			t.Error("the log does not say so")
		}
		r.after(resync)
		r.want(c, "late [bridge late 10:open]")
	})
}

// A new agent finds in the kernel what the last one had there: late stays late, and what has ended goes.
func TestNextAgent(t *testing.T) {
	late, ended, gone := box(10, true, "xdp.drop=udp"), box(20, false, "xdp.drop=udp"), box(30, false, "xdp.drop=udp")
	inTime(t, []docker.Container{late, ended}, func(r *rig) {
		for _, c := range []docker.Container{late, ended, gone} {
			record := Record{ID: c.ID, Name: c.Name, State: Late, Interfaces: []Interface{{Network: "bridge", State: Late, Ifindex: vethsFor(late)[0].Index, Late: 5}}}
			if c.ID != late.ID {
				record.Interfaces[0].Ifindex = 99
			}
			r.kernel.records[c.ID] = record.encode()
		}
		r.kernel.records[strings.Repeat("d", 64)] = nil // damaged
		r.kernel.attached[10] = "open"
		r.kernel.unseen[10] = 1000
	}, func(r *rig) {
		r.want(late, "late [bridge late 10:open]")
		if got := r.kernel.record(late.ID).Interfaces[0].Late; got != 5 {
			t.Errorf("%d packets before the filter, want 5", got)
		}
		r.want(ended, "none")
		r.want(gone, "none")
		if n := len(r.kernel.records); n != 1 {
			t.Errorf("%d records", n)
		}
	})
}

// Somebody damages the records while the agent runs.
func TestRecordsAreMended(t *testing.T) {
	c, other := box(10, true, "xdp.drop=udp"), box(20, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c, other}, nil, func(r *rig) {
		r.kernel.set(func() {
			r.kernel.records[c.ID] = nil
			r.kernel.records[strings.Repeat("d", 64)] = nil
			delete(r.kernel.records, other.ID)
		})
		r.after(resync)
		r.want(c, enforced10)
		r.want(other, "enforced [bridge enforced 20:open]")
		if n := len(r.kernel.records); n != 2 {
			t.Errorf("%d records", n)
		}
		if r.said("WARN", "") {
			t.Error("noise in the log")
		}
	})
}

func TestNothingToAttachTo(t *testing.T) {
	host, none, joiner, macvlan, odd := box(10, true, "xdp.drop=udp"), box(20, true, "xdp.drop=udp"), box(30, true, "xdp.drop=udp"), box(40, true, "xdp.drop=udp"), box(50, true, "xdp.drop=udp")
	half := joined(box(80, true, "xdp.drop=upd"), "swarm")
	half.Networks[1].Driver = "overlay"
	host.NetworkMode, none.NetworkMode, joiner.NetworkMode = "host", "none", "container:"+host.ID
	macvlan = joined(macvlan, "lan")
	macvlan.Networks[1].Driver = "macvlan"
	odd.SandboxKey = "host"
	// Docker keeps the mode when such a container leaves its network and joins another.
	left := box(60, true, "xdp.drop=udp")
	left.NetworkMode = "none"
	none.Networks = []docker.Endpoint{{Network: "none", NetworkID: strings.Repeat("d", 64), Driver: "null"}}
	nowhere := box(70, true, "xdp.drop=udp")
	nowhere.Networks = nil
	inTime(t, []docker.Container{host, none, joiner, macvlan, odd, left, nowhere, half}, func(r *rig) {
		r.kernel.namespaces[none.SandboxKey] = nil
		r.kernel.namespaces[nowhere.SandboxKey] = nil
	}, func(r *rig) {
		for _, tc := range []struct {
			c     docker.Container
			state string
			why   string
		}{
			{host, "unsupported [host unsupported 0:]", "shares the host's network"},
			{none, "unsupported [none unsupported 0:]", "has no network"},
			{joiner, "unsupported [container:" + host.ID + " unsupported 0:]", "shares the network of container 000a000a000a"},
			{macvlan, "partial [lan partial 0:] [bridge enforced 40:open] [br-cccccccccccc enforced 41:open]", "a way out that no hook sees: network lan is macvlan"},
			{half, "partial [swarm partial 0:] [bridge quarantined 80:closed] [br-cccccccccccc quarantined 81:closed]", "a way out that no hook sees: network swarm is overlay"},
			{left, "enforced [bridge enforced 60:open]", ""},
			{nowhere, "unsupported [ unsupported 0:]", "has no network"},
			{odd, "unsupported [default unsupported 0:]", "own network namespace"},
		} {
			r.want(tc.c, tc.state)
			if got := r.kernel.record(tc.c.ID).Interfaces[0].Error; !strings.Contains(got, tc.why) {
				t.Errorf("%s: %q does not say %q", tc.c.NetworkMode, got, tc.why)
			}
		}
	})
}

func TestSandboxNotSeen(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	noVeth := box(20, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c, noVeth}, func(r *rig) {
		delete(r.kernel.namespaces, c.SandboxKey)
		r.kernel.namespaces[noVeth.SandboxKey] = nil
	}, func(r *rig) {
		r.want(c, "pending [default pending 0:]")
		r.want(noVeth, "pending [bridge pending 0:]")
		asked := r.engine.asked(c.ID)
		r.after(5 * resync)
		if got := r.engine.asked(c.ID) - asked; got > 6 {
			t.Errorf("asked %d times in 5 resyncs", got)
		}
		// By its process: only if that is in the container's cgroup.
		process := filepath.Join(r.agent.proc, "10")
		r.kernel.set(func() { r.kernel.namespaces[filepath.Join(process, "ns/net")] = vethsFor(c) })
		write(t, filepath.Join(process, "cgroup"), "0::/system.slice/docker-"+noVeth.ID+".scope\n")
		r.after(resync)
		r.want(c, "pending [default pending 0:]")
		r.device(10, "")
		write(t, filepath.Join(process, "cgroup"), "0::/system.slice/docker-"+c.ID+".scope\n")
		r.after(resync)
		r.want(c, enforced10)
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What the image says counts from the moment that it can be asked.
func TestImageKnownLater(t *testing.T) {
	c := box(10, true, "xdp.drop=udp", "xdp.except=53/udp")
	c.ImageKnown = false
	inTime(t, []docker.Container{c}, nil, func(r *rig) {
		if got := r.kernel.record(c.ID).Policy; got != "xdp.drop=udp" {
			t.Errorf("policy %q", got)
		}
		c.ImageKnown = true
		r.happens(c, docker.ActionRename)
		if got := r.kernel.record(c.ID).Policy; got == "xdp.drop=udp" {
			t.Errorf("policy %q", got)
		}
	})
}

// Whatever is under way when the agent ends, it ends.
func TestShutdown(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, func(r *rig) {
		r.engine.hang[c.ID] = make(chan struct{})
	}, func(r *rig) {
		r.engine.set(func() { r.engine.hangList = make(chan struct{}) })
		r.after(resync)
		r.engine.emit(docker.ActionStart, c.ID)
		r.after(0)
	})
}

// TestNumberOfAnothersNamespace ends a container unheard, whose namespace's id the next one's gets: the filter of the first does not come
// upon the other's veth.
func TestNumberOfAnothersNamespace(t *testing.T) {
	c, free := box(10, true, "xdp.drop=udp"), box(20, true)
	inTime(t, []docker.Container{c, free}, nil, func(r *rig) {
		r.want(c, enforced10)
		looked := r.kernel.count("in " + c.SandboxKey)
		r.after(2 * resync)
		if n := r.kernel.count("in " + c.SandboxKey); n != looked {
			t.Errorf("its namespace was opened %d times although nothing has happened", n-looked)
		}
		r.kernel.set(func() {
			delete(r.kernel.namespaces, c.SandboxKey)
			r.kernel.namespaces[free.SandboxKey][0].NsID = 10
		})
		r.after(2 * resync)
		r.device(20, "")
	})
}

// TestReadyAfterAFailedList has the kernel refuse to list the links beside the loop: who is to be filtered then is waited for.
func TestReadyAfterAFailedList(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	var gate chan struct{}
	inTime(t, []docker.Container{c}, func(r *rig) {
		listBridge(r)
		gate = make(chan struct{})
		r.engine.hang[c.ID] = gate
	}, func(r *rig) {
		r.port(near(5), nil) // is held
		r.after(time.Second)
		list, fails := r.agent.list, true
		r.agent.list = func() (links, error) {
			if fails {
				return links{}, errGone
			}
			return list()
		}
		close(gate)
		r.after(time.Millisecond)
		if r.readys > 0 || r.kernel.retired > 0 {
			t.Errorf("ready %d times, retired %d times", r.readys, r.kernel.retired)
		}
		r.agent.tell(func() { fails = false })
		r.after(2 * time.Second)
		r.want(c, enforced10)
		if r.readys != 1 {
			t.Errorf("ready %d times", r.readys)
		}
	})
}

// TestHearsWhatIsHeardAlready has a list come that was asked for beside the loop, and news after it, while the loop is busy: to look at a container it
// hears the news, and does not wait for them afterwards.
func TestHearsWhatIsHeardAlready(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, listBridge, func(r *rig) {
		r.want(c, enforced10)
		listed, busy, list := make(chan struct{}), make(chan struct{}), r.agent.list
		r.agent.list = func() (links, error) { <-listed; return list() }
		r.port(near(5), nil)                     // is held
		r.tells(xdp.Change{Index: 10, NsID: 10}) // so this is listed beside the loop
		r.agent.tell(func() { <-busy })
		close(listed)
		synctest.Wait()
		heard := false
		r.agent.tell(func() { heard = true })
		close(busy)
		synctest.Wait()
		beats := func() (n int) {
			r.kernel.hold.set(func() { n = r.kernel.hold.beats })
			return n
		}
		before := beats()
		time.Sleep(3 * heartbeat)
		if n := beats() - before; n < 2 || !heard {
			t.Errorf("heard %t, %d heartbeats in 3", heard, n)
		}
	})
}

// TestOldListIsLate has a list of before come when a later one has been looked at: what it lacks is not forgotten.
func TestOldListIsLate(t *testing.T) {
	c := box(10, true, "xdp.egress.allow=neighbors,53/udp")
	other := docker.Network{ID: strings.Repeat("c", 64), Name: "other", Driver: "bridge", Bridge: "br-cccccccccccc"}
	inTime(t, []docker.Container{c}, func(r *rig) { r.engine.networks = []docker.Network{bridge, other} }, func(r *rig) {
		r.want(c, enforced10)
		gate, first, list := make(chan struct{}), true, r.agent.list
		r.agent.list = func() (links, error) {
			l, err := list()
			if first {
				first, l.veths = false, oldVeths{r.kernel, vethsFor(c)}
				<-gate
			}
			return l, err
		}
		r.port(near(5), nil)                     // is held
		r.tells(xdp.Change{Index: 10, NsID: 10}) // so this is listed beside the loop
		up := joined(c, "other")
		r.engine.set(func() { r.engine.containers[c.ID] = up })
		r.kernel.set(func() { r.kernel.namespaces[c.SandboxKey] = vethsFor(up) })
		r.happens(up, docker.ActionConnect)
		r.tells(xdp.Change{Index: 11, NsID: 10})
		r.kernel.hold.set(func() { delete(r.kernel.hold.ports, 5) })
		r.tells(xdp.Change{Index: 5, Gone: true, NsID: -1}) // and this at once
		r.after(time.Millisecond)
		close(gate)
		r.after(time.Second)
		r.want(up, "enforced [bridge enforced 10:open] [other enforced 11:open]")
	})
}

// oldVeths are those that a namespace had.
type oldVeths struct {
	*fakeKernel
	veths []xdp.Veth
}

func (o oldVeths) In(string) ([]xdp.Veth, error) { return o.veths, nil }
func (o oldVeths) With(int) []xdp.Veth           { return o.veths }
