package agent

import (
	"encoding/json"
	"slices"

	"github.com/vethwall/vethwall/xdp"
)

// State is how far a container or an interface is enforced.
type State string

// The states, from the best to the worst; a container has the worst of its interfaces. One that is closed is better than one
// that is open against what the container asks for: a container is called closed only where nothing of it is open.
const (
	Enforced    State = "enforced"
	Audit       State = "audit"       // judged and counted, and some of it not carried out
	Late        State = "late"        // enforced, but the veth had sent before
	Quarantined State = "quarantined" // closed
	Partial     State = "partial"     // something stands in the policy's place, or a way out that no hook sees
	Pending     State = "pending"     // not there yet
	Unsupported State = "unsupported" // nothing to attach to
)

var states = []State{Enforced, Audit, Late, Quarantined, Partial, Pending, Unsupported}

// Worst is the worst of two states.
func Worst(a, b State) State {
	if slices.Index(states, a) > slices.Index(states, b) {
		return a
	}
	return b
}

// Record is what the agent knows of a container that asks for a filter and runs. It stands in the kernel beside
// the filter, so that status answers when no agent runs.
type Record struct {
	ID         string           `json:"id"`
	Name       string           `json:"name"`
	State      State            `json:"state"`
	Policy     string           `json:"policy"`
	Error      string           `json:"error"`
	Warnings   []string         `json:"warnings"`
	Holds      bool             `json:"holds"`
	Loophole   string           `json:"loophole,omitempty"`
	Program    string           `json:"program,omitempty"` // the operator's: NAME[:SECTION]
	Joined     stay             `json:"joined,omitzero"`
	Upstream   upstream         `json:"upstream,omitzero"`
	Rules      [2][]xdp.Counted `json:"rules"`              // by direction and counter slot
	Receives   bool             `json:"receives"`           // what it receives is judged, too
	Resolver   string           `json:"resolver,omitempty"` // the namespace in which the engine's is closed to it
	Interfaces []Interface      `json:"interfaces"`
}

// Interface is one network of a container.
type Interface struct {
	Network string `json:"network"`
	State   State  `json:"state"`
	Error   string `json:"error,omitempty"`
	Ifname  string `json:"host_ifname,omitempty"`
	Ifindex int    `json:"host_ifindex,omitempty"`
	// Late is how many packets the veth had sent when its filter came.
	Late uint64 `json:"late,omitempty"`
}

// ParseRecord reads what encode has written.
func ParseRecord(text []byte) (Record, error) {
	var r Record
	err := json.Unmarshal(text, &r)
	return r, err
}

func (r Record) encode() []byte {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return text
}

// settle makes the container's state the worst of its interfaces'.
func (r *Record) settle() {
	r.State = Enforced
	if len(r.Interfaces) == 0 {
		r.State = Pending
	}
	for _, i := range r.Interfaces {
		r.State = Worst(r.State, i.State)
	}
}
