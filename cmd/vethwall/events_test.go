package main

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/xdp"
)

// someEvents are one of each kind that is printed in a way of its own.
func someEvents() []agent.Event {
	now := time.Date(2026, 3, 1, 18, 3, 12, 123_000_000, time.UTC)
	number := uint64(0)
	event := func(name string, verdict agent.Verdict, direction, reason, rule string, h xdp.Headers) agent.Event {
		number++
		h.MAC = "00:00:5e:00:53:01"
		e := agent.Event{
			Number: number, Time: now.Add(time.Duration(number) * time.Millisecond), Ifindex: 9,
			Verdict: verdict, Direction: direction, Reason: reason, Rule: rule, Bytes: 98, Headers: h,
		}
		if name != "" {
			e.ID, e.Name, e.Network, e.Ifname = "0123456789ab", name, "bridge", "veth670199c"
		}
		return e
	}
	four, six := netip.MustParseAddr, netip.MustParseAddr
	echo, reply, advertisement := uint8(8), uint8(0), uint8(136)
	udp := xdp.Headers{Family: 4, Protocol: "udp", Src: four("192.0.2.1"), SrcPort: 1234, Dst: four("198.51.100.2"), DstPort: 53}
	tcp6 := xdp.Headers{Family: 6, Protocol: "tcp", Src: six("2001:db8::1"), SrcPort: 1234, Dst: six("2001:db8:1::2"), DstPort: 443}
	ping := xdp.Headers{Family: 4, Protocol: "icmp", ICMPType: &echo, Src: four("192.0.2.1"), Dst: four("198.51.100.2")}
	answer := ping
	answer.ICMPType = &reply
	quoted := udp
	quoted.Quoted = true
	fragment := udp
	fragment.SrcPort, fragment.DstPort = 0, 0
	yesterday := event("web", agent.Dropped, "egress", "rule", "udp", udp)
	yesterday.Time = now.Add(-24 * time.Hour)
	after := event("web", agent.Dropped, "egress", "rule", "udp", udp)
	after.Skipped = 1203
	return []agent.Event{
		yesterday,
		event("web", agent.Dropped, "egress", "rule", "53/udp@198.51.100.0/24", udp),
		event("web", agent.Dropped, "ingress", "default", "", tcp6),
		event("database", agent.Passed, "egress", "pass", "", tcp6),
		event("web", agent.WouldDrop, "egress", "limit", "icmp", ping),
		event("web", agent.Passed, "ingress", "pass", "", answer),
		event("web", agent.Dropped, "egress", "rule", "", udp),
		after,
		event("", agent.Dropped, "egress", "no-policy", "", udp),
		event("web", agent.Dropped, "ingress", "bad-quote", "", quoted),
		event("web", agent.Dropped, "egress", "fragment", "", fragment),
		event("web", agent.Dropped, "egress", "spoof", "", udp),
		event("web", agent.Dropped, "egress", "spoof", "", xdp.Headers{Protocol: "arp", Claim: four("192.0.2.7")}),
		event("web", agent.Dropped, "egress", "spoof", "", xdp.Headers{
			Family: 6, Protocol: "icmpv6", ICMPType: &advertisement, Src: six("fe80::1"), Claim: six("2001:db8::7"),
		}),
		event("web", agent.Dropped, "egress", "truncated", "", xdp.Headers{Family: 4}),
		event("web", agent.Dropped, "egress", "too-many-headers", "", xdp.Headers{Family: 6, Src: six("2001:db8::1"), Dst: six("2001:db8::2")}),
		event("web", agent.Dropped, "egress", "too-many-tags", "", xdp.Headers{}),
		event("web", agent.Dropped, "egress", "quarantine", "", xdp.Headers{Protocol: "not-ip"}),
		event("web", agent.Dropped, "egress", "rule", "proto-99", xdp.Headers{Family: 4, Protocol: "proto-99", Src: four("192.0.2.1"), Dst: four("198.51.100.2")}),
		event("e\x1b[31mvil\u202e", agent.Dropped, "egress", "rule", "udp\x07", udp),
	}
}

// TestEventLines holds what is printed of events against testdata; -update writes it anew.
func TestEventLines(t *testing.T) {
	for _, out := range []format{table, jsonDoc} {
		var got bytes.Buffer
		v := &eventsView{
			env: &env{stdout: &got, getenv: func(string) string { return "" }}, out: &out,
			now: func() time.Time { return time.Date(2026, 3, 1, 20, 0, 0, 0, time.UTC) },
		}
		all := func(agent.Event) bool { return true }
		if err := v.print(someEvents(), 17, all); err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", "events."+string(out))
		if *update {
			if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got.String() != string(want) {
			t.Errorf("%s: printed\n%s\nwant\n%s", out, got.String(), want)
		}
	}
}
