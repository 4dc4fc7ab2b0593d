package xdp

import (
	"encoding/binary"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// rawEnd sends and receives whole frames on a device.
type rawEnd struct {
	t    *testing.T
	fd   int
	to   unix.SockaddrLinklayer
	from []byte
}

// newRawEnd opens a socket on a device of the thread's namespace. It receives what comes in there from now on.
func newRawEnd(t *testing.T, device string) *rawEnd {
	t.Helper()
	l, err := netlink.LinkByName(device)
	must(t, err)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	const everything = 0x0300 // ETH_P_ALL in network byte order
	must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: l.Attrs().Index}))
	return &rawEnd{t: t, fd: fd, to: unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Halen: 6}, from: make([]byte, 1<<16)}
}

func (e *rawEnd) send(frame []byte) {
	e.t.Helper()
	to := e.to
	to.Protocol = binary.NativeEndian.Uint16(frame[12:])
	copy(to.Addr[:], frame)
	// ENOBUFS is how a sender hears of a drop at tc egress.
	if err := unix.Sendto(e.fd, frame, 0, &to); err != unix.ENOBUFS {
		must(e.t, err)
	}
}

// receive returns the next frame that came in, which is good until the next call; nil after the wait.
func (e *rawEnd) receive(wait time.Duration) []byte {
	e.t.Helper()
	for deadline := time.Now().Add(wait); ; {
		n, from, err := unix.Recvfrom(e.fd, e.from, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN || err == unix.EINTR {
			left := time.Until(deadline)
			if left <= 0 {
				return nil
			}
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
			continue
		}
		must(e.t, err)
		if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype != unix.PACKET_OUTGOING {
			return e.from[:n]
		}
	}
}

// onCPU keeps the thread on the nth of the processors that it may use, modulo how many there are, so that frames which it sends
// one after the other stay in their order. The caller has locked the goroutine to a thread that ends with the test.
func onCPU(nth int) error {
	var may, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return err
	}
	for cpu, left := 0, nth%may.Count(); ; cpu++ {
		if !may.IsSet(cpu) {
			continue
		}
		if left == 0 {
			one.Set(cpu)
			return unix.SchedSetaffinity(0, &one)
		}
		left--
	}
}

// sysctl sets a value below /proc/sys/net, in the thread's namespace. One that the kernel does not have stays so.
func sysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
}

// silence keeps the kernel's own IPv6 packets off the devices of the thread's namespace.
func silence(t *testing.T) {
	t.Helper()
	sysctl(t, "ipv6/conf/all/disable_ipv6", "1")
	sysctl(t, "ipv6/conf/default/disable_ipv6", "1")
}

// TestMalformedOnAWire sends the table of unusual frames through a veth, which takes shorter ones than
// BPF_PROG_TEST_RUN, and compares what is counted with the specification. At tc ingress the first VLAN tag is not in the
// packet any more.
func TestMalformedOnAWire(t *testing.T) {
	n := newNetwork(t)
	must(t, onCPU(0))
	silence(t)
	host := newRawEnd(t, "host0")
	var container *rawEnd
	n.inContainer(func() {
		silence(t)
		container = newRawEnd(t, "eth0")
	})
	f := open(t, bpffs(t))
	defer f.Close()
	for _, mode := range []Mode{Generic, Native, TCX} {
		must(t, f.Detach(n.host.Index))
		for _, labels := range []string{policytest.AllowList, policytest.DropList} {
			stack := stackOf(t, labels)
			tables, err := Compile(stack)
			must(t, err)
			tables.flags &^= flagStateful
			tables.seal()
			must(t, f.Attach(n.host.Index, Want{Policy: tables, Mode: mode}))
			w := wireCheck{t: t, f: f, ifindex: n.host.Index, stack: stack, name: string(mode) + ", " + labels}
			for _, section := range policytest.Unusual {
				for _, row := range section.Rows {
					for _, frame := range row.Frames(policytest.Sent()) {
						w.check(row.Name, policy.Egress, container, frame, mode == TCX)
					}
					for _, frame := range row.Frames(policytest.Received()) {
						w.check(row.Name, policy.Ingress, host, frame, false)
					}
				}
			}
			t.Logf("%s: %d frames", w.name, w.frames)
		}
	}
}

// wireCheck sends frames one at a time and looks at the counters of a device.
type wireCheck struct {
	t       *testing.T
	f       *Filter
	ifindex int
	stack   policy.Stack
	name    string
	frames  int
}

// check sends a frame and waits until it has been counted. untagged: the hook sees it without its first tag.
func (w *wireCheck) check(row string, dir policy.Direction, from *rawEnd, frame []byte, untagged bool) {
	w.t.Helper()
	seen := frame
	if ethertype := binary.BigEndian.Uint16(frame[12:]); untagged && (ethertype == 0x8100 || ethertype == 0x88a8) {
		if len(frame) < 14+4+2 {
			return // the kernel drops it before any hook
		}
		seen = append(frame[:12:12], frame[16:]...)
	}
	want := w.stack.Verdict(dir, seen)
	before := w.counts()
	from.send(frame)
	w.frames++
	for deadline := time.Now().Add(soon); ; {
		var got []Count
		for _, c := range w.counts() {
			if c.Packets > before[key(c)].Packets {
				got = append(got, c)
			}
		}
		if len(got) == 1 && got[0].Packets == before[key(got[0])].Packets+1 && got[0].Reason == want.Reason && (got[0].Direction == dir) {
			return
		}
		if len(got) > 0 || time.Now().After(deadline) {
			w.t.Errorf("%s: %s, %s: counted %v, want %v\n%x", w.name, row, dir, got, want, frame)
			return
		}
	}
}

// key names a counter.
func key(c Count) Count { return Count{Direction: c.Direction, Reason: c.Reason, Slot: c.Slot} }

func (w *wireCheck) counts() map[Count]Count {
	w.t.Helper()
	list, err := readCounts(w.f.objs.Counters, w.f.maps.devices[w.ifindex].Counters)
	must(w.t, err)
	out := map[Count]Count{}
	for _, c := range list {
		out[key(c)] = c
	}
	return out
}
