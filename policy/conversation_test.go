package policy_test

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/vethwall/vethwall/policy"
	. "github.com/vethwall/vethwall/policy/policytest"
)

const (
	fin, syn, rst, ack = 1, 2, 4, 16

	out = policy.Egress
	in  = policy.Ingress
)

// labels returns the stack of "KEY=VALUE KEY=VALUE", and of one source more behind each "/".
func labels(t *testing.T, text string) (s policy.Stack) {
	t.Helper()
	for source := range strings.SplitSeq(text, " / ") {
		m := map[string]string{}
		for label := range strings.FieldsSeq(source) {
			key, value, _ := strings.Cut(label, "=")
			m["xdp."+key] = value
		}
		p, _, err := policy.Parse(m)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		s = append(s, policy.Source{Policy: p})
	}
	return s
}

// between returns a packet between the container's port and yours.
func between(dir policy.Direction, proto uint8, local, port uint16) []byte {
	from, to := local, port
	if dir == in {
		from, to = to, from
	}
	switch proto {
	case tcp:
		return ipBetween(dir, tcp, With(TCP(from, to), 13, ack))
	case sctp:
		return ipBetween(dir, sctp, SCTP(from, to))
	}
	return ipBetween(dir, proto, UDP(from, to))
}

func ipBetween(dir policy.Direction, proto uint8, payload []byte) []byte {
	src, dst := me4, you4
	if dir == in {
		src, dst = dst, src
	}
	return IP(src, dst, proto, payload)
}

func flags(n uint8, frame []byte) []byte { return With(frame, 14+20+13, n) }

func acknowledging(n uint32, frame []byte) []byte {
	return With(frame, 14+20+8, binary.BigEndian.AppendUint32(nil, n)...)
}

// sent and got are TCP segments between port 40000 of the container and your port 443.
func sent(n uint8) []byte { return flags(n, between(out, tcp, 40000, 443)) }
func got(n uint8) []byte  { return flags(n, between(in, tcp, 40000, 443)) }

// about is an ICMP error that you or a router sends about a frame of the container, or the other way.
func about(dir policy.Direction, from string, frame []byte) []byte {
	dst := me4
	if dir == out {
		dst = you4
	}
	return IP(from, dst, icmp4, ICMP(3, 3, frame[14:14+28]...))
}

func echo(dir policy.Direction, typ, id uint8) []byte {
	return ipBetween(dir, icmp4, With(ICMP(typ, 0), 5, id))
}

// fragment returns a fragment of frame, a datagram over IPv4 or IPv6 without other headers.
func fragmentOf(frame []byte, id uint8, offset int, more bool, payload []byte) []byte {
	field := [2]byte{byte(offset / 8 >> 8), byte(offset / 8)}
	if more {
		field[0] |= 0x20
	}
	src, dst := me4, you4
	if frame[14+12] == 198 {
		src, dst = dst, src
	}
	return With(IP(src, dst, frame[14+9], payload), 14+4, 0, id, field[0], field[1])
}

// A say is one frame of a scenario and the reason of its verdict.
type say struct {
	dir   policy.Direction
	frame []byte
	want  string
}

// later is a say after a pause.
type later struct {
	after time.Duration
	say
}

// under changes the policy.
type under string

