package xdp

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/policy/policytest"
)

// TestShapes sends the same datagram in the shapes that senders can give it: an ordinary one, one large datagram that the
// kernel is to cut (UDP_SEGMENT), a raw frame, one through an AF_PACKET ring, of which nothing but the Ethernet header is in the
// linear part of the packet, both of them past the qdisc, and one by AF_XDP.
func TestShapes(t *testing.T) {
	n := newNetwork(t)
	f := open(t, bpffs(t))
	defer f.Close()
	sink, err := net.ListenPacket("udp4", "192.0.2.1:0")
	must(t, err)
	defer sink.Close()
	to := netip.MustParseAddrPort(sink.LocalAddr().String())
	var shapes map[string]func([]byte)
	n.inContainer(func() { shapes = senders(t, n, to, "eth0", 0) })

	for _, mode := range []Mode{Generic, Native, TCX} {
		must(t, f.Detach(n.host.Index))
		for _, c := range []struct {
			labels  string
			arrives bool
		}{
			{"xdp.drop=udp", false},
			{"xdp.drop=tcp", true},
			{"xdp.egress.allow=" + portMatch(to.Port()), true},
			{"xdp.egress.allow=" + portMatch(to.Port()+1), false},
			{"xdp.egress.drop=" + portMatch(to.Port()), false},
		} {
			must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, c.labels), Mode: mode}))
			for name, send := range shapes {
				text := make([]byte, 1200)
				copy(text, name)
				send(text)
				if c.arrives {
					must(t, sink.SetReadDeadline(time.Now().Add(soon)))
					if _, _, err := sink.ReadFrom(make([]byte, 2000)); err != nil {
						t.Errorf("%s, %s: %s does not arrive: %v", mode, c.labels, name, err)
					}
					drain(sink)
				}
			}
			if c.arrives {
				continue
			}
			got := make([]byte, 2000)
			must(t, sink.SetReadDeadline(time.Now().Add(long)))
			if _, _, err := sink.ReadFrom(got); err == nil {
				t.Errorf("%s, %s: %s arrives", mode, c.labels, bytes.TrimRight(got, "\x00"))
			}
			drain(sink)
		}
	}
}

func portMatch(port uint16) string { return itoa(int(port)) + "/udp" }

// drain reads what else there is: the other parts of a large datagram.
func drain(sink net.PacketConn) {
	for {
		_ = sink.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, _, err := sink.ReadFrom(make([]byte, 2000)); err != nil {
			return
		}
	}
}

// senders opens a socket for each shape in this namespace; raw frames leave through a device, by AF_XDP through one of its queues.
func senders(t *testing.T, n *network, to netip.AddrPort, device string, queue uint32) map[string]func([]byte) {
	t.Helper()
	eth0, err := netlink.LinkByName("eth0")
	must(t, err)
	through, err := netlink.LinkByName(device)
	must(t, err)
	host := mac(t, n)
	frame := func(text []byte) []byte {
		udp := policytest.UDP(40000, to.Port(), text...)
		f := policytest.IP("192.0.2.2", to.Addr().String(), protoUDP, udp)
		copy(f, host)
		copy(f[6:], eth0.Attrs().HardwareAddr)
		checksum(f[14:34])
		return f
	}
	addr := &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: through.Attrs().Index, Halen: 6}
	copy(addr.Addr[:], host)
	raw := func(bypass int) func([]byte) {
		fd := newPacketSocket(t, bypass)
		return func(text []byte) { must(t, unix.Sendto(fd, frame(text), 0, addr)) }
	}
	ring := func(bypass int) func([]byte) {
		send := newRing(t, addr, bypass)
		return func(text []byte) { send(frame(text)) }
	}
	fast := newXSK(t, through.Attrs().Index, queue)
	udp := func(segment int) func([]byte) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		must(t, err)
		t.Cleanup(func() { _ = unix.Close(fd) })
		if segment > 0 {
			const udpSegment = 103
			must(t, unix.SetsockoptInt(fd, unix.IPPROTO_UDP, udpSegment, segment))
		}
		return func(text []byte) {
			must(t, unix.Sendto(fd, text, 0, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}))
		}
	}
	return map[string]func([]byte){
		"datagram":    udp(0),
		"UDP_SEGMENT": udp(100),
		"raw frame":   raw(0), "raw frame past the qdisc": raw(1),
		"ring": ring(0), "ring past the qdisc": ring(1),
		"AF_XDP": func(text []byte) {
			if !fast.send(frame(text)) {
				t.Error("AF_XDP sends nothing")
			}
		},
	}
}

// mac is the address of the host's end.
func mac(t *testing.T, n *network) net.HardwareAddr {
	t.Helper()
	neighbours, err := netlink.NeighList(0, netlink.FAMILY_V4)
	must(t, err)
	for _, e := range neighbours {
		if e.IP.Equal(net.IPv4(192, 0, 2, 1)) && len(e.HardwareAddr) == 6 {
			return e.HardwareAddr
		}
	}
	c, err := net.Dial("udp4", "192.0.2.1:9")
	must(t, err)
	_, err = c.Write([]byte("who are you"))
	must(t, err)
	must(t, c.Close())
	time.Sleep(20 * time.Millisecond)
	return mac(t, n)
}

// newPacketSocket is one of AF_PACKET, which with bypass calls the driver itself (packet(7), PACKET_QDISC_BYPASS).
func newPacketSocket(t *testing.T, bypass int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	must(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, bypass))
	return fd
}

// newRing is a packet socket that sends frames out of memory that it shares with the kernel (packet(7), PACKET_TX_RING).
func newRing(t *testing.T, to *unix.SockaddrLinklayer, bypass int) func([]byte) {
	t.Helper()
	fd := newPacketSocket(t, bypass)
	const size = 4096
	must(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2))
	must(t, unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_TX_RING, &unix.TpacketReq{
		Block_size: size, Block_nr: 1, Frame_size: size, Frame_nr: 1,
	}))
	memory, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	t.Cleanup(func() { _ = unix.Munmap(memory) })
	const header = 32 // struct tpacket2_hdr: status, length, ...
	return func(frame []byte) {
		copy(memory[header:], frame)
		binary.NativeEndian.PutUint32(memory[4:], uint32(len(frame)))
		binary.NativeEndian.PutUint32(memory, unix.TP_STATUS_SEND_REQUEST)
		must(t, unix.Sendto(fd, nil, 0, to))
	}
}

// checksum fills in that of an IPv4 header without options.
func checksum(ip []byte) {
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		if i != 10 {
			sum += uint32(binary.BigEndian.Uint16(ip[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
}
