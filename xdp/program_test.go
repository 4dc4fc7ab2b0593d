package xdp

import (
	"debug/elf"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const article = "../examples/article/"

// programs is a program directory that holds the article's objects, and files by name and content.
func programs(t *testing.T, files map[string]string) string {
	t.Helper()
	needPrivileges(t) // to own what root has to own
	dir := t.TempDir()
	for _, name := range []string{"dropper.o", "udp.o"} {
		content, err := os.ReadFile(article + name)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, name), content, 0o644))
	}
	for name, content := range files {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	return dir
}

func readProgram(t *testing.T, dir, name string) Program {
	t.Helper()
	p, err := ReadProgram(dir, name)
	must(t, err)
	return p
}

// refusedObject is udp.o with a program that the verifier refuses: it ends before it has a verdict.
func refusedObject(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(article + "udp.o")
	must(t, err)
	file, err := elf.Open(article + "udp.o")
	must(t, err)
	defer file.Close()
	exit := []byte{0x95, 0, 0, 0, 0, 0, 0, 0}
	copy(content[file.Section("dropper_main").Offset:], exit)
	return string(content)
}

func TestReadProgram(t *testing.T) {
	dir := programs(t, map[string]string{
		"text": "no object", "large.o": strings.Repeat("x", maxObject+1), "theirs.o": "", "open.o": "", "group.o": "", "empty.o": "",
	})
	in := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Chown(in("theirs.o"), 1, 0))
	must(t, os.Chmod(in("open.o"), 0o646))
	must(t, os.Chmod(in("group.o"), 0o664))
	must(t, os.Mkdir(in("folder"), 0o755))
	must(t, unix.Mkfifo(in("fifo"), 0o644))
	must(t, os.Symlink("udp.o", in("inside.o")))
	outside, err := filepath.Abs(article + "udp.o")
	must(t, err)
	must(t, os.Symlink(outside, in("outside.o")))
	must(t, os.Symlink("../"+filepath.Base(dir)+"/udp.o", in("around.o")))
	for name, want := range map[string]string{
		"udp.o": "", "udp": "", "udp.o:dropper_main": "", "udp:dropper_main": "", "dropper.o": "", "dropper:.text": "", "inside": "",
		"none":           "no file none in " + dir,
		"udp.o:nothing":  `no program in section "nothing"`,
		"text":           "is it an object",
		"empty.o":        "is it an object",
		"large":          "larger than 1048576 bytes",
		"theirs":         "does not belong to root",
		"open":           "can be written by others",
		"group":          "can be written by others",
		"folder":         "not a regular file",
		"fifo":           "not a regular file",
		"outside.o":      "escapes",
		"around.o":       "escapes",
		"inside.o:.text": "no program in it",
	} {
		p, err := ReadProgram(dir, name)
		switch {
		case want == "" && (err != nil || p.Name != name):
			t.Errorf("%s: %+v, %v", name, p, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "xdp.program="+name)):
			t.Errorf("%s: %v, want an error with %q", name, err, want)
		}
	}
	if a, b := readProgram(t, dir, "udp.o"), readProgram(t, dir, "udp.o"); a != b || a == readProgram(t, dir, "dropper.o") {
		t.Error("equal programs are not equal, or others are")
	}
	if _, err := ReadProgram(in("nowhere"), "udp"); err == nil || !strings.Contains(err.Error(), "no file udp in") {
		t.Errorf("without a directory: %v", err)
	}
	must(t, os.Chmod(dir, 0o777))
	if _, err := ReadProgram(dir, "udp"); err == nil || !strings.Contains(err.Error(), dir+" can be written by others") {
		t.Errorf("in a directory that is open to all: %v", err)
	}
}

// wantHooks compares the hooks of the device with what they are to be: type, mode, and the program's function.
func (n *network) wantHooks(dir, when string, want ...string) {
	n.t.Helper()
	r, err := OpenReader(dir)
	must(n.t, err)
	defer r.Close()
	d, err := r.Device(n.host.Index)
	must(n.t, err)
	var got []string
	for _, h := range d.Hooks {
		mode := h.Mode
		if mode == "tcx" || mode == "clsact" {
			mode = "tc"
		}
		got = append(got, strings.TrimSpace(h.Direction+" "+mode+" "+h.Program+h.ByHand))
	}
	if !slices.Equal(got, want) || d.Foreign != 0 {
		n.t.Errorf("%s: hooks %q, foreign %d, want %q", when, got, d.Foreign, want)
	}
}

