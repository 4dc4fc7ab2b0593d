package agent

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go4.org/netipx"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

// want is what a container asks for. It follows from what Docker says of the container, from its groups and from the
// configuration.
type want struct {
	policy string // canonical text, with the origin of each part where there are several
	// tables is nil where the container must be closed, because of problem.
	tables  *xdp.Tables
	problem string
	// live says that tables depend on groups, and waits that these are not known: a filter that is there may stay.
	live, waits bool
	mode        xdp.Mode
	// both: what it sends may get around one hook. pastBoth: and somebody in there may combine that to get around both at once, so
	// that its ports are to be guarded.
	both, pastBoth bool
	// raw: somebody in there may send frames of his own making.
	raw bool
	// program is the operator's, "" for none.
	program string
	// audits: some source of the policy is in audit mode.
	audits bool
	// antispoof: packets must carry the container's own addresses, and those in own are its own as well.
	antispoof bool
	own       []netipx.IPRange
	// resolver is what it may not ask of the engine's resolver.
	resolver resolverClosed
	warnings []string
	// holds is false where no filter on a veth holds the container; loophole says why.
	holds    bool
	loophole string
}

// compile is xdp.Compile for a stack that may name groups.
func compile(s policy.Stack, g policy.Groups) (*xdp.Tables, error) { return xdp.Compile(g.Resolve(s)) }

// compiled is what a stack was compiled to.
type compiled struct {
	groups policy.Groups
	tables *xdp.Tables
	err    error
}

// mostCompiled bounds how many sets of groups one stack is remembered with: containers of one network have the same.
const mostCompiled = 128

// compile remembers for a while what it has compiled: a host's containers ask for few different policies.
func (a *agent) compile(s policy.Stack, g policy.Groups) (*xdp.Tables, error) {
	key, live := "", s.Live()
	for _, source := range s {
		key += fmt.Sprintf("%s(%s)\n", source.Origin, source.Policy.Text())
	}
	for _, c := range a.compiled[key] {
		if !live || c.groups.Equal(g) {
			return c.tables, c.err
		}
	}
	t, err := compile(s, g)
	if len(a.compiled[key]) < mostCompiled { // what is too complex takes as long
		a.compiled[key] = append(a.compiled[key], compiled{g, t, err})
	}
	return t, err
}

// decide works out what c asks for, from k, and closes at once what needs neither its namespace nor a veth.
func (a *agent) decide(c *container, k known) {
	c.want, c.asks = wanted(c.Container, k, a.around.conf, a.compile)
	c.known = k.needed(c.want.live)
	a.closeResolverTo(c)
}

// wanted is what c asks for; false where it asks for nothing.
func wanted(c docker.Container, k known, conf config.Config, compile func(policy.Stack, policy.Groups) (*xdp.Tables, error)) (want, bool) {
	stack, asks, warnings, err := Stack(c, conf)
	if !asks {
		return want{}, false
	}
	w := want{policy: StackText(stack), live: stack.Live(), mode: xdp.Auto, warnings: warnings, holds: true}
	if err == nil {
		w.tables, err = compile(stack, k.groups)
	}
	switch {
	case err != nil:
		w.tables, w.problem = nil, OneLine(err)
	case w.live && k.missing != "":
		w.tables, w.waits, w.problem = nil, true, "who is in its groups is not known: "+k.missing
	}
	limited, slips := false, false
	if len(k.fromHost) > 0 {
		w.resolver, limited, slips = closes(k.withResolver(k.groups).Resolve(stack), k.fromHost)
	}
	if w.tables == nil {
		w.resolver = resolverClosed{true, true}
	}
	if w.resolver != (resolverClosed{}) && w.tables != nil && k.hasResolver {
		w.warnings = append(w.warnings, whyClosed(k.fromHost, limited))
	}
	if slips && w.tables != nil && k.hasResolver && (!w.resolver.udp || !w.resolver.tcp) {
		w.warnings = append(w.warnings, slipsPast)
	}
	w.both, w.program = detours(c) || k.sharing.Both, Program(stack)
	w.raw = sendsRaw(c) || k.sharing.Raw
	w.pastBoth = netAdmin(c) || c.MayRemap || k.sharing.NetAdmin
	for i := range stack {
		w.audits = w.audits || stack.Audited(i)
	}
	if len(stack) > 0 { // what a source says holds for it and those after it, so the first decides
		w.antispoof, w.own = !stack[0].Policy.AntispoofOff, stack[0].Policy.Own
	}
	if hook := Hook(stack, conf); hook != policy.HookAuto {
		w.mode = xdp.Mode(hook.String())
	}
	w.loophole = cmp.Or(Loophole(c, stack), k.sharing.Loophole)
	if w.loophole == "" && w.both && w.program != "" {
		w.loophole = programLoophole
	}
	if w.loophole != "" {
		w.holds = false
		w.warnings = append(w.warnings, w.loophole)
	}
	return w, true
}

