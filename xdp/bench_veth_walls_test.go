package xdp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"go4.org/netipx"
)

// wall is a filter that can stand on a bridgeRig, in front of both containers.
type wall struct {
	name string
	// delivers: what floods the listed address arrives.
	delivers bool
	put      func(*bridgeRig)
}

// walls are ours and the neighbours. All but the passing ones drop what containers send to listed addresses; those that can, what
// they get from there, too.
func walls(r *bridgeRig, f *Filter) []wall {
	out := []wall{
		{"none", true, func(*bridgeRig) {}},
		{"none, again", true, func(*bridgeRig) {}}, // what differs is noise
		{"hold", true, holdWall(f)},
		{"pass/generic", true, passWall(r.b, Generic)},
		{"pass/tcx", true, passWall(r.b, TCX)},
	}
	for _, mode := range []Mode{Generic, TCX} {
		for _, n := range []int{1, 1000} {
			out = append(out,
				wall{fmt.Sprintf("ours/%s/drop/%d", mode, n), false, ours(f, droppedList(r.b, n), mode, false)},
				wall{fmt.Sprintf("ours/%s/allow/%d", mode, n), false, ours(f, allowedList(r.b, n), mode, false)})
		}
	}
	out = append(out, wall{bothHooks, false, ours(f, droppedList(r.b, 1), Generic, true)})
	out = append(out, wall{guardedHooks, false, guardWall(f, droppedList(r.b, 1))})
	for _, n := range []int{1, 1000} {
		out = append(out,
			wall{fmt.Sprintf("nft/netdev/set/%d", n), false, nftNetdevSet(n)},
			wall{fmt.Sprintf("nft/netdev/linear/%d", n), false, nftNetdevLinear(n)},
			wall{fmt.Sprintf("nft/inet/ct/%d", n), false, nftConntrack(n)},
			wall{fmt.Sprintf("iptables/raw/%d", n), false, iptablesRaw(n)},
			wall{fmt.Sprintf("xdp-filter/skb/%d", n), false, xdpFilter(n)})
	}
	return out
}

// bothHooks is the wall of a container that can get around one hook.
const bothHooks = "ours/generic+tcx/drop/1"

// guardedHooks is that of one that could combine detours.
const guardedHooks = "ours/generic+tcx/guarded/drop/1"

func addr4(s string) net.IP { return netip.MustParseAddr(s).AsSlice() }

// listed are n addresses of which the last is rigListed: where rules stand in a row, that is where they end.
func listed(n int) []string {
	var out []string
	for _, a := range draw("addresses4", 1000).prefixes[:n-1] {
		out = append(out, a.Addr().String())
	}
	return append(out, rigListed)
}

// passWall passes everything, at the hooks where ours would stand.
func passWall(b *testing.B, mode Mode) func(*bridgeRig) {
	program := func(t ebpf.ProgramType, verdict int32) *ebpf.Program {
		return loadProgram(b, &ebpf.ProgramSpec{
			Type: t, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
		})
	}
	onXDP, onTC := program(ebpf.XDP, xdpPass), program(ebpf.SchedCLS, -1)
	return func(r *bridgeRig) {
		for _, port := range r.ports {
			hook := hookXDP
			if mode == TCX {
				hook = hookSent
			}
			for _, hook := range []string{hook, hookReceived} {
				var l link.Link
				var err error
				if hook == hookXDP {
					l, err = attachXDP(port, onXDP, Generic)
				} else {
					l, err = attachTCX(hookID{port, hook}, onTC)
				}
				must(r.b, err)
				r.atClear(func() { must(r.b, errors.Join(l.Detach(), l.Close())) })
			}
		}
	}
}

// holdWall is what everybody behind a bridge pays for the hold on new ports: the containers have been released.
func holdWall(f *Filter) func(*bridgeRig) {
	return func(r *bridgeRig) {
		ports, err := ListPorts()
		must(r.b, err)
		h := OpenHold(f, ports)
		if way, why := h.Way(); way != HeldNFT {
			r.b.Fatal(why)
		}
		r.atClear(func() {
			must(r.b, h.rules.remove())
			h.Close()
		})
	}
}

// guardWall is ours at both hooks, with a bridge that takes only what tc ingress has marked.
func guardWall(f *Filter, t *Tables) func(*bridgeRig) {
	return func(r *bridgeRig) {
		ours(f, t, Generic, true)(r)
		ports, err := ListPorts()
		must(r.b, err)
		h := OpenHold(f, ports)
		for _, port := range r.ports {
			if must(r.b, h.Guard(port)); !h.Guarded(port) {
				r.b.Fatal("the port cannot be guarded")
			}
		}
		r.atClear(func() {
			for _, port := range r.ports {
				must(r.b, h.Unguard(port))
			}
			must(r.b, h.rules.remove())
			h.Close()
		})
	}
}

