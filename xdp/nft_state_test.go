package xdp

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// router is a host that routes between a container behind host0 and peers behind out0.
type router struct {
	ns             netns.NsHandle
	n              *network
	container, far *rawEnd
	// macs are those of host0 and out0, where frames are sent to.
	macs [2]net.HardwareAddr
}

const (
	routedContainer4, routedContainer6 = "192.0.2.2", "2001:db8::2"
	routedPeers4, routedPeers6         = "198.51.100.0/24", "2001:db8:0:1::/64"
	routedMarker                       = "198.51.100.250"
)

var (
	routedParties4 = []string{"198.51.100.7", "198.51.100.70"}
	routedParties6 = []string{"2001:db8:0:1::7"}
	routedPorts    = []uint16{22, 53, 443, 8080}
)

// newRouter leaves the test's thread in the router's namespace.
func newRouter(t *testing.T) *router {
	t.Helper()
	r := &router{n: newNetwork(t)}
	var err error
	r.ns, err = netns.Get()
	must(t, err)
	t.Cleanup(func() { _ = r.ns.Close() })
	r.n.veth("out0", "far0")
	r.n.inContainer(func() {
		silence(t)
		for _, name := range []string{"eth0", "far0"} {
			l, err := netlink.LinkByName(name)
			must(t, err)
			must(t, netlink.LinkSetUp(l))
			addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
			must(t, err)
			for _, a := range addrs { // so that nobody here answers
				must(t, netlink.AddrDel(l, &a))
			}
		}
		r.container, r.far = newRawEnd(t, "eth0"), newRawEnd(t, "far0")
	})
	for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		sysctl(t, name, "1")
	}
	// Tracking begins with the first ruleset that asks for it. What it would not believe: no checksums here.
	nft(t, "table inet first { chain forward { type filter hook forward priority 1; ct state established accept; }; }")
	sysctl(t, "netfilter/nf_conntrack_checksum", "0")
	r.macs[0] = r.neighbours(t, "host0", nil, routedContainer4, routedContainer6)
	r.macs[1] = r.neighbours(t, "out0", []string{routedPeers4, routedPeers6}, append(slices.Clone(routedParties4), append(routedParties6, routedMarker)...)...)
	return r
}

// neighbours adds routes by a device and the neighbours behind it, and returns its own address.
func (r *router) neighbours(t *testing.T, device string, routes []string, addrs ...string) net.HardwareAddr {
	t.Helper()
	l, err := netlink.LinkByName(device)
	must(t, err)
	for _, to := range routes {
		must(t, netlink.RouteAdd(route(t, l, to, "")))
	}
	for _, a := range addrs {
		must(t, netlink.NeighAdd(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(a), HardwareAddr: net.HardwareAddr{0, 0, 0x5e, 0, 0x53, 9},
		}))
	}
	return l.Attrs().HardwareAddr
}

// pass sends a frame and reports whether the packet comes out at the other side, by its tail. One that every policy of
// the test lets pass comes after it.
func (r *router) pass(t *testing.T, dir policy.Direction, frame []byte) bool {
	t.Helper()
	from, to, mac := r.container, r.far, r.macs[0]
	if dir == policy.Ingress {
		from, to, mac = to, from, r.macs[1]
	}
	packet := slices.Clone(frame)
	copy(packet, mac)
	if packet[12] == 0x08 {
		checksum(packet[14:34])
	}
	from.send(packet)
	mark := routedMark(dir)
	copy(mark, mac)
	checksum(mark[14:34])
	from.send(mark)
	arrived := false
	for {
		got := to.receive(soon)
		switch {
		case got == nil:
			t.Fatal("the mark does not arrive")
		case bytes.HasSuffix(got, []byte("mark")):
			return arrived
		case bytes.HasSuffix(got, frame[len(frame)-8:]):
			arrived = true
		}
	}
}

// routedMark is a packet that unmarked lets pass.
func routedMark(dir policy.Direction) []byte {
	src, dst := routedContainer4, routedMarker
	if dir == policy.Ingress {
		src, dst = dst, src
	}
	return policytest.IP(src, dst, 47, []byte("mark"))
}

