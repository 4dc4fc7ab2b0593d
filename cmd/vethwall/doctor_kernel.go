package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/xdp"
)

const needsPrivileges = "cannot be tried without the privileges"

func checkPrivileges(context.Context, *env) finding {
	missing, err := missingCapabilities(capBPF, capNetAdmin, capSysAdmin)
	if err != nil {
		return finding{fail, err.Error(), "run as root"}
	}
	if len(missing) > 0 {
		return finding{fail, "no " + strings.Join(missing, ", "), "run as root (sudo vethwall doctor), in a container with --cap-add"}
	}
	return finding{good, "CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN", ""}
}

type capability struct {
	number uint
	name   string
}

var (
	capBPF      = capability{unix.CAP_BPF, "CAP_BPF"}
	capNetAdmin = capability{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}
	capSysAdmin = capability{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"} // to mount, and to look things up by their numbers
)

// missingCapabilities names those of wanted that this process has not.
func missingCapabilities(wanted ...capability) (missing []string, err error) {
	for _, c := range wanted {
		has, err := haveCapability(c.number)
		if err != nil {
			return nil, err
		}
		if !has {
			missing = append(missing, c.name)
		}
	}
	return missing, nil
}

// haveCapability says whether this process may use a capability now.
func haveCapability(number uint) (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return false, fmt.Errorf("read capabilities: %w", err)
	}
	return sets[number/32].Effective&(1<<(number%32)) != 0, nil
}

// checkKernel asks for each feature that the programs use, not for a version: distributions carry features back.
func checkKernel(context.Context, *env) finding {
	release := "unknown release"
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		release = "Linux " + unix.ByteSliceToString(uts.Release[:])
	}
	var lacks []string
	for _, need := range []struct {
		name string
		err  error
	}{
		{"XDP programs", features.HaveProgramType(ebpf.XDP)},
		{"tc programs", features.HaveProgramType(ebpf.SchedCLS)},
		{"LPM tries", features.HaveMapType(ebpf.LPMTrie)},
		{"LRU hashes", features.HaveMapType(ebpf.LRUHash)},
		{"per-CPU arrays", features.HaveMapType(ebpf.PerCPUArray)},
		{"ring buffers", features.HaveMapType(ebpf.RingBuf)},
		{"bounded loops", features.HaveBoundedLoops()},
		{"the coarse clock", features.HaveProgramHelper(ebpf.XDP, asm.FnKtimeGetCoarseNs)},
	} {
		switch {
		case errors.Is(need.err, unix.EPERM):
			return finding{warn, release, needsPrivileges}
		case need.err != nil:
			lacks = append(lacks, need.name)
		}
	}
	if len(lacks) > 0 {
		return finding{fail, release + " lacks " + strings.Join(lacks, ", "), "Linux 5.15 or newer with CONFIG_BPF_SYSCALL"}
	}
	return finding{good, release, ""}
}

// checkXDP needs a kernel with XDP links (5.9): a filter that is attached otherwise goes when somebody types
// `ip link set ... xdp off`.
func checkXDP(context.Context, *env) finding {
	err := tryAttach(ebpf.XDP, func(prog *ebpf.Program) (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Program: prog, Interface: loopback, Flags: link.XDPGenericMode})
	})
	switch {
	case errors.Is(err, unix.EPERM):
		return finding{warn, "not tried", needsPrivileges}
	case err != nil:
		return finding{fail, err.Error(), "Linux 5.15 or newer with CONFIG_NET and CONFIG_BPF_SYSCALL"}
	}
	return finding{good, "a filter attaches, and goes only with its link", ""}
}

// checkTCX needs tcx (6.6).
func checkTCX(context.Context, *env) finding {
	err := tryAttach(ebpf.SchedCLS, func(prog *ebpf.Program) (link.Link, error) {
		return link.AttachTCX(link.TCXOptions{Program: prog, Interface: loopback, Attach: ebpf.AttachTCXIngress})
	})
	switch {
	case errors.Is(err, unix.EPERM):
		return finding{warn, "not tried", needsPrivileges}
	case errors.Is(err, ebpf.ErrNotSupported):
		return finding{warn, "not in this kernel", "hooks other than XDP want Linux 6.6 or newer"}
	case err != nil:
		return finding{warn, err.Error(), "hooks other than XDP will not attach"}
	}
	return finding{good, "a filter attaches", ""}
}