// StackText is the canonical text of a stack: that of its only source, if that is labels, or each with its origin.
func StackText(s policy.Stack) string {
	if len(s) == 1 && (s[0].Origin == originLabels || s[0].Origin == originImage) {
		return s[0].Policy.Text()
	}
	var parts []string
	for _, source := range s {
		parts = append(parts, fmt.Sprintf("%s(%s)", source.Origin, source.Policy.Text()))
	}
	return strings.Join(parts, " ")
}

// Loophole says why no filter on a veth holds a container with this policy, "" where one does. What needs two hooks is not held
// where a program of the operator's has one of them.
func Loophole(c docker.Container, stack policy.Stack) string {
	capability, how, options := overrides(c)
	switch {
	case capability != "":
		return fmt.Sprintf("the container has %s, so no filter on its veth holds it: %s; start it without %s", capability, how, options)
	case seesOthers(c):
		return processLoophole
	case Program(stack) != "" && detours(c):
		return programLoophole
	}
	return ""
}

// overrides says by which of its capabilities no filter on a veth holds c, and how, and by which options it has it. With
// CAP_NET_ADMIN over the host's user namespace it reaches the host's devices by netlink. Links of BPF go by numbers for the whole host.
func overrides(c docker.Container) (capability, how, options string) {
	switch {
	case c.UserNS:
	case netAdmin(c):
		return "CAP_NET_ADMIN", "it can reach the host's devices past it", "--privileged and --cap-add NET_ADMIN"
	case slices.Contains(c.CapAdd, "SYS_ADMIN"):
		return "CAP_SYS_ADMIN", "it can take it off, and those of others", "--cap-add SYS_ADMIN"
	case slices.Contains(c.CapAdd, "SYS_MODULE"):
		return "CAP_SYS_MODULE", "it can load code into the kernel", "--cap-add SYS_MODULE"
	}
	return "", "", ""
}

// seesOthers reports whether c sees processes of other containers, or of the host.
func seesOthers(c docker.Container) bool { return c.PidMode == "host" || joins(c.PidMode) }

// processDetour is how one that sees others' processes gets past its filter.
const processDetour = "it can have one of the same user send from another network (ptrace)"

const processLoophole = "the container sees processes of others (--pid), so no filter on its veth holds it: " + processDetour + "; start it without --pid"

const programLoophole = "what the container sends can get around one hook, by CAP_NET_ADMIN or by its runtime, and xdp.program takes the other from the policy; remove xdp.program"

// netAdmin reports whether c may configure its own network namespace.
func netAdmin(c docker.Container) bool {
	return c.Privileged || slices.Contains(c.CapAdd, "NET_ADMIN") || slices.Contains(c.CapAdd, "ALL")
}

// sendsRaw reports whether somebody in c may send frames of his own making: by CAP_NET_RAW, which Docker gives where nothing else is said. Of one that
// has only been outlined that is so.
func sendsRaw(c docker.Container) bool {
	drops := slices.Contains(c.CapDrop, "ALL") || slices.Contains(c.CapDrop, "NET_RAW")
	return netAdmin(c) || slices.Contains(c.CapAdd, "NET_RAW") || !drops
}

// plainRuntimes give a container no more than its own end of the veth. "" is an engine that does not say.
var plainRuntimes = []string{"", "runc", "crun", "io.containerd.runc.v2", "io.containerd.runtime.v1.linux"}

// detours reports whether what c sends may get around one hook: by redirects of its own making, or by those that its
// runtime is wired with, as Kata's are. Of one that has only been outlined that is what may be.
func detours(c docker.Container) bool {
	return netAdmin(c) || c.MayRemap || slices.ContainsFunc(append(slices.Clone(c.MayRun), c.Runtime), func(r string) bool { return !slices.Contains(plainRuntimes, r) })
}

const noNetwork = "the container has no network: there is nothing to filter"

