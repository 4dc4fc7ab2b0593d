package xdp

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The addresses of a bridgeRig. listed is one of the host's too, and what drop rules name.
const (
	rigHost   = "192.0.2.1"
	rigClient = "192.0.2.2"
	rigServer = "192.0.2.3"
	rigListed = "198.51.100.1"
	rigNet    = "192.0.2.0/24"
)

// bridgeRig is a namespace that plays the host, with a bridge, and two that play containers, each behind a veth that
// is a port of it. The benchmark's goroutine is in the host, on a thread with a bpffs of its own: nothing that is
// pinned here is seen elsewhere, or outlives the benchmark.
type bridgeRig struct {
	b                    *testing.B
	host, client, server netns.NsHandle
	ports                []int              // host ends of client and server
	portNames            []string           // of the same
	macs                 []net.HardwareAddr // of the containers' ends
	dir                  string             // for our pins
	sink                 int                // the socket of the host that floods are for
	wall                 wall               // in force
	undo                 []func()
}

func newBridgeRig(b *testing.B) *bridgeRig {
	runtime.LockOSThread() // never unlocked: the thread ends with the benchmark
	own, err := netns.Get()
	must(b, err)
	r := &bridgeRig{b: b}
	r.host, err = netns.New()
	must(b, err)
	r.client, err = netns.New()
	must(b, err)
	r.server, err = netns.New()
	must(b, err)
	must(b, netns.Set(r.host))
	b.Cleanup(func() {
		_ = netns.Set(own)
		for _, ns := range []netns.NsHandle{own, r.host, r.client, r.server} {
			_ = ns.Close()
		}
	})
	r.ownBPFFS()
	r.wire()
	r.listen()
	for _, ns := range []netns.NsHandle{r.host, r.server} {
		r.in(ns, func() { r.start("iperf3", "-s") })
	}
	r.awaitListener(rigHost)
	r.awaitListener(rigServer)
	return r
}

// ownBPFFS gives the thread a mount namespace in which /sys/fs/bpf is empty: xdp-filter always pins there.
func (r *bridgeRig) ownBPFFS() {
	must(r.b, unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS))
	must(r.b, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(r.b, unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, ""))
	r.dir = "/sys/fs/bpf/vethwall"
}

func (r *bridgeRig) wire() {
	must(r.b, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	bridge, err := netlink.LinkByName("br0")
	must(r.b, err)
	r.address("br0", rigHost+"/24", rigListed+"/32")
	for i, ns := range []netns.NsHandle{r.client, r.server} {
		name := "host" + itoa(i)
		must(r.b, netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns)),
		}))
		port, err := netlink.LinkByName(name)
		must(r.b, err)
		must(r.b, netlink.LinkSetMaster(port, bridge))
		must(r.b, netlink.LinkSetUp(port))
		r.ports = append(r.ports, port.Attrs().Index)
		r.portNames = append(r.portNames, name)
		r.in(ns, func() {
			r.address("lo")
			r.address("eth0", []string{rigClient, rigServer}[i]+"/24")
			eth0, err := netlink.LinkByName("eth0")
			must(r.b, err)
			r.macs = append(r.macs, eth0.Attrs().HardwareAddr)
			must(r.b, netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: addr4(rigHost)}))
		})
	}
	r.bridgeCallsIptables(false)
}

// address sets a device of the thread's namespace up and gives it addresses.
func (r *bridgeRig) address(name string, addrs ...string) {
	l, err := netlink.LinkByName(name)
	must(r.b, err)
	must(r.b, netlink.LinkSetUp(l))
	for _, a := range addrs {
		parsed, err := netlink.ParseAddr(a)
		must(r.b, err)
		must(r.b, netlink.AddrAdd(l, parsed))
	}
}

// bridgeCallsIptables lets bridged packets pass through iptables or not, as far as the kernel has that at all.
func (r *bridgeRig) bridgeCallsIptables(on bool) {
	value := map[bool]string{false: "0", true: "1"}[on]
	for _, f := range []string{"iptables", "ip6tables", "arptables"} {
		err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+f, []byte(value), 0)
		if err != nil && (on || !os.IsNotExist(err)) {
			r.b.Fatal(err)
		}
	}
}

// in runs f with the thread in a namespace; sockets that f opens and processes that it starts stay there.
func (r *bridgeRig) in(ns netns.NsHandle, f func()) {
	must(r.b, netns.Set(ns))
	defer func() { must(r.b, netns.Set(r.host)) }()
	f()
}

// run runs a command in the thread's namespaces with input, and returns what it printed.
func (r *bridgeRig) run(input string, command ...string) []byte {
	var out, fault bytes.Buffer
	c := exec.Command(command[0], command[1:]...)
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(input), &out, &fault
	if err := c.Run(); err != nil {
		r.b.Fatalf("%s: %v: %s%s", strings.Join(command, " "), err, out.Bytes(), fault.Bytes())
	}
	return out.Bytes()
}

// start starts a command that ends with the benchmark.
func (r *bridgeRig) start(command ...string) {
	c := exec.Command(command[0], command[1:]...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(r.b, c.Start())
	r.b.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
}

// awaitListener returns when iperf3 takes connections at an address.
func (r *bridgeRig) awaitListener(addr string) {
	var fd int
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		r.in(r.client, func() { fd = r.socket(unix.SOCK_STREAM) })
		err := unix.Connect(fd, sockaddr4(addr, 5201))
		_ = unix.Close(fd)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.b.Fatalf("iperf3 -s at %s: %v", addr, err)
		}
	}
}

// put puts a wall into force until clear.
func (r *bridgeRig) put(w wall) {
	r.wall = w
	w.put(r)
}

// clear takes away the filter that is in force.
func (r *bridgeRig) clear() {
	for len(r.undo) > 0 {
		last := len(r.undo) - 1
		r.undo[last]()
		r.undo = r.undo[:last]
	}
}

// atClear has f run by clear.
func (r *bridgeRig) atClear(f func()) { r.undo = append(r.undo, f) }
