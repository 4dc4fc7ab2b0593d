package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// Text that moves a terminal's cursor, sets its title, clears it, turns its direction round or breaks a line.
const evil = "\x1b[2J\x1b]0;pwned\x07\u202e\u2066\u009b31m\r\u2028\u200b\n"

// TestHostileText has labels, keys, and names of networks, projects and images that want to do something to who reads them, and
// labels that are many or large. Whoever is asked, what is printed is harmless, and the neighbours are filtered as ever.
func TestHostileText(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	h := hostile{v: v, image: v.Image(), network: enginetest.Prefix + "hostile"}
	// Engines before 28 take any name that is not empty.
	if _, err := v.Try("network", "create", "--subnet", subnet4, h.network+evil); err == nil {
		h.network += evil
	} else {
		v.Run("network", "create", "--subnet", subnet4, h.network)
	}
	v.Configure(fmt.Sprintf("policies:\n  - {pick: {project: %q}, labels: {xdp.log: all}}\n  - {pick: {service: %q}, labels: {xdp.log: all}}\n", "shop"+evil, "web"+evil))
	v.StartAgent("-v")

	t.Run("escapes", h.escapes)
	t.Run("many and large", h.large)
	t.Run("programs", h.programs)
	c := h.start(t, "neighbour", h.image, map[string]string{"xdp.drop": "udp"})
	h.harmless(t, c, agent.Enforced)
	for _, args := range [][]string{{"status"}, {"status", "--all"}, {"status", "-o", "json"}, {"events"}, {"events", "-o", "json"}, {"doctor"}} {
		h.printed(t, args...)
	}
	wantHarmless(t, "the agent's log", v.Log())
}

type hostile struct {
	v              *enginetest.Vethwall
	image, network string
}

// start starts a container by the API, which takes labels that no command line has room for.
func (h hostile) start(t *testing.T, name, image string, labels map[string]string) *enginetest.Container {
	t.Helper()
	type object = map[string]any
	var created struct{ ID string }
	err := callEngine(t, h.v, "/containers/create?name="+enginetest.Prefix+name, object{
		"Image": image, "Labels": labels, "HostConfig": object{"NetworkMode": h.network},
	}, &created)
	if err != nil {
		t.Fatal(err)
	}
	h.v.With(t).Run("start", created.ID)
	return (&enginetest.Container{ID: created.ID, Name: enginetest.Prefix + name}).With(h.v.Docker.With(t))
}

// harmless waits for a state, and looks at what every command prints of a container.
func (h hostile) harmless(t *testing.T, c *enginetest.Container, want agent.State) agent.ContainerStatus {
	t.Helper()
	s := await(t, h.v, c.Name, "is "+string(want), func(s agent.ContainerStatus) bool { return s.State == want })
	_, _ = c.Do("udp-send", "-echo", "1ms", "192.0.2.1:53", evil)
	for _, args := range [][]string{
		{"status", c.Name}, {"status", c.Name, "-o", "json"}, {"check", c.Name}, {"check", c.Name, "-o", "json"}, {"events", c.Name},
		{"explain", c.Name, "egress", "53/udp@192.0.2.1"}, {"explain", c.Name, "egress", "53/udp@192.0.2.1", "-o", "json"},
		{"attach", c.Name, "no" + evil + ".o"}, {"detach", c.Name + evil}, {"status", c.Name + evil}, {"check", "-l", evil + "xdp.drop=" + evil},
	} {
		h.printed(t, args...)
	}
	return s
}

// printed looks at what a command prints.
func (h hostile) printed(t *testing.T, args ...string) {
	t.Helper()
	a := h.v.With(t).Ask(args...)
	wantHarmless(t, fmt.Sprintf("stdout of %q", args), a.Stdout)
	wantHarmless(t, fmt.Sprintf("stderr of %q", args), a.Stderr)
	for doc := range strings.Lines(a.Stdout) {
		if args[0] == "events" && args[len(args)-1] == "json" && !json.Valid([]byte(doc)) {
			t.Errorf("%q: %q is no JSON", args, doc)
		}
	}
	if args[0] != "events" && args[len(args)-1] == "json" && a.Stdout != "" && !json.Valid([]byte(a.Stdout)) {
		t.Errorf("%q: %q is no JSON", args, a.Stdout)
	}
	if len(a.Stderr) > 16<<10 {
		t.Errorf("%q: %d bytes on stderr", args, len(a.Stderr))
	}
}

// wantHarmless wants what a terminal prints and does not obey, line by line.
func wantHarmless(t *testing.T, where, text string) {
	t.Helper()
	if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 || !utf8.ValidString(text) {
		t.Errorf("%s holds what does not print: %q", where, text[max(0, i-40):min(len(text), max(0, i)+40)])
	}
	if strings.Contains(text, "pwned\n") {
		t.Errorf("%s: a line is broken: %q", where, text)
	}
}

