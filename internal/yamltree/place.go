package yamltree

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

type file struct {
	name  string
	lines []string
}

// place is where something begins in a file, and how it is written there.
type place struct {
	file         *file
	line, column int // from 1, in characters
	width        int
	style        style
}

// style is how a scalar is written.
type style uint8

const (
	plain style = iota
	singleQuoted
	doubleQuoted
	block // | or >
)

// Line is where it begins, from 1.
func (p place) Line() int { return p.line }

// Wrong is the error of something as a whole.
func (p place) Wrong(problem, expected, hint string) *Error {
	e := &Error{File: p.file.name, Line: p.line, Column: p.column, Width: p.width, Problem: problem, Expected: expected, Hint: hint}
	if p.line <= len(p.file.lines) {
		e.Text = strings.TrimSuffix(p.file.lines[p.line-1], "\r")
	}
	// A value that is left out has the place behind its key.
	end := utf8.RuneCountInString(e.Text) + 1
	e.Column = min(e.Column, end)
	e.Width = max(1, min(e.Width, end-e.Column))
	return e
}

// WrongAt is the error of what begins at a byte of the Text of a Scalar.
func (n *Node) WrongAt(offset int, problem, expected, hint string) *Error {
	at := n.place
	at.width = 1
	at.line, at.column = n.find(offset)
	return at.Wrong(problem, expected, hint)
}

// find is where a byte of Text stands in the file. Folding, indenting and escaping change nothing but spaces and the
// spelling of single characters, so the characters of both are counted off against each other, spaces left out.
func (n *Node) find(offset int) (line, column int) {
	offset = min(offset, len(n.Text))
	before, after := visible(n.Text[:offset]), visible(n.Text[offset:])
	c := n.cursor()
	line, column = c.line, c.column
	for seen := 0; ; seen++ {
		if seen == len(before) && len(after) == 0 {
			return line, column // behind the last one
		}
		unit, at, ok := c.next()
		for ok && unicode.IsSpace(unit) {
			unit, at, ok = c.next()
		}
		switch {
		case !ok || seen < len(before) && unit != escaped && unit != before[seen]:
			return n.line, n.column // written in a way that is not understood here
		case seen == len(before):
			return at.line, at.column
		}
		line, column = c.line, c.column
	}
}

func visible(s string) []rune { return []rune(strings.Join(strings.Fields(s), "")) }

// cursor walks through a scalar as it is written.
type cursor struct {
	place
	rest []rune // of its line, nil before that is read
}

func (n *Node) cursor() *cursor {
	c := &cursor{place: n.place}
	switch n.style {
	case singleQuoted, doubleQuoted:
		c.column++
	case block:
		c.line, c.column = c.line+1, 1
	}
	return c
}

// escaped stands for a character that is written as an escape.
const escaped = unicode.MaxRune + 1

// next is the next character and where it begins; the end of a line is one. It is false at the end of the file.
func (c *cursor) next() (unit rune, at place, ok bool) {
	at = c.place
	if c.line > len(c.file.lines) {
		return 0, at, false
	}
	if c.rest == nil {
		c.rest = append([]rune(c.file.lines[c.line-1]), '\n')
		c.rest = c.rest[min(c.column-1, len(c.rest)-1):]
	}
	unit, size := c.rest[0], 1
	switch {
	case unit == '\n':
		c.line, c.column, c.rest = c.line+1, 1, nil
		return unit, at, true
	case c.style == singleQuoted && unit == '\'':
		size = 2
	case c.style == doubleQuoted && unit == '\\':
		unit, size = escape(c.rest[1])
	}
	size = min(size, len(c.rest)-1)
	c.column, c.rest = c.column+size, c.rest[size:]
	return unit, at, true
}

// escape is what a backslash before c makes, and how many characters of the file it takes.
func escape(c rune) (unit rune, size int) {
	switch c {
	case 'x':
		return escaped, 4
	case 'u':
		return escaped, 6
	case 'U':
		return escaped, 10
	case 'n', 't', 'r', 'v', 'f', ' ', '\t', 'N', 'L', 'P', '_':
		return ' ', 2
	}
	return escaped, 2
}
