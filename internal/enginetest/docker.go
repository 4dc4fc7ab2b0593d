// Package enginetest is what tests on real Docker engines stand on: the machine's own engine, engines
// of the test's own in a network namespace that plays the host, images that need no registry, and
// containers that send, receive and tell what they received.
//
// Only tests import it. Everything that it makes is named vethwall-test-*, and is removed by name or
// number when the test ends; nothing else is touched.
package enginetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Prefix begins the name of every container, network, image and namespace made here.
const Prefix = "vethwall-test-"

// patience is how long anything here may take before the test fails.
const patience = 30 * time.Second

// Docker runs the docker command against one engine, on behalf of one test.
type Docker struct {
	t testing.TB
	// Env is the environment that leads to the engine: the test's own, with DOCKER_HOST set where the
	// engine is not the machine's.
	Env []string
	// prefix keeps apart the names of tests that share an engine.
	prefix string
	own    bool // the engine is the test's own
}

// Need skips the test when ok is false, and fails it where CI is set: there everything must run.
func Need(t testing.TB, ok bool, what string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("this test needs %s, and with CI set it must not be skipped", what)
	}
	t.Skipf("needs %s", what)
}

// Host is the machine's own engine, the one that DOCKER_HOST names.
func Host(t testing.TB) *Docker {
	t.Helper()
	Need(t, os.Geteuid() == 0, "root")
	d := &Docker{t: t, Env: os.Environ(), prefix: Prefix + random() + "-"}
	_, err := d.Try("version", "--format", "{{.Server.Version}}")
	Need(t, err == nil, "a Docker engine that answers")
	return d
}

// With is the same engine for another test, such as a subtest: failures and clean-up are the other's.
func (d *Docker) With(t testing.TB) *Docker {
	other := *d
	other.t = t
	return &other
}

// Try runs docker with args and returns its trimmed standard output. The error carries what docker
// wrote to standard error.
func (d *Docker) Try(args ...string) (string, error) { return d.try(nil, args...) }

func (d *Docker) try(stdin []byte, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env, cmd.Stdin = d.Env, bytes.NewReader(stdin)
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), errors.Join(err, ctx.Err()), bytes.TrimSpace(stderr.Bytes()))
	}
	return string(bytes.TrimSpace(out)), err
}

// Run is Try for what must not fail.
func (d *Docker) Run(args ...string) string {
	d.t.Helper()
	out, err := d.Try(args...)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

// Network makes a network, with options as docker network create knows them, and returns its name.
func (d *Docker) Network(name string, options ...string) string {
	d.t.Helper()
	full := d.prefix + name
	d.Run(append(append([]string{"network", "create"}, options...), full)...)
	d.cleanup("network", "rm", full)
	return full
}

// cleanup runs docker with args when the test ends. That the thing is gone by then is no failure.
func (d *Docker) cleanup(args ...string) {
	if d.own {
		return // the engine takes everything along when it goes
	}
	d.t.Cleanup(func() {
		if out, err := d.Try(args...); err != nil && !strings.Contains(strings.ToLower(err.Error()), "no such") {
			d.t.Logf("clean-up: %v %s", err, out)
		}
	})
}

func random() string {
	b := make([]byte, 4)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}