var conversationTests = []struct {
	name   string
	labels string
	steps  []any // say, later, under
}{
	{"what the container opens is answered", "egress.allow=443/tcp ingress.default=drop", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn | ack), "pass"}, say{out, sent(ack), "pass"}, say{in, got(ack), "pass"},
	}},
	{"what nobody opened is not", "egress.allow=443/tcp ingress.default=drop", []any{
		say{in, got(syn | ack), "default"}, say{in, got(ack), "default"}, say{in, got(syn), "default"},
	}},
	{"an answer from another port", "egress.allow=udp ingress.default=drop", []any{
		say{out, between(out, udp, 1000, 53), "pass"}, say{in, between(in, udp, 1000, 54), "default"},
		say{in, between(in, udp, 1001, 53), "default"}, say{in, between(in, tcp, 1000, 53), "default"},
		say{in, IP(far4, me4, udp, UDP(53, 1000)), "default"}, say{in, between(in, udp, 1000, 53), "pass"},
	}},
	{"what is opened towards the container", "ingress.allow=80/tcp egress.default=drop", []any{
		say{in, flags(syn, between(in, tcp, 80, 5000)), "pass"}, say{out, flags(syn|ack, between(out, tcp, 80, 5000)), "pass"},
		say{out, flags(syn, between(out, tcp, 81, 5000)), "default"},
	}},
	{"a rule for one port does not judge answers", "drop=53/udp", []any{
		say{out, between(out, udp, 53, 5000), "pass"}, say{in, between(in, udp, 53, 5000), "pass"},
		say{in, between(in, udp, 53, 5001), "rule"},
	}},
	{"SCTP", "egress.allow=sctp ingress.default=drop", []any{
		say{out, between(out, sctp, 1000, 2000), "pass"}, say{in, between(in, sctp, 1000, 2000), "pass"}, say{in, between(in, sctp, 1000, 2001), "default"},
	}},
	{"a protocol without ports", "egress.allow=gre ingress.default=drop", []any{
		say{in, ipBetween(in, gre, nil), "default"}, say{out, ipBetween(out, gre, nil), "pass"}, say{in, ipBetween(in, gre, nil), "pass"},
		say{in, ipBetween(in, esp, nil), "default"},
	}},

	// ICMP
	{"ping out", "egress.allow=ping ingress.default=drop", []any{
		say{in, echo(in, 0, 1), "default"}, say{out, echo(out, 8, 1), "pass"}, say{in, echo(in, 0, 1), "pass"},
		say{in, echo(in, 0, 2), "default"}, say{in, echo(in, 8, 1), "default"}, say{out, echo(out, 0, 1), "default"},
	}},
	{"both ping with one number", "egress.allow=ping ingress.allow=ping", []any{
		say{out, echo(out, 8, 1), "pass"}, say{out, echo(out, 0, 1), "default"}, say{in, echo(in, 8, 1), "pass"}, say{out, echo(out, 0, 1), "pass"},
		say{in, echo(in, 0, 1), "pass"},
	}},
	{"each other type is a conversation", "egress.allow=13/icmp ingress.default=drop", []any{
		say{out, ipBetween(out, icmp4, ICMP(13, 0)), "pass"}, say{in, ipBetween(in, icmp4, ICMP(14, 0)), "default"}, say{in, ipBetween(in, icmp4, ICMP(13, 0)), "pass"},
	}},
	{"a type whose number is that of who asked", "egress.allow=ping ingress.default=drop", []any{
		say{out, echo(out, 8, 0), "pass"}, say{in, ipBetween(in, icmp4, ICMP(1, 0)), "default"}, say{in, echo(in, 0, 0), "pass"},
	}},
	{"ICMPv6 that ends before the identifier", "egress.allow=ping ingress.default=drop", []any{
		say{out, IP(me6, you6, icmp6, With(ICMP(128, 0), 5, 7)[:6]), "pass"}, say{in, IP(you6, me6, icmp6, ICMP(129, 0)), "pass"},
		say{in, IP(you6, me6, icmp6, With(ICMP(129, 0), 5, 7)), "default"},
	}},

	// ICMP errors
	{"errors about a conversation", "egress.allow=443/tcp ingress.default=drop", []any{
		say{in, about(in, you4, sent(syn)), "bad-quote"}, say{out, sent(syn), "pass"}, say{in, about(in, you4, sent(syn)), "pass"},
		say{in, about(in, far4, sent(ack)), "pass"}, say{out, about(out, me4, got(ack)), "pass"},
		say{in, about(in, you4, got(ack)), "default"}, say{in, about(in, you4, between(out, tcp, 40000, 444)), "bad-quote"},
	}},
	{"errors about an echo", "egress.allow=ping ingress.default=drop", []any{
		say{out, echo(out, 8, 1), "pass"}, say{in, about(in, you4, echo(out, 8, 1)), "pass"}, say{in, about(in, you4, echo(out, 8, 2)), "bad-quote"},
		say{in, about(in, you4, echo(out, 0, 1)), "bad-quote"}, say{out, about(out, me4, echo(in, 0, 1)), "pass"},
	}},
	{"a quote that ends before the identifier", "egress.allow=ping ingress.default=drop", []any{
		say{out, echo(out, 8, 1), "pass"}, say{in, IP(you4, me4, icmp4, ICMP(3, 3, echo(out, 8, 1)[14:14+26]...)), "bad-quote"},
		say{out, echo(out, 8, 0), "pass"}, say{in, IP(you4, me4, icmp4, ICMP(3, 3, echo(out, 8, 1)[14:14+26]...)), "pass"},
	}},
	{"an error is no answer", "egress.allow=udp ingress.default=drop", []any{
		say{out, between(out, udp, 1000, 53), "pass"}, say{in, about(in, you4, between(out, udp, 1000, 53)), "pass"},
		later{30 * time.Second, say{in, between(in, udp, 1000, 53), "default"}},
	}},
	{"an error keeps nothing alive", "egress.allow=udp ingress.default=drop", []any{
		say{out, between(out, udp, 1000, 53), "pass"}, later{29 * time.Second, say{in, about(in, you4, between(out, udp, 1000, 53)), "pass"}},
		later{time.Second, say{in, between(in, udp, 1000, 53), "default"}},
	}},
	{"an error without state is judged alone", "drop=udp", []any{
		say{in, about(in, you4, between(out, udp, 1000, 53)), "rule"}, say{in, about(in, you4, sent(ack)), "pass"},
	}},

	// idle times
	{"nobody answers", "egress.allow=443/tcp ingress.default=drop", []any{
		say{out, sent(syn), "pass"}, later{30*time.Second - 1, say{in, got(syn | ack), "pass"}},
	}},
	{"somebody answers too late", "egress.allow=443/tcp ingress.default=drop", []any{
		say{out, sent(syn), "pass"}, later{30 * time.Second, say{in, got(syn | ack), "default"}},
	}},
	{"asking again", "egress.allow=443/tcp ingress.default=drop", []any{
		say{out, sent(syn), "pass"}, later{20 * time.Second, say{out, sent(syn), "pass"}}, later{20 * time.Second, say{in, got(syn | ack), "pass"}},
	}},
	{"TCP, idle for a day", "egress.allow=443/tcp ingress.default=drop", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn | ack), "pass"}, say{out, sent(ack), "pass"}, later{24*time.Hour - 1, say{in, got(ack), "pass"}},
		later{24 * time.Hour, say{in, got(ack), "default"}},
	}},
	{"TCP, a SYN that was answered, and whose sender does not go on", "egress.allow=443/tcp ingress.default=drop", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn | ack), "pass"}, say{in, got(syn | ack), "pass"}, say{in, got(ack), "pass"},
		later{30*time.Second - 1, say{in, got(ack), "pass"}}, later{30 * time.Second, say{in, got(ack), "default"}},
	}},
	{"TCP, closing", "egress.allow=443/tcp ingress.default=drop", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn | ack), "pass"}, say{out, sent(fin | ack), "pass"}, say{in, got(fin | ack), "pass"},
		later{30*time.Second - 1, say{in, got(ack), "pass"}}, later{30 * time.Second, say{in, got(ack), "default"}},
	}},
	{"TCP, closed by one side", "egress.allow=443/tcp ingress.default=drop", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn | ack), "pass"}, say{out, sent(fin | ack), "pass"}, later{24*time.Hour - 1, say{in, got(ack), "pass"}},
	}},
	{"TCP, reset", "egress.allow=443/tcp ingress.default=drop", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn | ack), "pass"}, say{in, got(rst), "pass"}, later{30 * time.Second, say{in, got(ack), "default"}},
	}},
	{"TCP, a reset after which its sender goes on", "egress.allow=443/tcp ingress.default=drop", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn | ack), "pass"}, say{out, sent(ack), "pass"}, say{in, got(rst), "pass"}, say{in, got(ack), "pass"},
		later{30 * time.Second, say{in, got(ack), "pass"}},
	}},
	{"TCP, a reset after which the other side goes on", "egress.allow=443/tcp ingress.default=drop", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn | ack), "pass"}, say{out, sent(ack), "pass"}, say{in, got(rst), "pass"}, say{out, sent(ack), "pass"},
		later{30 * time.Second, say{in, got(ack), "default"}},
	}},
	{"TCP, its ports are used again after one side has closed", "ingress.allow=443/tcp egress.default=drop", []any{
		say{in, flags(syn, between(in, tcp, 443, 40000)), "pass"}, say{out, flags(syn|ack, between(out, tcp, 443, 40000)), "pass"}, say{in, acknowledging(1, between(in, tcp, 443, 40000)), "pass"},
		say{out, flags(fin|ack, between(out, tcp, 443, 40000)), "pass"},
		later{time.Hour, say{in, flags(syn, between(in, tcp, 443, 40000)), "pass"}}, say{out, flags(syn|ack, between(out, tcp, 443, 40000)), "pass"},
		say{in, flags(fin|ack, between(in, tcp, 443, 40000)), "pass"}, later{time.Minute, say{out, flags(ack, between(out, tcp, 443, 40000)), "pass"}},
	}},
	{"who was asked may not open one on the same ports", "egress.allow=443/tcp ingress.default=drop", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn), "pass"}, // a simultaneous open (RFC 9293 3.5)
		say{out, sent(syn | ack), "pass"}, say{in, got(syn | ack), "pass"}, say{out, sent(ack), "pass"}, say{in, got(syn), "default"}, say{in, got(ack), "pass"},
		say{out, sent(fin | ack), "pass"}, later{time.Hour, say{in, got(syn), "default"}}, say{in, got(ack), "pass"}, say{out, sent(syn), "pass"},
	}},
	{"who was asked may open one on the same ports", "egress.allow=443/tcp ingress.allow=40000/tcp", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn | ack), "pass"}, say{out, sent(ack), "pass"}, say{in, got(syn), "pass"}, say{out, sent(ack), "pass"}, say{in, got(ack), "pass"},
	}},
	{"a reset is no answer", "egress.allow=443/tcp ingress.default=drop", []any{
		say{out, sent(syn), "pass"}, say{in, got(rst | ack), "pass"}, later{30 * time.Second, say{in, got(syn | ack), "default"}},
	}},
	{"UDP, answered", "egress.allow=udp ingress.default=drop", []any{
		say{out, between(out, udp, 1000, 53), "pass"}, say{in, between(in, udp, 1000, 53), "pass"}, later{180*time.Second - 1, say{in, between(in, udp, 1000, 53), "pass"}},
		later{180 * time.Second, say{in, between(in, udp, 1000, 53), "default"}},
	}},
	{"others, answered", "egress.allow=ping ingress.default=drop", []any{
		say{out, echo(out, 8, 1), "pass"}, say{in, echo(in, 0, 1), "pass"}, later{30*time.Second - 1, say{in, echo(in, 0, 1), "pass"}},
		later{30 * time.Second, say{in, echo(in, 0, 1), "default"}},
	}},
	{"what comes within an eighth of a second is not later", "egress.allow=ping ingress.default=drop", []any{
		say{out, echo(out, 8, 1), "pass"}, say{in, echo(in, 0, 1), "pass"}, later{time.Second / 8, say{in, echo(in, 0, 1), "pass"}},
		later{30*time.Second - time.Second/8, say{in, echo(in, 0, 1), "default"}},
	}},
	{"what comes after an eighth of a second is", "egress.allow=ping ingress.default=drop", []any{
		say{out, echo(out, 8, 1), "pass"}, say{in, echo(in, 0, 1), "pass"}, later{time.Second/8 + 1, say{in, echo(in, 0, 1), "pass"}},
		later{30*time.Second - time.Second/8, say{in, echo(in, 0, 1), "pass"}},
	}},

	// TCP that opens nothing
	{"an allow rule matches it", "egress.allow=443/tcp ingress.default=drop", []any{
		say{out, sent(ack), "pass"}, say{in, got(ack), "pass"},
	}},
	{"an allow rule of the other way matches the answer only", "egress.allow=443/tcp ingress.default=drop", []any{
		say{in, got(ack), "default"}, say{out, sent(ack), "pass"},
	}},
	{"an exception from a drop matches it", "drop=tcp except=443/tcp", []any{
		say{out, flags(ack, between(out, tcp, 40000, 444)), "rule"}, say{in, got(ack), "rule"}, say{out, sent(ack), "pass"}, say{in, got(ack), "pass"},
	}},
	{"an exception from no drop says nothing", "egress.except=443/tcp ingress.drop=40000/tcp", []any{say{out, sent(ack), "rule"}}},
	{"it is allowed whoever opened it", "drop=25/tcp", []any{
		say{out, sent(ack), "pass"}, say{in, flags(ack, between(in, tcp, 40001, 443)), "pass"},
	}},
	{"it is forbidden if the peer opened it", "ingress.drop=40000/tcp", []any{
		say{out, sent(ack), "rule"}, say{out, sent(syn | ack), "rule"}, say{out, sent(rst), "rule"}, say{out, sent(fin), "rule"}, say{out, sent(0), "rule"},
		say{in, got(ack), "rule"}, say{out, sent(syn), "pass"}, say{in, got(ack), "pass"},
	}},
	{"it is forbidden if the container opened it", "egress.drop=443/tcp", []any{
		say{in, got(ack), "rule"}, say{out, sent(ack), "rule"}, say{in, got(syn), "pass"}, say{out, sent(ack), "pass"},
	}},
	{"an allow rule of one source and nothing of the other", "ingress.drop=40000/tcp / egress.allow=443/tcp", []any{
		say{out, sent(ack), "rule"}, say{out, flags(ack, between(out, tcp, 40000, 444)), "default"},
	}},
	{"an allow rule of one source, and the other lets either side open it", "drop=udp / egress.allow=443/tcp", []any{
		say{out, sent(ack), "pass"}, say{out, flags(ack, between(out, tcp, 40000, 444)), "default"},
	}},
	{"allow rules of both sources", "egress.allow=443/tcp ingress.default=drop / egress.allow=tcp ingress.default=drop", []any{
		say{out, sent(ack), "pass"}, say{in, got(ack), "pass"}, say{out, flags(ack, between(out, tcp, 40000, 444)), "default"},
	}},
	{"a source vouches for what another forbids now", "drop=udp / allow=all", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn | ack), "pass"}, say{out, sent(ack), "pass"}, under("egress.default=drop / allow=all"),
		say{out, sent(ack), "default"}, say{in, got(ack), "default"}, say{out, sent(ack), "default"},
	}},
	{"the other side goes on with what is forbidden now, and its own direction has a rule", "egress.allow=tcp ingress.allow=22/tcp", []any{
		say{in, flags(syn, between(in, tcp, 22, 40000)), "pass"}, say{out, flags(syn|ack, between(out, tcp, 22, 40000)), "pass"},
		say{in, flags(ack, between(in, tcp, 22, 40000)), "pass"}, under("egress.allow=tcp ingress.default=drop"),
		say{in, flags(ack, between(in, tcp, 22, 40000)), "default"}, say{out, flags(ack, between(out, tcp, 22, 40000)), "default"},
		say{in, flags(syn, between(in, tcp, 22, 40000)), "default"}, say{out, flags(ack, between(out, tcp, 22, 40000)), "default"},
		say{out, flags(syn, between(out, tcp, 22, 40000)), "pass"}, say{in, flags(syn|ack, between(in, tcp, 22, 40000)), "pass"},
	}},
	{"a SYN that may not come ends nothing", "egress.allow=443/tcp ingress.default=drop", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn | ack), "pass"}, say{out, sent(ack), "pass"}, say{in, got(rst), "pass"}, say{in, got(syn), "default"},
		say{in, got(ack), "pass"},
	}},
	{"after a SYN and its answer only an ACK goes on", "ingress.allow=443/tcp egress.default=drop", []any{
		say{in, flags(syn, between(in, tcp, 443, 40000)), "pass"}, say{out, flags(syn|ack, between(out, tcp, 443, 40000)), "pass"},
		say{in, flags(8, between(in, tcp, 443, 40000)), "pass"}, later{30 * time.Second, say{out, flags(ack, between(out, tcp, 443, 40000)), "default"}},
	}},
	{"who has not seen the SYN that answers does not go on", "ingress.allow=443/tcp egress.default=drop", []any{
		say{in, flags(syn, between(in, tcp, 443, 40000)), "pass"}, say{out, flags(syn|ack, between(out, tcp, 443, 40000)), "pass"},
		say{in, acknowledging(0, between(in, tcp, 443, 40000)), "pass"}, say{in, acknowledging(1<<20+1, between(in, tcp, 443, 40000)), "pass"},
		later{30 * time.Second, say{out, flags(ack, between(out, tcp, 443, 40000)), "default"}},
	}},
	{"who has seen the SYN that answers, and more, goes on", "ingress.allow=443/tcp egress.default=drop", []any{
		say{in, flags(syn, between(in, tcp, 443, 40000)), "pass"}, say{out, flags(syn|ack, between(out, tcp, 443, 40000)), "pass"},
		say{in, acknowledging(1<<20, between(in, tcp, 443, 40000)), "pass"}, later{30 * time.Second, say{out, flags(ack, between(out, tcp, 443, 40000)), "pass"}},
	}},
	{"a segment before the SYN says nothing about who opens", "ingress.allow=80/tcp", []any{
		say{out, between(out, tcp, 80, 443), "pass"}, say{out, flags(syn, between(out, tcp, 80, 443)), "pass"}, say{in, flags(syn|ack, between(in, tcp, 80, 443)), "pass"},
		say{out, between(out, tcp, 80, 443), "pass"}, say{in, between(in, tcp, 80, 443), "pass"}, under("ingress.allow=80/tcp egress.default=drop"),
		say{out, between(out, tcp, 80, 443), "default"}, say{in, between(in, tcp, 80, 443), "default"}, say{out, flags(syn, between(out, tcp, 80, 443)), "default"},
	}},
	{"a segment from outside before the SYN says nothing either", "ingress.allow=80/tcp egress.default=drop", []any{
		say{in, between(in, tcp, 80, 443), "pass"}, say{out, flags(syn, between(out, tcp, 80, 443)), "default"}, say{out, between(out, tcp, 80, 443), "pass"},
	}},
	{"a SYN is judged anew where both have been heard before it", "egress.allow=443/tcp", []any{
		say{in, got(ack), "pass"}, say{out, sent(ack), "pass"}, under("egress.allow=443/tcp ingress.default=drop"), say{in, got(syn), "default"}, say{in, got(ack), "pass"},
	}},
	{"older than the policy, and one side alone goes on", "egress.allow=443/tcp", []any{
		say{in, got(ack), "pass"}, say{in, got(ack), "pass"}, later{30 * time.Second, say{in, got(ack), "pass"}},
		under("egress.allow=443/tcp ingress.default=drop"), say{in, got(ack), "default"}, say{in, got(syn), "default"},
	}},
	{"older than the policy, both have been heard, and either may have opened it", "egress.allow=tcp ingress.allow=tcp", []any{
		say{in, got(ack), "pass"}, say{out, sent(ack), "pass"}, under("egress.allow=tcp ingress.default=drop"), say{in, got(ack), "pass"}, say{out, sent(ack), "pass"},
		under("egress.default=drop ingress.allow=tcp"), say{out, sent(ack), "pass"}, say{in, got(ack), "pass"},
		under("egress.drop=443/tcp"), say{in, got(ack), "rule"}, say{out, sent(ack), "rule"},
	}},
	{"nobody could open what each of two sources would let another open", "drop=udp / drop=udp", []any{
		say{in, got(ack), "pass"}, say{out, sent(ack), "pass"}, under("egress.allow=443/tcp ingress.default=drop / ingress.allow=40000/tcp egress.default=drop"),
		say{in, got(ack), "default"}, say{out, sent(ack), "default"},
	}},
	{"older than the policy, and the other side goes on first", "egress.allow=443/tcp", []any{
		say{in, got(ack), "pass"}, say{out, sent(ack), "pass"}, under("egress.allow=25/tcp"), say{out, sent(ack), "default"}, say{in, got(ack), "default"},
	}},
	{"older than two policies, and nobody knows who opened it", "drop=53/tcp", []any{
		say{in, got(ack), "pass"}, say{out, sent(ack), "pass"}, under("egress.allow=25/tcp"), say{in, got(ack), "default"}, say{out, sent(ack), "default"},
		under("drop=53/tcp"), say{in, got(ack), "pass"}, under("drop=25/tcp"), say{out, sent(ack), "pass"}, say{in, got(ack), "pass"},
	}},
	{"an allow rule beside a drop", "egress.allow=443/tcp egress.drop=tcp", []any{say{out, sent(ack), "rule"}}},
	{"with SYN and FIN it opens", "ingress.drop=40000/tcp", []any{say{out, sent(syn | fin), "pass"}}},

	// another policy
	{"the new policy forbids what was opened", "drop=53/udp", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn | ack), "pass"}, under("egress.drop=443/tcp"), say{in, got(ack), "rule"}, say{in, got(ack), "rule"}, say{out, sent(ack), "rule"},
		under("drop=53/udp"), say{in, got(ack), "pass"},
	}},
	{"the new policy forbids what was opened, and the other side goes on", "drop=53/udp", []any{
		say{out, between(out, udp, 40000, 443), "pass"}, say{in, between(in, udp, 40000, 443), "pass"}, under("egress.drop=443/udp"),
		say{in, between(in, udp, 40000, 443), "rule"}, say{in, between(in, udp, 40000, 443), "rule"}, say{out, between(out, udp, 40000, 443), "rule"},
		say{in, between(in, udp, 40001, 443), "pass"}, later{179 * time.Second, say{in, between(in, udp, 40000, 443), "rule"}},
		later{2 * time.Second, say{in, between(in, udp, 40000, 443), "pass"}},
	}},
	{"the new policy allows it", "drop=53/udp", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn | ack), "pass"}, under("egress.allow=443/tcp ingress.default=drop"), say{in, got(ack), "pass"}, say{out, sent(ack), "pass"},
	}},
	{"the new policy forbids only what the answers look like", "drop=53/udp", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn | ack), "pass"}, under("ingress.drop=40000/tcp"), say{in, got(ack), "pass"},
	}},
	{"an error about what the new policy forbids", "egress.allow=443/tcp", []any{
		say{out, sent(syn), "pass"}, under("egress.allow=444/tcp"), say{in, about(in, you4, sent(syn)), "default"}, say{in, about(in, you4, sent(syn)), "default"},
		later{180 * time.Second, say{in, about(in, you4, sent(syn)), "bad-quote"}},
	}},
	{"what a policy without state let pass is not remembered", "drop=udp", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn | ack), "pass"}, under("ingress.default=drop"), say{in, got(ack), "default"},
	}},
	{"a policy without state forgets nothing", "egress.allow=443/tcp ingress.default=drop", []any{
		say{out, sent(syn), "pass"}, say{in, got(syn | ack), "pass"}, under("drop=udp"), say{in, got(ack), "pass"},
		under("egress.allow=443/tcp ingress.default=drop"), say{in, got(ack), "pass"},
	}},

	// what is judged alone
	{"built in", "default=drop", []any{say{out, ARP(), "pass"}, say{in, ARP(), "pass"}}},
	{"not IP", "egress.allow=all ingress.default=drop", []any{
		say{out, Eth(0x88cc, make([]byte, 46)), "pass"}, say{in, Eth(0x88cc, make([]byte, 46)), "default"},
	}},
	{"what cannot be read", "egress.allow=53/udp ingress.allow=54/udp", []any{
		say{out, between(out, udp, 1000, 53), "pass"}, say{out, Cut(between(out, udp, 1000, 53), 1), "truncated"}, say{in, Cut(between(in, udp, 1000, 53), 1), "truncated"},
	}},
	{"multicast is not answered", "egress.allow=5353/udp ingress.default=drop", []any{
		say{out, IP(me4, "224.0.0.251", udp, UDP(5353, 5353)), "pass"}, say{in, IP("224.0.0.251", me4, udp, UDP(5353, 5353)), "default"},
		say{out, IP(me6, "ff02::fb", udp, UDP(5353, 5353)), "pass"}, say{in, IP("ff02::fb", me6, udp, UDP(5353, 5353)), "default"},
		say{out, IP(me4, "255.255.255.255", udp, UDP(5353, 5353)), "pass"}, say{in, IP("255.255.255.255", me4, udp, UDP(5353, 5353)), "default"},
		say{out, IP(me4, "223.255.255.255", udp, UDP(5353, 5353)), "pass"}, say{in, IP("223.255.255.255", me4, udp, UDP(5353, 5353)), "pass"},
	}},
	{"an error to many", "egress.allow=53/udp ingress.default=drop", []any{
		say{out, IP(me4, "224.0.0.251", icmp4, ICMP(3, 3, IPv4("224.0.0.251", me4, udp, nil, UDP(53, 1000))...)), "pass"},
		say{out, IP(me4, "224.0.0.251", icmp4, ICMP(3, 3, IPv4("224.0.0.251", me4, udp, nil, UDP(54, 1000))...)), "default"},
	}},
}

