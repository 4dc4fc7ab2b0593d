package xdp

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// TestStamp has an XDP program that is not ours write in front of packets what ours writes for tc to follow. Only who knows the
// secret number is followed.
func TestStamp(t *testing.T) {
	n := newNetwork(t)
	f := open(t, bpffs(t))
	defer f.Close()
	var g filterGlobal
	must(t, f.objs.Globals.Lookup(uint32(0), &g))
	const passes = 1 << 31 // of no rule and no reason
	l, err := link.AttachXDP(link.XDPOptions{Program: stampProgram(t, g.Stamp, passes), Interface: n.host.Index, Flags: link.XDPGenericMode})
	must(t, err)
	defer l.Close()
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=udp"), Mode: TCX}))
	n.wantUDPTo("192.0.2.1:0", true, "who knows the secret is followed")
	for name, secret := range map[string]uint64{"another secret": g.Stamp ^ 1<<40, "none": 0} {
		must(t, l.Update(stampProgram(t, secret, passes)))
		n.wantUDPTo("192.0.2.1:0", false, name)
	}
}

// stampProgram writes struct stamp of bpf/stamp.h in front of every packet.
func stampProgram(t *testing.T, secret, cell uint64) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "MIT", Name: "stamps",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.Mov.Imm(asm.R2, -16),
			asm.FnXdpAdjustMeta.Call(),
			asm.LoadMem(asm.R2, asm.R6, 8, asm.Word), // data_meta
			asm.LoadMem(asm.R3, asm.R6, 0, asm.Word), // data
			asm.Mov.Reg(asm.R4, asm.R2),
			asm.Add.Imm(asm.R4, 16),
			asm.JGT.Reg(asm.R4, asm.R3, "exit"),
			asm.LoadImm(asm.R5, int64(secret), asm.DWord), // #nosec G115 -- its bits
			asm.StoreMem(asm.R2, 0, asm.R5, asm.DWord),
			asm.LoadImm(asm.R5, int64(cell), asm.DWord), // #nosec G115 -- its bits
			asm.StoreMem(asm.R2, 8, asm.R5, asm.DWord),
			asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("exit"),
			asm.Return(),
		},
	})
	must(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}
