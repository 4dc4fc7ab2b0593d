package xdp

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"go4.org/netipx"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// eventReader reads the ring of a runner.
func (r *runner) eventReader() *Reader {
	r.t.Helper()
	reader := &Reader{maps: r.k.filterMaps}
	r.t.Cleanup(reader.unmapRing)
	return reader
}

// send runs a frame through a hook and returns the events that it left.
func (r *runner) send(reader *Reader, h hook, frame []byte) []Event {
	r.t.Helper()
	must(r.t, r.k.EventTimes.Put(uint32(0), filterEventTime{}))
	_, before, err := reader.Events(0)
	must(r.t, err)
	_, err = h.program(r.k).Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)})
	must(r.t, err)
	events, next, err := reader.Events(before)
	must(r.t, err)
	if next != before+uint64(len(events)) {
		r.t.Fatalf("%d events from %d to %d", len(events), before, next)
	}
	return events
}

func parsed(t testing.TB, labels map[string]string) policy.Stack {
	t.Helper()
	p, _, err := policy.Parse(labels)
	must(t, err)
	return policy.Stack{{Origin: "labels", Policy: p}}
}

// compiledAlone judges each frame alone.
func compiledAlone(t testing.TB, labels map[string]string) *Tables {
	t.Helper()
	tables, err := Compile(parsed(t, labels))
	must(t, err)
	tables.flags &^= flagStateful
	return tables
}

const frameMAC = "00:00:5e:00:53:01"

func icmpType(t uint8) *uint8 { return &t }

