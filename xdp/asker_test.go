package xdp

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// askVar names what TestAsk asks, as PROTO ADDRESS.
const askVar = "VETHWALL_TEST_ASK"

// TestAsk is the process in a container's cgroup that TestCloseResolverTo starts.
func TestAsk(t *testing.T) {
	proto, addr, _ := strings.Cut(os.Getenv(askVar), " ")
	if addr == "" {
		t.Skip("only for TestCloseResolverTo")
	}
	how := proto
	proto, _, _ = strings.Cut(proto, "-")
	c, err := net.DialTimeout(proto, addr, 2*long)
	if err != nil {
		return
	}
	defer c.Close()
	if proto == how {
		_, _ = c.Write([]byte("query"))
		return
	}
	raw, err := c.(*net.UDPConn).SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		if how == "udp-segments" {
			must(t, unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 100))
			_, _ = unix.Write(int(fd), make([]byte, 1000))
			return
		}
		_, _ = unix.SendmsgN(int(fd), []byte("que"), nil, nil, unix.MSG_MORE)
		_, _ = unix.Write(int(fd), make([]byte, 1000))
	}))
}

// asks lets a process in a cgroup and in the container's namespace ask, and says whether that arrives.
func (a *asker) asks(cgroup, proto, addr string) bool {
	a.t.Helper()
	dir, err := os.Open(cgroup)
	must(a.t, err)
	defer dir.Close()
	var out bytes.Buffer
	a.inContainer(func() {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestAsk$")
		cmd.Env = append(os.Environ(), askVar+"="+proto+" "+addr)
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		if err := cmd.Run(); err != nil {
			a.t.Fatalf("%v: %s", err, out.Bytes())
		}
	})
	if proto == "tcp" {
		_ = a.tcp.(*net.TCPListener).SetDeadline(time.Now().Add(long))
		c, err := a.tcp.Accept()
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}
	_ = a.udp.SetReadDeadline(time.Now().Add(long))
	_, _, err = a.udp.ReadFrom(make([]byte, 64))
	return err == nil
}

