package xdp

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const vethRounds = 11

// BenchmarkVeth measures what filters cost real traffic on veths behind a bridge: ours at each hook, none, and the
// neighbours. docs/benchmarks.md says what the walls and loads are.
func BenchmarkVeth(b *testing.B) {
	needPrivileges(b)
	for _, tool := range []string{"iperf3", "nft", "iptables-nft-restore", "xdp-filter"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Fatalf("%v; apt-get install iperf3 nftables iptables xdp-tools", err)
		}
	}
	r := newBridgeRig(b)
	f, err := Open(r.dir)
	must(b, err)
	defer f.Close()
	m := &vethRun{b: b, walls: walls(r, f), rounds: map[string]map[string][]float64{}}
	for range vethRounds {
		for _, group := range loads {
			// In another order each time, so that none always follows the same.
			for _, i := range rand.Perm(len(m.walls)) {
				m.measure(r, m.walls[i], group)
			}
		}
	}
	m.report()
	publish(b, "veth", m.raw(), map[string]string{"veth": m.table(), "targets-veth": targetTable(m.targets())})
}

// vethRun holds the figures of each round, by wall and name of the figure.
type vethRun struct {
	b      *testing.B
	walls  []wall
	rounds map[string]map[string][]float64
}

func (m *vethRun) measure(r *bridgeRig, w wall, group []load) {
	if m.rounds[w.name] == nil {
		m.rounds[w.name] = map[string][]float64{}
	}
	r.put(w)
	for _, l := range group {
		for i, x := range l.measure(r) {
			name := l.figures[i].name
			m.rounds[w.name][name] = append(m.rounds[w.name][name], x)
		}
	}
	r.clear()
}

func figures() (out []figure) {
	for _, group := range loads {
		for _, l := range group {
			out = append(out, l.figures...)
		}
	}
	return out
}

// over is the median of the quotients of a figure of one wall and of another in the same round.
func (m *vethRun) over(wall, other, figure string) float64 {
	var quotients []float64
	for i, x := range m.rounds[wall][figure] {
		quotients = append(quotients, x/m.rounds[other][figure][i])
	}
	return median(quotients)
}

func (m *vethRun) report() {
	for _, w := range m.walls {
		m.b.Run(w.name, func(b *testing.B) {
			b.ReportMetric(0, "ns/op") // not printed
			for _, f := range figures() {
				b.ReportMetric(median(m.rounds[w.name][f.name]), strings.ReplaceAll(f.name, " ", "-")+"-"+f.unit)
			}
		})
	}
}

// table has the medians, and in brackets those of the quotients with no filter.
func (m *vethRun) table() string {
	var out strings.Builder
	fmt.Fprint(&out, "| median (over none) |")
	for _, f := range figures() {
		fmt.Fprintf(&out, " %s, %s |", f.name, f.unit)
	}
	fmt.Fprintf(&out, "\n|---|%s\n", strings.Repeat("--:|", len(figures())))
	for _, w := range m.walls {
		fmt.Fprintf(&out, "| %s |", w.name)
		for _, f := range figures() {
			fmt.Fprintf(&out, " %s (%.2f) |", thousands(median(m.rounds[w.name][f.name]), f.digits), m.over(w.name, "none", f.name))
		}
		fmt.Fprintln(&out)
	}
	return out.String()
}

func (m *vethRun) raw() string {
	var out strings.Builder
	for _, f := range figures() {
		fmt.Fprintf(&out, "%s, %s, in each of %d rounds\n", f.name, f.unit, vethRounds)
		for _, w := range m.walls {
			fmt.Fprintf(&out, "%-26s", w.name)
			for _, x := range m.rounds[w.name][f.name] {
				fmt.Fprintf(&out, " %9.*f", f.digits+1, x)
			}
			fmt.Fprintln(&out)
		}
		fmt.Fprintln(&out)
	}
	return out.String()
}

var (
	bulkFigures    = []string{"bulk sent", "bulk received", "bulk between"}
	requestFigures = []string{"requests to host", "requests between"}
	rateFigures    = slices.Concat(bulkFigures, requestFigures, []string{"flood"})
)

// targets are those of the design, of the walls that drop and of those that hold conversations.
func (m *vethRun) targets() []target {
	one := func(mode string) []string { return []string{"ours/" + mode + "/drop/1", "ours/" + mode + "/allow/1"} }
	flood := []string{"flood"}
	return []target{
		m.atLeast("hold: bulk TCP at least 0.99 of no filter", 0.99, []string{"hold"}, "none", bulkFigures),
		m.atLeast("tcx: bulk TCP at least 0.97 of no filter", 0.97, one("tcx"), "none", bulkFigures),
		m.atLeast("generic: bulk TCP at least 0.97 of the passing program", 0.97, one("generic"), "pass/generic", bulkFigures),
		m.atLeast("two hooks: bulk TCP at least 0.97 of generic alone", 0.97, []string{bothHooks}, "ours/generic/drop/1", bulkFigures),
		m.atLeast("guarded: bulk TCP at least 0.97 of generic alone", 0.97, []string{guardedHooks}, "ours/generic/drop/1", bulkFigures),
		m.atLeast("tcx: request/response at least 0.95 of no filter", 0.95, one("tcx"), "none", requestFigures),
		m.atLeast("generic: request/response at least 0.95 of no filter", 0.95, one("generic"), "none", requestFigures),
		m.atLeast("tcx: flood dropped at least 0.95 of nft netdev", 0.95, one("tcx"), "nft/netdev/set/1", flood),
		m.atLeast("generic: flood dropped at least iptables raw", 1, one("generic"), "iptables/raw/1", flood),
		m.atLeast("tcx: 1,000 rules within 5 % of one", 0.95, []string{"ours/tcx/drop/1000"}, "ours/tcx/drop/1", rateFigures),
		m.atLeast("generic: 1,000 rules within 5 % of one", 0.95, []string{"ours/generic/drop/1000"}, "ours/generic/drop/1", rateFigures),
		m.atLeast("tcx: 1,000 rules within 5 % of nft sets", 0.95, []string{"ours/tcx/drop/1000"}, "nft/netdev/set/1000", rateFigures),
		m.atLeast("generic: 1,000 rules within 5 % of nft sets", 0.95, []string{"ours/generic/drop/1000"}, "nft/netdev/set/1000", rateFigures),
	}
}

func (m *vethRun) atLeast(name string, want float64, walls []string, other string, figures []string) target {
	t := target{name: name, met: true}
	var parts []string
	for _, f := range figures {
		part := f
		for _, w := range walls {
			x := m.over(w, other, f)
			part += fmt.Sprintf(" %.2f", x)
			t.met = t.met && x >= want
		}
		parts = append(parts, part)
	}
	t.measured = strings.Join(parts, ", ")
	return t
}
