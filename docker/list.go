package docker

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
)

// Summary is what a list says of a container.
type Summary struct {
	ID     string // 64 hex digits
	Name   string // without the leading slash
	Labels map[string]string
	// State is "created", "running", "paused", "restarting", "removing", "exited" or "dead". A container
	// whose start is under way is still "created" or "exited".
	State       string
	ImageID     string
	Image       string // the name by which it was started, or ImageID where that names another image by now
	NetworkMode string
	Networks    []Endpoint // sorted by network name, without drivers
}

// List returns every container, stopped ones included, in no particular order. It is answered at once
// even while containers start. An empty list is no proof that there are none: an engine that has just
// started may still be loading them.
func (c *Client) List(ctx context.Context) ([]Summary, error) {
	all, err := c.api.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	out := make([]Summary, 0, len(all))
	for _, s := range all {
		if !isID(s.ID) {
			return nil, fmt.Errorf("list containers: %q is no container id", s.ID)
		}
		out = append(out, summary(s))
	}
	return out, nil
}

func summary(s container.Summary) Summary {
	sum := Summary{
		ID: s.ID, Name: ownName(s.Names), Labels: s.Labels, State: string(s.State),
		ImageID: s.ImageID, Image: s.Image, NetworkMode: s.HostConfig.NetworkMode,
	}
	if s.NetworkSettings != nil {
		sum.Networks = endpoints(s.NetworkSettings.Networks)
	}
	return sum
}

// Outline is Inspect for a container that is about to run: it is answered at once even while the container starts, and
// says nothing of HostConfig (CapAdd, CapDrop, Privileged, Runtime, UserNS, DNS, Published), of process and sandbox, and nothing of Image
// where that names another image by now, or was given by its id.
func (c *Client) Outline(ctx context.Context, id string) (Container, error) {
	all, err := c.api.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("id", id))})
	if err != nil {
		return Container{}, fmt.Errorf("list container %.12s: %w", id, err)
	}
	i := slices.IndexFunc(all, func(s container.Summary) bool { return s.ID == id })
	if i < 0 {
		return Container{}, fmt.Errorf("list container %.12s: %w", id, errdefs.ErrNotFound)
	}
	s := summary(all[i])
	out := Container{
		ID: id, Name: s.Name, Labels: s.Labels, ImageID: s.ImageID, NetworkMode: s.NetworkMode, Networks: s.Networks,
		MayRun: c.engine.Runtimes, MayRemap: c.engine.UserNS || c.engine.Rootless, FromHost: fromHost(c.engine.ServerVersion),
	}
	if all[i].Image != s.ImageID { // which stands there in the place of such a name
		out.Image = all[i].Image
	}
	if out.ImageLabels, out.ImageKnown, err = c.imageLabels(ctx, out.ImageID, all[i].ImageManifestDescriptor); err != nil {
		return Container{}, fmt.Errorf("inspect image of container %.12s: %w", id, err)
	}
	if err := c.setDrivers(ctx, out.Networks); err != nil {
		return Container{}, fmt.Errorf("look up networks of container %.12s: %w", id, err)
	}
	return out, nil
}

// ownName picks the container's name from a list in which links add names of the form /other/alias.
func ownName(names []string) string {
	for _, n := range names {
		if n = strings.TrimPrefix(n, "/"); !strings.Contains(n, "/") {
			return n
		}
	}
	return ""
}

// isID reports whether s is a full id of a container or network: 64 lower case hex digits.
func isID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}
