package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// TestTakenOff has root take a filter off while its container sends and nothing else happens: the agent puts it back, says so, and calls the container
// late with what has passed.
func TestTakenOff(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	v.StartAgent()
	f := newFlood(t, v, tr, image, labelled(network, "xdp.drop=udp")...)
	f.blocked(t)
	time.Sleep(20 * time.Second) // a while after the start
	pins, err := filepath.Glob(filepath.Join(v.Dir, "links", "*"))
	if err != nil || len(pins) == 0 {
		t.Fatal(pins, err)
	}
	for _, pin := range pins {
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Detach(); err != nil {
			t.Error(pin, err)
		}
		_ = l.Close()
	}
	began := time.Now()
	s := await(t, v, f.c.Name, "has its filter again, and is late", func(s agent.ContainerStatus) bool { return s.State == agent.Late })
	if took := time.Since(began); took > 16*time.Second {
		t.Errorf("it is back after %v", took)
	}
	passed := tr.sinks["A"].With(v.Docker.With(t)).Count("flood")
	if passed == 0 {
		t.Error("nothing has passed meanwhile: the test shows nothing")
	}
	if s.Interfaces[0].Late == 0 {
		t.Errorf("%d packets have passed, and it is not called late: %+v", passed, s)
	}
	if !strings.Contains(v.Log(), "somebody had taken the filter off") {
		t.Error("the log does not say so")
	}
}
