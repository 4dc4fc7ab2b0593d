package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

// surroundings are what the groups of labels are made of, as far as it is known.
type surroundings struct {
	networks map[string]docker.Network // by id; nil until Docker has listed them
	lists    int                       // how often it has
	chosen   map[string]string         // by the bridges that do not have the names that Docker makes, ids of networks, of all that it has listed
	host     *host                     // nil until it could be read
	lately   []lately                  // whom it has named as resolvers before
	conf     config.Config
	joiners  []docker.Container // all that join another's network
}

// host is what the host says of itself.
type host struct {
	addrs     []netip.Addr
	onLink    []netip.Prefix
	resolvers []netip.Addr
}

// known is what is known of the groups of one container, and of those who join its network.
type known struct {
	groups policy.Groups
	// missing says what is not known yet, "" for nothing. There are no groups then.
	missing string
	// fromHost are resolvers that the engine asks from the host in the container's place, past its veth; somebody is one that is
	// not known. It does not before the container has the engine's resolver, which is as soon as it joins a network that has it.
	fromHost    []netip.Addr
	hasResolver bool
	sharing     sharing
}

// somebody stands for resolvers that the engine has and nobody else knows.
var somebody netip.Addr

func (k known) equal(other known) bool {
	return k.missing == other.missing && k.hasResolver == other.hasResolver && k.sharing == other.sharing && slices.Equal(k.fromHost, other.fromHost) && k.groups.Equal(other.groups)
}

// needed is what a policy depends on: one that is not live on resolvers alone.
func (k known) needed(live bool) known {
	if live {
		return k
	}
	return known{fromHost: k.fromHost, hasResolver: k.hasResolver, sharing: k.sharing}
}

// of is what is known for c, whose engine asks those in before from the host whatever is said now.
func (s surroundings) of(c docker.Container, before []netip.Addr) known {
	resolvers, fromHost := s.resolvers(c)
	fromHost = append(fromHost, s.lateFromHost(c)...)
	if len(before) > 0 { // an answer to what is not known now
		fromHost = slices.DeleteFunc(fromHost, func(a netip.Addr) bool { return a == somebody })
	}
	k := known{fromHost: sorted(slices.Concat(fromHost, before), netip.Addr.Compare), hasResolver: hasResolver(c)}
	switch {
	case s.host == nil:
		k.missing = "the host's addresses could not be read yet"
		return k
	case s.networks == nil:
		k.missing = "Docker has not listed its networks yet"
		return k
	}
	g := policy.Groups{Host: slices.Concat(s.host.addrs, s.conf.HostAddresses), OnLink: s.host.onLink}
	for _, n := range s.networks {
		g.Networks = append(g.Networks, n.Subnets...)
	}
	for _, e := range c.Networks {
		n, listed := s.networks[e.NetworkID]
		if !listed && e.NetworkID != "" {
			k.missing = fmt.Sprintf("Docker has not listed network %s yet", e.Network)
			return k
		}
		g.Neighbors = append(g.Neighbors, n.Subnets...)
		g.Gateways = slices.Concat(g.Gateways, n.Gateways, e.Gateways)
	}
	g.Networks, g.Neighbors = sorted(g.Networks, netip.Prefix.Compare), sorted(g.Neighbors, netip.Prefix.Compare)
	g.Gateways, g.Resolvers = sorted(g.Gateways, netip.Addr.Compare), sorted(resolvers, netip.Addr.Compare)
	if k.hasResolver {
		g = k.withResolver(g)
	}
	k.groups = g
	return k
}

// withResolver is g for who has the engine's resolver: what that asks is the container's own.
func (k known) withResolver(g policy.Groups) policy.Groups {
	g.Resolvers = sorted(slices.Concat(g.Resolvers, k.fromHost), netip.Addr.Compare)
	g.Resolvers = slices.DeleteFunc(g.Resolvers, func(a netip.Addr) bool { return a == somebody })
	return g
}

// lacks reports whether c is in a network that Docker has not listed.
func (s surroundings) lacks(c docker.Container) bool {
	return slices.ContainsFunc(c.Networks, func(e docker.Endpoint) bool {
		_, listed := s.networks[e.NetworkID]
		return !listed && e.NetworkID != ""
	})
}

func sorted[T comparable](in []T, compare func(a, b T) int) []T {
	return slices.Compact(slices.SortedFunc(slices.Values(in), compare))
}

