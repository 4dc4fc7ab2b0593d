package policy

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// MaxAnswered is how many answered conversations a container has unless something else is said.
const MaxAnswered = 16384

// How long a conversation is remembered after its last packet.
const (
	idleUnanswered = 30 * time.Second
	idleClosing    = 30 * time.Second
	idleTCP        = 24 * time.Hour
	idleHalfClosed = 120 * time.Second // where there is no room
	idleUDP        = 180 * time.Second
	idleOther      = 30 * time.Second
	idleForbidden  = 180 * time.Second

	// fragmentTime is how long a first fragment lets later ones pass.
	fragmentTime = 30 * time.Second

	// firstWindow is how many bytes nobody exceeds before a TCP handshake is over (RFC 7413).
	firstWindow = 1 << 20

	// seenStep is how late a packet of an answered conversation must come to count as later than the last.
	seenStep = time.Second / 8
)

// Stateful reports whether a verdict may depend on who opened a conversation: where the directions differ, or where
// the two ways of a conversation ask for different services. A default that drops is always such a case: ICMP errors
// and what answers a broadcast. Of ICMP only a ping that is dropped both ways has no answer that could be told
// from its request.
func (s Stack) Stateful() bool {
	for _, source := range s {
		p := source.Policy
		if !p.PassesByDefault(Egress) || !p.PassesByDefault(Ingress) {
			return true
		}
		for _, r := range p.Rules {
			if r.Verb == Limit {
				continue
			}
			kind := r.Match.What.Kind
			alike := kind == All || kind == Proto || kind == ICMP || kind == Ping && r.Verb == Drop
			if r.In[Egress] != r.In[Ingress] || !alike {
				return true
			}
		}
	}
	return false
}

// Conversations is what the data plane remembers of one container, by the section of that name in docs/packets.md.
// The zero value remembers nothing yet.
//
// Three bounds of the data plane are not modelled: that of conversations that nobody has answered and that of first
// fragments, because which of them the kernel gives up for a new one (an LRU list for each processor) is no
// promise, and that room is made once a second at most. What is compared with the data plane must stay well below the
// first two, and reset the third.
type Conversations struct {
	// MaxAnswered bounds the answered conversations; 0 stands for the constant of that name.
	MaxAnswered int
	// Identity is what the container's packets must carry; nil where that is not judged.
	Identity *Identity
	// Neighborhood says who may send what the container receives, and From is the port by which the next such frame
	// comes in; nil where that is not judged.
	Neighborhood *Neighborhood
	From         int

	open   map[conversationKey]*conversation
	firsts map[fragmentKey]firstFragment
}

// conversationKey names a conversation seen from the container, so that packets both ways have the same one.
type conversationKey struct {
	proto       uint8
	local, peer netip.Addr // the container's address and the other's, of one family
	// The ports are 0 for a protocol without them.
	localPort, peerPort uint16
	// icmp is set for ICMP of the addresses' family.
	icmp icmpKey
}

// icmpKey tells conversations of ICMP apart.
type icmpKey struct {
	echo bool
	// id and localAsks are for echoes: one that the container asks for is another than one that it is asked for.
	id        uint16
	localAsks bool
	// typ is for all other messages: each type is a conversation of its own.
	typ uint16
}

// conversation is what is remembered of one.
type conversation struct {
	// opener is the direction of the packet that opened it, question what that packet asked for.
	opener   Direction
	question subject
	under    string  // the policy that judged it last
	awaited  uint32  // what acknowledges the SYN that answers the opener's, 0 while there is none
	answered bool    // a packet against the opener's direction has passed, after a SYN one more of the opener
	ended    [2]bool // by direction: a TCP FIN has passed
	reset    [2]bool // by direction: a TCP RST has passed, and nothing else since
	guessed  bool    // it is older than what is remembered of it, so that this may not be who opened it
	// forbidden is TCP that the policy does not let go on.
	forbidden bool
	seen      time.Duration
}

// fragmentKey names a fragmented packet (RFC 791: by addresses, protocol and identification).
type fragmentKey struct {
	src, dst netip.Addr
	proto    uint8
	id       uint32
}

