package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/policy"
)

const targets = 4

// roundsPerConnection are so many that ports do not come again within the second for which a half-open connection is
// remembered, and that the conversations do not fill their table.
const roundsPerConnection = 64

// line sends in one direction, between sockets of both namespaces.
type line struct {
	dir policy.Direction
	// datagrams are sent by senders to sinks, one of each for each target, and answered.
	senders, sinks [targets]int
	listeners      [targets]int
	// segments gets a copy of every TCP packet that reaches the sinks' host.
	segments int
	// silent sinks answer no datagram.
	silent      bool
	connections int
	round       uint32
}

// ends are what a line goes between for a target: the sender's address and the sink's, with its port.
func (l *line) ends(target int) (from, to unix.SockaddrInet4) {
	peer := [4]byte{192, 0, 2, byte(101 + target)}
	container := [4]byte{192, 0, 2, 2}
	if l.dir == policy.Egress {
		return unix.SockaddrInet4{Addr: container}, unix.SockaddrInet4{Addr: peer, Port: 1001 + target}
	}
	return unix.SockaddrInet4{Addr: peer}, unix.SockaddrInet4{Addr: container, Port: 1001 + target}
}

// newLine opens the sockets of a line that begins in ends[dir] and ends in the other one. The thread is in home before
// and after.
func newLine(t *testing.T, dir policy.Direction, ends [2]netns.NsHandle, home netns.NsHandle) *line {
	t.Helper()
	l := &line{dir: dir}
	socket := func(kind, proto int) int {
		fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK, proto)
		must(t, err)
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	must(t, netns.Set(ends[1-dir]))
	sysctl(t, "ipv4/tcp_synack_retries", "0") // what is half open when a policy changes is soon forgotten
	l.segments = socket(unix.SOCK_RAW, unix.IPPROTO_TCP)
	for target := range targets {
		_, to := l.ends(target)
		l.sinks[target], l.listeners[target] = socket(unix.SOCK_DGRAM, 0), socket(unix.SOCK_STREAM, 0)
		must(t, unix.Bind(l.sinks[target], &to))
		must(t, unix.Bind(l.listeners[target], &to))
		must(t, unix.Listen(l.listeners[target], 64))
	}
	must(t, netns.Set(ends[dir]))
	for target := range targets {
		from, to := l.ends(target)
		l.senders[target] = socket(unix.SOCK_DGRAM, 0)
		must(t, unix.Bind(l.senders[target], &from))
		must(t, unix.Connect(l.senders[target], &to))
	}
	must(t, netns.Set(home))
	return l
}

// meet sends once to each target while nothing is filtered, so that everybody knows everybody's MAC.
func (l *line) meet() error {
	for target := range targets {
		if _, err := unix.Write(l.senders[target], []byte("meet")); err != nil {
			return err
		}
		if !readable(l.sinks[target], soon) {
			return fmt.Errorf("%s: nothing gets to target %d without a filter", l.dir, target+1)
		}
	}
	l.drain()
	return nil
}

func (l *line) drain() {
	b := make([]byte, 2048)
	for _, fd := range append(append([]int{l.segments}, l.sinks[:]...), l.senders[:]...) {
		for {
			if _, _, err := unix.Recvfrom(fd, b, 0); errors.Is(err, unix.EAGAIN) {
				break
			}
		}
	}
}

func readable(fd int, wait time.Duration) bool {
	deadline := time.Now().Add(wait)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ := unix.Poll(fds, int(time.Until(deadline).Milliseconds()))
		if n > 0 || !time.Now().Before(deadline) {
			return n > 0
		}
	}
}

// talk goes on until it is told to stop. The thread is where the senders are, and stays on its processor: what it sends
// arrives in order, and so what has not arrived before the last was dropped.
func (l *line) talk(s *flipped) error {
	for !s.stop.Load() {
		before := s.changes.Load()
		arrived, err := l.datagrams()
		if err != nil {
			return err
		}
		if err := l.explain("datagram", arrived, before, s.changes.Load()); err != nil {
			return err
		}
		if _, ok := inForce(before, s.changes.Load()); ok {
			s.certain[l.dir].Add(1)
		}
		s.rounds[l.dir].Add(1)
		if l.round%roundsPerConnection == 0 {
			before := s.changes.Load()
			arrived, err := l.connect()
			if err != nil {
				return err
			}
			if err := l.explain("connection", arrived, before, s.changes.Load()); err != nil {
				return err
			}
		}
	}
	return nil
}

