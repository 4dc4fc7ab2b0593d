package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
)

// door is where received asks: an abstract socket, which belongs to the network namespace and which no
// packet filter sees.
const door = "@vethwall-peer"

// arrival is a kind of thing received. For tcp, Text is what came in one piece, and a connection on
// which nothing came is counted with an empty Text.
type arrival struct {
	Proto string     // "udp" or "tcp"
	Port  uint16     // where it arrived
	From  netip.Addr // who sent it
	Text  string
}

// log counts arrivals.
type log struct {
	mu    sync.Mutex
	count map[arrival]int
}

func (l *log) add(proto string, local, remote net.Addr, text []byte) {
	from := netip.MustParseAddrPort(remote.String()).Addr().Unmap().WithZone("")
	port := netip.MustParseAddrPort(local.String()).Port()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count[arrival{proto, port, from, string(text)}]++
}

// counted is one line of received's answer.
type counted struct {
	arrival
	Count int
}

func (l *log) snapshot() []counted {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := []counted{}
	for a, n := range l.count {
		out = append(out, counted{a, n})
	}
	return out
}

// serve opens the ports first and the door last: who gets an answer from the door finds every port
// open.
func serve(ports []string) error {
	l := &log{count: map[arrival]int{}}
	for _, p := range ports {
		port, proto, _ := strings.Cut(p, "/")
		var err error
		switch proto {
		case "udp":
			err = l.udp(":" + port)
		case "tcp":
			err = l.tcp(":" + port)
		default:
			err = fmt.Errorf("%w: %q is not PORT/udp or PORT/tcp", errUsage, p)
		}
		if err != nil {
			return err
		}
	}
	listener, err := net.Listen("unix", door)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = json.NewEncoder(conn).Encode(l.snapshot())
			_ = conn.Close()
		}
	}()
	waitForTerm()
	return nil
}

func (l *log) udp(addr string) error {
	conn, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				continue // an ICMP error for an earlier echo
			}
			l.add("udp", conn.LocalAddr(), from, buf[:n])
			_, _ = conn.WriteTo(buf[:n], from)
		}
	}()
	return nil
}

func (l *log) tcp(addr string) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go l.echo(conn)
			}
		}
	}()
	return nil
}

func (l *log) echo(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	buf := make([]byte, 1<<12)
	for first := true; ; first = false {
		n, err := conn.Read(buf)
		if n > 0 || first {
			l.add("tcp", conn.LocalAddr(), conn.RemoteAddr(), buf[:n])
		}
		if err != nil {
			return
		}
		_, _ = conn.Write(buf[:n])
	}
}

func printReceived() error {
	conn, err := net.Dial("unix", door)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_, err = io.Copy(os.Stdout, conn)
	return err
}
