package policy

import "slices"

// OriginImage is the origin of the labels of an image, which is not trusted to open anything.
const OriginImage = "image"

// Source is a policy and where it came from. Each source is judged on its own and a packet must pass
// all of them: none opens what another closes.
type Source struct {
	// Origin is what users read: "labels" for the labels of docker run, "image" for the image's,
	// "floor" and "config" for the agent's configuration.
	Origin string
	Policy Policy
}

// Stack is everything that holds for one container, in the order floor, config, labels, image.
// The first source that does not let a packet pass names the verdict.
type Stack []Source

// Verdict is what becomes of a packet, and why.
type Verdict struct {
	Reason Reason
	// Source is an index into the Stack and Rule one into its Rules, for ByRule; both are -1 else.
	Source, Rule int
	// Audited: the packet passes all the same, because the source of the reason is in audit mode.
	Audited bool
}

// Passes reports whether the packet goes on.
func (v Verdict) Passes() bool { return v.Reason == Pass || v.Audited }

// Audited reports whether what source i says is only counted: audit mode holds for a source and those after it.
func (s Stack) Audited(i int) bool {
	return slices.ContainsFunc(s[:i+1], func(source Source) bool { return source.Policy.Mode == Audit })
}

// LogsDrops reports whether what source i drops goes to the event stream, which none silences for a source and those
// after it.
func (s Stack) LogsDrops(i int) bool {
	return !slices.ContainsFunc(s[:i+1], func(source Source) bool { return source.Policy.Log == LogNone })
}

// LogsPasses reports whether passes go to the event stream, too.
func (s Stack) LogsPasses() bool {
	i := slices.IndexFunc(s, func(source Source) bool { return source.Policy.Log == LogAll })
	return i >= 0 && s.LogsDrops(i)
}

// byNobody is the verdict for a reason that lies in no source: all of them together give it.
func (s Stack) byNobody(r Reason) Verdict { return Verdict{r, -1, -1, len(s) > 0 && s.Audited(0)} }
