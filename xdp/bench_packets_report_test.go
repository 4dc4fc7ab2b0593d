package xdp

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// report prints each case as a benchmark: the median of its rounds, the least and the most, and medians of
// the quotients with the case of one rule and with a trie.
func (l *lab) report() {
	for _, c := range l.cases {
		l.b.Run(c.name, func(b *testing.B) {
			b.ReportMetric(0, "ns/op") // not printed: the loop of this benchmark is empty
			b.ReportMetric(median(c.ns), "ns/pkt")
			b.ReportMetric(slices.Min(c.ns), "min-ns")
			b.ReportMetric(slices.Max(c.ns), "max-ns")
			for unit, other := range map[string]string{"x-one-rule": c.oneRule, "x-trie": c.trie} {
				if other != "" && other != c.name {
					b.ReportMetric(l.over(c.name, other), unit)
				}
			}
		})
	}
}

func (l *lab) named(name string) *benchCase {
	i := slices.IndexFunc(l.cases, func(c *benchCase) bool { return c.name == name })
	if i < 0 {
		l.b.Fatalf("no case %s", name)
	}
	return l.cases[i]
}

// over is the median of the quotients of two cases' times in the same round, and more that of the differences.
func (l *lab) over(name, other string) float64 {
	return l.compare(name, other, func(a, b float64) float64 { return a / b })
}

func (l *lab) more(name, other string) float64 {
	return l.compare(name, other, func(a, b float64) float64 { return a - b })
}

func (l *lab) compare(name, other string, f func(a, b float64) float64) float64 {
	a, b := l.named(name).ns, l.named(other).ns
	var out []float64
	for i := range a {
		out = append(out, f(a[i], b[i]))
	}
	return median(out)
}

// median is the middle one, of an even number the higher.
func median(ns []float64) float64 {
	return slices.Sorted(slices.Values(ns))[len(ns)/2]
}

func (l *lab) raw() string {
	var out strings.Builder
	fmt.Fprintf(&out, "%-44s ns a packet in each of %d rounds\n", "", rounds)
	for _, c := range l.cases {
		fmt.Fprintf(&out, "%-44s", c.name)
		for _, ns := range c.ns {
			fmt.Fprintf(&out, " %4.0f", ns)
		}
		fmt.Fprintln(&out)
	}
	return out.String()
}

func (l *lab) sections() map[string]string {
	return map[string]string{
		"targets-packets":    targetTable(l.targets()),
		"packets-references": l.references(),
		"packets-rules":      l.byRules("vethwall/"),
		"packets-trie":       l.byRules("trie/"),
		"packets-allow":      l.byRules("allow/"),
		"packets-containers": l.byContainers(),
	}
}

// references is a table of the cases without a number of rules.
func (l *lab) references() string {
	var out strings.Builder
	fmt.Fprint(&out, "| ns a packet, median (least..most) | fixed | shuffled |\n|---|--:|--:|\n")
	for _, c := range l.cases {
		name, isFixed := strings.CutSuffix(c.name, "/fixed")
		if c.rules > 0 || !isFixed {
			continue
		}
		fmt.Fprintf(&out, "| %s |", name)
		for _, c := range []*benchCase{c, l.named(name + "/shuffled")} {
			fmt.Fprintf(&out, " %.0f (%.0f..%.0f) |", median(c.ns), slices.Min(c.ns), slices.Max(c.ns))
		}
		fmt.Fprintln(&out)
	}
	return out.String()
}

// byRules is a table of the cases whose names begin with prefix and have a number of rules, a row for those that differ in it
// only.
func (l *lab) byRules(prefix string) string {
	var out strings.Builder
	fmt.Fprint(&out, "| rules | packets | 1 | 10 | 100 | 1,000 | 10,000 |\n|---|---|--:|--:|--:|--:|--:|\n")
	for _, c := range l.cases {
		kind, packets, one := strings.Cut(strings.TrimPrefix(c.name, prefix), "/1/")
		if c.rules != 1 || !one || !strings.HasPrefix(c.name, prefix) {
			continue
		}
		fmt.Fprintf(&out, "| %s | %s |", kind, strings.ReplaceAll(packets, "/", ", "))
		for _, n := range sizes {
			fmt.Fprintf(&out, " %.0f |", median(l.named(prefix+kind+"/"+strconv.Itoa(n)+"/"+packets).ns))
		}
		fmt.Fprintln(&out)
	}
	return out.String()
}

