package policy

// Counts is how many conversations nobody has answered, how many somebody has, and how many first fragments are
// remembered, forgotten or not.
func (c *Conversations) Counts() (unanswered, answered, firsts int) {
	for _, open := range c.open {
		if open.answered {
			answered++
		} else {
			unanswered++
		}
	}
	return unanswered, answered, len(c.firsts)
}
