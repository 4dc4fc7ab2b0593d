package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
	"github.com/vethwall/vethwall/xdp"
)

// dropUDP is what xdp.drop=udp denies and allows at sink A.
var (
	deniedUDP  = []string{"53/udp@A", "54/udp@A", "53/udp@A6"}
	allowedUDP = []string{"443/tcp@A", "ping@A", "443/tcp@A6"}
)

// TestLife follows containers through what Docker does with them.
func TestLife(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	v.StartAgent()
	start := func(t *testing.T, name string, labels ...string) *enginetest.Container {
		t.Helper()
		return v.With(t).Start(image, name, labelled(network, labels...))
	}

	t.Run("restart", func(t *testing.T) {
		c := start(t, "restart", "xdp.drop=udp")
		before := awaitFilter(t, v, c.Name, 1)
		v.With(t).Run("restart", c.ID)
		after := await(t, v, c.Name, "is filtered on another veth", func(s agent.ContainerStatus) bool {
			return filtered(s) && len(s.Interfaces) == 1 && s.Interfaces[0].Ifindex != before.Interfaces[0].Ifindex
		})
		if slices.Equal(linkIDs(before), linkIDs(after)) {
			t.Errorf("the link is that of the veth that is gone: %+v", after)
		}
		tr.shows(t, c, deniedUDP, allowedUDP)
		v.With(t).Run("stop", c.ID)
		awaitGone(t, v, c.Name)
	})
	t.Run("renamed, stopped, started", func(t *testing.T) {
		c := start(t, "old", "xdp.drop=udp")
		awaitFilter(t, v, c.Name, 1)
		c.Name = enginetest.Prefix + "new"
		v.With(t).Run("rename", c.ID, c.Name)
		awaitFilter(t, v, c.Name, 1)
		v.With(t).Run("stop", c.ID)
		awaitGone(t, v, c.Name)
		v.With(t).Run("start", c.ID)
		awaitFilter(t, v, c.Name, 1)
		tr.shows(t, c, deniedUDP, allowedUDP)
	})
	t.Run("created anew with other labels", func(t *testing.T) {
		c := start(t, "labels", "xdp.drop=udp")
		awaitFilter(t, v, c.Name, 1)
		v.With(t).Run("rm", "--force", c.ID)
		c = start(t, "labels", "xdp.drop=tcp")
		if s := awaitFilter(t, v, c.ID, 1); s.Policy != "xdp.drop=tcp" {
			t.Errorf("policy %q", s.Policy)
		}
		tr.shows(t, c, []string{"443/tcp@A", "25/tcp@A6"}, []string{"53/udp@A", "ping@A6"})
		v.With(t).Run("rm", "--force", c.ID)
		c = start(t, "labels")
		tr.shows(t, c, nil, append(deniedUDP, allowedUDP...))
	})
	t.Run("second network", func(t *testing.T) {
		v := v.With(t)
		second := v.Network("second", "--subnet", "198.51.100.0/24")
		other := v.Serve(image, "sink-c", []string{"--network", second}, "53/udp", "443/tcp")
		tr.sinks["C"] = sink{Container: other, v4: other.Addr(second, 4)}
		v.Run("network", "connect", second, tr.marker.ID)
		c := start(t, "joins", "xdp.drop=udp")
		awaitFilter(t, v, c.Name, 1)
		v.Run("network", "connect", second, c.ID)
		s := awaitFilter(t, v, c.Name, 2)
		if s.Interfaces[0].Network == s.Interfaces[1].Network || s.Interfaces[0].Ifindex == s.Interfaces[1].Ifindex {
			t.Errorf("two networks on two veths expected: %+v", s.Interfaces)
		}
		tr.shows(t, c, []string{"53/udp@C", "53/udp@A"}, []string{"443/tcp@C", "443/tcp@A"})
		v.Run("network", "disconnect", network, c.ID)
		if s := awaitFilter(t, v, c.Name, 1); s.Interfaces[0].Network != second {
			t.Errorf("left with %+v, want network %s", s.Interfaces[0], second)
		}
		tr.shows(t, c, []string{"53/udp@C"}, []string{"443/tcp@C"})
	})
	t.Run("equal policies", func(t *testing.T) {
		var all []*enginetest.Container
		for i := range 4 {
			all = append(all, start(t, fmt.Sprintf("equal-%d", i), "xdp.drop=udp"))
		}
		for _, c := range all {
			awaitFilter(t, v, c.Name, 1)
		}
		v.With(t).Run("rm", "--force", all[0].ID, all[2].ID)
		for _, c := range []*enginetest.Container{all[1], all[3]} {
			before, _ := statusOf(t, v, c.Name)
			tr.shows(t, c, deniedUDP, allowedUDP)
			// Counted each for itself: three datagrams a way.
			if after, _ := statusOf(t, v, c.Name); drops(after)-drops(before) != 9 {
				t.Errorf("%s: %d packets dropped, then %d, 9 were sent", c.Name, drops(before), drops(after))
			}
		}
	})
	t.Run("paused", func(t *testing.T) {
		c := start(t, "paused", "xdp.drop=udp")
		before := awaitFilter(t, v, c.Name, 1)
		v.With(t).Run("pause", c.ID)
		if s := awaitFilter(t, v, c.Name, 1); !slices.Equal(linkIDs(before), linkIDs(s)) {
			t.Errorf("another link: %+v", s)
		}
		v.With(t).Run("unpause", c.ID)
		tr.shows(t, c, deniedUDP, allowedUDP)
	})
	t.Run("short lives", func(t *testing.T) {
		v := v.With(t)
		// In front, so that each life is over when its command is.
		for i := range 3 {
			v.Run("run", "--rm", "--name", fmt.Sprint(enginetest.Prefix, "short-", i), "--network", network, "--label", "xdp.drop=udp",
				image, "udp-send", addrA4+":54", "short")
		}
		loop := v.Start(image, "crash-loop", append(labelled(network, "xdp.drop=udp"), "--restart", "always"), "no-such-command")
		v.Wait("three crashes", func() error {
			if n := v.Run("inspect", "--format", "{{.RestartCount}}", loop.ID); n < "3" {
				return fmt.Errorf("%s so far", n)
			}
			return nil
		})
		v.Run("rm", "--force", loop.ID)
		settled(t, v)
	})
	t.Run("nothing is left of what has ended", func(t *testing.T) {
		ids := v.With(t).Run("ps", "--quiet", "--filter", "label=xdp.drop")
		v.With(t).Run(append([]string{"rm", "--force"}, strings.Fields(ids)...)...)
		settled(t, v)
		if with := v.With(t).Filtered(); len(with) > 0 {
			t.Errorf("programs on %v", with)
		}
		if out := v.MustAsk("status", "-o", "json"); !strings.HasPrefix(out, "{\n  \"schema\": 1,\n  \"containers\": [],\n  \"hold\": {") {
			t.Errorf("status %s", out)
		}
	})
}