// slotLink is the id of the link in the XDP slot and that of its program.
func slotLink(t *testing.T, f *Filter, ifindex int, hook string) (link.ID, ebpf.ProgramID) {
	t.Helper()
	l := f.live(hookID{ifindex, hook})
	if l == nil {
		t.Fatalf("no link at %s", hook)
	}
	info, err := l.Info()
	must(t, err)
	return info.ID, info.Program
}

// TestProgram puts both programs of the article before a policy, and before none. udp.o reads IPv4 in whatever comes, so
// UDP over IPv6 passes it.
func TestProgram(t *testing.T) {
	n := newNetwork(t)
	objects := programs(t, nil)
	dir := bpffs(t)
	f := open(t, dir)
	defer f.Close()
	for _, c := range []struct {
		program, labels string
		mode            Mode
		v4, v6          bool // UDP arrives
		hooks           string
	}{
		{"dropper.o", "xdp.enable=true", Auto, false, false, "egress tc, egress generic text"},
		{"dropper.o:.text", "xdp.drop=tcp", Auto, false, false, "egress tc, ingress tc, egress generic text"},
		{"udp.o", "xdp.enable=true", Auto, false, true, "egress tc, egress generic dropper"},
		{"udp.o:dropper_main", "xdp.drop=tcp", Auto, false, true, "egress tc, ingress tc, egress generic dropper"},
		{"udp.o", "xdp.drop=udp", Auto, false, false, "egress tc, ingress tc, egress generic dropper"},
		{"udp.o", "xdp.drop=tcp", Native, false, true, "egress tc, ingress tc, egress native dropper"},
		{"udp.o", "xdp.drop=tcp", TCX, false, true, "egress tc, ingress tc, egress generic dropper"},
		{"", "xdp.drop=tcp", Auto, true, true, "egress generic, ingress tc"},
	} {
		when := fmt.Sprintf("%s before %s, %s", c.program, c.labels, c.mode)
		w := Want{Policy: labelled(t, c.labels), Mode: c.mode}
		if c.program != "" {
			w.Program = readProgram(t, objects, c.program)
		}
		must(t, f.Attach(n.host.Index, w))
		n.wantHooks(dir, when, strings.Split(c.hooks, ", ")...)
		n.wantUDPTo("192.0.2.1:0", c.v4, when)
		n.wantUDPTo("[2001:db8::1]:0", c.v6, when)
		must(t, f.Detach(n.host.Index))
		n.wantHooks(dir, when+", detached")
	}
	n.wantUDP(true, "after all")
}

// TestProgramChanges goes from each content of the XDP slot to each other. Where it stays ours the link is never made
// anew, and what only the program needed goes with it.
func TestProgramChanges(t *testing.T) {
	n := newNetwork(t)
	objects := programs(t, nil)
	dir := bpffs(t)
	f := open(t, dir)
	defer f.Close()
	tcp := labelled(t, "xdp.drop=tcp")
	none, dropper, udp := Program{}, readProgram(t, objects, "dropper"), readProgram(t, objects, "udp")
	must(t, f.Attach(n.host.Index, Want{Policy: tcp}))
	first, _ := slotLink(t, f, n.host.Index, hookXDP)
	for _, p := range []Program{dropper, udp, none, udp, dropper, none} {
		must(t, f.Attach(n.host.Index, Want{Policy: tcp, Program: p}))
		hook, hooks := hookProgram, []string{"egress tc", "ingress tc", "egress generic dropper"}
		switch p {
		case dropper:
			hooks[2] = "egress generic text"
		case none:
			hook, hooks = hookXDP, []string{"egress generic", "ingress tc"}
		}
		n.wantHooks(dir, "with "+p.Name, hooks...)
		if id, _ := slotLink(t, f, n.host.Index, hook); id != first {
			t.Errorf("with %q: link %d was made anew as %d", p.Name, first, id)
		}
		n.wantUDPTo("192.0.2.1:0", p == none, "with "+p.Name)
		n.wantUDPTo("[2001:db8::1]:0", p != dropper, "with "+p.Name)
	}

	must(t, f.Attach(n.host.Index, Want{Policy: tcp, Program: dropper}))
	must(t, f.Attach(n.host.Index, Want{Policy: tcp, Mode: TCX}))
	n.wantHooks(dir, "tcx", "egress tc", "ingress tc")
	n.wantUDP(true, "tcx")

	must(t, f.Attach(n.host.Index, Want{Policy: tcp, Program: udp}))
	_, err := f.Shut(n.host.Index)
	must(t, err)
	n.wantHooks(dir, "closed", "egress generic", "egress tc", "ingress tc")
	n.wantUDP(false, "closed")

	must(t, f.Attach(n.host.Index, Want{Policy: tcp, Program: udp}))
	must(t, sweep(f))
	must(t, f.Detach(n.host.Index))
	n.wantHooks(dir, "detached")
	must(t, sweep(f))
	if left, _ := filepath.Glob(filepath.Join(dir, "programs", "*")); len(left) > 0 || len(f.programs) > 0 {
		t.Errorf("left of programs that no device has: %v, %v", left, f.programs)
	}
}

