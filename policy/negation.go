package policy

import "strings"

const noNegation = "nothing can be negated with !"

// negated is the hint for a match under r that is negated, or some of whose peers are: what is meant by it has a key of its
// own, which is except beside drop, and drop beside allow.
func negated(r Rule, text string) string {
	other, why := "except", "what is exempt"
	if r.Verb == Allow {
		other, why = "drop", "what shall not pass"
	}
	if r.Verb == Except || r.Verb == Limit || len(text) > maxSlip {
		return noNegation
	}
	key := directedKey(r.In, other)
	here, there := splitNegated(text)
	switch {
	case !r.reads(there):
	case here == "":
		return why + " stands under " + key + ": write " + there + " there"
	case r.reads(here):
		return noNegation + ": write " + here + " here, and " + there + " under " + key
	}
	return noNegation
}

// splitNegated takes a match apart into what stands in it without a ! and what stands behind one, each with the left side of
// both: udp@192.0.2.0/24+!192.0.2.1 into udp@192.0.2.0/24 and udp@192.0.2.1. What is left of udp@!192.0.2.1 is udp, and
// of what begins with a ! nothing.
func splitNegated(text string) (plain, behind string) {
	if whole, ok := strings.CutPrefix(text, "!"); ok {
		behind, _ = trim(whole)
		return "", behind
	}
	what, peers, ok := strings.Cut(text, "@")
	left := what + "@"
	if !ok {
		what, peers, left = "", text, ""
	}
	var kept, not []string
	for _, p := range split(peers, '+') {
		if bare, is := strings.CutPrefix(p, "!"); is {
			not = append(not, bare)
		} else {
			kept = append(kept, p)
		}
	}
	if plain = what; len(kept) > 0 {
		plain = left + strings.Join(kept, "+")
	}
	return plain, left + strings.Join(not, "+")
}
