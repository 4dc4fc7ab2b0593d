package policy_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/vethwall/vethwall/policy"
	. "github.com/vethwall/vethwall/policy/policytest"
)

var anyWay = Draw{Verbs: []policy.Verb{policy.Drop, policy.Drop, policy.Except, policy.Allow}, MaxRules: 8, OneWay: true}

// TestDialoguesReachEverything keeps the comparison with the data plane from being vacuous.
func TestDialoguesReachEverything(t *testing.T) {
	const dialogues, enough = 1200, 30
	r := rand.New(rand.NewPCG(1, 2))
	reasons, events := map[policy.Reason]int{}, map[string]int{}
	for n := range dialogues {
		s := anyWay.Stack(r)
		if !s.Stateful() {
			events["without state"]++
			continue
		}
		c := policy.Conversations{}
		if n%4 == 0 {
			c.MaxAnswered = 1
		}
		other := anyWay.Stack(r)
		for i, step := range Dialogue(r, s) {
			if n%4 == 1 && i == 15 {
				s = other
			}
			u, a, f := c.Counts()
			alone := s.Verdict(step.Dir, step.Frame)
			v := c.Verdict(s, step.Dir, step.Frame, 0)
			nu, na, nf := c.Counts()
			reasons[v.Reason]++
			pass, passAlone := v.Reason == policy.Pass, alone.Reason == policy.Pass
			for name, happened := range map[string]bool{
				"opened":                     nu > u,
				"answered":                   na > a,
				"first fragment":             nf > f,
				"passes only in a context":   pass && !passAlone,
				"passes only alone":          !pass && passAlone,
				"fragment follows":           pass && alone.Reason == policy.Fragment,
				"midstream, by default":      !pass && passAlone && v.Reason == policy.ByDefault,
				"midstream, by rule":         !pass && passAlone && v.Reason == policy.ByRule,
				"error without conversation": v.Reason == policy.BadQuote && alone.Reason != policy.BadQuote,
				"bad quote":                  alone.Reason == policy.BadQuote,
				"carries on":                 pass && nu == u && na == a && nf == f,
			} {
				if happened {
					events[name]++
				}
			}
		}
	}
	t.Log(reasons, events)
	for _, reason := range []policy.Reason{policy.Pass, policy.ByRule, policy.ByDefault, policy.Truncated, policy.BadHeader,
		policy.Fragment, policy.BadQuote, policy.TableFull} {
		if reasons[reason] < enough {
			t.Errorf("%v came up %d times", reason, reasons[reason])
		}
	}
	if len(events) != 12 {
		t.Errorf("%d events came up", len(events))
	}
	for name, count := range events {
		if count < enough {
			t.Errorf("%q came up %d times", name, count)
		}
	}
}

// The frames of a dialogue go between the container and somebody else.
func TestDialoguesAreTheContainers(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	waited := 0
	for range 500 {
		for _, step := range Dialogue(r, anyWay.Stack(r), time.Second) {
			if step.Wait > 0 {
				waited++
			}
			frame := step.Frame
			if len(frame) > 18 && frame[12] == 0x81 && frame[13] == 0 {
				frame = frame[4:]
			}
			if len(frame) < 14 || len(frame) > 1500 {
				t.Fatalf("seed %d: %d bytes", seed, len(frame))
			}
			local, at, size := []byte{192, 0, 2, 1}, 14+12, 4
			switch [2]byte(frame[12:]) {
			case [2]byte{0x08, 0x00}:
			case [2]byte{0x86, 0xdd}:
				local, at, size = []byte{0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, 14+8, 16
			default:
				continue // damaged
			}
			if step.Dir == policy.Ingress {
				at += size
			}
			if len(frame) < at+size {
				continue
			}
			toMany := step.Dir == policy.Ingress && frame[at] >= 0xe0
			if !toMany && !slices.Equal(frame[at:at+size], local) {
				t.Fatalf("seed %d: dir %d, %x", seed, step.Dir, step.Frame)
			}
		}
	}
	if waited < 1000 {
		t.Errorf("seed %d: waited %d times", seed, waited)
	}
}

// A policy without addresses says the same of a world in which all directions are exchanged: no sentence favours one.
func TestConversationsAreSymmetric(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	waits := []time.Duration{time.Second / 16, time.Second, 29 * time.Second, 30 * time.Second, 3 * time.Minute, 24 * time.Hour}
	for range 500 {
		s, mirrored := anyWay.Stack(r), policy.Stack{}
		for i := range s {
			p := &s[i].Policy
			for j := range p.Rules {
				p.Rules[j].Match.Peers = policy.Peers{}
			}
			m := *p
			m.Rules = slices.Clone(p.Rules)
			for j := range m.Rules {
				m.Rules[j].In[0], m.Rules[j].In[1] = m.Rules[j].In[1], m.Rules[j].In[0]
			}
			m.Default[0], m.Default[1] = m.Default[1], m.Default[0]
			mirrored = append(mirrored, policy.Source{Origin: s[i].Origin, Policy: m})
		}
		var c, d policy.Conversations
		now := time.Duration(0)
		for _, step := range Dialogue(r, s, waits...) {
			now += step.Wait
			got, want := d.Verdict(mirrored, 1-step.Dir, step.Frame, now), c.Verdict(s, step.Dir, step.Frame, now)
			if got != want {
				t.Fatalf("seed %d: %x: %v, and mirrored %v", seed, step.Frame, want, got)
			}
		}
	}
}
