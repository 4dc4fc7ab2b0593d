package policy

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"go4.org/netipx"
)

var (
	directionWords = [...]string{"egress", "ingress"}
	verbWords      = [...]string{"drop", "except", "allow", "limit"}
	defaultWords   = [...]string{"", "allow", "drop"}
	modeWords      = [...]string{"enforce", "audit"}
	hookWords      = [...]string{"auto", "generic", "native", "tcx"}
	logWords       = [...]string{"drops", "all", "none"}
	groupWords     = [...]string{"internet", "private", "lan", "neighbors", "host", "multicast", "ipv4", "ipv6"}
	kindWords      = [...]string{"all", "proto", "ports", "icmp", "ping", "icmp-types", "dns", "metadata"}
)

// protoNames are the protocols that labels know by name. ICMPv6 (58) goes by icmp, which is a Kind of
// its own.
var protoNames = map[uint8]string{2: "igmp", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 51: "ah", 132: "sctp"}

// word is for enums: the canonical spelling, or the number where there is none.
func word[T ~uint8](words []string, v T) string {
	if int(v) < len(words) {
		return words[v]
	}
	return strconv.Itoa(int(v))
}

// String is egress or ingress.
func (d Direction) String() string { return word(directionWords[:], d) }

// String is the verb's word in a key.
func (v Verb) String() string { return word(verbWords[:], v) }

// String is allow, drop, or "" for Unset.
func (d Default) String() string { return word(defaultWords[:], d) }

// String is the value of xdp.mode.
func (m Mode) String() string { return word(modeWords[:], m) }

// String is the value of xdp.hook.
func (h Hook) String() string { return word(hookWords[:], h) }

// String is the value of xdp.log.
func (l Log) String() string { return word(logWords[:], l) }

// String is the group's name in a match.
func (g Group) String() string { return word(groupWords[:], g) }

// String names the kind for messages about it; a match's text is What.String.
func (k Kind) String() string { return word(kindWords[:], k) }

// String is the canonical text of the match, as it stands in a label. ParseMatch gives the same match
// again.
func (m Match) String() string {
	switch {
	case m.Peers.Any():
		return m.What.String()
	case m.What.Kind == All:
		return m.Peers.String()
	}
	return m.What.String() + "@" + m.Peers.String()
}

// String is the left side of a match, canonical.
func (w What) String() string {
	switch w.Kind {
	case Proto:
		return protoText(w.Proto)
	case Ports:
		parts := make([]string, len(w.Ports))
		for i, r := range w.Ports {
			parts[i] = r.String()
		}
		return strings.Join(parts, "+") + "/" + protoText(w.Proto)
	case ICMPTypes:
		return typesText(w.Types) + "/icmp"
	}
	return w.Kind.String()
}

// String is N or N-N.
func (r PortRange) String() string {
	from := strconv.Itoa(int(r.From))
	if r.From == r.To {
		return from
	}
	return from + "-" + strconv.Itoa(int(r.To))
}

func protoText(proto uint8) string {
	if name, ok := protoNames[proto]; ok {
		return name
	}
	return "proto-" + strconv.Itoa(int(proto))
}

// ProtoName is what users call an IANA protocol number: "udp", "icmpv6", or "proto-N".
func ProtoName(proto uint8) string {
	switch proto {
	case protoICMP:
		return "icmp"
	case protoICMPv6:
		return "icmpv6"
	}
	return protoText(proto)
}

// String is the IANA name of the type, or its number.
func (t ICMPType) String() string {
	for _, e := range icmpNames {
		if !t.V6 && e.v4 == int(t.Type) || t.V6 && e.v6 == int(t.Type) {
			return e.name
		}
	}
	return strconv.Itoa(int(t.Type))
}

// typesText is the name that stands for exactly these types; a set that no name stands for came from
// a number, which is the same in all of them.
func typesText(types []ICMPType) string {
	for _, e := range icmpNames {
		if named, _ := judgedTypes(e.v4, e.v6); len(named) > 0 && slices.Equal(named, types) {
			return e.name
		}
	}
	if len(types) == 0 {
		return ""
	}
	return strconv.Itoa(int(types[0].Type))
}

// String is the right side of a match, canonical, without the "@"; "" for everybody.
func (p Peers) String() string {
	parts := make([]string, 0, len(p.Ranges)+len(p.Groups))
	for _, r := range p.Ranges {
		parts = append(parts, rangeText(r))
	}
	for _, g := range p.Groups {
		parts = append(parts, g.String())
	}
	return strings.Join(parts, "+")
}

// rangeText is an address, a CIDR where the range is exactly one, else from-to.
func rangeText(r netipx.IPRange) string {
	if r.From() == r.To() {
		return r.From().String()
	}
	if p, ok := r.Prefix(); ok {
		return p.String()
	}
	return r.From().String() + "-" + r.To().String()
}

