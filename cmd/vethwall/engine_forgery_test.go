package main

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vethwall/vethwall/internal/enginetest"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// identity is who a container is in a network.
type identity struct {
	mac    net.HardwareAddr
	v4, v6 netip.Addr
}

func identityOf(t *testing.T, v *enginetest.Vethwall, c *enginetest.Container, network string) identity {
	t.Helper()
	mac, err := net.ParseMAC(v.With(t).Run("inspect", "--format", `{{(index .NetworkSettings.Networks "`+network+`").MacAddress}}`, c.ID))
	if err != nil {
		t.Fatal(err)
	}
	c = c.With(v.Docker.With(t))
	return identity{mac, c.Addr(network, 4), c.Addr(network, 6)}
}

// linkLocal is the address that IPv6 makes of a MAC.
func (id identity) linkLocal() netip.Addr { return policy.LinkLocal([6]byte(id.mac)) }

// forgery is a container that sends frames in other names on one of its devices. me is who it is there, other a neighbour
// without a filter, and to the sink.
type forgery struct {
	t             *testing.T
	tr            *traffic
	from          *enginetest.Container
	device, sink  string
	me, other, to identity
}

// datagram is one to the sink's port 53.
func (f *forgery) datagram(mac net.HardwareAddr, src netip.Addr, text string) []byte {
	dst := f.to.v4
	if src.Is6() {
		dst = f.to.v6
	}
	return f.frame(mac, policytest.IP(src.String(), dst.String(), 17, policytest.UDP(1000, 53, []byte(text)...)), 6)
}

// frame puts MACs and checksums into an IP packet; at is where that of an IPv6 packet stands in its transport header.
func (f *forgery) frame(from net.HardwareAddr, frame []byte, at int) []byte {
	copy(frame, f.to.mac)
	copy(frame[6:], from)
	if frame[12] == 0x08 { // the checksum of UDP may be 0 in IPv4
		binary.BigEndian.PutUint16(frame[14+10:], ^onesSum(0, frame[14:34]))
		return frame
	}
	pseudo := onesSum(uint32(len(frame)-54)+uint32(frame[14+6]), frame[14+8:54])
	binary.BigEndian.PutUint16(frame[54+at:], ^onesSum(uint32(pseudo), frame[54:]))
	return frame
}

// onesSum adds b to n as RFC 1071 does.
func onesSum(n uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		n += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) > 0 {
		n += uint32(b[0]) << 8
	}
	for n > 0xffff {
		n = n&0xffff + n>>16
	}
	return uint16(n)
}

// poison is an ARP reply and a neighbour advertisement to the sink: that the other's addresses are at my MAC.
func (f *forgery) poison() [][]byte {
	arp := policytest.With(policytest.ARP(), 21, 2)
	copy(arp, f.to.mac)
	copy(arp[6:], f.me.mac)
	copy(arp[22:], f.me.mac)
	copy(arp[28:], f.other.v4.AsSlice())
	copy(arp[32:], f.to.mac)
	copy(arp[38:], f.to.v4.AsSlice())
	advert := policytest.ICMP(136, 0, append(append(f.other.v6.AsSlice(), 2, 1), f.me.mac...)...)
	advert[4] = 0x60 // solicited, override
	advertised := policytest.With(policytest.IP(f.me.v6.String(), f.to.v6.String(), 58, advert), 14+7, 255)
	return [][]byte{arp, f.frame(f.me.mac, advertised, 2)}
}

// inSink runs a command in the sink's network.
func (f *forgery) inSink(command ...string) []byte {
	f.t.Helper()
	return inNetworkOf(f.t, f.tr.v, f.tr.sinks[f.sink].Container, command...)
}

// inNetworkOf runs a command of the host in the network of a container.
func inNetworkOf(t *testing.T, v *enginetest.Vethwall, c *enginetest.Container, command ...string) []byte {
	t.Helper()
	pid := v.With(t).Run("inspect", "--format", "{{.State.Pid}}", c.ID)
	out, err := v.Command("nsenter", append([]string{"--target", pid, "--net"}, command...)...).Output()
	if err != nil {
		t.Fatalf("%v: %v", command, err)
	}
	return out
}

