package xdp

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Where the addresses and ports of flow.frame stand in it.
const (
	destination4, port4 = 14 + 16, 14 + 20 + 2
	destination6, port6 = 14 + 24, 14 + 40 + 2
)

const xdpAborted = 0

// takeHeaders puts the context in R6 and the packet in R7, or jumps to the symbol exit where the packet is shorter than size.
func takeHeaders(size int32) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R1, 0, asm.Word),
		asm.LoadMem(asm.R2, asm.R1, 4, asm.Word),
		asm.Mov.Reg(asm.R3, asm.R7),
		asm.Add.Imm(asm.R3, size),
		asm.JGT.Reg(asm.R3, asm.R2, "exit"),
	}
}

func emptyProgram(b *testing.B) *ebpf.Program {
	return newProgram(b, asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()})
}

// trieProgram drops what goes to one of prefixes, all of one family, and is the least that does so with an LPM trie:
// it looks at no ethertype and counts nothing.
func trieProgram(b *testing.B, prefixes []netip.Prefix, v6 bool) *ebpf.Program {
	words, destination := 1, int16(destination4)
	if v6 {
		words, destination = 4, destination6
	}
	keySize := 4 + 4*words
	trie := newMap(b, &ebpf.MapSpec{
		Type: ebpf.LPMTrie, KeySize: uint32(keySize), ValueSize: 4, MaxEntries: uint32(len(prefixes)),
		Flags: 1, // BPF_F_NO_PREALLOC
	})
	for _, p := range prefixes {
		key := append(binary.NativeEndian.AppendUint32(nil, uint32(p.Bits())), p.Addr().AsSlice()...)
		if err := trie.Put(key, uint32(1)); err != nil {
			b.Fatal(err)
		}
	}
	code := append(takeHeaders(int32(destination)+4*int32(words)),
		asm.StoreImm(asm.R10, -int16(keySize), int64(32*words), asm.Word))
	for i := range int16(words) {
		code = append(code,
			asm.LoadMem(asm.R2, asm.R7, destination+4*i, asm.Word),
			asm.StoreMem(asm.R10, -int16(keySize)+4+4*i, asm.R2, asm.Word))
	}
	return newProgram(b, append(code,
		asm.LoadMapPtr(asm.R1, trie.FD()),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, -int32(keySize)),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"),
		asm.Mov.Imm(asm.R0, xdpDrop),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("exit"),
		asm.Return(),
	))
}

// bareProgram finds the conversation of an IPv4 packet in a hash as large as ours, with a key of the same size, reads the
// coarse clock and counts: the least that anything that remembers conversations does. It knows those of flows.
func bareProgram(b *testing.B, flows []flow) *ebpf.Program {
	const keySize = 40
	known := newMap(b, &ebpf.MapSpec{
		Type: ebpf.Hash, KeySize: keySize, ValueSize: 24, MaxEntries: 16384, Flags: 1, // BPF_F_NO_PREALLOC
	})
	for _, f := range flows {
		frame := f.frame(protoUDP)
		key := make([]byte, keySize)
		copy(key, frame[26:30])
		copy(key[16:], frame[30:34])
		copy(key[32:], frame[34:38])
		key[36], key[37] = protoUDP, 4
		must(b, known.Put(key, make([]byte, 24)))
	}
	counter := newMap(b, &ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 16, MaxEntries: 1})
	code := append(takeHeaders(38), asm.Mov.Imm(asm.R2, 0))
	for i := range int16(keySize / 8) {
		code = append(code, asm.StoreMem(asm.R10, -keySize+8*i, asm.R2, asm.DWord))
	}
	for _, w := range []struct{ from, to int16 }{{26, 0}, {30, 16}, {34, 32}} { // both addresses, both ports
		code = append(code, asm.LoadMem(asm.R2, asm.R7, w.from, asm.Word), asm.StoreMem(asm.R10, -keySize+w.to, asm.R2, asm.Word))
	}
	lookUp := func(m *ebpf.Map, key int32) asm.Instructions {
		return asm.Instructions{
			asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, key),
			asm.FnMapLookupElem.Call(), asm.JEq.Imm(asm.R0, 0, "exit"),
		}
	}
	code = append(code, asm.StoreImm(asm.R10, -keySize+36, 4<<8|protoUDP, asm.Half))
	code = append(code, lookUp(known, -keySize)...)
	code = append(code,
		asm.Mov.Reg(asm.R8, asm.R0),
		asm.FnKtimeGetCoarseNs.Call(),
		asm.StoreMem(asm.R8, 0, asm.R0, asm.DWord),
		asm.StoreImm(asm.R10, -keySize-8, 0, asm.Word))
	code = append(code, lookUp(counter, -keySize-8)...)
	for at, n := range []int32{1, 60} { // packets, bytes
		at := 8 * int16(at)
		code = append(code, asm.LoadMem(asm.R2, asm.R0, at, asm.DWord), asm.Add.Imm(asm.R2, n), asm.StoreMem(asm.R0, at, asm.R2, asm.DWord))
	}
	return newProgram(b, append(code,
		asm.Mov.Imm(asm.R0, xdpPass),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpDrop).WithSymbol("exit"),
		asm.Return(),
	))
}

// articleProgram is the article's udp.o. It has no BTF, and its section says nothing of its type.
func articleProgram(b *testing.B) *ebpf.Program {
	spec, err := ebpf.LoadCollectionSpec("../examples/article/udp.o")
	if err != nil {
		b.Fatal(err)
	}
	p := spec.Programs["dropper"]
	p.Type, p.AttachType = ebpf.XDP, ebpf.AttachXDP
	return loadProgram(b, p)
}

func newProgram(b *testing.B, code asm.Instructions) *ebpf.Program {
	return loadProgram(b, &ebpf.ProgramSpec{
		Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "Dual MIT/GPL", Instructions: code,
	})
}

func loadProgram(b *testing.B, spec *ebpf.ProgramSpec) *ebpf.Program {
	p, err := ebpf.NewProgram(spec)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	return p
}

func newMap(b *testing.B, spec *ebpf.MapSpec) *ebpf.Map {
	m, err := ebpf.NewMap(spec)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { m.Close() })
	return m
}