// TestProgramWithoutAGap goes through programs and policies of which the one or the other drops what the container sends all
// the time. The sink counts what passes, and then that it would.
func TestProgramWithoutAGap(t *testing.T) {
	n := newNetwork(t)
	objects := programs(t, nil)
	udp, dropper := readProgram(t, objects, "udp"), readProgram(t, objects, "dropper")
	f := open(t, bpffs(t))
	defer f.Close()
	sink, err := net.ListenPacket("udp4", "192.0.2.1:0")
	must(t, err)
	defer sink.Close()
	open, dropUDP, dropTCP := labelled(t, "xdp.drop=gre"), labelled(t, "xdp.drop=udp"), labelled(t, "xdp.drop=tcp")
	must(t, f.Attach(n.host.Index, Want{Policy: dropUDP}))
	flood := n.flood(sink.LocalAddr().String())
	for range 5 {
		for _, w := range []Want{
			{Policy: dropUDP, Program: udp}, {Policy: dropUDP}, {Policy: dropTCP, Program: udp}, {Policy: dropUDP, Program: dropper},
			{Policy: open, Program: udp}, {Policy: open, Program: dropper}, {Policy: dropUDP, Mode: TCX}, {Policy: dropTCP, Program: dropper},
			{Policy: Closed()}, {Policy: open, Program: udp}, {Policy: dropUDP},
		} {
			before := flood.sent.Load()
			must(t, f.Attach(n.host.Index, w))
			for flood.sent.Load() < before+100 {
				time.Sleep(time.Millisecond)
			}
		}
	}
	must(t, sink.SetReadDeadline(time.Now().Add(long)))
	if _, _, err := sink.ReadFrom(make([]byte, 64)); err == nil {
		t.Error("a datagram arrived while programs and policies changed")
	}
	must(t, f.Attach(n.host.Index, Want{Policy: open}))
	must(t, sink.SetReadDeadline(time.Now().Add(soon)))
	if _, _, err := sink.ReadFrom(make([]byte, 64)); err != nil {
		t.Errorf("nothing arrives where it may: %v", err)
	}
	flood.stop()
	t.Logf("%d datagrams", flood.sent.Load())
}

// flooding is a container that sends all the time.
type flooding struct {
	sent      atomic.Int64
	end, done chan struct{}
}

// flood sends datagrams from the container, whose neighbour it need not ask for.
func (n *network) flood(to string) *flooding {
	n.t.Helper()
	host, err := netlink.LinkByIndex(n.host.Index)
	must(n.t, err)
	fl := &flooding{end: make(chan struct{}), done: make(chan struct{})}
	n.inContainer(func() {
		eth0, err := netlink.LinkByName("eth0")
		must(n.t, err)
		must(n.t, netlink.NeighSet(&netlink.Neigh{
			LinkIndex: eth0.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.IPv4(192, 0, 2, 1), HardwareAddr: host.Attrs().HardwareAddr,
		}))
		c, err := net.Dial("udp", to)
		must(n.t, err)
		go fl.run(c)
	})
	return fl
}

func (fl *flooding) run(c net.Conn) {
	defer close(fl.done)
	defer c.Close()
	for {
		select {
		case <-fl.end:
			return
		default:
			_, _ = c.Write([]byte("datagram"))
			fl.sent.Add(1)
		}
	}
}

func (fl *flooding) stop() {
	close(fl.end)
	<-fl.done
}

