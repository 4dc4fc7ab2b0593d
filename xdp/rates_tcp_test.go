package xdp

import (
	"io"
	"net"
	"testing"
	"time"
)

// TestRatesOfTCP polices TCP: it is held to the rate and moves at half of it at least, whatever the control of congestion.
func TestRatesOfTCP(t *testing.T) {
	n := newNetwork(t)
	f := open(t, bpffs(t))
	defer f.Close()
	const rate, d = 20e6, 2 * time.Second
	for _, h := range []ratedHook{
		{name: "generic", dir: "egress", mode: Generic},
		{name: "tcx", dir: "egress", mode: TCX},
		{name: "received", dir: "ingress", mode: Generic},
	} {
		must(t, f.Detach(n.host.Index))
		free := n.goodput(h.dir, d/4)
		must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp."+h.dir+".limit=all=20mbit"), Mode: h.mode}))
		got := 0.0
		for try := 0; try < 3 && got < rate/2; try++ {
			got = n.goodput(h.dir, d)
		}
		t.Logf("%s: %.1f Mb/s, without a limit %.0f", h.name, got/1e6, free/1e6)
		if most := rate * (1 + burst.Seconds()/d.Seconds()); got < rate/2 || got > most || free < 2*rate {
			t.Errorf("%s: %.1f Mb/s of 20, want 10 to %.1f", h.name, got/1e6, most/1e6)
		}
	}
}

// goodput sends as fast as TCP does for d and returns how many bits a second arrive.
func (n *network) goodput(dir string, d time.Duration) float64 {
	n.t.Helper()
	var l net.Listener
	var from net.Conn
	var err error
	listen := func() {
		l, err = net.Listen("tcp", map[string]string{"egress": "192.0.2.1:0", "ingress": "192.0.2.2:0"}[dir])
	}
	dial := func() { from, err = net.Dial("tcp", l.Addr().String()) }
	if dir == "egress" {
		listen()
		must(n.t, err)
		n.inContainer(dial)
	} else {
		n.inContainer(listen)
		must(n.t, err)
		dial()
	}
	must(n.t, err)
	defer l.Close()
	to, err := l.Accept()
	must(n.t, err)
	defer to.Close()
	end := time.Now().Add(d)
	must(n.t, from.SetDeadline(end))
	must(n.t, to.SetDeadline(end))
	go func() {
		defer from.Close()
		for data := make([]byte, 1<<16); ; {
			if _, err := from.Write(data); err != nil {
				return
			}
		}
	}()
	got, _ := io.Copy(io.Discard, to)
	return float64(got) * 8 / d.Seconds()
}
