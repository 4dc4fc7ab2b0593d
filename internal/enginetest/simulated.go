package enginetest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/docker/dockertest"
)

// CapDrop is the label of a simulated container that names the capability which it is started without.
const CapDrop = "test.cap-drop"

// Simulated is a host for more containers than an engine could run: a network namespace with bridges, an engine that
// runs nothing and says what it is told, and containers that are a network namespace and a veth, made in the order of engines
// from 28 on. Its methods may be called by several goroutines at once, for different containers.
type Simulated struct {
	*Vethwall
	// Says is the engine.
	Says *dockertest.Engine

	host     netns.NsHandle
	links    *netlink.Handle // of the host
	networks []docker.Network
	bridges  []int // ifindexes, by network

	made sync.Mutex // for what follows
	ends map[int]end
	next int // a number that no namespace has had as a file descriptor for long
}

// end is what a simulated container consists of.
type end struct {
	ns  int // file descriptor
	mac net.HardwareAddr
}

// perBridge is how many containers share a network; a bridge has room for 1,023.
const perBridge = 250

// Simulate makes a host with room for so many containers at a time, and puts the program there. No agent runs yet.
func Simulate(t testing.TB, room int) *Simulated {
	t.Helper()
	Need(t, os.Geteuid() == 0, "root")
	s := &Simulated{Says: dockertest.New(t), ends: map[int]end{}, next: firstUnique}
	var err error
	if s.host, err = s.namespace(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.removeHost)
	if s.links, err = netlink.NewHandleAt(s.host, unix.NETLINK_ROUTE); err != nil {
		t.Fatal(err)
	}
	for n := range (room + perBridge - 1) / perBridge {
		if err := s.addNetwork(n); err != nil {
			t.Fatal(err)
		}
	}
	d := &Docker{t: t, own: true, prefix: Prefix, Env: append(os.Environ(), "DOCKER_HOST="+s.Says.Host(), "DOCKER_CONTEXT=")}
	s.Vethwall = (&Engine{Docker: d, NetNS: s.path(int(s.host)), process: &process{}}).Install()
	return s
}

// path leads to what a file descriptor of this process is open on, for other processes, too.
func (s *Simulated) path(fd int) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd) }

// firstUnique is above all other file descriptors of a test.
const firstUnique = 1 << 14

// namespace makes a network namespace, with a path that no other has had for long.
func (s *Simulated) namespace() (netns.NsHandle, error) {
	fd, err := newNamespace()
	if err != nil {
		return netns.None(), err
	}
	defer unix.Close(fd)
	s.made.Lock()
	defer s.made.Unlock()
	unique, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, s.next)
	if errors.Is(err, unix.EINVAL) { // more than this process may have open: the first ones have long been closed
		unique, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstUnique)
	}
	s.next = unique + 1
	return netns.NsHandle(unique), err
}

func newNamespace() (fd int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with this
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}()
	<-done
	return fd, err
}

func (s *Simulated) removeHost() {
	if s.links != nil {
		s.links.Close()
	}
	for _, e := range s.ends {
		_ = unix.Close(e.ns)
	}
	_ = s.host.Close()
}

func (s *Simulated) addNetwork(n int) error {
	at := netip.MustParseAddr(fmt.Sprintf("2001:db8:0:%x::1", n))
	network := docker.Network{
		ID: strings.Repeat(fmt.Sprintf("%08x", n+1), 8), Name: fmt.Sprintf("net%d", n), Driver: "bridge", Bridge: fmt.Sprintf("br%d", n),
		Subnets: []netip.Prefix{netip.PrefixFrom(at, 64).Masked()}, Gateways: []netip.Addr{at},
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: network.Bridge}}
	if err := s.links.LinkAdd(bridge); err != nil {
		return err
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: at.AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}
	if err := s.links.AddrAdd(bridge, address); err != nil {
		return err
	}
	if err := s.links.LinkSetUp(bridge); err != nil {
		return err
	}
	s.networks, s.bridges = append(s.networks, network), append(s.bridges, bridge.Index)
	s.Says.PutNetwork(network)
	return nil
}

// NameOf is the name of a container by its number.
func NameOf(i int) string { return fmt.Sprintf("box%05d", i) }

// IDOf is its id.
func IDOf(i int) string { return strings.Repeat(fmt.Sprintf("%08x", i), 8) }

// Port is the name of the host's end of a container's veth.
func Port(i int) string { return fmt.Sprintf("veth%07x", i) }

