package main

import (
	"strings"
	"testing"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// heldBy tells where what a container sends is judged, and whether that holds it.
func heldBy(s agent.ContainerStatus) (hooks string, holds bool) {
	var out []string
	for _, i := range s.Interfaces {
		for _, h := range i.Hooks {
			if h.Direction == "egress" {
				out = append(out, h.Type+" "+h.Mode)
			}
		}
	}
	return strings.Join(out, " + "), s.Holds
}

// TestJoinerWithNetAdmin lets containers without labels join a filtered one's network: one that can do no harm there, and then
// one with CAP_NET_ADMIN, which is noticed before it is started.
func TestJoinerWithNetAdmin(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	v.StartAgent()
	owner := v.Start(image, "owner", labelled(network, "xdp.drop=udp"))
	denied, allowed := []string{"53/udp@A", "53/udp@A6"}, []string{"443/tcp@A", "443/tcp@A6", "ping@A"}
	wantHeld := func(when, hooks string, holds bool) agent.ContainerStatus {
		t.Helper()
		return await(t, v, owner.Name, when, func(s agent.ContainerStatus) bool {
			got, held := heldBy(s)
			return filtered(s) && got == hooks && held == holds
		})
	}

	plain := v.Start(image, "plain", []string{"--network", "container:" + owner.Name})
	wantHeld("is held beside a plain joiner", "xdp generic + tcx tcx", true)
	tr.shows(t, plain, denied, allowed)

	admin := v.Create(image, "admin", []string{"--network", "container:" + owner.Name, "--cap-add", "NET_ADMIN"})
	s := wantHeld("has both hooks", "xdp generic + tcx tcx", false)
	if text := strings.Join(s.Warnings, "\n"); !strings.Contains(text, "container "+admin.Name+" shares its network and has CAP_NET_ADMIN") {
		t.Errorf("warnings %q", s.Warnings)
	}
	if text := v.MustAsk("status", owner.Name); !strings.Contains(text, "hook xdp generic + tcx") || !strings.Contains(text, admin.Name) {
		t.Errorf("status: %s", text)
	}
	v.Run("start", admin.ID)
	tr.shows(t, admin, denied, allowed)
	tr.shows(t, owner, denied, allowed)

	v.Run("rm", "--force", plain.ID, admin.ID)
	tr.shows(t, owner, denied, allowed)
	wantHeld("is not held though the joiner is gone", "xdp generic + tcx tcx", false)
	v.Run("restart", "--time", "0", owner.ID)
	wantHeld("is held after a restart", "xdp generic + tcx tcx", true)
	tr.shows(t, owner, denied, allowed)
}
