package policy

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// LabelError says which label is wrong, where, and what to write instead.
type LabelError struct {
	// Key and Value are the label as it is; Key is "" for a match that stands under none.
	Key, Value string
	// Offset is the byte in Value where it went wrong, -1 when the key is at fault.
	Offset int
	// Problem is what is there, Expected what was expected there.
	Problem, Expected string
	// Hint is what to do, such as "write 443/tcp"; "" if unknown.
	Hint string
}

// Error is one line of printable ASCII, however long and strange the label.
func (e *LabelError) Error() string {
	var b strings.Builder
	if e.Key != "" {
		b.WriteString(showKey(e.Key))
	}
	if e.Offset >= 0 {
		if e.Key != "" {
			b.WriteByte('=')
		}
		b.WriteString(excerpt(e.Value, e.Offset) + ": at " + strconv.Itoa(e.Offset))
	}
	b.WriteString(": " + printable(e.Problem))
	if e.Expected != "" {
		b.WriteString(", expected " + printable(e.Expected))
	}
	if e.Hint != "" {
		b.WriteString("; " + printable(e.Hint))
	}
	return b.String()
}

// printable escapes what is not printable ASCII; hints repeat parts of labels.
func printable(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return s
	}
	q := strconv.QuoteToASCII(s)
	return q[1 : len(q)-1]
}

// label turns the fault into an error of the label key=value; its offset is one of value.
func (f *fault) label(key, value string) *LabelError {
	return &LabelError{Key: key, Value: value, Offset: f.off, Problem: f.problem, Expected: f.expected, Hint: f.hint}
}

// showKey leaves an ordinary key as it is and quotes every other.
func showKey(key string) string {
	if len(key) <= excerptSize && !strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' }) {
		return key
	}
	return quote(key)
}

// excerptSize is how many bytes of a text an error shows.
const excerptSize = 80

// quote shows a text that came from a label: escaped, in printable ASCII, and cut when it is long.
func quote(s string) string { return excerpt(s, 0) }

// excerpt quotes the part of s around off.
func excerpt(s string, off int) string {
	from := max(0, min(off, len(s))-excerptSize/2)
	if from+excerptSize >= len(s) {
		from = max(0, len(s)-excerptSize)
	}
	to := min(len(s), from+excerptSize)
	for i := 1; i < utf8.UTFMax && from > 0 && !utf8.RuneStart(s[from]); i++ {
		from++
	}
	for i := 1; i < utf8.UTFMax && to < len(s) && !utf8.RuneStart(s[to]); i++ {
		to--
	}
	q := strconv.QuoteToASCII(s[from:to])
	if from > 0 {
		q = "..." + q
	}
	if to < len(s) {
		q += "..."
	}
	return q
}

// notA is the problem of a token that is not what it should be.
func notA(s, what string) string {
	if s == "" {
		return "a missing " + what
	}
	if strings.ContainsRune("aeioAI", rune(what[0])) {
		return quote(s) + " is not an " + what
	}
	return quote(s) + " is not a " + what
}
