package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// parse reads flags and exactly n words after them.
func parse(f *flag.FlagSet, args []string, n int) error {
	f.SetOutput(io.Discard)
	if err := f.Parse(args); err != nil || f.NArg() != n {
		return fmt.Errorf("%w: %s %v", errUsage, f.Name(), args)
	}
	return nil
}

func udpSend(args []string) error {
	f := flag.NewFlagSet("udp-send", flag.ContinueOnError)
	n := f.Int("n", 1, "how many")
	every := f.Duration("every", 10*time.Millisecond, "time between two")
	from := f.Int("from", 0, "source port, 0 for any")
	echo := f.Duration("echo", 0, "how long to wait for an echo")
	if err := parse(f, args, 2); err != nil {
		return err
	}
	d := net.Dialer{LocalAddr: &net.UDPAddr{Port: *from}}
	conn, err := d.Dial("udp", f.Arg(0))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	for i := range *n {
		if i > 0 {
			time.Sleep(*every)
		}
		// An ICMP error for an earlier datagram is reported here; the later ones are sent all the same.
		if _, err := conn.Write([]byte(f.Arg(1))); err != nil && i == 0 {
			return err
		}
	}
	if *echo == 0 {
		return nil
	}
	return readEcho(conn, *echo, f.Arg(1))
}

// beacon binds to no address, so that each datagram leaves by the networks of its moment. That there is no way to an
// address now is no error. To what it receives on its port it answers its text with a ! behind it, to every address.
func beacon(args []string) error {
	f := flag.NewFlagSet("beacon", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	every := f.Duration("every", 20*time.Millisecond, "time between two to the same address")
	port := f.Int("port", 0, "the port of its own, 0 for any")
	if err := f.Parse(args); err != nil || f.NArg() < 2 {
		return fmt.Errorf("%w: beacon %v", errUsage, args)
	}
	conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: *port})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	var to []net.Addr
	for _, text := range f.Args()[1:] {
		addr, err := netip.ParseAddrPort(text)
		if err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		to = append(to, net.UDPAddrFromAddrPort(addr))
	}
	send := func(text string) {
		for _, addr := range to {
			_, _ = conn.WriteTo([]byte(text), addr)
		}
	}
	go func() { waitForTerm(); os.Exit(0) }()
	go func() {
		for buf := make([]byte, 64); ; {
			if _, _, err := conn.ReadFrom(buf); err == nil {
				send(f.Arg(0) + "!")
			}
		}
	}()
	for ; ; time.Sleep(*every) {
		send(f.Arg(0))
	}
}

func tcpDial(args []string) error {
	f := flag.NewFlagSet("tcp-dial", flag.ContinueOnError)
	wait := f.Duration("wait", 2*time.Second, "how long to wait, for the connection and for the echo")
	if err := parse(f, args, 2); err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", f.Arg(0), *wait)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte(f.Arg(1))); err != nil {
		return err
	}
	return readEcho(conn, *wait, f.Arg(1))
}

// tcpTalk never dials again: that it goes on means that its connection lives.
func tcpTalk(args []string) error {
	f := flag.NewFlagSet("tcp-talk", flag.ContinueOnError)
	if err := parse(f, args, 2); err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", f.Arg(0), 10*time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	for {
		if _, err := conn.Write([]byte(f.Arg(1))); err != nil {
			return err
		}
		if err := readEcho(conn, 30*time.Second, f.Arg(1)); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func readEcho(conn net.Conn, wait time.Duration, want string) error {
	_ = conn.SetReadDeadline(time.Now().Add(wait))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil {
		return fmt.Errorf("no echo: %w", err)
	}
	if string(got) != want {
		return fmt.Errorf("echo %q, sent %q", got, want)
	}
	return nil
}

// pings tells those of one process apart.
var pings atomic.Uint32

// ping sends one ICMP echo request (RFC 792, RFC 4443) through a raw socket.
func ping(args []string) error {
	f := flag.NewFlagSet("ping", flag.ContinueOnError)
	wait := f.Duration("wait", 2*time.Second, "how long to wait for the reply")
	if err := parse(f, args, 1); err != nil {
		return err
	}
	addr, err := netip.ParseAddr(f.Arg(0))
	if err != nil {
		return err
	}
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if addr.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	conn, err := net.Dial(network, addr.String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	msg := echoRequest(request, uint16(os.Getpid())^uint16(pings.Add(1)))
	if _, err := conn.Write(msg); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(*wait))
	buf := make([]byte, 1<<12)
	for {
		n, _, err := conn.(*net.IPConn).ReadFrom(buf) // without the IPv4 header
		if err != nil {
			return fmt.Errorf("no reply from %s: %w", addr, err)
		}
		if n >= 8 && buf[0] == reply && bytes.Equal(buf[4:n], msg[4:]) {
			return nil
		}
	}
}

// echoRequest carries the checksum of ICMP over IPv4; for ICMPv6 the kernel writes its own over it.
func echoRequest(kind byte, id uint16) []byte {
	msg := []byte{kind, 0, 0, 0, 0, 0, 0, 1, 'v', 'e', 't', 'h', 'w', 'a', 'l', 'l'}
	binary.BigEndian.PutUint16(msg[4:], id)
	var sum uint32
	for i := 0; i < len(msg); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(msg[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(msg[2:], ^uint16(sum+sum>>16))
	return msg
}

// resolve prints the addresses that names have, one after the other.
func resolve(names []string) error {
	if len(names) == 0 {
		return errUsage
	}
	var errs []error
	for _, name := range names {
		ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
		addrs, err := net.DefaultResolver.LookupHost(ctx, name)
		cancel()
		errs = append(errs, err)
		fmt.Println(strings.Join(addrs, " "))
	}
	return errors.Join(errs...)
}

// query never returns.
func query(args []string) error {
	if len(args) != 1 {
		return errUsage
	}
	go func() { waitForTerm(); os.Exit(0) }()
	message := []byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0} // one question, recursion desired
	for label := range strings.SplitSeq(args[0], ".") {
		message = append(append(message, byte(len(label))), label...)
	}
	message = append(message, 0, 0, 1, 0, 1) // A, IN
	for {
		// A flow that began before the resolver was there does not get there.
		conn, err := net.Dial("udp", "127.0.0.11:53")
		if err != nil {
			continue
		}
		_, _ = conn.Write(message)
		_ = conn.Close()
		time.Sleep(time.Millisecond)
	}
}
