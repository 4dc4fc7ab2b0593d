package xdp

import (
	"errors"
	"fmt"
	"os"

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
