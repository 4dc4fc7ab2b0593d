package xdp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"go4.org/netipx"
)

// BenchmarkMemory measures what the kernel keeps for us, as it says itself in the fdinfo of maps and programs. It does not
// say so of links, of which a container has two or three.
func BenchmarkMemory(b *testing.B) {
	needPrivileges(b)
	f := open(b, bpffs(b))
	defer f.Close()
	m := &memoryRun{b: b, f: f, fixed: map[string]uint64{}}
	m.base()
	m.containers()
	m.state()
	m.rules()
	m.report()
	var raw strings.Builder
	for _, r := range m.rows {
		fmt.Fprintf(&raw, "%-60s %12.0f\n", r.name, r.bytes)
	}
	publish(b, "memory", raw.String(), map[string]string{"memory": m.table(), "targets-memory": targetTable(m.targets)})
}

// memoryRun collects figures, in bytes.
type memoryRun struct {
	b       *testing.B
	f       *Filter
	fixed   map[string]uint64 // of each map, before there are containers
	total   uint64            // of these and the programs
	rows    []memoryRow
	targets []target
}

type memoryRow struct {
	name  string
	bytes float64
}

func (m *memoryRun) add(name string, bytes float64) { m.rows = append(m.rows, memoryRow{name, bytes}) }

// maps are the filter's, by name, without those that are in others.
func (m *memoryRun) maps() map[string]*ebpf.Map {
	out := map[string]*ebpf.Map{}
	all := reflect.ValueOf(m.f.objs.filterMaps)
	for i := range all.NumField() {
		out[all.Type().Field(i).Tag.Get("ebpf")] = all.Field(i).Interface().(*ebpf.Map)
	}
	return out
}

func (m *memoryRun) sizeOf(x *ebpf.Map) uint64 {
	info, err := x.Info()
	must(m.b, err)
	bytes, known := info.Memlock()
	if !known {
		m.b.Fatalf("the kernel does not say how large %s is", x)
	}
	return bytes
}

// base adds what is there before any container.
func (m *memoryRun) base() {
	for _, p := range []*ebpf.Program{m.f.objs.VethwallXdp, m.f.objs.VethwallSent, m.f.objs.VethwallReceived} {
		info, err := p.Info()
		must(m.b, err)
		bytes, _ := info.Memlock()
		m.total += bytes
	}
	m.add("three programs", float64(m.total))
	var names []string
	for name, x := range m.maps() {
		m.fixed[name] = m.sizeOf(x)
		m.total += m.fixed[name]
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return int(m.fixed[b]) - int(m.fixed[a]) })
	for _, name := range names {
		m.add("map "+name, float64(m.fixed[name]))
	}
	m.add("all of these", float64(m.total))
}

// grown is by how much the maps have grown since base.
func (m *memoryRun) grown() (bytes uint64) {
	for name, x := range m.maps() {
		bytes += m.sizeOf(x) - m.fixed[name]
	}
	return bytes
}

// containers adds a thousand without state that have the same policy, each with addresses of its own and a record as status
// reads it.
func (m *memoryRun) containers() {
	t := labelled(m.b, "xdp.drop=udp")
	nodes := 0
	for i := range manyContainers {
		address := netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 14: byte(i >> 8), 15: byte(i)})
		own, err := CompileOwn([]netipx.IPRange{
			netipx.IPRangeFrom(address, address), netipx.MustParseIPRange("192.0.2.2-192.0.2.2"), netipx.MustParseIPRange("fe80::2-fe80::2"),
		})
		must(m.b, err)
		nodes += len(own.nodes)
		w := Want{Policy: t, Own: own, MAC: net.HardwareAddr{0, 0, 0x5e, 0, 0x53, 1}}
		must(m.b, m.f.maps.setPolicy(100_000+i, w, 0))
		must(m.b, m.f.SaveRecord(fmt.Sprintf("%064x", i), make([]byte, 1500)))
	}
	if n := len(m.f.maps.policies) - manyContainers; n != 1 {
		m.b.Fatalf("%d policies for containers that have the same, want 1", n)
	}
	m.add("one container's addresses, of the room in nodes and policies", float64(nodes*binary.Size(filterNode{}))/manyContainers+float64(binary.Size(filterPolicy{})))
	each := float64(m.grown()) / manyContainers
	share := float64(m.total)/manyContainers + each
	m.add("one of 1,000 containers without state, in addition", each)
	m.add("one of 1,000 containers without state, with its share of all of these", share)
	cpus := ebpf.MustPossibleCPU()
	m.targets = append(m.targets, target{
		fmt.Sprintf("a container without state at most 64 KiB and 4 KiB a CPU (here %d)", cpus),
		fmt.Sprintf("%.1f KiB of its own; with its share of what is there before any, %.1f KiB as one of 1,000", each/1024, share/1024),
		share <= float64(64<<10+cpus*4<<10),
	})
}

// state adds the tables of one container's conversations, empty and with as many as they hold.
func (m *memoryRun) state() {
	var empty, full float64
	for name, outer := range m.f.maps.states.outer() {
		var inner *ebpf.Map
		must(m.b, outer.Lookup(uint32(1), &inner))
		empty += float64(m.sizeOf(inner))
		key := make([]byte, inner.KeySize())
		for i := range inner.MaxEntries() {
			key[0], key[1] = byte(i), byte(i>>8)
			must(m.b, inner.Put(key, make([]byte, inner.ValueSize())))
		}
		m.add("one container's "+name+", full", float64(m.sizeOf(inner)))
		full += float64(m.sizeOf(inner))
		must(m.b, inner.Close())
	}
	m.add("one container's state, empty", empty)
	m.add("one container's state, full", full)
}

// rules adds what a rule takes of the room that is there for all, in lists of 10,000.
func (m *memoryRun) rules() {
	const n = 10000
	worst := 0.0
	for _, k := range kinds {
		t, err := compiled(draw(k.name, n).rules)
		must(m.b, err)
		each := float64(len(t.nodes)*binary.Size(filterNode{})) / n
		m.add("one of 10,000 rules, "+k.name, each)
		worst = max(worst, each)
	}
	m.targets = append(m.targets, target{"a rule at most 64 bytes", fmt.Sprintf("at most %.0f in lists of 10,000", worst), worst <= 64})
}

func (m *memoryRun) report() {
	for _, r := range m.rows {
		m.b.Run(r.name, func(b *testing.B) {
			b.ReportMetric(0, "ns/op") // not printed
			b.ReportMetric(r.bytes, "bytes")
		})
	}
}

func (m *memoryRun) table() string {
	var out strings.Builder
	fmt.Fprint(&out, "| what | bytes |\n|---|--:|\n")
	for _, r := range m.rows {
		fmt.Fprintf(&out, "| %s | %s |\n", r.name, thousands(r.bytes, 0))
	}
	return out.String()
}
