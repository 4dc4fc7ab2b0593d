package xdp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
)

// A set of maps is used whole or not at all. Devices refer to policies by number, policies to nodes: with one map made
// anew among old ones, programs that are still attached would judge by what is written for others.

// Damage says what Open has found missing or foreign of what an agent before it had pinned, nil for nothing. Filters that are
// in force stay so, with the old maps, until Attach brings them to new ones.
func (f *Filter) Damage() error { return f.damage }

// setAside renames a set of maps of this version that is not whole. What it knows of devices that were set down is still read
// there, and Retire removes it.
func (f *Filter) setAside(spec *ebpf.CollectionSpec) error {
	dir := mapsDir(f.dir, spec)
	if entries, err := os.ReadDir(dir); errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	f.damage = unfit(dir, spec)
	if f.damage == nil {
		return nil
	}
	aside := dir + "-damaged"
	if _, err := os.Lstat(aside); err == nil {
		return os.RemoveAll(dir) // the first set was that of an agent, the next ones were half made
	}
	return os.Rename(dir, aside)
}

// unfit says which maps of a set are missing or somebody else's.
func unfit(dir string, spec *ebpf.CollectionSpec) error {
	var wrong []string
	for name, s := range spec.Maps {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if err == nil {
			err = s.Compatible(m)
			_ = m.Close()
		}
		if err != nil {
			wrong = append(wrong, name)
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	slices.Sort(wrong)
	return fmt.Errorf("maps that were pinned in %s are missing or somebody else's: %s", dir, strings.Join(wrong, ", "))
}

// inheritRecords takes the records over from the maps of other versions, and from those that were set aside: they are for people, and
// say what the kernel does not. What cannot be read is lost. An agent that was killed while it did so may have left some, until Retire; whose record it
// has written, or has deleted, is looked after as that of any other.
func (f *Filter) inheritRecords(own string) {
	dirs, _ := filepath.Glob(filepath.Join(f.dir, "maps-*"))
	dirs = slices.DeleteFunc(dirs, func(dir string) bool { return dir == own })
	if len(dirs) == 0 {
		return
	}
	have, err := f.Records()
	if err != nil {
		return
	}
	for _, dir := range dirs {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "containers"), nil)
		if err != nil {
			continue
		}
		if m.KeySize() == f.objs.Containers.KeySize() && m.ValueSize() == f.objs.Containers.ValueSize() {
			records, _ := readRecords(m)
			for id, text := range records {
				if text != nil && have[id] == nil {
					_ = f.SaveRecord(id, text)
				}
			}
		}
		_ = m.Close()
	}
}
