package policy

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
}