// poisoned are the other's addresses that the sink has at my MAC.
func (f *forgery) poisoned() (out []netip.Addr) {
	f.t.Helper()
	var entries []struct {
		Dst    netip.Addr
		Lladdr string
	}
	text := f.inSink("ip", "-j", "neigh")
	if err := json.Unmarshal(text, &entries); err != nil {
		f.t.Fatalf("%v: %s", err, text)
	}
	for _, e := range entries {
		if (e.Dst == f.other.v4 || e.Dst == f.other.v6) && e.Lladdr == f.me.mac.String() {
			out = append(out, e.Dst)
		}
	}
	return out
}

// send sends frames as they are, one after the other.
func (f *forgery) send(frames ...[]byte) {
	f.t.Helper()
	command := []string{"raw", f.device}
	for _, frame := range frames {
		command = append(command, hex.EncodeToString(frame))
	}
	f.from.With(f.tr.v.Docker.With(f.t)).MustDo(command...)
}

// arrived is how many datagrams of a text the sink has received.
func (f *forgery) arrived(text string) int {
	f.t.Helper()
	return f.tr.sinks[f.sink].With(f.tr.v.Docker.With(f.t)).Count(text)
}

// await returns when datagrams of all texts have arrived.
func (f *forgery) await(texts ...string) {
	f.t.Helper()
	f.tr.v.With(f.t).Wait(fmt.Sprintf("%q at the sink", texts), func() error {
		for _, text := range texts {
			if f.arrived(text) == 0 {
				return fmt.Errorf("%q has not arrived", text)
			}
		}
		return nil
	})
}

// shows that datagrams from the container's own addresses arrive, and that what is forged does not, or does where it passes.
// What is forged is sent first.
func (f *forgery) shows(passes bool, own ...netip.Addr) {
	f.t.Helper()
	f.tr.n++
	text := func(name any) string {
		return fmt.Sprintf("%s %s %d %s %s", f.t.Name(), f.from.Name, f.tr.n, f.device, name)
	}
	// So that the sink knows where the other is.
	f.tr.shows(f.t, f.tr.marker, nil, []string{"443/tcp@" + f.sink, "443/tcp@" + f.sink + "6"})
	forged := []string{text("another's IPv4 address"), text("another's IPv6 address"), text("another's MAC"), text("as a DHCP server")}
	frames := append(f.poison(), f.datagram(f.me.mac, f.other.v4, forged[0]), f.datagram(f.me.mac, f.other.v6, forged[1]), f.datagram(f.other.mac, f.me.v4, forged[2]),
		f.frame(f.me.mac, policytest.IP(f.me.v4.String(), f.to.v4.String(), 17, policytest.UDP(67, 68, []byte(forged[3])...)), 6))
	var texts []string
	for _, a := range own {
		texts = append(texts, text(a))
		frames = append(frames, f.datagram(f.me.mac, a, text(a)))
	}
	f.send(frames...)
	f.await(texts...)
	if passes {
		f.await(forged...)
		f.succeeds()
		return
	}
	for _, text := range forged {
		if n := f.arrived(text); n > 0 {
			f.t.Errorf("%q arrived %d times", text, n)
		}
	}
	if got := f.poisoned(); len(got) > 0 {
		f.t.Errorf("%s: the sink believes that it is %v", f.from.Name, got)
	}
}

// succeeds shows that the sink is poisoned, and cleans it.
func (f *forgery) succeeds() {
	f.t.Helper()
	f.tr.v.With(f.t).Wait("the sink believes what is forged", func() error {
		if len(f.poisoned()) < 2 {
			f.send(f.poison()...) // a kernel believes no second ARP reply within a second
			return errors.New("it does not")
		}
		return nil
	})
	f.inSink("ip", "neigh", "flush", "dev", "eth0")
}
