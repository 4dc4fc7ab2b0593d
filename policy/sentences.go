package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Sentences say in plain English what s does: a sentence for each direction of each source, and more on what holds for all
// of it. Long lists are cut; the canonical text is
// the whole truth.
func (s Stack) Sentences() []string {
	var out []string
	for dir, head := range [...]string{Egress: "What the container sends", Ingress: "What it receives"} {
		for _, source := range s {
			by := ""
			if len(s) > 1 {
				by = ", by " + originPhrase(source.Origin)
			}
			out = append(out, head+by+": "+source.Policy.clauses(Direction(dir))+".")
		}
	}
	if len(s) > 1 {
		out = append(out, "A packet passes only if each of these lets it pass.")
	}
	if s.Stateful() {
		out = append(out, "A conversation is judged by its first packet; replies to one that may be opened pass.")
	}
	for i, source := range s {
		if s.Audited(i) {
			out = append(out, "Audit: what "+originPhrase(source.Origin)+" would drop is counted and passes.")
		}
	}
	if len(s) > 0 {
		out = append(out, s[0].Policy.antispoofSentence())
	}
	if s.LogsPasses() {
		out = append(out, "Packets that pass are logged, too.")
	}
	return out
}

func (p Policy) antispoofSentence() string {
	if p.AntispoofOff {
		return "Whether packets carry the container's own addresses is not judged."
	}
	own := "addresses"
	if len(p.Own) > 0 {
		own += ", or those of " + Peers{Ranges: p.Own}.phrase()
	}
	return "What it sends must carry its own MAC and " + own + "; router advertisements, redirects and a DHCP server's packets are dropped."
}

func originPhrase(origin string) string {
	switch origin {
	case "labels":
		return "the container's labels"
	case OriginImage:
		return "the image's labels"
	case "floor":
		return "the floor"
	case "config":
		return "the configuration"
	}
	return origin
}

// clauses are what p does with packets of a direction, joined by semicolons, in the order in which a
// packet meets them.
func (p Policy) clauses(dir Direction) string {
	drops, excepts, allows := p.phrases(Drop, dir), p.phrases(Except, dir), p.phrases(Allow, dir)
	all := slices.Contains(drops, everything)
	if all {
		drops = []string{everything}
		if len(allows) == 0 && !p.PassesByDefault(dir) {
			excepts = nil // what is excepted falls to the default
		}
	}
	var out []string
	if len(drops) > 0 {
		clause := list(drops, "and", " is dropped", " are dropped")
		if len(excepts) > 0 {
			clause += " except " + list(excepts, "and", "", "")
		}
		out = append(out, clause)
	}
	if all && len(excepts) == 0 {
		return out[0] // nothing is left for what follows
	}
	rest := everything
	if len(drops) > 0 {
		rest = "everything else"
	}
	if len(allows) > 0 {
		clause := list(allows, "and", " passes", " pass")
		if len(drops) > 0 {
			clause = "of the rest " + clause
		}
		out, rest = append(out, clause), "everything else"
	}
	switch {
	case !p.PassesByDefault(dir):
		out = append(out, rest+" is dropped")
	case !all: // else what is excepted from all is what passes
		out = append(out, rest+" passes")
	}
	var limits []string
	for _, r := range p.Rules {
		if r.Verb == Limit && r.In[dir] && r.Match.meets(dir) {
			limits = append(limits, r.Match.phrase(dir)+" is held to "+r.Rate.String())
		}
	}
	if len(limits) > 0 {
		out = append(out, list(limits, "and", "", ""))
	}
	return strings.Join(out, "; ")
}

const everything = "everything"

// phrases are the matches under a verb in a direction, each once.
func (p Policy) phrases(v Verb, dir Direction) []string {
	var out []string
	seen := map[string]bool{}
	for _, r := range p.Rules {
		if r.Verb != v || !r.In[dir] || !r.Match.meets(dir) {
			continue
		}
		if phrase := r.Match.phrase(dir); !seen[phrase] {
			seen[phrase] = true
			out = append(out, phrase)
		}
	}
	return out
}

// meets reports whether m matches anything that is sent in that direction: the container does not receive name resolution
// by its resolvers, nor anything that comes from where only is sent to.
func (m Match) meets(dir Direction) bool {
	_, destinations := m.Peers.destinations()
	return dir == Egress || m.What.Kind != DNS && !destinations
}

// phrase is m as a noun in the singular.
func (m Match) phrase(dir Direction) string {
	if m.Peers.Any() {
		return m.What.phrase()
	}
	preposition := " to "
	switch {
	case dir == Ingress:
		preposition = " from "
	case m.What.Kind == Ports:
		preposition = " of " // after "to port"
	}
	return m.What.phrase() + preposition + m.Peers.phrase()
}

func (w What) phrase() string {
	switch w.Kind {
	case All:
		return everything
	case Proto:
		if name, ok := protoNames[w.Proto]; ok {
			return strings.ToUpper(name)
		}
		return fmt.Sprintf("IP protocol %d", w.Proto)
	case Ports:
		parts := make([]string, len(w.Ports))
		for i, r := range w.Ports {
			parts[i] = r.String()
		}
		noun := " to port "
		if len(w.Ports) > 1 || w.Ports[0].From != w.Ports[0].To {
			noun = " to ports "
		}
		return strings.ToUpper(protoNames[w.Proto]) + noun + list(parts, "or", "", "")
	case ICMP:
		return "ICMP"
	case Ping:
		return "ping"
	case ICMPTypes:
		return "ICMP type " + typesText(w.Types)
	case DNS:
		return "name resolution by its resolvers"
	case Metadata:
		return "access to cloud metadata"
	}
	panic(fmt.Sprintf("kind %d of a match is not known", w.Kind))
}

// groupPhrases are what the groups are to people.
var groupPhrases = [...]string{
	"the internet", "private addresses", "the local network", "neighbors on its networks", "the host",
	"multicast or broadcast addresses", "IPv4 addresses", "IPv6 addresses",
}

func (p Peers) phrase() string {
	var parts []string
	for _, g := range p.Groups {
		parts = append(parts, word(groupPhrases[:], g))
	}
	for _, r := range p.Ranges {
		parts = append(parts, rangeText(r))
	}
	return list(parts, "or", "", "")
}

// longest is how many elements of a list a sentence names.
const longest = 8

// list joins with commas and a last word, "a, b and c", puts the number of what is too many in its place,
// and appends one or many, depending on how many elements there are.
func list(elements []string, last, one, many string) string {
	if len(elements) == 1 {
		return elements[0] + one
	}
	if more := len(elements) - longest + 1; more > 1 {
		elements = append(slices.Clone(elements[:longest-1]), fmt.Sprintf("%d more", more))
	}
	n := len(elements) - 1
	return strings.Join(elements[:n], ", ") + " " + last + " " + elements[n] + many
}
