package main

import (
	"fmt"
	"strconv"
	"strings"
)

// maxErrors is how many errors a table shows; a list of addresses under a wrong key has one for each.
const maxErrors = 20

// table is a judgement for people, the error alone in colour.
func (j judgement) table(e *env) string {
	var b strings.Builder
	for _, s := range j.Sources {
		fmt.Fprintf(&b, "%s: %s\n", s.Origin, clean(s.Policy))
	}
	if len(j.Sources) > 0 {
		b.WriteByte('\n')
	}
	b.WriteString(errorTable(e, j.Errors))
	for _, s := range j.Sentences {
		b.WriteString(clean(s) + "\n")
	}
	for _, w := range j.Warnings {
		b.WriteString(e.paint(yellow, "warning:") + " " + clean(w) + "\n")
	}
	return b.String()
}

func errorTable(e *env, errs []errorReport) string {
	var b strings.Builder
	for _, wrong := range errs[:min(len(errs), maxErrors)] {
		b.WriteString(e.paint(red, "error:") + " " + wrong.place() + "\n")
	}
	if more := len(errs) - maxErrors; more > 0 {
		fmt.Fprintf(&b, "%d more errors\n\n", more)
	}
	return b.String()
}

// place is the error as compilers show it: the problem, the label or the line of the file, a caret under the place,
// what to do. An error of neither is its text.
func (r errorReport) place() string {
	if r.Key == "" && r.at == nil {
		return clean(r.Text) + "\n"
	}
	problem := r.whose + r.Problem
	if r.Expected != "" {
		problem += ", expected " + r.Expected
	}
	line, column, width := r.excerpt()
	if r.at != nil {
		problem = fmt.Sprintf("%s:%d:%d: %s", r.File, r.Line, r.Column, problem)
	}
	out := clean(problem) + "\n  " + line + "\n  " + strings.Repeat(" ", column) + strings.Repeat("^", width) + "\n"
	if r.Hint != "" {
		out += "  " + clean(r.Hint) + "\n"
	}
	return out
}

// excerpt shows where the error is. column and width, in characters of line, are where the caret stands.
func (r errorReport) excerpt() (line string, column, width int) {
	switch {
	case r.at != nil:
		text := []rune(r.at.Text)
		from := min(r.Column-1, len(text))
		to := min(from+r.at.Width, len(text))
		return excerpt(string(text[:from]), string(text[from:to]), string(text[to:]))
	case r.Offset < 0:
		return excerpt("", r.Key, "="+r.Value)
	}
	at := min(r.Offset, len(r.Value))
	return excerpt(r.Key+"="+r.Value[:at], "", r.Value[at:])
}

// excerptSide is how much of a long line stands on each side of the caret.
const excerptSide = 60

// excerpt shows a line around what is at fault in it, which may be "": the caret stands under the first character then.
func excerpt(before, at, after string) (line string, column, width int) {
	before, at, after = ascii(before), ascii(at), ascii(after)
	if cut := len(before) - excerptSide; cut > 0 {
		before = "..." + before[cut:]
	}
	width = max(1, min(len(at), excerptSide))
	if rest := at + after; len(rest) > width+excerptSide {
		return before + rest[:width+excerptSide] + "...", len(before), width
	}
	return before + at + after, len(before), width
}

// ascii is like clean, but so that every byte of it takes one column on every terminal.
func ascii(s string) string {
	return escape(s, func(r rune) bool { return ' ' <= r && r <= '~' }, strconv.QuoteRuneToASCII)
}
