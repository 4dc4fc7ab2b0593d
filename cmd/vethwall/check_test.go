package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/docker/dockertest"
)

// runCheck runs check as JSON against the engine that DOCKER_HOST names.
func runCheck(t *testing.T, args ...string) (code int, r report, stderr string) {
	t.Helper()
	var stdout, errs bytes.Buffer
	e := &env{stdout: &stdout, stderr: &errs, getenv: func(string) string { return "" }}
	code = run(context.Background(), e, append([]string{"check", "-o", "json"}, args...))
	if stdout.Len() > 0 {
		if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
			t.Fatalf("%v in %s", err, stdout.String())
		}
	}
	return code, r, errs.String()
}

func TestCheckContainer(t *testing.T) {
	for _, v := range []string{"DOCKER_API_VERSION", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY"} {
		t.Setenv(v, "")
	}
	engine := dockertest.New(t)
	t.Setenv("DOCKER_HOST", engine.Host())
	id := strings.Repeat("a", 64)
	udp := map[string]string{"xdp.drop": "udp"}
	for _, tc := range []struct {
		name   string
		c      docker.Container
		userns bool // the engine gives containers a user namespace
		code   int
		policy string
		// sentence and warning are parts of one that has to be there; there are no warnings where it is "".
		sentence, warning string
	}{
		{name: "unlabelled", c: docker.Container{NetworkMode: "host", Privileged: true, ImageKnown: true}, sentence: "No xdp label"},
		{name: "labels", c: docker.Container{Labels: udp, ImageKnown: true}, policy: "xdp.drop=udp", sentence: "sends: UDP is dropped"},
		{name: "image", c: docker.Container{Labels: udp, ImageLabels: udp, ImageKnown: true}, policy: "xdp.drop=udp", sentence: "sends: UDP is dropped"},
		{name: "both", c: docker.Container{Labels: map[string]string{"xdp.drop": "udp", "xdp.drop.x": "tcp"}, ImageLabels: udp, ImageKnown: true},
			policy: "xdp.drop.x=tcp; xdp.drop=udp", sentence: "by the image's labels: UDP"},
		{name: "image not known", c: docker.Container{Labels: udp}, policy: "xdp.drop=udp", sentence: "UDP is dropped", warning: "cannot be inspected"},
		{name: "wrong", c: docker.Container{Labels: map[string]string{"xdp.drop": "443"}, ImageKnown: true}, code: 1, sentence: "is closed"},
		{name: "host", c: docker.Container{Labels: udp, ImageKnown: true, NetworkMode: "host"}, policy: "xdp.drop=udp", warning: "the host's network"},
		{name: "none", c: docker.Container{Labels: udp, ImageKnown: true, NetworkMode: "none"}, policy: "xdp.drop=udp", warning: "no network"},
		{name: "joined", c: docker.Container{Labels: udp, ImageKnown: true, NetworkMode: "container:" + strings.Repeat("b", 64)},
			policy: "xdp.drop=udp", warning: "of container bbbbbbbbbbbb: "},
		{name: "macvlan", c: docker.Container{Labels: udp, ImageKnown: true, NetworkMode: "lan", Networks: []docker.Endpoint{
			{Network: "bridge", NetworkID: strings.Repeat("c", 64), Driver: "bridge"},
			{Network: "lan", NetworkID: strings.Repeat("d", 64), Driver: "macvlan"},
		}}, policy: "xdp.drop=udp", warning: "network lan is macvlan"},
		{name: "bridge", c: docker.Container{Labels: udp, ImageKnown: true, NetworkMode: "bridge", CapAdd: []string{"NET_RAW"}, Networks: []docker.Endpoint{
			{Network: "bridge", NetworkID: strings.Repeat("c", 64), Driver: "bridge"},
		}}, policy: "xdp.drop=udp"},
		{name: "capability", c: docker.Container{Labels: udp, ImageKnown: true, CapAdd: []string{"NET_ADMIN"}}, policy: "xdp.drop=udp", warning: "CAP_NET_ADMIN"},
		{name: "all capabilities", c: docker.Container{Labels: udp, ImageKnown: true, CapAdd: []string{"ALL"}}, policy: "xdp.drop=udp", warning: "CAP_NET_ADMIN"},
		{name: "privileged", c: docker.Container{Labels: udp, ImageKnown: true, Privileged: true}, policy: "xdp.drop=udp", warning: "CAP_NET_ADMIN"},
		{name: "own user namespace", c: docker.Container{Labels: udp, ImageKnown: true, CapAdd: []string{"SYS_ADMIN"}, UserNS: true}, userns: true, policy: "xdp.drop=udp"},
		{name: "own user namespace and its network", c: docker.Container{Labels: udp, ImageKnown: true, CapAdd: []string{"NET_ADMIN"}, UserNS: true}, userns: true,
			policy: "xdp.drop=udp"},
		{name: "the host's user namespace", c: docker.Container{Labels: udp, ImageKnown: true, CapAdd: []string{"NET_ADMIN"}}, userns: true,
			policy: "xdp.drop=udp", warning: "CAP_NET_ADMIN"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.c.ID, tc.c.ImageID = id, "sha256:"+strings.Repeat("e", 64)
			engine.RemoveImage(tc.c.ImageID)
			engine.Put(tc.c)
			engine.Handle("/info", func(w http.ResponseWriter, _ *http.Request) {
				options := []string{"name=seccomp,profile=builtin"}
				if tc.userns {
					options = append(options, "name=userns")
				}
				_ = json.NewEncoder(w).Encode(map[string]any{"SecurityOptions": options})
			})
			code, r, stderr := runCheck(t, id)
			if code != tc.code || r.Valid != (code == 0) || stderr != "" || r.Policy != tc.policy {
				t.Errorf("exit code %d, policy %q, stderr %q", code, r.Policy, stderr)
			}
			holds := func(list []string, part string) bool {
				return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, part) })
			}
			if !holds(r.Sentences, tc.sentence) {
				t.Errorf("sentences %q", r.Sentences)
			}
			if tc.warning == "" && len(r.Warnings) > 0 || tc.warning != "" && (len(r.Warnings) != 1 || !holds(r.Warnings, tc.warning)) {
				t.Errorf("warnings %q", r.Warnings)
			}
		})
	}
	engine.Put(docker.Container{ID: id, ImageID: "sha256:f", ImageKnown: true, Labels: map[string]string{"xdp.drop": "443"}, ImageLabels: map[string]string{"xdp.drop": "443"}})
	if _, r, _ := runCheck(t, id); len(r.Errors) != 1 || r.Errors[0].Key != "xdp.drop" || !strings.HasPrefix(r.Errors[0].Text, "image label xdp.drop=") {
		t.Errorf("errors %+v", r.Errors)
	}
	if code, _, stderr := runCheck(t, "gone\x1b[2J"); code != 2 || stderr != `vethwall: no container "gone\x1b[2J": docker ps --all lists them`+"\n" {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}

