package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// env is what a command may touch of the process that it runs in.
type env struct {
	stdout, stderr io.Writer
	getenv         func(string) string
}

// answerNo is the error of a command that ran and whose answer is no: exit code 1. Its text goes to stderr like that
// of any error, and nothing does where it is empty, because the answer stands on stdout.
type answerNo string

func (a answerNo) Error() string { return string(a) }

// colour is a terminal's escape sequence. All have the same length, so that a column of a tabwriter stays straight
// if every cell of it is painted.
type colour string

const (
	plain  colour = "\x1b[39m"
	red    colour = "\x1b[31m"
	green  colour = "\x1b[32m"
	yellow colour = "\x1b[33m"
)

// paint returns s in colour c, or s where stdout is no terminal or NO_COLOR is set.
func (e *env) paint(c colour, s string) string {
	f, ok := e.stdout.(*os.File)
	if !ok || e.getenv("NO_COLOR") != "" || e.getenv("TERM") == "dumb" || !term.IsTerminal(int(f.Fd())) {
		return s
	}
	return string(c) + s + "\x1b[0m"
}

// clean makes text from elsewhere (names, labels, what an engine says) safe to print: what is not printable (control and
// bidirectional characters, invisible ones, invalid UTF-8) comes out as a Go escape. Text without such stays as it is.
func clean(s string) string { return escape(s, unicode.IsPrint, strconv.QuoteRune) }

// escape replaces what is not safe by what quote makes of it, without the quotes; a byte that is no UTF-8 by \xNN.
func escape(s string, safe func(rune) bool, quote func(rune) string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case safe(r):
			b.WriteString(s[:n])
		default:
			b.WriteString(strings.Trim(quote(r), "'"))
		}
		s = s[n:]
	}
	return b.String()
}

// format is the value of -o.
type format string

const (
	table   format = "table"
	jsonDoc format = "json"
)

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "FORMAT" }
func (f *format) Set(s string) error {
	if s != string(table) && s != string(jsonDoc) {
		return fmt.Errorf("want %s or %s", table, jsonDoc)
	}
	*f = format(s)
	return nil
}

// outputFlag gives cmd the flag -o and returns where its value will stand.
func outputFlag(cmd *cobra.Command) *format {
	f := table
	cmd.Flags().VarP(&f, "output", "o", "table or json")
	complete := cobra.FixedCompletions([]string{string(table), string(jsonDoc)}, cobra.ShellCompDirectiveNoFileComp)
	if err := cmd.RegisterFlagCompletionFunc("output", complete); err != nil {
		panic(err) // only for a flag that does not exist or a second registration
	}
	return &f
}

// printJSON writes v to stdout, indented. The document means what encoding/json would have written; characters that could
// move a terminal's cursor or turn its text round are spelled \uXXXX.
func (e *env) printJSON(v any) error { return e.writeJSON(v, "  ") }

// printJSONLine is printJSON on one line.
func (e *env) printJSONLine(v any) error { return e.writeJSON(v, "") }

func (e *env) writeJSON(v any, indent string) error {
	var doc bytes.Buffer
	enc := json.NewEncoder(&doc)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return err
	}
	var out strings.Builder
	for _, r := range doc.String() {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			out.WriteRune(r)
		case r > 0xffff:
			out.WriteRune(r) // would need a surrogate pair; nothing there acts on a terminal
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	_, err := io.WriteString(e.stdout, out.String())
	return err
}
