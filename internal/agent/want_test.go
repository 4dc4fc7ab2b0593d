package agent

import (
	"maps"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

func TestPlace(t *testing.T) {
	bridge := docker.Endpoint{Network: "bridge", NetworkID: strings.Repeat("b", 64), Driver: "bridge"}
	one := docker.Endpoint{Network: "one", NetworkID: strings.Repeat("1", 64), Driver: "bridge"}
	two := docker.Endpoint{Network: "two", NetworkID: strings.Repeat("2", 64), Driver: "bridge"}
	lan := docker.Endpoint{Network: "lan", NetworkID: strings.Repeat("3", 64), Driver: "macvlan"}
	unborn := docker.Endpoint{Network: "unborn", Driver: "bridge"}
	veth := func(index int, bridge string) xdp.Veth { return xdp.Veth{Index: index, Bridge: bridge} }
	for name, tc := range map[string]struct {
		networks []docker.Endpoint
		veths    []xdp.Veth
		want     map[int]string
	}{
		"none":                          {nil, nil, map[int]string{}},
		"by bridge":                     {[]docker.Endpoint{bridge, one}, []xdp.Veth{veth(7, "br-111111111111"), veth(8, "docker0")}, map[int]string{7: "one", 8: "bridge"}},
		"one of each with another name": {[]docker.Endpoint{bridge, one}, []xdp.Veth{veth(7, "mine"), veth(8, "docker0")}, map[int]string{7: "one", 8: "bridge"}},
		"two with other names":          {[]docker.Endpoint{one, two}, []xdp.Veth{veth(7, "mine"), veth(8, "yours")}, map[int]string{7: "mine", 8: "yours"}},
		"one network, two veths":        {[]docker.Endpoint{one}, []xdp.Veth{veth(7, "mine"), veth(8, "yours")}, map[int]string{7: "mine", 8: "yours"}},
		"a veth on no bridge":           {[]docker.Endpoint{one}, []xdp.Veth{veth(7, "")}, map[int]string{7: "one"}},
		"a network without veths":       {[]docker.Endpoint{lan, one}, []xdp.Veth{veth(7, "mine")}, map[int]string{7: "one"}},
		"a network without an id":       {[]docker.Endpoint{unborn}, []xdp.Veth{veth(7, "br-"), veth(8, "mine")}, map[int]string{7: "unborn", 8: "mine"}},
		"a veth that is not yet there":  {[]docker.Endpoint{bridge, one}, []xdp.Veth{veth(8, "docker0")}, map[int]string{8: "bridge"}},
	} {
		if got := place(tc.networks, tc.veths, surroundings{}.bridge); !maps.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestWanted(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*docker.Container)
		asks   bool
		policy string
		mode   xdp.Mode
		holds  bool
		open   bool // there are tables
	}{
		{"no labels", func(c *docker.Container) { c.Labels = nil }, false, "", "", false, false},
		{"switched off", func(c *docker.Container) { c.Labels["xdp.enable"] = "false" }, false, "", "", false, false},
		{"plain", func(*docker.Container) {}, true, "xdp.drop=udp", xdp.Auto, true, true},
		{"native", func(c *docker.Container) { c.Labels["xdp.hook"] = "native" }, true, "xdp.drop=udp xdp.hook=native", xdp.Native, true, true},
		{"wrong", func(c *docker.Container) { c.Labels["xdp.drop"] = "upd" }, true, "", xdp.Auto, true, false},
		{"with a program", func(c *docker.Container) { c.Labels["xdp.program"] = "x.o" }, true, "xdp.drop=udp xdp.program=x.o", xdp.Auto, true, true},
		{"with a limit", func(c *docker.Container) { c.Labels["xdp.limit"] = "udp=1kpps" }, true, "xdp.drop=udp xdp.limit=udp=1kpps", xdp.Auto, true, true},
		{"privileged", func(c *docker.Container) { c.Privileged = true }, true, "xdp.drop=udp", xdp.Auto, false, true},
		{"with the processes of another", func(c *docker.Container) { c.PidMode = "container:other" }, true, "xdp.drop=udp", xdp.Auto, false, true},
		{"with the processes of all", func(c *docker.Container) { c.PidMode = "host" }, true, "xdp.drop=udp", xdp.Auto, false, true},
		{"with NET_ADMIN", func(c *docker.Container) { c.CapAdd = []string{"NET_ADMIN"} }, true, "xdp.drop=udp", xdp.Auto, false, true},
		{"with ALL", func(c *docker.Container) { c.CapAdd = []string{"ALL"} }, true, "xdp.drop=udp", xdp.Auto, false, true},
		{"with NET_RAW", func(c *docker.Container) { c.CapAdd = []string{"NET_RAW"} }, true, "xdp.drop=udp", xdp.Auto, true, true},
		{"in a user namespace", func(c *docker.Container) { c.Privileged, c.UserNS = true, true }, true, "xdp.drop=udp", xdp.Auto, true, true},
		{"with SYS_ADMIN", func(c *docker.Container) { c.CapAdd = []string{"SYS_ADMIN"} }, true, "xdp.drop=udp", xdp.Auto, false, true},
		{"with SYS_ADMIN in a user namespace", func(c *docker.Container) { c.CapAdd, c.UserNS = []string{"SYS_ADMIN"}, true }, true, "xdp.drop=udp", xdp.Auto, true, true},
		{"with SYS_MODULE", func(c *docker.Container) { c.CapAdd = []string{"SYS_MODULE"} }, true, "xdp.drop=udp", xdp.Auto, false, true},
	} {
		c := box(1, true, "xdp.drop=udp")
		tc.change(&c)
		w, asks := wanted(c, known{}, config.Config{}, compile)
		if asks != tc.asks || w.policy != tc.policy || w.mode != tc.mode || w.holds != tc.holds || (w.tables != nil) != tc.open {
			t.Errorf("%s: %+v, asks %t", tc.name, w, asks)
		}
		if asks && (w.tables == nil) != (w.problem != "") {
			t.Errorf("%s: closed because of %q", tc.name, w.problem)
		}
		if asks && w.holds != (w.loophole == "" && len(w.warnings) == 0) {
			t.Errorf("%s: holds %t, loophole %q, warnings %q", tc.name, w.holds, w.loophole, w.warnings)
		}
	}
}

func TestStackText(t *testing.T) {
	parse := func(text string) policy.Policy {
		p, _, err := policy.Parse(map[string]string{"xdp.drop": text})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	udp, tcp := policy.Source{Origin: originLabels, Policy: parse("udp")}, policy.Source{Origin: originImage, Policy: parse("tcp")}
	for want, stack := range map[string]policy.Stack{
		"":             {},
		"xdp.drop=udp": {udp},
		"labels(xdp.drop=udp) image(xdp.drop=tcp)": {udp, tcp},
		"floor(xdp.drop=udp)":                      {{Origin: originFloor, Policy: udp.Policy}},
		"config(xdp.drop=udp)":                     {{Origin: originConfig, Policy: udp.Policy}},
	} {
		if got := StackText(stack); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Thousands of wrong labels do not fill the records' map or the log.
func TestManyErrors(t *testing.T) {
	c := box(1, true)
	for i := range 4000 {
		c.Labels["xdp.wrong"+strings.Repeat("g", i%3)+string(rune('a'+i%26))+strings.Repeat("x", i%13)] = "x"
	}
	w, asks := wanted(c, known{}, config.Config{}, compile)
	if n := strings.Count(w.problem, "; "); !asks || n != maxErrors || !strings.HasSuffix(w.problem, " errors more") || len(w.problem) > 8<<10 {
		t.Errorf("asks %t, %d errors in %d bytes, the end %q", asks, n, len(w.problem), w.problem[max(0, len(w.problem)-40):])
	}
	few := box(1, true, "xdp.a=x", "xdp.b=x")
	if w, _ := wanted(few, known{}, config.Config{}, compile); strings.Count(w.problem, "; ") != 1 || !strings.Contains(w.problem, "xdp.b") {
		t.Errorf("%q", w.problem)
	}
}