func address(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

// described are frames and what an event says of them.
func described() map[string]struct {
	frame []byte
	want  Headers
} {
	const a4, b4, a6, b6 = "192.0.2.1", "198.51.100.2", "2001:db8::1", "2001:db8:1::2"
	h := func(family uint8, proto string, src, dst string, from, to uint16) Headers {
		return Headers{MAC: frameMAC, Family: family, Protocol: proto, Src: address(src), Dst: address(dst), SrcPort: from, DstPort: to}
	}
	icmp := func(h Headers, typ uint8) Headers {
		h.ICMPType = &typ
		return h
	}
	quoted := func(h Headers) Headers {
		h.Quoted = true
		return h
	}
	udp4 := policytest.IP(a4, b4, 17, policytest.UDP(1234, 53))
	later4 := policytest.With(policytest.IP(a4, b4, 17, make([]byte, 32)), 14+6, 0, 2)
	quote4 := policytest.IPv4(b4, a4, 17, nil, policytest.UDP(53, 1234))
	quotedEcho := policytest.IPv6(b6, a6, 58, policytest.ICMP(128, 0))
	return map[string]struct {
		frame []byte
		want  Headers
	}{
		"UDP":             {udp4, h(4, "udp", a4, b4, 1234, 53)},
		"UDP, IPv6":       {policytest.IP(a6, b6, 17, policytest.UDP(1234, 53)), h(6, "udp", a6, b6, 1234, 53)},
		"TCP":             {policytest.IP(a4, b4, 6, policytest.TCP(1234, 443)), h(4, "tcp", a4, b4, 1234, 443)},
		"SCTP":            {policytest.IP(a6, b6, 132, policytest.SCTP(1234, 443)), h(6, "sctp", a6, b6, 1234, 443)},
		"two tags":        {policytest.Tagged(udp4, 0x88a8, 0x8100), h(4, "udp", a4, b4, 1234, 53)},
		"extensions":      {policytest.IP(a6, b6, 0, policytest.Extension(17, 0, policytest.UDP(1, 2))), h(6, "udp", a6, b6, 1, 2)},
		"echo request":    {policytest.IP(a4, b4, 1, policytest.With(policytest.ICMP(8, 0), 4, 7, 7)), icmp(h(4, "icmp", a4, b4, 0, 0), 8)},
		"echo reply":      {policytest.IP(a4, b4, 1, policytest.ICMP(0, 0)), icmp(h(4, "icmp", a4, b4, 0, 0), 0)},
		"ICMPv6 reply":    {policytest.IP(a6, b6, 58, policytest.ICMP(129, 0)), icmp(h(6, "icmpv6", a6, b6, 0, 0), 129)},
		"timestamp":       {policytest.IP(a4, b4, 1, policytest.ICMP(13, 0)), icmp(h(4, "icmp", a4, b4, 0, 0), 13)},
		"ICMPv6 in IPv4":  {policytest.IP(a4, b4, 58, policytest.ICMP(128, 0)), h(4, "icmpv6", a4, b4, 0, 0)},
		"another":         {policytest.IP(a4, b4, 99, make([]byte, 8)), h(4, "proto-99", a4, b4, 0, 0)},
		"later fragment":  {later4, h(4, "udp", a4, b4, 0, 0)},
		"short transport": {policytest.IP(a4, b4, 6, make([]byte, 4)), h(4, "tcp", a4, b4, 0, 0)},
		"cut extension":   {policytest.IP(a6, b6, 60, make([]byte, 4)), h(6, "", a6, b6, 0, 0)},
		"bad header":      {policytest.With(udp4, 14, 0x41), h(4, "", "", "", 0, 0)},
		"not IP":          {policytest.Eth(0x88cc, make([]byte, 46)), h(0, "not-ip", "", "", 0, 0)},
		"three tags":      {policytest.Tagged(udp4, 0x88a8, 0x8100, 0x8100), h(0, "", "", "", 0, 0)},
		"error": {
			policytest.IP(a4, b4, 1, policytest.ICMP(3, 3, quote4...)), quoted(h(4, "udp", b4, a4, 53, 1234)),
		},
		"error about an echo": {
			policytest.IP(a6, b6, 58, policytest.ICMP(1, 4, quotedEcho...)), quoted(icmp(h(6, "icmpv6", b6, a6, 0, 0), 128)),
		},
		"error about nothing": {policytest.IP(a4, b4, 1, policytest.ICMP(3, 3)), icmp(h(4, "icmp", a4, b4, 0, 0), 3)},
	}
}

// TestEvents holds what an event says of a frame against the frame, in every program.
func TestEvents(t *testing.T) {
	r := newRunner(t)
	reader := r.eventReader()
	tables := compiledAlone(t, map[string]string{"xdp.drop": "all"})
	r.use(tables)
	for name, tc := range described() {
		for _, h := range hooks {
			if h.name != "xdp" && !tcRuns(tc.frame) {
				continue
			}
			begin := time.Now()
			events := r.send(reader, h, tc.frame)
			if len(events) != 1 {
				t.Errorf("%s, %s: %d events", name, h.name, len(events))
				continue
			}
			e := events[0]
			if !reflect.DeepEqual(e.Headers, tc.want) {
				t.Errorf("%s, %s: %+v, want %+v", name, h.name, e.Headers, tc.want)
			}
			// The coarse clock of an emulated machine is late by more than a tick.
			if age := begin.Sub(e.Time); age.Abs() > time.Second {
				t.Errorf("%s, %s: %v before it was sent", name, h.name, age)
			}
			rule, named := e.Rule(tables.Rules)
			if e.Ifindex != loIndex || e.Direction != h.dir || e.Bytes != len(tc.frame) || e.Audited || !named || rule.Rule != "all" {
				t.Errorf("%s, %s: %+v, rule %v", name, h.name, e, rule)
			}
		}
	}
}

// TestEventsOfVerdicts looks at each kind of verdict, and at what is logged of it.
func TestEventsOfVerdicts(t *testing.T) {
	r := newRunner(t)
	newMemory(r)
	reader := r.eventReader()
	dns := policytest.IP("192.0.2.1", "198.51.100.2", 17, policytest.UDP(1234, 53))
	other := policytest.IP("192.0.2.1", "198.51.100.2", 17, policytest.UDP(1234, 54))
	for _, tc := range []struct {
		name   string
		labels map[string]string
		frame  []byte
		want   []policy.Reason
		rule   string
		audit  bool
	}{
		{"drop", map[string]string{"xdp.drop": "53/udp"}, dns, []policy.Reason{policy.ByRule}, "53/udp", false},
		{"pass", map[string]string{"xdp.drop": "53/udp"}, other, nil, "", false},
		{"default", map[string]string{"xdp.default": "drop"}, dns, []policy.Reason{policy.ByDefault}, "", false},
		{"log none", map[string]string{"xdp.drop": "53/udp", "xdp.log": "none"}, dns, nil, "", false},
		{"log none, default", map[string]string{"xdp.default": "drop", "xdp.log": "none"}, dns, nil, "", false},
		{"log all", map[string]string{"xdp.drop": "53/udp", "xdp.log": "all"}, other, []policy.Reason{policy.Pass}, "", false},
		{"log all, drop", map[string]string{"xdp.drop": "53/udp", "xdp.log": "all"}, dns, []policy.Reason{policy.ByRule}, "53/udp", false},
		{"log all, ARP", map[string]string{"xdp.drop": "53/udp", "xdp.log": "all"}, policytest.ARP(), []policy.Reason{policy.Pass}, "", false},
		{"audit", map[string]string{"xdp.drop": "53/udp", "xdp.mode": "audit"}, dns, []policy.Reason{policy.ByRule}, "53/udp", true},
		{"audit, default", map[string]string{"xdp.default": "drop", "xdp.mode": "audit"}, dns, []policy.Reason{policy.ByDefault}, "", true},
		{"audit, log none", map[string]string{"xdp.drop": "53/udp", "xdp.mode": "audit", "xdp.log": "none"}, dns, nil, "", false},
	} {
		tables := compiledAlone(t, tc.labels)
		r.use(tables)
		for _, h := range hooks {
			var got []policy.Reason
			for _, e := range r.send(reader, h, tc.frame) {
				got = append(got, e.Reason)
				if rule, _ := e.Rule(tables.Rules); rule.Rule != tc.rule || e.Audited != tc.audit {
					t.Errorf("%s, %s: %+v, rule %v", tc.name, h.name, e, rule)
				}
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("%s, %s: %v, want %v", tc.name, h.name, got, tc.want)
			}
		}
	}
}

// What passes both ways unjudged is looked at both ways where passes are logged.
func TestLoggedPassesAreSeen(t *testing.T) {
	for labels, want := range map[string]bool{"xdp.enable=true": false, "xdp.log=all": true, "xdp.antispoof=false": false, "xdp.antispoof=false xdp.log=all": true} {
		if got := labelled(t, labels).Receives; got != want {
			t.Errorf("%s: what is received is seen: %t, want %t", labels, got, want)
		}
	}
}

// TestEventsOfLimits sends two packets under a limit of one; the second is an event.
func TestEventsOfLimits(t *testing.T) {
	r := newRunner(t)
	newMemory(r)
	reader := r.eventReader()
	tables := compiledAlone(t, map[string]string{"xdp.drop": "tcp", "xdp.limit": "udp=1pps"})
	r.use(tables)
	frame := policytest.IP("192.0.2.1", "198.51.100.2", 17, policytest.UDP(1234, 53))
	for _, h := range hooks[1:] {
		must(t, r.k.Buckets.Put(uint32(1), filterBucketSet{}))
		if events := r.send(reader, h, frame); len(events) > 0 {
			t.Errorf("%s: %+v", h.name, events)
		}
		events := r.send(reader, h, frame)
		if len(events) != 1 || events[0].Reason != policy.LimitReached {
			t.Fatalf("%s: %+v", h.name, events)
		}
		if c, ok := events[0].Rule(tables.Rules); !ok || c.Rule != "udp" || !c.Limit {
			t.Errorf("%s: limit %+v", h.name, c)
		}
	}
}

// TestEventsUnjudged looks at what is dropped without a rule: closed, no policy, forged.
func TestEventsUnjudged(t *testing.T) {
	r := newRunner(t)
	reader := r.eventReader()
	udp := policytest.IP("192.0.2.1", "198.51.100.2", 17, policytest.UDP(1234, 53))
	one := func(h hook, frame []byte, want policy.Reason) Headers {
		t.Helper()
		events := r.send(reader, h, frame)
		if len(events) != 1 || events[0].Reason != want || events[0].Ifindex != loIndex || events[0].Direction != h.dir {
			t.Fatalf("%s: %+v, want one, %s", h.name, events, want)
		}
		return events[0].Headers
	}
	for _, h := range hooks {
		must(t, r.k.Devices.Put(uint32(loIndex), filterDevice{}))
		if got := one(h, udp, policy.NoPolicy); got.DstPort != 53 {
			t.Errorf("%s: %+v", h.name, got)
		}
		r.use(Closed())
		if got := one(h, udp, policy.Quarantine); got.DstPort != 53 {
			t.Errorf("%s: %+v", h.name, got)
		}
		if got := one(h, policytest.ARP(), policy.Quarantine); got.Protocol != "arp" {
			t.Errorf("%s: %+v", h.name, got)
		}
	}
	r.use(compiledAlone(t, nil))
	r.is(&policy.Identity{MAC: [6]byte{0, 0, 0x5e, 0, 0x53, 1}, Own: []netipx.IPRange{netipx.RangeOfPrefix(netip.MustParsePrefix("192.0.2.9/32"))}})
	advert := policytest.With(policytest.IP("fe80::200:5eff:fe00:5301", "ff02::1", 58,
		policytest.ICMP(136, 0, address("2001:db8::7").AsSlice()...)), 14+7, 255)
	for _, h := range hooks[:2] {
		if got, want := one(h, policytest.ARP(), policy.Spoof), (Headers{MAC: frameMAC, Protocol: "arp", Claim: address("192.0.2.1")}); got != want {
			t.Errorf("%s: %+v, want %+v", h.name, got, want)
		}
		want := Headers{MAC: frameMAC, Family: 6, Protocol: "icmpv6", ICMPType: icmpType(136), Src: address("fe80::200:5eff:fe00:5301"), Claim: address("2001:db8::7")}
		if got := one(h, advert, policy.Spoof); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", h.name, got, want)
		}
		foreign := policytest.With(udp, 6, 0, 0, 0x5e, 0, 0x53, 9)
		if got := one(h, foreign, policy.Spoof); got.MAC != "00:00:5e:00:53:09" || got.Src != address("192.0.2.1") {
			t.Errorf("%s: %+v", h.name, got)
		}
	}
}
