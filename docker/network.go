package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
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
	// Bridge is the name of its Linux bridge on the engine's host, "" where the driver makes none.
	Bridge string
	// Subnets and Gateways are all that Docker chose or was told, in its order; the networks host and none have
	// neither.
	Subnets  []netip.Prefix
	Gateways []netip.Addr
}

// Networks returns every network, sorted by id. Every engine has some (host and none): a list without any is an error.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	all, err := c.api.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	if len(all) == 0 {
		return nil, errors.New("list networks: the answer names none")
	}
	out := make([]Network, 0, len(all))
	for _, s := range all {
		n := Network{ID: s.ID, Name: s.Name, Driver: s.Driver, Bridge: bridge(s)}
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

// bridge is the name that Docker was told, or that it makes of the network's id.
func bridge(s network.Summary) string {
	name := s.Options["com.docker.network.bridge.name"]
	if s.Driver == "bridge" && name == "" && isID(s.ID) {
		return "br-" + s.ID[:12]
	}
	return name
}

// Attachment is a container's end of a veth, as the network names it.
type Attachment struct {
	// ContainerID is "" at first while a container starts: engines from 28 on name the endpoint alone until its
	// network is complete.
	ContainerID string
	MAC         net.HardwareAddr
	Addrs       []netip.Addr // IPv4 first
}

// Attachments returns what is attached to a network, in no particular order. It is answered at once even while
// containers start, and names an endpoint before the container's process runs. errdefs.IsNotFound holds for the
// error when there is no such network.
func (c *Client) Attachments(ctx context.Context, networkID string) ([]Attachment, error) {
	r, err := c.api.NetworkInspect(ctx, networkID, network.InspectOptions{})
	if err != nil {
		return nil, fmt.Errorf("inspect network %.12s: %w", networkID, err)
	}
	var out []Attachment
	for id, e := range r.Containers {
		mac, err := net.ParseMAC(e.MacAddress)
		if err != nil {
			continue // without one it is no end of a veth
		}
		v4, _, _ := strings.Cut(e.IPv4Address, "/")
		v6, _, _ := strings.Cut(e.IPv6Address, "/")
		a := Attachment{MAC: mac, Addrs: addrs(v4, v6)}
		if isID(id) {
			a.ContainerID = id
		}
		out = append(out, a)
	}
	return out, nil
}