// firstFragment is what is remembered of one that has passed.
type firstFragment struct {
	end   int // the first byte that it does not have
	seen  time.Duration
	under string // the policy that let it pass
}

// Verdict judges one frame in direction dir at time now, under s, and remembers what it says about conversations.
// now counts from any moment and never goes back. s may be another with each frame: it is the policy that holds when
// the frame comes. A ByRule verdict may name a rule of the other direction, the one in which the conversation
// was opened.
func (c *Conversations) Verdict(s Stack, dir Direction, frame []byte, now time.Duration) Verdict {
	pkt := readFrame(frame)
	if dir == Egress && c.Identity != nil {
		if why := c.Identity.judge(pkt); why != Pass {
			return s.byNobody(why)
		}
	}
	if dir == Ingress && c.Neighborhood != nil {
		if why := c.Neighborhood.judge(pkt, c.From); why != Pass {
			return s.byNobody(why)
		}
	}
	switch {
	case !s.Stateful() || pkt.builtIn(dir):
		return s.alone(dir, pkt)
	case pkt.later && c.followsFirst(s, pkt, now):
		return passes
	}
	asks := pkt
	if pkt.isError() {
		asks = pkt.answered()
	}
	if asks.class != oneIP || asks.why != Pass || isToMany(asks.dst) {
		return s.alone(dir, pkt)
	}
	v := c.converse(s, dir, asks, pkt.isError(), now)
	// An ICMP error is never so long that it has to be fragmented (RFC 1812 4.3.2.3, RFC 4443 2.4).
	if v.Passes() && pkt.first && !pkt.isError() {
		c.rememberFirst(s, pkt, now)
	}
	return v
}

// isToMany reports whether an address is that of many: whatever answers does so from another one.
func isToMany(dst netip.Addr) bool {
	for _, r := range Multicast.FixedRanges() {
		if r.Contains(dst) {
			return true
		}
	}
	return false
}

// converse judges a packet that was read wholly, from one to one. quoted says that pkt is not the packet itself but
// what an ICMP error is about.
func (c *Conversations) converse(s Stack, dir Direction, pkt packet, quoted bool, now time.Duration) Verdict {
	key := keyOf(dir, pkt)
	open := c.find(key, now)
	if open == nil && quoted {
		return s.byNobody(BadQuote)
	}
	// The policy that it was opened under has judged it. Under another it ends, or not.
	v := passes
	switch {
	case open != nil && open.under == s.text():
	case open != nil && !open.guessed:
		v = s.judge(open.opener, open.question)
	default:
		v = s.judgeOpening(dir, pkt, open != nil && open.answered)
	}
	// On the ports of one that is over, may not go on, or whose opener is a guess, a SYN may open another. Nor does who was
	// asked open one on those of one that goes on.
	if open != nil && isSYN(pkt) {
		replaces := open.isOver() || open.guessed || !v.Passes()
		if replaces || open.answered && dir != open.opener {
			if v = s.judgeOpening(dir, pkt, false); !v.Passes() {
				return v
			}
		}
		if replaces {
			open = nil
		}
	}
	if !v.Passes() {
		if open != nil && key.proto == protoTCP {
			// It stays known as long as anybody sends: who sends next would else open it anew, as one that is older
			// than what is remembered, and that may be the other side, which may.
			open.forbidden, open.seen = true, now
		}
		return v
	}
	if open == nil {
		open = &conversation{opener: dir, question: asked(dir, pkt), guessed: isMidstream(pkt), seen: now}
		if c.open == nil {
			c.open = map[conversationKey]*conversation{}
		}
		c.open[key] = open
		open.noteEnd(dir, pkt)
	} else if !quoted && !c.goOn(open, dir, pkt, now) {
		v = s.byNobody(TableFull)
	}
	open.under, open.forbidden = s.text(), false
	return v
}

// find returns a conversation that is not forgotten yet, else nil.
func (c *Conversations) find(key conversationKey, now time.Duration) *conversation {
	open := c.open[key]
	if open == nil || now-open.seen >= open.idleTime(key.proto) {
		return nil
	}
	return open
}

