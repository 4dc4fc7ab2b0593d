package main

import (
	"fmt"
	"maps"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// TestEngineEndsWhileContainersComeAndGo has containers start and go all the time, which send from their first instruction
// on what they may not, while the engine is stopped, killed, started, and hangs. The agent sees what it left behind within 5 s of
// its return. The sink is a socket of the host's, which outlives the engine.
func TestEngineEndsWhileContainersComeAndGo(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{"plain": nil, "live-restore": {"--live-restore"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := enginetest.Own(t, flags...).Install()
			image := v.Image()
			network := v.Network("one", "--subnet", subnet4)
			sink := newHostSink(t, v)
			to := net.JoinHostPort("192.0.2.1", sink.port)
			blocked := labelled(network, "xdp.egress.drop=udp")
			v.StartAgent()
			for _, name := range []string{"always-1", "always-2"} {
				v.Start(image, name, append(blocked, "--restart", "always"), steadily(to, name)...)
			}
			v.Start(image, "free", append(labelled(network), "--restart", "always"), steadily(to, "free")...)

			stop := make(chan bool)
			var traffic sync.WaitGroup
			traffic.Go(func() { comeAndGo(v, image, blocked, to, stop) })
			defer traffic.Wait()
			defer close(stop)
			for i := range times(3, 40) {
				before := sink.count("free")
				switch i % 4 {
				case 0:
					v.Engine.Kill()
					time.Sleep(time.Duration(i%3) * 300 * time.Millisecond)
					v.Engine.Up()
				case 1:
					v.Engine.Restart()
				case 2:
					v.Engine.Hang(time.Duration(times(1, 35)) * time.Second) // in the end longer than the agent waits for an answer
				case 3:
					v.Engine.Down()
					time.Sleep(time.Second)
					v.Engine.Up()
				}
				back := time.Now()
				v.Wait("every container is filtered", func() error { return allFiltered(t, v) })
				took := time.Since(back)
				t.Logf("filtered %v after the engine's return", took)
				if took > 10*time.Second { // 5 s on a machine that does nothing else
					t.Errorf("it took %v", took)
				}
				v.Wait("packets of the one without a filter", func() error {
					if n := sink.count("free"); n == before {
						return fmt.Errorf("%d as before", n)
					}
					return nil
				})
			}
			for text, n := range sink.all() {
				if text != "free" {
					t.Errorf("%d packets of %s got through", n, text)
				}
			}
		})
	}
}

// comeAndGo starts containers and removes them until stop is closed. There may be no engine.
func comeAndGo(v *enginetest.Vethwall, image string, options []string, to string, stop chan bool) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		name := fmt.Sprint(enginetest.Prefix, "comes-", i)
		args := append([]string{"run", "--detach", "--name", name}, options...)
		_, _ = v.Try(append(append(args, image), steadily(to, name)...)...)
		if i%2 == 1 {
			_, _ = v.Try("rm", "--force", name, fmt.Sprint(enginetest.Prefix, "comes-", i-1))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// allFiltered says which of the containers that run and ask for a filter have none.
func allFiltered(t *testing.T, v *enginetest.Vethwall) error {
	t.Helper()
	running, err := v.Try("ps", "--quiet", "--no-trunc", "--filter", "label=xdp.egress.drop")
	if err != nil {
		return err
	}
	have := map[string]agent.ContainerStatus{}
	for _, s := range statusAll(t, v) {
		have[s.ID] = s
	}
	for _, id := range strings.Fields(running) {
		if s := have[id]; !filtered(s) || len(s.Interfaces) != 1 {
			return fmt.Errorf("%.12s: %+v", id, s)
		}
	}
	return nil
}

// hostSink is a UDP socket in an engine's host namespace that counts what arrives.
type hostSink struct {
	port string
	mu   sync.Mutex
	got  map[string]int
}

func newHostSink(t *testing.T, v *enginetest.Vethwall) *hostSink {
	t.Helper()
	s := &hostSink{got: map[string]int{}}
	conns, errs := make(chan net.PacketConn, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		err := enter(v.Engine.NetNS)
		if err == nil {
			var c net.PacketConn
			if c, err = net.ListenPacket("udp4", ":0"); err == nil {
				conns <- c
			}
		}
		errs <- err
	}()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	c := <-conns
	t.Cleanup(func() { _ = c.Close() })
	_, s.port, _ = net.SplitHostPort(c.LocalAddr().String())
	go func() {
		buf := make([]byte, 256)
		for {
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.got[string(buf[:n])]++
			s.mu.Unlock()
		}
	}()
	return s
}

func enter(path string) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	return netns.Set(netns.NsHandle(ns.Fd()))
}

func (s *hostSink) count(text string) int { return s.all()[text] }

func (s *hostSink) all() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.got)
}
