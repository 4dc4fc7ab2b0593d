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

// shuffledFlows is how many packets a shuffled run has. A power of two.
const shuffledFlows = 4096

// shuffler runs a program on packets in an order that never repeats itself. BPF_PROG_TEST_RUN with a
// repeat count runs one packet again and again, so a program in front of the measured one writes destination and
// port of another flow into it, and tail-calls.
type shuffler struct {
	flows *ebpf.Map
}

const (
	flowSize  = 24 // destination, port in network byte order, padding
	stateSize = 8 + shuffledFlows*flowSize
)

func newShuffler(b *testing.B) *shuffler {
	return &shuffler{newMap(b, &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: stateSize, MaxEntries: 1})}
}

// use makes flows, shuffledFlows of one family, the packets of every program in front.
func (s *shuffler) use(b *testing.B, flows []flow) {
	state := make([]byte, 8, stateSize)
	for _, f := range flows {
		var entry [flowSize]byte
		copy(entry[:], f.peer.AsSlice())
		binary.BigEndian.PutUint16(entry[16:], f.port)
		state = append(state, entry[:]...)
	}
	if err := s.flows.Put(uint32(0), state); err != nil {
		b.Fatal(err)
	}
}

// inFrontOf returns the program that runs p on shuffled packets of one family.
func (s *shuffler) inFrontOf(b *testing.B, p *ebpf.Program, v6 bool) *ebpf.Program {
	call := newMap(b, &ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err := call.Put(uint32(0), p); err != nil {
		b.Fatal(err)
	}
	size, write := int32(port4+2), asm.Instructions{
		asm.LoadMem(asm.R4, asm.R3, 8, asm.Word),
		asm.StoreMem(asm.R7, destination4, asm.R4, asm.Word),
		asm.LoadMem(asm.R4, asm.R3, 24, asm.Half),
		asm.StoreMem(asm.R7, port4, asm.R4, asm.Half),
	}
	if v6 {
		size, write = port6+2, asm.Instructions{
			asm.LoadMem(asm.R4, asm.R3, 8, asm.DWord),
			asm.StoreMem(asm.R7, destination6, asm.R4, asm.DWord),
			asm.LoadMem(asm.R4, asm.R3, 16, asm.DWord),
			asm.StoreMem(asm.R7, destination6+8, asm.R4, asm.DWord),
			asm.LoadMem(asm.R4, asm.R3, 24, asm.Half),
			asm.StoreMem(asm.R7, port6, asm.R4, asm.Half),
		}
	}
	code := append(takeHeaders(size), asm.Instructions{
		// The next number of Knuth's MMIX generator; its upper bits choose the flow.
		asm.LoadMapValue(asm.R3, s.flows.FD(), 0),
		asm.LoadMem(asm.R4, asm.R3, 0, asm.DWord),
		asm.LoadImm(asm.R5, 6364136223846793005, asm.DWord),
		asm.Mul.Reg(asm.R4, asm.R5),
		asm.LoadImm(asm.R5, 1442695040888963407, asm.DWord),
		asm.Add.Reg(asm.R4, asm.R5),
		asm.StoreMem(asm.R3, 0, asm.R4, asm.DWord),
		asm.RSh.Imm(asm.R4, 33),
		asm.And.Imm(asm.R4, shuffledFlows-1),
		asm.Mul.Imm(asm.R4, flowSize),
		asm.Add.Reg(asm.R3, asm.R4),
	}...)
	code = append(append(code, write...),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, call.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, xdpAborted).WithSymbol("exit"),
		asm.Return(),
	)
	return newProgram(b, code)
}

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
