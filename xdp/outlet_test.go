package xdp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/internal/enginetest/beyond"
)

// bridge gives the namespace that plays the host a bridge, with an address, and returns its number.
func (n *network) bridge(name, address string) int {
	n.t.Helper()
	must(n.t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}))
	l, err := netlink.LinkByName(name)
	must(n.t, err)
	must(n.t, netlink.LinkSetUp(l))
	addr, err := netlink.ParseAddr(address)
	must(n.t, err)
	must(n.t, netlink.AddrAdd(l, addr))
	return l.Attrs().Index
}

// hostSeenFrom is the number that a namespace has for the one that plays the host. It fails the test where that could be the
// machine's own.
func (n *network) hostSeenFrom(inside netns.NsHandle) int {
	n.t.Helper()
	h, err := netlink.NewHandleAt(inside, unix.NETLINK_ROUTE)
	must(n.t, err)
	defer h.Close()
	here, err := netns.Get()
	must(n.t, err)
	defer here.Close()
	_, err = h.LinkList() // the kernel gives it a number as it names it in a list
	must(n.t, err)
	host, err := h.GetNetNsIdByFd(int(here))
	must(n.t, err)
	machine, err := h.GetNetNsIdByFd(int(n.machine))
	must(n.t, err)
	if host < 0 || machine >= 0 || here.Equal(n.machine) {
		n.t.Fatalf("from inside the host is %d and the machine %d", host, machine)
	}
	return host
}

// TestOutlets makes devices past the veth as CAP_NET_ADMIN can, which are seen, and as it can do no harm with, which are not.
func TestOutlets(t *testing.T) {
	n := newNetwork(t)
	bridge := n.bridge("br0", "198.51.100.1/24")
	want := func(when string, want ...Outlet) {
		t.Helper()
		got, err := Outlets(n.path)
		must(t, err)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %+v, want %+v", when, got, want)
		}
	}
	want("nothing but a veth")
	n.inContainer(func() {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "inner0"}, PeerName: "inner1"}))
		must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "inner2"}}))
		eth0, err := netlink.LinkByName("eth0")
		must(t, err)
		must(t, netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "mine0", ParentIndex: eth0.Attrs().Index}}))
	})
	want("devices of its own")

	host := n.hostSeenFrom(n.container)
	n.inContainer(func() { n.has("macvlan", beyond.Device(host, "macvlan", "past0", bridge)) })
	want("a macvlan", Outlet{"past0", "macvlan", "br0"})
	n.inContainer(func() { n.has("vxlan", beyond.Device(host, "vxlan", "past1", 0)) })
	want("a tunnel as well", Outlet{"past0", "macvlan", "br0"}, Outlet{"past1", "vxlan", ""})

	if _, err := Outlets("/proc/thread-self/ns/net"); !errors.Is(err, ErrOwnNamespace) {
		t.Errorf("of the host: %v", err)
	}
}

// TestWatchOthers makes outlets, and devices that are none, while somebody listens.
func TestWatchOthers(t *testing.T) {
	n := newNetwork(t)
	bridge := n.bridge("br0", "198.51.100.1/24")
	var ends Ends
	bell := n.listen(func(ctx context.Context, log *slog.Logger, ring func()) { WatchOthers(ctx, log, ring, &ends) })
	hear := func(what string, want bool) {
		t.Helper()
		select {
		case <-bell:
			if !want {
				t.Errorf("%s rings", what)
			}
		case <-time.After(map[bool]time.Duration{true: 10 * time.Second, false: long}[want]):
			if want {
				t.Errorf("%s does not ring", what)
			}
		}
		for len(bell) > 0 {
			<-bell
		}
	}
	hear("the subscription", true)
	host := n.hostSeenFrom(n.container)
	n.veth("host1", "eth1")
	n.inContainer(func() {
		must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "inner0"}}))
	})
	hear("a veth, and a bridge of the container's own", false)
	n.hears(&ends, "host1", "eth1")
	n.inContainer(func() { n.has("macvlan", beyond.Device(host, "macvlan", "past0", bridge)) })
	hear("a macvlan on a bridge of the host's", true)
}

// hears has the container's end of a veth get another address, in a namespace that others have had devices with its number in.
func (n *network) hears(ends *Ends, name, inside string) {
	n.t.Helper()
	links, err := ListLinks()
	must(n.t, err)
	i := slices.IndexFunc(links, func(l hostLink) bool { return l.name == name })
	p := portOf(links[i], "br0")
	mac := net.HardwareAddr{0x02, 0, 0x5e, 0, 0x53, 0x17}
	n.inContainer(func() {
		l, err := netlink.LinkByName(inside)
		must(n.t, err)
		must(n.t, netlink.LinkSetHardwareAddr(l, mac))
	})
	for deadline := time.Now().Add(soon); !bytes.Equal(ends.PeerMAC(p), mac); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("the other end of %+v is %v, want %v as the kernel says: %v", p, ends.PeerMAC(p), mac, p.PeerMAC())
		}
	}
	for what, change := range map[string]func(*Port){
		"another namespace": func(p *Port) { p.NsID++ }, "this namespace": func(p *Port) { p.NsID = -1 },
		"another end": func(p *Port) { p.Peer++ }, "another port": func(p *Port) { p.Index += 1000 },
	} {
		other := p
		if change(&other); ends.PeerMAC(other) != nil {
			n.t.Errorf("%s: %v", what, ends.PeerMAC(other))
		}
	}
}

