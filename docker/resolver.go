package docker

import (
	"net/netip"
	"strconv"
	"strings"
)

// FromHost says which of the name servers in the host's resolv.conf the engine's resolver asks from the host's network
// namespace, and so past the container's veth. The others it asks from the container's.
type FromHost uint8

// LoopbackFromHost: those on the host's loopback, by every engine. IPv6FromHost: those of IPv6, too, where the container has none or they
// have a zone, by engines 26 and 27. AllFromHost: by engines from 28 on.
const (
	LoopbackFromHost FromHost = iota
	IPv6FromHost
	AllFromHost
)

// Asks reports whether a, of the host's resolv.conf, is or may be asked from the host.
func (f FromHost) Asks(a netip.Addr) bool {
	return a.IsLoopback() || f == AllFromHost || f == IPv6FromHost && a.Is6()
}

// fromHost is that of an engine of a version, such as "20.10.24+dfsg1" or "28.0.0-rc.1". One that is not understood, as of a build
// of somebody's own, is taken for a new one.
func fromHost(version string) FromHost {
	const first = 17 // versions by year and month; 0.0.0-dev is a build without one
	number, _, _ := strings.Cut(version, ".")
	switch major, err := strconv.Atoi(number); {
	case err != nil || major < first || major >= 28:
		return AllFromHost
	case major >= 26:
		return IPv6FromHost
	}
	return LoopbackFromHost
}
