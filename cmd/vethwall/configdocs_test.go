package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/internal/yamltree"
)

// yamlBlock is a file in a document, and what check -f prints of it where that stands below.
var yamlBlock = regexp.MustCompile("(?s)```yaml\n(.*?)```(?:\n\n```text\n(.*?)```)?")

// What docs/configuration.md shows is right, or has the mistakes that stand below it.
func TestDocumentedConfiguration(t *testing.T) {
	doc := filepath.Join(top, "docs", "configuration.md")
	old, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	full, err := filepath.Abs(doc)
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	n := 0
	now := yamlBlock.ReplaceAllStringFunc(string(old), func(block string) string {
		n++
		m := yamlBlock.FindStringSubmatch(block)
		name := "config.yaml"
		if strings.HasPrefix(m[1], "services:") {
			name = "compose.yaml"
		}
		if err := os.WriteFile(name, []byte(m[1]), 0o644); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		e := &env{stdout: &out, stderr: &out, getenv: func(string) string { return "" }}
		code := run(context.Background(), e, []string{"check", "-f", name})
		if shown := strings.Contains(block, "```text"); shown != (code == 1) {
			t.Errorf("exit code %d of\n%s\n%s", code, m[1], out.String())
		} else if shown {
			return "```yaml\n" + m[1] + "```\n\n```text\n" + strings.TrimRight(out.String(), "\n") + "\n```"
		}
		return block
	})
	if n == 0 {
		t.Error("no examples")
	}
	switch {
	case now == string(old):
	case *update:
		if err := os.WriteFile(full, []byte(now), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("docs/configuration.md is not what check -f prints; -update writes\n%s", now)
	}
	for _, key := range configKeys(t) {
		if !strings.Contains(string(old), "\n| `"+key+"` |") {
			t.Errorf("%s is not documented", key)
		}
	}
}

// configKeys are the keys that the parser names where it finds none of them.
func configKeys(t *testing.T) (out []string) {
	t.Helper()
	for _, text := range []string{"x: 1", "policies: [{x: 1, pick: {name: a}, labels: {xdp.drop: udp}}]", "policies: [{pick: {x: 1}, labels: {xdp.drop: udp}}]"} {
		_, err := config.Parse("f", []byte(text))
		var wrong *yamltree.Error
		if !errors.As(err, &wrong) {
			t.Fatalf("%q: %v", text, err)
		}
		out = append(out, strings.Split(wrong.Expected, ", ")...)
	}
	return out
}
