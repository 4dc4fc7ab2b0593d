package policy_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/policy"
)

// TestErrors: one *LabelError for each wrong label, in key order, with the bytes that are at fault.
func TestErrors(t *testing.T) {
	labels := map[string]string{"xdp.mode": " monitor", "xdp.drop": "udp, frob", "xdp.allow": "tcp", "xdp.dorp": "udp"}
	p, asks, err := policy.Parse(labels)
	if !asks || p.Text() != "xdp.enable=true" {
		t.Fatalf("asks %v, policy %s", asks, p.Text())
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%T is not joined", err)
	}
	want := []struct {
		key  string
		off  int
		hint string
	}{{"xdp.dorp", -1, "write xdp.drop"}, {"xdp.drop", 5, ""}, {"xdp.mode", 1, "write audit"}}
	errs := joined.Unwrap()
	if len(errs) != len(want) {
		t.Fatal(err)
	}
	for i, w := range want {
		var e *policy.LabelError
		if !errors.As(errs[i], &e) || e.Key != w.key || e.Value != labels[w.key] || e.Offset != w.off || e.Hint != w.hint {
			t.Errorf("%d: %#v, want %+v", i, errs[i], w)
		}
	}
}

// TestParseMatch: one match, spaces around it ignored; offsets are those of what was given.
func TestParseMatch(t *testing.T) {
	m, err := policy.ParseMatch("  tcp/443@192.0.2.1 \n")
	if err != nil || m.String() != "443/tcp@192.0.2.1" {
		t.Fatal(m, err)
	}
	for s, want := range map[string]string{
		" 443":    `" 443": at 1: a bare port, expected a protocol beside it; write 443/tcp (or tcp/443), 443/udp`,
		"udp,tcp": `"udp,tcp": at 0: "udp,tcp" is not an address or group, expected a protocol, PORT/tcp, an address, a CIDR or a group`,
		"":        `"": at 0: an empty match, expected a protocol, PORT/tcp, an address, a CIDR or a group`,
	} {
		if m, err := policy.ParseMatch(s); err == nil || err.Error() != want {
			t.Errorf("%q: %v, %v\nwant %s", s, m, err, want)
		}
	}
}

// TestExcerpt: however long and strange, an error is one short line that shows the place.
func TestExcerpt(t *testing.T) {
	for _, filler := range []string{"x", "\x80", "\u202e", "😀", "\n", "\x00", "\""} {
		value := strings.Repeat(filler, 200) + "," + strings.Repeat(filler, 200)
		_, _, err := policy.Parse(map[string]string{"xdp.drop": value, "xdp." + value: "udp"})
		if err == nil {
			t.Fatalf("%q parsed", filler)
		}
		for _, line := range strings.Split(err.Error(), "\n") {
			if len(line) > 1600 || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%q: %s", filler, line)
			}
		}
		if strings.Contains(err.Error(), `=""...`) || strings.Contains(err.Error(), `...""`) {
			t.Errorf("%q: nothing is shown: %v", filler, err)
		}
	}
}

// TestWords: every enum has its canonical spelling, and a number where there is none.
func TestWords(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{policy.Egress.String() + " " + policy.Ingress.String(), "egress ingress"},
		{policy.Drop.String() + " " + policy.Except.String() + " " + policy.Allow.String() + " " + policy.Limit.String(), "drop except allow limit"},
		{policy.Unset.String() + " " + policy.DefaultAllow.String() + " " + policy.DefaultDrop.String(), " allow drop"},
		{policy.Enforce.String() + " " + policy.Audit.String(), "enforce audit"},
		{policy.HookAuto.String() + " " + policy.HookGeneric.String() + " " + policy.HookNative.String() + " " + policy.HookTCX.String(), "auto generic native tcx"},
		{policy.LogDrops.String() + " " + policy.LogAll.String() + " " + policy.LogNone.String(), "drops all none"},
		{policy.Internet.String() + " " + policy.IPv6.String() + " " + policy.Group(99).String(), "internet ipv6 99"},
		{policy.DNS.String() + " " + policy.Metadata.String() + " " + policy.ICMPTypes.String(), "dns metadata icmp-types"},
		{policy.Rate{Count: 1500, Bits: false}.String() + " " + policy.Rate{Count: 2e9, Bits: true}.String(), "1500pps 2gbit"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

// TestHintsParse: what the goldens' hints say to write is understood.
func TestHintsParse(t *testing.T) {
	for _, slip := range []string{"10.0.0.1:443", "https@internet", "udp tcp", "443/tcp+udp", "*", "10.0.*.*", "UDP@Internet",
		"10.0.0.1/8", "0.0.0.0", "tcp:80-90", "[2001:db8::1]:443/udp", "'udp;443/tcp'", "echo-reqest/icmp"} {
		_, _, err := policy.Parse(map[string]string{"xdp.drop": slip})
		var e *policy.LabelError
		if !errors.As(err, &e) {
			t.Errorf("%s: %v", slip, err)
			continue
		}
		write, ok := strings.CutPrefix(e.Hint, "write ")
		if _, _, err := policy.Parse(map[string]string{"xdp.drop": write}); !ok || err != nil {
			t.Errorf("%s: hint %q: %v", slip, e.Hint, err)
		}
	}
}
