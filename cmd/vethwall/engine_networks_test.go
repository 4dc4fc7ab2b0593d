package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// TestNetworks has a row for each kind of network that is filtered, or half of it; docs/networks.md is their table. What
// cannot be filtered at all is in TestNowhereToAttach.
func TestNetworks(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	n := networks{v: v, image: v.Image()}
	_, n.tr = twoSinks(t, v, n.image)
	v.StartAgent()

	t.Run("internal", n.internal)
	t.Run("IPv6 only", n.onlyIPv6)
	t.Run("overlay", n.overlay)
	t.Run("agent in another network namespace", n.elsewhere)
}

type networks struct {
	v     *enginetest.Vethwall
	tr    *traffic
	image string
}

// sinkIn makes sink C of a container in a network, which the marker joins.
func (n networks) sinkIn(t *testing.T, network string) sink {
	t.Helper()
	v := n.v.With(t)
	c := v.Serve(n.image, "sink-of-"+strings.TrimPrefix(network, enginetest.Prefix), []string{"--network", network}, "53/udp", "443/tcp")
	v.Run("network", "connect", network, n.tr.marker.ID)
	return sink{Container: c}
}

func (n networks) internal(t *testing.T) {
	network := n.v.With(t).Network("internal", "--internal", "--subnet", "198.51.100.0/25")
	s := n.sinkIn(t, network)
	s.v4 = s.Addr(network, 4)
	n.tr.sinks["C"] = s
	c := n.v.With(t).Start(n.image, "inside", labelled(network, "xdp.drop=udp"))
	if s := awaitFilter(t, n.v, c.Name, 1); s.State != agent.Enforced || s.Interfaces[0].Network != network {
		t.Errorf("%+v", s)
	}
	n.tr.shows(t, c, []string{"53/udp@C"}, []string{"443/tcp@C", "ping@C"})
}

// onlyIPv6 is a network whose containers have no IPv4 address, as engines from 28 on make them.
func (n networks) onlyIPv6(t *testing.T) {
	type object = map[string]any
	network := enginetest.Prefix + "six"
	err := callEngine(t, n.v, "/v1.48/networks/create", object{
		"Name": network, "Driver": "bridge", "EnableIPv4": false, "EnableIPv6": true,
		"IPAM": object{"Config": []object{{"Subnet": "2001:db8:6::/64"}}},
	}, nil)
	if err != nil && strings.Contains(err.Error(), "too new") {
		t.Skip("this engine gives every network IPv4 addresses")
	}
	if err != nil {
		t.Fatal(err)
	}
	s := n.sinkIn(t, network)
	s.v6 = s.Addr(network, 6)
	n.tr.sinks["C"] = s
	c := n.v.With(t).Start(n.image, "six", labelled(network, "xdp.drop=udp"))
	if s := awaitFilter(t, n.v, c.Name, 1); s.State != agent.Enforced {
		t.Errorf("%+v", s)
	}
	n.tr.shows(t, c, []string{"53/udp@C6"}, []string{"443/tcp@C6", "ping@C6"})
}

