package agent

import (
	"slices"
	"testing"
	"time"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/xdp"
)

// listsBeside lets a test have an agent ask for the host's links beside its loop: the next list is what there is now, and comes when what it returns
// is closed; with err it fails.
func (r *rig) listsBeside(err error) (gate chan struct{}) {
	gate = make(chan struct{})
	first, list := true, r.agent.list
	r.agent.list = func() (links, error) {
		l, why := list()
		if first {
			first = false
			if <-gate; err != nil {
				return links{}, err
			}
		}
		return l, why
	}
	return gate
}

// hostIsRead counts how often the host is read from now on.
func (r *rig) hostIsRead() *int {
	n, read := new(int), r.agent.readHost
	r.agent.readHost = func(l xdp.Links) (*host, error) { *n++; return read(l) }
	return n
}

// Who has become dirty while a list is on its way is looked at with it, and once more with the next one. Others are looked at once.
func TestDirtyWhileListing(t *testing.T) {
	for _, again := range []bool{true, false} {
		c := box(10, true, "xdp.drop=udp")
		inTime(t, []docker.Container{c}, listBridge, func(r *rig) {
			r.want(c, enforced10)
			gate, n, want := r.listsBeside(nil), r.calls(), []int{10}
			r.tells(xdp.Change{Index: 10, NsID: 10})
			if again {
				r.after(rousePause)
				r.tells(xdp.Change{Index: 10, NsID: 10})
				want = []int{10, 10}
			}
			if got := r.looks(n); len(got) > 0 {
				t.Errorf("looked at %v before the list came", got)
			}
			close(gate)
			r.after(time.Millisecond)
			if got := r.looks(n); !slices.Equal(got, want) {
				t.Errorf("looked at %v, want %v", got, want)
			}
		})
	}
}

// A list that is older than a message of a port changes nothing of that one; of which nobody has told since, it has the word.
func TestListOlderThanPorts(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, func(r *rig) {
		listBridge(r)
		for _, index := range []int{6, 7} {
			r.kernel.hold.ports[index], r.kernel.hold.released[index] = near(index), true
		}
	}, func(r *rig) {
		gate := r.listsBeside(nil)
		r.port(near(5), nil)
		r.tells(xdp.Change{Index: 10, NsID: 10})
		r.agent.tell(func() { r.agent.ports[9] = near(9) }) // the list does not have it
		r.kernel.hold.set(func() { r.kernel.hold.ports[8] = near(8); delete(r.kernel.hold.ports, 7) })
		r.tells(xdp.Change{Index: 8, NsID: -1, Port: near(8)}, xdp.Change{Index: 7, NsID: -1, Gone: true})
		close(gate)
		r.after(time.Millisecond)
		for index, want := range map[int]bool{5: true, 6: true, 7: false, 8: true, 9: false} {
			if _, got := r.agent.ports[index]; got != want {
				t.Errorf("port %d is there: %t, want %t", index, got, want)
			}
		}
	})
}

// News of the host's addresses are looked after with a list that is asked for beside the loop, also where another list comes first.
func TestHostIsListedBeside(t *testing.T) {
	for name, tc := range map[string]struct {
		host, overtaken bool
		reads           int
	}{"its own list": {true, false, 1}, "another list": {true, true, 1}, "nothing of the host's": {false, false, 0}} {
		c := box(10, true, "xdp.drop=host")
		inTime(t, []docker.Container{c}, listBridge, func(r *rig) {
			gate, reads := r.listsBeside(nil), r.hostIsRead()
			r.tells(xdp.Change{Index: 10, NsID: 10, Host: tc.host})
			if tc.overtaken {
				r.agent.doorbell()
				r.after(0)
				if *reads != tc.reads {
					t.Errorf("%s: read %d times before the first list came, want %d", name, *reads, tc.reads)
				}
			}
			close(gate)
			r.after(time.Second)
			if *reads != tc.reads {
				t.Errorf("%s: read %d times, want %d", name, *reads, tc.reads)
			}
		})
	}
}

// Where the links cannot be listed, those that were to be looked at with them are a second later.
func TestListBesideFails(t *testing.T) {
	c := box(10, true, "xdp.drop=udp")
	inTime(t, []docker.Container{c}, listBridge, func(r *rig) {
		r.want(c, enforced10)
		gate, n := r.listsBeside(errGone), r.calls()
		r.tells(xdp.Change{Index: 10, NsID: 10})
		close(gate)
		r.after(time.Second - time.Millisecond)
		if got := r.looks(n); len(got) > 0 {
			t.Errorf("looked at %v without a list", got)
		}
		r.after(2 * time.Millisecond)
		if got := r.looks(n); !slices.Equal(got, []int{10}) {
			t.Errorf("looked at %v", got)
		}
	})
}
