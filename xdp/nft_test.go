package xdp

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

// twins are two containers behind a bridge each. What the first sends and receives is judged by our filter on host0, the
// second's by nftables on host1.
type twins struct {
	t          *testing.T
	n          *network
	f          *Filter
	containers [2]*rawEnd
	far        [2]*rawEnd
	marks      uint32
}

func newTwins(t *testing.T) *twins {
	t.Helper()
	needNFT(t)
	tw := &twins{t: t, n: newNetwork(t)}
	must(t, onCPU(0))
	silence(t)
	// Docker's bridges show packets to the IP stack's netfilter, which drops what has odd options.
	sysctl(t, "bridge/bridge-nf-call-iptables", "0")
	sysctl(t, "bridge/bridge-nf-call-ip6tables", "0")
	tw.n.veth("host1", "eth1")
	for i := range 2 {
		number := itoa(i)
		tw.n.veth("out"+number, "far"+number)
		br := setUp(t, &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br" + number}, MulticastSnooping: new(bool)})
		for _, name := range []string{"host" + number, "out" + number} {
			port, err := netlink.LinkByName(name)
			must(t, err)
			must(t, netlink.LinkSetMaster(port, br))
		}
	}
	tw.n.inContainer(func() {
		silence(t)
		for i, name := range []string{"eth0", "eth1", "far0", "far1"} {
			l, err := netlink.LinkByName(name)
			must(t, err)
			must(t, netlink.LinkSetUp(l))
			[]*[2]*rawEnd{&tw.containers, &tw.far}[i/2][i%2] = newRawEnd(t, name)
		}
	})
	tw.f = open(t, bpffs(t))
	t.Cleanup(tw.f.Close)
	return tw
}

func needNFT(t *testing.T) {
	t.Helper()
	needPrivileges(t)
	if _, err := exec.LookPath("nft"); err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs nft: apt-get install nftables")
	}
	t.Skip("needs nft: apt-get install nftables")
}

// nft loads a ruleset in the thread's namespace, in one step.
func nft(t *testing.T, ruleset string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(ruleset)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s\n%s", err, out, ruleset)
	}
}

// enforce puts a policy into force for both, each packet alone.
func (tw *twins) enforce(p policy.Policy, mode Mode) {
	tw.t.Helper()
	tables, err := Compile(policy.Stack{{Origin: "labels", Policy: p}})
	must(tw.t, err)
	tables.flags &^= flagStateful
	tables.Receives = true
	tables.seal()
	must(tw.t, tw.f.Attach(tw.n.host.Index, Want{Policy: tables, Mode: mode}))
	nft(tw.t, "table netdev twin\ndelete table netdev twin\ntable netdev twin {\n"+
		nftChains("sent", p, policy.Egress)+nftChains("received", p, policy.Ingress)+`
chain ingress { type filter hook ingress device "host1" priority 0; policy accept; meta protocol arp accept; goto sent; }
chain egress { type filter hook egress device "host1" priority 0; policy accept; meta protocol arp accept; goto received; }
}
`)
}

// tail is the end of frame number n of a batch, by which it is known again.
func tail(n int) []byte { return binary.BigEndian.AppendUint32([]byte("twin"), uint32(n)) }

// numberOf is the number of a frame with such a tail.
func numberOf(frame []byte) (int, bool) {
	if len(frame) < 8 || string(frame[len(frame)-8:len(frame)-4]) != "twin" {
		return 0, false
	}
	return int(binary.BigEndian.Uint32(frame[len(frame)-4:])), true
}

// pass sends frames through both and returns the numbers of those that arrive. An ARP frame, which passes whatever
// the rules, comes after them.
func (tw *twins) pass(dir policy.Direction, batch [][]byte) (arrived [2]map[int]bool) {
	tw.t.Helper()
	for i := range 2 {
		from, to := tw.containers[i], tw.far[i]
		if dir == policy.Ingress {
			from, to = to, from
		}
		for _, frame := range batch {
			from.send(frame)
		}
		tw.marks++
		mark := binary.BigEndian.AppendUint32(policytest.ARP(), tw.marks)
		from.send(mark)
		arrived[i] = map[int]bool{}
		for {
			frame := to.receive(soon)
			if frame == nil {
				tw.t.Fatalf("the mark after %d frames does not arrive", len(batch))
			}
			if bytes.Equal(frame, mark) {
				break
			}
			n, ok := numberOf(frame)
			if ok && n < len(batch) && bytes.Equal(frame, batch[n]) {
				arrived[i][n] = true
			}
		}
	}
	return arrived
}

// TestSecondOpinion sends packets through our filter and through the same rules in nftables, which share no code with it, and
// compares what arrives at the far ends. A failure prints the seed.
func TestSecondOpinion(t *testing.T) {
	tw := newTwins(t)
	rnd, seed := seeded(t)
	ruleSets, frames := 60, 40
	if os.Getenv("VETHWALL_LONG") != "" {
		ruleSets *= 10
	}
	passed, dropped := 0, 0
	for i := range ruleSets {
		mode := []Mode{Generic, Native, TCX}[3*i/ruleSets]
		if i > 0 && mode != []Mode{Generic, Native, TCX}[3*(i-1)/ruleSets] {
			must(t, tw.f.Detach(tw.n.host.Index))
		}
		p := policytest.Draw{Verbs: drawnVerbs[rnd.IntN(len(drawnVerbs))], MaxRules: 8, OneWay: true}.Policy(rnd)
		tw.enforce(p, mode)
		for _, dir := range []policy.Direction{policy.Egress, policy.Ingress} {
			batch := plainFrames(rnd, p, frames)
			arrived := tw.pass(dir, batch)
			for n, frame := range batch {
				specified := p.Verdict(dir, frame).Reason == policy.Pass
				if arrived[0][n] != arrived[1][n] || arrived[0][n] != specified {
					t.Fatalf("seed %d: %s, %s %s\nframe %x arrives through our filter: %v, through nftables: %v, by the specification: %v",
						seed, p.Text(), mode, dir, frame, arrived[0][n], arrived[1][n], specified)
				}
			}
			passed += len(arrived[0])
			dropped += len(batch) - len(arrived[0])
		}
	}
	t.Logf("%d rule sets, %d frames passed, %d were dropped", ruleSets, passed, dropped)
	if min(passed, dropped) < (passed+dropped)/10 {
		t.Error("too few of one kind to mean anything")
	}
}

func plainFrames(rnd *rand.Rand, p policy.Policy, n int) (out [][]byte) {
	for i := range n {
		out = append(out, policytest.Plain(rnd, p, tail(i)))
	}
	return out
}
