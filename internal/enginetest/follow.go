package enginetest

import (
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Follower is a run of the program that goes on until somebody ends it.
type Follower struct {
	v      *Vethwall
	cmd    *exec.Cmd
	done   chan struct{}
	stdout logBuffer
	stderr logBuffer
}

// Follow starts the program. It ends with the test at the latest.
func (v *Vethwall) Follow(args ...string) *Follower {
	v.t.Helper()
	f := &Follower{v: v, cmd: v.Command(v.Bin, v.withFlags(args)...)}
	f.cmd.Stdout, f.cmd.Stderr = &f.stdout, &f.stderr
	var err error
	if f.done, err = spawn(f.cmd, syscall.SIGKILL); err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() {
		_ = f.cmd.Process.Kill() // no error matters: it may have ended
		<-f.done
	})
	return f
}

// Lines are what it has printed so far, whole lines only.
func (f *Follower) Lines() []string {
	lines := strings.Split(f.stdout.String(), "\n")
	return lines[:len(lines)-1]
}

// Await returns the lines once ok holds for one of them.
func (f *Follower) Await(what string, ok func(line string) bool) []string {
	f.v.t.Helper()
	var lines []string
	f.v.Wait(what, func() error {
		lines = f.Lines()
		for _, line := range lines {
			if ok(line) {
				return nil
			}
		}
		return errors.New("it has printed:\n" + f.stdout.String() + f.stderr.String())
	})
	return lines
}

// End sends it a signal and returns its exit code, -1 where the signal killed it, and what it wrote to stderr.
func (f *Follower) End(sig syscall.Signal) (code int, stderr string) {
	f.v.t.Helper()
	_ = f.cmd.Process.Signal(sig)
	select {
	case <-f.done:
	case <-time.After(patience):
		f.v.t.Fatalf("it does not end on %v", sig)
	}
	return f.cmd.ProcessState.ExitCode(), f.stderr.String()
}
