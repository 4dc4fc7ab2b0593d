package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/internal/enginetest"
)

// eventsIn are the packets among lines of JSON, without their time.
func eventsIn(t *testing.T, lines []string) (out []agent.Event) {
	t.Helper()
	for _, line := range lines {
		var doc eventDocument
		if err := json.Unmarshal([]byte(line), &doc); err != nil || doc.Schema != 1 {
			t.Fatalf("%v: %s", err, line)
		}
		if doc.Type == "packet" {
			doc.Time = time.Time{}
			out = append(out, doc.Event)
		}
	}
	return out
}

// sendUDP sends one datagram from port 1234 to a port of A.
func sendUDP(t *testing.T, v *enginetest.Vethwall, from *enginetest.Container, port string) {
	t.Helper()
	from.With(v.Docker.With(t)).MustDo("udp-send", "-from", "1234", addrA4+":"+port, datagram(from, port))
}

func datagram(from *enginetest.Container, port string) string {
	return "to " + port + " from " + from.Name
}

// holds wants a line that has all words.
func holds(words ...string) func(string) bool {
	return func(line string) bool {
		for _, w := range words {
			if !strings.Contains(line, w) {
				return false
			}
		}
		return true
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	v := enginetest.Own(t).Install()
	image := v.Image()
	network, tr := twoSinks(t, v, image)
	people := v.Follow("events", "-f") // before there is anything to follow
	v.StartAgent()
	one, two := v.Follow("events", "-f", "-o", "json"), v.Follow("events", "-f", "-o", "json")
	web := v.Start(image, "web", labelled(network, "xdp.egress.drop=53/udp"))
	awaitFilter(t, v, web.Name, 1)
	own := web.Addr(network, 4)
	sendUDP(t, v, web, "54") // passes, and is no event
	sendUDP(t, v, web, "53")

	t.Run("for people", func(t *testing.T) {
		want := "UDP " + own.String() + ":1234 > " + addrA4 + ":53  rule 53/udp"
		for _, line := range people.Await("the drop", holds(web.Name+"  dropped sent", want)) {
			if strings.Contains(line, "ifindex") || strings.Contains(line, addrA4+":54") {
				t.Errorf("line %q", line)
			}
		}
		if once := v.With(t).MustAsk("events", web.Name); !holds(web.Name, want)(once) || strings.Contains(once, addrA4+":54") {
			t.Errorf("events %s: %s", web.Name, once)
		}
	})
	t.Run("two readers", func(t *testing.T) {
		last := holds(`"dst_port":53`, web.ID)
		a, b := eventsIn(t, one.Await("the drop", last)), eventsIn(t, two.Await("the drop", last))
		if !reflect.DeepEqual(a, b) {
			t.Errorf("one sees\n%+v\nthe other\n%+v", a, b)
		}
		e := a[len(a)-1]
		s, _ := statusOf(t, v, web.Name)
		if e.ID != web.ID || e.Name != web.Name || e.Network != network || e.Ifindex != s.Interfaces[0].Ifindex || e.Ifname != s.Interfaces[0].Ifname ||
			e.Verdict != agent.Dropped || e.Direction != "egress" || e.Reason != "rule" || e.Rule != "53/udp" ||
			e.Src != own || e.SrcPort != 1234 || e.Dst != netip.MustParseAddr(addrA4) || e.Protocol != "udp" {
			t.Errorf("%+v", e)
		}
	})
	t.Run("log", func(t *testing.T) { eventsLogged(t, v, tr, image, network, people) })
	t.Run("restarted", func(t *testing.T) {
		v := v.With(t)
		named := v.Follow("events", "-f", web.Name)
		named.Await("what was before", holds(addrA4+":53"))
		before := len(named.Lines())
		v.Run("restart", "--time", "0", web.ID)
		awaitFilter(t, v, web.Name, 1)
		sendUDP(t, v, web, "53")
		v.Wait("the drop on the new veth", func() error { return morethan(named.Lines(), before, ":1234 > "+addrA4+":53  rule 53/udp") })
		if code, stderr := named.End(syscall.SIGINT); code != 0 || stderr != "" {
			t.Errorf("SIGINT: exit code %d, %q", code, stderr)
		}
	})
	t.Run("no such container", func(t *testing.T) {
		for _, name := range []string{"no-such-container", tr.marker.Name} {
			if a := v.With(t).Ask("events", name); a.Code != 1 || a.Stdout != "" || !strings.Contains(a.Stderr, "no running container") {
				t.Errorf("%s: %+v", name, a)
			}
		}
	})
	t.Run("agent killed", func(t *testing.T) {
		v.EndAgent(syscall.SIGKILL)
		before := len(people.Lines())
		sendUDP(t, v, web, "53")
		v.With(t).Wait("a drop without an agent", func() error { return morethan(people.Lines(), before, web.Name+" ", "rule 53/udp") })
	})
	t.Run("uninstalled and back", func(t *testing.T) {
		v := v.With(t)
		v.MustAsk("uninstall")
		if a := v.Ask("events"); a.Code != 0 || a.Stdout != "" || !strings.Contains(a.Stderr, "no events") {
			t.Errorf("events of nothing: %+v", a)
		}
		v.StartAgent()
		awaitFilter(t, v, web.Name, 1)
		before := len(people.Lines())
		sendUDP(t, v, web, "53")
		v.Wait("a drop under another ring", func() error { return morethan(people.Lines(), before, web.Name+" ", "rule 53/udp") })
		if code, stderr := people.End(syscall.SIGTERM); code != 0 || stderr != "" {
			t.Errorf("SIGTERM: exit code %d, %q", code, stderr)
		}
	})
}

// morethan wants a line with all words behind the first n.
func morethan(lines []string, n int, words ...string) error {
	if !slices.ContainsFunc(lines[n:], holds(words...)) {
		return fmt.Errorf("no line has %q:\n%s", words, strings.Join(lines[n:], "\n"))
	}
	return nil
}

// eventsLogged shows what xdp.log and audit mode make of the same two datagrams, which is no matter of what arrives.
func eventsLogged(t *testing.T, v *enginetest.Vethwall, tr *traffic, image, network string, people *enginetest.Follower) {
	const rule = "xdp.egress.drop=53/udp"
	v = v.With(t)
	marker := v.Start(image, "marker", labelled(network, rule))
	awaitFilter(t, v, marker.Name, 1)
	for _, tc := range []struct {
		name, label string
		said        map[string]string // by port
		arrives     bool              // that to port 53
	}{
		{"log-all", "xdp.log=all", map[string]string{"53": "dropped", "54": "passed"}, false},
		{"log-none", "xdp.log=none", nil, false},
		{"audit", "xdp.mode=audit", map[string]string{"53": "would drop"}, true},
	} {
		c := v.Start(image, tc.name, labelled(network, rule, tc.label))
		await(t, v, c.Name, "is filtered", func(s agent.ContainerStatus) bool { return filtered(s) || s.State == agent.Audit })
		for _, port := range []string{"53", "54"} {
			sendUDP(t, v, c, port)
		}
		before := len(people.Lines())
		sendUDP(t, v, marker, "53")
		v.Wait("what was sent later", func() error { return morethan(people.Lines(), before, marker.Name+" ", addrA4+":53") })
		for _, port := range []string{"53", "54"} {
			about := func(line string) bool { return holds(c.Name+" ", ":1234 > "+addrA4+":"+port)(line) }
			lines := slices.DeleteFunc(people.Lines(), func(line string) bool { return !about(line) })
			want := tc.said[port]
			if want == "" && len(lines) > 0 || want != "" && (len(lines) != 1 || !strings.Contains(lines[0], want)) {
				t.Errorf("%s, port %s: %q, want %q", tc.name, port, lines, want)
			}
			if n := tr.sinks["A"].With(v.Docker).Count(datagram(c, port)); n != map[bool]int{true: 1}[port == "54" || tc.arrives] {
				t.Errorf("%s, port %s: %d arrived", tc.name, port, n)
			}
		}
	}
}
