// Package config reads the agent's configuration: what holds for containers beside their labels, which cannot change
// while a container lives.
//
// It only reads. A file is right as a whole or not at all, and every mistake in it has its line and column. What
// the configuration does to a container is decided in internal/agent.
package config

import (
	"fmt"
	"net/netip"
	"path"
	"strings"

	"github.com/vethwall/vethwall/policy"
)

// DefaultPath is where the agent looks unless it is told otherwise.
const DefaultPath = "/etc/vethwall/config.yaml"

// Config is the agent's configuration. The zero value is that of an agent without a file. Do not write to what it
// refers to.
type Config struct {
	// DNS are the resolvers of containers that were not given any by docker run --dns. Without any they are the
	// host's.
	DNS []netip.Addr
	// HostAddresses count as the host's, beside those that its interfaces have.
	HostAddresses []netip.Addr
	// Hook is for containers of which no source names one.
	Hook policy.Hook
	// Conversations bounds what is remembered of a container: so many answered ones, and a quarter of it that are not.
	// 0 is policy.MaxAnswered.
	Conversations int
	// Floor holds for every container, nil where there is none.
	Floor    *policy.Policy
	Policies []Policy
}

// Policy is what the configuration gives to the containers that it picks.
type Policy struct {
	Pick Pick
	// Replace puts Labels in the place of those of docker run, which do not count then.
	Replace bool
	// Labels is nil where they are switched off by xdp.enable: false.
	Labels *policy.Policy
	Line   int // of the file, where it begins
}

// String names the policy to a user.
func (p Policy) String() string { return fmt.Sprintf("the one in line %d, for %s", p.Line, p.Pick) }

// Pick says which containers are meant. All fields that are not "" must match, and one is there at least. Name and
// Image are patterns of path.Match, of the container's name and of the image as docker run was given it. Label
// is KEY or KEY=VALUE; Project and Service are Compose's.
type Pick struct{ Name, Image, Label, Project, Service string }

// The labels by which Compose says what a container belongs to.
const (
	labelProject = "com.docker.compose.project"
	labelService = "com.docker.compose.service"
)

// Matches reports whether p picks a container. labels are those that it may be picked by.
func (p Pick) Matches(name, image string, labels map[string]string) bool {
	glob := func(pattern, s string) bool {
		ok, err := path.Match(pattern, s)
		return pattern == "" || ok && err == nil
	}
	is := func(key, want string) bool {
		value, ok := labels[key]
		return want == "" || ok && value == want
	}
	key, value, valued := strings.Cut(p.Label, "=")
	_, has := labels[key]
	return glob(p.Name, name) && glob(p.Image, image) && is(labelProject, p.Project) && is(labelService, p.Service) &&
		(p.Label == "" || has && (!valued || labels[key] == value))
}

// String is the pick as the file could have it.
func (p Pick) String() string {
	var out []string
	for _, f := range p.fields() {
		if *f.value != "" {
			out = append(out, f.key+": "+*f.value)
		}
	}
	return "{" + strings.Join(out, ", ") + "}"
}

type pickField struct {
	key   string
	value *string
}

func (p *Pick) fields() []pickField {
	return []pickField{{"name", &p.Name}, {"image", &p.Image}, {"label", &p.Label}, {"project", &p.Project}, {"service", &p.Service}}
}
