package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// gated is a writer that keeps one waiting until the gate opens.
type gated struct {
	gate chan struct{}
	bytes.Buffer
}

func (g *gated) Write(p []byte) (int, error) {
	<-g.gate
	return g.Buffer.Write(p)
}

// TestLogWriter logs to somebody who does not read: who logs goes on, and the log says later how much is missing.
func TestLogWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &gated{gate: make(chan struct{})}
		w := newLogWriter(to)
		log := slog.New(slog.NewTextHandler(w, nil))
		log.Info("line 0")
		synctest.Wait() // it is being written
		const more = 10
		for i := range logLines + more {
			log.Info(fmt.Sprintf("line %d.", i+1))
		}
		began := time.Now()
		w.Close()
		if took := time.Since(began); took != logPatience {
			t.Errorf("the end waits for %v", took)
		}
		close(to.gate)
		<-w.done
		text := to.String()
		if n := strings.Count(text, "\n"); n != logLines+2 || !strings.Contains(text, fmt.Sprintf("%d lines of the log are missing", more)) || !strings.Contains(text, fmt.Sprintf("line %d.", logLines)) {
			t.Errorf("%d lines: %.300s", n, text)
		}
	})
}
