package xdp

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// How much one measurement of a load is. Short ones take turns more often, so that a machine that becomes slower meets
// all alike.
const (
	bulkBytes  = "400M"
	askTime    = 300 * time.Millisecond
	floodTime  = 300 * time.Millisecond
	victimTime = 500 * time.Millisecond
	// victimPause makes the victim sleep between its requests, as most who wait for requests do.
	victimPause = 200 * time.Microsecond
)

// benchCore is where all loads run, both ends of each, and so the softirqs between them: the figures are what one core
// does.
var benchCore = runtime.NumCPU() - 1

// load measures one thing or more of what stands on a bridgeRig.
type load struct {
	figures []figure
	measure func(*bridgeRig) []float64
}

type figure struct {
	name, unit string
	digits     int
}

// loads in groups that are measured one after the other on the same wall.
var loads = [][]load{
	{
		{[]figure{{"bulk sent", "Gb/s", 1}}, func(r *bridgeRig) []float64 { return r.bulk(rigHost, false) }},
		{[]figure{{"bulk received", "Gb/s", 1}}, func(r *bridgeRig) []float64 { return r.bulk(rigHost, true) }},
		{[]figure{{"bulk between", "Gb/s", 1}}, func(r *bridgeRig) []float64 { return r.bulk(rigServer, false) }},
	},
	{
		{[]figure{{"requests to host", "1/s", 0}}, func(r *bridgeRig) []float64 { return r.requests(r.host, rigHost) }},
		{[]figure{{"requests between", "1/s", 0}}, func(r *bridgeRig) []float64 { return r.requests(r.server, rigServer) }},
		{[]figure{{"flood", "1/s", 0}}, (*bridgeRig).flooded},
		{[]figure{{"victim median", "us", 1}, {"victim p99", "us", 0}}, (*bridgeRig).victim},
	},
}

