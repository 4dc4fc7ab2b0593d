package xdp

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
)

// itsOwn is the identity of the container: the MAC of its eth0 and its addresses.
func (n *network) itsOwn() (mac net.HardwareAddr, own *Tables) {
	n.t.Helper()
	n.inContainer(func() {
		l, err := netlink.LinkByName("eth0")
		must(n.t, err)
		mac = l.Attrs().HardwareAddr
	})
	var ranges []netipx.IPRange
	for _, a := range []string{"192.0.2.2", "2001:db8::2"} {
		ranges = append(ranges, netipx.IPRangeFrom(netip.MustParseAddr(a), netip.MustParseAddr(a)))
	}
	own, err := CompileOwn(ranges)
	must(n.t, err)
	return mac, own
}

// TestIdentityWithoutADevice has an agent killed between what it writes of a device: its identity stands in the kernel, its entry does not. The next
// agent writes the same identity, whose addresses stay then.
func TestIdentityWithoutADevice(t *testing.T) {
	n := newNetwork(t)
	mac, own := n.itsOwn()
	w := Want{Policy: labelled(t, "xdp.drop=tcp"), Mode: Generic, MAC: mac, Own: own}
	for name, killed := range map[string]func(f *Filter){
		"as it comes": func(f *Filter) {
			block, err := f.maps.block()
			must(t, err)
			must(t, f.maps.setIdentity(block, w, 0))
		},
		"as it goes": func(f *Filter) {
			must(t, f.Attach(n.host.Index, w))
			must(t, f.unhook(n.host.Index))
			must(t, f.objs.Devices.Put(uint32(n.host.Index), filterDevice{}))
		},
	} {
		dir := bpffs(t)
		f := open(t, dir)
		killed(f)
		f.Close()
		f = open(t, dir)
		must(t, f.Attach(n.host.Index, w))
		n.wantUDP(true, name)
		f.maps.free(time.Now().Add(2 * grace))
		n.wantUDP(true, name+", after what is unused was freed")
		taken(t, f, name, room{devices: 1, policies: 2, identities: 1})
		must(t, f.Detach(n.host.Index))
		f.maps.free(time.Now().Add(2 * grace))
		taken(t, f, name+", detached", room{})
		f.Close()
	}
}

// TestKilledWhileItInherits has an agent of another version killed after it had made its maps, before it had taken over all records.
func TestKilledWhileItInherits(t *testing.T) {
	dir := bpffs(t)
	f := open(t, dir)
	ids := []string{strings.Repeat("ab", 32), strings.Repeat("cd", 32)}
	for _, id := range ids {
		must(t, f.SaveRecord(id, []byte("of before")))
	}
	own := f.mapsDir
	f.Close()
	must(t, os.Rename(own, filepath.Join(dir, "maps-0123456789ab")))
	f = open(t, dir)
	must(t, f.DeleteRecord(ids[0]))
	must(t, f.SaveRecord(ids[1], []byte("of now")))
	f.Close()
	f = open(t, dir)
	records, err := f.Records()
	must(t, err)
	if string(records[ids[0]]) != "of before" || string(records[ids[1]]) != "of now" {
		t.Errorf("records %q", records)
	}
	must(t, f.Retire())
	must(t, f.DeleteRecord(ids[0]))
	f.Close()
	f = open(t, dir)
	defer f.Close()
	if records, err := f.Records(); err != nil || len(records) != 1 {
		t.Errorf("after the other version's maps were removed: %q, %v", records, err)
	}
}
