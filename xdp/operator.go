package xdp

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// What is loaded of the operator's programs is pinned under programs/, by what was read. The containers that ask for the
// same share it and its maps, and so does the next agent.

func (f *Filter) programsDir() string { return filepath.Join(f.dir, "programs") }

func (f *Filter) programPin(d digest) string {
	return filepath.Join(f.programsDir(), hex.EncodeToString(d[:16]))
}

// operators is p in the kernel. What the kernel refuses it refuses until the next Sweep, however many containers ask.
func (f *Filter) operators(p Program) (*ebpf.Program, error) {
	d := p.digest
	if l, ok := f.programs[d]; ok {
		return l.program, l.err
	}
	program, err := f.loadOperators(p, f.programPin(d))
	if err != nil {
		err = fmt.Errorf("xdp.program=%s: %w", p.Name, err)
	}
	f.programs[d] = loadedProgram{program, err}
	return program, err
}

// loadedProgram is one that the kernel has taken, or its error.
type loadedProgram struct {
	program *ebpf.Program
	err     error
}

func (f *Filter) loadOperators(p Program, pin string) (*ebpf.Program, error) {
	program, err := ebpf.LoadPinnedProgram(pin, nil)
	if err == nil {
		return program, nil
	}
	if program, err = loadObject(strings.NewReader(p.content.Value()), p.section()); err != nil {
		return nil, err
	}
	_ = os.Remove(pin)
	if err := errors.Join(os.MkdirAll(f.programsDir(), 0o700), program.Pin(pin)); err != nil {
		_ = program.Close()
		return nil, fmt.Errorf("pin the program: %w", err)
	}
	return program, nil
}

// sweepPrograms gives back the operator's programs that no device has.
func (f *Filter) sweepPrograms() error {
	used := map[ebpf.ProgramID]bool{}
	for id, l := range f.links {
		if id.hook != hookProgram {
			continue
		}
		if info, err := l.Info(); err == nil {
			used[info.Program] = true
		}
	}
	for d, l := range f.programs {
		if l.program == nil || !used[programID(l.program)] {
			_ = l.program.Close()
			delete(f.programs, d)
		}
	}
	pins, err := filepath.Glob(filepath.Join(f.programsDir(), "*"))
	for _, pin := range pins {
		program, loadErr := ebpf.LoadPinnedProgram(pin, nil)
		if loadErr != nil || !used[programID(program)] {
			err = errors.Join(err, os.Remove(pin))
		}
		_ = program.Close()
	}
	return err
}

// programID is programID, which takes several questions to the kernel, of one that is most often ours.
func (f *Filter) programID(p *ebpf.Program) ebpf.ProgramID {
	if id := f.ids[p]; id != 0 {
		return id
	}
	return programID(p)
}

// programID is 0 where the kernel does not say.
func programID(p *ebpf.Program) ebpf.ProgramID {
	info, err := p.Info()
	if err != nil {
		return 0
	}
	id, _ := info.ID()
	return id
}

// isSlot reports whether a hook is the XDP slot, which has one program, whosever it is.
func isSlot(hook string) bool {
	return hook == hookXDP || hook == hookProgram || hook == hookByHand
}

// stop lets the XDP slot drop everything where it is going to have another program of the operator's, or none, until Attach
// has put that there: program and policy change one after the other, and no packet may meet the old one and the new. Where
// the slot is empty the program comes at once: what it passes the old policy judges, too.
func (f *Filter) stop(ifindex int, w Want) error {
	wanted := hookID{ifindex, hookXDP}
	if w.Program != (Program{}) {
		wanted.hook = hookProgram
	}
	slot, l := f.slot(ifindex)
	if l == nil && wanted.hook == hookXDP || l != nil && wanted.hook != hookProgram && slot.hook != hookProgram {
		return nil // the operator has no part in it
	}
	program, err := f.program(wanted.hook, w)
	if err != nil {
		return err
	}
	if l != nil {
		info, err := l.Info()
		if err != nil {
			return fmt.Errorf("link of ifindex %d: %w", ifindex, err)
		}
		if info.Program == programID(program) {
			return nil
		}
	}
	// That takes milliseconds, in which the old policy judges.
	if err := f.ensure(hookID{ifindex, hookSent}, w); err != nil {
		return err
	}
	if l == nil {
		return f.ensure(wanted, w)
	}
	clear(f.seen) // it gets another program
	if err := dropAll(l); err != nil {
		return fmt.Errorf("exchange the program of ifindex %d: %w", ifindex, err)
	}
	return nil
}

// slot is which of our hooks has the XDP slot, and its link; nil for none. What somebody has taken by hand we may still hold
// as ours, so that is looked for first.
func (f *Filter) slot(ifindex int) (hookID, link.Link) {
	for _, hook := range []string{hookByHand, hookProgram, hookXDP} {
		if l := f.live(hookID{ifindex, hook}); l != nil {
			return hookID{ifindex, hook}, l
		}
	}
	return hookID{}, nil
}

// dropAll gives an XDP link a program that lets nothing pass.
func dropAll(l link.Link) error {
	const xdpDrop = 1
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "vethwall_stop", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpDrop), asm.Return()},
	})
	if err != nil {
		return err
	}
	defer program.Close()
	return l.Update(program)
}

// inherit gives the link that another hook of ours has in the XDP slot to id, with the program that belongs there, in one
// step. Our own program takes nothing from one that was attached by hand.
func (f *Filter) inherit(id hookID, program *ebpf.Program) error {
	from, l := f.slot(id.ifindex)
	if l == nil || from == id || id.hook == hookXDP && from.hook == hookByHand {
		return nil
	}
	clear(f.seen)
	if err := l.Update(program); err != nil {
		return fmt.Errorf("exchange the program of ifindex %d: %w", id.ifindex, err)
	}
	delete(f.links, from)
	if own := (hookID{id.ifindex, hookXDP}); f.links[own] != nil { // the same link, from before it was taken by hand
		_ = f.links[own].Close()
		delete(f.links, own)
	}
	f.links[id] = l
	if err := os.Rename(f.pin(from), f.pin(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// withdraw takes off what a device had only because of a program of the operator's; hooks are what it is to have.
// Our own program has its place by now.
func (f *Filter) withdraw(ifindex int, hooks []string) error {
	var errs []error
	for _, hook := range []string{hookProgram, hookSent} {
		if !slices.Contains(hooks, hook) {
			errs = append(errs, f.unhookOne(hookID{ifindex, hook}))
		}
	}
	return errors.Join(errs...)
}