// play runs the steps of a scenario.
func play(t *testing.T, c *policy.Conversations, name, text string, steps []any) {
	t.Helper()
	s, now := labels(t, text), 7*time.Second
	for i, step := range steps {
		var next say
		switch step := step.(type) {
		case under:
			s = labels(t, string(step))
			continue
		case later:
			now += step.after
			next = step.say
		case say:
			next = step
		}
		if v := c.Verdict(s, next.dir, next.frame, now); v.Reason.String() != next.want {
			t.Errorf("%s, step %d: got %v, want %s\n%x", name, i, v.Reason, next.want, next.frame)
		}
	}
}

func TestConversations(t *testing.T) {
	for _, test := range conversationTests {
		play(t, &policy.Conversations{}, test.name, test.labels, test.steps)
	}
}

func TestFragmentsFollowTheirFirst(t *testing.T) {
	const text = "egress.allow=53/udp ingress.default=drop"
	datagram, answer := between(out, udp, 1000, 53), between(in, udp, 1000, 53)
	body := append(UDP(1000, 53), make([]byte, 16)...)
	first := fragmentOf(datagram, 1, 0, true, body)
	last := fragmentOf(datagram, 1, 24, false, make([]byte, 9))
	v6first := func(proto uint8, b []byte) []byte {
		return IP(me6, you6, 44, FragmentHeader(proto, 0, true, b))
	}
	v6last := func(proto uint8, id uint8) []byte {
		return IP(me6, you6, 44, With(FragmentHeader(proto, 3, false, make([]byte, 9)), 7, id))
	}
	tests := []struct {
		name  string
		steps []any
	}{
		{"in order", []any{say{out, first, "pass"}, say{out, last, "pass"}, say{out, last, "pass"}}},
		{"out of order", []any{say{out, last, "fragment"}, say{out, first, "pass"}, say{out, last, "pass"}}},
		{"of an answer", []any{
			say{out, datagram, "pass"},
			say{in, fragmentOf(answer, 1, 0, true, append(UDP(53, 1000), make([]byte, 16)...)), "pass"}, say{in, fragmentOf(answer, 1, 24, false, body), "pass"},
		}},
		{"of what was dropped", []any{say{out, fragmentOf(datagram, 1, 0, true, append(UDP(1000, 54), body...)), "default"}, say{out, last, "fragment"}}},
		{"another identification", []any{say{out, first, "pass"}, say{out, fragmentOf(datagram, 2, 24, false, body), "fragment"}}},
		{"another protocol", []any{say{out, first, "pass"}, say{out, fragmentOf(between(out, gre, 0, 0), 1, 24, false, body), "default"}}},
		{"another peer", []any{say{out, first, "pass"}, say{out, With(last, 14+16+3, 8), "fragment"}}},
		{"the other way", []any{say{out, first, "pass"}, say{in, fragmentOf(answer, 1, 24, false, body), "default"}}},
		{"overlapping", []any{say{out, first, "pass"}, say{out, fragmentOf(datagram, 1, 16, false, body), "fragment"}, say{out, fragmentOf(datagram, 1, 32, false, body), "pass"}}},
		{"tiny", []any{say{out, fragmentOf(datagram, 1, 0, true, body[:4]), "fragment"}, say{out, last, "fragment"}}},
		{"in time", []any{say{out, first, "pass"}, later{30*time.Second - 1, say{out, last, "pass"}}}},
		{"too late", []any{say{out, first, "pass"}, later{30 * time.Second, say{out, last, "fragment"}}}},
		{"IPv6", []any{say{out, v6last(udp, 0), "fragment"}, say{out, v6first(udp, body), "pass"}, say{out, v6last(udp, 0), "pass"}, say{out, v6last(udp, 1), "fragment"}}},
		{"IPv6 behind another header", []any{say{out, v6first(dstOpts, Extension(udp, 0, body[:16])), "pass"}, say{out, v6last(dstOpts, 0), "pass"}, say{out, v6last(udp, 0), "fragment"}}},
		{"of an error", []any{
			say{out, datagram, "pass"},
			say{in, fragmentOf(ipBetween(in, icmp4, nil), 1, 0, true, ICMP(3, 3, datagram[14:14+28]...)), "pass"},
			say{in, fragmentOf(ipBetween(in, icmp4, nil), 1, 40, false, body), "default"},
			say{in, fragmentOf(answer, 1, 40, false, body), "default"},
		}},
		{"to many", []any{
			say{out, With(first, 14+16, 224, 0, 0, 251), "pass"}, say{out, With(last, 14+16, 224, 0, 0, 251), "fragment"},
		}},
	}
	for _, test := range tests {
		play(t, &policy.Conversations{}, test.name, text, test.steps)
	}
}

