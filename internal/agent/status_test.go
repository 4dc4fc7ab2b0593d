package agent

import (
	"slices"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/docker"
	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/policy"
	"github.com/vethwall/vethwall/xdp"
)

func TestWorst(t *testing.T) {
	for i, better := range states {
		for _, worse := range states[i:] {
			if Worst(better, worse) != worse || Worst(worse, better) != worse {
				t.Errorf("%s is not better than %s", better, worse)
			}
		}
	}
}

// What a record promises and the kernel does not have is said, and nothing else is.
func TestLacking(t *testing.T) {
	filtered := xdp.Device{Up: true, HasPolicy: true, Hooks: []xdp.Hook{{Direction: "egress"}, {Direction: "ingress"}}}
	deaf, byHand := filtered, filtered
	deaf.Hooks = filtered.Hooks[:1]
	byHand.Hooks = []xdp.Hook{{Direction: "egress", ByHand: "dropper"}, {Direction: "ingress"}}
	operated := filtered
	operated.Hooks = append(slices.Clone(filtered.Hooks), xdp.Hook{Direction: "egress", Program: "dropper"})
	halved := filtered
	halved.Halved = true
	closed, down, bare, policyOnly := filtered, xdp.Device{HasPolicy: true, Closed: true}, xdp.Device{Up: true}, xdp.Device{Up: true, HasPolicy: true}
	closed.Closed = true
	closedByHalf := closed
	closedByHalf.Halved = true
	for _, tc := range []struct {
		name     string
		device   xdp.Device
		promised State
		lack     bool
	}{
		{"filtered", filtered, Enforced, false},
		{"late", filtered, Late, false},
		{"by hand", filtered, Partial, false},
		{"no filter", bare, Enforced, true},
		{"what it receives is not judged", deaf, Enforced, true},
		{"a program by hand in the filter's place", byHand, Enforced, true},
		{"one of the two hooks for what it sends", halved, Enforced, true},
		{"no filter, late", bare, Late, true},
		{"no program by hand", bare, Partial, true},
		{"a policy and no hook", policyOnly, Enforced, true},
		{"closed instead", closed, Enforced, true},
		{"closed", closed, Quarantined, false},
		{"closed by one of the two", closedByHalf, Quarantined, true},
		{"down", down, Quarantined, false},
		{"open", filtered, Quarantined, true},
		{"bare", bare, Quarantined, true},
		{"pending", bare, Pending, false},
		{"unsupported", bare, Unsupported, false},
	} {
		if got := lacking(tc.device, tc.promised, Record{Receives: true}); (got != "") != tc.lack {
			t.Errorf("%s: %q", tc.name, got)
		}
	}
	for _, tc := range []struct {
		name     string
		device   xdp.Device
		promised State
		lack     string
	}{
		{"program and filter", operated, Enforced, ""},
		{"no program", filtered, Enforced, "NOT FILTERED by xdp.program=udp.o"},
		{"no program, closed", closed, Quarantined, ""},
		{"a program in the filter's place", xdp.Device{Up: true, HasPolicy: true, Hooks: operated.Hooks[1:]}, Enforced, "NOT FILTERED: the filter"},
	} {
		if got := lacking(tc.device, tc.promised, Record{Receives: true, Program: "udp.o"}); !strings.HasPrefix(got, tc.lack) || tc.lack == "" && got != "" {
			t.Errorf("%s: %q", tc.name, got)
		}
	}
}

func TestCount(t *testing.T) {
	var s InterfaceStatus
	s.count([]xdp.Count{
		{Reason: policy.Pass, Packets: 5, Bytes: 500},
		{Reason: policy.ByRule, Slot: 0, Packets: 1, Bytes: 60},
		{Reason: policy.ByRule, Slot: 1, Packets: 3, Bytes: 180},
		{Reason: policy.ByRule, Slot: 2, Packets: 2, Bytes: 120},
		{Reason: policy.ByRule, Slot: 3, Packets: 7, Bytes: 420},
		{Reason: policy.Truncated, Audited: true, Packets: 1, Bytes: 60},
	}, [2][]xdp.Counted{{{Rule: "udp"}, {Rule: "tcp"}, {Rule: "all", Limit: true}, {Rule: "gre", Audit: true}}})
	if s.Packets != (Packets{Passed: 5, Dropped: 6, WouldDrop: 8}) {
		t.Errorf("%+v", s.Packets)
	}
	var got []string
	for _, d := range s.Drops {
		got = append(got, d.Reason+" "+d.Rule)
	}
	if want := "rule gre,rule tcp,limit all,rule udp,truncated "; strings.Join(got, ",") != want {
		t.Errorf("%q, want %q: most first", got, want)
	}
}

