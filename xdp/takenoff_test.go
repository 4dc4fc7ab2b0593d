package xdp

import (
	"os"
	"testing"

	"github.com/cilium/ebpf/link"
)

// TestTakenOff has somebody take programs of ours off, as an agent meets that most often: it sweeps every ten seconds, and then looks at its
// containers, of which it has looked at some a moment before.
func TestTakenOff(t *testing.T) {
	for name, tc := range map[string]struct {
		label   string
		hooks   []string
		changed bool // the policy, too
		lost    bool
	}{
		"XDP alone":               {"xdp.enable=true", []string{hookXDP}, false, true},
		"XDP of two":              {"xdp.drop=udp", []string{hookXDP}, false, true},
		"what it receives":        {"xdp.drop=udp", []string{hookReceived}, false, false},
		"both":                    {"xdp.drop=udp", []string{hookReceived, hookXDP}, false, true},
		"both, by another policy": {"xdp.drop=udp", []string{hookReceived, hookXDP}, true, true},
		"a pin of one, only":      {"xdp.drop=udp", nil, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			f := open(t, bpffs(t))
			defer f.Close()
			if f.noTCX {
				t.Skip("no tcx")
			}
			w := Want{Policy: labelled(t, tc.label), Mode: Generic}
			must(t, f.Attach(n.host.Index, w))
			if tc.hooks == nil {
				must(t, os.Remove(f.pin(hookID{n.host.Index, hookXDP})))
			}
			for _, hook := range tc.hooks {
				l, err := link.LoadPinnedLink(f.pin(hookID{n.host.Index, hook}), nil)
				must(t, err)
				must(t, l.Detach())
				must(t, l.Close())
			}
			links, err := ListLinks()
			must(t, err)
			must(t, f.Sweep(links))
			if tc.changed {
				w.Policy = labelled(t, "xdp.drop=tcp")
			}
			must(t, f.Attach(n.host.Index, w))
			for _, hook := range f.hooks(n.host.Index, w) {
				if f.live(hookID{n.host.Index, hook}) == nil {
					t.Errorf("%s is not back", hook)
				}
			}
			if lost := f.Lost(n.host.Index); lost != tc.lost {
				t.Errorf("what judges what is sent has been taken off: %t, want %t", lost, tc.lost)
			}
			must(t, f.Detach(n.host.Index))
			if f.Both(n.host.Index) || f.Lost(n.host.Index) {
				t.Error("taken off by ourselves, and somebody else is said to have done it")
			}
		})
	}
}

// TestByHandIsNotTakenOff has root attach a program by hand and take it off again, and the agent look in between, or not.
func TestByHandIsNotTakenOff(t *testing.T) {
	for _, looked := range []bool{false, true} {
		n := newNetwork(t)
		dir := bpffs(t)
		f := open(t, dir)
		w := Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Generic}
		look := func() {
			t.Helper()
			links, err := ListLinks()
			must(t, err)
			must(t, f.Sweep(links))
			must(t, f.Attach(n.host.Index, w))
			if f.Lost(n.host.Index) {
				t.Errorf("looked at meanwhile %t: somebody is said to have taken it off", looked)
			}
		}
		look()
		must(t, AttachByHand(dir, n.host.Index, f.objs.VethwallXdp, Generic))
		if looked {
			look()
		}
		must(t, DetachByHand(dir, n.host.Index))
		look()
		look()
		f.Close()
	}
}
