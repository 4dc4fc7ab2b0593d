package enginetest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Engine is a dockerd of the test's own. Its host is a network namespace with nothing in it but lo, so
// that bridges, veths, firewall rules and published ports collide with nobody's. Everything else is the
// machine's: processes, cgroups, /proc, bpffs, mounts.
//
// In particular /sys/class/net shows the machine's devices to every process in the namespace: only
// netlink tells the truth there.
type Engine struct {
	*Docker
	// NetNS is the path of the network namespace that plays the host.
	NetNS string
	// Dir holds data, exec root, log and socket; no other process uses it. Sandbox keys lie below it.
	Dir string

	name       string
	flags      []string
	files      map[string]string // by the path of a file of the machine's the one that the engine sees there
	process    *process
	built      string  // the directory that BuiltVar names, "" for the machine's programs
	containerd process // the built one
}

// process is the dockerd that runs, if one does.
type process struct {
	pid  int           // 0 while the engine is down
	done chan struct{} // closed once the process has been waited for
}

// Own starts an engine with further flags for dockerd, such as --live-restore. It ends with the test,
// and its containers, mounts and namespaces with it.
func Own(t testing.TB, flags ...string) *Engine {
	t.Helper()
	return own(t, nil, flags)
}

// OwnAsking is Own for an engine whose host has one name server. It sees a resolv.conf of its own in place of the machine's.
func OwnAsking(t testing.TB, nameserver string) *Engine {
	t.Helper()
	return own(t, map[string]string{"/etc/resolv.conf": "nameserver " + nameserver + "\n"}, nil)
}

// OwnRemapped is Own for an engine whose containers live in a user namespace of their own. Who they are mapped to has
// subordinate ids in files of the engine's own.
func OwnRemapped(t testing.TB) *Engine {
	t.Helper()
	ids := "nobody:100000:65536\n"
	return own(t, map[string]string{"/etc/subuid": ids, "/etc/subgid": ids}, []string{"--userns-remap", "nobody:nogroup"})
}

// own starts an engine that sees files, by their paths, in the place of the machine's.
func own(t testing.TB, files map[string]string, flags []string) *Engine {
	t.Helper()
	Need(t, os.Geteuid() == 0, "root")
	built := os.Getenv(BuiltVar)
	for _, tool := range []string{filepath.Join(built, "dockerd"), "docker", "ip", "nsenter"} {
		_, err := exec.LookPath(tool)
		Need(t, err == nil, "the program "+tool)
	}
	name := Prefix + random()
	dir, err := os.MkdirTemp("", Prefix)
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{
		Docker: &Docker{t: t, own: true, prefix: Prefix, Env: append(pathWith(built), "DOCKER_HOST=unix://"+dir+"/docker.sock", "DOCKER_CONTEXT=")},
		NetNS:  "/run/netns/" + name, Dir: dir, name: name, flags: flags, files: map[string]string{}, process: &process{}, built: built,
	}
	t.Cleanup(e.remove)
	if err := os.Chmod(dir, 0o711); err != nil { // #nosec G302 -- the root of a user namespace has to get through it
		t.Fatal(err)
	}
	for _, args := range [][]string{{"netns", "add", name}, {"-n", name, "link", "set", "lo", "up"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "daemon.json"), []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, text := range files {
		_, err := os.Stat(path)
		Need(t, err == nil, "the file "+path)
		e.files[path] = filepath.Join(dir, filepath.Base(path))
		if err := os.WriteFile(e.files[path], []byte(text), 0o644); err != nil { // #nosec G306 -- no secret
			t.Fatal(err)
		}
	}
	if built != "" {
		if err := e.startContainerd(); err != nil {
			t.Fatal(err)
		}
	}
	e.Up()
	return e
}

// With is the same engine for another test, such as a subtest.
func (e *Engine) With(t testing.TB) *Engine {
	other := *e
	other.Docker = e.Docker.With(t)
	return &other
}

// Command prepares a process in the engine's host namespace, whose environment leads to the engine.
func (e *Engine) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--net=" + e.NetNS, "--", name}, args...)...)
	cmd.Env = e.Env
	return cmd
}

// Up starts the engine, if it is down, and returns when it answers.
func (e *Engine) Up() {
	e.t.Helper()
	if err := e.up(); err != nil {
		e.t.Fatal(err)
	}
}

func (e *Engine) up() error {
	if e.process.pid != 0 {
		return nil
	}
	if err := e.spawn(); err != nil {
		return err
	}
	deadline := time.Now().Add(patience)
	for {
		if e.answers() {
			return nil
		}
		select {
		case <-e.process.done:
			e.process.pid = 0
			return fmt.Errorf("dockerd ended at once: %s", e.logTail())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("dockerd does not answer: %s", e.logTail())
		}
	}
}

