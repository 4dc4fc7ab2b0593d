package xdp

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// TestMapMissing takes one pin away after the other while no agent runs. The next agent makes all maps anew: the filter of
// a container that Docker has not answered for yet does not judge by what is written for others meanwhile.
func TestMapMissing(t *testing.T) {
	n := newNetwork(t)
	other := n.veth("host1", "eth1")
	dir := bpffs(t)
	f := open(t, dir)
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Generic}))
	id := strings.Repeat("ab", 32)
	must(t, f.SaveRecord(id, []byte("a record")))
	maps := []string{"nodes", "policies", "devices", "states"}
	if os.Getenv("VETHWALL_LONG") != "" {
		maps = nil
		for _, pin := range pinnedMaps(t, dir) {
			maps = append(maps, filepath.Base(pin))
		}
	}
	for name, damage := range damages(t) {
		for i, base := range maps {
			if name != "missing" && i > 0 {
				continue
			}
			pin := filepath.Join(filepath.Dir(pinnedMaps(t, dir)[0]), base)
			before := linkID(t, f, n.host.Index)
			f.Close()
			what := base + " is " + name
			damage(pin)
			if err := AttachByHand(dir, n.host.Index, passProgram(t), Generic); err == nil || !strings.Contains(err.Error(), "missing or somebody else") {
				t.Errorf("%s: attached by hand beside it: %v", what, err)
			}
			f = open(t, dir)
			if f.Damage() == nil {
				t.Errorf("%s, and nothing is said", what)
			}
			if records, err := f.Records(); err != nil || (len(records) == 1) != (base != "containers" && name != "all that is left") {
				t.Errorf("%s: records %q, %v", what, records, err)
			}
			must(t, f.SaveRecord(id, []byte("a record")))
			for _, labels := range []string{"xdp.drop=tcp", "xdp.drop=53/udp", "xdp.drop=ping"} {
				must(t, f.Attach(other.Index, Want{Policy: labelled(t, labels), Mode: Generic}))
				f.maps.free(time.Now().Add(2 * grace))
			}
			n.wantUDPTo("192.0.2.1:0", false, what+", nobody has asked yet")
			must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=tcp"), Mode: Generic}))
			n.wantUDPTo("192.0.2.1:0", true, what+", drop=tcp")
			must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Generic}))
			n.wantUDPTo("192.0.2.1:0", false, what+", drop=udp")
			if after := linkID(t, f, n.host.Index); after != before {
				t.Errorf("%s: link %d was made anew as %d", what, before, after)
			}
			must(t, f.Retire())
			if left, err := filepath.Glob(filepath.Join(dir, "maps-*")); err != nil || len(left) != 1 {
				t.Errorf("%s: left are %v", what, left)
			}
		}
	}
	f.Close()
	f = open(t, dir)
	defer f.Close()
	if err := f.Damage(); err != nil {
		t.Error(err)
	}
	must(t, AttachByHand(dir, n.host.Index, passProgram(t), Generic))
}

// damages are what can have happened to a pin.
func damages(t *testing.T) map[string]func(pin string) {
	t.Helper()
	small, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	must(t, err)
	t.Cleanup(func() { small.Close() })
	return map[string]func(string){
		"missing":     func(pin string) { must(t, os.Remove(pin)) },
		"another map": func(pin string) { must(t, os.Remove(pin)); must(t, small.Pin(pin)) },
		"no map":      func(pin string) { must(t, os.Remove(pin)); must(t, passProgram(t).Pin(pin)) },
		"a directory": func(pin string) { must(t, os.Remove(pin)); must(t, os.Mkdir(pin, 0o700)) },
		"all that is left": func(pin string) {
			for _, p := range pinnedMaps(t, filepath.Dir(filepath.Dir(pin))) {
				if p != pin {
					must(t, os.Remove(p))
				}
			}
		},
	}
}

func pinnedMaps(t *testing.T, dir string) []string {
	t.Helper()
	pins, err := filepath.Glob(filepath.Join(dir, "maps-*", "*"))
	must(t, err)
	return pins
}

// TestDirectoryRemoved removes everything that is pinned, directories too, under an agent: the filter stays, and everything is
// pinned again, the lock included.
func TestDirectoryRemoved(t *testing.T) {
	a := newAsker(t)
	dir := bpffs(t)
	f := open(t, dir)
	bring := func(labels string) {
		must(t, f.Attach(a.host.Index, Want{Policy: labelled(t, labels), Mode: Generic}))
		must(t, f.CloseResolver(a.path, a.host.Index, true, true))
		must(t, sweep(f))
	}
	bring("xdp.drop=udp")
	before := linkID(t, f, a.host.Index)
	was := pins(t, dir)
	must(t, os.RemoveAll(dir))
	a.wantUDPTo("192.0.2.1:0", false, "removed")
	bring("xdp.drop=udp")
	if got := pins(t, dir); !slices.Equal(got, was) {
		t.Errorf("pinned are %v, were %v", got, was)
	}
	if _, err := Open(dir); !errors.Is(err, ErrBusy) {
		t.Errorf("a second agent: %v", err)
	}
	bring("xdp.drop=tcp")
	a.wantUDPTo("192.0.2.1:0", true, "another policy")
	bring("xdp.drop=udp")
	f.Close()
	f = open(t, dir)
	defer f.Close()
	if err := f.Damage(); err != nil {
		t.Error(err)
	}
	if after := linkID(t, f, a.host.Index); after != before {
		t.Errorf("link %d was made anew as %d", before, after)
	}
	a.wantUDPTo("192.0.2.1:0", false, "the next agent")
	if a.answers("udp") || a.answers("tcp") {
		t.Error("the resolver is open to the next agent")
	}
	bring("xdp.drop=udp")
	must(t, f.CloseResolver(a.path, a.host.Index, false, false))
	if !a.answers("udp") || !a.answers("tcp") {
		t.Error("the resolver does not open")
	}
}
