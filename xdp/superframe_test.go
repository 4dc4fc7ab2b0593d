package xdp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/policy/policytest"
)

// newSuperFrame opens an AF_PACKET socket towards a neighbour that is known, and returns what sends one raw frame, of
// which the kernel is to make l.parts datagrams (packet(7), PACKET_VNET_HDR; the header is that of virtio-net).
func newSuperFrame(t *testing.T, to netip.Addr, port uint16, l limited) func() error {
	t.Helper()
	device, peer, own := neighbour(t, to)
	frame := policytest.IP(own.String(), to.String(), protoUDP, policytest.UDP(40000, port, make([]byte, l.size*l.parts)...))
	copy(frame, peer)
	copy(frame[6:], device.HardwareAddr)
	checksum(frame[14:34])
	const (
		needsChecksum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
		cutUDP        = 5 // VIRTIO_NET_HDR_GSO_UDP_L4
		udpAt         = 14 + 20
	)
	header := []byte{needsChecksum, cutUDP}
	for _, n := range []uint16{udpHeaders4, uint16(l.size), udpAt, 6} {
		header = binary.LittleEndian.AppendUint16(header, n)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	const vnetHeader = 15 // PACKET_VNET_HDR
	must(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, vnetHeader, 1))
	addr := &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: device.Index, Halen: 6}
	copy(addr.Addr[:], peer)
	return func() error { return unix.Sendto(fd, append(header[:len(header):len(header)], frame...), 0, addr) }
}

// neighbour is the device of this namespace by which a neighbour was reached, his MAC, and an address of ours there.
func neighbour(t *testing.T, to netip.Addr) (device *netlink.LinkAttrs, peer net.HardwareAddr, own net.IP) {
	t.Helper()
	all, err := netlink.NeighList(0, netlink.FAMILY_V4)
	must(t, err)
	for _, e := range all {
		if !e.IP.Equal(to.AsSlice()) || len(e.HardwareAddr) != 6 {
			continue
		}
		l, err := netlink.LinkByIndex(e.LinkIndex)
		must(t, err)
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		must(t, err)
		return l.Attrs(), e.HardwareAddr, addrs[0].IP
	}
	t.Fatalf("%s is not known", to)
	return nil, nil, nil
}