// listen runs a watch in the namespace that plays the host, until the test ends. The channel has a ring for each of its.
func (n *network) listen(watch func(context.Context, *slog.Logger, func())) <-chan struct{} {
	n.t.Helper()
	host, err := netns.Get()
	must(n.t, err)
	ctx, cancel := context.WithCancel(n.t.Context())
	bell, done := make(chan struct{}, 1000), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: a socket is of the namespace of the thread that opens it
		if netns.Set(host) == nil {
			watch(ctx, slog.New(slog.DiscardHandler), func() { bell <- struct{}{} })
		}
	}()
	n.t.Cleanup(func() { cancel(); <-done; _ = host.Close() })
	return bell
}

// TestUninvitedPort lets the container make another port of a bridge for itself. It is the container's by the kernel's word, and
// a filter holds it like any other.
func TestUninvitedPort(t *testing.T) {
	n := newNetwork(t)
	bridge, host := n.bridge("br0", "198.51.100.1/24"), n.hostSeenFrom(n.container)
	n.inContainer(func() {
		must(t, beyond.Port(host, bridge, "sly0", "past0"))
		l, err := netlink.LinkByName("past0")
		must(t, err)
		addr, err := netlink.ParseAddr("198.51.100.2/24")
		must(t, err)
		must(t, netlink.AddrAdd(l, addr))
	})
	links, err := ListLinks()
	must(t, err)
	all, ports := links.Veths(), links.Ports()
	found, err := all.In(n.path)
	must(t, err)
	i := slices.IndexFunc(found, func(v Veth) bool { return v.Name == "sly0" && v.Bridge == "br0" })
	if len(found) != 2 || i < 0 || len(ports) != 1 {
		t.Fatalf("veths %+v, ports %+v", found, ports)
	}
	f := open(t, bpffs(t))
	defer f.Close()
	n.wantUDPTo("198.51.100.1:0", true, "unfiltered")
	for _, mode := range []Mode{Generic, TCX} {
		must(t, f.Detach(found[i].Index))
		for labels, arrives := range map[string]bool{"xdp.drop=udp": false, "xdp.drop=tcp": true} {
			must(t, f.Attach(found[i].Index, Want{Policy: labelled(t, labels), Mode: mode, BothHooks: true}))
			n.wantUDPTo("198.51.100.1:0", arrives, string(mode)+" "+labels)
		}
	}
}

// beyondVar tells the test binary to try what beyond does, from the namespaces that it was started in.
const beyondVar = "VETHWALL_TEST_BEYOND"

// trial is what to try, on what.
type trial struct{ Host, Bridge, Veth int }

// TestBeyond is no test of its own: TestUserNamespaceHolds runs it in other namespaces.
func TestBeyond(t *testing.T) {
	if os.Getenv(beyondVar) == "" {
		return
	}
	var x trial
	must(t, json.NewDecoder(os.Stdin).Decode(&x))
	for _, err := range []error{
		beyond.Device(x.Host, "macvlan", "past0", x.Bridge), beyond.Port(x.Host, x.Bridge, "sly0", "past1"), beyond.Delete(x.Host, x.Veth),
	} {
		var number syscall.Errno
		errors.As(err, &number)
		fmt.Printf("beyond %d\n", int(number))
	}
}

// TestUserNamespaceHolds tries to reach the host's devices with all capabilities: in a user namespace of one's own, where the
// kernel refuses it, and without, where it works.
func TestUserNamespaceHolds(t *testing.T) {
	for name, flags := range map[string]uintptr{"with one": syscall.CLONE_NEWNET | syscall.CLONE_NEWUSER, "without": syscall.CLONE_NEWNET} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			bridge := n.bridge("br0", "198.51.100.1/24")
			cmd := exec.Command("/proc/self/exe", "-test.run", "^TestBeyond$", "-test.v")
			cmd.Env = append(os.Environ(), beyondVar+"=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
			held := flags&syscall.CLONE_NEWUSER != 0
			if held {
				root := []syscall.SysProcIDMap{{Size: 1}}
				cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = root, root
			}
			in, err := cmd.StdinPipe()
			must(t, err)
			out, err := cmd.StdoutPipe()
			must(t, err)
			err = cmd.Start()
			if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EPERM) {
				t.Skipf("no user namespaces here: %v", err)
			}
			must(t, err)
			defer func() { _ = cmd.Wait() }()
			defer in.Close()
			inside, err := netns.GetFromPid(cmd.Process.Pid)
			must(t, err)
			defer inside.Close()
			must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "host1"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(inside))}))
			veth, err := netlink.LinkByName("host1")
			must(t, err)
			must(t, json.NewEncoder(in).Encode(trial{n.hostSeenFrom(inside), bridge, veth.Attrs().Index}))
			var got []syscall.Errno
			for lines := bufio.NewScanner(out); lines.Scan(); {
				var number int
				if n, _ := fmt.Sscanf(lines.Text(), "beyond %d", &number); n == 1 {
					got = append(got, syscall.Errno(number))
				}
			}
			refused := func(e syscall.Errno) bool { return e == unix.EPERM || e == unix.EACCES }
			works := func(e syscall.Errno) bool { return e == 0 }
			if len(got) != 3 || held && slices.ContainsFunc(got, works) || !held && slices.ContainsFunc(got, refused) {
				t.Errorf("errors %v", got)
			}
			_, err = net.InterfaceByName("host1")
			_, sly := net.InterfaceByName("sly0")
			if (err == nil) != held || (sly == nil) == held {
				t.Errorf("the host's veth: %v; another one: %v", err, sly)
			}
		})
	}
}