// TestProgramOutlivesItsProcess checks that the next agent takes over link and program, maps included, and exchanges a
// program whose object is another by then.
func TestProgramOutlivesItsProcess(t *testing.T) {
	n := newNetwork(t)
	objects := programs(t, nil)
	dir := bpffs(t)
	want := func(name string) Want {
		return Want{Policy: labelled(t, "xdp.drop=tcp"), Program: readProgram(t, objects, name)}
	}
	f := open(t, dir)
	must(t, f.Attach(n.host.Index, want("udp")))
	firstLink, firstProgram := slotLink(t, f, n.host.Index, hookProgram)
	f.Close()
	n.wantUDPTo("192.0.2.1:0", false, "without a process")
	n.wantUDPTo("[2001:db8::1]:0", true, "without a process")

	f = open(t, dir)
	defer f.Close()
	must(t, sweep(f)) // what is not yet asked for is in use all the same
	must(t, f.Attach(n.host.Index, want("udp")))
	if l, p := slotLink(t, f, n.host.Index, hookProgram); l != firstLink || p != firstProgram {
		t.Errorf("link %d and program %d became %d and %d", firstLink, firstProgram, l, p)
	}
	other := n.veth("host1", "eth1")
	must(t, f.Attach(other.Index, want("udp")))
	if _, p := slotLink(t, f, other.Index, hookProgram); p != firstProgram {
		t.Errorf("two devices have programs %d and %d of the same object", firstProgram, p)
	}

	content, err := os.ReadFile(filepath.Join(objects, "dropper.o"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(objects, "udp.o"), content, 0o644))
	must(t, f.Attach(n.host.Index, want("udp")))
	if l, p := slotLink(t, f, n.host.Index, hookProgram); l != firstLink || p == firstProgram {
		t.Errorf("with another object: link %d and program %d are %d and %d", firstLink, firstProgram, l, p)
	}
	n.wantUDPTo("[2001:db8::1]:0", false, "with dropper.o")
	must(t, sweep(f))
	if _, p := slotLink(t, f, other.Index, hookProgram); p != firstProgram || len(f.programs) != 2 {
		t.Errorf("the other device has program %d, want %d; %d are loaded", p, firstProgram, len(f.programs))
	}
}

// TestProgramRefused checks what Attach says where the program cannot be put there, and that Shut then closes.
func TestProgramRefused(t *testing.T) {
	n := newNetwork(t)
	objects := programs(t, map[string]string{"refused.o": refusedObject(t)})
	dir := bpffs(t)
	f := open(t, dir)
	defer f.Close()
	tcp := labelled(t, "xdp.drop=tcp")
	for range 2 {
		err := f.Attach(n.host.Index, Want{Policy: tcp, Program: readProgram(t, objects, "refused")})
		if err == nil || !strings.Contains(err.Error(), "xdp.program=refused: the kernel refuses the program") {
			t.Fatalf("refused.o: %v", err)
		}
		_, err = f.Shut(n.host.Index)
		must(t, err)
		n.wantUDP(false, "closed")
		must(t, sweep(f))
	}
	must(t, f.Detach(n.host.Index))
	n.wantUDP(true, "detached")

	l, err := link.AttachXDP(link.XDPOptions{Program: passProgram(t), Interface: n.host.Index, Flags: link.XDPGenericMode})
	must(t, err)
	defer l.Close()
	if err := f.Attach(n.host.Index, Want{Policy: tcp, Program: readProgram(t, objects, "udp")}); err == nil || !strings.Contains(err.Error(), "taken") {
		t.Errorf("beside somebody else's program: %v", err)
	}
	n.wantUDP(true, "after an error, and before Shut")
	byFilter, err := f.Shut(n.host.Index)
	must(t, err)
	if !byFilter {
		t.Error("not closed by the filter")
	}
	n.wantUDP(false, "closed beside somebody else's program")
}

// TestProgramAndByHand checks who gives way to whom.
func TestProgramAndByHand(t *testing.T) {
	n := newNetwork(t)
	dir := bpffs(t)
	udp := readProgram(t, programs(t, nil), "udp")
	dropper, err := LoadObject(article+"dropper.o", "")
	must(t, err)
	defer dropper.Close()
	f := open(t, dir)
	defer f.Close()
	tcp := labelled(t, "xdp.drop=tcp")
	must(t, f.Attach(n.host.Index, Want{Policy: tcp}))
	must(t, AttachByHand(dir, n.host.Index, dropper, Generic))
	n.wantUDP(false, "by hand")
	must(t, f.Attach(n.host.Index, Want{Policy: tcp, Program: udp}))
	n.wantHooks(dir, "taken from by hand", "egress tc", "ingress tc", "egress generic dropper")
	n.wantUDPTo("[2001:db8::1]:0", true, "taken from by hand")
	n.wantUDPTo("192.0.2.1:0", false, "taken from by hand")
	if err := AttachByHand(dir, n.host.Index, dropper, Generic); err == nil || !strings.Contains(err.Error(), "xdp.program has the XDP slot") {
		t.Errorf("attach by hand beside xdp.program: %v", err)
	}
	if err := DetachByHand(dir, n.host.Index); err == nil {
		t.Error("the operator's program was detached by hand")
	}
	n.wantUDPTo("192.0.2.1:0", false, "after detach")
}
