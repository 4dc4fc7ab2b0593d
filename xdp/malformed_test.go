package xdp

import (
	"cmp"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/policy/policytest"
)

var update = flag.Bool("update", false, "write the table in docs/packets.md anew")

// TestMalformed holds the programs, the specification and docs/packets.md to the table of unusual frames.
func TestMalformed(t *testing.T) {
	r := newRunner(t)
	m := newMemory(r)
	judged := 0
	for _, section := range policytest.Unusual {
		for _, row := range section.Rows {
			c := rowCheck{t: t, r: r, m: m, row: row, name: section.Title + ": " + row.Name, judged: &judged}
			c.check(policytest.AllowList, row.Allow)
			c.check(policytest.DropList, row.Drop)
			if match, verdict, ok := strings.Cut(row.Is, "="); ok {
				c.check("xdp.drop="+match, verdict)
			}
			if row.Isnt != "" {
				c.check("xdp.drop="+row.Isnt, "pass")
			}
			c.checkOwn(cmp.Or(row.Own, "pass"))
			c.checkNeighbor()
		}
	}
	t.Logf("%d verdicts", judged)
}

// rowCheck compares what the programs say of the frames of a row with what is said elsewhere.
type rowCheck struct {
	t      *testing.T
	r      *runner
	m      memory
	row    policytest.Row
	name   string
	judged *int
}

// check judges the row under labels twice: after what the row says that came before, for which want is the verdict,
// and each frame alone, as a policy without state does.
func (c rowCheck) check(labels, want string) {
	c.t.Helper()
	stack := stackOf(c.t, labels)
	tables, err := Compile(stack)
	must(c.t, err)
	c.r.use(tables)
	for _, h := range hooks {
		want, way := ofDirection(want, h.dir)
		for i, frame := range c.row.Frames(way) {
			c.m.forget(c.t)
			var memory policy.Conversations
			c.before(stack, h, &memory)
			c.compare(labels, h, stack, i, frame, memory.Verdict(stack, h.dir, frame, 0), want)
		}
	}
	tables.flags &^= flagStateful
	c.r.use(tables)
	for _, h := range hooks {
		_, way := ofDirection(want, h.dir)
		for i, frame := range c.row.Frames(way) {
			c.compare(labels, h, stack, i, frame, stack.Verdict(h.dir, frame), "")
		}
	}
}

// checkOwn judges the row as the container sends it under a policy that lets everything pass, by antispoof alone.
func (c rowCheck) checkOwn(want string) {
	c.t.Helper()
	id := policytest.Container()
	stack := policy.Stack{{Origin: "labels"}}
	tables, err := Compile(stack)
	must(c.t, err)
	c.r.use(tables)
	c.r.is(&id)
	defer c.r.is(nil)
	for _, h := range hooks[:2] {
		for i, frame := range c.row.Frames(policytest.Sent()) {
			memory := policy.Conversations{Identity: &id}
			c.compare("antispoof", h, stack, i, frame, memory.Verdict(stack, h.dir, frame, 0), want)
		}
	}
}

// checkNeighbor judges the row as the container receives it from who has none of the addresses that are in it: what could be
// read of them decides.
func (c rowCheck) checkNeighbor() {
	c.t.Helper()
	n := &policy.Neighborhood{Bridge: 7, Port: map[netip.Addr]int{}, Known: []int{8, 9}}
	for _, a := range policytest.Peer() {
		n.Port[a] = 8
	}
	stack := policy.Stack{{Origin: "labels"}}
	tables, err := Compile(stack)
	must(c.t, err)
	c.r.use(tables)
	c.r.around(n)
	defer c.r.around(nil)
	for _, c.r.from = range n.Known {
		for i, frame := range c.row.Frames(policytest.Received()) {
			memory := policy.Conversations{Neighborhood: n, From: c.r.from}
			c.compare("neighbor", hooks[2], stack, i, frame, memory.Verdict(stack, policy.Ingress, frame, 0), "")
		}
	}
}

// ofDirection is the half of a row's verdict for one direction, and the way of its frames.
func ofDirection(verdict string, dir policy.Direction) (string, policytest.Way) {
	sent, received, two := strings.Cut(verdict, "/")
	switch {
	case dir == policy.Egress:
		return sent, policytest.Sent()
	case two:
		return received, policytest.Received()
	}
	return sent, policytest.Received()
}

// before lets the programs and the specification see what came before a frame.
func (c rowCheck) before(stack policy.Stack, h hook, memory *policy.Conversations) {
	c.t.Helper()
	_, way := ofDirection("", h.dir)
	see := func(h hook, frames policytest.Frames, way policytest.Way) {
		if frames == nil {
			return
		}
		for _, frame := range frames(way) {
			want := memory.Verdict(stack, h.dir, frame, 0)
			if got := c.r.run(h, stack, frame); got != want {
				c.t.Errorf("%s, before it, %s: %s: %v, want %v\n%x", c.name, h.name, describe(stack), got, want, frame)
			}
		}
	}
	see(h, c.row.After, way)
	other := hooks[0]
	if h.dir == policy.Egress {
		other = hooks[2]
	}
	see(other, c.row.AfterBack, way.Back())
}

