package agent

import (
	"net/netip"

	"github.com/vethwall/vethwall/policy"
)

// enginesResolver is where a container asks it.
const enginesResolver = "127.0.0.11"

// resolverClosed says what a container may not ask the engine's resolver: where that asks a resolver on the host's loopback,
// it does so from the host, and no veth sees the query.
type resolverClosed struct{ udp, tcp bool }

// resolverState is what was last put into force, in which namespace.
type resolverState struct {
	resolverClosed
	path    string
	ifindex int
}

// closes is what s closes of resolvers on the host's loopback: each is asked by a protocol only where all of them may be.
func closes(s policy.Stack, loopback []netip.Addr) (c resolverClosed) {
	for _, a := range loopback {
		c.udp = c.udp || !mayAsk(s, "udp", a)
		c.tcp = c.tcp || !mayAsk(s, "tcp", a)
	}
	return c
}

// mayAsk reports whether the container may open a conversation with port 53 of a.
func mayAsk(s policy.Stack, proto string, a netip.Addr) bool {
	m, err := policy.ParseMatch("53/" + proto + "@" + a.String())
	if err != nil {
		return false
	}
	x, err := s.Explain(policy.Egress, m)
	return err == nil && (x.Reason == policy.Pass || x.Audited)
}

// closeResolver puts into force what c may not ask the engine's resolver. What it returns says that a way out is left.
func (a *agent) closeResolver(c *container, path string, ifindex int) []Interface {
	want := resolverState{c.want.resolver, path, ifindex}
	if c.want.waits || c.resolver == want {
		return nil
	}
	if err := a.kernel.CloseResolver(path, ifindex, want.udp, want.tcp); err != nil {
		return []Interface{{
			Network: enginesResolver, State: Partial,
			Error: "names can be asked for past the filter: the engine's resolver asks the host's loopback, and could not be closed: " + OneLine(err),
		}}
	}
	c.resolver = want
	return nil
}
