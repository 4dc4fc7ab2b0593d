package docker

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/network"
)

// Network is what a list says of a network.
type Network struct {
	ID     string // 64 hex digits
	Name   string
	Driver string // "bridge", "macvlan", "host", "null", ...
	// Subnets and Gateways are all that Docker chose or was told, in its order; the networks host and none have
	// neither.
	Subnets  []netip.Prefix
	Gateways []netip.Addr
	// Bridge is the name of its Linux bridge, "" where Docker chose one.
	Bridge string
}

// Networks returns every network, sorted by id.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	all, err := c.api.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	out := make([]Network, 0, len(all))
	for _, s := range all {
		n := Network{ID: s.ID, Name: s.Name, Driver: s.Driver, Bridge: s.Options["com.docker.network.bridge.name"]}
		for _, c := range s.IPAM.Config {
			if p, err := netip.ParsePrefix(c.Subnet); err == nil {
				n.Subnets = append(n.Subnets, p.Masked())
			}
			gateway, _, _ := strings.Cut(c.Gateway, "/") // some engines write it with the subnet's length
			n.Gateways = append(n.Gateways, addrs(gateway)...)
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b Network) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}
