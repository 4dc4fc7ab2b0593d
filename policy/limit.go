package policy

// RuleRef names a rule: indexes into a Stack and into the Rules of that source's policy.
type RuleRef struct{ Source, Rule int }

// Limited are the limits that a packet counts against in its direction: those of what it asks for, and of what it
// answers, whoever opened the conversation. What cannot be read counts against all that it could. ARP, neighbour
// discovery and MLD count against none.
func (s Stack) Limited(dir Direction, frame []byte) (out []RuleRef) {
	pkt := readFrame(frame)
	if pkt.builtIn(dir) {
		return nil
	}
	if pkt.isError() {
		pkt = pkt.answered()
	}
	for i, source := range s {
		for j, r := range source.Policy.Rules {
			if r.Verb == Limit && r.In[dir] && source.Policy.mayHold(r.Match, dir, pkt) {
				out = append(out, RuleRef{i, j})
			}
		}
	}
	return out
}

// mayHold reports whether m holds for anything that pkt can be, or for what it answers.
func (p Policy) mayHold(m Match, dir Direction, pkt packet) bool {
	for s := range p.subjects(dir, pkt) {
		if m.holds(s) {
			return true
		}
	}
	answers := pkt.class == oneIP && pkt.serviceKnown && transportSize(pkt.dst.Is6(), pkt.proto) > 0 && pkt.icmp == nil
	return answers && m.holds(subject{true, pkt.peer(dir), pkt.proto, pkt.from})
}
