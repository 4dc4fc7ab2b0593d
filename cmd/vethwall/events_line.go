package main

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vethwall/vethwall/internal/agent"
	"github.com/vethwall/vethwall/policy"
)

// eventDocument is an event as JSON.
type eventDocument struct {
	Schema int    `json:"schema"`
	Type   string `json:"type"`
	agent.Event
}

// lostDocument says that Count events of any container were overwritten before they were read.
type lostDocument struct {
	Schema int    `json:"schema"`
	Type   string `json:"type"`
	Count  uint64 `json:"count"`
}

func (v *eventsView) print(events []agent.Event, lost uint64, wanted func(agent.Event) bool) error {
	if lost > 0 {
		if err := v.printLost(lost); err != nil {
			return err
		}
	}
	events = slices.DeleteFunc(events, func(e agent.Event) bool { return !wanted(e) })
	for _, e := range events {
		v.wide = max(v.wide, len(whose(e)))
	}
	for _, e := range events {
		if err := v.printEvent(e); err != nil {
			return err
		}
	}
	return nil
}

func (v *eventsView) printLost(lost uint64) error {
	if *v.out == jsonDoc {
		return v.printJSONLine(lostDocument{1, "lost", lost})
	}
	_, err := fmt.Fprintf(v.stdout, "%d events were overwritten before they were read\n", lost)
	return err
}

func (v *eventsView) printEvent(e agent.Event) error {
	if *v.out == jsonDoc {
		return v.printJSONLine(eventDocument{1, "packet", e})
	}
	begin := fmt.Sprintf("%s %-*s  ", v.time(e.Time), v.wide, whose(e))
	if e.Skipped > 0 {
		if _, err := fmt.Fprintf(v.stdout, "%s%d packets more, not shown\n", begin, e.Skipped); err != nil {
			return err
		}
	}
	line := begin + v.verdict(e.Verdict) + " " + way(e.Direction) + " " + headers(e)
	if why := reason(e); why != "" {
		line += "  " + why
	}
	_, err := fmt.Fprintln(v.stdout, line)
	return err
}

// whose names the container of an event, or where none is known the device.
func whose(e agent.Event) string {
	if e.ID == "" {
		return "ifindex " + strconv.Itoa(e.Ifindex)
	}
	return clean(e.Name)
}

// time leaves out the date of today.
func (v *eventsView) time(t time.Time) string {
	const clock = "15:04:05.000"
	now := v.now()
	t = t.In(now.Location())
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format(clock)
	}
	return t.Format(time.DateOnly + " " + clock)
}

func (v *eventsView) verdict(is agent.Verdict) string {
	switch is {
	case agent.Passed:
		return v.paint(green, "passed ")
	case agent.WouldDrop:
		return v.paint(yellow, "would drop")
	}
	return v.paint(red, "dropped")
}

// way is a direction as people say it, in a column of its own.
func way(direction string) string {
	if direction == policy.Ingress.String() {
		return "received"
	}
	return "sent    "
}

// reason says why a packet was judged so, "" for one that nothing forbids.
func reason(e agent.Event) string {
	switch {
	case e.Verdict == agent.Passed:
		return ""
	case e.Rule != "":
		return e.Reason + " " + clean(e.Rule)
	case e.Reason == policy.ByRule.String() || e.Reason == policy.LimitReached.String():
		return e.Reason + " of an earlier policy"
	case e.Reason == policy.Spoof.String() || e.Reason == policy.NeighborSpoof.String():
		return e.Reason + ", from " + e.MAC
	}
	return e.Reason
}

// headers are what could be read of a packet: "UDP 192.0.2.1:1234 > 192.0.2.2:53".
func headers(e agent.Event) string {
	var b strings.Builder
	if e.Quoted {
		b.WriteString("ICMP error about ")
	}
	b.WriteString(protocol(e))
	if e.Src.IsValid() {
		b.WriteString(" " + end(e.Src, e.SrcPort))
	}
	if e.Dst.IsValid() {
		b.WriteString(" > " + end(e.Dst, e.DstPort))
	}
	if e.Claim.IsValid() {
		b.WriteString(" claims " + e.Claim.String())
	}
	return b.String()
}

// protocol is the innermost that is known of a packet.
func protocol(e agent.Event) string {
	switch {
	case e.Protocol == "not-ip":
		return "not IP"
	case e.Protocol == "" && e.Family == 0:
		return "unreadable"
	case e.Protocol == "":
		return fmt.Sprintf("IPv%d", e.Family)
	case strings.HasPrefix(e.Protocol, "proto-"):
		return e.Protocol
	}
	name := strings.Replace(strings.ToUpper(e.Protocol), "V6", "v6", 1)
	if e.ICMPType != nil {
		name += " " + policy.ICMPType{V6: e.Family == 6, Type: *e.ICMPType}.String()
	}
	return name
}

func end(addr netip.Addr, port uint16) string {
	if port == 0 {
		return addr.String()
	}
	return net.JoinHostPort(addr.String(), strconv.Itoa(int(port)))
}