// unmarked is p with marks exempt from it.
func unmarked(t *testing.T, p policy.Policy) policy.Policy {
	t.Helper()
	match, err := policy.ParseMatch("gre@" + routedMarker)
	must(t, err)
	for _, verb := range []policy.Verb{policy.Except, policy.Allow} {
		for dir := range 2 {
			if verb == policy.Allow && p.PassesByDefault(policy.Direction(dir)) {
				continue
			}
			var in [2]bool
			in[dir] = true
			p.Rules = append(p.Rules, policy.Rule{Verb: verb, In: in, Match: match})
		}
	}
	return p
}

// TestSecondOpinionOnConversations lets hosts talk through our filter and through the same rules in nftables with
// connection tracking, each behind a router, and compares what arrives. A failure prints the seed.
func TestSecondOpinionOnConversations(t *testing.T) {
	needNFT(t)
	r := routers{t: t, ours: newRouter(t), theirs: newRouter(t)}
	must(t, onCPU(0))
	must(t, netns.Set(r.ours.ns))
	r.f = open(t, bpffs(t))
	defer r.f.Close()
	rnd, seed := seeded(t)
	policies := 30
	if os.Getenv("VETHWALL_LONG") != "" {
		policies *= 10
	}
	for i := range policies {
		draw := policytest.Draw{Verbs: []policy.Verb{policy.Drop, policy.Except, policy.Allow, policy.Allow}, MaxRules: 6, OneWay: true}
		p := unmarked(t, draw.Policy(rnd))
		mode := []Mode{Generic, TCX}[2*i/policies]
		r.enforce(p, mode, 2*i == policies)
		if problem := r.talk(rnd, p); problem != "" {
			t.Fatalf("seed %d: %s\n%s, %s", seed, p.Text(), mode, problem)
		}
	}
	t.Logf("%d policies, %d conversations, %d of %d packets passed", policies, r.exchanges, r.passed, r.packets)
	if r.passed < r.packets/10 || r.passed > r.packets*9/10 {
		t.Error("too few of one kind to mean anything")
	}
}

// routers are one with our filter and one with nftables.
type routers struct {
	t                          *testing.T
	ours, theirs               *router
	f                          *Filter
	exchanges, packets, passed int
}

// enforce puts a policy into force in both; anew lets our filter be attached in another mode than before.
func (r *routers) enforce(p policy.Policy, mode Mode, anew bool) {
	r.t.Helper()
	tables, err := Compile(policy.Stack{{Origin: "labels", Policy: p}})
	must(r.t, err)
	must(r.t, netns.Set(r.ours.ns))
	if anew {
		must(r.t, r.f.Detach(r.ours.n.host.Index))
	}
	must(r.t, r.f.Attach(r.ours.n.host.Index, Want{Policy: tables, Mode: mode}))
	must(r.t, netns.Set(r.theirs.ns))
	nft(r.t, "table inet twin\ndelete table inet twin\ntable inet twin {\n"+
		nftChains("sent", p, policy.Egress)+nftChains("received", p, policy.Ingress)+`
chain forward { type filter hook forward priority 0; policy accept; ct state established,related accept; iifname "host0" goto sent; oifname "host0" goto received; }
}
`)
}

// talk has a few conversations at once, and returns what is not the same in both.
func (r *routers) talk(rnd *rand.Rand, p policy.Policy) (problem string) {
	r.t.Helper()
	stack := policy.Stack{{Origin: "labels", Policy: p}}
	var memory policy.Conversations
	var talking []*exchange
	for range 8 {
		r.exchanges++
		talking = append(talking, newExchange(rnd, r.exchanges))
	}
	for range 60 {
		e := talking[rnd.IntN(len(talking))]
		r.packets++
		dir, frame := e.next(tail(r.packets))
		specified := memory.Verdict(stack, dir, frame, 0).Reason == policy.Pass
		ours, theirs := r.ours.pass(r.t, dir, frame), r.theirs.pass(r.t, dir, frame)
		if ours != theirs || ours != specified {
			return fmt.Sprintf("%s, frame %x arrives through our filter: %v, through nftables: %v, by the specification: %v", dir, frame, ours, theirs, specified)
		}
		if ours {
			e.arrived(dir, frame)
			r.passed++
		}
	}
	return ""
}
