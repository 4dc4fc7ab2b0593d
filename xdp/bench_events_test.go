package xdp

import (
	"testing"

	"github.com/vethwall/vethwall/policy/policytest"
)

// BenchmarkEvents measures what a dropped packet costs where it is no event (xdp.log=none), where it is one, and in a flood,
// where its device has had its share. The cases take turns; the median of their rounds is reported.
func BenchmarkEvents(b *testing.B) {
	needPrivileges(b)
	const share = 64
	cases := []struct {
		name, log string
		repeat    int
		ns        []float64
	}{{"silent", "none", repeat, nil}, {"flood", "drops", repeat, nil}, {"event", "drops", share, nil}, {"silent/64", "none", share, nil}}
	k := &filterObjects{}
	must(b, loadFilterObjects(k, nil))
	b.Cleanup(func() { k.Close() })
	r := &runner{t: b, k: k}
	frame := policytest.IP("192.0.2.1", "198.51.100.2", 17, policytest.UDP(1234, 53))
	for range 5 * rounds {
		for i := range cases {
			c := &cases[i]
			r.use(compiledAlone(b, map[string]string{"xdp.drop": "udp", "xdp.log": c.log}))
			must(b, k.EventTimes.Put(uint32(0), filterEventTime{}))
			action, mean, err := k.VethwallXdp.Benchmark(frame, c.repeat, nil)
			must(b, err)
			if action != xdpDrop {
				b.Fatalf("%s: action %d", c.name, action)
			}
			c.ns = append(c.ns, float64(mean.Nanoseconds()))
		}
	}
	for _, c := range cases {
		b.Run(c.name, func(b *testing.B) {
			b.ReportMetric(0, "ns/op") // not printed: the loop of this benchmark is empty
			b.ReportMetric(median(c.ns), "ns/pkt")
		})
	}
	var g filterGlobal
	must(b, k.Globals.Lookup(uint32(0), &g))
	if g.NumEvents < 5*rounds*share {
		b.Errorf("%d events", g.NumEvents)
	}
}
