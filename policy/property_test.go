package policy_test

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go4.org/netipx"
	"pgregory.net/rapid"

	"github.com/vethwall/vethwall/policy"
)

// roundTrip holds a policy that came from labels to its text: the same policy again, by way of the
// labels and of every match and key in it.
func roundTrip(t interface{ Fatalf(string, ...any) }, p policy.Policy) {
	labels := p.Labels()
	again, asks, err := policy.Parse(labels)
	if err != nil || !asks {
		t.Fatalf("%s: asks %v, error %v", p.Text(), asks, err)
	}
	if !reflect.DeepEqual(p, again) {
		t.Fatalf("%s: parsed again as %s\n%#v\n%#v", p.Text(), again.Text(), p, again)
	}
	for _, r := range p.Rules {
		m, err := policy.ParseMatch(r.Match.String())
		if err != nil || !reflect.DeepEqual(m, r.Match) {
			t.Fatalf("match %s: parsed again as %v, error %v", r.Match, m, err)
		}
		if _, ok := labels[r.Key()]; !ok {
			t.Fatalf("rule %s: no label", r.Key())
		}
	}
}

// drawRange is a random range that a label can name.
func drawRange(t *rapid.T) netipx.IPRange {
	addr := func() netip.Addr {
		if rapid.Bool().Draw(t, "v6") {
			b := [16]byte{0x20, 0x01, 0x0d, 0xb8}
			copy(b[4:], rapid.SliceOfN(rapid.Byte(), 12, 12).Draw(t, "addr"))
			return netip.AddrFrom16(b)
		}
		return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.ByteRange(1, 255), 4, 4).Draw(t, "addr")))
	}
	a := addr()
	switch rapid.IntRange(0, 2).Draw(t, "shape") {
	case 0:
		return netipx.IPRangeFrom(a, a)
	case 1:
		p, _ := a.Prefix(rapid.IntRange(0, a.BitLen()).Draw(t, "bits"))
		if p.Bits() == a.BitLen() || !p.Addr().IsUnspecified() || p.Bits() == 0 {
			return netipx.RangeOfPrefix(p)
		}
		return netipx.IPRangeFrom(a, a)
	}
	b := addr()
	if a.Is4() != b.Is4() {
		b = a
	}
	if b.Less(a) {
		a, b = b, a
	}
	return netipx.IPRangeFrom(a, b)
}

// drawPorts writes ports by chance, not in canonical form, and says which they are.
func drawPorts(t *rapid.T) (text string, holds func(port int) bool) {
	type span struct{ from, to int }
	var spans []span
	var parts []string
	for range rapid.IntRange(1, 6).Draw(t, "ranges") {
		from := rapid.IntRange(1, 65535).Draw(t, "from")
		to := min(65535, from+rapid.IntRange(0, 40).Draw(t, "more"))
		spans = append(spans, span{from, to})
		parts = append(parts, policy.PortRange{From: uint16(from), To: uint16(to)}.String())
	}
	return strings.Join(parts, "+"), func(port int) bool {
		return slices.ContainsFunc(spans, func(s span) bool { return s.from <= port && port <= s.to })
	}
}

// TestPorts compares the merged ranges with the ports that were written, one by one.
func TestPorts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text, holds := drawPorts(t)
		m, err := policy.ParseMatch("tcp/" + text)
		if err != nil {
			t.Fatal(err)
		}
		if docker, err := policy.ParseMatch(text + "/tcp"); err != nil || !reflect.DeepEqual(m, docker) {
			t.Fatalf("%s: the two spellings differ: %v %v %v", text, m, docker, err)
		}
		last := -1
		for _, r := range m.What.Ports {
			if int(r.From) <= last+1 || r.To < r.From {
				t.Fatalf("%s: %v is not sorted and merged", text, m)
			}
			last = int(r.To)
		}
		for port := range 65536 {
			got := slices.ContainsFunc(m.What.Ports, func(r policy.PortRange) bool { return int(r.From) <= port && port <= int(r.To) })
			if got != holds(port) {
				t.Fatalf("%s: port %d: got %v", text, port, got)
			}
		}
	})
}

