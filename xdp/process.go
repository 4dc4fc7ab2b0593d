package xdp

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Processes returns the processes of each of the network namespaces that nsids name, by their numbers in proc: /proc, in a
// container with the host's pid namespace. A namespace whose processes are not seen from here is missing.
func Processes(proc string, nsids []int) (map[int][]int, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	out := map[int][]int{}
	known := map[uint64]int{} // the nsid of each namespace, by inode
	var own unix.Stat_t
	if unix.Stat("/proc/thread-self/ns/net", &own) == nil {
		known[own.Ino] = -1
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		var ns unix.Stat_t
		if unix.Stat(filepath.Join(proc, e.Name(), "ns/net"), &ns) != nil {
			continue // it has ended
		}
		nsid, seen := known[ns.Ino]
		if !seen {
			if nsid, err = h.GetNetNsIdByPid(pid); err != nil {
				continue
			}
			known[ns.Ino] = nsid
		}
		if slices.Contains(nsids, nsid) {
			out[nsid] = append(out[nsid], pid)
		}
	}
	return out, nil
}
