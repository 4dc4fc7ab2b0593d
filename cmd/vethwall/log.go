package main

import (
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"
)

// logWriter passes lines on to a writer that may keep one waiting for as long as it likes: a pipe that nobody reads, a terminal that was stopped. Who
// writes a line waits for nothing. What there is no room for is left out, and their number said.
type logWriter struct {
	to    io.Writer
	lines chan []byte
	lost  atomic.Int64
	quit  chan struct{}
	done  chan struct{}
}

// logLines is how many lines wait at the most, and logPatience how long the last of them are waited for.
const (
	logLines    = 1024
	logPatience = time.Second
)

func newLogWriter(to io.Writer) *logWriter {
	w := &logWriter{to: to, lines: make(chan []byte, logLines), quit: make(chan struct{}), done: make(chan struct{})}
	go w.pass()
	return w
}

// Write takes one line or several. It never fails.
func (w *logWriter) Write(p []byte) (int, error) {
	select {
	case w.lines <- slices.Clone(p):
	default:
		w.lost.Add(1)
	}
	return len(p), nil
}

func (w *logWriter) pass() {
	defer close(w.done)
	for {
		select {
		case line := <-w.lines:
			w.put(line)
			continue
		case <-w.quit:
		}
		for {
			select {
			case line := <-w.lines:
				w.put(line)
			default:
				return
			}
		}
	}
}

// put writes a line. Those that were left out came after it.
func (w *logWriter) put(line []byte) {
	_, _ = w.to.Write(line)
	if n := w.lost.Swap(0); n > 0 {
		fmt.Fprintf(w.to, "vethwall: about here %d lines of the log are missing, because nobody read it\n", n)
	}
}

// Close waits until all lines are written, but not for long.
func (w *logWriter) Close() {
	close(w.quit)
	select {
	case <-w.done:
	case <-time.After(logPatience):
	}
}
