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
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
)

// Container is one snapshot of a container. The zero value of a field means that Docker did not say.
// Maps and slices may be shared between snapshots: do not write to them.
type Container struct {
	ID   string // 64 hex digits
	Name string // without the leading slash
	// Labels are those of docker run and, unmarked among them, those of the image.
	Labels  map[string]string
	Image   string // as docker run was given it
	ImageID string
	// ImageLabels are those of the image alone. They mean something only where ImageKnown is true: an
	// image may have been removed, or a socket proxy may hide it.
	ImageLabels map[string]string
	ImageKnown  bool

	// Running says that there is a process, and with it a network namespace. Pid is the process's
	// number in the engine's pid namespace, 0 when not Running.
	Running   bool
	Pid       int
	StartedAt time.Time

	// SandboxID and SandboxKey name the network namespace, a path on the engine's host. They change
	// with every start, and are empty for a container that lives in another one's namespace.
	SandboxID, SandboxKey string

	// NetworkMode is "default", "bridge", "host", "none", "container:ID" or the name of a network.
	NetworkMode string
	Networks    []Endpoint // sorted by network name

	// Upper case, without CAP_; "ALL" stands for every one.
	CapAdd, CapDrop []string
	Privileged      bool
	// PidMode is "", "host" or "container:ID": whose processes it sees.
	PidMode string
	Runtime string // "runc", "io.containerd.kata.v2", ...; the engine's default where none was named
	// MayRun are the runtimes that it may have, and MayRemap says that UserNS may be true, where Docker has only outlined it.
	MayRun   []string
	MayRemap bool
	// UserNS: the container lives in a user namespace of its own, by userns-remap or a rootless engine, and its
	// capabilities mean nothing outside.
	UserNS bool
	DNS    []string
	// FromHost is the engine's: it matters where neither DNS nor the engine's configuration names others.
	FromHost FromHost
	// Published: a port of the container is published, or will be when it starts.
	Published bool
}

// Endpoint is a container's place in one network.
type Endpoint struct {
	Network   string // the network's name
	NetworkID string // empty until the container first starts
	// Driver is "bridge", "macvlan", "host", "null", ...; empty when the network is gone.
	Driver     string
	EndpointID string
	MAC        net.HardwareAddr
	// Addrs are all that Docker gave or was told to give to the endpoint, IPv4 first; Gateways those of
	// the network that the container was told of.
	Addrs    []netip.Addr
	Gateways []netip.Addr
}

// Inspect returns everything that Docker says of one container. errdefs.IsNotFound holds for the error
// when there is no such container.
//
// The engine answers only after a start that is under way, hundreds of milliseconds later: call it
// where nothing else has to wait, and with a deadline.
func (c *Client) Inspect(ctx context.Context, id string) (Container, error) {
	r, err := c.api.ContainerInspect(ctx, id)
	if err != nil {
		return Container{}, fmt.Errorf("inspect container %.12s: %w", id, err)
	}
	if err := whole(r, id); err != nil {
		return Container{}, fmt.Errorf("inspect container %.12s: %w", id, err)
	}
	out := snapshot(r)
	if out.ImageLabels, out.ImageKnown, err = c.imageLabels(ctx, out.ImageID, r.ImageManifestDescriptor); err != nil {
		return Container{}, fmt.Errorf("inspect image of container %.12s: %w", id, err)
	}
	if err := c.setDrivers(ctx, out.Networks); err != nil {
		return Container{}, fmt.Errorf("look up networks of container %.12s: %w", id, err)
	}
	if out.Runtime == "" {
		out.Runtime = c.engine.DefaultRuntime
	}
	out.UserNS = c.engine.Rootless || c.engine.UserNS && !r.HostConfig.UsernsMode.IsHost()
	out.FromHost = fromHost(c.engine.ServerVersion)
	return out, nil
}

