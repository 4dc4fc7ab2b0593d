package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// netAdmin is a filtered container with CAP_NET_ADMIN, on a network with two sinks.
type netAdmin struct {
	*enginetest.Container
	v       *enginetest.Vethwall
	tr      *traffic
	network string
}

// TestNetAdmin lets containers with CAP_NET_ADMIN do what no filter on a veth can hold. What can be filtered is, and of the
// rest status and log tell.
func TestNetAdmin(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	v.StartAgent()
	start := func(t *testing.T, name string, labels ...string) netAdmin {
		t.Helper()
		t.Parallel()
		tr := *tr // each counts for itself
		c := v.With(t).Start(image, name, append(labelled(network, labels...), "--cap-add", "NET_ADMIN"))
		await(t, v, c.Name, "has both hooks", func(s agent.ContainerStatus) bool {
			hooks, holds := heldBy(s)
			return (filtered(s) || s.State == agent.Quarantined) && hooks == "xdp generic + tcx tcx" && !holds
		})
		return netAdmin{c, v.With(t), &tr, network}
	}
	t.Run("a macvlan on a bridge of the host's", func(t *testing.T) { start(t, "macvlan", "xdp.drop=udp").macvlan(t) })
	for label, arrives := range map[string]bool{"xdp.drop=udp": false, "xdp.drop=tcp": true} {
		t.Run("a port of its own, "+label, func(t *testing.T) {
			start(t, "port-"+label[len(label)-3:], label, "xdp.antispoof=false").port(t, arrives)
		})
		t.Run("wired as Kata does it, "+label, func(t *testing.T) { start(t, "kata-"+label[len(label)-3:], label).kata(t, arrives) })
		t.Run("past both hooks, "+label, func(t *testing.T) { start(t, "both-"+label[len(label)-3:], label).pastBoth(t, arrives) })
	}
	t.Run("closed, wired as Kata does it", func(t *testing.T) { start(t, "closed-kata", "xdp.drop=upd").kata(t, false) })
	t.Run("closed, past both hooks", func(t *testing.T) { start(t, "closed-both", "xdp.drop=upd").pastBoth(t, false) })
	t.Run("its eth0", func(t *testing.T) { start(t, "eth0", "xdp.drop=udp").takeAway(t) })
	t.Run("another's veth", func(t *testing.T) {
		c := start(t, "deletes", "xdp.drop=tcp")
		other := v.With(t).Start(image, "other", labelled(network, "xdp.drop=udp"))
		s := awaitFilter(t, v, other.Name, 1)
		c.MustDo("past", "delete", c.host(t), strconv.Itoa(s.Interfaces[0].Ifindex))
		await(t, v, other.Name, "says that its veth is gone", func(s agent.ContainerStatus) bool {
			return s.State == agent.Pending && strings.Contains(s.Interfaces[0].Error, "its veth is gone")
		})
	})
}

