package xdp

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/policy"
)

// TestComplexEnough has labels as somebody may write them: they are compiled.
func TestComplexEnough(t *testing.T) {
	list := func(n int, rule func(int) string) string {
		var out []string
		for i := range n {
			out = append(out, rule(i))
		}
		return strings.Join(out, ",")
	}
	one := func(i int) string { return fmt.Sprintf("%d/tcp@10.0.%d.%d", 1+i, i>>8, i&255) }
	for name, labels := range map[string]map[string]string{
		"2,500 ports and addresses":              {"xdp.allow": list(2500, one)},
		"two families":                           {"xdp.allow": list(1500, func(i int) string { return fmt.Sprintf("%s+2001:db8::%x", one(i), i) })},
		"350 exceptions of a wide rule":          {"xdp.drop": "10.0.0.0/8", "xdp.except": list(350, one)},
		"3,000 exceptions, of 20 lists of ports": {"xdp.drop": "10.0.0.0/8", "xdp.except": list(3000, func(i int) string { return fmt.Sprintf("%d/tcp@10.0.%d.%d", 1+i%20, i>>8, i&255) })},
	} {
		p, _, err := policy.Parse(labels)
		must(t, err)
		if _, err := Compile(policy.Stack{{Origin: "labels", Policy: p}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTooComplex has labels within all bounds that are as hard to compile as can be: an image may bring them along, and the agent's loop, which
// keeps new ports held, compiles them.
func TestTooComplex(t *testing.T) {
	prefixes := func(i int) string { return fmt.Sprintf("%d/tcp@::-::%x:ffff", 1+i, i) }
	nested := func(i int) string {
		return fmt.Sprintf("%d-%d/tcp@10.0.%d.%d-10.9.%d.%d", 1+i, 65535-i, i>>8, i&255, 255-i>>8, 255-i&255)
	}
	for _, c := range []struct {
		name    string
		n       int
		rule    func(int) string
		complex bool
	}{
		{"prefixes", 500, prefixes, false},
		{"prefixes", 2500, prefixes, true}, // took 13 s, and 600 MB
		{"nested", 100, nested, false},
		{"nested", 420, nested, true}, // took 3 s
	} {
		var rules []string
		for i := range c.n {
			rules = append(rules, c.rule(i))
		}
		p, _, err := policy.Parse(map[string]string{"xdp.drop": strings.Join(rules, ",")})
		must(t, err)
		if _, err := Compile(policy.Stack{{Origin: "image", Policy: p}}); errors.Is(err, errTooComplex) != c.complex {
			t.Errorf("%d rules, %s: %v", c.n, c.name, err)
		}
	}
}
