package main

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// TestClosed shows what happens to a container that cannot be given what it asks for.
func TestClosed(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	putPrograms(t, v)
	v.StartAgent()

	for _, tc := range []struct {
		name  string
		label string
		words []string // in status, log and check: the key, the place, what was expected
	}{
		{"wrong value", "xdp.drop=tcp,upd", []string{`xdp.drop="tcp,upd"`, "at 4", "expected"}},
		{"wrong key", "xdp.drp=udp", []string{"xdp.drp", "unknown key", "xdp.drop"}},
		{"no program", "xdp.program=x.o", []string{"xdp.program=x.o", "no file x.o in " + v.Programs}},
		{"program that others may write", "xdp.program=open.o", []string{"xdp.program=open.o", "can be written by others"}},
		{"program that is too large", "xdp.program=large.o", []string{"xdp.program=large.o", "larger than"}},
		{"program that is none", "xdp.program=none.o", []string{"xdp.program=none.o", "is it an object"}},
		{"program that the kernel refuses", "xdp.program=refused.o", []string{"xdp.program=refused.o", "the kernel refuses the program"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := v.With(t).Start(image, "q-"+strings.ReplaceAll(tc.name, " ", "-"), labelled(network, tc.label, "xdp.drop.fine=icmp"))
			await(t, v, c.Name, "is closed", func(s agent.ContainerStatus) bool {
				return s.State == agent.Quarantined && len(s.Interfaces) == 1 && len(s.Interfaces[0].Hooks) == 3
			})
			tr.shows(t, c, append(deniedUDP, allowedUDP...), nil)
			status, check := v.Ask("status", c.Name), v.Ask("check", c.Name)
			if status.Code != 1 || check.Code != 1 || status.Stderr != "" || check.Stderr != "" {
				t.Errorf("want exit code 1 and nothing on stderr: %+v %+v", status, check)
			}
			log := lineWith(v.Log(), c.Name)
			for where, text := range map[string]string{"status": status.Stdout, "check": check.Stdout, "log": strings.ReplaceAll(log, `\"`, `"`)} {
				for _, word := range tc.words {
					// check shows the place by a caret under it instead of its number.
					byCaret := where == "check" && (strings.HasPrefix(word, "at ") || strings.Contains(word, `"`))
					if !byCaret && !strings.Contains(text, word) {
						t.Errorf("%s does not say %q: %s", where, word, text)
					}
				}
			}
			if all := v.MustAsk("status"); !strings.Contains(all, tc.words[0]) {
				t.Errorf("status of all does not say %q: %s", tc.words[0], all)
			}
			v.With(t).Run("rm", "--force", c.ID)
		})
	}
	t.Run("the image's label", func(t *testing.T) {
		c := v.With(t).Start(v.ImageWithLabels(map[string]string{"xdp.drop": "upd"}), "q-image", labelled(network))
		s := await(t, v, c.Name, "is closed", func(s agent.ContainerStatus) bool { return s.State == agent.Quarantined })
		if !strings.Contains(s.Error, `image label xdp.drop="upd"`) {
			t.Errorf("error %q", s.Error)
		}
		tr.shows(t, c, append(deniedUDP, allowedUDP...), nil)
	})
	t.Run("taken", func(t *testing.T) { taken(t, v, tr, image, network) })
}

