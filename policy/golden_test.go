package policy_test

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/policy"
)

var update = flag.Bool("update", false, "write the goldens in testdata/labels and docs/labels.md anew")

// answer is what the parser makes of labels, as goldens have it: "=> " and the canonical text, or "!! "
// and an error a line, or "-- " when the labels ask for nothing; "?? " and a warning a line.
func answer(labels map[string]string) string {
	p, asks, err := policy.Parse(labels)
	switch {
	case err != nil:
		return "!! " + strings.ReplaceAll(err.Error(), "\n", "\n!! ") + "\n"
	case !asks:
		return "-- no filter\n"
	}
	out := "=> " + p.Text() + "\n"
	for _, w := range policy.Warnings(p) {
		out += "?? " + w + "\n"
	}
	return out
}

var answerLine = regexp.MustCompile(`^(=>|!!|--|\?\?) `)

// replay reads cases, separated by empty lines: lines that start with "#" are comments, key=value or
// its Go-quoted form are labels, and what answer writes is replaced by what the parser says now.
func replay(text string) string {
	var out []string
	for _, block := range strings.Split(strings.TrimSuffix(text, "\n"), "\n\n") {
		labels := map[string]string{}
		var kept strings.Builder
		for _, line := range strings.Split(strings.Trim(block, "\n"), "\n") {
			if answerLine.MatchString(line) {
				continue
			}
			kept.WriteString(line + "\n")
			if strings.HasPrefix(line, "#") || line == "" {
				continue
			}
			key, value := goldenLabel(line)
			labels[key] = value
		}
		if len(labels) > 0 {
			kept.WriteString(answer(labels))
		}
		out = append(out, kept.String())
	}
	return strings.Join(out, "\n")
}

// goldenLabel is what a line of a golden says, KEY=VALUE or that quoted.
func goldenLabel(line string) (key, value string) {
	if unquoted, err := strconv.Unquote(line); err == nil && line[0] == '"' {
		line = unquoted
	}
	key, value, _ = strings.Cut(line, "=")
	return key, value
}

func checkGolden(t *testing.T, path, old, now string) {
	t.Helper()
	if old == now {
		return
	}
	if *update {
		if err := os.WriteFile(path, []byte(now), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	was, is := strings.Split(old, "\n"), strings.Split(now, "\n")
	for i := range min(len(was), len(is)) {
		if was[i] != is[i] {
			t.Fatalf("%s:%d:\n got %s\nwant %s\n(-update writes what is got)", path, i+1, is[i], was[i])
		}
	}
	t.Fatalf("%s: %d lines, want %d", path, len(is), len(was))
}

func TestGoldens(t *testing.T) {
	paths, _ := filepath.Glob("testdata/labels/*.txt")
	if len(paths) == 0 {
		t.Fatal("no goldens")
	}
	for _, path := range paths {
		old, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		checkGolden(t, path, string(old), replay(string(old)))
	}
}

// TestDocs holds docs/labels.md to the parser: what stands in fences marked "labels" are goldens too.
func TestDocs(t *testing.T) {
	const path = "../docs/labels.md"
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fences := 0
	now := regexp.MustCompile("(?s)```labels\n(.*?)```").ReplaceAllStringFunc(string(old), func(s string) string {
		fences++
		body := strings.TrimSuffix(strings.TrimPrefix(s, "```labels\n"), "```")
		return "```labels\n" + replay(body) + "```"
	})
	if fences == 0 {
		t.Fatal("no examples")
	}
	checkGolden(t, path, string(old), now)
}