func (o *conversation) idleTime(proto uint8) time.Duration {
	switch {
	case o.forbidden:
		return idleForbidden
	case !o.answered:
		return idleUnanswered
	case o.isOver():
		return idleClosing
	case proto == protoTCP:
		return idleTCP
	case proto == protoUDP:
		return idleUDP
	}
	return idleOther
}

// isAnsweredBy reports whether a packet of a conversation that nobody has answered answers it. A reset does not: it says that
// nobody is there. A TCP SYN is answered when its sender goes on, and knows the number of the SYN that came back: until then it
// may have come from somebody else.
func (o *conversation) isAnsweredBy(dir Direction, pkt packet) bool {
	switch {
	case pkt.flags&flagRST != 0:
		return false
	case dir == o.opener:
		return o.awaited != 0 && pkt.flags&(flagSYN|flagACK) == flagACK && pkt.ack-o.awaited < firstWindow
	case pkt.flags&flagSYN != 0:
		o.awaited = pkt.seq + 1
	}
	return o.awaited == 0
}

// goOn lets another packet of a conversation pass, unless it is the answer and there is no room.
func (c *Conversations) goOn(open *conversation, dir Direction, pkt packet, now time.Duration) (room bool) {
	open.noteEnd(dir, pkt)
	if !open.answered || now-open.seen > seenStep {
		open.seen = now
	}
	if open.answered || !open.isAnsweredBy(dir, pkt) {
		return true
	}
	if c.numAnswered(now) >= c.maxAnswered() {
		c.forgetHalfClosed(now)
	}
	open.answered = c.numAnswered(now) < c.maxAnswered()
	return open.answered
}

// forgetHalfClosed makes room, where there is none: what one side has closed long ago gives way.
func (c *Conversations) forgetHalfClosed(now time.Duration) {
	maps.DeleteFunc(c.open, func(_ conversationKey, o *conversation) bool {
		return o.answered && (o.ended != [2]bool{} || o.reset != [2]bool{}) && now-o.seen >= idleHalfClosed
	})
}

func (c *Conversations) maxAnswered() int {
	if c.MaxAnswered == 0 {
		return MaxAnswered
	}
	return c.MaxAnswered
}

func (c *Conversations) numAnswered(now time.Duration) int {
	n := 0
	for key, open := range c.open {
		if open.answered && c.find(key, now) != nil {
			n++
		}
	}
	return n
}

// isSYN reports whether pkt opens a TCP connection. On the ports of one that has ended it opens another.
func isSYN(pkt packet) bool {
	return pkt.proto == protoTCP && pkt.flags&(flagSYN|flagACK) == flagSYN
}

// isMidstream reports whether pkt is TCP that does not open a connection.
func isMidstream(pkt packet) bool { return pkt.proto == protoTCP && !isSYN(pkt) }

// noteEnd notes that a side of a TCP connection has ended it. Whoever goes on after a RST of his own has not sent it, or not so
// that it counts. A SYN begins anew.
func (o *conversation) noteEnd(dir Direction, pkt packet) {
	o.reset[dir] = pkt.flags&flagRST != 0
	switch {
	case o.reset[dir]:
	case pkt.flags&flagFIN != 0:
		o.ended[dir] = true
	case isSYN(pkt):
		o.ended, o.reset = [2]bool{}, [2]bool{}
	}
}

// isOver reports whether both sides have ended it, or one of them at once.
func (o *conversation) isOver() bool { return o.reset != [2]bool{} || o.ended == [2]bool{true, true} }

// judgeOpening judges a packet that belongs to no conversation that is known, or to one whose opener is a guess.
//
// A TCP packet other than a SYN is of one that is not known although it passes in its own direction: its entry was given up, or
// it is older than the policy. Whoever sends it may be the one who was asked, and its destination port none that
// anybody opened. So each source has to allow it by a rule, or to let the other side open the conversation as well. Where both
// sides have been heard, it is enough that the other side may have opened it so.
func (s Stack) judgeOpening(dir Direction, pkt packet, either bool) Verdict {
	back := dir.opposite()
	asks := asked(dir, pkt)
	answers := subject{true, pkt.peer(dir), pkt.proto, pkt.from}
	own := s.judge(dir, asks)
	if !isMidstream(pkt) || !own.Passes() && !either {
		return own
	}
	other := s.judge(back, answers)
	switch {
	case s.letsOpen(dir, asks, answers):
		if s.allowsByRule(dir, asks) || own.Reason != Pass {
			return own
		}
		return other
	case own.Passes() || either && s.letsOpen(back, answers, asks):
		return other
	}
	return own
}