// taken lets somebody else's program, which drops UDP over IPv4, stand in the XDP slot before the agent comes. Unless
// a label asks for the slot, the filter works beside it.
func taken(t *testing.T, v *enginetest.Vethwall, tr *traffic, image, network string) {
	v.EndAgent(syscall.SIGTERM)
	beside, veth, foreign := foreignOn(t, v, image, network, "xdpdrv", "xdp.drop=ping")
	refused, inTheWay, other := foreignOn(t, v, image, network, "xdpgeneric", "xdp.drop=ping", "xdp.hook=generic")
	v.StartAgent()
	pings, tcp := []string{"ping@A", "ping@A6"}, []string{"25/tcp@A", "443/tcp@A", "443/tcp@A6"}

	s := awaitFilter(t, v, beside.Name, 1)
	if h := s.Interfaces[0].Hooks; len(h) != 2 || h[0].Type != "tcx" || h[1].Type != "tcx" {
		t.Errorf("want tcx for both directions: %+v", h)
	}
	tr.shows(t, beside, append(pings, "53/udp@A"), tcp)

	s = await(t, v, refused.Name, "is closed", func(s agent.ContainerStatus) bool { return s.State == agent.Quarantined })
	if i := s.Interfaces[0]; !strings.Contains(i.Error, "taken by another program") || len(i.Hooks) != 2 || i.Hooks[0].Type != "tcx" {
		t.Errorf("want it closed at tc, and why: %+v", i)
	}
	if a := v.Ask("status", refused.Name); a.Code != 1 || !strings.Contains(a.Stdout, "taken") || !strings.Contains(lineWith(v.Log(), refused.Name), "taken") {
		t.Errorf("neither status nor log says it: %+v", a)
	}
	tr.shows(t, refused, append(append(pings, tcp...), "53/udp@A"), nil)
	for name, program := range map[string]int{veth: foreign, inTheWay: other} {
		if l := linkNamed(t, v, name); !slices.Contains(l.Flags, "UP") || l.XDP.Prog.ID != program {
			t.Errorf("want %s up and program %d left alone: %+v", name, program, l)
		}
	}

	ip(t, v, "link", "set", "dev", inTheWay, "xdpgeneric", "off")
	s = awaitFilter(t, v, refused.Name, 1)
	if h := s.Interfaces[0].Hooks; len(h) < 2 || h[0].Type != "xdp" {
		t.Errorf("want XDP once the slot is free: %+v", h)
	}
	tr.shows(t, refused, pings, append(tcp, "53/udp@A"))
	v.With(t).Run("rm", "--force", beside.ID, refused.ID)
}

// foreignOn starts a container that asks for a filter, and puts somebody else's program on its veth.
func foreignOn(t *testing.T, v *enginetest.Vethwall, image, network, mode string, labels ...string) (c *enginetest.Container, veth string, program int) {
	t.Helper()
	before := v.Links()
	c = v.With(t).Start(image, "taken-"+mode, labelled(network, labels...))
	for _, l := range v.Links() {
		if !slices.ContainsFunc(before, func(b enginetest.Link) bool { return b.Index == l.Index }) {
			veth = l.Name
		}
	}
	ip(t, v, "link", "set", "dev", veth, mode, "obj", "../../examples/article/udp.o", "sec", "dropper_main")
	return c, veth, linkNamed(t, v, veth).XDP.Prog.ID
}