// dockersOwn are the resolvers that Docker gives to a container on its default network when the host has none but
// on its loopback.
var dockersOwn = []netip.Addr{
	netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("8.8.4.4"),
	netip.MustParseAddr("2001:4860:4860::8888"), netip.MustParseAddr("2001:4860:4860::8844"),
}

// resolvers are those that c asks by its veths: those of docker run --dns, else of the configuration, else the host's.
// The container's own resolv.conf says nothing, because the container writes it. fromHost are those that the engine
// asks for it, from the host, or will when it gets the engine's resolver: of the host's what its engine asks so, and what is on the
// loopback. The configuration adds to the host's there, because Docker need not have been told. A host that names none has
// some that an engine which asks them from the host was told of before, or is told of next.
func (s surroundings) resolvers(c docker.Container) (out, fromHost []netip.Addr) {
	var all []netip.Addr
	if s.host != nil {
		all = s.host.resolvers
	}
	engine := c.FromHost
	if len(s.conf.DNS) > 0 && len(c.DNS) == 0 {
		fromHost = slices.DeleteFunc(slices.Clone(all), func(a netip.Addr) bool { return !engine.Asks(a) })
		all, engine = s.conf.DNS, docker.LoopbackFromHost
	}
	if len(c.DNS) > 0 {
		all, engine = nil, docker.LoopbackFromHost
		for _, text := range c.DNS {
			if a, err := netip.ParseAddr(text); err == nil {
				all = append(all, a.Unmap().WithZone(""))
			}
		}
	}
	if len(c.DNS) == 0 && (s.host == nil || len(all) == 0 && engine != docker.LoopbackFromHost) {
		fromHost = append(fromHost, somebody)
	}
	asks, elsewhere := hasResolver(c), false
	for _, a := range all {
		elsewhere = elsewhere || !a.IsLoopback()
		if engine.Asks(a) {
			fromHost = append(fromHost, a)
		}
		if !a.IsLoopback() && (!asks || !engine.Asks(a)) {
			out = append(out, a)
		}
	}
	if !elsewhere && onDefault(c) && len(c.DNS) == 0 && len(s.conf.DNS) == 0 {
		out = dockersOwn
	}
	return out, fromHost
}

// onDefault reports whether c was made for the default network.
func onDefault(c docker.Container) bool {
	return c.NetworkMode == "default" || c.NetworkMode == "bridge"
}

// hasResolver reports whether the engine's resolver is there for c: on every network but the default one.
func hasResolver(c docker.Container) bool {
	return !onDefault(c) || slices.ContainsFunc(c.Networks, func(e docker.Endpoint) bool { return e.Network != "bridge" })
}

// readHost reads what groups need of the host.
func readHost(links xdp.Links) (*host, error) {
	addrs, onLink, err := xdp.HostAddresses(links)
	if err != nil {
		return nil, err
	}
	return &host{addrs, onLink, resolvConf.read()}, nil
}

// meetHost is lookAround before the first look at anything.
func (a *agent) meetHost() {
	all, err := a.list()
	if err != nil {
		return // the look at the containers says so
	}
	a.lookAround(all.links)
}

// lookAround reads the host anew: beside the loop, except for the first time.
func (a *agent) lookAround(links xdp.Links) {
	if a.around.host == nil {
		a.learnHost(a.readHost(links))
		return
	}
	a.readingHost = true
	a.beside.Go(func() {
		h, err := a.readHost(links)
		a.tell(func() {
			a.readingHost = false
			if err == nil {
				h = &host{h.addrs, h.onLink, a.readResolvers()} // by now they may be others
			}
			a.learnHost(h, err)
		})
	})
}

// learnHost takes in what the host says of itself.
func (a *agent) learnHost(h *host, err error) {
	a.complain(&a.hostTrouble, err, "cannot read the host's addresses; trying again")
	if err != nil { // tried again with the next news where nothing is known, else at the resync
		a.hostStale = a.hostStale || a.around.host == nil
		return
	}
	a.hostIs(h)
}

// hostIs takes in what is known of the host. Where that is new, every container is looked at whose policy may depend on it.
func (a *agent) hostIs(h *host) {
	if a.around.host != nil && a.around.host.equal(h) {
		return
	}
	a.around.remember(h)
	a.around.host = h
	for id, c := range a.containers {
		if c.asks {
			a.dirty[id] = true
		}
	}
}

func (h *host) equal(o *host) bool {
	return slices.Equal(h.addrs, o.addrs) && slices.Equal(h.onLink, o.onLink) && slices.Equal(h.resolvers, o.resolvers)
}

