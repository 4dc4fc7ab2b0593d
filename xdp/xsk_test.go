package xdp

import (
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// xsk is an AF_XDP socket that sends (Documentation/networking/af_xdp.rst), which takes CAP_NET_RAW. No qdisc and no tc egress sees
// what it sends, and it says by which queue.
type xsk struct {
	t            *testing.T
	fd           int
	memory       []byte // for one frame
	tx, done     []byte // rings
	txAt, doneAt unix.XDPRingOffset
	produced     uint32
	patience     time.Duration
}

const (
	xskEntries = 64
	xskFrame   = 4096
)

// newXSK opens one on a queue of a device of the thread's namespace.
func newXSK(t *testing.T, ifindex int, queue uint32) *xsk {
	t.Helper()
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW, 0)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	x := &xsk{t: t, fd: fd, patience: soon}
	x.memory = x.mmap(-1, 0, 2*xskFrame, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	reg := unix.XDPUmemReg{Addr: uint64(uintptr(unsafe.Pointer(&x.memory[0]))), Len: 2 * xskFrame, Size: xskFrame}
	x.option(unix.SYS_SETSOCKOPT, unix.XDP_UMEM_REG, unsafe.Pointer(&reg), unsafe.Sizeof(reg))
	for _, ring := range []int{unix.XDP_UMEM_FILL_RING, unix.XDP_UMEM_COMPLETION_RING, unix.XDP_TX_RING} {
		must(t, unix.SetsockoptInt(fd, unix.SOL_XDP, ring, xskEntries))
	}
	var at unix.XDPMmapOffsets
	size := unsafe.Sizeof(at)
	x.option(unix.SYS_GETSOCKOPT, unix.XDP_MMAP_OFFSETS, unsafe.Pointer(&at), uintptr(unsafe.Pointer(&size)))
	x.txAt, x.doneAt = at.Tx, at.Cr
	x.tx = x.mmap(fd, unix.XDP_PGOFF_TX_RING, int(at.Tx.Desc)+xskEntries*int(unsafe.Sizeof(unix.XDPDesc{})), unix.MAP_SHARED|unix.MAP_POPULATE)
	x.done = x.mmap(fd, unix.XDP_UMEM_PGOFF_COMPLETION_RING, int(at.Cr.Desc)+xskEntries*8, unix.MAP_SHARED|unix.MAP_POPULATE)
	must(t, unix.Bind(fd, &unix.SockaddrXDP{Flags: unix.XDP_COPY, Ifindex: uint32(ifindex), QueueID: queue}))
	return x
}

func (x *xsk) mmap(fd int, offset int64, size, flags int) []byte {
	x.t.Helper()
	memory, err := unix.Mmap(fd, offset, size, unix.PROT_READ|unix.PROT_WRITE, flags)
	must(x.t, err)
	x.t.Cleanup(func() { _ = unix.Munmap(memory) })
	return memory
}

// option calls setsockopt with a size, or getsockopt with the address of one.
func (x *xsk) option(call uintptr, name int, value unsafe.Pointer, size uintptr) {
	x.t.Helper()
	_, _, errno := unix.Syscall6(call, uintptr(x.fd), unix.SOL_XDP, uintptr(name), uintptr(value), size, 0)
	if errno != 0 {
		x.t.Fatalf("AF_XDP, option %d: %v", name, errno)
	}
}

func ringNumber(ring []byte, at uint64) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&ring[at]))
}

// send sends a frame, which the kernel has copied when it returns; false where it sends none by this queue.
func (x *xsk) send(frame []byte) bool {
	x.t.Helper()
	copy(x.memory, frame)
	desc := x.tx[int(x.txAt.Desc)+16*int(x.produced%xskEntries):]
	binary.NativeEndian.PutUint64(desc, 0)
	binary.NativeEndian.PutUint32(desc[8:], uint32(len(frame)))
	binary.NativeEndian.PutUint32(desc[12:], 0)
	x.produced++
	ringNumber(x.tx, x.txAt.Producer).Store(x.produced)
	for deadline := time.Now().Add(x.patience); ringNumber(x.tx, x.txAt.Consumer).Load() != x.produced; {
		// What has been sent gives its place back.
		ringNumber(x.done, x.doneAt.Consumer).Store(ringNumber(x.done, x.doneAt.Producer).Load())
		if err := unix.Sendto(x.fd, nil, unix.MSG_DONTWAIT, nil); time.Now().After(deadline) {
			x.t.Logf("AF_XDP sends nothing: %v", err)
			return false
		}
	}
	return true
}

// channels sets how many queues a device of the thread's namespace has: ethtool --set-channels DEVICE rx RX tx TX.
func channels(name string, rx, tx uint32) error {
	const setChannels = 0x3d // ETHTOOL_SCHANNELS
	// struct ethtool_channels: four maxima, then rx, tx, other and combined.
	request := [9]uint32{setChannels, 0, 0, 0, 0, rx, tx, 0, 0}
	ask := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&request)}
	copy(ask.name[:], name)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ask)))
	if errno != 0 {
		return errno
	}
	return nil
}