// letsOpen reports whether each source allows by a rule what asks for, or lets the conversation be opened both ways.
func (s Stack) letsOpen(dir Direction, asks, answers subject) bool {
	for i, source := range s {
		if s.Audited(i) {
			continue
		}
		if !source.Policy.judge(dir, asks).Passes() {
			return false
		}
		if !source.allowsByRule(dir, asks) && !source.Policy.judge(dir.opposite(), answers).Passes() {
			return false
		}
	}
	return true
}

// asked is what the sender of a packet that was read wholly asks for.
func asked(dir Direction, pkt packet) subject {
	return subject{true, pkt.peer(dir), pkt.proto, pkt.service}
}

// judge is what the sources of s say of something that is wholly known.
func (s Stack) judge(dir Direction, asked subject) Verdict {
	return s.first(func(p Policy) Verdict { return p.judge(dir, asked) })
}

// allowsByRule reports whether some source does.
func (s Stack) allowsByRule(dir Direction, asked subject) bool {
	return slices.ContainsFunc(s, func(source Source) bool { return source.allowsByRule(dir, asked) })
}

// allowsByRule reports whether a rule says that something may be: one that allows it, or an exception from one that drops it.
func (s Source) allowsByRule(dir Direction, asked subject) bool {
	matches := func(verb Verb) bool {
		return slices.ContainsFunc(s.Policy.Rules, func(r Rule) bool {
			return r.Verb == verb && r.In[dir] && r.Match.holds(asked)
		})
	}
	return matches(Allow) || matches(Drop) && matches(Except)
}

func (d Direction) opposite() Direction {
	if d == Egress {
		return Ingress
	}
	return Egress
}

func keyOf(dir Direction, pkt packet) conversationKey {
	k := conversationKey{proto: pkt.proto, local: pkt.src, peer: pkt.dst, localPort: pkt.from, peerPort: pkt.to}
	if dir == Ingress {
		k = conversationKey{proto: pkt.proto, local: pkt.dst, peer: pkt.src, localPort: pkt.to, peerPort: pkt.from}
	}
	if pkt.icmp == nil {
		return k
	}
	request := pingType(pkt.dst.Is6())
	switch pkt.service {
	case request:
		k.icmp = icmpKey{echo: true, id: pkt.echo, localAsks: dir == Egress}
	case oppositeType(pkt.dst.Is6(), uint8(request)):
		k.icmp = icmpKey{echo: true, id: pkt.echo, localAsks: dir == Ingress}
	default:
		k.icmp = icmpKey{typ: pkt.service}
	}
	return k
}

// followsFirst reports whether a later fragment follows a first one that has passed, and leaves it as it was: one
// that overlaps the first could put another header in its place (RFC 1858, RFC 5722).
func (c *Conversations) followsFirst(s Stack, pkt packet, now time.Duration) bool {
	first, ok := c.firsts[fragmentKeyOf(pkt)]
	return ok && first.under == s.text() && now-first.seen < fragmentTime && pkt.part.from >= first.end
}

func (c *Conversations) rememberFirst(s Stack, pkt packet, now time.Duration) {
	if c.firsts == nil {
		c.firsts = map[fragmentKey]firstFragment{}
	}
	c.firsts[fragmentKeyOf(pkt)] = firstFragment{pkt.part.to, now, s.text()}
}

// text tells stacks apart.
func (s Stack) text() (out string) {
	for _, source := range s {
		out += source.Origin + "(" + source.Policy.Text() + ")"
	}
	return out
}

func fragmentKeyOf(pkt packet) fragmentKey {
	return fragmentKey{pkt.src, pkt.dst, pkt.part.proto, pkt.part.id}
}
