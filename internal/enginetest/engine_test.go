package enginetest

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestHost and TestOwn show that the rig carries what tests will put on it: without a filter everything
// arrives, so that what does not arrive later was filtered.
func TestHost(t *testing.T) {
	t.Parallel()
	d := Host(t)
	image := d.ImageWithLabels(map[string]string{"xdp.drop": `a "quoted" $VALUE \ here`})
	net := d.Network("net")
	sink := d.Serve(image, "sink", []string{"--network", net}, "53/udp", "443/tcp")
	source := d.Start(image, "source", []string{"--network", net, "--label", "xdp.enable=no"})
	exchange(t, source, sink, sink.Addr(net, 4))
	label := d.Run("inspect", "--format", `{{index .Config.Labels "xdp.drop"}}`, source.ID)
	if want := `a "quoted" $VALUE \ here`; label != want {
		t.Errorf("label of the image is %q, want %q", label, want)
	}
	// A container that sends from its first instruction on is what races are lost against.
	d.Start(image, "loop", []string{"--network", net}, "loop-send", netip.AddrPortFrom(sink.Addr(net, 4), 53).String(), "loop")
	d.Wait("datagrams", func() error {
		if n := sink.Count("loop"); n < 10 {
			return fmt.Errorf("%d arrived", n)
		}
		return nil
	})
}

func TestOwn(t *testing.T) {
	t.Parallel()
	e := Own(t, "--ipv6", "--fixed-cidr-v6", "2001:db8:1::/64")
	image := e.Image()
	sink := e.Serve(image, "sink", []string{"--restart", "always"}, "53/udp", "443/tcp")
	source := e.Start(image, "source", []string{"--restart", "always"})
	check := func(t *testing.T) {
		t.Helper()
		sink.WaitServing()
		exchange(t, source, sink, sink.Addr("bridge", 4))
	}
	check(t)
	exchange(t, source, sink, sink.Addr("bridge", 6))

	key := e.Run("inspect", "--format", "{{.NetworkSettings.SandboxKey}}", source.ID)
	if !strings.HasPrefix(key, e.Dir+"/") {
		t.Errorf("sandbox key %s is not below %s", key, e.Dir)
	}
	devices, err := e.Command("ip", "-o", "link").CombinedOutput()
	if err != nil || strings.Count(string(devices), "veth") != 2 {
		t.Errorf("two veths expected in the engine's host, error %v:\n%s", err, devices)
	}

	e.Restart()
	check(t)
	e.Kill()
	e.Up()
	check(t)
}

// TestOwnLeavesNothing takes the engine away while its containers run on, and looks for what is left
// after the test.
func TestOwnLeavesNothing(t *testing.T) {
	t.Parallel()
	var dir, ns string
	t.Run("live restore", func(t *testing.T) {
		e := Own(t, "--live-restore")
		dir, ns = e.Dir, e.NetNS
		image := e.Image()
		sink := e.Serve(image, "sink", nil, "53/udp")
		source := e.Start(image, "source", nil)
		udp := netip.AddrPortFrom(sink.Addr("bridge", 4), 53).String()
		source.MustDo("udp-send", "-echo", "2s", udp, "before")
		e.Restart()
		source.MustDo("udp-send", "-echo", "2s", udp, "after")
		if sink.Count("before") != 1 || sink.Count("after") != 1 {
			t.Errorf("the sink did not live through the restart: %v", sink.Received())
		}
		e.Kill()
	})
	for _, path := range []string{dir, ns} {
		if _, err := os.Stat(path); path != "" && !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); dir != "" && strings.Contains(string(mounts), dir) {
		t.Error("mounts are left")
	}
	args, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range args {
		if b, _ := os.ReadFile(path); dir != "" && strings.Contains(string(b), dir) {
			t.Errorf("left running: %s", strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
}

// exchange sends once by each way and compares what arrived with what was sent.
func exchange(t *testing.T, source, sink *Container, addr netip.Addr) {
	t.Helper()
	text := "text-" + random()
	udp, tcp := netip.AddrPortFrom(addr, 53).String(), netip.AddrPortFrom(addr, 443).String()
	source.MustDo("udp-send", "-n", "3", "-from", "5353", "-echo", "2s", udp, text)
	source.MustDo("tcp-dial", tcp, text)
	source.MustDo("ping", addr.String())
	count := map[string]int{}
	for _, a := range sink.Received() {
		if a.Text == text {
			count[fmt.Sprintf("%d/%s", a.Port, a.Proto)] += a.Count
		}
	}
	if count["53/udp"] != 3 || count["443/tcp"] != 1 || len(count) != 2 {
		t.Errorf("%s received %v, want 3 on 53/udp and 1 on 443/tcp", sink.Name, count)
	}
	// The twin: where nobody listens nothing comes back, and it is said.
	closed := netip.AddrPortFrom(addr, 54).String()
	if _, err := source.Do("tcp-dial", closed, text); err == nil {
		t.Errorf("a connection to %s, where nobody listens", closed)
	}
	if _, err := source.Do("udp-send", "-echo", "200ms", closed, text); err == nil {
		t.Errorf("an echo from %s, where nobody listens", closed)
	}
}

func TestNeed(t *testing.T) {
	for ci, want := range map[string]string{"": "SKIP", "true": "FAIL"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestNeedHelper$", "-test.v")
		cmd.Env = append(os.Environ(), "CI="+ci, "ENGINETEST_NEED=1")
		if out, _ := cmd.CombinedOutput(); !strings.Contains(string(out), want+": TestNeedHelper") {
			t.Errorf("CI=%q: %s", ci, out)
		}
	}
}

func TestNeedHelper(t *testing.T) {
	if os.Getenv("ENGINETEST_NEED") != "" {
		Need(t, false, "what nobody has")
	}
}