// host is the number that the container's network namespace has for that of the engine's host. The test fails where the machine's
// own has one, too.
func (c netAdmin) host(t *testing.T) string {
	t.Helper()
	inside, err := netns.GetFromPath("/proc/" + c.v.Run("inspect", "--format", "{{.State.Pid}}", c.ID) + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	h, err := netlink.NewHandleAt(inside, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.LinkList(); err != nil { // the kernel gives it a number as it names it in a list
		t.Fatal(err)
	}
	number := func(path string) int {
		ns, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		n, err := h.GetNetNsIdByFd(int(ns.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	engines, machines := number(c.v.Engine.NetNS), number("/proc/thread-self/ns/net")
	if engines < 0 || machines >= 0 {
		t.Fatalf("from the container the engine's host is %d and the machine %d", engines, machines)
	}
	return strconv.Itoa(engines)
}

// bridge is the number of the network's bridge.
func (c netAdmin) bridge(t *testing.T) string {
	t.Helper()
	name := "br-" + c.v.Run("network", "inspect", "--format", "{{.Id}}", c.network)[:12]
	return strconv.Itoa(linkNamed(t, c.v, name).Index)
}

// run runs a command in a network namespace, which is the container's unless another is named.
func (c netAdmin) run(t *testing.T, netNS string, command ...string) {
	t.Helper()
	if netNS == "" {
		netNS = "/proc/" + c.v.Run("inspect", "--format", "{{.State.Pid}}", c.ID) + "/ns/net"
	}
	if out, err := exec.Command("nsenter", append([]string{"--net=" + netNS}, command...)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", command, err, out)
	}
}

// says waits until status tells of something of the container, in a state, and looks whether the log has it as an error.
func (c netAdmin) says(t *testing.T, state agent.State, text string) agent.ContainerStatus {
	t.Helper()
	s := await(t, c.v, c.Name, fmt.Sprintf("is %s and says %q", state, text), func(s agent.ContainerStatus) bool {
		return s.State == state && slices.ContainsFunc(s.Interfaces, func(i agent.InterfaceStatus) bool { return strings.Contains(i.Error, text) })
	})
	for line := range strings.Lines(c.v.Log()) {
		if strings.Contains(line, "level=ERROR") && strings.Contains(line, c.Name) && strings.Contains(strings.ReplaceAll(line, `\`, ""), text) {
			return s
		}
	}
	t.Errorf("the log does not say %q of %s as an error:\n%s", text, c.Name, c.v.Log())
	return s
}

// macvlan makes a device that sends by the network's bridge past the veth.
func (c netAdmin) macvlan(t *testing.T) {
	c.MustDo("past", "macvlan", c.host(t), c.bridge(t), "past0")
	c.says(t, agent.Partial, `"past0" (macvlan), sends by the host's "br-`)
	c.tr.shows(t, c.Container, []string{"53/udp@A", "53/udp@A6"}, []string{"443/tcp@A", "443/tcp@A6"})
	c.run(t, "", "ip", "link", "del", "past0")
	awaitFilter(t, c.v, c.Name, 1)
}

// port makes another port of the network's bridge, and sends by it.
func (c netAdmin) port(t *testing.T, arrives bool) {
	c.MustDo("past", "port", c.host(t), c.bridge(t), "sly"+c.ID[:8], "past0")
	s := await(t, c.v, c.Name, "has two filters", func(s agent.ContainerStatus) bool { return filtered(s) && len(s.Interfaces) == 2 })
	c.sends(t, "past0", 1, arrives)
	c.says(t, s.State, "Docker has not made it")
}

// kata redirects what comes in at one device to eth0, so that generic XDP does not see it.
func (c netAdmin) kata(t *testing.T, arrives bool) {
	c.run(t, "", "ip", "link", "add", "in0", "type", "veth", "peer", "name", "in1")
	for _, name := range []string{"in0", "in1"} {
		c.run(t, "", "ip", "link", "set", name, "up")
	}
	c.run(t, "", "tc", "qdisc", "add", "dev", "in1", "clsact")
	c.run(t, "", "tc", "filter", "add", "dev", "in1", "ingress", "u32", "match", "u32", "0", "0", "action", "mirred", "egress", "redirect", "dev", "eth0")
	c.sends(t, "in0", 1, arrives)
}

// pastBoth lays a detour by which one of four packets gets past both hooks: see the one of TestGuard in xdp, which is the same.
func (c netAdmin) pastBoth(t *testing.T, arrives bool) {
	c.run(t, "", "sh", "-ec", `
ip link add lane0 type bridge
ip link add lane1 type veth peer name lane3
ip link add lane2 type ifb
ip link set lane1 master lane0
for l in lane0 lane1 lane2 lane3; do ip link set $l up; done
tc qdisc add dev lane0 clsact
# ldw random, jset #1, and half of it matches
tc filter add dev lane0 egress protocol all bpf bytecode '4,32 0 0 4294963256,69 0 1 1,6 0 0 4294967295,6 0 0 0' action mirred egress redirect dev lane2
nft 'table netdev lane { chain egress { type filter hook egress device "lane1" priority 0; fwd to "eth0"; }; }'`)
	c.sends(t, "lane0", 40, arrives)
	if !arrives {
		c.v.Wait("the log to tell of the detour", func() error {
			if log := c.v.Log(); !strings.Contains(log, "sends past the filter; it was dropped") {
				return errors.New(log)
			}
			return nil
		})
	}
}

// sends sends datagrams by a device, so often, and looks whether they arrive at the sink.
func (c netAdmin) sends(t *testing.T, device string, times int, arrives bool) {
	t.Helper()
	f := forgery{
		t: t, tr: c.tr, from: c.Container, device: device, sink: "A", me: identityOf(t, c.v, c.Container, c.network),
		to: identityOf(t, c.v, c.tr.sinks["A"].Container, c.network),
	}
	text, marker := c.Name+" by "+device, c.Name+" is through"
	f.send(slices.Repeat([][]byte{f.datagram(f.me.mac, f.me.v4, text), f.datagram(f.me.mac, f.me.v6, text)}, times)...)
	if arrives {
		f.await(text)
	}
	c.tr.marker.With(c.v.Docker).MustDo("udp-send", f.to.v4.String()+":53", marker)
	f.await(marker)
	if n := f.arrived(text); (n > 0) != arrives {
		t.Errorf("%q arrived %d times, want any: %v", text, n, arrives)
	}
}

// takeAway renames the container's end of its veth, moves it into another namespace, and deletes it.
func (c netAdmin) takeAway(t *testing.T) {
	udp, tcp := []string{"53/udp@A"}, []string{"443/tcp@A"}
	for _, args := range [][]string{{"down"}, {"name", "renamed0"}, {"up"}} {
		c.run(t, "", append([]string{"ip", "link", "set", map[bool]string{true: "renamed0", false: "eth0"}[args[0] == "up"]}, args...)...)
	}
	c.tr.shows(t, c.Container, udp, tcp)

	name := enginetest.Prefix + "elsewhere-" + c.ID[:8]
	elsewhere := "/run/netns/" + name
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	defer func() { _ = exec.Command("ip", "netns", "del", name).Run() }()
	address := identityOf(t, c.v, c.Container, c.network).v4.String()
	c.run(t, "", "ip", "link", "set", "renamed0", "netns", elsewhere)
	c.run(t, elsewhere, "ip", "link", "set", "renamed0", "up")
	c.run(t, elsewhere, "ip", "addr", "add", address+"/24", "dev", "renamed0")
	c.says(t, agent.Enforced, "moved out of the container's network namespace")
	sent, script := c.Name+" from elsewhere", `printf %s "$0" > /dev/udp/$1/53; printf %s "$0" > /dev/tcp/$1/443`
	to := c.tr.sinks["A"]
	if out, err := exec.Command("nsenter", "--net="+elsewhere, "timeout", "5", "bash", "-c", script, sent, to.v4.String()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.v.Wait("TCP from elsewhere at the sink", func() error {
		for _, a := range to.With(c.v.Docker).Received() {
			if a.Text == sent && a.Proto == "udp" {
				t.Fatal("UDP from elsewhere has arrived")
			}
			if a.Text == sent {
				return nil
			}
		}
		return fmt.Errorf("it has not arrived")
	})

	c.run(t, elsewhere, "ip", "link", "del", "renamed0")
	await(t, c.v, c.Name, "says that its veth is gone", func(s agent.ContainerStatus) bool {
		return s.State == agent.Pending && strings.Contains(s.Interfaces[0].Error, "its veth is gone")
	})
}