// spawn starts dockerd.
func (e *Engine) spawn() error {
	log, err := os.OpenFile(filepath.Join(e.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	args := slices.Concat([]string{
		"dockerd",
		"--config-file", e.Dir + "/daemon.json", "--data-root", e.Dir + "/data", "--exec-root", e.Dir + "/exec",
		"--pidfile", e.Dir + "/pid", "--host", "unix://" + e.Dir + "/docker.sock",
	}, e.runtimeFlags(), e.flags)
	cmd := e.command(args)
	cmd.Stdout, cmd.Stderr = log, log
	done, err := spawn(cmd, syscall.SIGTERM) // which ends its containers, too
	if err != nil {
		return err
	}
	e.process.pid, e.process.done = cmd.Process.Pid, done // nsenter becomes dockerd, it does not fork
	return nil
}

// command prepares a program of the engine's, which sees the engine's own files in the place of the machine's. What it
// mounts then nobody else sees, so that its containers' namespaces are found by their processes; dockerd and containerd
// have to see what the other mounts.
func (e *Engine) command(args []string) *exec.Cmd {
	switch {
	case len(e.files) == 0:
	case e.containerd.pid != 0:
		args = append([]string{"nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", e.containerd.pid), "--"}, args...)
	default:
		for path, own := range e.files {
			args = append([]string{"sh", "-c", `mount --bind "$0" "$1" && shift && exec "$@"`, own, path}, args...)
		}
		args = append([]string{"unshare", "--mount", "--propagation", "slave"}, args...)
	}
	return e.Command(args[0], args[1:]...)
}

// spawn starts cmd, and closes done once it has been waited for. A test that is killed runs no clean-up: the process then
// gets the signal all the same. The kernel watches the thread that starts it, so that one must stay.
func spawn(cmd *exec.Cmd, end syscall.Signal) (done chan struct{}, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: end, Setsid: true}
	started := make(chan error)
	done = make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(done)
		}
	}()
	return done, <-started
}

// answers asks over the socket, without a docker process each time.
func (e *Engine) answers() bool {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", e.Dir+"/docker.sock")
	}}
	r, err := (&http.Client{Transport: tr, Timeout: patience}).Get("http://docker/_ping")
	if err != nil {
		return false
	}
	_ = r.Body.Close()
	return r.StatusCode == http.StatusOK
}

// Down stops the engine as systemctl stop does. Its containers end with it unless it runs with
// --live-restore.
func (e *Engine) Down() {
	e.t.Helper()
	e.end(syscall.SIGTERM)
}

// Kill ends the engine with SIGKILL. Its containers run on.
func (e *Engine) Kill() {
	e.t.Helper()
	e.end(syscall.SIGKILL)
	e.awaitContainerd()
}

// awaitContainerd waits for the end of the containerd that dies with a killed dockerd. A machine whose
// first process is slow to collect the dead leaves a zombie, which the next dockerd would take for
// alive: nothing must be left that names it.
func (e *Engine) awaitContainerd() {
	pidfile := filepath.Join(e.Dir, "exec/containerd/containerd.pid")
	pid, err := os.ReadFile(pidfile)
	if err != nil {
		return // a containerd that dockerd did not start lives on
	}
	e.Wait("the end of containerd", func() error {
		stat, _ := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		if len(stat) == 0 || bytes.Contains(stat, []byte(") Z ")) {
			return nil
		}
		return fmt.Errorf("%s", stat)
	})
	_ = os.Remove(pidfile)
}

// Hang keeps the engine from answering for a while.
func (e *Engine) Hang(d time.Duration) {
	e.t.Helper()
	for _, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGCONT} {
		if err := syscall.Kill(e.process.pid, sig); err != nil {
			e.t.Fatal(err)
		}
		if sig == syscall.SIGSTOP {
			time.Sleep(d)
		}
	}
}

// Restart is Down and Up.
func (e *Engine) Restart() {
	e.t.Helper()
	e.Down()
	e.Up()
}

func (e *Engine) end(sig syscall.Signal) {
	e.t.Helper()
	if e.process.pid == 0 {
		return
	}
	_ = syscall.Kill(e.process.pid, sig)
	select {
	case <-e.process.done:
		e.process.pid = 0
	case <-time.After(patience):
		e.t.Fatalf("dockerd %d does not end on %v", e.process.pid, sig)
	}
}

// remove undoes everything, from whatever state the test has left it in. An engine that is down is
// started once more, because containers, their cgroups and mounts are best removed by the engine.
func (e *Engine) remove() {
	if e.t.Failed() {
		e.t.Logf("log of dockerd: %s", e.logTail())
	}
	if err := e.up(); err == nil {
		if ids, err := e.Try("ps", "--all", "--quiet", "--no-trunc"); err == nil && ids != "" {
			_, _ = e.Try(append([]string{"rm", "--force", "--volumes"}, strings.Fields(ids)...)...)
		}
	}
	if p := e.process; p.pid != 0 {
		_ = syscall.Kill(p.pid, syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(patience):
			e.t.Logf("clean-up: dockerd %d does not end, killing it", p.pid)
		}
	}
	killLeft(e.Dir, e.name)
	if p := e.process; p.pid != 0 {
		<-p.done
	}
	if c := e.containerd; c.pid != 0 {
		<-c.done
	}
	unmountBelow(e.t, e.Dir)
	if out, err := exec.Command("ip", "netns", "del", e.name).CombinedOutput(); err != nil {
		e.t.Logf("clean-up: ip netns del: %v: %s", err, out)
	}
	if err := os.RemoveAll(e.Dir); err != nil {
		e.t.Logf("clean-up: %v", err)
	}
}

// logTail is what dockerd wrote last, without its chatter.
func (e *Engine) logTail() string {
	log, err := os.ReadFile(filepath.Join(e.Dir, "log"))
	if err != nil {
		return err.Error()
	}
	var lines [][]byte
	for line := range bytes.Lines(log) {
		if !bytes.Contains(line, []byte("level=info")) {
			lines = append(lines, line)
		}
	}
	return string(bytes.Join(lines[max(0, len(lines)-30):], nil))
}