func (l *lab) byContainers() string {
	var out strings.Builder
	fmt.Fprint(&out, "| packets | one container | 1,000 in turn |\n|---|--:|--:|\n")
	for _, c := range l.cases {
		packets, one := strings.CutPrefix(c.name, "containers/1/")
		if !one {
			continue
		}
		many := l.named(fmt.Sprintf("containers/%d/%s", manyContainers, packets))
		fmt.Fprintf(&out, "| %s | %.0f | %.0f |\n", packets, median(c.ns), median(many.ns))
	}
	return out.String()
}

// targets are those of the design that are times of packets. Of hit and miss the worse one counts; of packets of conversations,
// which no rule is asked for, the middle one.
func (l *lab) targets() []target {
	return []target{
		l.atMost("`xdp.drop=udp` at most 40 ns over `udp.o`", 40, l.more, pairs("vethwall/udp/%s", "udp.o/%[1]s", "hit", "miss")),
		l.established("established at most 120 ns over the empty program", 120, "empty"),
		l.established("established at most 50 ns over look-up, clock and counter", 50, "bare"),
		l.atMost("10,000 ports at most 1.5 times one", 1.5, l.over, l.sizePairs("ports")),
		l.atMost("10,000 IPv4 addresses at most 1.5 times one", 1.5, l.over, l.sizePairs("addresses4")),
		l.atMost("10,000 IPv6 addresses at most 1.5 times one", 1.5, l.over, l.sizePairs("addresses6")),
		l.atMost("10,000 IPv4 CIDRs at most 2.5 times one", 2.5, l.over, l.sizePairs("cidrs4")),
		l.atMost("10,000 IPv6 CIDRs at most 2.5 times one", 2.5, l.over, l.sizePairs("cidrs6")),
		l.atMost("10,000 IPv4 CIDRs ahead of the trie", 1, l.over, pairs("vethwall/cidrs4/10000/%s", "trie/cidrs4/10000/%[1]s", "hit", "miss")),
		l.atMost("10,000 IPv6 CIDRs ahead of the trie", 1, l.over, pairs("vethwall/cidrs6/10000/%s", "trie/cidrs6/10000/%[1]s", "hit", "miss")),
	}
}

// pair are names of cases, without their order, of which the first is compared with the second.
type pair struct{ name, other string }

func pairs(name, other string, variants ...string) (out []pair) {
	for _, v := range variants {
		p := pair{fmt.Sprintf(name, v), other}
		if strings.Contains(other, "%") {
			p.other = fmt.Sprintf(other, v)
		}
		out = append(out, p)
	}
	return out
}

func (l *lab) sizePairs(kind string) []pair {
	return pairs("vethwall/"+kind+"/10000/%s", "vethwall/"+kind+"/1/%s", "hit", "miss")
}

// compares is a quotient or difference of two cases.
type compares func(name, other string) float64

func (l *lab) atMost(name string, want float64, compare compares, of []pair) target {
	return within(name, want, compare, of, slices.Max[[]float64])
}

func (l *lab) established(name string, want float64, other string) target {
	var of []pair
	for _, kind := range allowKinds {
		for _, n := range sizes {
			of = append(of, pair{fmt.Sprintf("allow/%s/%d/established", kind, n), other})
		}
	}
	return within(name, want, l.more, of, median)
}

// within is met where what pick takes of the comparisons is at most want, fixed and shuffled.
func within(name string, want float64, compare compares, of []pair, pick func([]float64) float64) target {
	t := target{name: name, met: true}
	var parts []string
	for _, way := range []string{"fixed", "shuffled"} {
		var all []float64
		for _, p := range of {
			all = append(all, compare(p.name+"/"+way, p.other+"/"+way))
		}
		digits := 2
		if want > 10 {
			digits = 0
		}
		parts = append(parts, fmt.Sprintf("%s %.*f", way, digits, pick(all)))
		t.met = t.met && pick(all) <= want
	}
	t.measured = strings.Join(parts, ", ")
	return t
}
