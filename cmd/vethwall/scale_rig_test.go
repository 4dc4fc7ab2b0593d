package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/vethwall/vethwall/internal/enginetest"
)

// scaleRig is a simulated host, and what its agent has said of containers, with the times.
type scaleRig struct {
	*enginetest.Simulated
	t *testing.T

	mu       sync.Mutex
	enforced map[string]time.Time // by name
	freed    map[string]time.Time // by port
	ready    time.Time
	rest     string // of a line

	noTCX bool // the kernel has none
}

func newScaleRig(t *testing.T, room int) *scaleRig {
	r := &scaleRig{t: t, Simulated: enginetest.Simulate(t, room), enforced: map[string]time.Time{}, freed: map[string]time.Time{}}
	r.Heard = r.hear
	return r
}

var (
	saidEnforced = regexp.MustCompile(`msg=(?:enforced|late) container=(\S+)`)
	saidFree     = regexp.MustCompile(`msg="a new port may send" port=(\S+)`)
)

func (r *scaleRig) hear(text string) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	text = r.rest + text
	end := strings.LastIndexByte(text, '\n') + 1
	r.rest = text[end:]
	for line := range strings.Lines(text[:end]) {
		if m := saidEnforced.FindStringSubmatch(line); m != nil {
			r.enforced[m[1]] = now
		}
		if m := saidFree.FindStringSubmatch(line); m != nil {
			r.freed[m[1]] = now
		}
		if strings.Contains(line, "ready:") {
			r.ready = now
		}
	}
}

// start starts an agent, and returns how long it takes until it has looked at everything.
func (r *scaleRig) start() time.Duration {
	r.t.Helper()
	return r.awaitReady(r.spawn())
}

// spawn starts an agent, and returns when.
func (r *scaleRig) spawn() time.Time {
	r.t.Helper()
	r.mu.Lock()
	clear(r.enforced)
	clear(r.freed)
	r.mu.Unlock()
	began := time.Now()
	r.SpawnAgent("-v")
	return began
}

func (r *scaleRig) awaitReady(began time.Time) time.Duration {
	r.t.Helper()
	r.AwaitLog("ready:")
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ready.Sub(began)
}

// count is how many containers the agent has enforced.
func (r *scaleRig) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.enforced)
}

// await returns when the agent has said something of a container or a port.
func (r *scaleRig) await(said map[string]time.Time, what string) time.Time {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		r.mu.Lock()
		at := said[what]
		r.mu.Unlock()
		if !at.IsZero() {
			return at
		}
	}
	r.t.Errorf("the agent says nothing of %s", what)
	return time.Now()
}

// footprint is what the process of the agent takes.
type footprint struct {
	cpu                                 time.Duration
	rss, peak                           int // KiB
	fds, threads, pins, devices, tables int
	policies, shared                    int // shared: the counter blocks that have a table or buckets
	block                               int // the highest counter block that a device has
}

func (r *scaleRig) footprint() (u footprint) {
	r.t.Helper()
	proc := filepath.Join("/proc", strconv.Itoa(r.AgentPid()))
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		r.t.Fatal(err)
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+2:]))
	for _, ticks := range f[11:13] { // utime, stime in 1/100 s
		n, _ := strconv.Atoi(ticks)
		u.cpu += time.Duration(n) * 10 * time.Millisecond
	}
	status, _ := os.ReadFile(filepath.Join(proc, "status"))
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		switch key {
		case "VmRSS":
			u.rss = n
		case "VmHWM":
			u.peak = n
		case "Threads":
			u.threads = n
		}
	}
	fds, _ := os.ReadDir(filepath.Join(proc, "fd"))
	pins, _ := os.ReadDir(filepath.Join(r.Dir, "links"))
	u.fds, u.pins = len(fds), len(pins)
	u.devices = r.inMap("devices", func(m *ebpf.Map, key uint32) bool {
		var entry uint64
		is := m.Lookup(key, &entry) == nil && entry != 0
		u.block = max(u.block, int(entry>>48))
		return is
	})
	u.policies = r.inMap("policies", func(m *ebpf.Map, key uint32) bool {
		entry := make([]byte, m.ValueSize())
		return m.Lookup(key, &entry) == nil && slices.Max(entry) > 0
	})
	u.shared = r.inMap("states", func(m *ebpf.Map, key uint32) bool {
		entry := make([]byte, m.ValueSize()) // a table and buckets, and the time of something
		return m.Lookup(key, &entry) == nil && slices.Max(entry[:8]) > 0
	})
	u.tables = r.inMap("answered", func(m *ebpf.Map, key uint32) bool {
		var id uint32
		return m.Lookup(key, &id) == nil
	})
	return u
}

