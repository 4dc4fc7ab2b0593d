package enginetest

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// killLeft kills what an engine has left behind: processes with one of the marks, which nobody else's
// have, as part of an argument (containerd and its shims), and their descendants (containers).
func killLeft(marks ...string) {
	children, marked := map[int][]int{}, []int(nil)
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range procs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if pid == os.Getpid() {
			continue
		}
		stat, _ := os.ReadFile(dir + "/stat")
		// The second field is a name in brackets, which may itself hold brackets and spaces.
		if f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:]); len(f) > 1 {
			parent, _ := strconv.Atoi(string(f[1]))
			children[parent] = append(children[parent], pid)
		}
		args, _ := os.ReadFile(dir + "/cmdline")
		if slices.ContainsFunc(marks, func(m string) bool { return bytes.Contains(args, []byte(m)) }) {
			marked = append(marked, pid)
		}
	}
	for len(marked) > 0 {
		pid := marked[0]
		marked = append(marked[1:], children[pid]...)
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// unmountBelow detaches every mount below dir, the last one first.
func unmountBelow(t testing.TB, dir string) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Logf("clean-up: %v", err)
		return
	}
	lines := strings.Split(string(info), "\n")
	slices.Reverse(lines)
	for _, line := range lines {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			if err := syscall.Unmount(f[4], syscall.MNT_DETACH); err != nil {
				t.Logf("clean-up: unmount %s: %v", f[4], err)
			}
		}
	}
}
