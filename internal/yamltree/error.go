package yamltree

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Error is a mistake in a file.
type Error struct {
	File string // as it was named
	// Line and Column count from 1, columns in characters; Width is how many characters are wrong, at least 1.
	Line, Column, Width int
	// Text is that line of the file as it is.
	Text string
	// Problem is what is there, Expected what was expected there, Hint what to write or do; both may be "".
	Problem, Expected, Hint string
}

// Error is one line, with the place before all else. Parts of the file in it are not escaped.
func (e *Error) Error() string { return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Why()) }

// Why is the error without its place.
func (e *Error) Why() string {
	out := e.Problem
	if e.Expected != "" {
		out += ", expected " + e.Expected
	}
	if e.Hint != "" {
		out += "; " + e.Hint
	}
	return out
}

// Errors are all mistakes in a file, in its order.
type Errors []*Error

// Error has a line for each.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, one := range e {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap is for errors.As.
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i, one := range e {
		out[i] = one
	}
	return out
}

// Join is the error of mistakes that were found in any order, nil for none.
func Join(errs []*Error) error {
	if len(errs) == 0 {
		return nil
	}
	slices.SortStableFunc(errs, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return Errors(errs)
}
