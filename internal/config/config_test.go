package config

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vethwall/vethwall/internal/yamltree"
	"github.com/vethwall/vethwall/policy"
)

func TestParse(t *testing.T) {
	c, err := Parse("f", []byte(`
dns: [192.0.2.53, "2001:db8::53"]
host_addresses: ::ffff:203.0.113.7
hook: tcx
conversations: 65536
floor: {xdp.drop: metadata}
policies:
  - pick: {name: "web-*", image: nginx, label: tier=front, project: shop, service: web}
    replace: true
    labels:
      xdp.egress.allow: [5432/tcp@neighbors, dns]
      xdp.drop.mail: |
        25/tcp,
        465/tcp
  - pick: {name: db}
    labels: {xdp.enable: false, xdp.drop: udp}
`))
	if err != nil {
		t.Fatal(err)
	}
	parse := func(labels map[string]string) *policy.Policy {
		p, _, err := policy.Parse(labels)
		if err != nil {
			t.Fatal(err)
		}
		return &p
	}
	want := Config{
		DNS:           []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")},
		HostAddresses: []netip.Addr{netip.MustParseAddr("203.0.113.7")},
		Hook:          policy.HookTCX,
		Conversations: 65536,
		Floor:         parse(map[string]string{"xdp.drop": "metadata"}),
		Policies: []Policy{
			{Pick: Pick{"web-*", "nginx", "tier=front", "shop", "web"}, Replace: true, Line: 8,
				Labels: parse(map[string]string{"xdp.egress.allow": "5432/tcp@neighbors,dns", "xdp.drop.mail": "25/tcp,465/tcp"})},
			{Pick: Pick{Name: "db"}, Line: 15},
		},
	}
	if diff := cmp.Diff(want, c, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b policy.Policy) bool { return a.Text() == b.Text() })); diff != "" {
		t.Error(diff)
	}
	if got := c.Policies[0].String(); got != "the one in line 8, for {name: web-*, image: nginx, label: tier=front, project: shop, service: web}" {
		t.Error(got)
	}
	for _, empty := range []string{"{}", "# nothing\n{}\n"} {
		if c, err := Parse("f", []byte(empty)); err != nil || cmp.Diff(Config{}, c) != "" {
			t.Errorf("%q: %+v, %v", empty, c, err)
		}
	}
}