// bulk is the TCP throughput that iperf3 finds for the client, in Gb/s.
func (r *bridgeRig) bulk(peer string, receives bool) []float64 {
	command := []string{"iperf3", "-c", peer, "-J", "-n", bulkBytes, "-A", fmt.Sprintf("%d,%d", benchCore, benchCore)}
	if receives {
		command = append(command, "-R")
	}
	var out []byte
	r.in(r.client, func() { out = r.run("", command...) })
	var result struct {
		End struct {
			Sum struct {
				BPS float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	must(r.b, json.Unmarshal(out, &result))
	if result.End.Sum.BPS == 0 {
		r.b.Fatalf("iperf3 has measured nothing: %s", out)
	}
	return []float64{result.End.Sum.BPS / 1e9}
}

// talk is a TCP connection to an echo.
type talk struct {
	b      *testing.B
	asker  int
	echoed chan struct{}
}

// dial connects one namespace to an address in another, where a thread echoes until close.
func (r *bridgeRig) dial(from, to netns.NsHandle, addr string) *talk {
	var listener int
	r.in(to, func() { listener = r.socket(unix.SOCK_STREAM) })
	defer unix.Close(listener)
	must(r.b, unix.Bind(listener, sockaddr4(addr, 0)))
	must(r.b, unix.Listen(listener, 1))
	bound, err := unix.Getsockname(listener)
	must(r.b, err)
	t := &talk{b: r.b, echoed: make(chan struct{})}
	r.in(from, func() { t.asker = r.socket(unix.SOCK_STREAM) })
	must(r.b, unix.Connect(t.asker, bound))
	echo, _, err := unix.Accept(listener)
	must(r.b, err)
	for _, fd := range []int{t.asker, echo} {
		must(r.b, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	}
	go onBenchCore(func() {
		defer close(t.echoed)
		defer unix.Close(echo)
		buf := make([]byte, 1)
		for {
			if n, err := unix.Read(echo, buf); n != 1 || err != nil {
				return
			}
			if _, err := unix.Write(echo, buf); err != nil {
				return
			}
		}
	})
	return t
}

func (r *bridgeRig) socket(kind int) int {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	must(r.b, err)
	return fd
}

func sockaddr4(addr string, port int) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: netip.MustParseAddr(addr).As4(), Port: port}
}

// ask sends one byte and waits for it to come back, again and again for a time; it returns how long each took.
func (t *talk) ask(during, pause time.Duration) (took []time.Duration) {
	done := make(chan error)
	go onBenchCore(func() {
		buf := []byte{1}
		start := time.Now()
		for asked := start; asked.Sub(start) < during; asked = time.Now() {
			if _, err := unix.Write(t.asker, buf); err != nil {
				done <- err
				return
			}
			if n, err := unix.Read(t.asker, buf); n != 1 || err != nil {
				done <- fmt.Errorf("the echo has gone: %w", err)
				return
			}
			took = append(took, time.Since(asked))
			if pause > 0 {
				ts := unix.NsecToTimespec(int64(pause))
				_ = unix.Nanosleep(&ts, nil)
			}
		}
		done <- nil
	})
	must(t.b, <-done)
	return took
}

func (t *talk) close() {
	must(t.b, unix.Close(t.asker))
	<-t.echoed
}

// onBenchCore runs f on a thread that stays on benchCore, and ends with f.
func onBenchCore(f func()) {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(benchCore)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		panic(err) // the machine has fewer cores than a moment ago
	}
	f()
}

// requests is how many TCP requests of one byte are answered in a second.
func (r *bridgeRig) requests(to netns.NsHandle, addr string) []float64 {
	t := r.dial(r.client, to, addr)
	defer t.close()
	return []float64{float64(len(t.ask(askTime, 0))) / askTime.Seconds()}
}

// flood starts to send 32-byte datagrams from the client to the listed address. stop ends it and returns how many a
// second were sent.
func (r *bridgeRig) flood() (stop func() float64) {
	var fd int
	r.in(r.client, func() { fd = r.socket(unix.SOCK_DGRAM) })
	must(r.b, unix.Connect(fd, sockaddr4(rigListed, floodPort)))
	var enough atomic.Bool
	rate := make(chan float64)
	go onBenchCore(func() {
		defer unix.Close(fd)
		payload := make([]byte, 32)
		start, n := time.Now(), 0
		for ; !enough.Load(); n++ {
			_, _ = unix.Write(fd, payload) // what is not sent does not arrive, which the caller sees
		}
		rate <- float64(n) / time.Since(start).Seconds()
	})
	return func() float64 {
		enough.Store(true)
		return <-rate
	}
}

// flooded is how many datagrams a second are sent, and dropped where the wall drops them.
func (r *bridgeRig) flooded() []float64 {
	stop := r.flood()
	time.Sleep(floodTime)
	rate := stop()
	if arrived := r.drain(); arrived != r.wall.delivers {
		r.b.Fatalf("%s: the flood arrives: %v, want %v", r.wall.name, arrived, r.wall.delivers)
	}
	return []float64{rate}
}

// victim is the median and the 99th percentile of the time, in us, that the server's requests to the host take while
// the client floods.
func (r *bridgeRig) victim() []float64 {
	t := r.dial(r.server, r.host, rigHost)
	defer t.close()
	stop := r.flood()
	took := t.ask(victimTime, victimPause)
	stop()
	r.drain()
	slices.Sort(took)
	at := func(q float64) float64 { return took[int(q*float64(len(took)))].Seconds() * 1e6 }
	return []float64{at(0.5), at(0.99)}
}

const floodPort = 9

// listen opens the socket that the flood is for. Nobody reads from it while the flood lasts.
func (r *bridgeRig) listen() {
	r.sink = r.socket(unix.SOCK_DGRAM | unix.SOCK_NONBLOCK)
	r.b.Cleanup(func() { _ = unix.Close(r.sink) })
	must(r.b, unix.Bind(r.sink, sockaddr4(rigListed, floodPort)))
}

// drain empties that socket and tells whether there was anything.
func (r *bridgeRig) drain() (arrived bool) {
	for buf := make([]byte, 64); ; arrived = true {
		if _, err := unix.Read(r.sink, buf); err != nil {
			return arrived
		}
	}
}
