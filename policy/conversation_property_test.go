package policy_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/vethwall/vethwall/policy"
)

// TestAnotherPolicy draws two policies with state and a TCP connection that lives through the change from one to the other. Where it was
// seen to be opened, every packet of it passes the second if and only if its SYN would. Where it is older than the first policy, nothing of it
// passes a second that would let neither side open it.
func TestAnotherPolicy(t *testing.T) {
	r := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	var passed, ended, older int
	for range 6000 {
		before, after := anyWay.Stack(r), anyWay.Stack(r)
		if !before.Stateful() || !after.Stateful() {
			continue
		}
		c := connection{local: uint16(20 + 40*r.IntN(3)), peer: uint16(43 + 200*r.IntN(3))}
		there, back := out, in
		if r.IntN(2) == 0 {
			there, back = in, out
		}
		may := opens(after, c, there)
		switch {
		case r.IntN(3) == 0: // older
			for range 4 {
				c.passes(before, eitherWay(r), ack)
			}
			if may || opens(after, c, back) {
				continue
			}
			older++
		case !c.passes(before, there, syn):
			continue
		case !c.passes(before, back, syn|ack) || !c.passes(before, there, ack) || !c.passes(before, back, ack):
			t.Fatalf("%v cuts what it has let be opened", before)
		case may:
			passed++
		default:
			ended++
		}
		for range 6 {
			if dir := eitherWay(r); c.passes(after, dir, ack) != may {
				t.Fatalf("between ports %d and %d, opened %v under %v: %v passes %v: %t", c.local, c.peer, there, before, dir, after, !may)
			}
		}
	}
	if passed == 0 || ended == 0 || older == 0 {
		t.Errorf("%d went on, %d ended, %d were older", passed, ended, older)
	}
}

// connection is one of TCP between a port of the container and one of yours.
type connection struct {
	local, peer uint16
	policy.Conversations
	now time.Duration
}

func (c *connection) passes(s policy.Stack, dir policy.Direction, n uint8) bool {
	c.now += time.Millisecond
	return c.Verdict(s, dir, flags(n, between(dir, tcp, c.local, c.peer)), c.now).Passes()
}

// opens reports whether s would let c be opened in a direction.
func opens(s policy.Stack, c connection, dir policy.Direction) bool {
	fresh := connection{local: c.local, peer: c.peer}
	return fresh.passes(s, dir, syn)
}

func eitherWay(r *rand.Rand) policy.Direction { return []policy.Direction{in, out}[r.IntN(2)] }
