package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
)

// nobody is a user with no rights.
const nobody = 65534

// ask runs this program as a process of its own, as uid, and returns its exit code and what it wrote.
func ask(t *testing.T, uid uint32, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	if uid != 0 {
		// The test binary stands in a directory of root's.
		bin := filepath.Join(shared(t), "vethwall")
		copyFile(t, self, bin)
		cmd.Path = bin
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	var out, errs bytes.Buffer
	cmd.Args[0] = "vethwall" // by this name it is the program, not its tests (TestMain)
	cmd.Env = append(os.Environ(), env...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", &out, &errs
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// shared is a directory that everybody may enter.
func shared(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "vethwall-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, content, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// oneLine wants exit code 2 and one line that says want, and nothing on stdout.
func oneLine(t *testing.T, want string, code int, stdout, stderr string) {
	t.Helper()
	if code != 2 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "vethwall: ") || !strings.Contains(stderr, want) {
		t.Errorf("exit code %d, stdout %q, stderr %q, want one line with %q", code, stdout, stderr, want)
	}
}

// privileged skips a test that needs root, but not in CI.
func privileged(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// bpffs names a directory on a bpffs that is not there yet; its parent is the test's own.
func bpffs(t *testing.T) (dir string) {
	t.Helper()
	parent, err := os.MkdirTemp("/sys/fs/bpf", "vethwall-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(parent) })
	return filepath.Join(parent, "vethwall")
}

func TestNoPrivileges(t *testing.T) {
	privileged(t)
	dir := bpffs(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		want string
		args []string
	}{
		{"run as root: sudo vethwall agent", []string{"agent"}},
		{"run as root: sudo vethwall attach", []string{"attach", "web", "x.o"}},
		{"run as root: sudo vethwall detach", []string{"detach", "web"}},
		{"run as root: sudo vethwall uninstall", []string{"uninstall"}},
		{"run as root", []string{"status", "--dir", dir}},
		{"run as root", []string{"status", "web", "--dir", dir}},
		{"run: sudo vethwall events", []string{"events", "--dir", dir}},
		{"run: sudo vethwall events", []string{"events", "-f", "--dir", dir}},
		{"run: sudo vethwall events", []string{"events", "web", "--dir", dir}},
	} {
		t.Run(tc.args[0], func(t *testing.T) {
			code, stdout, stderr := ask(t, nobody, nil, tc.args...)
			oneLine(t, tc.want, code, stdout, stderr)
		})
	}
}

// Without an engine nothing is done that would have to be undone; what can be answered is.
func TestNoEngine(t *testing.T) {
	privileged(t)
	dir := bpffs(t)
	env := []string{"DOCKER_HOST=unix:///nonexistent"}
	for _, args := range [][]string{{"agent"}, {"attach", "web", "x.o"}, {"detach", "web"}} {
		code, stdout, stderr := ask(t, 0, env, append(args, "--dir", dir)...)
		oneLine(t, "set DOCKER_HOST to where it listens", code, stdout, stderr)
	}
	code, stdout, _ := ask(t, 0, env, "status", "--dir", dir)
	if code != 0 || !strings.Contains(stdout, "no running container") {
		t.Errorf("status: exit code %d, %q", code, stdout)
	}
	code, stdout, stderr := ask(t, 0, env, "events", "--dir", dir)
	if code != 0 || stdout != "" || !strings.Contains(stderr, "no events") {
		t.Errorf("events: exit code %d, %q, %q", code, stdout, stderr)
	}
	code, stdout, stderr = ask(t, 0, env, "events", "-f", "web", "--dir", dir)
	if code != 1 || stdout != "" || !strings.Contains(stderr, `no running container "web"`) {
		t.Errorf("events of nobody: exit code %d, %q, %q", code, stdout, stderr)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s has been made: %v", dir, err)
	}
}

func TestNoBPFFS(t *testing.T) {
	privileged(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, where := range []string{dir, filepath.Join(dir, "not", "there"), file, filepath.Join(file, "below"), "/proc/vethwall", "relative"} {
		for _, args := range [][]string{{"agent"}, {"attach", "web", "x.o"}, {"detach", "web"}, {"status"}, {"status", "web"}, {"events"}, {"events", "-f", "web"}, {"uninstall"}} {
			code, stdout, stderr := ask(t, 0, nil, append(args, "--dir", where)...)
			oneLine(t, "is not on a bpffs", code, stdout, stderr)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%s holds %v, %v", dir, left, err)
	}
}

// uninstall takes out what vethwall has pinned, not whatever it is pointed at.
func TestUninstallOfOthers(t *testing.T) {
	privileged(t)
	dir := bpffs(t)
	for _, d := range []string{filepath.Join(dir, "links"), filepath.Join(dir, "maps-0")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	code, stdout, stderr := ask(t, 0, nil, "uninstall", "--dir", filepath.Dir(dir))
	oneLine(t, "holds vethwall, which is not vethwall's", code, stdout, stderr)
	if _, err := os.Stat(filepath.Join(dir, "links")); err != nil {
		t.Error(err)
	}
	for range 2 { // the second finds nothing left to do
		if code, stdout, stderr = ask(t, 0, nil, "uninstall", "--dir", dir); code != 0 || stderr != "" {
			t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", dir, err)
		}
	}
}

// What an older kernel's verifier says is long; it is shown to who asks for it.
func TestVerifierError(t *testing.T) {
	failed := fmt.Errorf("load the filter: %w", &ebpf.VerifierError{Cause: syscall.EINVAL, Log: []string{"0: (95) exit", "R0 !read_ok", "processed 1 insns"}})
	for _, verbose := range []bool{false, true} {
		var stderr bytes.Buffer
		e := &env{stderr: &stderr}
		err := e.refused(failed, verbose)
		if !errors.Is(err, syscall.EINVAL) || strings.Contains(err.Error(), "\n") {
			t.Errorf("verbose %t: error %q", verbose, err)
		}
		if shown := strings.Contains(stderr.String(), "processed 1 insns"); shown != verbose {
			t.Errorf("verbose %t: shown %t", verbose, shown)
		}
		if hint := strings.Contains(err.Error(), "-v "); hint == verbose {
			t.Errorf("verbose %t: hint %t", verbose, hint)
		}
	}
	if err := (&env{}).refused(syscall.ENOENT, true); !errors.Is(err, syscall.ENOENT) {
		t.Error(err)
	}
}