// TestNowhereToAttach shows that what cannot be filtered is said to be so, network by network.
func TestNowhereToAttach(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	for _, parent := range []string{"vwparent0", "vwparent1"} {
		ip(t, v, "link", "add", parent, "type", "veth")
		ip(t, v, "link", "set", parent, "up")
	}
	ipvlanHere := v.Command("ip", "link", "add", "link", "vwparent1", "name", "vwprobe", "type", "ipvlan").Run() == nil
	if ipvlanHere {
		ip(t, v, "link", "delete", "vwprobe")
	}
	macvlan := v.Network("macvlan", "--driver", "macvlan", "--opt", "parent=vwparent0", "--subnet", "198.51.100.0/25")
	ipvlan := v.Network("ipvlan", "--driver", "ipvlan", "--opt", "parent=vwparent1", "--subnet", "198.51.100.128/25")
	v.StartAgent()
	owner := v.Start(image, "owner", nil)
	for _, tc := range []struct{ name, network, words string }{
		{"host", "host", "shares the host's network"},
		{"none", "none", "has no network"},
		{"joiner", "container:" + owner.ID, "shares the network of container " + owner.ID[:12]},
		{"macvlan", macvlan, "is macvlan, without a veth"},
		{"ipvlan", ipvlan, "is ipvlan, without a veth"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.name == "ipvlan" && !ipvlanHere {
				t.Skip("this kernel has no ipvlan")
			}
			c := v.With(t).Start(image, tc.name, labelled(tc.network, "xdp.drop=udp"))
			s := await(t, v, c.Name, "is unsupported", func(s agent.ContainerStatus) bool { return s.State == agent.Unsupported })
			if len(s.Interfaces) != 1 || s.Interfaces[0].Network != tc.network || !strings.Contains(s.Interfaces[0].Error, tc.words) {
				t.Errorf("want network %s and %q: %+v", tc.network, tc.words, s.Interfaces)
			}
			if a := v.Ask("status", c.Name); a.Code != 1 || !strings.Contains(a.Stdout, tc.words) {
				t.Errorf("status: %+v", a)
			}
			if a := v.Ask("check", c.Name); a.Code != 0 || !strings.Contains(a.Stdout, tc.words) {
				t.Errorf("check: %+v", a)
			}
			if !strings.Contains(lineWith(v.Log(), c.Name), tc.words) {
				t.Errorf("the log does not say %q: %s", tc.words, v.Log())
			}
			if with := v.With(t).Filtered(); len(with) > 0 {
				t.Errorf("programs on %v", with)
			}
		})
	}
	for name, tc := range map[string]struct {
		label string
		there agent.State // on the bridge
	}{"one of two networks": {"xdp.drop=udp", agent.Enforced}, "one of two networks, closed": {"xdp.drop=upd", agent.Quarantined}} {
		t.Run(name, func(t *testing.T) {
			c := v.With(t).Start(image, "both-"+string(tc.there), labelled("bridge", tc.label))
			await(t, v, c.Name, "is in force", func(s agent.ContainerStatus) bool { return s.State == tc.there })
			v.With(t).Run("network", "connect", macvlan, c.ID)
			s := await(t, v, c.Name, "has two networks", func(s agent.ContainerStatus) bool {
				return len(s.Interfaces) == 2 && s.State != agent.Pending // as it is until the agent has heard of it, and closed the resolver
			})
			if s.State != agent.Partial {
				t.Errorf("state %s of what is open on one side", s.State)
			}
			for _, i := range s.Interfaces {
				if i.Network == "bridge" && (i.State != tc.there || len(i.Hooks) != 3) {
					t.Errorf("interface %+v", i)
				}
				if i.Network == macvlan && (i.State != agent.Partial || !strings.Contains(i.Error, "a way out that no hook sees: network "+macvlan+" is macvlan")) {
					t.Errorf("interface %+v", i)
				}
			}
			if a := v.Ask("status", c.Name); a.Code != 1 || !strings.Contains(a.Stdout, "a way out that no hook sees") || !strings.Contains(lineWith(v.Log(), c.Name), "a way out") {
				t.Errorf("neither status nor log says it: %+v", a)
			}
			// It is the veth's alone again.
			v.With(t).Run("network", "disconnect", macvlan, c.ID)
			await(t, v, c.Name, "is on the bridge alone", func(s agent.ContainerStatus) bool { return s.State == tc.there && len(s.Interfaces) == 1 })
		})
	}
}

// ip runs the ip command on the engine's host.
func ip(t *testing.T, v *enginetest.Vethwall, args ...string) {
	t.Helper()
	if out, err := v.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

// linkNamed is a device of the engine's host.
func linkNamed(t *testing.T, v *enginetest.Vethwall, name string) enginetest.Link {
	t.Helper()
	for _, l := range v.With(t).Links() {
		if l.Name == name {
			return l
		}
	}
	t.Fatalf("no device %q", name)
	return enginetest.Link{}
}

// lineWith are the lines of text that hold word.
func lineWith(text, word string) string {
	var out []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}
