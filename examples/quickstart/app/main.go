// App is what the examples run: it answers, or asks and says what was answered.
//
//	app echo         answer on 7000/udp and 7000/tcp
//	app ask HOST     ask HOST once by either way
//	app watch HOST   ask again every second
//	app burst HOST   ask 100 times within a second over UDP, and say whether all were answered
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"time"
)

const port = "7000"

func main() {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "echo":
		log.Fatal(echo())
	case len(os.Args) == 3 && os.Args[1] == "ask":
		ask(os.Args[2])
	case len(os.Args) == 3 && os.Args[1] == "watch":
		for {
			ask(os.Args[2])
			time.Sleep(time.Second)
		}
	case len(os.Args) == 3 && os.Args[1] == "burst":
		burst(os.Args[2])
	default:
		log.Fatal("usage: app echo | app ask HOST | app watch HOST | app burst HOST")
	}
}

func ask(host string) {
	for _, network := range []string{"udp", "tcp"} {
		if err := answered(network, host); err != nil {
			fmt.Println(network, "no answer")
		} else {
			fmt.Println(network, "answer")
		}
	}
}

func burst(host string) {
	const asked = 100
	conn, err := net.Dial("udp", net.JoinHostPort(host, port))
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	go func() {
		for range asked {
			_, _ = conn.Write([]byte("hello"))
			time.Sleep(time.Second / asked)
		}
	}()
	answers := 0
	_ = conn.SetReadDeadline(time.Now().Add(3 * time.Second))
	for ; answers < asked; answers++ {
		if _, err := conn.Read(make([]byte, len("hello"))); err != nil {
			break
		}
	}
	how := map[int]string{0: "none", asked: "all"}[answers]
	if how == "" {
		how = "some"
	}
	fmt.Println(how, "of", asked, "answered")
}

func answered(network, host string) error {
	conn, err := net.DialTimeout(network, net.JoinHostPort(host, port), time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, len("hello")))
	return err
}

func echo() error {
	packets, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 1500)
		for {
			if n, from, err := packets.ReadFrom(buf); err == nil {
				_, _ = packets.WriteTo(buf[:n], from)
			}
		}
	}()
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = conn.Close() }()
			_, _ = io.Copy(conn, conn)
		}()
	}
}
