package policy

import "net/netip"

var everywhere = prefixes("0.0.0.0/0", "::/0")

// notUnicast is what no single host can have. 240.0.0.0/4, with the broadcast address, is notReachable too.
var notUnicast = prefixes("224.0.0.0/4", "240.0.0.0/4", "ff00::/8")

// embeddings carry an IPv4 address right behind the prefix, and are judged by it.
var embeddings = prefixes(
	"::ffff:0:0/96", // IPv4-mapped, RFC 4291
	"64:ff9b::/96",  // NAT64, RFC 6052
	"2002::/16",     // 6to4, RFC 3056
)

// notReachable are the blocks that IANA's special-purpose address registries (RFC 6890, RFC 8190) do not call
// globally reachable, and reachable those inside of them that are. Blocks that lie in a larger one of the same kind are
// left out, as are the embeddings, and 192.88.99.0/24 (RFC 7526), of which the registry says neither.
var (
	notReachable = prefixes(
		"0.0.0.0/8",       // this network, RFC 791
		"10.0.0.0/8",      // private use, RFC 1918
		"100.64.0.0/10",   // shared address space, RFC 6598
		"127.0.0.0/8",     // loopback, RFC 1122
		"169.254.0.0/16",  // link-local, RFC 3927
		"172.16.0.0/12",   // private use, RFC 1918
		"192.0.0.0/24",    // IETF protocol assignments, RFC 6890
		"192.0.2.0/24",    // documentation, RFC 5737
		"192.168.0.0/16",  // private use, RFC 1918
		"198.18.0.0/15",   // benchmarking, RFC 2544
		"198.51.100.0/24", // documentation, RFC 5737
		"203.0.113.0/24",  // documentation, RFC 5737
		"240.0.0.0/4",     // reserved, RFC 1112; limited broadcast, RFC 919
		"::/127",          // unspecified and loopback, RFC 4291
		"64:ff9b:1::/48",  // local translation, RFC 8215
		"100::/64",        // discard only, RFC 6666
		"100:0:0:1::/64",  // dummy, RFC 9780
		"2001::/23",       // IETF protocol assignments, RFC 2928, with Teredo, RFC 4380
		"2001:db8::/32",   // documentation, RFC 3849
		"3fff::/20",       // documentation, RFC 9637
		"5f00::/16",       // segment routing, RFC 9602
		"fc00::/7",        // unique local, RFC 4193
		"fe80::/10",       // link-local, RFC 4291
	)
	reachable = prefixes(
		"192.0.0.9/32",    // port control anycast, RFC 7723
		"192.0.0.10/32",   // TURN anycast, RFC 8155
		"2001:1::1/128",   // port control anycast, RFC 7723
		"2001:1::2/128",   // TURN anycast, RFC 8155
		"2001:1::3/128",   // service registration anycast, RFC 9665
		"2001:3::/32",     // AMT, RFC 7450
		"2001:4:112::/48", // AS112, RFC 7535
		"2001:20::/28",    // ORCHIDv2, RFC 7343
		"2001:30::/28",    // drone remote ids, RFC 9374
	)
)

// metadataAddrs are where clouds give instances their metadata and credentials, by the clouds' own manuals.
var metadataAddrs = addrs(
	"169.254.169.254",    // AWS, Azure, Google, Oracle, OpenStack and most others
	"fd00:ec2::254",      // AWS
	"169.254.170.2",      // AWS ECS tasks
	"169.254.170.23",     // AWS EKS pods
	"fd00:ec2::23",       // AWS EKS pods
	"168.63.129.16",      // Azure, the wire server
	"fd20:ce::254",       // Google
	"fd00:c1::a9fe:a9fe", // Oracle
	"192.0.0.192",        // Oracle, classic
	"100.100.100.200",    // Alibaba
	"169.254.0.23",       // Tencent
	"fe80::a9fe:a9fe",    // OpenStack
	"169.254.42.42",      // Scaleway
	"fd00:42::42",        // Scaleway
	"fd00:a9fe:a9fe::1",  // Akamai (Linode)
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(texts ...string) (out []netip.Addr) {
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}