func (h hostile) escapes(t *testing.T) {
	for name, tc := range map[string]struct {
		labels, image map[string]string
		want          agent.State
		says          string
	}{
		"value":     {labels: map[string]string{"xdp.drop": "udp," + evil}, want: agent.Quarantined, says: `\x1b[2J`},
		"key":       {labels: map[string]string{"xdp." + evil: "udp"}, want: agent.Quarantined, says: `\x1b[2J`},
		"lookalike": {labels: map[string]string{"\u0445dp\x1b\u202e\u200b\ndrop": "udp"}, want: agent.Quarantined, says: "write xdp.drop"},
		"match":     {labels: map[string]string{"xdp.drop": "udp", "443/tcp": evil}, want: agent.Quarantined, says: "443/tcp: a match as a key"},
		"project": {labels: map[string]string{"com.docker.compose.project": "shop" + evil, "com.docker.compose.service": "web" + evil, evil: evil},
			want: agent.Quarantined, says: "2 policies"},
		"image": {labels: map[string]string{"xdp.drop": "udp"}, image: map[string]string{"xdp.allow": strings.ReplaceAll(evil, "\n", "")},
			want: agent.Quarantined, says: "image label xdp.allow"},
		"others": {labels: map[string]string{"xdp.drop": "udp", evil: evil, "com.example." + evil: "xdp.drop=udp"}, want: agent.Enforced},
	} {
		t.Run(name, func(t *testing.T) {
			image := h.image
			if tc.image != nil {
				image = h.v.With(t).ImageWithLabels(tc.image)
			}
			s := h.harmless(t, h.start(t, "escapes-"+name, image, tc.labels), tc.want)
			if !strings.Contains(s.Error, tc.says) {
				t.Errorf("%q does not say %q", s.Error, tc.says)
			}
		})
	}
}

func (h hostile) large(t *testing.T) {
	many := func(n int, key, value string) map[string]string {
		out := map[string]string{}
		for i := range n {
			out[fmt.Sprint(key, i)] = value
		}
		return out
	}
	with := func(labels map[string]string, key, value string) map[string]string {
		labels[key] = value
		return labels
	}
	megabyte := strings.Repeat("udp,", 1<<18)
	for name, tc := range map[string]struct {
		labels map[string]string
		want   agent.State
		says   string
	}{
		"a value of 1 MB":                     {map[string]string{"xdp.drop": megabyte}, agent.Quarantined, "64 KiB of label text"},
		"a key of 1 MB":                       {map[string]string{"xdp.drop." + megabyte: "udp"}, agent.Quarantined, "64 KiB of label text"},
		"others of 1 MB":                      {map[string]string{"xdp.drop": "udp", "com.example.text": megabyte, megabyte: ""}, agent.Enforced, ""},
		"10,000 labels":                       {many(10_000, "xdp.drop.n", "udp"), agent.Quarantined, "64 KiB of label text"},
		"10,000 of others":                    {with(many(10_000, "com.example.n", "udp"), "xdp.drop", "udp"), agent.Enforced, ""},
		"thousands of wrong ones":             {many(4_000, "xdp.n", "x"), agent.Quarantined, "and 3980 errors more"},
		"thousands that are right":            {many(3_000, "xdp.drop.n", "9/udp"), agent.Enforced, ""},
		"a list of 64 KiB with a wrong match": {map[string]string{"xdp.drop": megabyte[:60<<10] + "upd"}, agent.Quarantined, "write udp"},
	} {
		t.Run(name, func(t *testing.T) {
			c := h.start(t, strings.NewReplacer(" ", "-", ",", "").Replace(name), h.image, tc.labels)
			s := h.harmless(t, c, tc.want)
			if !strings.Contains(s.Error, tc.says) || len(s.Error) > 16<<10 {
				t.Errorf("%d bytes, %q does not say %q", len(s.Error), s.Error[:min(200, len(s.Error))], tc.says)
			}
			h.v.With(t).Run("rm", "--force", c.ID)
		})
	}
}

// programs are paths out of the program directory.
func (h hostile) programs(t *testing.T) {
	for i, program := range []string{"/etc/passwd", "../udp.o", "udp.o:" + evil, "%2e%2e/udp.o"} {
		t.Run(program, func(t *testing.T) {
			c := h.start(t, fmt.Sprint("program-", i), h.image, map[string]string{"xdp.program": program})
			if s := h.harmless(t, c, agent.Quarantined); !strings.Contains(s.Error, "xdp.program=") {
				t.Errorf("%q", s.Error)
			}
			h.v.With(t).Run("rm", "--force", c.ID)
		})
	}
}

// TestImageThatTakesLong has images whose labels are within all bounds and as hard to compile as can be. Who made an image is not to be
// trusted: nobody else waits for it, nor is a port let go meanwhile.
func TestImageThatTakesLong(t *testing.T) {
	t.Parallel()
	r := newHoldRig(t)
	for i, n := range []int{500, 2500} {
		var rules []string
		for i := range n {
			rules = append(rules, fmt.Sprintf("%d/tcp@::-::%x:ffff", 1+i, i))
		}
		image := r.v.ImageWithLabels(map[string]string{"xdp.drop": strings.Join(rules, ",")})
		name := fmt.Sprint("neighbour-", i)
		c := r.v.Create(r.image, name, labelled(r.network, "xdp.drop=udp"), steadily(r.to, name)...)
		begun := time.Now()
		r.v.Create(image, fmt.Sprint("hard-", i), labelled(r.network))
		r.v.Run("start", c.ID)
		s := awaitFilter(t, r.v, c.Name, 1)
		if sent := r.arrived(t)[name]; sent > 0 || s.State != agent.Enforced {
			t.Errorf("%d rules: %v after somebody else's image the container is %s, and %d packets got through", n, time.Since(begun), s.State, sent)
		}
	}
	r.unsurprised(t)
}
