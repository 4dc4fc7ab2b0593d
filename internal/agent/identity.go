package agent

import (
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

// ownAddresses are those of a container, compiled.
type ownAddresses struct {
	ranges []netipx.IPRange
	tables *xdp.Tables
}

// gatewayBridge joins the containers of a Swarm to the outside, by endpoints that Docker shows of no container.
const gatewayBridge = "docker_gwbridge"

// identify adds to want what antispoof holds the packets of an interface against. While Docker has not said which MAC and
// addresses the container has there, none are its own.
func (a *agent) identify(c *container, i *Interface, want *xdp.Want) error {
	if !c.want.antispoof || i.Network == gatewayBridge {
		return nil
	}
	own := ownOf(c.Networks, c.want.own)
	if c.own.tables == nil || !slices.Equal(own, c.own.ranges) {
		tables, err := xdp.CompileOwn(own)
		if err != nil {
			return err
		}
		c.own = ownAddresses{own, tables}
	}
	want.Own = c.own.tables
	if c.want.watches(i.Network) {
		want.Bridge = a.ports[i.Ifindex].Master
	}
	for _, e := range c.Networks {
		if e.Network == i.Network {
			want.MAC = e.MAC
		}
	}
	return nil
}

// ownOf are the addresses that Docker reports for any endpoint, those that IPv6 makes of the MACs, and what the label adds.
func ownOf(networks []docker.Endpoint, added []netipx.IPRange) []netipx.IPRange {
	out := slices.Clone(added)
	add := func(a netip.Addr) { out = append(out, netipx.IPRangeFrom(a, a)) }
	for _, e := range networks {
		for _, a := range e.Addrs {
			add(a)
		}
		if len(e.MAC) == 6 {
			add(policy.LinkLocal([6]byte(e.MAC)))
		}
	}
	return out
}
