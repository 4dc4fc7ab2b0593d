package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// TestOutOfMemory starts agents with too little memory: what is filtered stays so, whatever becomes of the agent, and one that
// has enough adopts it, and filters what came meanwhile.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	v.StartAgent()
	const stateful = "xdp.egress.drop=53-54/udp"
	c := v.Start(image, "denied", labelled(network, stateful), steadily(addrA4+":53", "denied")...)
	before := linkIDs(awaitFilter(t, v, c.Name, 1))
	enough := v.Bin
	for i := range times(1, 20) {
		mb := times(14, 4) + 2*i
		v.EndAgent(syscall.SIGKILL)
		v.Bin = limited(t, enough, mb<<20)
		v.SpawnAgent()
		// Each takes some megabytes of tables, if the agent comes that far.
		var more []*enginetest.Container
		for i := range 4 {
			more = append(more, v.Start(image, fmt.Sprintf("more-%d-%d", mb, i), labelled(network, stateful)))
		}
		time.Sleep(time.Second)
		ready := strings.Contains(v.Log(), "ready:")
		code := v.EndAgent(syscall.SIGTERM)
		t.Logf("%d MB: ready %v, exit code %d: %s", mb, ready, code, lastLine(v.Log()))
		v.Bin = enough
		v.StartAgent()
		if after := linkIDs(awaitFilter(t, v, c.Name, 1)); !slices.Equal(before, after) {
			t.Errorf("links %v became %v", before, after)
		}
		for _, c := range more {
			await(t, v, c.Name, "is filtered", func(s agent.ContainerStatus) bool { return filtered(s) && len(s.Interfaces) == 1 })
			v.Run("rm", "--force", c.ID)
		}
		tr.shows(t, c, deniedUDP, allowedUDP)
	}
	if n := tr.sinks["A"].Count("denied"); n > 0 {
		t.Errorf("%d packets got through", n)
	}
	settled(t, v)
}

// limited is a program that starts bin in a memory cgroup of its own.
func limited(t *testing.T, bin string, bytes int) string {
	t.Helper()
	root, file := "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		root, file = "/sys/fs/cgroup", "memory.max"
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	group, err := os.MkdirTemp(root, enginetest.Prefix)
	enginetest.Need(t, err == nil, "a memory cgroup")
	t.Cleanup(func() {
		var err error
		for range 100 {
			if err = os.Remove(group); err == nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Errorf("left: %v", err)
	})
	if err := os.WriteFile(filepath.Join(group, file), fmt.Append(nil, bytes), 0o600); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "vethwall")
	text := fmt.Sprintf("#!/bin/sh\necho $$ > %s/cgroup.procs && exec %s \"$@\"\n", group, bin)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil { // #nosec G306 -- a program
		t.Fatal(err)
	}
	return script
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