func TestMistakes(t *testing.T) {
	const policies = "policies:\n  - "
	for _, tc := range []struct{ yaml, want string }{
		{"", "f:1:1: a file without content, expected a mapping; write {} if nothing is meant"},
		{" \n\n", "f:1:1: a file without content, expected a mapping; write {} if nothing is meant"},
		{"# floor: {xdp.drop: udp}\n", "f:1:1: a file without content, expected a mapping; write {} if nothing is meant"},
		{"---\n", "f:1:1: a file without content, expected a mapping; write {} if nothing is meant"},
		{"---\nnull\n", "f:2:1: a file without content, expected a mapping; write {} if nothing is meant"},
		{"flor: {}\n", "f:1:1: an unknown key, expected dns, host_addresses, hook, conversations, floor, policies; write floor"},
		{"policy: []\n", "f:1:1: an unknown key, expected dns, host_addresses, hook, conversations, floor, policies; write policies"},
		{"xdp.drop: udp\n", "f:1:1: an unknown key, expected dns, host_addresses, hook, conversations, floor, policies; labels stand under floor, or under labels of a policy"},
		{"- a\n", "f:1:1: a list, expected a mapping"},
		{"dns: [192.0.2.300, 192.0.2.0/24, fe80::1%eth0, 224.0.0.1, [a], 0.0.0.0]\n", `f:1:7: no address, expected an IPv4 or IPv6 address without port and zone, such as 192.0.2.53
f:1:20: a CIDR, expected one address
f:1:34: no address, expected an IPv4 or IPv6 address without port and zone, such as 192.0.2.53
f:1:48: an address that nobody has, expected an address of one machine
f:1:59: a list, expected a single value
f:1:64: an address that nobody has, expected an address of one machine`},
		{"dns:\n", "f:1:5: nothing, expected a list of addresses"},
		{"hook: xpd\n", `f:1:7: "xpd" is unknown, expected auto, generic, native or tcx`},
		{"hook: ''\n", "f:1:7: an empty value, expected something, or no such key"},
		{"conversations: 1000\n", "f:1:16: no number of conversations, expected a whole number from 1024 to 1048576"},
		{"conversations: 0x4000\n", "f:1:16: no number of conversations, expected a whole number from 1024 to 1048576"},
		{"floor: {}\n", "f:1:8: no labels, expected labels, such as xdp.drop: udp; xdp.enable: false says that there are none on purpose"},
		{"floor: udp\n", "f:1:8: a single value, expected a mapping"},
		{"floor:\n  xdp.drop: tcp, 443\n", "f:2:18: a bare port, expected a protocol beside it; write 443/tcp (or tcp/443), 443/udp"},
		{"floor:\n  xdp.drop: 443\n  xpd.drop: udp\n  drop: udp\n  label: x\n", `f:2:13: a bare port, expected a protocol beside it; write 443/tcp (or tcp/443), 443/udp
f:3:3: an unknown key; write xdp.drop
f:4:3: an unknown key, expected an xdp label; write xdp.drop
f:5:3: an unknown key, expected an xdp label`},
		{"floor:\n  xdp.drop: [udp, {a: b}]\n  xdp.except:\n  xdp.allow: ''\n", `f:2:20: a mapping in the list of a label, expected a single value
f:3:14: nothing for a label, expected a single value, or a list of such
f:4:15: an empty value, expected something after the =; is a ${VARIABLE} unset?`},
		{"floor:\n  xdp.drop: [udp, 'tcp@10.0.0.1/8', 443]\n", "f:2:24: a CIDR with host bits set, expected the network's first address; write tcp@10.0.0.0/8"},
		{"floor: {xdp.drop: udp, 443/tcp}\n", `f:1:24: a key without a value, expected an xdp label and its value; in braces a list has to be quoted: xdp.drop: "udp,443/tcp"`},
		{"floor: {xdp.enable: false, xdp.drop: 443}\n", "f:1:38: a bare port, expected a protocol beside it; write 443/tcp (or tcp/443), 443/udp"},
		{policies + "pick: {name: a}\n", "f:2:5: a policy without labels, expected pick, labels and, if need be, replace"},
		{policies + "labels: {xdp.drop: udp}\n", "f:2:5: a policy without a pick, expected pick, labels and, if need be, replace; what holds for every container is the floor"},
		{policies + "a\n", "f:2:5: a single value, expected a mapping"},
		{"policies: {}\n", "f:1:11: a mapping, expected a list"},
		{policies + "{pick: {}, labels: {xdp.drop: udp}}\n", "f:2:12: an empty pick, expected name, image, label, project or service; what holds for every container is the floor"},
		{policies + "{pick: {name: '[', labels: =b, service: '', project: [a]}, replace: yes, labels: {xdp.drop: udp}}\n", `f:2:19: no pattern, expected a name with *, ? and [a-z] in it, each [ with its ]
f:2:24: an unknown key, expected name, image, label, project, service; write label
f:2:45: an empty value, expected something, or no such key
f:2:58: a list, expected a single value
f:2:73: no boolean, expected true or false`},
		{policies + "{pick: {name: /web}, labels: {xdp.drop: udp}}\n", "f:2:19: a slash, which no name has, expected the name as docker ps has it; write web"},
		{policies + "{pick: {name: \"/web*\"}, labels: {xdp.drop: udp}}\n", "f:2:20: a slash, which no name has, expected the name as docker ps has it; write web*"},
		{policies + "{pick: {name: shop/web, image: a/b}, labels: {xdp.drop: udp}}\n", "f:2:23: a slash, which no name has, expected the name as docker ps has it"},
		{policies + "{pick: {name: /}, labels: {xdp.drop: udp}}\n", "f:2:19: a slash, which no name has, expected the name as docker ps has it"},
		{policies + "{pick: {label: =b}, labels: {xdp.drop: udp}}\n", "f:2:20: a label without a key, expected KEY or KEY=VALUE"},
		{policies + "{pick: {name: a}, labels: {xdp.drop: udp}}\n  - {pick: {name: a}, labels: {xdp.drop: tcp}}\n",
			"f:3:13: the pick of line 2, expected one policy for a container; put the labels together, or pick others"},
		{"floor: {xdp.drop: udp, xdp.drop: tcp}\nhook: x\nhook: y\n", `f:1:24: a key that is there already, expected one of each; the first is in line 1
f:3:1: a key that is there already, expected one of each; the first is in line 2`},
		{"floor: {xdp.drop: udp\n", "f:1:8: could not find flow mapping end token '}'"},
	} {
		c, err := Parse("f", []byte(tc.yaml))
		if err == nil || err.Error() != tc.want {
			t.Errorf("%q: got\n%v\nwant\n%s", tc.yaml, err, tc.want)
		}
		var errs yamltree.Errors
		if !errors.As(err, &errs) || c.Floor != nil || c.Policies != nil {
			t.Errorf("%q: %T, %+v", tc.yaml, err, c)
		}
	}
}