func TestTableFull(t *testing.T) {
	ask := func(n uint16) say { return say{out, between(out, udp, n, 53), "pass"} }
	answer := func(n uint16, want string) say { return say{in, between(in, udp, n, 53), want} }
	play(t, &policy.Conversations{MaxAnswered: 2}, "full", "egress.allow=udp ingress.default=drop", []any{
		ask(1), ask(2), ask(3), answer(1, "pass"), answer(2, "pass"), answer(3, "table-full"), ask(3), answer(1, "pass"),
		// Nobody gives way but by being idle.
		later{100 * time.Second, answer(1, "pass")}, ask(3), answer(3, "table-full"),
		later{80 * time.Second, ask(3)}, answer(3, "pass"), answer(2, "default"),
	})
}

// What names a verdict is the rule of the conversation's own direction.
func TestConversationsNameTheRule(t *testing.T) {
	var c policy.Conversations
	before, after := labels(t, "drop=53/udp"), labels(t, "drop=53/udp / ingress.drop=1/tcp egress.drop=443/tcp")
	c.Verdict(before, out, sent(syn), 0)
	got, want := c.Verdict(after, in, got(ack), 0), policy.Verdict{Reason: policy.ByRule, Source: 1, Rule: 0}
	if after[1].Policy.Rules[0].In != [2]bool{true, false} {
		want.Rule = 1
	}
	if got != want {
		t.Errorf("got %v, want %v of %v", got, want, after)
	}
}

