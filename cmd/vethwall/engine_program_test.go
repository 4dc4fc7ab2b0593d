package main

import (
	"debug/elf"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// putPrograms fills the program directory: with the article's objects, and with some that are of no use.
func putPrograms(t *testing.T, v *enginetest.Vethwall) {
	t.Helper()
	put := func(name string, content []byte, mode os.FileMode) {
		path := filepath.Join(v.Programs, name)
		if err := os.WriteFile(path, content, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
	}
	udp, dropAll := readFile(t, udpOnly), readFile(t, dropper)
	put("udp.o", udp, 0o644)
	put("dropper.o", dropAll, 0o600)
	put("open.o", udp, 0o646)
	put("large.o", make([]byte, 1<<20+1), 0o644)
	put("none.o", []byte("no object"), 0o644)
	put("refused.o", refusedObject(t, udp), 0o644)
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// refusedObject makes of udp.o one that ends before it has a verdict, which the verifier refuses.
func refusedObject(t *testing.T, udp []byte) []byte {
	t.Helper()
	file, err := elf.Open(udpOnly)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	out := slices.Clone(udp)
	copy(out[file.Section("dropper_main").Offset:], []byte{0x95, 0, 0, 0, 0, 0, 0, 0})
	return out
}

// The article's udp.o reads the fields of IPv4 in whatever comes, so only IPv4 is asked for.
var (
	udpWays  = []string{"53/udp@A", "54/udp@A"}
	tcpWays  = []string{"25/tcp@A", "443/tcp@A"}
	pingWays = []string{"ping@A"}
)

// TestProgram lets the operator's programs judge before policies.
func TestProgram(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	putPrograms(t, v)
	v.StartAgent()

	both := v.Start(image, "both", labelled(network, "xdp.program=udp.o:dropper_main", "xdp.drop=tcp"))
	alone := v.Start(image, "alone", labelled(network, "xdp.program=udp"))
	native := v.Start(image, "native", labelled(network, "xdp.program=udp", "xdp.hook=native", "xdp.drop=ping"))
	all := v.Start(image, "all", labelled(network, "xdp.program=dropper.o:.text"))
	for _, tc := range []struct {
		c               *enginetest.Container
		program, mode   string
		hooks           int
		denied, allowed []string
	}{
		{both, "udp.o:dropper_main", "generic", 3, slices.Concat(udpWays, tcpWays), pingWays},
		{alone, "udp", "generic", 2, udpWays, slices.Concat(tcpWays, pingWays)},
		{native, "udp", "native", 3, slices.Concat(udpWays, pingWays), tcpWays},
		{all, "dropper.o:.text", "generic", 2, slices.Concat(udpWays, tcpWays, pingWays), nil},
	} {
		s := awaitFilter(t, v, tc.c.Name, 1)
		h := s.Interfaces[0].Hooks
		if len(h) != tc.hooks || h[0].Type != "tcx" || h[len(h)-1].Program != tc.program || h[len(h)-1].Mode != tc.mode {
			t.Errorf("%s: hooks %+v", tc.c.Name, h)
		}
		if text := v.MustAsk("status", tc.c.Name); !strings.Contains(text, "xdp "+tc.mode+" ("+tc.program+")") {
			t.Errorf("status: %s", text)
		}
		if text := v.MustAsk("check", tc.c.Name); !strings.Contains(text, "The program "+tc.program+" comes first") {
			t.Errorf("check: %s", text)
		}
		tr.shows(t, tc.c, tc.denied, tc.allowed)
	}
	refused(t, v.Ask("attach", both.Name, dropper), "xdp.program has the XDP slot")

	t.Run("next agent", func(t *testing.T) { programOfTheNextAgent(t, v, tr, both) })
	t.Run("the object comes later", func(t *testing.T) {
		c := v.With(t).Start(image, "later", labelled(network, "xdp.program=later"))
		await(t, v, c.Name, "is closed", func(s agent.ContainerStatus) bool { return s.State == agent.Quarantined })
		tr.shows(t, c, slices.Concat(udpWays, tcpWays), nil)
		if err := os.WriteFile(filepath.Join(v.Programs, "later.o"), readFile(t, udpOnly), 0o644); err != nil {
			t.Fatal(err)
		}
		awaitFilter(t, v, c.Name, 1)
		tr.shows(t, c, udpWays, tcpWays)
	})
	t.Run("the configuration has it", func(t *testing.T) {
		configuredProgram(t, v, tr, v.With(t).Start(image, "picked", labelled(network, "xdp.drop=tcp")))
	})
}

// programOfTheNextAgent checks that the program judges on without an agent, and that the next one takes over program and link.
func programOfTheNextAgent(t *testing.T, v *enginetest.Vethwall, tr *traffic, c *enginetest.Container) {
	before, _ := statusOf(t, v, c.Name)
	v.With(t).EndAgent(syscall.SIGKILL)
	tr.shows(t, c, slices.Concat(udpWays, tcpWays), pingWays)
	v.With(t).StartAgent()
	s := awaitFilter(t, v, c.Name, 1)
	if !slices.Equal(linkIDs(s), linkIDs(before)) || s.Interfaces[0].Hooks[2] != before.Interfaces[0].Hooks[2] {
		t.Errorf("other links or another program: %+v, before %+v", s, before)
	}
}

// configuredProgram gives a container a program by the configuration, and takes it away again.
func configuredProgram(t *testing.T, v *enginetest.Vethwall, tr *traffic, c *enginetest.Container) {
	before := awaitFilter(t, v, c.Name, 1)
	with := func(program string) func(agent.ContainerStatus) bool {
		return func(s agent.ContainerStatus) bool {
			h := s.Interfaces[0].Hooks
			return filtered(s) && h[len(h)-1].Program == program
		}
	}
	v.Configure("policies: [{pick: {name: " + c.Name + "}, labels: {xdp.program: udp}}]")
	await(t, v, c.Name, "has a program", with("udp"))
	tr.shows(t, c, slices.Concat(udpWays, tcpWays), pingWays)
	v.Configure("{}")
	if s := await(t, v, c.Name, "has none", with("")); !slices.Equal(linkIDs(s), linkIDs(before)) {
		t.Errorf("other links: %+v, before %+v", s, before)
	}
	tr.shows(t, c, tcpWays, slices.Concat(udpWays, pingWays))
}
