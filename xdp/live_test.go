package xdp

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vethwall/vethwall/policy"
)

// live is a TCP connection in use. One message at a time is under way, so that nothing is lost for want of room.
type live struct {
	t    *testing.T
	name string
	// ends are the opener's and the other one's.
	ends [2]net.Conn
	sent int
}

const (
	opener = iota
	answerer
)

// lives opens connections of both families, out from the container to port 443 and in to its port 25.
func (n *network) lives() (all []*live) {
	n.t.Helper()
	hurry := func() { sysctl(n.t, "ipv4/tcp_rto_min_us", "60000") } // what is held is sent again sooner, if the kernel can
	hurry()
	n.inContainer(hurry)
	for _, host := range []string{"192.0.2.1", "[2001:db8::1]"} {
		l, err := net.Listen("tcp", host+":443")
		must(n.t, err)
		n.inContainer(func() { all = append(all, n.live("out to "+host, l, host+":443")) })
	}
	for _, container := range []string{"192.0.2.2", "[2001:db8::2]"} {
		var l net.Listener
		var err error
		n.inContainer(func() {
			l, err = net.Listen("tcp", container+":25")
			must(n.t, err)
		})
		all = append(all, n.live("in to "+container, l, container+":25"))
	}
	for _, l := range all {
		l.goesOn(opener, "without a filter")
	}
	return all
}

// live opens a connection from this namespace, and closes the listener.
func (n *network) live(name string, l net.Listener, addr string) *live {
	n.t.Helper()
	defer l.Close()
	c, err := net.DialTimeout("tcp", addr, soon)
	must(n.t, err)
	accepted, err := l.Accept()
	must(n.t, err)
	for _, end := range []net.Conn{c, accepted} {
		must(n.t, end.(*net.TCPConn).SetLinger(0)) // so that the next one may have the port
	}
	return &live{t: n.t, name: name, ends: [2]net.Conn{c, accepted}}
}

func (l *live) close() {
	_ = l.ends[opener].Close()
	_ = l.ends[answerer].Close()
}

// say writes a message at one end.
func (l *live) say(end int) string {
	l.t.Helper()
	l.sent++
	text := fmt.Sprintf("%06d", l.sent)
	_, err := l.ends[end].Write([]byte(text))
	must(l.t, err)
	return text
}

// hears returns the next message that arrives at one end, "" if none does in time.
func (l *live) hears(end int, wait time.Duration) string {
	l.t.Helper()
	must(l.t, l.ends[end].SetReadDeadline(time.Now().Add(wait)))
	b := make([]byte, 6)
	if _, err := l.ends[end].Read(b); errors.Is(err, os.ErrDeadlineExceeded) {
		return ""
	} else if err != nil {
		l.t.Fatalf("%s: %v", l.name, err)
	}
	return string(b)
}

// goesOn lets both ends speak, the one that is named first.
func (l *live) goesOn(first int, when string) {
	l.t.Helper()
	for _, end := range []int{first, 1 - first} {
		text := l.say(end)
		if got := l.hears(1-end, soon); got != text {
			l.t.Errorf("%s: %s: %q arrives, want %q", when, l.name, got, text)
		}
	}
}

// ended lets both ends of each speak at once, and checks that all of it is dropped and none hears anything.
func ended(t *testing.T, f *Filter, ifindex int, all []*live, when string) {
	t.Helper()
	before := dropped(t, f, ifindex)
	for _, l := range all {
		l.say(opener)
		l.say(answerer)
	}
	deadline := time.Now().Add(soon)
	for dropped(t, f, ifindex) < before+uint64(2*len(all)) {
		if time.Now().After(deadline) {
			t.Errorf("%s: not all was dropped", when)
			break
		}
		time.Sleep(time.Millisecond)
	}
	for _, l := range all {
		for end := range l.ends {
			if got := l.hears(end, time.Millisecond); got != "" {
				t.Errorf("%s: %s: %q arrives", when, l.name, got)
			}
		}
	}
}

// revived checks that what ended was held by the filter alone: TCP sends it again, and it arrives.
func revived(t *testing.T, all []*live, when string) {
	t.Helper()
	for _, l := range all {
		for end := range l.ends {
			if got := l.hears(end, 10*time.Second); got == "" {
				t.Errorf("%s: %s: nothing arrives any more", when, l.name)
			}
		}
	}
}

// dropped is how many packets a device's filter has dropped since its policy came.
func dropped(t *testing.T, f *Filter, ifindex int) (n uint64) {
	t.Helper()
	counts, err := readCounts(f.objs.Counters, f.maps.devices[ifindex].Counters)
	must(t, err)
	for _, c := range counts {
		if c.Reason != policy.Pass {
			n += c.Packets
		}
	}
	return n
}

// liveCases are policies that come under live connections, and the ways that go on.
var liveCases = []struct {
	labels string
	goesOn string
}{
	{"xdp.egress.allow=443/tcp xdp.ingress.allow=25/tcp", "out in"},
	{"xdp.egress.allow=25/tcp xdp.ingress.allow=443/tcp", ""},
	{"xdp.egress.allow=443/tcp xdp.ingress.default=drop", "out"},
	{"xdp.egress.default=drop xdp.ingress.allow=25/tcp", "in"},
	{"xdp.egress.drop=443/tcp", "in"},
	{"xdp.ingress.drop=25/tcp", "out"},
	{"xdp.drop=25/tcp", "out"},
	{"xdp.drop=80/tcp", "out in"},
	{"xdp.drop=tcp xdp.except=443/tcp,25/tcp", "out in"},
	{"xdp.drop=udp", "out in"},
	{"xdp.drop=tcp", ""},
}

