// Package examples has no code of its own: its tests run the commands of the examples as their READMEs
// tell people to type them.
package examples

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/internal/enginetest"
)

var (
	fence = regexp.MustCompile("(?ms)^```(sh|text)\n(.*?)^```$")
	veth  = regexp.MustCompile(`veth[0-9a-f]{7}`)
)

// step is a block of commands and the output that the README shows for it, "" for none.
type step struct{ commands, shown string }

func steps(t *testing.T, readme string) (out []step) {
	t.Helper()
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range fence.FindAllStringSubmatch(string(text), -1) {
		if m[1] == "sh" {
			out = append(out, step{commands: m[2]})
		} else {
			out[len(out)-1].shown = m[2]
		}
	}
	if len(out) == 0 {
		t.Fatalf("%s has no commands", readme)
	}
	return out
}

// run lets one shell on the engine's host type all steps in dir, and returns what each has printed. The
// program is the built one with its directory on bpffs, and sudo is not asked for.
func run(t *testing.T, v *enginetest.Vethwall, dir string, all []step) []string {
	t.Helper()
	bin := t.TempDir()
	for name, script := range map[string]string{
		"vethwall": `case "$1" in check | explain) ;; *) set -- "$@" --dir ` + v.Dir + ` ;; esac; exec ` + v.Bin + ` "$@"`,
		"sudo":     `exec "$@"`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var script strings.Builder
	for _, s := range all {
		script.WriteString(strings.ReplaceAll(s.commands, "../../vethwall", "vethwall") + "printf '\\036'\n")
	}
	cmd := v.Command("sh", "-euc", script.String())
	cmd.Dir = dir
	cmd.Env = append(cmd.Env, "PATH="+bin+":"+os.Getenv("PATH"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: after\n%s\n%s", err, stdout.String(), stderr.String())
	}
	outputs := strings.Split(stdout.String(), "\x1e")
	return outputs[:len(outputs)-1]
}

// The tests are not parallel: they build the same program in the same place.

func TestArticle(t *testing.T) {
	v := enginetest.Own(t).Install()
	all := steps(t, "article/README.md")
	for i, out := range run(t, v, "article", all) {
		if got := veth.ReplaceAllString(out, "veth93ea536"); got != all[i].shown {
			t.Errorf("%s\nprints\n%s\nthe README shows\n%s", all[i].commands, got, all[i].shown)
		}
	}
}

// TestShown runs the examples that show what each of their commands prints.
func TestShown(t *testing.T) {
	v := enginetest.Own(t).Install()
	v.StartAgent()
	for _, dir := range []string{"egress-allow-list", "published-port-only", "internet-without-lan", "ai-agent-sandbox", "rate-limit"} {
		t.Run(dir, func(t *testing.T) {
			all := composed(t, steps(t, dir+"/README.md"))
			for i, out := range run(t, v.With(t), dir, all) {
				if all[i].shown != "" && out != all[i].shown {
					t.Errorf("%s\nprints\n%s\nthe README shows\n%s", all[i].commands, out, all[i].shown)
				}
			}
		})
	}
}

// composed has the commands for the Compose that the machine has.
func composed(t *testing.T, all []step) []step {
	t.Helper()
	if exec.Command("docker", "compose", "version").Run() != nil {
		_, err := exec.LookPath("docker-compose")
		enginetest.Need(t, err == nil, "docker compose")
		for i := range all {
			all[i].commands = strings.ReplaceAll(all[i].commands, "docker compose", "docker-compose --no-ansi")
		}
	}
	return all
}

func TestQuickstart(t *testing.T) {
	v := enginetest.Own(t).Install()
	all := composed(t, steps(t, "quickstart/README.md"))
	v.StartAgent()
	out := strings.Join(run(t, v, "quickstart", all), "")
	var filtered, free, status string
	for line := range strings.Lines(out) {
		switch {
		case strings.Contains(line, "|") && strings.Contains(line, "filtered"):
			filtered += line
		case strings.Contains(line, "|") && strings.Contains(line, "free"):
			free += line
		case strings.Contains(line, "xdp.drop=udp"):
			status += line
		}
	}
	if !strings.Contains(filtered, "udp no answer") || !strings.Contains(filtered, "tcp answer") {
		t.Errorf("the filtered service says\n%s", filtered)
	}
	if !strings.Contains(free, "udp answer") || !strings.Contains(free, "tcp answer") {
		t.Errorf("the free service says\n%s", free)
	}
	if strings.Count(status, "\n") != 1 || !strings.Contains(status, "filtered") {
		t.Errorf("status lists\n%s", status)
	}
	if t.Failed() {
		t.Logf("all output:\n%s", out)
	}
}
