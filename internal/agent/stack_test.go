package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/policy"
)

// show is a stack as tests read it.
func show(s policy.Stack) string {
	var parts []string
	for _, source := range s {
		parts = append(parts, source.Origin+": "+source.Policy.Text())
	}
	return strings.Join(parts, "; ")
}

func TestStack(t *testing.T) {
	type labels = map[string]string
	for _, tc := range []struct {
		name       string
		run, image labels
		unknown    bool // the image cannot be inspected
		want       string
		asks       bool
		warning    string // part of the only one
		err        string // part of it
	}{
		{name: "none", run: labels{"a": "b"}, image: labels{"c": "d"}},
		{name: "none, image unknown", run: labels{"a": "b"}, unknown: true},
		{name: "run", run: labels{"xdp.drop": "udp"}, asks: true, want: "labels: xdp.drop=udp"},
		{name: "image", image: labels{"xdp.drop": "udp"}, asks: true, want: "image: xdp.drop=udp"},
		{name: "both", run: labels{"xdp.drop": "udp"}, image: labels{"xdp.drop.mail": "sctp"}, asks: true,
			want: "labels: xdp.drop=udp; image: xdp.drop.mail=sctp"},
		{name: "the run label of a key is all there is", run: labels{"xdp.drop": "udp"}, image: labels{"xdp.drop": "tcp"},
			asks: true, want: "labels: xdp.drop=udp"},

		{name: "off", run: labels{"xdp.drop": "udp", "xdp.enable": "false"}},
		{name: "off holds for the image too", run: labels{"xdp.enable": "No"}, image: labels{"xdp.drop": "udp"}},
		{name: "off, and what is wrong does not matter", run: labels{"xdp.enable": "0", "xdp.drop": "?"}, image: labels{"xdp.drop.x": "?"}},
		{name: "on", run: labels{"xdp.enable": "true"}, asks: true, want: "labels: xdp.enable=true"},
		{name: "an image does not switch the container off", run: labels{"xdp.drop": "udp"}, image: labels{"xdp.enable": "false"},
			asks: true, want: "labels: xdp.drop=udp"},
		{name: "an image does not switch itself off", image: labels{"xdp.drop": "udp", "xdp.enable": "false"},
			asks: true, want: "image: xdp.drop=udp", warning: "do not count: xdp.enable;"},
		{name: "the same label counts as the image's", run: labels{"xdp.enable": "false"}, image: labels{"xdp.enable": "false", "xdp.drop": "udp"},
			asks: true, want: "image: xdp.drop=udp", warning: "do not count: xdp.enable;"},
		{name: "in another spelling it does not", run: labels{"xdp.enable": "no"}, image: labels{"xdp.enable": "false", "xdp.drop": "udp"}},
		{name: "an image that is off asks for nothing", image: labels{"xdp.enable": "false"}},

		{name: "a default that drops counts, whose ever it is", run: labels{"xdp.egress.default": "drop"}, image: labels{"xdp.egress.default": "drop"},
			asks: true, want: "image: xdp.egress.default=drop"},
		{name: "a default that drops, image unknown", run: labels{"xdp.egress.default": "drop"}, unknown: true,
			asks: true, want: "image: xdp.egress.default=drop", warning: "cannot be inspected"},
		{name: "a default that drops counts beside labels", run: labels{"xdp.drop": "udp"}, image: labels{"xdp.egress.default": "drop"},
			asks: true, want: "labels: xdp.drop=udp; image: xdp.egress.default=drop"},
		{name: "an image opens nothing", run: labels{"xdp.drop": "udp"}, image: labels{"xdp.except": "udp", "xdp.mode": "audit"},
			asks: true, want: "labels: xdp.drop=udp", warning: "do not count: xdp.except, xdp.mode;"},
		{name: "an image that asks only for what does not count is still listed", image: labels{"xdp.mode": "audit"},
			asks: true, want: "image: xdp.enable=true", warning: "do not count: xdp.mode;"},
		{name: "image unknown", run: labels{"xdp.drop": "udp"}, unknown: true,
			asks: true, want: "image: xdp.drop=udp", warning: "cannot be inspected"},
		{name: "image unknown, nothing switches off", run: labels{"xdp.enable": "false"}, unknown: true},

		{name: "run label wrong", run: labels{"xdp.drop": "upd"}, image: labels{"xdp.drop.x": "udp"}, asks: true, err: `xdp.drop="upd": at 0`},
		{name: "image label wrong", run: labels{"xdp.drop": "udp"}, image: labels{"xdp.drop.x": "upd"}, asks: true, err: `image label xdp.drop.x="upd": at 0`},
		{name: "both wrong", run: labels{"xdp.drop": "upd"}, image: labels{"xdp.drop.x": "80"}, asks: true, err: "\nimage label"},
		{name: "antispoof asked for", run: labels{"xdp.antispoof": "true"}, asks: true, want: "labels: xdp.enable=true"},
		{name: "antispoof asked for, wrongly", run: labels{"xdp.antispoof": "?"}, asks: true, err: "true, false, or a list"},
		{name: "antispoof asked for by the image", image: labels{"xdp.antispoof": "true", "xdp.drop": "udp"}, asks: true, want: "image: xdp.drop=udp"},
		{name: "policy warnings", run: labels{"xdp.drop": "private"}, asks: true, want: "labels: xdp.drop=private", warning: "reverse proxy"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			all := labels{}
			for _, from := range []labels{tc.image, tc.run} {
				for key, value := range from {
					all[key] = value
				}
			}
			got, asks, warnings, err := Stack(docker.Container{Labels: all, ImageLabels: tc.image, ImageKnown: !tc.unknown}, config.Config{})
			if show(got) != tc.want || asks != tc.asks {
				t.Errorf("stack %q, asks %t", show(got), asks)
			}
			if tc.warning == "" && len(warnings) > 0 || tc.warning != "" && (len(warnings) != 1 || !strings.Contains(warnings[0], tc.warning)) {
				t.Errorf("warnings %q", warnings)
			}
			if (err != nil) != (tc.err != "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v", err)
			}
			var wrong *policy.LabelError
			if err != nil && !errors.As(err, &wrong) {
				t.Errorf("%v is no LabelError", err)
			}
		})
	}
}

