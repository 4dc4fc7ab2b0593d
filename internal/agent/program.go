package agent

import (
	"cmp"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

// Program is the operator's program, NAME[:SECTION], that has the XDP slot of a container with this policy: what the
// topmost source says that names one, "" where none does. An image's never counts.
func Program(stack policy.Stack) string {
	for _, source := range stack {
		if source.Policy.Program != "" {
			return source.Policy.Program
		}
	}
	return ""
}

// object is the operator's program of a container as it was when this run of the container began, or this agent did.
type object struct {
	name, sandbox string // what it was read for
	program       xdp.Program
	problem       string // why it could not be read
}

// readObject reads the operator's program that c asks for. One that could not be read is tried again.
func (a *agent) readObject(c *container) {
	o := &c.object
	if o.problem == "" && o.name == c.want.program && o.sandbox == c.SandboxID {
		return
	}
	*o = object{name: c.want.program, sandbox: c.SandboxID}
	if o.name == "" {
		return
	}
	var err error
	if o.program, err = a.readProgram(o.name); err != nil {
		o.problem = OneLine(err)
	}
}

// problem is why c has to be closed, "" where it has not.
func (c *container) problem() string { return cmp.Or(c.want.problem, c.object.problem) }
