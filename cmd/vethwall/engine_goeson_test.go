package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/internal/enginetest"
)

// TestStatusOfTheAgent has what is said of an agent in states in which it is easily mistaken for one that runs, or for none.
func TestStatusOfTheAgent(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	v.Configure("policies: [{pick: {name: '*picked'}, labels: {xdp.drop: udp}}]")
	v.StartAgent()
	awaitFilter(t, v, v.Start(image, "filtered", []string{"--label", "xdp.drop=udp"}).Name, 1)
	says := func(t *testing.T, text string) {
		t.Helper()
		v.With(t).Wait("status says "+text, func() error {
			if a := v.With(t).Ask("status"); a.Code != 0 || text == "" && a.Stderr != "" || !strings.Contains(a.Stderr, text) {
				return &os.PathError{Op: "status", Path: a.Stdout, Err: os.ErrInvalid}
			}
			return nil
		})
	}
	t.Run("stopped", func(t *testing.T) {
		says(t, "")
		v.SignalAgent(syscall.SIGSTOP)
		says(t, "has been stopped or stuck")
		refused(t, v.With(t).Ask("uninstall"), "stop it first")
		v.SignalAgent(syscall.SIGCONT)
		says(t, "")
	})
	t.Run("its directory is removed", func(t *testing.T) {
		if err := os.RemoveAll(v.Dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		says(t, "")
		refused(t, v.With(t).Ask("uninstall"), "stop it first")
		refused(t, v.With(t).Ask("agent"), "another vethwall agent runs")
	})
	t.Run("none, and who is picked", func(t *testing.T) {
		v := v.With(t)
		v.EndAgent(syscall.SIGKILL)
		c := v.Start(image, "picked", nil)
		if a := v.Ask("status"); a.Code != 0 || !strings.Contains(a.Stdout, c.Name) || !strings.Contains(a.Stdout, "NOT FILTERED: the agent's configuration asks") {
			t.Errorf("status: %+v", a)
		}
		v.Configure("policies: [{pick: {nam: picked}}]")
		if a := v.Ask("status"); a.Code != 0 || strings.Contains(a.Stdout, c.Name) || !strings.Contains(a.Stderr, "the agent's configuration cannot be used") {
			t.Errorf("status beside a mistake: %+v", a)
		}
		v.Configure("{}")
	})
	// Its log goes into a pipe that is full.
	for name, gone := range map[string]bool{"who reads its log is gone": true, "nobody reads its log": false} {
		t.Run(name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			size, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			cmd := v.Command(v.Bin, "agent", "--dir", v.Dir, "--config", v.Config)
			cmd.Stdout, cmd.Stderr = w, w
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _, _ = cmd.Process.Kill(), r.Close() }()
			_ = w.Close()
			if gone {
				_ = r.Close()
			}
			awaitFilter(t, v, v.With(t).Start(image, fmt.Sprintf("read-%t", gone), []string{"--label", "xdp.drop=udp"}).Name, 1)
			time.Sleep(6 * time.Second)
			says(t, "")
			began := time.Now()
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it ends after %v", took)
			}
		})
	}
}