// drawLabels are labels that must parse, spelled and ordered by chance.
func drawLabels(t *rapid.T) map[string]string {
	words := []string{"all", "any", "udp", "tcp", "sctp", "icmp", "igmp", "gre", "esp", "ah", "proto-89", "ping",
		"echo-reply/icmp", "icmp/8", "128/icmp", "timestamp/icmp", "53/udp", "udp/53", "1-65535/sctp", "0/icmp"}
	match := func() string {
		what := rapid.SampledFrom(words).Draw(t, "what")
		if rapid.Bool().Draw(t, "ports") {
			what, _ = drawPorts(t)
			what += "/tcp"
		}
		var peers []string
		for range rapid.IntRange(0, 3).Draw(t, "peers") {
			if rapid.Bool().Draw(t, "group") {
				peers = append(peers, policy.Group(rapid.IntRange(0, int(policy.IPv6)).Draw(t, "g")).String())
			} else {
				peers = append(peers, drawRange(t).String())
			}
		}
		switch {
		case len(peers) == 0 && rapid.IntRange(0, 9).Draw(t, "group alone") == 0:
			return rapid.SampledFrom([]string{"metadata", "dns"}).Draw(t, "own ports")
		case len(peers) == 0:
			return what
		case rapid.Bool().Draw(t, "peers alone"):
			return strings.Join(peers, "+")
		}
		return what + "@" + strings.Join(peers, "+")
	}
	labels := map[string]string{}
	space := rapid.SampledFrom([]string{"", " ", "\n  ", "\t"})
	for range rapid.IntRange(0, 6).Draw(t, "labels") {
		dir := rapid.SampledFrom([]string{"", "egress.", "ingress."}).Draw(t, "direction")
		verb := rapid.SampledFrom([]string{"drop", "except", "allow", "limit"}).Draw(t, "verb")
		name := rapid.SampledFrom([]string{"", ".mail", ".a-b_1"}).Draw(t, "name")
		var list []string
		for range rapid.IntRange(1, 4).Draw(t, "matches") {
			m := match()
			if m == "dns" && dir == "ingress." {
				m = "udp"
			}
			if verb == "limit" {
				m += "=" + rapid.SampledFrom([]string{"1pps", "1000pps", "3kpps", "1500kbit", "50mbit", "1gbit"}).Draw(t, "rate")
			}
			list = append(list, space.Draw(t, "space")+m+space.Draw(t, "space"))
		}
		labels["xdp."+dir+verb+name] = strings.Join(list, ",")
	}
	for key, values := range map[string][]string{
		"xdp.default": {"drop"}, "xdp.mode": {"audit", "enforce"}, "xdp.hook": {"auto", "generic", "native", "tcx"},
		"xdp.log": {"drops", "all", "none"}, "xdp.antispoof": {"yes", "OFF", "192.0.2.0/24, 2001:db8::-2001:db8::5"},
		"xdp.program": {"udp.o", "dropper.o:.text"}, "xdp.enable": {"true", "1", "On"},
	} {
		if i := rapid.IntRange(-2, len(values)-1).Draw(t, key); i >= 0 {
			labels[key] = values[i]
		}
	}
	return labels
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		labels := drawLabels(t)
		p, asks, err := policy.Parse(labels)
		if err != nil {
			t.Fatalf("%q: %v", labels, err)
		}
		if asks != (len(labels) > 0) {
			t.Fatalf("%q: asks %v", labels, asks)
		}
		if asks {
			roundTrip(t, p)
		}
		img := policy.FromImage(p)
		for _, r := range img.Rules {
			if r.Verb == policy.Except {
				t.Fatalf("%s: kept from an image", r.Key())
			}
		}
		for _, d := range img.Default {
			if d == policy.DefaultAllow {
				t.Fatal("a default that opens is kept from an image")
			}
		}
		img.Rules, img.Default = nil, [2]policy.Default{}
		if !reflect.DeepEqual(img, policy.Policy{}) {
			t.Fatalf("kept from an image: %+v", img)
		}
	})
}