// checkHold looks how a new container can be kept from sending until its filter is there.
func checkHold(context.Context, *env) finding {
	const slower = "an XDP program holds new ports once the agent has seen them, so that a first packet may be faster and the container late: "
	if way, _ := xdp.HoldInForce(xdp.DefaultDir); way == xdp.HeldNFT {
		return finding{good, "held by nftables, the rules are in force", ""}
	}
	err := xdp.TryHold()
	switch {
	case errors.Is(err, unix.EPERM):
		return finding{warn, "not tried", needsPrivileges}
	case err != nil:
		return finding{warn, "nftables cannot hold ports of bridges: " + strings.ReplaceAll(err.Error(), "\n", "; "), slower + "a kernel with CONFIG_NF_TABLES_BRIDGE has no such gap"}
	}
	return finding{good, "nftables can hold ports of bridges", ""}
}

// checkAskers looks whether what a container asks Docker's resolver can be told by its cgroup, before its network namespace is known.
func checkAskers(context.Context, *env) finding {
	if err := xdp.TryCloseResolverTo(); err != nil {
		return finding{warn, err.Error(), "needed only where the engine asks the host's resolvers from the host (from 28 on, or one on its loopback): a first query may be faster there; cgroups v2 and a kernel with CONFIG_DEBUG_INFO_BTF have no such gap"}
	}
	return finding{good, "containers are told apart by their cgroups", ""}
}

// checkChecksums looks whether the filter can see where a sender of raw frames has his checksums written.
func checkChecksums(context.Context, *env) finding {
	if err := xdp.HasLayouts(); err != nil {
		return finding{warn, err.Error(), "containers with CAP_NET_RAW, which is Docker's default, are partial: start them with --cap-drop NET_RAW, or take a kernel with CONFIG_DEBUG_INFO_BTF"}
	}
	return finding{good, "the filter sees where they are written", ""}
}

// loopback is the index of lo in every network namespace.
const loopback = 1

// tryAttach attaches a program that lets everything pass to the loopback of a network namespace made for it, and takes it
// away. The host's own interfaces are out of reach for attach: it runs on a thread that is in the new namespace,
// and never where making that failed.
func tryAttach(kind ebpf.ProgramType, attach func(*ebpf.Program) (link.Link, error)) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with this goroutine, and the namespace with the thread.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make a network namespace: %w", err)
			}
			pass := int32(2) // XDP_PASS
			if kind == ebpf.SchedCLS {
				pass = -1 // TCX_NEXT
			}
			prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
				Type:         kind,
				Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, pass), asm.Return()},
				License:      "MIT",
			})
			if err != nil {
				return fmt.Errorf("load a program: %w", err)
			}
			defer prog.Close()
			l, err := attach(prog)
			if err != nil {
				return fmt.Errorf("attach a program: %w", err)
			}
			return l.Close()
		}()
	}()
	return <-done
}

func checkJIT(context.Context, *env) finding {
	const file = "/proc/sys/net/core/bpf_jit_enable"
	text, err := os.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrPermission):
		return finding{good, "readable by root only", ""}
	case errors.Is(err, os.ErrNotExist):
		// The file belongs to the host's network namespace and kernels that always compile may hide it.
		return finding{good, "not switchable here", ""}
	case err != nil:
		return finding{warn, err.Error(), "see whether programs are compiled"}
	case strings.TrimSpace(string(text)) == "0":
		return finding{warn, "off", "programs are interpreted and slow: sysctl net.core.bpf_jit_enable=1"}
	}
	return finding{good, "on", ""}
}

// checkBPFFS looks for the file system that the filters are pinned in. The agent mounts it where it can; what it would mount
// in a container would go with the container, and the filters with it.
func checkBPFFS(_ context.Context, e *env) finding {
	const dir = "/sys/fs/bpf"
	inside := withEngine(e, "mnt") == no
	var fs unix.Statfs_t
	switch err := unix.Statfs(dir, &fs); {
	case err == nil && fs.Type == unix.BPF_FS_MAGIC:
		return finding{good, "mounted on " + dir, ""}
	case inside:
		return finding{fail, "not mounted on " + dir, "mount it on the host and run the container with -v " + dir + ":" + dir}
	case err != nil:
		return finding{fail, fmt.Sprintf("%s: %v", dir, err), "mount sysfs on /sys"}
	}
	return finding{warn, "not mounted on " + dir, "the agent will; or mount -t bpf bpf " + dir}
}