// compare runs the n-th frame of the row. want is the verdict by its reason; "" for what the specification says.
func (c rowCheck) compare(labels string, h hook, stack policy.Stack, n int, frame []byte, specified policy.Verdict, want string) {
	c.t.Helper()
	if want != "" && specified.Reason.String() != want {
		c.t.Errorf("%s, %s, frame %d: %s: specification says %s, table %s\n%x", c.name, h.name, n, labels, specified.Reason, want, frame)
	}
	if h.name != "xdp" && !tcRuns(frame) {
		return // TestMalformedOnAWire sends it
	}
	*c.judged++
	if got := c.r.run(h, stack, frame); got != specified {
		c.t.Errorf("%s, %s, frame %d: %s: program says %v, specification %v\n%x", c.name, h.name, n, labels, got, specified, frame)
	}
}

func stackOf(t *testing.T, labels string) policy.Stack {
	t.Helper()
	m := map[string]string{}
	for label := range strings.FieldsSeq(labels) {
		key, value, _ := strings.Cut(label, "=")
		m[key] = value
	}
	p, _, err := policy.Parse(m)
	must(t, err)
	return policy.Stack{{Origin: "labels", Policy: p}}
}

// TestUnreadIsNoMatch holds the table itself to what it is for: a frame of which something could not be read is
// dropped by a rule that it might be meant by, and by the allow-list.
func TestUnreadIsNoMatch(t *testing.T) {
	unread := map[string]int{}
	for _, section := range policytest.Unusual {
		for _, row := range section.Rows {
			_, verdict, drops := strings.Cut(row.Is, "=")
			if !drops && row.Allow != "pass" {
				t.Errorf("%s: %s: no rule drops it, and it does not pass", section.Title, row.Name)
			}
			if verdict == "rule" || verdict == "rule/pass" || !drops {
				continue
			}
			unread[verdict]++
			if row.Allow == "pass" && row.After == nil && row.AfterBack == nil {
				t.Errorf("%s: %s: unread, and passes the allow-list", section.Title, row.Name)
			}
		}
	}
	for _, reason := range []policy.Reason{policy.Truncated, policy.BadHeader, policy.TooManyTags, policy.TooManyHeaders, policy.Fragment, policy.BadQuote} {
		if unread[reason.String()] == 0 {
			t.Errorf("no row is unread as %s", reason)
		}
	}
}

// The lines of docs/packets.md between which the table stands.
const (
	tableBegin = "<!-- The table is written by go test ./xdp -run Malformed -update -->\n"
	tableEnd   = "<!-- end of the table -->\n"
)

func TestMalformedDocs(t *testing.T) {
	const path = "../docs/packets.md"
	old, err := os.ReadFile(path)
	must(t, err)
	head, rest, begun := strings.Cut(string(old), tableBegin)
	_, tail, ended := strings.Cut(rest, tableEnd)
	if !begun || !ended {
		t.Fatalf("%s: no place for the table", path)
	}
	now := head + tableBegin + table() + tableEnd + tail
	if now == string(old) {
		return
	}
	if !*update {
		t.Fatalf("%s: the table is not what the tests have; -update writes it", path)
	}
	must(t, os.WriteFile(path, []byte(now), 0o644))
}

func table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nAllow-list: `%s`. Drop-list: `%s`.\n", policytest.AllowList, policytest.DropList)
	for _, section := range policytest.Unusual {
		fmt.Fprintf(&b, "\n### %s\n\n| frame | allow-list | drop-list | antispoof | dropped by `xdp.drop=` | not by |\n|---|---|---|---|---|---|\n", section.Title)
		for _, row := range section.Rows {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", row.Name, verdictCell(row.Allow), verdictCell(row.Drop), cmp.Or(row.Own, "pass"), isCell(row), matchCell(row.Isnt))
		}
	}
	return b.String() + "\n"
}

// verdictCell is how the table writes a verdict.
func verdictCell(verdict string) string {
	if sent, received, two := strings.Cut(verdict, "/"); two {
		return sent + "; received: " + received
	}
	return verdict
}

func isCell(row policytest.Row) string {
	match, verdict, drops := strings.Cut(row.Is, "=")
	switch {
	case !drops:
		return "no rule"
	case verdict == "rule":
		return matchCell(match)
	}
	return matchCell(match) + ": " + verdictCell(verdict)
}

func matchCell(match string) string {
	if match == "" {
		return "–"
	}
	return "`" + match + "`"
}
