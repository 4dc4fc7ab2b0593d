package main

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/internal/enginetest"
)

// chaosPorts are where containers send all the time, each datagram with the name of its sender.
var chaosPorts = [2]int{5000, 5001}

// byPort says something of each of chaosPorts.
type byPort [2]bool

// leakDetector receives on the host of an engine, beside every bridge, whatever becomes of the engine. What a container is
// forbidden and arrives all the same is caught in that moment.
type leakDetector struct {
	conns [2]net.PacketConn
	back  [2]net.Conn // to conns, from the host itself

	mu        sync.Mutex
	arrived   map[string][2]int
	forbidden map[string]byPort
	caught    []string
	step      string // what is being done
	marks     int
}

func newLeakDetector(t *testing.T, v *enginetest.Vethwall) *leakDetector {
	t.Helper()
	d := &leakDetector{arrived: map[string][2]int{}, forbidden: map[string]byPort{}}
	if err := inNamespace(v.Engine.NetNS, d.open); err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	t.Cleanup(func() {
		for i := range d.conns {
			_, _ = d.conns[i].Close(), d.back[i].Close()
		}
		readers.Wait()
	})
	for i, conn := range d.conns {
		readers.Go(func() { d.read(i, conn) })
	}
	return d
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

func (d *leakDetector) open() error {
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

// forbid replaces what a container is forbidden. What had arrived before must have been read.
func (d *leakDetector) forbid(name string, ports byPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forbidden[name] = ports
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
