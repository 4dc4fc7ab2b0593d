package agent

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/policy"
)

// enginesResolver is where a container asks it.
const enginesResolver = "127.0.0.11"

const dnsPort = 53

// resolverClosed says what a container may not ask the engine's resolver: where that asks a resolver from the host
// (docker.FromHost), no veth sees the query.
type resolverClosed struct{ udp, tcp bool }

// resolverState is what was last put into force, in which namespace.
type resolverState struct {
	resolverClosed
	path    string
	ifindex int
}

// upstream are the resolvers that an engine was told of when a run of the container began, or may have been: it goes on asking
// them from the host, whatever the host's resolv.conf says later.
type upstream struct {
	Sandbox   string       `json:"sandbox"`
	Resolvers []netip.Addr `json:"resolvers,omitempty"`
}

// surroundingsOf is what is known for c now, and was of its resolvers in this run of it; the last thing that was known before it
// began may belong to that, or what is known now.
func (a *agent) surroundingsOf(c *container) known {
	if c.SandboxID != "" && c.upstream.Sandbox != c.SandboxID { // it has begun
		a.seeResolvers()
	}
	var before []netip.Addr
	switch {
	case c.SandboxID == "":
	case c.upstream.Sandbox == c.SandboxID:
		before = c.upstream.Resolvers
	case c.upstream.Sandbox == "":
		before = slices.Concat(c.upstream.Resolvers, a.around.of(c.Container, nil).fromHost)
	}
	k := a.around.of(c.Container, before)
	if a.around.host != nil {
		c.upstream = upstream{c.SandboxID, k.fromHost}
	}
	return k
}

// closes is what s closes of resolvers that are asked from the host: each is asked by a protocol only where all of them may be, as
// often as anybody likes. limited says that a limit is a reason. A limit of all that is sent, or of a protocol, closes nothing: who sets one does not
// mean names. slips says that there is one.
func closes(s policy.Stack, fromHost []netip.Addr) (c resolverClosed, limited, slips bool) {
	closed := func(proto uint8, a netip.Addr) bool {
		may, limits, inAll := s.LetsAsk(proto, dnsPort, a)
		limited, slips = limited || limits, slips || inAll
		return !may || limits
	}
	for _, a := range fromHost {
		udp, tcp := closed(unix.IPPROTO_UDP, a), closed(unix.IPPROTO_TCP, a)
		c = resolverClosed{c.udp || udp, c.tcp || tcp}
	}
	return c, limited, slips
}

const slipsPast = "the engine asks the host's resolvers from the host, past every limit: what the container asks its own at 127.0.0.11 counts against none; limit port 53 to close it"

// whyClosed warns of a resolver that is closed.
func whyClosed(fromHost []netip.Addr, limited bool) string {
	who, allow := "the host's resolvers", "allow dns"
	if slices.Contains(fromHost, somebody) {
		who, allow = "resolvers that /etc/resolv.conf did not name when the container was seen first", "start it again when that names some"
	}
	if limited {
		allow += " and limit only other ports than 53"
	}
	return "the engine asks " + who + " from the host, past every rule and limit: its own at 127.0.0.11 is closed to the container, names of other containers included; " +
		allow + ", or give the container a resolver with docker run --dns ADDRESS"
}

// closedFromHost is what c may not ask of the engine's resolver because that would ask it from the host; it need not have that yet.
func (c *container) closedFromHost() resolverClosed {
	if !c.asks || len(c.known.fromHost) == 0 {
		return resolverClosed{}
	}
	return c.want.resolver
}

// closeResolverTo is closeResolver by the container's id alone, as soon as it is known what it wants: its first query is held, too,
// and so is what it asks until somebody finds its namespace, or hears that it has joined a network that has the resolver. It outlives
// the agent. Of one in another's network the other's labels hold.
func (a *agent) closeResolverTo(c *container) {
	closed, ifindex := c.closedFromHost(), 0
	if shares(c.NetworkMode) {
		closed = resolverClosed{}
	}
	if closed != (resolverClosed{}) && c.want.waits && c.Running { // what is in force stays
		return
	}
	if c.Running && len(c.devices) > 0 {
		ifindex = c.devices[0]
	}
	err := a.kernel.CloseResolverTo(c.ID, ifindex, closed.udp, closed.tcp)
	if closed != (resolverClosed{}) {
		a.complain(&a.askerTrouble, err, "cannot close the engine's resolver to containers by their cgroups: what one asks at once when it starts may pass")
	}
}