// Each source may be as large as a container's labels; together they may not.
func TestStackBounds(t *testing.T) {
	list := func(n int, format string) string {
		var peers []string
		for i := range n {
			peers = append(peers, fmt.Sprintf(format, i+1))
		}
		return "udp@" + strings.Join(peers, "+")
	}
	// Each of the ranges is made of some 200 CIDRs.
	wide, long := list(60, "2001:db8::%x-2001:dbf:ffff:ffff:ffff:ffff:ffff:fffe"), list(2200, "2001:db8::%x:1")
	for _, tc := range []struct {
		name       string
		run, image string
		want       string
	}{
		{"small", "udp", "udp", ""},
		{"one long", long, "udp", ""},
		{"one wide", "udp", wide, ""},
		{"both long", long, long, "65536 bytes"},
		{"both wide", wide, wide, "16384 prefixes"},
	} {
		run, image := map[string]string{"xdp.drop": tc.run, "xdp.drop.image": tc.image}, map[string]string{"xdp.drop.image": tc.image}
		stack, asks, _, err := Stack(docker.Container{Labels: run, ImageLabels: image, ImageKnown: true}, config.Config{})
		if !asks || (err != nil) != (tc.want != "") || err != nil && (len(stack) > 0 || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %d sources, asks %t, %v", tc.name, len(stack), asks, err)
		}
	}
}

func TestWarningOfPublishedPorts(t *testing.T) {
	for label, warns := range map[string]bool{
		"xdp.ingress.allow=443/tcp@192.0.2.0/24": true, "xdp.drop=private": true, "xdp.ingress.allow=443/tcp": false, "xdp.egress.drop=private": false,
	} {
		c := box(1, true, label)
		for _, c.Published = range []bool{false, true} {
			_, _, warnings, err := Stack(c, config.Config{})
			got := slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, "docker-proxy") })
			if err != nil || got != (warns && c.Published) {
				t.Errorf("%s, published %t: %q, %v", label, c.Published, warnings, err)
			}
		}
	}
}

func TestWarningOfVainAntispoof(t *testing.T) {
	for _, label := range []string{"xdp.antispoof=false", "xdp.antispoof=192.0.2.0/24", "xdp.antispoof=true"} {
		for _, conf := range []string{"", "floor: {xdp.drop: metadata}"} {
			_, _, warnings, err := Stack(box(1, true, label), parseConfig(t, conf))
			got := slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, "floor stands above it") })
			if want := conf != "" && label != "xdp.antispoof=true"; err != nil || got != want {
				t.Errorf("%s %s: %q, %v", conf, label, warnings, err)
			}
		}
	}
}
