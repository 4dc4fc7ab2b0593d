package xdp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/policy/policytest"
)

// TestChecksumToCome sends frames whose checksum the kernel or a network card is to write when they leave the host, by PACKET_VNET_HDR: where it
// belongs, into a payload, and into what the filter has judged by.
func TestChecksumToCome(t *testing.T) {
	const (
		v4, v6   = 34, 54 // where the transport header begins
		from, to = "192.0.2.2", "203.0.113.9"
		from6    = "2001:db8::2"
		to6      = "2001:db8:b::9"
		gre      = 47
	)
	text := func(n int) []byte { return fmt.Appendf(nil, "checksum %02d", n) }
	udp := policytest.UDP(1000, 53, make([]byte, 20)...)
	options := policytest.With(append(policytest.TCP(1000, 443), make([]byte, 4)...), 12, 6<<4)
	rows := []struct {
		what    string
		frame   []byte
		at      int // where the checksum goes
		arrives bool
	}{
		{"UDP", policytest.IP(from, to, protoUDP, udp), v4 + 6, true},
		{"UDP, IPv6", policytest.IP(from6, to6, protoUDP, udp), v6 + 6, true},
		{"UDP, behind options of IP", policytest.Eth(0x0800, policytest.IPv4(from, to, protoUDP, make([]byte, 4), udp)), v4 + 4 + 6, true},
		{"UDP, behind an extension header", policytest.IP(from6, to6, unix.IPPROTO_DSTOPTS, policytest.Extension(protoUDP, 0, udp)), v6 + 8 + 6, true},
		{"what UDP carries", policytest.IP(from, to, protoUDP, udp), v4 + 8 + 4, true},
		{"TCP", policytest.IP(from, to, protoTCP, policytest.TCP(1000, 443)), v4 + 16, true},
		{"TCP, IPv6", policytest.IP(from6, to6, protoTCP, policytest.TCP(1000, 443)), v6 + 16, true},
		{"TCP with options", policytest.IP(from, to, protoTCP, options), v4 + 16, true},
		{"SCTP", policytest.IP(from, to, unix.IPPROTO_SCTP, policytest.SCTP(1000, 443)), v4 + 8, true},
		{"what GRE carries", policytest.IP(from, to, gre, make([]byte, 40)), v4 + 30, true},

		{"port of UDP", policytest.IP(from, to, protoUDP, udp), v4 + 2, false},
		{"port of UDP, by half", policytest.IP(from, to, protoUDP, udp), v4 + 3, false},
		{"length of UDP", policytest.IP(from, to, protoUDP, udp), v4 + 5, false},
		{"port of UDP, IPv6", policytest.IP(from6, to6, protoUDP, udp), v6 + 2, false},
		{"port of UDP, behind an extension header", policytest.IP(from6, to6, unix.IPPROTO_DSTOPTS, policytest.Extension(protoUDP, 0, udp)), v6 + 8 + 2, false},
		{"UDP's place, but behind options of IP", policytest.Eth(0x0800, policytest.IPv4(from, to, protoUDP, make([]byte, 4), udp)), v4 + 6, false},
		{"UDP's place in TCP", policytest.IP(from, to, protoTCP, policytest.TCP(1000, 443)), v4 + 6, false},
		{"TCP's place in a fragment", policytest.With(policytest.IP(from, to, protoTCP, policytest.TCP(1000, 443)), 20, 0x20), v4 + 16, false},
		{"port of TCP", policytest.IP(from, to, protoTCP, policytest.TCP(1000, 443)), v4 + 2, false},
		{"flags of TCP", policytest.IP(from, to, protoTCP, policytest.TCP(1000, 443)), v4 + 12, false},
		{"port of SCTP", policytest.IP(from, to, unix.IPPROTO_SCTP, policytest.SCTP(1000, 443)), v4 + 2, false},
		{"type of ICMP", policytest.IP(from, to, unix.IPPROTO_ICMP, policytest.ICMP(8, 0, make([]byte, 20)...)), v4, false},
		{"destination", policytest.IP(from, to, protoUDP, udp), v4 - 2, false},
		{"source, IPv6", policytest.IP(from6, to6, protoUDP, udp), v6 - 18, false},
		{"destination, IPv6", policytest.IP(from6, to6, protoUDP, udp), v6 - 2, false},
		{"next header, IPv6", policytest.IP(from6, to6, protoUDP, udp), 20, false},
		{"destination, IPv6, with GRE", policytest.IP(from6, to6, gre, make([]byte, 40)), v6 - 2, false},
	}
	n := newNetwork(t)
	sink := n.uplink(to, to6)
	f := open(t, bpffs(t))
	defer f.Close()
	host, err := netlink.LinkByIndex(n.host.Index)
	must(t, err)
	var fd, eth0 int
	var mac net.HardwareAddr
	n.inContainer(func() {
		l, err := netlink.LinkByName("eth0")
		must(t, err)
		fd, eth0, mac = newPacketSocket(t, 0), l.Attrs().Index, l.Attrs().HardwareAddr
		const vnetHeader = 15 // PACKET_VNET_HDR
		must(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, vnetHeader, 1))
	})
	for _, w := range []Want{
		{Raw: true}, {Raw: true, Mode: Generic}, {Raw: true, Mode: Native}, {Mode: TCX}, {BothHooks: true},
		{Policy: labelled(t, "xdp.egress.limit=all=1000000pps"), Raw: true}, {Policy: labelled(t, "xdp.log=all"), Raw: true},
	} {
		must(t, f.Detach(n.host.Index))
		if w.Policy == nil {
			w.Policy = labelled(t, "xdp.enable=true")
		}
		must(t, f.Attach(n.host.Index, w))
		for i, r := range rows {
			frame := append(bytes.Clone(r.frame), text(i)...)
			frame = policytest.With(frame, 0, host.Attrs().HardwareAddr...)
			frame = policytest.With(frame, 6, mac...)
			if frame[12] == 8 {
				binary.BigEndian.PutUint16(frame[16:], uint16(len(frame)-14))
				checksum(frame[14:34]) // options of zeros add nothing
			} else {
				binary.BigEndian.PutUint16(frame[18:], uint16(len(frame)-54))
			}
			start := r.at
			header := []byte{1, 0, 0, 0, 0, 0} // VIRTIO_NET_HDR_F_NEEDS_CSUM
			header = binary.NativeEndian.AppendUint16(header, uint16(start))
			header = binary.NativeEndian.AppendUint16(header, uint16(r.at-start))
			if err := unix.Sendto(fd, append(header, frame...), 0, &unix.SockaddrLinklayer{
				Protocol: binary.NativeEndian.Uint16(frame[12:]), Ifindex: eth0, Halen: 6, Addr: [8]byte(append(bytes.Clone(host.Attrs().HardwareAddr), 0, 0)),
			}); err != nil {
				t.Fatalf("%v: %s: %v", w, r.what, err)
			}
		}
		arrived := map[string]bool{}
		buf := make([]byte, 2000)
		for {
			_ = unix.SetsockoptTimeval(sink, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: int64(long / time.Microsecond)})
			size, err := unix.Read(sink, buf)
			if err != nil {
				break
			}
			arrived[string(buf[max(0, size-len(text(0))):size])] = true
		}
		for i, r := range rows {
			if got := arrived[string(text(i))]; got != r.arrives {
				t.Errorf("%+v: %s: arrived %t", w.Mode, r.what, got)
			}
		}
	}
}

// uplink has the host route to the addresses by a device, and returns a socket that sees what leaves by it.
func (n *network) uplink(addrs ...string) int {
	n.t.Helper()
	sysctl(n.t, "ipv4/ip_forward", "1")
	sysctl(n.t, "ipv6/conf/all/forwarding", "1")
	n.veth("up0", "down0")
	n.inContainer(func() {
		down, err := netlink.LinkByName("down0")
		must(n.t, err)
		must(n.t, netlink.LinkSetUp(down)) // for the carrier
	})
	up, err := netlink.LinkByName("up0")
	must(n.t, err)
	for _, a := range addrs {
		ip := net.ParseIP(a)
		must(n.t, netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Dst: netlink.NewIPNet(ip), Scope: netlink.SCOPE_LINK}))
		must(n.t, netlink.NeighAdd(&netlink.Neigh{LinkIndex: up.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}}))
	}
	fd := socketOn(n.t, up.Attrs().Index)
	n.t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}