// closeResolver puts into force what c may not ask the engine's resolver. What it returns says that a way out is left.
func (a *agent) closeResolver(c *container, path string, ifindex int) []Interface {
	a.closeResolverTo(c)
	// Of one that has no such resolver yet, too: when it joins a network that has it, it could ask by raw frames on lo, which no cgroup sees, before
	// anybody hears of that.
	want := resolverState{path: path, ifindex: ifindex, resolverClosed: c.closedFromHost()}
	if c.known.hasResolver {
		want.resolverClosed = c.want.resolver
	}
	if !c.want.waits && want.resolverClosed != (resolverClosed{}) && c.resolver == want && !a.kernel.ResolverStands(path) {
		a.log.Error("somebody had taken off what closes the engine's resolver, which takes CAP_SYS_ADMIN; it is put back", "container", c.Name, "id", short(c.ID))
		c.resolver = resolverState{}
	}
	if !c.want.waits && c.resolver != want {
		err := a.kernel.CloseResolver(path, ifindex, want.udp, want.tcp)
		if err != nil && !c.known.hasResolver {
			return nil // tried again at the next look
		}
		if err != nil {
			return namesPass("and could not be closed: " + OneLine(err))
		}
		c.resolver = want
	}
	if c.reopensResolver() {
		return namesPass("and the container, or one that shares its network, has CAP_NET_ADMIN: it can rewrite there what is sent, behind what " +
			"closes the resolver; start it without --privileged and --cap-add NET_ADMIN, or give it a resolver with docker run --dns ADDRESS")
	}
	return nil
}

// namesPass says that a way out is left by the engine's resolver.
func namesPass(why string) []Interface {
	return []Interface{{
		Network: enginesResolver, State: Partial,
		Error: "names can be asked for past the filter: the engine's resolver asks others from the host, " + why,
	}}
}

// reopensResolver reports whether what closes the engine's resolver to c does not hold it although a filter on its veth does: with
// CAP_NET_ADMIN in a user namespace of its own it can lay rules in its network namespace that make another destination of what it
// sends after every program has judged it. Without one of its own nothing holds it (Loophole), and that is said instead.
func (c *container) reopensResolver() bool {
	return c.known.hasResolver && c.closedFromHost() != (resolverClosed{}) && c.UserNS && (netAdmin(c.Container) || c.known.sharing.NetAdmin)
}

// closeResolverEarly closes the engine's resolver to a container before its process runs, where it has to be closed, so that it stays
// closed whatever becomes of this agent. It is false until that can be done: engines before 28 move a port's other end
// into the namespace late. Where it cannot be done at all the look at the running container does it, and says what it cannot.
func (a *agent) closeResolverEarly(c *container, p *port) bool {
	closed := c.closedFromHost()
	switch {
	case closed == resolverClosed{} || !c.known.hasResolver:
		return true
	case p.NsID < 0:
		return false
	case !p.looked:
		p.enter = true
		a.lookInside()
		return false
	}
	for _, pid := range p.pids {
		process := filepath.Join(a.proc, strconv.Itoa(pid))
		// The number may be another's by now.
		if group, err := os.ReadFile(filepath.Join(process, "cgroup")); err != nil || !bytes.Contains(group, []byte(c.ID)) {
			continue
		}
		path := filepath.Join(process, "ns/net")
		err := a.kernel.CloseResolver(path, p.Index, closed.udp, closed.tcp)
		a.complain(&a.resolverTrouble, err, "cannot close the engine's resolver before a container runs", "container", c.Name, "id", short(c.ID))
		if err == nil {
			break
		}
	}
	return true
}