// Obstacles are the networks of a container that have nothing to attach to, and why, in words.
func Obstacles(c docker.Container) []Interface {
	why := ""
	switch {
	case joins(c.NetworkMode):
		why = fmt.Sprintf("shares the network of container %.12s: only that container's labels hold", ownerOf(c))
	case c.NetworkMode == "host":
		why = "shares the host's network: there is no veth to filter"
	case c.NetworkMode == "none" && len(c.Networks) == 0:
		why = noNetwork
	}
	if why != "" {
		return []Interface{{Network: c.NetworkMode, State: Unsupported, Error: why}}
	}
	out := []Interface{}
	for _, e := range c.Networks {
		if why := unfilteredDriver(e); why != "" {
			out = append(out, Interface{Network: e.Network, State: Unsupported, Error: why})
		}
	}
	return out
}

// waysOut turns what has nothing to attach to, in a container that has a veth as well, into a way out that no hook sees.
func waysOut(obstacles, attached []Interface) []Interface {
	if !slices.ContainsFunc(attached, func(i Interface) bool { return i.Ifindex != 0 }) {
		return obstacles
	}
	for i := range obstacles {
		obstacles[i].State, obstacles[i].Error = Partial, "a way out that no hook sees: "+obstacles[i].Error
	}
	return obstacles
}

// shares reports whether a container has no network namespace of its own. What else its network mode says holds only until
// it joins another network: Docker keeps the mode.
func shares(mode string) bool { return mode == "host" || joins(mode) }

// unfilteredDriver says why a network has no veth of the host's, "" for one that has.
func unfilteredDriver(e docker.Endpoint) string {
	switch e.Driver {
	case "bridge", "":
		return ""
	case "null":
		return noNetwork
	case "overlay":
		return fmt.Sprintf("network %s is overlay, which keeps its veths in a namespace of its own: this version does not filter there", e.Network)
	}
	return fmt.Sprintf("network %s is %s, without a veth: there is nothing to filter", e.Network, e.Driver)
}

// place pairs the veths of a container with its networks, by the bridge that a veth is a port of.
func place(networks []docker.Endpoint, veths []xdp.Veth, bridge func(docker.Endpoint) string) map[int]string {
	names := map[int]string{}
	var open []string
	for _, e := range networks {
		if unfilteredDriver(e) != "" {
			continue
		}
		i := slices.IndexFunc(veths, func(v xdp.Veth) bool { return v.Bridge != "" && v.Bridge == bridge(e) })
		if i < 0 {
			open = append(open, e.Network)
			continue
		}
		names[veths[i].Index] = e.Network
	}
	// A bridge may have any name; with one of each left they belong together.
	sure := len(open) == 1 && len(veths)-len(names) == 1
	for _, v := range veths {
		if names[v.Index] != "" {
			continue
		}
		if sure {
			names[v.Index] = open[0]
		} else {
			names[v.Index] = v.Bridge
		}
	}
	return names
}

// bridge is the name of a network's bridge: what Docker lists, else what it calls one unless it is told otherwise.
func (s surroundings) bridge(e docker.Endpoint) string {
	if name := s.networks[e.NetworkID].Bridge; name != "" {
		return name
	}
	if e.Network == "bridge" {
		return "docker0"
	}
	return "br-" + e.NetworkID[:min(12, len(e.NetworkID))]
}

// maxErrors is how many errors of one container its record and the log have; there can be thousands.
const maxErrors = 20

// OneLine is what errors.Join has joined, for a record, a log or a line of output.
func OneLine(err error) string {
	lines := strings.Split(err.Error(), "\n")
	if more := len(lines) - maxErrors; more > 0 {
		lines = append(lines[:maxErrors], fmt.Sprintf("and %d errors more", more))
	}
	return strings.Join(lines, "; ")
}

func short(id string) string { return id[:min(12, len(id))] }

// worthAsking tells from labels alone whether a container is worth an inspect. One that was filtered by the agent before
// this one is, because that one may have had another configuration, and each is while nobody knows whom that one has filtered.
func (a *agent) worthAsking(id string, labels map[string]string) bool {
	conf := a.around.conf
	return conf.Floor != nil || len(conf.Policies) > 0 || a.records[id] != "" || asksAtAll(labels) || a.anyStrays()
}

// asksAtAll tells whether labels ask for a filter. xdp.enable may be the image's, which switches nothing off: only Stack,
// which knows the image, decides about it.
func asksAtAll(labels map[string]string) bool {
	labels = maps.Clone(labels)
	_, switched := labels["xdp.enable"]
	delete(labels, "xdp.enable")
	_, asks, err := policy.Parse(labels)
	return asks || switched || err != nil
}
