package xdp

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnmounted has somebody unmount the bpffs under an agent. What is filtered stays so, follows the policy and is not cut off; what comes
// meanwhile is closed, and both are open as they should be when there is a bpffs again.
func TestUnmounted(t *testing.T) {
	n := newNetwork(t)
	other := n.veth("host1", "eth1")
	mount := t.TempDir()
	must(t, EnsureBPFFS(mount))
	t.Cleanup(func() { _ = unix.Unmount(mount, unix.MNT_DETACH) })
	dir := filepath.Join(mount, "vethwall")
	f := open(t, dir)
	defer f.Close()
	bring := func(labels string) error {
		return f.Attach(n.host.Index, Want{Policy: labelled(t, labels), Mode: Generic})
	}
	must(t, bring("xdp.drop=udp"))
	was := pins(t, dir)
	if f.Misplaced() {
		t.Error("misplaced before anything has happened")
	}
	must(t, unix.Unmount(mount, unix.MNT_DETACH))
	if !f.Misplaced() || sweep(f) == nil {
		t.Error("nothing is said of a bpffs that is gone")
	}
	must(t, bring("xdp.drop=tcp"))
	n.wantUDP(true, "drop=tcp, unmounted")
	must(t, bring("xdp.drop=udp"))
	n.wantUDP(false, "drop=udp, unmounted")
	if err := f.Attach(other.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Generic}); err == nil {
		t.Error("a filter that would end with its process is called one")
	}
	for _, ifindex := range []int{other.Index, n.host.Index} { // the latter has one of two hooks, or both where clsact needs no pin
		both := f.noTCX && ifindex == n.host.Index
		if byFilter, err := f.Shut(ifindex); err != nil || byFilter != both || up(t, ifindex) != both {
			t.Errorf("ifindex %d: closed by a filter: %v, %v, up: %v", ifindex, byFilter, err, up(t, ifindex))
		}
	}

	must(t, EnsureBPFFS(mount))
	must(t, sweep(f))
	must(t, bring("xdp.drop=tcp"))
	must(t, f.Attach(other.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: Generic}))
	if f.Misplaced() || !up(t, n.host.Index) || !up(t, other.Index) {
		t.Errorf("mounted again: misplaced: %v, up: %v and %v", f.Misplaced(), up(t, n.host.Index), up(t, other.Index))
	}
	n.wantUDPTo("192.0.2.1:0", true, "drop=tcp, mounted again") // its IPv6 address has gone as it went down
	must(t, f.Detach(other.Index))
	if got := pins(t, dir); len(got) != len(was) {
		t.Errorf("pinned are %v, were %v", got, was)
	}
}
