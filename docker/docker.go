// Package docker says what the Docker engine says: which containers there are, what they were
// started with, and when to look again. It is the only package that knows the engine's API.
//
// It only asks (GET of _ping, info, events, containers, networks and images), so that it works
// through a filtering socket proxy, and it knows nothing of filters, veths or policies. An answer is
// a snapshot: it may be out of date when it is read. Nothing here retries; whoever holds a Client
// drops it when Watch ends and connects anew.
package docker

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/client"
)

// api is all that is asked of an engine. The call that changes something cannot be made by mistake:
// it is not here.
type api interface {
	Ping(context.Context) (types.Ping, error)
	NegotiateAPIVersionPing(types.Ping)
	Info(context.Context) (system.Info, error)
	Events(context.Context, events.ListOptions) (<-chan events.Message, <-chan error)
	ContainerList(context.Context, container.ListOptions) ([]container.Summary, error)
	ContainerInspect(context.Context, string) (container.InspectResponse, error)
	NetworkList(context.Context, network.ListOptions) ([]network.Summary, error)
	NetworkInspect(context.Context, string, network.InspectOptions) (network.Inspect, error)
	ImageInspect(context.Context, string, ...client.ImageInspectOption) (image.InspectResponse, error)
	ClientVersion() string
	DaemonHost() string
	Dialer() func(context.Context) (net.Conn, error)
	Close() error
}

// Client is a connection to one run of one engine. Its methods may be called by several goroutines at
// once, and a slow answer to one call never delays another.
type Client struct {
	api    api
	engine Info

	mu      sync.Mutex                   // guards the two caches, never held over a request
	drivers map[string]string            // network id -> driver; an id never changes its driver
	images  map[string]map[string]string // image id or manifest digest -> labels; neither ever names others
}

// Connect reaches the engine that DOCKER_HOST, DOCKER_CERT_PATH, DOCKER_TLS_VERIFY and
// DOCKER_API_VERSION name, by default the one behind /var/run/docker.sock, and agrees on an API
// version with it. The agreement holds for this run of the engine: after a lost connection Close the
// Client and Connect again, because another version may have been installed meanwhile.
//
// The error is one line that says what to do.
func Connect(ctx context.Context) (*Client, error) {
	cli, err := client.NewClientWithOpts(client.FromEnv)
	if err != nil {
		return nil, fmt.Errorf("set up the connection to Docker: %w; check DOCKER_HOST, DOCKER_CERT_PATH and DOCKER_API_VERSION", err)
	}
	c := &Client{api: cli, drivers: map[string]string{}, images: map[string]map[string]string{}}
	if err := c.negotiate(ctx); err != nil {
		c.Close()
		return nil, err
	}
	// The first question with a version in it: one that DOCKER_API_VERSION has wrong is refused here.
	if c.engine, err = c.Info(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("%w; check DOCKER_API_VERSION, and that a socket proxy allows GET /info", err)
	}
	return c, nil
}

func (c *Client) negotiate(ctx context.Context) error {
	if proto, _, _ := strings.Cut(c.api.DaemonHost(), "://"); proto == "ssh" {
		return fmt.Errorf("connect to Docker at %s: a filter works on the engine's own host only; run vethwall there and unset DOCKER_HOST", c.api.DaemonHost())
	}
	ping, err := c.api.Ping(ctx)
	if err != nil {
		return explain(ctx, c.api, err)
	}
	if ping.APIVersion == "" {
		return fmt.Errorf("connect to Docker at %s: something answers that is no Docker engine; check DOCKER_HOST", c.api.DaemonHost())
	}
	c.api.NegotiateAPIVersionPing(ping)
	return nil
}

// Close gives idle connections back. Calls under way and open streams end with their contexts.
func (c *Client) Close() { _ = c.api.Close() }

// Info is what an engine says of itself.
type Info struct {
	ServerVersion string // "20.10.24"
	APIVersion    string // the version agreed on, "1.41"
	CgroupVersion string // "1", "2", or "" from engines that do not say
	// Rootless: the engine runs in a user namespace, where no filter can be attached from outside.
	Rootless bool
	// UserNS: containers run in a user namespace of their own unless their UsernsMode is "host".
	UserNS bool
	// DefaultRuntime is that of containers for which none was named; Runtimes, sorted, are those that the engine is configured with.
	DefaultRuntime string
	Runtimes       []string
}

// Info asks the engine about itself.
func (c *Client) Info(ctx context.Context) (Info, error) {
	i, err := c.api.Info(ctx)
	if err != nil {
		return Info{}, fmt.Errorf("ask Docker for info: %w", err)
	}
	has := func(name string) bool {
		return slices.ContainsFunc(i.SecurityOptions, func(o string) bool {
			return o == "name="+name || strings.HasPrefix(o, "name="+name+",")
		})
	}
	return Info{
		ServerVersion: i.ServerVersion,
		APIVersion:    c.api.ClientVersion(),
		CgroupVersion: i.CgroupVersion,
		Rootless:      has("rootless"),
		UserNS:        has("userns"),

		DefaultRuntime: i.DefaultRuntime,
		Runtimes:       slices.Sorted(maps.Keys(i.Runtimes)),
	}, nil
}