func TestCloseResolverTo(t *testing.T) {
	a := newAsker(t)
	root, err := hostCgroups()
	must(t, err)
	parent, err := os.MkdirTemp(root, "vethwall-test-")
	must(t, err)
	var made []string
	t.Cleanup(func() {
		for i := range made {
			_ = os.Remove(made[len(made)-1-i])
		}
		_ = os.Remove(parent)
	})
	cgroup := func(path ...string) string {
		dir := filepath.Join(append([]string{parent}, path...)...)
		must(t, os.Mkdir(dir, 0o755))
		made = append(made, dir)
		return dir
	}
	closed, other, plain := strings.Repeat("0123456789abcdef", 4), strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	scope, bare, nobody := cgroup("docker-"+closed+".scope"), cgroup(other), cgroup(plain)
	inside := cgroup("docker-"+closed+".scope", "init.scope")
	deeper := cgroup("docker-"+closed+".scope", "init.scope", "a")
	// As of an engine in a container: containers of their own, and one that is closed itself.
	nested, nestedScope := cgroup("docker-"+closed+".scope", "init.scope", plain), cgroup("docker-"+closed+".scope", "docker-"+plain+".scope")
	nestedClosed := cgroup("docker-"+closed+".scope", other)
	long, almost := cgroup("docker-"+closed+".scope", plain+"0"), cgroup("docker-"+closed+".scope", "docker-"+plain+".slices")

	pins := bpffs(t)
	f := open(t, pins)
	must(t, f.Attach(a.host.Index, Want{Policy: labelled(t, "xdp.drop=udp")}))
	udp, tcp := a.udp.LocalAddr().String(), a.tcp.Addr().String()
	want := func(when, cgroup string, u, c bool) {
		t.Helper()
		if gu, gc := a.asks(cgroup, "udp", udp), a.asks(cgroup, "tcp", tcp); gu != u || gc != c {
			t.Errorf("%s, from %s: UDP %t, TCP %t; want %t, %t", when, strings.TrimPrefix(cgroup, parent), gu, gc, u, c)
		}
	}
	want("nothing said", scope, true, true)
	must(t, f.CloseResolverTo(closed, 0, true, true))
	must(t, f.CloseResolverTo(other, 0, true, false))
	for _, dir := range []string{scope, inside, deeper, long, almost} {
		want("closed", dir, false, false)
	}
	for _, dir := range []string{nested, nestedScope} {
		want("another container in it", dir, true, true)
	}
	want("UDP closed in it", nestedClosed, false, true)
	want("UDP closed", bare, false, true)
	for _, how := range []string{"udp-more", "udp-segments"} { // of which not all is in one piece
		if a.asks(scope, how, udp) || !a.asks(nobody, how, udp) {
			t.Errorf("%s: it arrives from who may not ask, or not from who may", how)
		}
		for a.udp.SetReadDeadline(time.Now().Add(200*time.Millisecond)) == nil { // more segments
			if _, _, err := a.udp.ReadFrom(make([]byte, 64)); err != nil {
				break
			}
		}
	}
	want("others closed", nobody, true, true)
	if a.asks(scope, "udp", "[::ffff:127.0.0.11]"+udp[strings.LastIndex(udp, ":"):]) {
		t.Error("asked by an address of IPv6")
	}
	must(t, f.CloseResolverTo(closed, a.host.Index, false, true))
	want("TCP closed", inside, true, false)
	if a.refused(f) == 0 {
		t.Error("no query is counted")
	}
	must(t, f.CloseResolverTo(closed, a.host.Index, false, false))
	want("open again", scope, true, true)
	want("another stays closed", bare, false, true)
	if err := f.CloseResolverTo("short", 0, true, true); err == nil {
		t.Error("an id that is none is taken")
	}
	f.Close()
	want("without an agent", bare, false, true)
	want("others without an agent", nobody, true, true)

	f = open(t, pins)
	want("another agent", bare, false, true)
	must(t, f.CloseResolverTo(closed, 0, true, true))
	must(t, f.Retire())
	want("closed by it", scope, false, false)
	must(t, f.SweepResolver(func(id string) bool { return id == closed }))
	want("gone", bare, true, true)
	want("not gone", scope, false, false)
	f.Close()

	// A map of another version, which the program of that one goes on reading.
	ids, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 64, ValueSize: 4, MaxEntries: 1})
	must(t, err)
	defer ids.Close()
	must(t, os.Remove(filepath.Join(askersDir(pins), "askers")))
	must(t, ids.Pin(filepath.Join(askersDir(pins), "askers")))
	f = open(t, pins)
	want("another version's", scope, false, false)
	must(t, f.CloseResolverTo(closed, 0, true, false))
	must(t, f.Retire())
	want("this version's", scope, false, true)

	// Somebody takes it off.
	l, err := link.LoadPinnedLink(askersLink(pins), nil)
	must(t, err)
	must(t, l.Detach())
	must(t, l.Close())
	f.Close()
	want("taken off", scope, true, true)
	f = open(t, pins)
	must(t, f.Retire())
	want("another agent", scope, false, true)
	must(t, os.RemoveAll(askersDir(pins)))
	must(t, f.Sweep(nil))
	f.Close()
	want("without pins for a moment", scope, false, true)
	must(t, Uninstall(pins))
	want("uninstalled", scope, true, true)
}

// TestAskersAreTriedAgain: what the kernel cannot do now it may be able to do later.
func TestAskersAreTriedAgain(t *testing.T) {
	if _, err := hostCgroups(); err != nil {
		t.Skip(err)
	}
	f := open(t, bpffs(t))
	defer f.Close()
	id := strings.Repeat("ef", 32)
	f.askers.failed, f.askers.tried = errors.New("no memory"), time.Now()
	if err := f.CloseResolverTo(id, 0, true, true); err == nil {
		t.Error("tried again at once")
	}
	f.askers.tried = time.Now().Add(-2 * askersRetry)
	must(t, f.CloseResolverTo(id, 0, true, true))
	must(t, f.SweepResolver(func(string) bool { return false }))
	if _, err := os.Lstat(askersDir(f.dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the program is there although nobody needs it: %v", err)
	}
}

// TestAskersOfAnotherLayout sweeps before anything is closed anew: what an agent before has closed by a map of another layout stays closed.
func TestAskersOfAnotherLayout(t *testing.T) {
	if _, err := hostCgroups(); err != nil {
		t.Skip(err)
	}
	dir := bpffs(t)
	f := open(t, dir)
	must(t, f.CloseResolverTo(strings.Repeat("ef", 32), 0, true, true))
	f.Close()
	pin := filepath.Join(askersDir(dir), "askers")
	must(t, os.Remove(pin))
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 64, ValueSize: 16, MaxEntries: 8})
	must(t, err)
	must(t, m.Pin(pin))
	must(t, m.Close())
	f = open(t, dir)
	defer f.Close()
	must(t, f.SweepResolver(func(string) bool { return true }))
	if _, err := os.Lstat(askersLink(dir)); err != nil {
		t.Errorf("before anything was closed anew: %v", err)
	}
	must(t, f.Retire())
	must(t, f.SweepResolver(func(string) bool { return false }))
	if _, err := os.Lstat(askersLink(dir)); err == nil {
		t.Error("it stays, and closes to nobody")
	}
}
