package agent

import (
	"errors"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/xdp"
)

// had is the program that a device was attached with last.
func (k *fakeKernel) had(ifindex int) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last[ifindex].Program.Name
}

// A program's Name stands for its content here.
func content(version string) xdp.Program { return xdp.Program{Name: version} }

// An object is read when a run of the container begins, and one that cannot be read closes the container until it can.
func TestProgramOfAContainer(t *testing.T) {
	c, other := box(10, true, "xdp.program=udp.o", "xdp.drop=tcp"), box(20, true, "xdp.drop=tcp")
	put := func(r *rig, version string) { r.kernel.set(func() { r.kernel.objects["udp.o"] = content(version) }) }
	inTime(t, []docker.Container{c, other}, nil, func(r *rig) {
		r.want(c, quarantined10)
		if got := r.kernel.record(c.ID); got.Error != "xdp.program=udp.o: no file" || !r.said("WARN", "xdp.program=udp.o: no file") {
			t.Errorf("error %q", got.Error)
		}
		r.want(other, "enforced [bridge enforced 20:open]")

		put(r, "first")
		r.after(resync)
		r.want(c, enforced10)
		if got := r.kernel.record(c.ID); r.kernel.had(10) != "first" || got.Program != "udp.o" || got.Error != "" {
			t.Errorf("program %q, record %+v", r.kernel.had(10), got)
		}

		put(r, "second")
		r.after(resync)
		if got := r.kernel.had(10); got != "first" {
			t.Errorf("a container that runs got the %s program", got)
		}
		r.plug(docker.Container{SandboxKey: c.SandboxKey})
		again := started(c, 11)
		r.happens(again, docker.ActionDie, docker.ActionStart)
		r.ring()
		if got := r.kernel.had(11); got != "second" {
			t.Errorf("after a restart of the container it has the %q program", got)
		}
		if got := r.kernel.had(20); got != "" {
			t.Errorf("the other has the %s program", got)
		}
	})
}

// What the kernel refuses closes the container, and its own words are the reason.
func TestProgramRefused(t *testing.T) {
	c := box(10, true, "xdp.program=udp.o")
	inTime(t, []docker.Container{c}, func(r *rig) {
		r.kernel.objects["udp.o"] = content("first")
		r.kernel.fail["attach 10"] = errors.New("the kernel refuses the program")
	}, func(r *rig) {
		r.want(c, "quarantined [bridge quarantined 10:down]")
		if got := r.kernel.record(c.ID).Interfaces[0].Error; !strings.Contains(got, "the kernel refuses the program") {
			t.Errorf("error %q", got)
		}
	})
}

func TestProgramTakesTheSlotFromByHand(t *testing.T) {
	c := box(10, true, "xdp.program=udp.o")
	inTime(t, []docker.Container{c}, func(r *rig) {
		r.kernel.objects["udp.o"] = content("first")
		r.kernel.byHand[10] = true
	}, func(r *rig) {
		r.want(c, enforced10)
		if !r.said("WARN", "gives way to xdp.program") {
			t.Error("nothing says that the program by hand is gone")
		}
	})
}

// The topmost source that names a program decides, and an image's never counts.
func TestWhoseProgram(t *testing.T) {
	label := map[string]string{"xdp.program": "label.o"}
	for _, tc := range []struct {
		name   string
		labels map[string]string
		conf   string
		image  bool // the labels are the image's
		want   string
	}{
		{name: "none", labels: map[string]string{"xdp.drop": "udp"}},
		{name: "label", labels: label, want: "label.o"},
		{name: "image", labels: label, image: true},
		{name: "floor above label", labels: label, conf: "floor: {xdp.program: floor.o}", want: "floor.o"},
		{name: "floor above policy", conf: "floor: {xdp.program: floor.o}\npolicies:\n- {pick: {name: box1}, labels: {xdp.program: picked.o}}", want: "floor.o"},
		{name: "policy above label", labels: label, conf: "policies:\n- {pick: {name: box1}, labels: {xdp.program: picked.o}}", want: "picked.o"},
		{name: "a floor without one", labels: label, conf: "floor: {xdp.drop: metadata}", want: "label.o"},
		{name: "floor above image", labels: label, image: true, conf: "floor: {xdp.drop: metadata}"},
	} {
		c := box(1, true)
		if c.Labels = tc.labels; tc.image {
			c.ImageLabels = tc.labels
		}
		conf := config.Config{}
		if tc.conf != "" {
			conf = parseConfig(t, tc.conf)
		}
		w, asks := wanted(c, known{}, conf, compile)
		if !asks || w.program != tc.want || w.problem != "" {
			t.Errorf("%s: program %q, want %q; asks %t, %s", tc.name, w.program, tc.want, asks, w.problem)
		}
	}
}

// What needs two hooks is not held where a program has one of them, and the twin without a program is.
func TestProgramAndDetours(t *testing.T) {
	for _, tc := range []struct {
		labels  []string
		runtime string
		holds   bool
	}{
		{[]string{"xdp.drop=udp"}, "kata", true},
		{[]string{"xdp.drop=udp", "xdp.program=udp.o"}, "kata", false},
		{[]string{"xdp.drop=udp", "xdp.program=udp.o"}, "runc", true},
	} {
		c := box(1, true, tc.labels...)
		c.Runtime = tc.runtime
		w, _ := wanted(c, known{}, config.Config{}, compile)
		if w.holds != tc.holds || w.holds != (w.loophole == "") {
			t.Errorf("%v under %s: holds %t, %q", tc.labels, tc.runtime, w.holds, w.loophole)
		}
	}
}
