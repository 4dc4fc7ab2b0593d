package main

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// TestUpgrade goes from one version to another whose maps are laid out otherwise, and back, again and again, beside containers
// that send all the time what neither version lets pass. Some of the agents are killed on the way.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	versions := []string{v.Bin, v.OtherVersion("xdp/filter.go", "const format = ", "const format = 1000 + ")}
	v.StartAgent()

	var all []*enginetest.Container
	var links [][]uint32
	for name, options := range map[string][]string{
		"stateless": labelled(network, "xdp.drop=udp"),
		"stateful":  labelled(network, "xdp.egress.drop=53-54/udp"),
		"tcx":       labelled(network, "xdp.egress.drop=53-54/udp", "xdp.hook=tcx"),
		"native":    labelled(network, "xdp.drop=udp", "xdp.hook=native"),
		"two-hooks": append(labelled(network, "xdp.egress.drop=53-54/udp"), "--cap-add", "NET_ADMIN"),
		"wrong":     labelled(network, "xdp.drop=upd"),
	} {
		c := v.Start(image, name, options, steadily(addrA4+":53", "never "+name)...)
		s := await(t, v, c.Name, "is in force", inForce)
		all, links = append(all, c), append(links, linkIDs(s))
	}
	begun := slices.IndexFunc(all, func(c *enginetest.Container) bool { return strings.HasSuffix(c.Name, "stateful") })
	allowed := newTalk(t, v, all[begun], tr.sinks["A"].Container, network, "443")

	for i := range times(3, 100) {
		v.EndAgent([]syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[i%2])
		v.Bin = versions[(i+1)%2]
		if i%2 == 1 { // back, killed on the way
			v.SpawnAgent()
			time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
			v.EndAgent(syscall.SIGKILL)
		}
		if i%4 == 3 { // and away again
			v.Bin = versions[1]
		}
		v.StartAgent()
		for i, c := range all {
			if s := await(t, v, c.Name, "is in force", inForce); !slices.Equal(linkIDs(s), links[i]) {
				t.Errorf("%s: links %v became %v", c.Name, links[i], linkIDs(s))
			}
		}
		v.Wait("the maps of the other version are gone", func() error {
			if found, err := filepath.Glob(filepath.Join(v.Dir, "maps-*")); err != nil || len(found) != 1 {
				return fmt.Errorf("%v, %v", found, err)
			}
			return nil
		})
		allowed.goesOn(t, v)
	}
	for i, c := range all {
		if links[i] != nil && !strings.HasSuffix(c.Name, "wrong") {
			tr.shows(t, c, deniedUDP, allowedUDP)
		}
	}
	for _, a := range tr.sinks["A"].Received() {
		if strings.HasPrefix(a.Text, "never") {
			t.Errorf("%d packets got through: %s", a.Count, a.Text)
		}
	}
	v.Run("rm", "--force", enginetest.Prefix+"wrong") // whose resolver is closed, too
	settled(t, v)
}

// inForce says that a container is filtered or closed on its only interface.
func inForce(s agent.ContainerStatus) bool {
	return (filtered(s) || s.State == agent.Quarantined) && len(s.Interfaces) == 1
}
