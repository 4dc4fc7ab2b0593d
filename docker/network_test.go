package docker_test

import (
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/docker/dockertest"
)

func TestNetworks(t *testing.T) {
	e, ctx := engine(t)
	c := connect(ctx, t)
	one := docker.Network{ID: id("1"), Name: "one", Driver: "bridge", Bridge: "br-111111111111",
		Subnets:  []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}}
	host := docker.Network{ID: id("0"), Name: "host", Driver: "host"}
	named := docker.Network{ID: id("2"), Name: "two", Driver: "bridge", Bridge: "shop0"}
	e.PutNetwork(one)
	e.PutNetwork(host)
	e.PutNetwork(named)
	got, err := c.Networks(ctx)
	same := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	sameAddr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if d := cmp.Diff([]docker.Network{host, one, named, dockertest.None}, got, same, sameAddr); d != "" || err != nil {
		t.Error(err, d)
	}
	e.Handle("/networks", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`[{"Id":"x","IPAM":{"Config":[{"Subnet":"192.0.2.9/24","Gateway":"192.0.2.1/24"},{"Subnet":"","Gateway":"none"}]}},{"Id":"y"}]`))
	})
	got, err = c.Networks(ctx)
	if err != nil || len(got) != 2 || len(got[0].Subnets) != 1 || got[0].Subnets[0] != one.Subnets[0] || len(got[0].Gateways) != 1 || got[0].Gateways[0] != one.Gateways[0] {
		t.Errorf("%+v, %v", got, err)
	}
	for _, answer := range []string{"", "[]", "null", "garbage", `[{"Id":"x"`} {
		e.Handle("/networks", func(w http.ResponseWriter, _ *http.Request) {
			if answer == "" {
				w.WriteHeader(http.StatusForbidden)
			}
			_, _ = w.Write([]byte(answer))
		})
		if got, err := c.Networks(ctx); err == nil {
			t.Errorf("answer %q: %v, and no error", answer, got)
		}
	}
}

func TestAttachments(t *testing.T) {
	e, ctx := engine(t)
	e.Put(web)
	c := connect(ctx, t)
	for _, ep := range web.Networks {
		got, err := c.Attachments(ctx, ep.NetworkID)
		if d := cmp.Diff([]docker.Attachment{{ContainerID: web.ID, MAC: ep.MAC, Addrs: ep.Addrs}}, got, compare); d != "" || err != nil {
			t.Error(err, d)
		}
	}
	// An engine from 28 on that is starting a container.
	e.Handle("/networks/"+id("1"), func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"Id":"` + id("1") + `","Containers":{"ep-` + id("2") + `":{"MacAddress":"00:00:5e:00:53:07"},"` + id("3") + `":{"MacAddress":""}}}`))
	})
	got, err := c.Attachments(ctx, id("1"))
	if d := cmp.Diff([]docker.Attachment{{MAC: net.HardwareAddr{0, 0, 0x5e, 0, 0x53, 7}}}, got); d != "" || err != nil {
		t.Error(err, d)
	}
	if _, err := c.Attachments(ctx, id("9")); !errdefs.IsNotFound(err) {
		t.Errorf("no such network: %v", err)
	}
}