func TestMatches(t *testing.T) {
	labels := map[string]string{labelProject: "shop", labelService: "web", "tier": "front", "empty": ""}
	for _, tc := range []struct {
		pick Pick
		want bool
	}{
		{Pick{Name: "web"}, true}, {Pick{Name: "w*"}, true}, {Pick{Name: "w?"}, false}, {Pick{Name: "WEB"}, false}, {Pick{Name: "[a-w]eb"}, true},
		{Pick{Image: "nginx:1.27"}, true}, {Pick{Image: "nginx"}, false}, {Pick{Image: "nginx:*"}, true}, {Pick{Image: "*"}, true},
		{Pick{Label: "tier"}, true}, {Pick{Label: "tier=front"}, true}, {Pick{Label: "tier=back"}, false}, {Pick{Label: "other"}, false},
		{Pick{Label: "empty"}, true}, {Pick{Label: "empty="}, true}, {Pick{Label: "tier="}, false}, {Pick{Label: "other="}, false},
		{Pick{Project: "shop"}, true}, {Pick{Project: "sh*"}, false}, {Pick{Service: "web"}, true}, {Pick{Service: "db"}, false},
		{Pick{Name: "web", Project: "shop", Label: "tier"}, true}, {Pick{Name: "db", Project: "shop"}, false},
	} {
		if got := tc.pick.Matches("web", "nginx:1.27", labels); got != tc.want {
			t.Errorf("%s: %t", tc.pick, got)
		}
		if (tc.pick.Label != "" || tc.pick.Project != "" || tc.pick.Service != "") && tc.pick.Matches("web", "nginx:1.27", nil) {
			t.Errorf("%s: picks what has no labels", tc.pick)
		}
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yaml")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Read(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	write("hook: tcx\n")
	link := filepath.Join(dir, "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, link} {
		if c, err := Read(p); err != nil || c.Hook != policy.HookTCX {
			t.Errorf("%s: %+v, %v", p, c, err)
		}
	}
	for _, mode := range []fs.FileMode{0o664, 0o646} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(link); err == nil || !strings.Contains(err.Error(), "chmod go-w") {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	if os.Geteuid() == 0 {
		if err := errors.Join(os.Chmod(path, 0o644), os.Chown(path, 12345, 0)); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
			t.Errorf("another owner: %v", err)
		}
	}
	if _, err := Read(dir); err == nil || !strings.Contains(err.Error(), "is not a file") {
		t.Errorf("a directory: %v", err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(fifo); err == nil || !strings.Contains(err.Error(), "is not a file") {
		t.Errorf("a fifo: %v", err)
	}
	_ = os.Remove(path)
	write("")
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "without content") {
		t.Errorf("an empty one: %v", err)
	}
	write(strings.Repeat("# long\n", maxSize/7+1))
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "larger than 1 MiB") {
		t.Errorf("a large one: %v", err)
	}
	write("hook: x\n")
	if _, err := Read(path); err == nil || !strings.HasPrefix(err.Error(), path+":1:7: ") {
		t.Errorf("a mistake: %v", err)
	}
}
