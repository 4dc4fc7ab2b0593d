package main

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// What the documents say of the program is held against the program here.

const top = "../.."

var (
	fence        = regexp.MustCompile("(?ms)^( *)```(\\w*)\n(.*?)^ *```$")
	span         = regexp.MustCompile("`([^`\n]+)`")
	usage        = regexp.MustCompile(`^(?:sudo )?(?:\./)?vethwall(?: (.*))?$`)
	someFlag     = regexp.MustCompile(`(?:^| |\[)(--?[a-zA-Z][a-z-]*)`)
	relativeLink = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	makeCommand  = regexp.MustCompile(`^(?:sudo )?make ([a-z-]+)`)
)

// documents are the texts of all documents, by name.
func documents(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", "examples/*/*.md"} {
		names, err := filepath.Glob(filepath.Join(top, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			out[name] = string(text)
		}
	}
	if out[filepath.Join(top, "README.md")] == "" {
		t.Fatal("no README.md")
	}
	return out
}

// blocks are the fenced blocks of a language, without their indentation.
func blocks(text, language string) (out []string) {
	for _, m := range fence.FindAllStringSubmatch(text, -1) {
		if m[2] == language {
			out = append(out, strings.ReplaceAll("\n"+m[3], "\n"+m[1], "\n")[1:])
		}
	}
	return out
}

// commandsIn are what a document tells its reader to type, comments left out.
func commandsIn(text string) (out []string) {
	for _, b := range blocks(text, "console") {
		for _, line := range strings.Split(b, "\n") {
			if typed, ok := strings.CutPrefix(line, "$ "); ok {
				out = append(out, typed)
			}
		}
	}
	for _, b := range blocks(text, "sh") {
		out = append(out, strings.Split(b, "\n")...)
	}
	for _, m := range span.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		out = append(out, m[1])
	}
	for i, c := range out {
		c, _, _ = strings.Cut(c, " #")
		out[i] = strings.TrimSpace(c)
	}
	return out
}

// Every command and flag that a document names is there.
func TestDocumentedCommands(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(top, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for name, text := range documents(t) {
		for _, typed := range commandsIn(text) {
			if m := makeCommand.FindStringSubmatch(typed); m != nil && !bytes.Contains(makefile, []byte("\n"+m[1]+":")) {
				t.Errorf("%s: %s: no such target", name, typed)
			}
			m := usage.FindStringSubmatch(typed)
			if m == nil {
				continue
			}
			root := rootCommand(&env{stdout: io.Discard, stderr: io.Discard})
			cmd, _, err := root.Find(strings.Fields(m[1]))
			if err != nil || cmd == root && m[1] != "" {
				t.Errorf("%s: %s: no such command", name, typed)
				continue
			}
			found[cmd.Name()] = true
			for _, f := range someFlag.FindAllStringSubmatch(m[1], -1) {
				flags, flag := cmd.Flags(), strings.TrimLeft(f[1], "-")
				if flags.Lookup(flag) == nil && (len(flag) > 1 || flags.ShorthandLookup(flag) == nil) {
					t.Errorf("%s: %s: no flag %s", name, typed, f[1])
				}
			}
		}
	}
	for _, command := range commands {
		if cmd := command(&env{}); !found[cmd.Name()] {
			t.Errorf("no document names vethwall %s", cmd.Name())
		}
	}
}

// What a document quotes of `vethwall check -l` is what it prints.
func TestDocumentedChecks(t *testing.T) {
	n := 0
	for name, text := range documents(t) {
		for _, b := range blocks(text, "console") {
			for _, session := range strings.Split("\n"+b, "\n$ ")[1:] {
				typed, want, _ := strings.Cut(session, "\n")
				args, ok := strings.CutPrefix(typed, "vethwall check -l ")
				if !ok {
					continue
				}
				n++
				var out bytes.Buffer
				e := &env{stdout: &out, stderr: &out, getenv: func(string) string { return "" }}
				run(context.Background(), e, append([]string{"check", "-l"}, strings.Fields(args)...))
				if strings.TrimRight(out.String(), "\n") != strings.TrimRight(want, "\n") {
					t.Errorf("%s: %s prints\n%s\nand is said to print\n%s", name, typed, out.String(), want)
				}
			}
		}
	}
	if n == 0 {
		t.Error("no document shows vethwall check")
	}
}

// Links within the repository lead somewhere.
func TestDocumentedLinks(t *testing.T) {
	for name, text := range documents(t) {
		for _, m := range relativeLink.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: %s: %v", name, m[0], err)
			}
		}
	}
}

// Every test that a document names is there, and the subtest that it names stands in the same file.
func TestDocumentedTests(t *testing.T) {
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	files := map[string]string{}
	err := filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(text), -1) {
			files[m[1]] += string(text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`^((?:Test|Fuzz)[A-Z]\w*)(?:/(.+))?$`)
	for name, text := range documents(t) {
		for _, m := range span.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			test := named.FindStringSubmatch(m[1])
			if test == nil {
				continue
			}
			file, there := files[test[1]]
			if !there {
				t.Errorf("%s: there is no %s", name, test[1])
			} else if test[2] != "" && !strings.Contains(file, strconv.Quote(test[2])) {
				t.Errorf("%s: %s has no subtest %q", name, test[1], test[2])
			}
		}
	}
	for line := range strings.Lines(documents(t)[filepath.Join(top, "docs/networks.md")]) {
		if strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| network") && !strings.Contains(line, "`Test") && !strings.Contains(line, "*not tested here*") {
			t.Errorf("networks.md: who shows %s", line)
		}
	}
	promises := regexp.MustCompile(`(?m)^## \d\. `).Split(documents(t)[filepath.Join(top, "docs/guarantees.md")], -1)[1:]
	for i, promise := range promises {
		promise, _, _ = strings.Cut(promise, "\n## ")
		if !strings.Contains(promise, "`Test") {
			t.Errorf("guarantees.md: no test keeps promise %d", i+1)
		}
	}
	if len(promises) != 7 {
		t.Errorf("guarantees.md has %d promises", len(promises))
	}
}

// Every label that README shows is one that this version enforces.
func TestReadmeLabels(t *testing.T) {
	n := 0
	for _, m := range span.FindAllStringSubmatch(fence.ReplaceAllString(documents(t)[filepath.Join(top, "README.md")], ""), -1) {
		if !strings.HasPrefix(m[1], "xdp.") || !strings.Contains(m[1], "=") {
			continue
		}
		n++
		e := &env{stdout: io.Discard, stderr: io.Discard, getenv: func(string) string { return "" }}
		if code := run(context.Background(), e, []string{"check", "-l", m[1]}); code != 0 {
			t.Errorf("check -l %s: exit code %d", m[1], code)
		}
	}
	if n == 0 {
		t.Error("README shows no label")
	}
}
