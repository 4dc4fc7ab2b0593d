package policy

import "strconv"

// icmpNames are the message types of the IANA registries "ICMP Type Numbers" and "ICMPv6 type
// Numbers" that a rule can judge, in lower case with hyphens; -1 where a family lacks the name. Errors,
// neighbour discovery and MLD stand here too, so that asking for them can be refused by name.
var icmpNames = []struct {
	name   string
	v4, v6 int
}{
	{"echo-reply", 0, 129},
	{"destination-unreachable", 3, 1},
	{"packet-too-big", -1, 2},
	{"source-quench", 4, -1},
	{"redirect", 5, 137},
	{"alternate-host-address", 6, -1},
	{"echo-request", 8, 128},
	{"router-advertisement", 9, 134},
	{"router-solicitation", 10, 133},
	{"time-exceeded", 11, 3},
	{"parameter-problem", 12, 4},
	{"timestamp", 13, -1},
	{"timestamp-reply", 14, -1},
	{"information-request", 15, -1},
	{"information-reply", 16, -1},
	{"address-mask-request", 17, -1},
	{"address-mask-reply", 18, -1},
	{"traceroute", 30, -1},
	{"datagram-conversion-error", 31, -1},
	{"mobile-host-redirect", 32, -1},
	{"where-are-you", 33, -1},
	{"i-am-here", 34, -1},
	{"mobile-registration-request", 35, -1},
	{"mobile-registration-reply", 36, -1},
	{"domain-name-request", 37, -1},
	{"domain-name-reply", 38, -1},
	{"skip", 39, -1},
	{"photuris", 40, -1},
	{"seamoby", 41, 150},
	{"extended-echo-request", 42, 160},
	{"extended-echo-reply", 43, 161},
	{"multicast-listener-query", -1, 130},
	{"multicast-listener-report", -1, 131},
	{"multicast-listener-done", -1, 132},
	{"neighbor-solicitation", -1, 135},
	{"neighbor-advertisement", -1, 136},
	{"router-renumbering", -1, 138},
	{"node-information-query", -1, 139},
	{"node-information-response", -1, 140},
	{"inverse-neighbor-discovery-solicitation", -1, 141},
	{"inverse-neighbor-discovery-advertisement", -1, 142},
	{"version-2-multicast-listener-report", -1, 143},
	{"home-agent-address-discovery-request", -1, 144},
	{"home-agent-address-discovery-reply", -1, 145},
	{"mobile-prefix-solicitation", -1, 146},
	{"mobile-prefix-advertisement", -1, 147},
	{"certification-path-solicitation", -1, 148},
	{"certification-path-advertisement", -1, 149},
	{"multicast-router-advertisement", -1, 151},
	{"multicast-router-solicitation", -1, 152},
	{"multicast-router-termination", -1, 153},
	{"fmipv6", -1, 154},
	{"rpl-control", -1, 155},
	{"ilnpv6-locator-update", -1, 156},
	{"duplicate-address-request", -1, 157},
	{"duplicate-address-confirmation", -1, 158},
	{"mpl-control", -1, 159},
}

// unjudged says why no rule judges a message type as icmp; "" when rules do. An error is judged by
// the packet that it quotes; neighbour discovery and MLD are a matter of antispoof.
func (t ICMPType) unjudged() string {
	switch {
	case t.V6 && t.Type >= 133 && t.Type <= 137:
		return "neighbour discovery, which no rule judges"
	case t.V6 && (t.Type >= 130 && t.Type <= 132 || t.Type == 143):
		return "MLD, which no rule judges"
	case t.IsError():
		return "an ICMP error, which is judged by the packet it quotes"
	}
	return ""
}

// named reports whether the registry gives the type a name.
func (t ICMPType) named() bool { return t.String() != strconv.Itoa(int(t.Type)) }

// judgedTypes keeps, of a message's type in each family (-1 for none), what rules judge. When nothing
// is left it says why.
func judgedTypes(v4, v6 int) (types []ICMPType, why string) {
	for _, t := range []struct {
		v6     bool
		number int
	}{{false, v4}, {true, v6}} {
		if t.number < 0 {
			continue
		}
		typ := ICMPType{V6: t.v6, Type: uint8(t.number)}
		if reason := typ.unjudged(); reason != "" {
			why = reason
			continue
		}
		types = append(types, typ)
	}
	return types, why
}

// icmpTypes turns an IANA name or a number into the types that rules judge. A name stands for the
// message in every family that has it. A number stands for the type of that number in both families,
// whatever they mean there. What is an error, neighbour discovery or MLD in a family is left out
// there: 8 is ICMP's echo request alone, because 8 is an error in ICMPv6. When no family is left, or
// only one where nothing goes by that number, types is empty and why says what the type is; why is ""
// when s is no type at all.
func icmpTypes(s string) (types []ICMPType, why string) {
	if n, ok := number(s, 255); ok {
		types, why = judgedTypes(n, n)
		if why != "" && len(types) == 1 && !types[0].named() {
			return nil, why
		}
		return types, why
	}
	for _, e := range icmpNames {
		if e.name == s {
			return judgedTypes(e.v4, e.v6)
		}
	}
	return nil, ""
}