// inMap is how many elements of an array there are that is pinned.
func (r *scaleRig) inMap(name string, is func(*ebpf.Map, uint32) bool) (n int) {
	r.t.Helper()
	found, _ := filepath.Glob(filepath.Join(r.Dir, "maps-*", name))
	if len(found) != 1 {
		r.t.Fatalf("map %s: %v", name, found)
	}
	m, err := ebpf.LoadPinnedMap(found[0], nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer m.Close()
	for key := range m.MaxEntries() {
		if is(m, key) {
			n++
		}
	}
	return n
}

func (u footprint) String() string {
	return fmt.Sprintf("CPU %v, RSS %d MiB, at most %d; %d fds, %d threads, %d pins, %d devices, %d tables, %d of them in use, %d policies",
		u.cpu, u.rss>>10, u.peak>>10, u.fds, u.threads, u.pins, u.devices, u.tables, u.shared, u.policies)
}

// goroutines ends the agent, and returns how many it had: the Go runtime lists them.
func (r *scaleRig) goroutines() (n int) {
	r.t.Helper()
	r.EndAgent(syscall.SIGQUIT)
	for line := range strings.Lines(r.Log()) {
		if strings.HasPrefix(line, "goroutine ") {
			n++
		}
	}
	return n
}

// plug plugs containers in, from the first to the last but one.
func (r *scaleRig) plug(from, to int, labels map[string]string) {
	r.t.Helper()
	for i := from; i < to; i++ {
		if _, err := r.Plug(i, labels); err != nil {
			r.t.Fatal(err)
		}
	}
}

// wear gives all containers labels, as if they had been made with them.
func (r *scaleRig) wear(n int, labels map[string]string) {
	for i := range n {
		r.Put(i, labels)
	}
}

// bareCost is what the kernel itself takes for n containers.
type bareCost struct {
	xdp, tcx, tables time.Duration
	each             []time.Duration // of the attaches at tcx
}

// slow reports whether the kernel takes long to attach at tcx: most do 8 ms and more, some 10 µs.
func (c bareCost) slow() bool { return c.tcx > time.Duration(len(c.each))*time.Millisecond }

func (c bareCost) String() string {
	return fmt.Sprintf("XDP %v, tables %v, tcx %v: %s", c.xdp, c.tables, c.tcx, quantiles(c.each))
}

// bare does what the kernel has to for the filters of n containers, one after the other, with programs that do nothing: it attaches
// generic XDP and both ways of tcx, and makes tables of conversations like those that the agent of before has pinned.
func (r *scaleRig) bare(n int, tables []*ebpf.MapSpec) (c bareCost) {
	r.t.Helper()
	indexes := r.indexes(n)
	var all []io.Closer
	attach := func(how func(index int) (link.Link, error)) error {
		for _, index := range indexes {
			at := time.Now()
			l, err := how(index)
			if err != nil {
				return err
			}
			all, c.each = append(all, l), append(c.each, time.Since(at))
		}
		return nil
	}
	err := r.Inside(func() error {
		began := time.Now()
		passes, err := bareProgram(ebpf.XDP, 2) // XDP_PASS
		if err != nil {
			return err
		}
		err = attach(func(index int) (link.Link, error) {
			return link.AttachXDP(link.XDPOptions{Interface: index, Program: passes, Flags: link.XDPGenericMode})
		})
		c.xdp, c.each = time.Since(began), nil
		began = time.Now()
		goesOn, why := bareProgram(ebpf.SchedCLS, -1) // TCX_NEXT
		err = errors.Join(err, why)
		for _, way := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			if err == nil {
				err = attach(func(index int) (link.Link, error) {
					return link.AttachTCX(link.TCXOptions{Interface: index, Program: goesOn, Attach: way})
				})
			}
		}
		c.tcx = time.Since(began)
		return err
	})
	if r.noTCX = errors.Is(err, ebpf.ErrNotSupported); err != nil && !r.noTCX {
		r.t.Fatal(err)
	}
	began := time.Now()
	for range n {
		for _, spec := range tables {
			m, err := ebpf.NewMap(spec)
			if err != nil {
				r.t.Fatal(err)
			}
			all = append(all, m)
		}
	}
	c.tables = time.Since(began)
	for _, one := range all {
		_ = one.Close()
	}
	return c
}

func bareProgram(of ebpf.ProgramType, verdict int32) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{Type: of, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()}})
}

// tables are what a container's conversations are kept in, as the agent makes them.
func (r *scaleRig) tables() (out []*ebpf.MapSpec) {
	r.t.Helper()
	for _, outer := range []string{"unanswered", "answered", "fragments"} {
		r.inMap(outer, func(m *ebpf.Map, key uint32) bool {
			var id ebpf.MapID
			if len(out) > 0 && out[len(out)-1].Name == outer || m.Lookup(key, &id) != nil {
				return false
			}
			inner, err := ebpf.NewMapFromID(id)
			if err != nil {
				r.t.Fatal(err)
			}
			defer inner.Close()
			out = append(out, &ebpf.MapSpec{Name: outer, Type: inner.Type(), KeySize: inner.KeySize(), ValueSize: inner.ValueSize(), MaxEntries: inner.MaxEntries(), Flags: inner.Flags()})
			return true
		})
	}
	if len(out) != 3 {
		r.t.Fatalf("%d tables: %v", len(out), out)
	}
	return out
}

// indexes are the ifindexes of ports.
func (r *scaleRig) indexes(n int) (out []int) {
	r.t.Helper()
	byName := map[string]int{}
	for _, l := range r.Links() {
		byName[l.Name] = l.Index
	}
	for i := range n {
		out = append(out, byName[enginetest.Port(i)])
	}
	return out
}

// quantiles are the median, the 99th percentile and the maximum.
func quantiles(of []time.Duration) string {
	slices.Sort(of)
	at := func(q float64) time.Duration {
		return of[min(len(of)-1, int(q*float64(len(of))))].Round(10 * time.Microsecond)
	}
	return fmt.Sprintf("median %v, 99th percentile %v, max %v (%d)", at(0.5), at(0.99), of[len(of)-1].Round(10*time.Microsecond), len(of))
}
