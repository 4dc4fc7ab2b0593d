package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

// maxErrors is how many errors a table shows; a list of addresses under a wrong key has one for each.
const maxErrors = 20

func reportTable(e *env, r report) error {
	var b strings.Builder
	for _, s := range r.Sources {
		fmt.Fprintf(&b, "%s: %s\n", s.Origin, clean(s.Policy))
	}
	if len(r.Sources) > 0 {
		b.WriteByte('\n')
	}
	for _, wrong := range r.Errors[:min(len(r.Errors), maxErrors)] {
		b.WriteString(e.paint(red, "error:") + " " + wrong.place() + "\n")
	}
	if more := len(r.Errors) - maxErrors; more > 0 {
		fmt.Fprintf(&b, "%d more errors\n\n", more)
	}
	for _, s := range r.Sentences {
		b.WriteString(clean(s) + "\n")
	}
	for _, w := range r.Warnings {
		b.WriteString(e.paint(yellow, "warning:") + " " + clean(w) + "\n")
	}
	_, err := io.WriteString(e.stdout, b.String())
	return err
}

// place is the error as compilers show it: the problem, the label, a caret under the place, what to do. An
// error of no label is its text.
func (r errorReport) place() string {
	if r.Key == "" {
		return clean(r.Text) + "\n"
	}
	problem := r.whose + r.Problem
	if r.Expected != "" {
		problem += ", expected " + r.Expected
	}
	line, column, width := excerpt(r.Key, r.Value, r.Offset)
	out := clean(problem) + "\n  " + line + "\n  " + strings.Repeat(" ", column) + strings.Repeat("^", width) + "\n"
	if r.Hint != "" {
		out += "  " + clean(r.Hint) + "\n"
	}
	return out
}

// excerptSide is how much of a long label stands on each side of the caret.
const excerptSide = 60

// excerpt shows the label key=value around byte offset of value, or around all of its key where offset is negative. column
// and width, in characters of line, are where the caret stands.
func excerpt(key, value string, offset int) (line string, column, width int) {
	before, at, after := "", ascii(key), "="+ascii(value)
	if offset >= 0 {
		offset = min(offset, len(value))
		before, at, after = at+"="+ascii(value[:offset]), ascii(value[offset:]), ""
	}
	if cut := len(before) - excerptSide; cut > 0 {
		before = "..." + before[cut:]
	}
	width = 1
	if offset < 0 {
		width = min(len(at), excerptSide)
	}
	if rest := at + after; len(rest) > width+excerptSide {
		return before + rest[:width+excerptSide] + "...", len(before), width
	}
	return before + at + after, len(before), width
}

// ascii is like clean, but so that every byte of it takes one column on every terminal.
func ascii(s string) string {
	return escape(s, func(r rune) bool { return ' ' <= r && r <= '~' }, strconv.QuoteRuneToASCII)
}