// whole says what is wrong with an answer that every engine gives complete. Half of one would be taken for a container that
// has no labels, or that does not run; and where a container is gone the engine looks for one that is named so.
func whole(r container.InspectResponse, id string) error {
	switch {
	case r.ContainerJSONBase == nil || !isID(r.ID):
		return errors.New("the answer describes no container")
	case isID(id) && r.ID != id:
		return fmt.Errorf("the answer describes another container, %.12s", r.ID)
	case r.State == nil || r.State.Status == "" || r.Config == nil || r.HostConfig == nil || r.NetworkSettings == nil:
		return errors.New("the answer is not complete")
	}
	return nil
}

// snapshot takes from r, which is whole, what needs no further question.
func snapshot(r container.InspectResponse) Container {
	n, h := r.NetworkSettings, r.HostConfig
	out := Container{
		ID: r.ID, Name: strings.TrimPrefix(r.Name, "/"), Labels: r.Config.Labels, Image: r.Config.Image, ImageID: r.Image,
		SandboxID: n.SandboxID, SandboxKey: n.SandboxKey, Networks: endpoints(n.Networks), NetworkMode: string(h.NetworkMode),
		Privileged: h.Privileged, PidMode: string(h.PidMode), Runtime: h.Runtime, DNS: h.DNS, Published: h.PublishAllPorts || len(h.PortBindings) > 0,
	}
	// While a restart policy waits for its next attempt, Running is true and there is no process.
	if s := r.State; s.Running && s.Pid > 0 {
		out.Running, out.Pid = true, s.Pid
		out.StartedAt, _ = time.Parse(time.RFC3339Nano, s.StartedAt)
	}
	out.CapAdd, out.CapDrop = capabilities(h.CapAdd), capabilities(h.CapDrop)
	return out
}

func capabilities(names []string) (out []string) {
	for _, name := range names {
		out = append(out, strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
	}
	return out
}

// endpoints translates and sorts by network name; drivers are not filled in.
func endpoints(m map[string]*network.EndpointSettings) []Endpoint {
	var out []Endpoint
	for name, s := range m {
		if s == nil {
			continue
		}
		e := Endpoint{Network: name, NetworkID: s.NetworkID, EndpointID: s.EndpointID}
		if mac, err := net.ParseMAC(s.MacAddress); err == nil {
			e.MAC = mac
		}
		e.Addrs = addrs(s.IPAddress, s.GlobalIPv6Address)
		if c := s.IPAMConfig; c != nil {
			e.Addrs = append(e.Addrs, addrs(append(c.LinkLocalIPs, c.IPv4Address, c.IPv6Address)...)...)
		}
		slices.SortFunc(e.Addrs, netip.Addr.Compare)
		e.Addrs = slices.Compact(e.Addrs)
		e.Gateways = addrs(s.Gateway, s.IPv6Gateway)
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Endpoint) int { return cmp.Compare(a.Network, b.Network) })
	return out
}

// addrs parses what is an address; Docker writes "" for none.
func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// setDrivers fills in the driver of each endpoint, from the cache where the network's id is in it.
// Before a container's first start its endpoints have names only; a name can pass to another network,
// so it is looked up each time.
func (c *Client) setDrivers(ctx context.Context, eps []Endpoint) error {
	missing := false
	c.mu.Lock()
	for i := range eps {
		eps[i].Driver = c.drivers[eps[i].NetworkID]
		missing = missing || eps[i].Driver == ""
	}
	c.mu.Unlock()
	if !missing {
		return nil
	}
	all, err := c.api.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		return err
	}
	byID, byName := map[string]string{}, map[string]string{}
	for _, n := range all {
		byID[n.ID] = n.Driver
		if d, twice := byName[n.Name]; twice && d != n.Driver {
			byName[n.Name] = "" // Docker permits equal names: do not guess
			continue
		}
		byName[n.Name] = n.Driver
	}
	for i := range eps {
		if eps[i].NetworkID == "" {
			eps[i].Driver = byName[eps[i].Network]
		} else {
			eps[i].Driver = byID[eps[i].NetworkID]
		}
	}
	c.mu.Lock()
	c.drivers = byID // networks that are gone are forgotten with it
	c.mu.Unlock()
	return nil
}