// callEngine posts to the engine's API what its command does not know of, and reads the answer.
func callEngine(t *testing.T, v *enginetest.Vethwall, path string, body, answer any) error {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", v.Engine.Dir+"/docker.sock")
	}}}
	defer client.CloseIdleConnections()
	r, err := client.Post("http://engine"+path, "application/json", bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode >= http.StatusBadRequest {
		var refused struct{ Message string }
		return errors.Join(json.NewDecoder(r.Body).Decode(&refused), errors.New(path+": "+refused.Message))
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(r.Body).Decode(answer)
}

// overlay makes the engine a swarm of one. A container in an overlay network has a veth in that network's own namespace, which
// no hook of ours sees, and one in docker_gwbridge that leads to everywhere else.
func (n networks) overlay(t *testing.T) {
	const host = "198.51.100.201"
	v := n.v.With(t)
	ip(t, v, "link", "add", "vwswarm0", "type", "veth")
	ip(t, v, "address", "add", host+"/32", "dev", "vwswarm0")
	ip(t, v, "link", "set", "vwswarm0", "up")
	v.Run("swarm", "init", "--advertise-addr", host, "--listen-addr", host)
	t.Cleanup(func() { v.Run("swarm", "leave", "--force") })
	network := v.Network("overlay", "--driver", "overlay", "--attachable", "--subnet", "203.0.113.0/25")
	closed := v.Network("inner", "--driver", "overlay", "--attachable", "--internal", "--subnet", "203.0.113.128/25")
	peer := v.Serve(n.image, "peer", []string{"--network", network}, "53/udp", "443/tcp")
	outside := v.Serve(n.image, "outside", []string{"--network", "host"}, "1053/udp", "1443/tcp")
	n.tr.sinks["D"] = sink{Container: outside, v4: netip.MustParseAddr(host), open: "1443/tcp"}

	c := v.Start(n.image, "both-ways", labelled(network, "xdp.drop=udp"))
	s := await(t, v, c.Name, "is partial", func(s agent.ContainerStatus) bool { return s.State == agent.Partial && len(s.Interfaces) == 2 })
	over, gateway := s.Interfaces[0], s.Interfaces[1]
	if over.Network != network || over.State != agent.Partial || !strings.Contains(over.Error, "a way out that no hook sees: network "+network+" is overlay") {
		t.Errorf("%+v", over)
	}
	if gateway.Network != "docker_gwbridge" || gateway.State != agent.Enforced || len(gateway.Hooks) != 3 {
		t.Errorf("%+v", gateway)
	}
	if a := v.Ask("status", c.Name); a.Code != 1 || !strings.Contains(a.Stdout, "is overlay") {
		t.Errorf("status: %+v", a)
	}
	n.tr.shows(t, c, []string{"1053/udp@D"}, []string{"1443/tcp@D", "ping@D"})
	// This is what partial means.
	c.MustDo("udp-send", "-echo", "5s", net.JoinHostPort(peer.Addr(network, 4).String(), "53"), "past every hook")

	wrong := v.Start(n.image, "wrong", labelled(network, "xdp.drop=upd"))
	s = await(t, v, wrong.Name, "is closed but for the overlay", func(s agent.ContainerStatus) bool { return s.State == agent.Partial && len(s.Interfaces) == 2 })
	if s.Interfaces[1].State != agent.Quarantined || s.Error == "" {
		t.Errorf("%+v", s)
	}
	n.tr.shows(t, wrong, []string{"1053/udp@D", "1443/tcp@D"}, nil)

	alone := v.Start(n.image, "alone", labelled(closed, "xdp.drop=udp"))
	await(t, v, alone.Name, "is unsupported", func(s agent.ContainerStatus) bool {
		return s.State == agent.Unsupported && len(s.Interfaces) == 1 && strings.Contains(s.Interfaces[0].Error, "is overlay")
	})
	v.Run("rm", "--force", c.ID, wrong.ID, alone.ID, peer.ID, outside.ID)
}

// elsewhere runs an agent where the veths of its engine's containers are not, as with a rootless engine, whose network is
// in a namespace of its own.
func (n networks) elsewhere(t *testing.T) {
	other := *n.v.Engine.With(t)
	name := strings.TrimPrefix(other.NetNS, "/run/netns/") + "-other"
	other.NetNS += "-other"
	for _, args := range [][]string{{"netns", "add", name}, {"-n", name, "link", "set", "lo", "up"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	c := n.v.With(t).Start(n.image, "elsewhere", []string{"--label", "xdp.drop=udp"})
	awaitFilter(t, n.v, c.Name, 1)
	v := other.Install()
	v.StartAgent()
	s := await(t, v, c.Name, "is not seen", func(s agent.ContainerStatus) bool { return s.State == agent.Pending })
	if !strings.Contains(s.Interfaces[0].Error, "its veth is not seen from here") || !strings.Contains(lineWith(v.Log(), c.Name), "its veth is not seen from here") {
		t.Errorf("%+v, log %s", s, v.Log())
	}
	if a := v.Ask("status", c.Name); a.Code != 1 || !strings.Contains(a.Stdout, "not seen from here") {
		t.Errorf("status: %+v", a)
	}
}

// TestUserNamespaces has an engine give its containers a user namespace of their own: CAP_NET_ADMIN means nothing outside of
// it.
func TestUserNamespaces(t *testing.T) {
	t.Parallel()
	// Who has the capability can ask a closed resolver of the engine's all the same, unless that asks by the veth.
	dns := []string{"--dns", "192.0.2.53"}
	v := enginetest.OwnRemapped(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	v.StartAgent()
	for _, tc := range []struct {
		name    string
		options []string
		hooks   string
		holds   bool
	}{
		{"plain", nil, "xdp generic + tcx tcx", true},
		{"without NET_RAW", []string{"--cap-drop", "NET_RAW"}, "xdp generic", true},
		{"NET_ADMIN", []string{"--cap-add", "NET_ADMIN"}, "xdp generic + tcx tcx", true},
		{"SYS_ADMIN", []string{"--cap-add", "SYS_ADMIN"}, "xdp generic + tcx tcx", true},
		{"the host's", []string{"--cap-add", "NET_ADMIN", "--userns", "host"}, "xdp generic + tcx tcx", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := v.With(t).Start(image, strings.NewReplacer(" ", "-", "'", "").Replace(tc.name), slices.Concat(labelled(network, "xdp.drop=udp"), dns, tc.options))
			s := awaitFilter(t, v, c.Name, 1)
			if hooks, holds := heldBy(s); s.State != agent.Enforced || hooks != tc.hooks || holds != tc.holds {
				t.Errorf("%s, holds %t: %+v", hooks, holds, s)
			}
			allowed := allowedUDP
			if slices.Contains(tc.options, "--cap-drop") { // which a ping takes
				allowed = slices.DeleteFunc(slices.Clone(allowed), func(way string) bool { return strings.HasPrefix(way, "ping") })
			}
			tr.shows(t, c, deniedUDP, allowed)
		})
	}
}
