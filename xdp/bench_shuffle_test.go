package xdp

import (
	"encoding/binary"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// shuffledFlows is how many packets a shuffled run has. A power of two.
const shuffledFlows = 4096

// shuffler runs a program on many packets. BPF_PROG_TEST_RUN with a repeat count runs one packet again and again, so a
// program in front of the measured one makes another of it and tail-calls.
type shuffler struct {
	flows   *ebpf.Map
	devices *ebpf.Map // an entry for each flow, where each is another container's
}

const (
	flowSize  = 24 // destination, port in network byte order, padding
	stateSize = 8 + shuffledFlows*flowSize
)

func newShuffler(b *testing.B) *shuffler {
	one := func(size uint32) *ebpf.Map {
		return newMap(b, &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: size, MaxEntries: 1})
	}
	return &shuffler{one(stateSize), one(8 * shuffledFlows)}
}

// use makes flows, at most shuffledFlows of one family, the packets of every program in front, and devices, where there
// are any, what they come from.
func (s *shuffler) use(b *testing.B, flows []flow, devices []filterDevice) {
	state := make([]byte, 8, stateSize)
	for _, f := range flows {
		var entry [flowSize]byte
		copy(entry[:], f.peer.AsSlice())
		binary.BigEndian.PutUint16(entry[16:], f.port)
		state = append(state, entry[:]...)
	}
	must(b, s.flows.Put(uint32(0), state[:stateSize]))
	if len(devices) > 0 {
		all := make([]filterDevice, shuffledFlows)
		copy(all, devices)
		must(b, s.devices.Put(uint32(0), all))
	}
}

// front says what a program in front makes of the packet.
type front struct {
	program *ebpf.Program
	v6      bool
	// fresh: each packet comes from another port than those before, so that it opens a conversation.
	fresh bool
	// Where turns is not 0 the first so many flows come in turn, each from its own entry in devices, written into
	// lo's; else all come in an order that does not repeat itself.
	turns   int
	devices *ebpf.Map
}

// inFront returns the program that runs f.program.
func (s *shuffler) inFront(b *testing.B, f front) *ebpf.Program {
	call := newMap(b, &ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	must(b, call.Put(uint32(0), f.program))
	port := int16(port4)
	if f.v6 {
		port = port6
	}
	code := append(takeHeaders(int32(port)+2), asm.LoadMapValue(asm.R3, s.flows.FD(), 0), asm.LoadMem(asm.R4, asm.R3, 0, asm.DWord))
	code = append(append(code, f.choose()...),
		asm.Mov.Reg(asm.R8, asm.R4),
		asm.Mul.Imm(asm.R4, flowSize),
		asm.Add.Reg(asm.R3, asm.R4))
	code = append(code, f.writeFlow(port)...)
	if f.turns > 0 {
		code = append(code, s.writeDevice(f.devices)...)
	}
	return newProgram(b, append(code,
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, call.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, xdpAborted).WithSymbol("exit"),
		asm.Return(),
	))
}

// choose makes the number in R4, which R3 points to, the next one, and then the number of a flow, and R5 a source port.
func (f front) choose() asm.Instructions {
	if f.turns > 0 {
		return asm.Instructions{
			asm.Add.Imm(asm.R4, 1),
			asm.StoreMem(asm.R3, 0, asm.R4, asm.DWord),
			asm.Mov.Reg(asm.R5, asm.R4),
			asm.Div.Imm(asm.R5, int32(f.turns)),
			asm.Mod.Imm(asm.R4, int32(f.turns)),
			asm.And.Imm(asm.R4, shuffledFlows-1), // for the verifier
		}
	}
	return asm.Instructions{
		// Knuth's MMIX generator; its upper bits choose.
		asm.LoadImm(asm.R5, 6364136223846793005, asm.DWord),
		asm.Mul.Reg(asm.R4, asm.R5),
		asm.LoadImm(asm.R5, 1442695040888963407, asm.DWord),
		asm.Add.Reg(asm.R4, asm.R5),
		asm.StoreMem(asm.R3, 0, asm.R4, asm.DWord),
		asm.RSh.Imm(asm.R4, 33),
		asm.Mov.Reg(asm.R5, asm.R4),
		asm.RSh.Imm(asm.R5, 12),
		asm.And.Imm(asm.R4, shuffledFlows-1),
	}
}

// writeFlow writes the flow that R3 is 8 bytes before into the packet, whose destination port is at port.
func (f front) writeFlow(port int16) asm.Instructions {
	words, destination := int16(1), int16(destination4)
	if f.v6 {
		words, destination = 4, destination6
	}
	var code asm.Instructions
	if f.fresh {
		code = append(code, asm.StoreMem(asm.R7, port-2, asm.R5, asm.Half))
	}
	for i := range words {
		code = append(code,
			asm.LoadMem(asm.R4, asm.R3, 8+4*i, asm.Word),
			asm.StoreMem(asm.R7, destination+4*i, asm.R4, asm.Word))
	}
	return append(code,
		asm.LoadMem(asm.R4, asm.R3, 24, asm.Half),
		asm.StoreMem(asm.R7, port, asm.R4, asm.Half))
}

// writeDevice makes the entry whose number is in R8 that of lo, where the packet seems to come from.
func (s *shuffler) writeDevice(devices *ebpf.Map) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapValue(asm.R9, s.devices.FD(), 0),
		asm.LSh.Imm(asm.R8, 3),
		asm.Add.Reg(asm.R9, asm.R8),
		asm.LoadMem(asm.R9, asm.R9, 0, asm.DWord),
		asm.StoreImm(asm.R10, -4, loIndex, asm.Word),
		asm.LoadMapPtr(asm.R1, devices.FD()),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"),
		asm.StoreMem(asm.R0, 0, asm.R9, asm.DWord),
	}
}
