package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vethwall/vethwall/internal/enginetest"
)

// TestKilledAnywhere kills agents at random moments of their lives, most of them while they load and adopt, beside
// containers that send all the time what they may not, one of them by a policy of conversations, which has an allowed one
// going on. Links are adopted, never made anew, and nothing else passes.
func TestKilledAnywhere(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	v.StartAgent()
	f := newFlood(t, v, tr, image, labelled(network, "xdp.drop=udp")...)
	c := v.Start(image, "opens", labelled(network, "xdp.egress.drop=53-54/udp"), steadily(addrA4+":53", "denied")...)
	before := append(linkIDs(awaitFilter(t, v, f.c.Name, 1)), linkIDs(awaitFilter(t, v, c.Name, 1))...)
	talk := newTalk(t, v, c, tr.sinks["A"].Container, network, "443")
	for i := range times(12, 500) {
		v.EndAgent(syscall.SIGKILL)
		v.SpawnAgent()
		time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond)
		if i%10 == 5 {
			v.AwaitLog("ready:")
			unpin(t, v)
			f.blocked(t)
		}
	}
	v.EndAgent(syscall.SIGKILL)
	v.StartAgent()
	f.blocked(t)
	talk.goesOn(t, v)
	tr.shows(t, c, deniedUDP, allowedUDP)
	if n := tr.sinks["A"].Count("denied"); n > 0 {
		t.Errorf("%d packets of the denied conversation got through", n)
	}
	if after := append(linkIDs(awaitFilter(t, v, f.c.Name, 1)), linkIDs(awaitFilter(t, v, c.Name, 1))...); !slices.Equal(before, after) {
		t.Errorf("links %v became %v", before, after)
	}
	tr.shows(t, v.With(t).Start(image, "later", labelled(network)), nil, deniedUDP)
}

// unpin removes pins under the feet of the agent that runs, and waits until it has put them back.
func unpin(t *testing.T, v *enginetest.Vethwall) {
	t.Helper()
	pins := func() (out []string) {
		for _, pattern := range []string{"links/*", "maps-*/*"} {
			found, err := filepath.Glob(filepath.Join(v.Dir, pattern))
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, found...)
		}
		return out
	}
	all := pins()
	for _, pin := range all {
		if rand.IntN(2) == 0 {
			_ = os.Remove(pin)
		}
	}
	v.With(t).Wait("pins are back", func() error {
		for _, pin := range all {
			if _, err := os.Lstat(pin); err != nil {
				return err
			}
		}
		return nil
	})
}
