package policy

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestReasonNames(t *testing.T) {
	seen := map[string]Reason{}
	for r := range NumReasons {
		name := r.String()
		if name == "" || name == NumReasons.String() {
			t.Errorf("reason %d has no name", r)
		}
		if other, ok := seen[name]; ok {
			t.Errorf("reasons %d and %d are both called %q", other, r, name)
		}
		seen[name] = r
	}
}

// TestReasonsAreDocumented holds the table of docs/labels.md against the reasons that there are.
func TestReasonsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/labels.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Reasons\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| .+ \\|$").FindAllStringSubmatch(section, -1) {
		documented = append(documented, row[1])
	}
	var want []string
	for r := range NumReasons {
		if r != Pass {
			want = append(want, r.String())
		}
	}
	if !slices.Equal(documented, want) {
		t.Errorf("documented %q, want %q", documented, want)
	}
}