func (s *Simulated) networkOf(i int) int { return i % len(s.networks) }

// container is what the engine says of one. Without an end it has not been started.
func (s *Simulated) container(i int, labels map[string]string, e end) docker.Container {
	n := s.networks[s.networkOf(i)]
	at := docker.Endpoint{Network: n.Name, NetworkID: n.ID, Driver: n.Driver}
	if e.mac != nil {
		address := n.Subnets[0].Addr().As16()
		copy(address[12:], e.mac[2:])
		at.EndpointID, at.MAC, at.Addrs, at.Gateways = IDOf(i), e.mac, []netip.Addr{netip.AddrFrom16(address)}, n.Gateways
	}
	var drop []string
	if name := labels[CapDrop]; name != "" {
		drop = []string{name}
	}
	return docker.Container{
		CapDrop: drop,
		ID:      IDOf(i), Name: NameOf(i), Labels: labels, Image: "image", ImageID: "sha256:" + strings.Repeat("1", 64), ImageKnown: true,
		ImageLabels: map[string]string{"org.opencontainers.image.title": "image"},
		NetworkMode: n.Name, Networks: []docker.Endpoint{at}, Runtime: "runc",
	}
}

// Create makes a container that does not run.
func (s *Simulated) Create(i int, labels map[string]string) {
	s.Says.Put(s.container(i, labels, end{}))
	s.Says.Emit(docker.ActionCreate, IDOf(i))
}

// Plug gives a container its namespace and its veth, as the engine does before the process runs, and returns when the kernel
// told of the port.
func (s *Simulated) Plug(i int, labels map[string]string) (ported time.Time, err error) {
	ns, err := s.namespace()
	if err != nil {
		return ported, err
	}
	e := end{int(ns), net.HardwareAddr{2, 0x42, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}}
	s.made.Lock()
	s.ends[i] = e
	s.made.Unlock()
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: Port(i)}, PeerName: "eth0", PeerNamespace: netlink.NsFd(e.ns), PeerHardwareAddr: e.mac,
	}
	if err := s.links.LinkAdd(veth); err != nil {
		return ported, err
	}
	s.Says.Put(s.container(i, labels, e))
	ported = time.Now()
	if err := s.links.LinkSetMasterByIndex(veth, s.bridges[s.networkOf(i)]); err != nil {
		return ported, err
	}
	if err := s.links.LinkSetUp(veth); err != nil {
		return ported, err
	}
	inside, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return ported, err
	}
	defer inside.Close()
	eth0, err := inside.LinkByName("eth0")
	if err != nil {
		return ported, err
	}
	return ported, inside.LinkSetUp(eth0)
}

// Run says that the process of a container that has been plugged in runs.
func (s *Simulated) Run(i int, labels map[string]string) {
	s.Put(i, labels)
	s.Says.EmitNetwork(docker.ActionConnect, s.networks[s.networkOf(i)].ID, IDOf(i))
	s.Says.Emit(docker.ActionStart, IDOf(i))
}

// Put is Run without a word about it.
func (s *Simulated) Put(i int, labels map[string]string) {
	s.made.Lock()
	e := s.ends[i]
	s.made.Unlock()
	c := s.container(i, labels, e)
	c.Running, c.Pid, c.StartedAt = true, 1<<23+i, time.Now() // nobody's process: numbers end below
	c.SandboxKey = s.path(e.ns)
	c.SandboxID = fmt.Sprintf("%064x", e.ns)
	s.Says.Put(c)
}

// Remove ends a container and takes it away, as docker rm --force does.
func (s *Simulated) Remove(i int) error {
	s.made.Lock()
	e := s.ends[i]
	delete(s.ends, i)
	s.made.Unlock()
	veth, err := s.links.LinkByName(Port(i))
	if err != nil {
		return err
	}
	s.Says.Remove(IDOf(i))
	if err := s.links.LinkDel(veth); err != nil {
		return err
	}
	_ = unix.Close(e.ns)
	s.Says.EmitNetwork(docker.ActionDisconnect, s.networks[s.networkOf(i)].ID, IDOf(i))
	s.Says.Emit(docker.ActionDie, IDOf(i))
	s.Says.Emit(docker.ActionDestroy, IDOf(i))
	return nil
}

// Inside runs f on a thread of its own in the host's namespace.
func (s *Simulated) Inside(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		err := netns.Set(s.host)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}
