package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/internal/enginetest"
)

// chaosPorts are where containers send all the time, each datagram with the name of its sender. On chaosPort they receive, and
// what they have received they tell with a ! behind the name.
var (
	chaosPorts = [2]int{5000, 5001}
	chaosPort  = 5002
)

// byPort says something of each of chaosPorts.
type byPort [2]bool

// leakDetector receives on the host of an engine, beside every bridge, whatever becomes of the engine. What a container is
// forbidden and arrives all the same is caught in that moment.
type leakDetector struct {
	conns [2]net.PacketConn
	back  [2]net.Conn // to conns, from the host itself
	probe net.PacketConn

	mu        sync.Mutex
	arrived   map[string][2]int
	forbidden map[string]byPort
	senders   map[netip.Addr]time.Time // when somebody was heard last
	caught    []string
	step      string // what is being done
	marks     int
}

func newLeakDetector(t *testing.T, v *enginetest.Vethwall) *leakDetector {
	t.Helper()
	d := &leakDetector{arrived: map[string][2]int{}, forbidden: map[string]byPort{}, senders: map[netip.Addr]time.Time{}}
	if err := inNamespace(v.Engine.NetNS, d.open); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	ended := make(chan struct{})
	t.Cleanup(func() {
		close(ended)
		for i := range d.conns {
			_, _ = d.conns[i].Close(), d.back[i].Close()
		}
		_ = d.probe.Close()
		all.Wait()
	})
	for i, conn := range d.conns {
		all.Go(func() { d.read(i, conn) })
	}
	all.Go(func() { d.ask(ended) })
	return d
}

// ask sends to everybody who has been heard of late, again and again, from the host.
func (d *leakDetector) ask(ended chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case <-time.After(50 * time.Millisecond):
		}
		d.mu.Lock()
		maps.DeleteFunc(d.senders, func(_ netip.Addr, heard time.Time) bool { return time.Since(heard) > time.Second })
		senders := slices.Collect(maps.Keys(d.senders))
		d.mu.Unlock()
		for _, addr := range senders {
			_, _ = d.probe.WriteTo([]byte("?"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, uint16(chaosPort))))
		}
	}
}

// inNamespace calls f on a thread that is in a network namespace and ends with it.
func inNamespace(path string, f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}

func (d *leakDetector) open() (err error) {
	if d.probe, err = net.ListenPacket("udp", ":0"); err != nil {
		return err
	}
	for i, port := range chaosPorts {
		conn, err := new(net.ListenConfig).ListenPacket(context.Background(), "udp", ":"+strconv.Itoa(port))
		if err != nil {
			return err
		}
		d.conns[i] = conn
		if err := conn.(*net.UDPConn).SetReadBuffer(8 << 20); err != nil {
			return err
		}
		if d.back[i], err = net.Dial("udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err != nil {
			return err
		}
	}
	return nil
}

func (d *leakDetector) read(i int, conn net.PacketConn) {
	buf := make([]byte, 1<<10)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		name := string(buf[:n])
		d.mu.Lock()
		if addr := from.(*net.UDPAddr).AddrPort().Addr().Unmap(); !addr.IsLoopback() {
			d.senders[addr] = time.Now()
		}
		counts := d.arrived[name]
		counts[i]++
		d.arrived[name] = counts
		if d.forbidden[name][i] && len(d.caught) < 20 {
			d.caught = append(d.caught, fmt.Sprintf("%s to port %d, from %s, while: %s", name, chaosPorts[i], from, d.step))
		}
		d.mu.Unlock()
	}
}

// mark returns when everything has been read that had arrived before.
func (d *leakDetector) mark(t *testing.T, v *enginetest.Vethwall) {
	t.Helper()
	d.marks++
	text := fmt.Sprint("mark ", d.marks)
	v.Wait(text, func() error {
		for _, conn := range d.back {
			if _, err := conn.Write([]byte(text)); err != nil {
				return err
			}
		}
		if n := d.count(text); n[0] == 0 || n[1] == 0 {
			return fmt.Errorf("%v", n)
		}
		return nil
	})
}

func (d *leakDetector) count(name string) [2]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.arrived[name]
}

// forbid replaces what a container is forbidden to send, and whether it is to receive. What had arrived before must have
// been read.
func (d *leakDetector) forbid(name string, ports byPort, deaf bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forbidden[name] = ports
	d.forbidden[name+"!"] = byPort{ports[0] || deaf, ports[1] || deaf}
}

func (d *leakDetector) forbids(name string) byPort {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.forbidden[name]
}

// during names what is done from now on.
func (d *leakDetector) during(step string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.step = step
}

func (d *leakDetector) leaks() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.caught)
}
