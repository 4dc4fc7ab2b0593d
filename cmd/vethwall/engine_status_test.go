package main

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vethwall/vethwall/internal/enginetest"
	"github.com/vethwall/vethwall/xdp"
)

// TestMachinesEngine is the 30-second example, on the engine that the user has.
func TestMachinesEngine(t *testing.T) {
	d := enginetest.Host(t)
	enginetest.Need(t, !xdp.AgentRuns(xdp.DefaultDir), "an engine whose containers no other agent filters: stop it")
	v := d.Install()
	image := v.Image()
	v.StartAgent()
	one := v.Serve(image, "sink", nil, "53/udp", "54/udp", "25/tcp", "443/tcp")
	free := v.Start(image, "free", nil)
	tr := &traffic{v: v, marker: free, sinks: map[string]sink{"A": {Container: one, v4: one.Addr("bridge", 4)}}}
	c := v.Start(image, "web", []string{"--label", "xdp.drop=udp"})

	before := time.Now()
	if a := v.Ask("status", c.Name, "--wait", "20s"); a.Code != 0 || time.Since(before) > 15*time.Second {
		t.Errorf("status --wait took %v: %+v", time.Since(before), a)
	}
	tr.shows(t, c, []string{"53/udp@A", "54/udp@A"}, []string{"25/tcp@A", "443/tcp@A", "ping@A"})
	tr.shows(t, free, nil, []string{"53/udp@A", "443/tcp@A", "ping@A"})

	t.Run("table", func(t *testing.T) {
		line := strings.Fields(lineWith(v.MustAsk("status"), c.Name))
		if len(line) != 11 || line[2] != "bridge" || !strings.HasPrefix(line[3], "veth") || strings.Join(line[4:8], " ") != "xdp generic + tcx" || line[9] != "6" || line[10] != "xdp.drop=udp" {
			t.Errorf("line %q", line)
		}
		if all := v.MustAsk("status", "--all"); lineWith(all, free.Name) == "" || lineWith(v.MustAsk("status"), free.Name) != "" {
			t.Errorf("the free container belongs into --all alone: %s", all)
		}
		if text := v.MustAsk("status", c.ID[:12]); !strings.Contains(text, "dropped 6 packets") || !strings.Contains(text, "bytes, sent: rule udp") {
			t.Errorf("status by id: %s", text)
		}
	})
	t.Run("JSON", func(t *testing.T) { stableJSON(t, v.MustAsk("status", c.Name, "-o", "json"), c) })
	t.Run("no", func(t *testing.T) {
		before := time.Now()
		a := v.Ask("status", free.Name, "--wait", "300ms")
		if a.Code != 1 || time.Since(before) < 300*time.Millisecond {
			t.Errorf("an unfiltered container, after %v: %+v", time.Since(before), a)
		}
		if a := v.Ask("status", "no-such-container"); a.Code != 1 || a.Stdout != "" || !strings.Contains(a.Stderr, "no running container") {
			t.Errorf("no container: %+v", a)
		}
		refused(t, v.Ask("status", "--wait", "1s"), "--wait needs a CONTAINER")
	})
	t.Run("check", func(t *testing.T) {
		if text := v.MustAsk("check", c.Name); !strings.Contains(text, "udp") {
			t.Errorf("check: %s", text)
		}
		refused(t, v.Ask("check", "no-such-container"), "no container")
	})
	t.Run("without an engine", func(t *testing.T) {
		cmd := v.Command(v.Bin, "status", c.Name, "--dir", v.Dir)
		cmd.Env = append(slices.Clone(v.Env), "DOCKER_HOST=unix:///nonexistent/docker.sock")
		if out, err := cmd.Output(); err != nil || !strings.Contains(string(out), "xdp.drop=udp") {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// stableJSON holds the document against what users may rely on: names, types and what this container has done.
func stableJSON(t *testing.T, text string, c *enginetest.Container) {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	keys := func(v any, want ...string) map[string]any {
		t.Helper()
		m, _ := v.(map[string]any)
		have := slices.Sorted(maps.Keys(m))
		for _, k := range want {
			if !slices.Contains(have, k) {
				t.Fatalf("no field %s among %v", k, have)
			}
		}
		return m
	}
	first := func(v any) any {
		t.Helper()
		list, _ := v.([]any)
		if len(list) != 1 {
			t.Fatalf("%v is no list of one", v)
		}
		return list[0]
	}
	equal := func(m map[string]any, want map[string]any) {
		t.Helper()
		for k, v := range want {
			if m[k] != v {
				t.Errorf("%s is %v, want %v", k, m[k], v)
			}
		}
	}
	equal(keys(doc, "schema", "containers"), map[string]any{"schema": 1.0})
	container := keys(first(doc["containers"]), "id", "name", "state", "policy", "error", "warnings", "holds", "interfaces")
	equal(container, map[string]any{"id": c.ID, "name": c.Name, "policy": "xdp.drop=udp", "error": "", "holds": true})
	if _, ok := container["warnings"].([]any); !ok {
		t.Errorf("warnings are %v, want a list", container["warnings"])
	}
	iface := keys(first(container["interfaces"]), "network", "state", "host_ifname", "host_ifindex", "hooks", "packets", "drops")
	equal(iface, map[string]any{"network": "bridge"})
	hooks, _ := iface["hooks"].([]any)
	if len(hooks) != 3 {
		t.Fatalf("hooks are %v, want two for what it sends and one for what it receives", hooks)
	}
	sent := keys(hooks[0], "direction", "type", "mode", "program_id", "link_id")
	equal(sent, map[string]any{"direction": "egress", "type": "xdp", "mode": "generic"})
	equal(keys(hooks[1], "direction", "type", "mode", "program_id", "link_id"), map[string]any{"direction": "egress", "type": "tcx", "mode": "tcx"})
	received := keys(hooks[2], "direction", "type", "mode", "program_id", "link_id")
	equal(received, map[string]any{"direction": "ingress", "type": "tcx", "mode": "tcx"})
	packets := keys(iface["packets"], "passed", "dropped", "would_drop")
	equal(packets, map[string]any{"dropped": 6.0, "would_drop": 0.0})
	for _, n := range []any{iface["host_ifindex"], sent["program_id"], sent["link_id"], received["program_id"], received["link_id"], packets["passed"]} {
		if n, _ := n.(float64); n <= 0 {
			t.Errorf("a number is missing: %v", iface)
		}
	}
	drop := keys(first(iface["drops"]), "reason", "rule", "direction", "packets", "bytes")
	equal(drop, map[string]any{"reason": "rule", "rule": "udp", "direction": "egress", "packets": 6.0})
}
