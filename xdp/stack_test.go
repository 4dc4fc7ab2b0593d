package xdp

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"
)

// maxStack is what all functions that call each other have together (MAX_BPF_STACK). Kernels before 6.10 or so round each
// function's part up to 32 bytes.
const (
	maxStack   = 512
	stackBlock = 32
)

// TestStacks adds up the stacks of all chains of calls as kernels do that are older than the one of this machine, and
// refuse what this one takes.
func TestStacks(t *testing.T) {
	spec, err := loadFilter()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		depth, calls := map[string]int{}, map[string][]string{}
		function := name
		for _, ins := range p.Instructions {
			if ins.Symbol() != "" {
				function = ins.Symbol()
			}
			if ins.IsFunctionCall() {
				calls[function] = append(calls[function], ins.Reference())
			}
			depth[function] = max(depth[function], frameOf(ins))
		}
		chain, sum := deepest(name, depth, calls)
		t.Logf("%d bytes: %s", sum, strings.Join(chain, " > "))
		if len(chain) < 2 || sum > maxStack {
			t.Errorf("%s takes %d bytes of stack, %d at most: %s", name, sum, maxStack, strings.Join(chain, " > "))
		}
	}
}

// frameOf is how far below its frame an instruction reaches: by an access, or by an address that it makes.
func frameOf(ins asm.Instruction) int {
	switch class := ins.OpCode.Class(); {
	case class.IsStore() && ins.Dst == asm.RFP, class.IsLoad() && ins.Src == asm.RFP:
		return -int(ins.Offset)
	case ins.OpCode.ALUOp() == asm.Add && ins.OpCode.Source() == asm.ImmSource && ins.Constant < 0:
		return -int(ins.Constant)
	}
	return 0
}

// deepest is the chain of calls from a function on that takes the most stack.
func deepest(function string, depth map[string]int, calls map[string][]string) (chain []string, sum int) {
	for _, f := range calls[function] {
		if c, s := deepest(f, depth, calls); s > sum {
			chain, sum = c, s
		}
	}
	own := (max(depth[function], 1) + stackBlock - 1) / stackBlock * stackBlock
	return append([]string{function}, chain...), sum + own
}
