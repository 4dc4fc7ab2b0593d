package agent

import (
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/vethwall/vethwall/xdp"
)

// fakeHold holds the ports of a bridge that the test plugs in, and keeps what their namespaces hold.
type fakeHold struct {
	mu       sync.Mutex
	ports    map[int]xdp.Port
	macs     map[int]net.HardwareAddr
	pids     map[int][]int // by nsid
	released map[int]bool
	way      xdp.Held
	unseen   uint64 // of a port that an XDP program holds
	beats    int
	prepared []string
	rest     *xdp.Rest // what prepares a port
	lapsed   bool
	fail     map[string]error
	// releasing is called before a port is released; nil for nothing.
	releasing func(ifindex int)
	guarded   map[int]bool
	gotPast   uint64
}

func newFakeHold() *fakeHold {
	return &fakeHold{
		ports: map[int]xdp.Port{}, macs: map[int]net.HardwareAddr{}, pids: map[int][]int{}, released: map[int]bool{},
		way: xdp.HeldNFT, fail: map[string]error{}, guarded: map[int]bool{},
	}
}

func (h *fakeHold) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
}

func (h *fakeHold) Way() (xdp.Held, error) { return h.way, h.fail["way"] }

func (h *fakeHold) Sync(ports []xdp.Port) (held []xdp.Port, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range ports {
		if !h.released[p.Index] {
			held = append(held, p)
		}
	}
	return held, h.fail["sync"]
}

func (h *fakeHold) Arrived(p xdp.Port) (bool, error) { return !h.Known(p.Index), h.fail["arrived"] }

func (h *fakeHold) Known(ifindex int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.released[ifindex]
}

func (h *fakeHold) Unseen(ifindex int) (uint64, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, port := h.ports[ifindex]
	return h.unseen, port && !h.released[ifindex]
}

func (h *fakeHold) Prepare(ifindex int, sent, received bool) (*xdp.Rest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.prepared = append(h.prepared, fmt.Sprintf("%d sent %t received %t", ifindex, sent, received))
	return h.rest, h.fail["prepare"]
}

func (h *fakeHold) Release(ifindexes ...int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, i := range ifindexes {
		if h.releasing != nil {
			h.releasing(i)
		}
		h.released[i] = true
	}
	return h.fail["release"]
}

func (h *fakeHold) Forget(ifindexes ...int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, i := range ifindexes {
		if _, there := h.ports[i]; !there {
			delete(h.released, i)
		}
	}
	return nil
}

func (h *fakeHold) Refresh() (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.beats++
	lapsed := h.lapsed
	if lapsed {
		h.lapsed = false
		for i := range h.ports {
			h.released[i] = true
		}
	}
	return lapsed, h.fail["refresh"]
}

// count is how often it was refreshed.
func (h *fakeHold) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.beats
}

func (h *fakeHold) Mend() error { return h.fail["mend"] }

func (h *fakeHold) Guard(ifindex int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guarded[ifindex] = h.way == xdp.HeldNFT
	return h.fail["guard"]
}

func (h *fakeHold) Unguard(ifindex int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.guarded, ifindex)
	return nil
}

func (h *fakeHold) Guarded(ifindex int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.guarded[ifindex]
}

func (h *fakeHold) GotPast() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gotPast
}

func (h *fakeHold) list() (out []xdp.Port) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.ports {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b xdp.Port) int { return a.Index - b.Index })
	return out
}

func (h *fakeHold) mac(p xdp.Port) net.HardwareAddr {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.macs[p.Index]
}

func (h *fakeHold) processes(_ string, nsids []int) (map[int][]int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[int][]int{}
	for _, nsid := range nsids {
		if pids := h.pids[nsid]; pids != nil {
			out[nsid] = pids
		}
	}
	return out, h.fail["processes"]
}