// awaitGone returns when the kernel keeps nothing of a container that does not run.
func awaitGone(t *testing.T, v *enginetest.Vethwall, name string) {
	t.Helper()
	v.With(t).Wait("the record of "+name+" is gone", func() error {
		if s, there := statusOf(t, v, name); there {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}

// settled returns when the records are those of running containers, and the pins those of their veths.
func settled(t *testing.T, v *enginetest.Vethwall) {
	t.Helper()
	began := time.Now()
	v.With(t).Wait("records and pins of what has ended are gone", func() error {
		running := strings.Fields(v.With(t).Run("ps", "--quiet", "--no-trunc"))
		var want []string
		for _, c := range statusAll(t, v) {
			if !slices.Contains(running, c.ID) {
				return fmt.Errorf("%s does not run: %+v", c.Name, c)
			}
			for _, i := range c.Interfaces {
				for _, h := range i.Hooks {
					want = append(want, fmt.Sprintf("%d-%s", i.Ifindex, pinOf(h)))
				}
			}
		}
		have := pins(t, v)
		if slices.ContainsFunc(have, closesResolver) {
			want = append(want, resolverPins(t, v, running, have)...)
		}
		// A namespace may outlive its container in the hands of others, and with it its veths; an engine that was killed leaves some.
		if time.Since(began) > 20*time.Second {
			want = append(want, heldByOthers(t, v, have, want)...)
		}
		if !slices.Equal(have, slices.Sorted(slices.Values(want))) {
			return fmt.Errorf("links %v are pinned, want %v", have, want)
		}
		return nil
	})
}

// heldByOthers are those of have, but not of want, that belong to namespaces which others than the agent keep alive.
func heldByOthers(t *testing.T, v *enginetest.Vethwall, have, want []string) (out []string) {
	t.Helper()
	agentHolds := holdsNamespaces(v.AgentPid())
	there := map[string]bool{}
	for _, l := range v.Links() {
		there[strconv.Itoa(l.Index)] = true
	}
	for _, pin := range have {
		of, hook, _ := strings.Cut(pin, "-")
		switch {
		case slices.Contains(want, pin):
		case hook == "resolver":
			holders := holdersOf(of, v.AgentPid())
			t.Logf("namespace %s of a container that has ended is held by %v", of, holders)
			if len(holders) > 0 {
				out = append(out, pin)
			}
		case there[of]:
			t.Logf("device %s of a container that has ended is there; the agent has namespaces open: %v", of, agentHolds)
			if len(agentHolds) == 0 {
				out = append(out, pin)
			}
		}
	}
	return out
}

// holdsNamespaces are the network namespaces that a process has open, but its own.
func holdsNamespaces(pid int) (out []string) {
	own, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, f := range files {
		if target, err := os.Readlink(f); err == nil && strings.HasPrefix(target, "net:[") && target != own {
			out = append(out, target)
		}
	}
	return out
}

// holdersOf are the processes that keep a network namespace alive: that live in it, or have it open or mounted; except is left out.
func holdersOf(inode string, except int) (out []string) {
	name := "net:[" + inode + "]"
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		if filepath.Base(p) == strconv.Itoa(except) {
			continue
		}
		links, _ := filepath.Glob(p + "/fd/*")
		for _, l := range append(links, p+"/ns/net") {
			if target, err := os.Readlink(l); err == nil && target == name {
				out = append(out, l)
			}
		}
		if mounts, err := os.ReadFile(p + "/mountinfo"); err == nil && strings.Contains(string(mounts), name) {
			out = append(out, p+"/mountinfo")
		}
	}
	return out
}

func closesResolver(pin string) bool { return strings.HasSuffix(pin, "-resolver") }

// resolverPins are those of have that close the engine's resolver to a container that runs.
func resolverPins(t *testing.T, v *enginetest.Vethwall, running, have []string) (out []string) {
	t.Helper()
	inspected, _ := v.With(t).Try(append([]string{"inspect", "--format", "{{.State.Pid}}"}, running...)...) // one may be gone by now
	for _, pid := range strings.Fields(inspected) {
		inode, _ := os.Readlink("/proc/" + pid + "/ns/net")
		pin := strings.TrimSuffix(strings.TrimPrefix(inode, "net:["), "]") + "-resolver"
		if slices.Contains(have, pin) {
			out = append(out, pin)
		}
	}
	return out
}

// pinOf is what the name of a hook's pin ends with.
func pinOf(h xdp.Hook) string {
	switch {
	case h.ByHand != "":
		return "byhand"
	case h.Direction == "ingress":
		return "received"
	case h.Type == "xdp":
		return "xdp"
	}
	return "sent"
}

// pins are the names of the pinned links, in order.
func pins(t *testing.T, v *enginetest.Vethwall) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(v.Dir, "links"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
