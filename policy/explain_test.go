package policy

import (
	"net/netip"
	"strings"
	"testing"
)

func TestExplain(t *testing.T) {
	parse := func(labels ...string) Policy {
		m := map[string]string{}
		for _, l := range labels {
			key, value, _ := strings.Cut(l, "=")
			m[key] = value
		}
		p, _, err := Parse(m)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	s := Stack{
		{"labels", parse("xdp.egress.allow=443/tcp@192.0.2.0/24,ping,gre", "xdp.egress.drop.bad=192.0.2.66", "xdp.ingress.drop=22/tcp")},
		{"image", parse("xdp.drop=8443/tcp", "xdp.ingress.limit=80/tcp=100pps")},
	}
	for _, tc := range []struct {
		dir    Direction
		match  string
		reason Reason
		want   string // of the sentence, or of the error
	}{
		{Egress, "443/tcp@192.0.2.1", Pass, "may open 443/tcp@192.0.2.1: xdp.egress.allow=443/tcp@192.0.2.0/24 (labels)."},
		{Egress, "443/tcp@192.0.2.66", ByRule, "may not open 443/tcp@192.0.2.66: xdp.egress.drop.bad=192.0.2.66 (labels)."},
		{Egress, "443/tcp@198.51.100.1", ByDefault, "no rule of labels matches, and its default is drop."},
		{Egress, "ping@2001:db8::1", Pass, "xdp.egress.allow=ping (labels)."},
		{Egress, "gre@198.51.100.1", Pass, "xdp.egress.allow=gre (labels)."},
		{Ingress, "22/tcp@198.51.100.1", ByRule, "towards the container 22/tcp@198.51.100.1: xdp.ingress.drop=22/tcp (labels)."},
		{Ingress, "80/tcp@198.51.100.1", Pass, "the default is allow. Its packets are held to xdp.ingress.limit=80/tcp=100pps (image)."},
		{Ingress, "81/tcp@198.51.100.1", Pass, "no rule matches, and the default is allow."},
		{Ingress, "8443/tcp@198.51.100.1", ByRule, "xdp.drop=8443/tcp (image)."},
		{Egress, "443/tcp", Pass, "error: name one address"},
		{Egress, "443/tcp@192.0.2.0/24", Pass, "error: name one address"},
		{Egress, "443/tcp@internet", Pass, "error: name one address"},
		{Egress, "80-90/tcp@192.0.2.1", Pass, "error: more than one port"},
		{Egress, "tcp@192.0.2.1", Pass, "error: tcp has ports: name one, such as 443/tcp@192.0.2.1"},
		{Egress, "all@192.0.2.1", Pass, "error: all is more than one thing"},
		{Egress, "icmp@192.0.2.1", Pass, "error: icmp is more than one thing"},
	} {
		m, err := ParseMatch(tc.match)
		if err != nil {
			if !strings.HasPrefix(tc.want, "error") {
				t.Errorf("%s: %v", tc.match, err)
			}
			continue
		}
		e, err := s.Explain(tc.dir, m)
		got := e.Sentence(tc.dir, tc.match)
		if err != nil {
			got = "error: " + err.Error()
		}
		if !strings.Contains(got, tc.want) || e.Reason != tc.reason {
			t.Errorf("%s %s: %s, %s; want %s, %s", tc.dir, tc.match, e.Reason, got, tc.reason, tc.want)
		}
	}
}

func TestExplainAudit(t *testing.T) {
	drop, _, _ := Parse(map[string]string{"xdp.drop": "udp", "xdp.mode": "audit"})
	also, _, _ := Parse(map[string]string{"xdp.drop": "53/udp"})
	s := Stack{{"floor", also}, {"labels", drop}}
	for match, want := range map[string]Explanation{
		"53/udp@192.0.2.1": {Reason: ByRule, Origin: "floor", Rule: "xdp.drop=53/udp"},
		"54/udp@192.0.2.1": {Reason: ByRule, Audited: true, Origin: "labels", Rule: "xdp.drop=udp"},
		"54/tcp@192.0.2.1": {},
	} {
		m, err := ParseMatch(match)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Explain(Egress, m); err != nil || got.Reason != want.Reason || got.Audited != want.Audited || got.Origin != want.Origin || got.Rule != want.Rule {
			t.Errorf("%s: %+v, %v; want %+v", match, got, err, want)
		}
	}
}

// TestLetsAsk: what is said of one address is what Explain says of it; of nobody in particular, what holds for everybody.
func TestLetsAsk(t *testing.T) {
	for _, labels := range []map[string]string{
		{"xdp.drop": "udp"}, {"xdp.egress.drop": "all", "xdp.egress.except": "53/udp@192.0.2.0/24"}, {"xdp.egress.allow": "53/udp,443/tcp"},
		{"xdp.egress.allow": "53/udp@192.0.2.0/24", "xdp.egress.drop": "192.0.2.53"}, {"xdp.egress.allow": "192.0.2.0/24"},
		{"xdp.ingress.drop": "all"}, {"xdp.drop": "all", "xdp.mode": "audit"}, {"xdp.egress.drop": "udp@192.0.2.53", "xdp.egress.limit": "53/tcp=1pps"},
		{"xdp.limit": "all=1mbit"},
	} {
		p, _, err := Parse(labels)
		if err != nil {
			t.Fatal(err)
		}
		s := Stack{{"labels", p}}
		for _, proto := range []string{"udp", "tcp"} {
			number, all := map[string]uint8{"udp": protoUDP, "tcp": protoTCP}[proto], true
			for _, addr := range []string{"192.0.2.53", "198.51.100.53", "2001:db8::53"} {
				m, err := ParseMatch("53/" + proto + "@" + addr)
				if err != nil {
					t.Fatal(err)
				}
				x, err := s.Explain(Egress, m)
				if err != nil {
					t.Fatal(err)
				}
				may, limited, inAll := s.LetsAsk(number, 53, netip.MustParseAddr(addr))
				if may != (x.Reason == Pass || x.Audited) || (limited || inAll) != (len(x.Limits) > 0) || inAll != (labels["xdp.limit"] != "") {
					t.Errorf("%v: %s of %s: %t, limited %t, %t; explained %+v", labels, proto, addr, may, limited, inAll, x)
				}
				all = all && may
			}
			if may, _, _ := s.LetsAsk(number, 53, netip.Addr{}); may != all {
				t.Errorf("%v: %s of anybody: %t", labels, proto, may)
			}
		}
	}
}
