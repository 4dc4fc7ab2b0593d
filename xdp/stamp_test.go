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

// TestStampIsWiped has a program behind ours look for the secret number: whoever learns it gets past tc.
func TestStampIsWiped(t *testing.T) {
	n := newNetwork(t)
	f := open(t, bpffs(t))
	defer f.Close()
	if f.noTCX {
		t.Skip("no tcx in this kernel, by which another program comes behind ours")
	}
	must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.drop=tcp"), BothHooks: true}))
	met, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 2})
	must(t, err)
	defer met.Close()
	l, err := link.AttachTCX(link.TCXOptions{Program: metProgram(t, met), Interface: n.host.Index, Attach: ebpf.AttachTCXIngress, Anchor: link.Tail()})
	must(t, err)
	defer l.Close()
	n.wantUDP(true, "drop=tcp")
	var g filterGlobal
	must(t, f.objs.Globals.Lookup(uint32(0), &g))
	var cell, secret uint64
	must(t, met.Lookup(uint32(0), &secret))
	must(t, met.Lookup(uint32(1), &cell))
	if cell == 0 || secret != 0 || g.Stamp == 0 {
		t.Errorf("behind tc a packet has the cell %#x and the secret %#x, want some and 0", cell, secret)
	}
}

// metProgram keeps in a map what struct stamp of bpf/stamp.h stands in front of a packet.
func metProgram(t *testing.T, met *ebpf.Map) *ebpf.Program {
	t.Helper()
	const data, dataMeta = 76, 140 // in struct __sk_buff
	code := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, dataMeta, asm.Word),
		asm.LoadMem(asm.R3, asm.R1, data, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, 16),
		asm.JGT.Reg(asm.R4, asm.R3, "exit"),
		asm.LoadMem(asm.R6, asm.R2, 0, asm.DWord),
		asm.LoadMem(asm.R7, asm.R2, 8, asm.DWord),
	}
	for key, value := range []asm.Register{asm.R6, asm.R7} {
		code = append(code,
			asm.StoreMem(asm.RFP, -8, value, asm.DWord),
			asm.StoreImm(asm.RFP, -16, int64(key), asm.Word),
			asm.LoadMapPtr(asm.R1, met.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -16),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, -8),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnMapUpdateElem.Call(),
		)
	}
	code = append(code, asm.Mov.Imm(asm.R0, -1).WithSymbol("exit"), asm.Return())
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Name: "met", Instructions: code})
	must(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}
