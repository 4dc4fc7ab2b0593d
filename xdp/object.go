package xdp

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

const textSection = ".text"

// LoadObject loads the XDP program in a section of an object file. It takes plain objects as clang makes them from
// the simplest sources: without BTF, in any section, `.text` among them, without a license. The library calls
// code in .text a function of others and a program in a section that it does not know untyped, so both are
// told here what they are. An empty section stands for the only one that has a program. The caller closes.
func LoadObject(path, section string) (*ebpf.Program, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	program, err := loadObject(file, section)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return program, nil
}

func loadObject(object io.ReaderAt, section string) (*ebpf.Program, error) {
	spec, name, err := parseObject(object, section)
	if err != nil {
		return nil, err
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("the kernel refuses the program: %w", err)
	}
	defer c.Close()
	return c.DetachProgram(name), nil
}

// parseObject reads an object. The spec has no program but the one that is asked for, whose name is program.
func parseObject(object io.ReaderAt, section string) (spec *ebpf.CollectionSpec, program string, err error) {
	spec, err = ebpf.LoadCollectionSpecFromReader(object)
	if err != nil {
		return nil, "", fmt.Errorf("%w; is it an object made by clang -target bpf?", err)
	}
	p, err := inSection(spec, section)
	if err != nil {
		return nil, "", err
	}
	if p == nil {
		if p, err = readText(object); err != nil {
			return nil, "", err
		}
		spec = &ebpf.CollectionSpec{}
	}
	// A link takes over only programs of its own attach type, and ours has this one.
	p.Type, p.AttachType = ebpf.XDP, ebpf.AttachXDP
	spec.Programs = map[string]*ebpf.ProgramSpec{p.Name: p}
	return spec, p.Name, nil
}

// inSection finds the program of a section, nil for that in .text, which is not among the spec's.
func inSection(spec *ebpf.CollectionSpec, section string) (*ebpf.ProgramSpec, error) {
	var found []*ebpf.ProgramSpec
	var sections []string
	for _, p := range spec.Programs {
		sections = append(sections, p.SectionName)
		if section == "" || p.SectionName == section {
			found = append(found, p)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, fmt.Errorf("%d programs to choose from; name one of the sections %s", len(found), strings.Join(sections, ", "))
	case section == "" || section == textSection:
		return nil, nil
	}
	return nil, fmt.Errorf("no program in section %q; there is %s", section, strings.Join(append(sections, textSection), ", "))
}

// readText reads the one function of .text as a program.
func readText(object io.ReaderAt) (*ebpf.ProgramSpec, error) {
	file, err := elf.NewFile(object)
	if err != nil {
		return nil, err
	}
	text := file.Section(textSection)
	if text == nil || text.Size == 0 {
		return nil, errors.New("no program in it")
	}
	for _, s := range file.Sections {
		if s.Type == elf.SHT_REL && s.Name == ".rel"+textSection {
			return nil, errors.New("the program in .text uses maps or other functions; give it a section of its own: SEC(\"xdp\")")
		}
	}
	code, err := text.Data()
	if err != nil {
		return nil, err
	}
	p := &ebpf.ProgramSpec{Name: "text", ByteOrder: file.ByteOrder}
	if p.Instructions, err = asm.AppendInstructions(nil, bytes.NewReader(code), file.ByteOrder, "linux"); err != nil {
		return nil, fmt.Errorf("read .text: %w", err)
	}
	if license := file.Section("license"); license != nil {
		b, err := license.Data()
		if err != nil {
			return nil, err
		}
		p.License = strings.TrimRight(string(b), "\x00")
	}
	return p, nil
}
