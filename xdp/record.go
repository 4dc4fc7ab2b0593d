package xdp

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/cilium/ebpf"
)

// Records stand in the map `containers`: for each container id a text of any length, cut into parts. Part 0 begins
// with the length of the text and its CRC-32, 4 bytes each, little endian, so that a reader notices a
// text that is being written.

const recordHeader = 8

// SaveRecord replaces the record of a container, given by its 64 hex digits.
func (f *Filter) SaveRecord(id string, text []byte) error {
	key, err := recordKey(id)
	if err != nil {
		return err
	}
	data := make([]byte, recordHeader, recordHeader+len(text))
	binary.LittleEndian.PutUint32(data, uint32(len(text)))
	binary.LittleEndian.PutUint32(data[4:], crc32.ChecksumIEEE(text))
	data = append(data, text...)
	for ; len(data) > 0; key.Part++ {
		var part filterRecordPart
		data = data[copy(part.Data[:], data):]
		if err := f.objs.Containers.Put(key, part); err != nil {
			return fmt.Errorf("record of container %s: %w", id, err)
		}
	}
	return f.cutRecord(key)
}

// DeleteRecord removes a record, a damaged one too; one that is not there is no error.
func (f *Filter) DeleteRecord(id string) error {
	key, err := recordKey(id)
	if err != nil {
		return err
	}
	var part filterRecordPart
	if err := f.objs.Containers.Lookup(key, &part); !errors.Is(err, ebpf.ErrKeyNotExist) {
		return f.cutRecord(key)
	}
	// Nothing, or parts of one that begins nowhere.
	parts, err := recordParts(f.objs.Containers)
	for n := range parts[id] {
		key.Part = n
		err = errors.Join(err, f.objs.Containers.Delete(key))
	}
	return err
}

// cutRecord deletes the parts from key on, the last one first: wherever it ends, no part is left without those before it.
func (f *Filter) cutRecord(key filterRecordKey) error {
	var part filterRecordPart
	end := key
	for f.objs.Containers.Lookup(end, &part) == nil {
		end.Part++
	}
	for end.Part > key.Part {
		end.Part--
		if err := f.objs.Containers.Delete(end); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete a record: %w", err)
		}
	}
	return nil
}

// Records are all records by container id.
func (f *Filter) Records() (map[string][]byte, error) { return readRecords(f.objs.Containers) }

// readRecords reads the records; one that is damaged has the value nil.
func readRecords(m *ebpf.Map) (map[string][]byte, error) {
	parts, err := recordParts(m)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for id, p := range parts {
		out[id] = joinRecord(p)
	}
	return out, nil
}

// recordParts are the parts of all records, by container id and number.
func recordParts(m *ebpf.Map) (map[string]map[uint32]filterRecordPart, error) {
	parts := map[string]map[uint32]filterRecordPart{}
	err := readMap(m, func(key filterRecordKey, part filterRecordPart) {
		id := hex.EncodeToString(key.Container[:])
		if parts[id] == nil {
			parts[id] = map[uint32]filterRecordPart{}
		}
		parts[id][key.Part] = part
	})
	return parts, err
}

func joinRecord(parts map[uint32]filterRecordPart) []byte {
	var data []byte
	for i := uint32(0); ; i++ {
		part, ok := parts[i]
		if !ok {
			break
		}
		data = append(data, part.Data[:]...)
	}
	if len(data) < recordHeader {
		return nil
	}
	size := binary.LittleEndian.Uint32(data)
	sum := binary.LittleEndian.Uint32(data[4:])
	if data = data[recordHeader:]; uint64(size) > uint64(len(data)) || crc32.ChecksumIEEE(data[:size]) != sum {
		return nil
	}
	return data[:size]
}

func recordKey(id string) (key filterRecordKey, err error) {
	raw, err := hex.DecodeString(id)
	if err != nil || len(raw) != len(key.Container) {
		return key, fmt.Errorf("container id %q is not 64 hex digits", id)
	}
	copy(key.Container[:], raw)
	return key, nil
}
