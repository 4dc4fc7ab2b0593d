// Peer is the only program in the images of engine tests: what containers send, and what they receive,
// is done by it. It is linked statically, because such an image holds nothing else.
//
//	peer sleep                              do nothing until SIGTERM
//	peer serve PORT/PROTO...                receive, echo and record on udp and tcp ports
//	peer received                           print what serve, in the same network namespace, has received
//	peer udp-send [flags] ADDR:PORT TEXT    send datagrams; with -echo wait for one to come back
//	peer tcp-dial [flags] ADDR:PORT TEXT    connect, send, wait for the echo
//	peer tcp-talk ADDR:PORT TEXT            connect once, and send and wait for the echo without end
//	peer ping [flags] ADDR                  ICMP echo request, wait for the reply
//	peer raw DEVICE FRAME...                send Ethernet frames, in hexadecimal, as they are
//	peer past macvlan HOST LOWER NAME       make a macvlan on a device of the host's, by CAP_NET_ADMIN; HOST is the
//	                                        number that this network namespace has for the host's
//	peer past port HOST BRIDGE NAME PEER    make a veth of which one end is a port of a bridge of the host's
//	peer past delete HOST IFINDEX           delete a device of the host's
//	peer many COMMAND... -- COMMAND...      do several of the above at once; prints a JSON list of their
//	                                        errors, "" for what worked
//	peer resolve NAME                       ask the resolver of /etc/resolv.conf for the addresses of NAME
//	peer query NAME                         ask the engine's resolver for NAME without end, whether it is there or not
//	peer loop-send ADDR:PORT TEXT           send datagrams from the first instruction on, without end
//	peer beacon [flags] TEXT ADDR:PORT...   the same to several addresses at intervals, by whatever networks there are
//
// Exit code 0 means that it worked, 1 that no answer came, 2 wrong usage. That something did *not*
// arrive is asked of the receiver (received), never concluded from a sender's failure.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
)

var errUsage = errors.New("wrong usage; a command is one of sleep, serve, received, udp-send, tcp-dial, tcp-talk, ping, resolve, query, many, loop-send, beacon")

func main() {
	if len(os.Args) == 4 && os.Args[1] == "loop-send" {
		loopSend(os.Args[2], []byte(os.Args[3]))
	}
	err := run(os.Args[1:])
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "peer:", err)
	if errors.Is(err, errUsage) {
		os.Exit(2)
	}
	os.Exit(1)
}

func run(args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	cmd, args := args[0], args[1:]
	switch cmd {
	case "sleep":
		waitForTerm()
		return nil
	case "serve":
		return serve(args)
	case "received":
		return printReceived()
	case "udp-send":
		return udpSend(args)
	case "tcp-dial":
		return tcpDial(args)
	case "tcp-talk":
		return tcpTalk(args)
	case "ping":
		return ping(args)
	case "resolve":
		return resolve(args)
	case "query":
		return query(args)
	case "raw":
		return raw(args)
	case "past":
		return past(args)
	case "many":
		return many(args)
	case "beacon":
		return beacon(args)
	}
	return errUsage
}

// many runs commands, separated by "--", beside each other.
func many(args []string) error {
	var commands [][]string
	for _, cmd := range strings.Split(strings.Join(args, "\x00"), "\x00--\x00") {
		commands = append(commands, strings.Split(cmd, "\x00"))
	}
	errs := make([]string, len(commands))
	var all sync.WaitGroup
	for i, cmd := range commands {
		all.Go(func() {
			if err := run(cmd); err != nil {
				errs[i] = err.Error()
			}
		})
	}
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(errs)
}

// waitForTerm: the first process of a container ignores every signal that it has not asked for.
func waitForTerm() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
	<-c
}

// loopSend never returns. What goes wrong, such as a network that is not up yet, is tried again.
func loopSend(addr string, text []byte) {
	go func() { waitForTerm(); os.Exit(0) }()
	for {
		conn, err := net.Dial("udp", addr)
		if err != nil {
			continue
		}
		for {
			if _, err := conn.Write(text); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
				break
			}
		}
		_ = conn.Close()
	}
}
