package xdp

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// target is a row of the table of targets.
type target struct {
	name, measured string
	met            bool
}

func targetTable(targets []target) string {
	var out strings.Builder
	fmt.Fprint(&out, "| target | measured | |\n|---|---|---|\n")
	for _, t := range targets {
		fmt.Fprintf(&out, "| %s | %s | %s |\n", t.name, t.measured, map[bool]string{true: "met", false: "**missed**"}[t.met])
	}
	return out.String()
}

// publish writes what a benchmark found into the documents, if VETHWALL_BENCH_DOCS names their directory: the raw figures into a
// file of their own, and each section of benchmarks.md between the comments that begin and end it.
func publish(b *testing.B, name, raw string, sections map[string]string) {
	dir := os.Getenv("VETHWALL_BENCH_DOCS")
	if dir == "" {
		return
	}
	must(b, os.MkdirAll(filepath.Join(dir, "benchmarks"), 0o755))
	must(b, os.WriteFile(filepath.Join(dir, "benchmarks", name+".txt"), []byte(raw), 0o644))
	path := filepath.Join(dir, "benchmarks.md")
	page, err := os.ReadFile(path)
	must(b, err)
	text := string(page)
	for section, body := range sections {
		begin, end := "<!-- begin "+section+" -->\n", "<!-- end "+section+" -->"
		before, rest, found := strings.Cut(text, begin)
		_, after, ended := strings.Cut(rest, end)
		if !found || !ended {
			b.Fatalf("%s has no section %s", path, section)
		}
		text = before + begin + body + end + after
	}
	must(b, os.WriteFile(path, []byte(text), 0o644))
}

// thousands writes a number with commas.
func thousands(x float64, digits int) string {
	whole, fraction, _ := strings.Cut(fmt.Sprintf("%.*f", digits, x), ".")
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if fraction != "" {
		whole += "." + fraction
	}
	return whole
}