// FuzzParse: never a panic, never a policy beside an error, errors in one line of printable ASCII,
// no hint that is wrong itself, and what parses parses again.
func FuzzParse(f *testing.F) {
	for _, seed := range [][2]string{
		{"xdp.drop", "udp,443/tcp@192.0.2.0/24+internet,icmp/8"}, {"xdp.limit", "udp=1000pps"},
		{"xdp.egress.allow.mail", "dns, [2001:db8::1]:443"}, {"xpd.drop", "443"}, {"xdp.antispoof", "192.0.2.1-192.0.2.9"},
		{"xdp.program", "a.o:.text"}, {"\u0445dp.drop", "\"udp\""}, {"xdp.drop", "10.0.*.*,80,443/tcp"}, {"xdp.enable", "no"},
	} {
		f.Add(seed[0], seed[1], "xdp.default", "drop")
	}
	f.Fuzz(func(t *testing.T, key, value, key2, value2 string) {
		labels := map[string]string{key: value, key2: value2}
		p, asks, err := policy.Parse(labels)
		if err != nil {
			if !asks || !reflect.DeepEqual(p, policy.Policy{}) {
				t.Fatalf("an error, but asks %v and %+v", asks, p)
			}
			for _, line := range strings.Split(err.Error(), "\n") {
				if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) || len(line) > 3000 {
					t.Fatalf("%q", line)
				}
			}
			holdHints(t, err)
			return
		}
		if asks {
			roundTrip(t, p)
		}
	})
}

// TestSplitImage: a label that differs from the image's in its value is the run's.
func TestSplitImage(t *testing.T) {
	run, img := policy.SplitImage(
		map[string]string{"xdp.drop": "udp", "xdp.allow": "all", "a": "b"},
		map[string]string{"xdp.drop": "udp", "xdp.allow": "tcp", "xdp.limit": "udp=1pps"})
	if !maps.Equal(img, map[string]string{"xdp.drop": "udp"}) || !maps.Equal(run, map[string]string{"xdp.allow": "all", "a": "b"}) {
		t.Fatal(run, img)
	}
}

// TestBounds: what is just within the bounds parses, one more does not.
func TestBounds(t *testing.T) {
	prefixes := func(n int) string {
		var b strings.Builder
		a := netip.MustParseAddr("1.0.0.0")
		for i := range n {
			if i > 0 {
				b.WriteByte('+')
			}
			// Each range is an odd address and the 62 CIDRs up to an odd end far away.
			b.WriteString(a.Next().String() + "-255.255.255.254")
			a = a.Next().Next()
		}
		return b.String()
	}
	for _, c := range []struct {
		name   string
		labels map[string]string
		want   string
	}{
		{"text", map[string]string{"xdp.drop": "udp" + strings.Repeat(" ", 65536-11)}, ""},
		{"text", map[string]string{"xdp.drop": "udp" + strings.Repeat(" ", 65536-10)}, "xdp.drop: more than 64 KiB"},
		{"text of others", map[string]string{"xdp.drop": "udp", "notes": strings.Repeat("x", 1<<20)}, ""},
		{"prefixes", map[string]string{"xdp.drop": prefixes(200)}, ""},
		{"prefixes", map[string]string{"xdp.drop": prefixes(700)}, "xdp.drop: more than 16384 prefixes"},
	} {
		_, _, err := policy.Parse(c.labels)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)) {
			t.Errorf("%s: %.200v, want %q", c.name, err, c.want)
		}
	}
}

// BenchmarkLongest is a label as long as one may be, good and wrong at its end.
func BenchmarkLongest(b *testing.B) {
	value := strings.Repeat("192.0.2.1,", 6000)
	for b.Loop() {
		if _, _, err := policy.Parse(map[string]string{"xdp.drop": value + "frob"}); err == nil {
			b.Fatal("parsed")
		}
	}
}