func TestStateful(t *testing.T) {
	for text, want := range map[string]bool{
		"drop=all": false, "drop=udp": false, "drop=icmp": false, "drop=ping": false, "drop=192.0.2.0/24": false, "drop=udp except=udp@192.0.2.0/24": false,
		"drop=53/udp": true, "drop=13/icmp": true, "drop=ping except=ping@192.0.2.0/24": true, "egress.drop=udp": true, "ingress.drop=udp": true,
		"allow=all": true, "default=drop": true, "ingress.default=drop": true, "drop=udp / egress.drop=tcp": true, "limit=53/udp=10pps": false,
	} {
		if got := labels(t, text).Stateful(); got != want {
			t.Errorf("%s: got %v, want %v", text, got, want)
		}
	}
}

// TestRoom fills the table of answered conversations, with room for one. What one side has closed long ago gives way, what a
// policy has forbidden meanwhile does not.
func TestRoom(t *testing.T) {
	web := func(peer uint16) (handshake [3][]byte, close []byte) {
		return [3][]byte{flags(syn, between(in, tcp, 80, peer)), flags(syn|ack, between(out, tcp, 80, peer)), acknowledging(1, between(in, tcp, 80, peer))},
			flags(fin|ack, between(out, tcp, 80, peer))
	}
	open := labels(t, "ingress.allow=80/tcp egress.default=drop")
	shut := labels(t, "ingress.allow=81/tcp egress.default=drop")
	for name, tc := range map[string]struct {
		closed bool
		idle   time.Duration
		want   policy.Reason
	}{
		"open for a day":        {false, 23 * time.Hour, policy.TableFull},
		"half closed a moment":  {true, 119 * time.Second, policy.TableFull},
		"half closed long ago":  {true, 120 * time.Second, policy.Pass},
		"forbidden and allowed": {false, 179 * time.Second, policy.TableFull},
	} {
		c := policy.Conversations{MaxAnswered: 1}
		now := time.Duration(0)
		shake := func(peer uint16) (last policy.Verdict) {
			handshake, _ := web(peer)
			for i, frame := range handshake {
				last = c.Verdict(open, []policy.Direction{in, out, in}[i], frame, now)
			}
			return last
		}
		if v := shake(1000); !v.Passes() {
			t.Fatalf("%s: the first handshake: %v", name, v)
		}
		_, fin := web(1000)
		if tc.closed {
			c.Verdict(open, out, fin, now)
		}
		if name == "forbidden and allowed" {
			handshake, _ := web(1000)
			if v := c.Verdict(shut, in, handshake[2], now); v.Passes() {
				t.Errorf("%s: passes: %v", name, v)
			}
		}
		now += tc.idle
		if v := shake(2000); v.Reason != tc.want {
			t.Errorf("%s: a second conversation: %v, want %v", name, v.Reason, tc.want)
		}
	}
}
