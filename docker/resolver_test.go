package docker_test

import (
	"net/http"
	"net/netip"
	"testing"

	"github.com/vethwall/vethwall/docker"
)

// Which name servers of the host's are asked past the veth follows from the engine's version.
func TestFromHost(t *testing.T) {
	e, ctx := engine(t)
	e.Put(docker.Container{ID: id("1"), ImageKnown: true})
	for version, want := range map[string]docker.FromHost{
		"19.03.15": docker.LoopbackFromHost, "20.10.24+dfsg1": docker.LoopbackFromHost, "24.0.7-0ubuntu2~22.04.1": docker.LoopbackFromHost,
		"25.0.6": docker.LoopbackFromHost, "26.0.0": docker.IPv6FromHost, "27.5.1": docker.IPv6FromHost,
		"28.0.0-rc.1": docker.AllFromHost, "28.0.0": docker.AllFromHost, "29.1.1": docker.AllFromHost, "100.0": docker.AllFromHost,
		"": docker.AllFromHost, "dev": docker.AllFromHost, "v20.10": docker.AllFromHost, "0.0.0-20261127": docker.AllFromHost, "2.0.0-beta.24": docker.AllFromHost,
	} {
		e.Handle("/info", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"ServerVersion":"` + version + `"}`))
		})
		if c, err := connect(ctx, t).Inspect(ctx, id("1")); err != nil || c.FromHost != want {
			t.Errorf("%q: %d, %v; want %d", version, c.FromHost, err, want)
		}
	}
	v4, v6, v4Loopback, v6Loopback := netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53"), netip.MustParseAddr("127.0.0.53"), netip.MustParseAddr("::1")
	for f, want := range map[docker.FromHost][4]bool{
		docker.LoopbackFromHost: {false, false, true, true}, docker.IPv6FromHost: {false, true, true, true}, docker.AllFromHost: {true, true, true, true},
	} {
		if got := [4]bool{f.Asks(v4), f.Asks(v6), f.Asks(v4Loopback), f.Asks(v6Loopback)}; got != want {
			t.Errorf("%d: %v, want %v", f, got, want)
		}
	}
}
