package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/vethwall/vethwall/internal/agent"
)

func TestClean(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"", ""},
		{"web-1 (ünïcode, 日本)", "web-1 (ünïcode, 日本)"},
		{`a\b "c"`, `a\b "c"`},
		{"a'b", "a'b"},
		{"line\nbreak\ttab\r", `line\nbreak\ttab\r`},
		{"\x1b[2J\x07", `\x1b[2J\a`},
		{"\x7f\u009b31m", `\x7f\u009b31m`},
		{"safe\u202egnp.exe\u2066", `safe\u202egnp.exe\u2066`},
		{"zero\u200bwidth\ufeff", `zero\u200bwidth\ufeff`},
		{"\u2028\u2029", `\u2028\u2029`},
		{"no\u00a0break", `no\u00a0break`},
		{"\U000e0041tag", `\U000e0041tag`},
		{"bad\xffutf8\xc3", `bad\xffutf8\xc3`},
		{"\ufffd", "\ufffd"},
	} {
		if got := clean(tc.in); got != tc.want {
			t.Errorf("clean(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1b\u202e\xff'")
	f.Fuzz(func(t *testing.T, s string) {
		got := clean(s)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("clean(%q) = %q is not printable", s, got)
		}
		if clean(got) != got {
			t.Errorf("clean(%q) changes when cleaned again", s)
		}
	})
}

func TestPrintJSON(t *testing.T) {
	want := "a<b>&\n\x1b[2J \u202e \u009b \U000e0041 ü"
	var out bytes.Buffer
	e := &env{stdout: &out}
	if err := e.printJSON(map[string]string{"name": want}); err != nil {
		t.Fatal(err)
	}
	for _, r := range "\x1b\u202e\u009b" {
		if strings.ContainsRune(out.String(), r) {
			t.Errorf("%q holds %U", out.String(), r)
		}
	}
	var got map[string]string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got["name"] != want {
		t.Errorf("read back %q, %v, want %q", got["name"], err, want)
	}
}

func TestPaintOnlyOnATerminal(t *testing.T) {
	getenv := func(string) string { return "" }
	file, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for name, e := range map[string]*env{
		"buffer": {stdout: &bytes.Buffer{}, getenv: getenv},
		"file":   {stdout: file, getenv: getenv},
	} {
		if got := e.paint(red, "x"); got != "x" {
			t.Errorf("%s: %q", name, got)
		}
	}
	for _, c := range []colour{red, green, yellow} {
		if len(c) != len(plain) {
			t.Errorf("%q is not as long as %q: columns will not line up", c, plain)
		}
	}
}

// TestRunErrors holds for every command, those of later days included: one line, exit code 2, nothing on stdout.
func TestRunErrors(t *testing.T) {
	for _, command := range commands {
		name := command(&env{}).Name()
		var stdout, stderr bytes.Buffer
		e := &env{stdout: &stdout, stderr: &stderr, getenv: func(string) string { return "" }}
		code := run(context.Background(), e, []string{name, "--no-such-flag"})
		line := stderr.String()
		if code != 2 || stdout.Len() > 0 || strings.Count(line, "\n") != 1 || !strings.HasPrefix(line, "vethwall: ") || !strings.Contains(line, "--help") {
			t.Errorf("%s --no-such-flag: exit code %d, stdout %q, stderr %q", name, code, stdout.String(), line)
		}
	}
}

func TestDropLine(t *testing.T) {
	for want, d := range map[string]agent.Drop{
		"dropped 3 packets, 210 bytes, sent: rule udp":              {Reason: "rule", Rule: "udp", Direction: "egress", Packets: 3, Bytes: 210},
		"dropped 3 packets, 210 bytes, received: limit all":         {Reason: "limit", Rule: "all", Direction: "ingress", Packets: 3, Bytes: 210},
		"dropped 1 packets, 60 bytes, sent: spoof":                  {Reason: "spoof", Direction: "egress", Packets: 1, Bytes: 60},
		"would have dropped 1 packets, 60 bytes, sent: rule \\x1b[": {Reason: "rule", Rule: "\x1b[", Audit: true, Direction: "egress", Packets: 1, Bytes: 60},
	} {
		if got := dropLine(d); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
