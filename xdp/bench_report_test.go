package xdp

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
	sections["machine"] = machine(b)
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

// machine says what the figures were measured on.
func machine(b *testing.B) string {
	read := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			return "unknown"
		}
		return strings.TrimSpace(string(text))
	}
	field := func(name string) string {
		_, rest, _ := strings.Cut(read("/proc/cpuinfo"), name)
		line, _, _ := strings.Cut(rest, "\n")
		return strings.TrimLeft(line, "\t :")
	}
	const flaws = "/sys/devices/system/cpu/vulnerabilities/"
	var uname unix.Utsname
	must(b, unix.Uname(&uname))
	return fmt.Sprintf("%s (family %s, model %s), %d cores; Linux %s; `bpf_jit_enable=%s`, `bpf_jit_harden=%s`; spectre_v2: %s; spec_rstack_overflow: %s. Measured on %s.\n",
		field("model name"), field("cpu family"), field("\nmodel\t"), runtime.NumCPU(), unix.ByteSliceToString(uname.Release[:]),
		read("/proc/sys/net/core/bpf_jit_enable"), read("/proc/sys/net/core/bpf_jit_harden"),
		read(flaws+"spectre_v2"), read(flaws+"spec_rstack_overflow"), time.Now().Format("2 January 2006"))
}