// rateUnits are the units of xdp.limit, largest first.
var rateUnits = []struct {
	name  string
	bits  bool
	count uint64
}{
	{"gbit", true, 1e9},
	{"mbit", true, 1e6},
	{"kbit", true, 1e3},
	{"kpps", false, 1e3},
	{"pps", false, 1},
}

// String is the rate in the largest unit that holds it without a fraction. Rates that labels can
// state are whole numbers of kbit or pps.
func (r Rate) String() string {
	for _, u := range rateUnits {
		if u.bits == r.Bits && r.Count%u.count == 0 && r.Count > 0 {
			return strconv.FormatUint(r.Count/u.count, 10) + u.name
		}
	}
	if r.Bits {
		return strconv.FormatUint(r.Count, 10) + "bit"
	}
	return strconv.FormatUint(r.Count, 10) + "pps"
}

// Key is the label key that the rule stands under, for example xdp.egress.drop.mail.
func (r Rule) Key() string {
	key := directedKey(r.In, r.Verb.String())
	if r.Name != "" {
		key += "." + r.Name
	}
	return key
}

// directedKey puts the direction into a key; a word that holds for both has none.
func directedKey(in [2]bool, word string) string {
	switch in {
	case [2]bool{true, false}:
		return "xdp.egress." + word
	case [2]bool{false, true}:
		return "xdp.ingress." + word
	}
	return "xdp." + word
}

// text is the rule as an element of its label's list.
func (r Rule) text() string {
	if r.Verb == Limit {
		return r.Match.String() + "=" + r.Rate.String()
	}
	return r.Match.String()
}

// direction orders rules: both, egress, ingress.
func (r Rule) direction() int {
	switch r.In {
	case [2]bool{true, false}:
		return 1
	case [2]bool{false, true}:
		return 2
	}
	return 0
}

// canonicalRules sorts by verb, direction, name and text, and drops what is there twice.
func canonicalRules(rules []Rule) []Rule {
	type entry struct {
		Rule
		text string
	}
	entries := make([]entry, len(rules))
	for i, r := range rules {
		entries[i] = entry{r, r.text()}
	}
	compare := func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.Verb, b.Verb), cmp.Compare(a.direction(), b.direction()),
			cmp.Compare(a.Name, b.Name), cmp.Compare(a.text, b.text))
	}
	slices.SortFunc(entries, compare)
	entries = slices.CompactFunc(entries, func(a, b entry) bool { return compare(a, b) == 0 })
	sorted := make([]Rule, len(entries))
	for i, e := range entries {
		sorted[i] = e.Rule
	}
	return sorted
}

// labels are the policy's labels in canonical order.
func (p Policy) labels() [][2]string {
	var out [][2]string
	add := func(key, value string) {
		if n := len(out); n > 0 && out[n-1][0] == key {
			out[n-1][1] += "," + value
		} else {
			out = append(out, [2]string{key, value})
		}
	}
	for _, r := range p.Rules {
		if r.Verb != Limit {
			add(r.Key(), r.text())
		}
	}
	if p.Default[Egress] == p.Default[Ingress] && p.Default[Egress] != Unset {
		add("xdp.default", p.Default[Egress].String())
	} else {
		for d, v := range p.Default {
			if v != Unset {
				add("xdp."+Direction(d).String()+".default", v.String())
			}
		}
	}
	for _, r := range p.Rules {
		if r.Verb == Limit {
			add(r.Key(), r.text())
		}
	}
	if p.Mode != Enforce {
		add("xdp.mode", p.Mode.String())
	}
	if p.Hook != HookAuto {
		add("xdp.hook", p.Hook.String())
	}
	if p.AntispoofOff {
		add("xdp.antispoof", "false")
	}
	for _, r := range p.Own {
		add("xdp.antispoof", rangeText(r))
	}
	if p.Log != LogDrops {
		add("xdp.log", p.Log.String())
	}
	if p.Program != "" {
		add("xdp.program", p.Program)
	}
	if out == nil {
		add("xdp.enable", "true")
	}
	return out
}

// Labels are the policy as labels: Parse gives the same policy again. A policy that asks for nothing
// but antispoof is xdp.enable=true. Rules must be canonical, as Parse leaves them.
func (p Policy) Labels() map[string]string {
	labels := map[string]string{}
	for _, kv := range p.labels() {
		labels[kv[0]] = kv[1]
	}
	return labels
}

// Text is the canonical text: the labels as key=value in canonical order, joined by one space. Two
// policies are the same exactly when their texts are.
func (p Policy) Text() string {
	var b strings.Builder
	for i, kv := range p.labels() {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(kv[0] + "=" + kv[1])
	}
	return b.String()
}
