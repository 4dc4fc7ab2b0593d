package policy_test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/vethwall/vethwall/policy"
)

// hintForms are the forms of hints that say what to write, and the labels that they make of the faulty label key=value.
var hintForms = []struct {
	pattern *regexp.Regexp
	labels  func(key, value string, g []string) [][2]string
}{
	{regexp.MustCompile(`^write (?:(?:it|dns) under (xdp\S+)|it as one quoted string, .*|.+ there)$`), func(_, _ string, g []string) [][2]string {
		if g[1] == "" {
			return nil
		}
		if strings.Contains(g[1], "limit") {
			return [][2]string{{g[1], "dns=1pps"}}
		}
		return [][2]string{{g[1], "dns"}}
	}},
	{regexp.MustCompile(`^nothing can be negated with !: write (.+) here, and (.+) under (xdp\S+)$`), func(key, _ string, g []string) [][2]string {
		return [][2]string{{key, g[1]}, {g[3], g[2]}}
	}},
	{regexp.MustCompile(`^what .* stands under (xdp\S+): write (.+) there$`), func(_, _ string, g []string) [][2]string {
		return [][2]string{{g[1], g[2]}}
	}},
	{regexp.MustCompile(`^write (xdp\.[^ =]+)=(.+) or (xdp\.[^ =]+)=(.+)$`), func(_, _ string, g []string) [][2]string {
		return [][2]string{{g[1], g[2]}, {g[3], g[4]}}
	}},
	{regexp.MustCompile(`^write (xdp\.[^ =]+)(?:=(.+)| or (xdp\.[^ =]+))?$`), func(_, value string, g []string) [][2]string {
		if g[2] != "" {
			value = g[2]
		}
		out := [][2]string{{g[1], value}}
		if g[3] != "" {
			out = append(out, [2]string{g[3], value})
		}
		return out
	}},
	{regexp.MustCompile(`^write (.+) \(or (.+?)\), (.+?)( before the =)?$`), func(key, _ string, g []string) [][2]string {
		rate := ""
		if g[4] != "" {
			rate = "=1pps"
		}
		return [][2]string{{key, g[1] + rate}, {key, g[2] + rate}, {key, g[3] + rate}}
	}},
	{regexp.MustCompile(`^write (.+?)(?:, or is a \$\{VARIABLE\} unset\?|, with the rate that you want|, or with kpps, kbit, mbit or gbit|: a name, never a path|( before the =))?$`), func(key, _ string, g []string) [][2]string {
		if g[2] != "" {
			return [][2]string{{key, strings.ReplaceAll(g[1], ",", "=1pps,") + "=1pps"}}
		}
		return [][2]string{{key, g[1]}}
	}},
}

// holdHints holds an error of Parse to its hints: what they say to write is no error itself. Of a key that is at fault only
// the key is corrected.
func holdHints(t interface{ Errorf(string, ...any) }, err error) (offered int) {
	joined, _ := err.(interface{ Unwrap() []error })
	if joined == nil {
		return 0
	}
	for _, one := range joined.Unwrap() {
		var e, again *policy.LabelError
		if !errors.As(one, &e) || !strings.HasPrefix(e.Hint, "write ") && !strings.Contains(e.Hint, ": write ") {
			continue
		}
		for _, form := range hintForms {
			g := form.pattern.FindStringSubmatch(e.Hint)
			if g == nil {
				continue
			}
			for _, l := range form.labels(e.Key, e.Value, g) {
				offered++
				_, _, err := policy.Parse(map[string]string{l[0]: l[1]})
				if errors.As(err, &again) && (e.Offset >= 0 || again.Offset < 0 || l[1] != e.Value) {
					t.Errorf("%v\n%s=%s: %v", e, l[0], l[1], again)
				}
			}
			break
		}
	}
	return offered
}

// goldenSlips are the labels of the goldens, one by one.
func goldenSlips(t *testing.T) (out [][2]string) {
	paths, _ := filepath.Glob("testdata/labels/*.txt")
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(text), "\n") {
			if line != "" && line[0] != '#' && !answerLine.MatchString(line) {
				key, value := goldenLabel(line)
				out = append(out, [2]string{key, value})
			}
		}
	}
	return out
}

func TestHintsHold(t *testing.T) {
	offered := 0
	for _, l := range goldenSlips(t) {
		_, _, err := policy.Parse(map[string]string{l[0]: l[1]})
		offered += holdHints(t, err)
	}
	if offered < 100 {
		t.Errorf("hints say to write only %d labels", offered)
	}
}

// TestHintsOfMixedSlips makes one slip of the pieces of two.
func TestHintsOfMixedSlips(t *testing.T) {
	all := goldenSlips(t)
	rapid.Check(t, func(t *rapid.T) {
		for range 20 {
			a, b := rapid.SampledFrom(all).Draw(t, "a"), rapid.SampledFrom(all).Draw(t, "b")
			value := a[1][:rapid.IntRange(0, len(a[1])).Draw(t, "end")] + rapid.SampledFrom([]string{"", "@", "+", ",", "/", ":", "!", "=", "-"}).Draw(t, "between") +
				b[1][rapid.IntRange(0, len(b[1])).Draw(t, "begin"):]
			_, _, err := policy.Parse(map[string]string{rapid.SampledFrom([]string{a[0], "xdp.egress.allow", "xdp.ingress.drop", "xdp.limit"}).Draw(t, "key"): value})
			holdHints(t, err)
		}
	})
}
