package xdp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// EnsureBPFFS mounts a bpffs at path, such as /sys/fs/bpf, unless one is there.
func EnsureBPFFS(path string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if fs.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Mount("bpffs", path, "bpf", 0, "mode=700"); err != nil {
		if errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("no bpffs at %s, and no right to mount one; run as root: mount -t bpf bpffs %s", path, path)
		}
		return fmt.Errorf("mount a bpffs at %s: %w", path, err)
	}
	return nil
}

// OnBPFFS reports whether a directory, or where it is not there what it would be made in, is on a bpffs. An error is the kernel's (statfs(2)).
func OnBPFFS(dir string) (bool, error) {
	for ; ; dir = filepath.Dir(dir) {
		var fs unix.Statfs_t
		err := unix.Statfs(dir, &fs)
		if !errors.Is(err, unix.ENOENT) || dir == filepath.Dir(dir) {
			return err == nil && fs.Type == unix.BPF_FS_MAGIC, err
		}
	}
}

// remount brings the bpffs of the default directory back that somebody has unmounted, with nothing on it.
func (f *Filter) remount() error {
	if f.dir == DefaultDir {
		return EnsureBPFFS(filepath.Dir(f.dir))
	}
	if on, _ := OnBPFFS(f.dir); !on {
		return fmt.Errorf("%s is not on a bpffs any more: filters are in force, and end with this process; mount one", f.dir)
	}
	return nil
}

// Misplaced reports whether the directory is another one than that which this process has locked: somebody has removed it, or unmounted what it
// is on. Sweep makes it anew, and locks it; until then nobody is told that this process runs.
func (f *Filter) Misplaced() bool {
	has, err := f.lock.Stat()
	if err != nil {
		return false
	}
	is, err := os.Stat(f.dir)
	return err != nil || !os.SameFile(is, has)
}