func TestFind(t *testing.T) {
	a := ContainerStatus{ID: "aa" + strings.Repeat("0", 62), Name: "web"}
	b := ContainerStatus{ID: "bb" + strings.Repeat("0", 62), Name: "aa"}
	all := []ContainerStatus{a, b}
	for name, want := range map[string]string{"web": "web", "aa": "aa", a.ID: "web", "aa0": "web", "bb": "aa", "b": "", "": "", "ccc": ""} {
		got, ok := Find(all, name)
		if got.Name != want || ok != (want != "") {
			t.Errorf("%q finds %q, %t", name, got.Name, ok)
		}
	}
}

func TestUnseen(t *testing.T) {
	list := []docker.Summary{
		{ID: "1", Name: "seen", State: "running", Labels: map[string]string{"xdp.drop": "udp"}},
		{ID: "2", Name: "open", State: "running", Labels: map[string]string{"xdp.drop": "udp"}},
		{ID: "3", Name: "wrong", State: "paused", Labels: map[string]string{"xdp.drop": "upd"}},
		{ID: "4", Name: "free", State: "running"},
		{ID: "5", Name: "ended", State: "exited", Labels: map[string]string{"xdp.drop": "udp"}},
	}
	var got []string
	for _, c := range Unseen([]ContainerStatus{{ID: "1"}}, list, config.Config{}) {
		got = append(got, c.Name+" "+string(c.State))
	}
	if want := "free unfiltered, open pending, wrong pending"; strings.Join(got, ", ") != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestUnseenAndConfigured has containers without labels that the agent's configuration concerns, and no agent has seen.
func TestUnseenAndConfigured(t *testing.T) {
	list := []docker.Summary{{ID: "1", Name: "db", Image: "postgres:16", State: "running"}, {ID: "2", Name: "web", Image: "nginx", State: "running"}, {ID: "3", Name: "left", State: "exited"}}
	for text, want := range map[string]string{
		"{}":                     "db unfiltered, web unfiltered",
		"floor: {xdp.drop: udp}": "db pending, web pending",
		"policies: [{pick: {name: web}, labels: {xdp.drop: udp}}]":                                                   "db unfiltered, web pending",
		"policies: [{pick: {image: 'postgres:*'}, labels: {xdp.drop: udp}}]":                                         "db pending, web unfiltered",
		"policies: [{pick: {name: web}, labels: {xdp.enable: false}}]":                                               "db unfiltered, web unfiltered",
		"policies: [{pick: {name: 'w*'}, labels: {xdp.drop: udp}}, {pick: {image: nginx}, labels: {xdp.drop: tcp}}]": "db unfiltered, web pending",
	} {
		conf, err := config.Parse("config.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range Unseen(nil, list, conf) {
			got = append(got, c.Name+" "+string(c.State))
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// A network that was joined without an agent is not passed over in silence.
func TestAddJoined(t *testing.T) {
	bridge, lan := docker.Endpoint{Network: "bridge"}, docker.Endpoint{Network: "lan"}
	at := func(network string) InterfaceStatus { return InterfaceStatus{Network: network, State: Enforced} }
	for name, tc := range map[string]struct {
		interfaces []InterfaceStatus
		networks   []docker.Endpoint
		state      string // of the container in the list
		added      string
	}{
		"as recorded":             {[]InterfaceStatus{at("bridge")}, []docker.Endpoint{bridge}, "running", ""},
		"joined":                  {[]InterfaceStatus{at("bridge")}, []docker.Endpoint{bridge, lan}, "running", "lan"},
		"paused":                  {[]InterfaceStatus{at("bridge")}, []docker.Endpoint{bridge, lan}, "paused", "lan"},
		"named after its bridge":  {[]InterfaceStatus{at("bridge"), at("mine0")}, []docker.Endpoint{bridge, lan}, "running", ""},
		"left one, joined one":    {[]InterfaceStatus{at("bridge")}, []docker.Endpoint{lan}, "running", ""},
		"has ended":               {[]InterfaceStatus{at("bridge")}, []docker.Endpoint{bridge, lan}, "exited", ""},
		"the engine does not say": {[]InterfaceStatus{at("bridge")}, nil, "running", ""},
	} {
		have := []ContainerStatus{{ID: "1", State: Enforced, Interfaces: tc.interfaces}, {ID: "2", State: Enforced, Interfaces: []InterfaceStatus{at("lan")}}}
		AddJoined(have, []docker.Summary{{ID: "1", State: tc.state, Networks: tc.networks}})
		added := have[0].Interfaces[len(tc.interfaces):]
		switch {
		case tc.added == "" && (len(added) > 0 || have[0].State != Enforced):
			t.Errorf("%s: %+v", name, have[0])
		case tc.added != "" && (len(added) != 1 || added[0].Network != tc.added || added[0].State != Pending || have[0].State != Pending):
			t.Errorf("%s: %+v", name, have[0])
		}
		if len(have[1].Interfaces) != 1 || have[1].State != Enforced {
			t.Errorf("%s: the other has %+v", name, have[1])
		}
	}
}