// explain says by which policy what arrived arrived, where one held all the time: it lets the target pass that the other
// drops. Never any lets target 3 pass, nor drops 4.
func (l *line) explain(what string, arrived [targets]bool, from, to uint64) error {
	policy, ok := inForce(from, to)
	switch {
	case arrived[2]:
		return fmt.Errorf("%s, round %d: a %s arrived at target 3, which both policies drop", l.dir, l.round, what)
	case !arrived[3]:
		return fmt.Errorf("%s, round %d: a %s to target 4, which both policies let pass, did not arrive", l.dir, l.round, what)
	case ok && (arrived[policy] || !arrived[1-policy]):
		return fmt.Errorf("%s, round %d: under policy %d a %s arrived at targets %v", l.dir, l.round, policy+1, what, arrived)
	}
	return nil
}

// datagrams sends one to each target, the one that always arrives last, answers those that arrive, and tells of which
// the answer came back; with silent sinks, which arrived.
func (l *line) datagrams() (back [targets]bool, err error) {
	l.round++
	text := binary.BigEndian.AppendUint32(nil, l.round)
	for target, fd := range l.senders {
		// ECONNREFUSED would be an ICMP error, which nobody sends here; ENOBUFS is a drop at tc egress.
		if _, err := unix.Write(fd, text); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EPERM) {
			return back, fmt.Errorf("%s: send to target %d: %w", l.dir, target+1, err)
		}
	}
	if !readable(l.sinks[3], soon) {
		return back, nil
	}
	b := make([]byte, 16)
	for target, fd := range l.sinks {
		n, from, err := unix.Recvfrom(fd, b, 0)
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil || binary.BigEndian.Uint32(b[:n]) != l.round {
			return back, fmt.Errorf("%s, round %d: target %d got %x, %v", l.dir, l.round, target+1, b[:n], err)
		}
		if l.silent || target == 2 {
			back[target] = true
			continue
		}
		if err := unix.Sendto(fd, text, 0, from); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return back, fmt.Errorf("%s: answer of target %d: %w", l.dir, target+1, err)
		}
	}
	if l.silent || !readable(l.senders[3], soon) {
		return back, nil
	}
	for target, fd := range l.senders {
		if _, _, err := unix.Recvfrom(fd, b, 0); err == nil {
			back[target] = true
		}
	}
	return back, nil
}

// connect opens a connection to each target and tells which are open. None is asked for twice: one that needs a second
// SYN is not.
func (l *line) connect() (is [targets]bool, err error) {
	l.connections++
	var fds [targets]int
	for target := range fds {
		if fds[target], err = l.dial(target); err != nil {
			return is, err
		}
		defer reset(fds[target])
	}
	l.await(fds[3])
	for target, fd := range fds {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return is, err
		}
		const established = 1
		is[target] = info.State == established && info.Total_retrans == 0
	}
	for _, fd := range l.listeners {
		for {
			accepted, _, err := unix.Accept(fd)
			if err != nil {
				break
			}
			reset(accepted)
		}
	}
	is[2] = is[2] || l.segmentTo(1003)
	return is, nil
}

// await waits until a connection is open.
func (l *line) await(fd int) {
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(soon.Milliseconds()))
}

// dial begins a connection, from ports that come again after a thousand.
func (l *line) dial(target int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	from, to := l.ends(target)
	from.Port = 20000 + 1000*target + l.connections%1000
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, &from))
	if err == nil {
		if err = unix.Connect(fd, &to); errors.Is(err, unix.EINPROGRESS) {
			err = nil
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s: connect to target %d: %w", l.dir, target+1, err)
	}
	return fd, nil
}

// reset closes a connection for both sides at once.
func reset(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
}

// segmentTo reports whether a TCP packet to a port has reached the sinks' host since it was asked last.
func (l *line) segmentTo(port uint16) (found bool) {
	b := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(l.segments, b, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return found
		}
		if header := int(b[0]&15) * 4; n >= header+20 && binary.BigEndian.Uint16(b[header+2:]) == port {
			found = true
		}
	}
}
