package main

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/vethwall/vethwall/internal/enginetest"
)

// startRounds is how many containers each engine starts.
const startRounds = 100

// BenchmarkStart measures what an agent costs the start of a container that asks for nothing. Two engines take turns, of
// which one has an agent; time is from docker start to the end of a process that sends one datagram and waits for the answer. The
// second engine without an agent shows the noise.
func BenchmarkStart(b *testing.B) {
	type side struct {
		name           string
		v              *enginetest.Vethwall
		image, net, to string
		took           []float64 // ms
	}
	var sides []*side
	for _, name := range []string{"agent", "none", "none, again"} {
		v := enginetest.Own(b).Install()
		s := &side{name: name, v: v, image: v.Image(), net: v.Network("one", "--subnet", subnet4)}
		sink := v.Serve(s.image, "sink", []string{"--network", s.net}, "53/udp")
		s.to = sink.Addr(s.net, 4).String() + ":53"
		if name == "agent" {
			v.StartAgent()
		}
		sides = append(sides, s)
	}
	for round := range startRounds {
		for i := range sides {
			s := sides[(i+round)%len(sides)]
			c := s.v.Create(s.image, fmt.Sprint("plain-", round), []string{"--network", s.net}, "udp-send", "-echo", "900ms", s.to, "once")
			began := time.Now()
			s.v.Run("start", "--attach", c.ID)
			s.took = append(s.took, time.Since(began).Seconds()*1e3)
			s.v.Run("rm", c.ID)
		}
	}
	for _, s := range sides {
		var over []float64 // in the same round
		for i, t := range s.took {
			over = append(over, t/sides[1].took[i])
		}
		b.Run(s.name, func(b *testing.B) {
			b.ReportMetric(0, "ns/op") // not printed
			b.ReportMetric(middle(s.took), "ms")
			b.ReportMetric(middle(over), "over-none")
		})
	}
}

func middle(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[len(x)/2]
}