// TestLiveTCP puts policies into force under connections in use: with no filter before (late), in place of a policy
// without state, and in place of one that knows the connections.
func TestLiveTCP(t *testing.T) {
	for _, before := range []struct {
		name, labels string
		mode         Mode
	}{
		{"late", "", Generic},
		{"late", "", TCX},
		{"stateless", "xdp.drop=udp", Generic},
		{"known", "xdp.allow=443/tcp,25/tcp", Generic},
		{"known", "xdp.egress.drop=80/tcp", TCX},
	} {
		t.Run(before.name+", "+string(before.mode), func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			f := open(t, bpffs(t))
			defer f.Close()
			for _, c := range liveCases {
				firsts := []int{opener}
				if before.name == "known" {
					firsts = append(firsts, answerer)
				}
				n.putUnder(f, before.labels, c.labels, c.goesOn, before.mode, firsts)
			}
		})
	}
}

// putUnder puts one policy and then another into force under live connections. before is "" for none. firsts are who may
// speak first under the other.
func (n *network) putUnder(f *Filter, before, labels, ways string, mode Mode, firsts []int) {
	n.t.Helper()
	when := fmt.Sprintf("%s, %q, then %s", mode, before, labels)
	attach := func(labels string) {
		n.t.Helper()
		must(n.t, f.Attach(n.host.Index, Want{Policy: labelled(n.t, labels), Mode: mode}))
	}
	all := n.lives()
	if before != "" {
		attach(before)
		eachGoesOn(all, opener, when+", before")
	}
	attach(labels)
	going, gone := split(all, ways)
	for _, first := range firsts {
		eachGoesOn(going, first, when)
	}
	// The others may have had an acknowledgement to send.
	if drops := dropped(n.t, f, n.host.Index); drops > 0 && len(gone) == 0 {
		n.t.Errorf("%s: %d packets were dropped of what may go on", when, drops)
	}
	ended(n.t, f, n.host.Index, gone, when)
	attach("xdp.drop=udp")
	eachGoesOn(going, answerer, when+", and back")
	revived(n.t, gone, when+", and back")
	for _, l := range all {
		l.close()
	}
	must(n.t, f.Detach(n.host.Index))
}

func eachGoesOn(all []*live, first int, when string) {
	for _, l := range all {
		l.goesOn(first, when)
	}
}

// split tells connections by the way they go.
func split(all []*live, going string) (yes, no []*live) {
	for _, l := range all {
		way, _, _ := strings.Cut(l.name, " ")
		if strings.Contains(going, way) {
			yes = append(yes, l)
		} else {
			no = append(no, l)
		}
	}
	return yes, no
}

// TestLiveTCPForgotten takes entries out of the tables under connections in use, as a full table or a lost map would, and ends
// and begins the process that holds the filter.
func TestLiveTCPForgotten(t *testing.T) {
	n := newNetwork(t)
	dir := bpffs(t)
	for _, c := range []struct {
		labels string
		mode   Mode
		firsts []int // who may speak first where nothing is known
	}{
		{"xdp.egress.allow=443/tcp xdp.ingress.allow=25/tcp", Generic, []int{opener}},
		{"xdp.egress.drop=80/tcp", TCX, []int{opener, answerer}},
	} {
		f := open(t, dir)
		want := Want{Policy: labelled(t, c.labels), Mode: c.mode}
		all := n.lives()
		must(t, f.Attach(n.host.Index, want))
		eachGoesOn(all, opener, c.labels)
		for range 3 {
			for _, first := range c.firsts {
				if forget(t, f, n.host.Index) != len(all) {
					t.Errorf("%s: not all were known", c.labels)
				}
				eachGoesOn(all, first, c.labels+", forgotten")
			}
		}
		f.Close()
		eachGoesOn(all, answerer, c.labels+", no process")
		f = open(t, dir)
		eachGoesOn(all, answerer, c.labels+", another process")
		must(t, f.Attach(n.host.Index, want))
		eachGoesOn(all, answerer, c.labels+", attached again")

		must(t, f.Attach(n.host.Index, Want{Policy: labelled(t, "xdp.egress.allow=25/tcp xdp.ingress.allow=443/tcp"), Mode: c.mode}))
		forget(t, f, n.host.Index)
		f.Close()
		f = open(t, dir)
		ended(t, f, n.host.Index, all, c.labels+", forbidden and forgotten, another process")
		for _, l := range all {
			l.close()
		}
		must(t, f.Detach(n.host.Index))
		f.Close()
	}
}

// forget empties a device's tables of conversations, and returns how many there were of TCP.
func forget(t *testing.T, f *Filter, ifindex int) (n int) {
	t.Helper()
	id := f.maps.states.tables.of[f.maps.devices[ifindex].Counters]
	for _, outer := range []*ebpf.Map{f.objs.Unanswered, f.objs.Answered} {
		var inner *ebpf.Map
		must(t, outer.Lookup(id, &inner))
		var key filterFlowKey
		for inner.NextKey(nil, &key) == nil {
			must(t, inner.Delete(key))
			if key.Proto == protoTCP {
				n++
			}
		}
		must(t, inner.Close())
	}
	return n
}