// The caret stands under the place, whatever the label holds, and a line stays short.
func TestPlace(t *testing.T) {
	long := strings.Repeat("udp,", 1000)
	for _, tc := range []struct {
		name string
		r    errorReport
		want string
	}{
		{"value", errorReport{Key: "xdp.drop", Value: "udp,x", Offset: 4, Problem: "p", Expected: "e", Hint: "h"},
			"p, expected e\n  xdp.drop=udp,x\n               ^\n  h\n"},
		{"past the end", errorReport{Key: "xdp.limit", Value: "udp", Offset: 3, Problem: "p"}, "p\n  xdp.limit=udp\n               ^\n"},
		{"key", errorReport{Key: "xpd.drop", Value: "udp", Offset: -1, Problem: "p"}, "p\n  xpd.drop=udp\n  ^^^^^^^^\n"},
		{"image", errorReport{Key: "k", Value: "v", Problem: "p", whose: "image label: "}, "image label: p\n  k=v\n    ^\n"},
		{"escapes", errorReport{Key: "k", Value: "\x1b日\xff\n,x", Offset: 6, Problem: "p"}, "p\n  k=\\x1b\\u65e5\\xff\\n,x\n" + strings.Repeat(" ", 2+2+4+6+4+2) + "^\n"},
		{"no label", errorReport{Offset: -1, Text: "t\x1b"}, "t\\x1b\n"},
		{"long", errorReport{Key: "xdp.drop", Value: long + "x," + long, Offset: len(long), Problem: "p"},
			"p\n  ..." + strings.Repeat("udp,", 15) + "x," + strings.Repeat("udp,", 14) + "udp...\n" + strings.Repeat(" ", 2+3+60) + "^\n"},
	} {
		if got := tc.r.place(); got != tc.want {
			t.Errorf("%s: got\n%s\nwant\n%s", tc.name, got, tc.want)
		}
	}
}

func TestManyErrors(t *testing.T) {
	e := &env{stdout: io.Discard, getenv: func(string) string { return "" }}
	out := judgement{Errors: make([]errorReport, maxErrors+3)}.table(e)
	if n := strings.Count(out, "error:"); n != maxErrors || !strings.Contains(out, "\n3 more errors\n") {
		t.Errorf("%d errors in %s", n, out)
	}
}