// askNetworks asks for the networks beside the loop.
func (a *agent) askNetworks() {
	s := a.session
	switch {
	case s == nil:
		return
	case s.askingNetworks:
		s.networksAgain = true
		return
	}
	s.askingNetworks, s.networksAgain = true, false
	a.beside.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, answerTimeout)
		defer cancel()
		networks, err := s.Networks(ctx)
		a.tell(func() {
			if s.askingNetworks = false; a.session != s {
				return
			}
			a.complain(&s.networksTrouble, err, "cannot list networks; trying again")
			switch {
			case err == nil:
				a.learnNetworks(networks)
			case !s.networksLater:
				s.networksLater = true
				a.later(s, func() { s.networksLater = false; a.askNetworks() })
			}
			if s.networksAgain {
				a.askNetworks()
			}
			a.settlePorts()
		})
	})
}

// learnNetworks takes in the list of networks.
func (a *agent) learnNetworks(networks []docker.Network) {
	a.around.lists++
	byID := make(map[string]docker.Network, len(networks))
	for _, n := range networks {
		byID[n.ID] = n
		if n.Bridge != "" && madeOf(n.Bridge) == "" {
			a.around.chosen[n.Bridge] = n.ID
		}
	}
	same := func(a, b docker.Network) bool {
		return slices.Equal(a.Subnets, b.Subnets) && slices.Equal(a.Gateways, b.Gateways) && a.Bridge == b.Bridge
	}
	if a.around.networks == nil || !maps.EqualFunc(a.around.networks, byID, same) {
		a.around.networks = byID
		a.everythingDirty()
	}
}

// freshNetworks asks for the networks, and says how many lists there will have been when one has come that is not older than
// the question; 0 without an engine.
func (a *agent) freshNetworks() int {
	if a.session == nil {
		return 0
	}
	wanted := a.around.lists + 1
	if a.session.askingNetworks {
		wanted++ // the one that is on its way may have begun before
	}
	a.askNetworks()
	return wanted
}

// behind is the network that a bridge belongs to.
func (s surroundings) behind(bridge string) (docker.Network, bool) {
	for _, n := range s.networks {
		if n.Bridge == bridge {
			return n, true
		}
	}
	return docker.Network{}, false
}

// madeOf is the beginning of the id of which Docker has made a bridge's name, "" where it is not so made.
func madeOf(bridge string) string {
	id, made := strings.CutPrefix(bridge, "br-")
	if !made || len(id) != 12 || strings.Trim(id, "0123456789abcdef") != "" {
		return ""
	}
	return id
}

// lacking is by which id or name to ask for the network of a bridge that no network in the last list has, "" where it is none of Docker's.
func (s surroundings) lacking(bridge string) string {
	id := cmp.Or(s.chosen[bridge], madeOf(bridge))
	if bridge != "docker0" || id != "" {
		return id
	}
	for _, n := range s.networks {
		if n.Name == "bridge" {
			return "" // and its bridge is another one
		}
	}
	return "bridge"
}

// filtered is what the record says of a device that has a filter, or is closed by one. One that was not in the same
// network then has joined it since, and its filter was made without that.
func (a *agent) filtered(c *container, now Interface) (Interface, bool) {
	r, err := c.told, error(nil)
	if r.ID == "" {
		r, err = ParseRecord([]byte(c.saved))
	}
	n := slices.IndexFunc(r.Interfaces, func(i Interface) bool {
		return i.Ifindex == now.Ifindex && i.Network == now.Network && i.State != Pending
	})
	if err != nil || n < 0 || !a.kernel.Filters(now.Ifindex) {
		return Interface{}, false
	}
	return r.Interfaces[n], true
}

// GroupsOf are what the groups in the policy of c stand for now, asked for without an agent.
func GroupsOf(ctx context.Context, e interface {
	Networks(context.Context) ([]docker.Network, error)
}, c docker.Container, conf config.Config) (policy.Groups, error) {
	networks, err := e.Networks(ctx)
	if err != nil {
		return policy.Groups{}, err
	}
	s := surroundings{networks: map[string]docker.Network{}, conf: conf}
	for _, n := range networks {
		s.networks[n.ID] = n
	}
	links, err := xdp.ListLinks()
	if err != nil {
		return policy.Groups{}, err
	}
	if s.host, err = readHost(links); err != nil {
		return policy.Groups{}, err
	}
	k := s.of(c, nil)
	if k.missing != "" {
		return policy.Groups{}, errors.New(k.missing)
	}
	return k.groups, nil
}