// ours attaches t to both containers, which must send from their own addresses, as is the default; both: at tc ingress as well.
func ours(f *Filter, t *Tables, mode Mode, both bool) func(*bridgeRig) {
	return func(r *bridgeRig) {
		for i, port := range r.ports {
			address := netip.MustParseAddr([]string{rigClient, rigServer}[i])
			own, err := CompileOwn([]netipx.IPRange{netipx.IPRangeFrom(address, address)})
			must(r.b, err)
			must(r.b, f.Attach(port, Want{Policy: t, MAC: r.macs[i], Own: own, Mode: mode, BothHooks: both}))
			r.atClear(func() { must(r.b, f.Detach(port)) })
		}
	}
}

// droppedList drops what goes to or comes from n addresses.
func droppedList(b *testing.B, n int) *Tables {
	return labelled(b, "xdp.drop="+strings.Join(listed(n), ","))
}

// allowedList lets the container open conversations with its neighbours and n-1 addresses, and be spoken to by all.
func allowedList(b *testing.B, n int) *Tables {
	peers := append([]string{rigNet}, listed(n)[:n-1]...)
	return labelled(b, "xdp.egress.allow="+strings.Join(peers, ","))
}

func nftNetdev(r *bridgeRig, set, toListed, fromListed string) {
	devices := strings.Join(r.portNames, ", ")
	r.run(fmt.Sprintf(`table netdev bench {
	%s
	chain sent { type filter hook ingress devices = { %s } priority 0
		%s
	}
	chain received { type filter hook egress devices = { %s } priority 0
		%s
	}
}`, set, devices, toListed, devices, fromListed), "nft", "-f", "-")
	r.atClear(func() { r.run("", "nft", "delete", "table", "netdev", "bench") })
}

func nftNetdevSet(n int) func(*bridgeRig) {
	set := "set listed { type ipv4_addr; elements = { " + strings.Join(listed(n), ", ") + " }\n}"
	return func(r *bridgeRig) { nftNetdev(r, set, "ip daddr @listed drop", "ip saddr @listed drop") }
}

func nftNetdevLinear(n int) func(*bridgeRig) {
	var to, from strings.Builder
	for _, a := range listed(n) {
		fmt.Fprintf(&to, "ip daddr %s drop\n", a)
		fmt.Fprintf(&from, "ip saddr %s drop\n", a)
	}
	return func(r *bridgeRig) { nftNetdev(r, "", to.String(), from.String()) }
}

// nftConntrack is allowedList by connection tracking, which bridged packets reach through br_netfilter: that of the
// bridge family itself does not see what the host sends.
func nftConntrack(n int) func(*bridgeRig) {
	peers := strings.Join(append([]string{rigNet}, listed(n)[:n-1]...), ", ")
	const chain = `chain %s { type filter hook %[1]s priority 0
		ct state established,related accept
		ip daddr @allowed accept
		drop
	}
	`
	rules := "table ip bench {\nset allowed { type ipv4_addr; flags interval; elements = { " + peers + " }\n}\n" +
		fmt.Sprintf(chain, "input") + fmt.Sprintf(chain, "forward") + "}"
	return func(r *bridgeRig) {
		r.bridgeCallsIptables(true)
		r.run(rules, "nft", "-f", "-")
		r.atClear(func() {
			r.run("", "nft", "delete", "table", "ip", "bench")
			r.bridgeCallsIptables(false)
		})
	}
}

// iptablesRaw drops where iptables does so first. br_netfilter shows it what is bridged.
func iptablesRaw(n int) func(*bridgeRig) {
	var rules strings.Builder
	rules.WriteString("*raw\n")
	for _, a := range listed(n) {
		fmt.Fprintf(&rules, "-A PREROUTING -d %s -j DROP\n-A OUTPUT -s %[1]s -j DROP\n", a)
	}
	rules.WriteString("COMMIT\n")
	return func(r *bridgeRig) {
		r.bridgeCallsIptables(true)
		r.run(rules.String(), "iptables-nft-restore", "--noflush")
		r.atClear(func() {
			r.run("", "nft", "delete", "table", "ip", "raw")
			r.bridgeCallsIptables(false)
		})
	}
}

// xdpFilter drops by the program of xdp-tools that knows the least beside IPv4. It judges what containers send only.
// The tool adds one address a call, so all but one are written into its map as it writes that one.
func xdpFilter(n int) func(*bridgeRig) {
	return func(r *bridgeRig) {
		for _, name := range r.portNames {
			r.run("", "xdp-filter", "load", "--mode", "skb", "--features", "ipv4", name)
			r.atClear(func() { r.run("", "xdp-filter", "unload", name) })
		}
		r.run("", "xdp-filter", "ip", "--mode", "dst", rigListed)
		m, err := ebpf.LoadPinnedMap("/sys/fs/bpf/xdp-filter/filter_ipv4", nil)
		must(r.b, err)
		defer m.Close()
		var flags []uint64 // on each CPU
		must(r.b, m.Lookup([]byte(addr4(rigListed)), &flags))
		for _, a := range listed(n)[:n-1] {
			must(r.b, m.Put([]byte(addr4(a)), flags))
		}
	}
}
