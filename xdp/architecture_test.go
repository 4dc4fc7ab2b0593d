package xdp

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// docs/architecture.md lists the maps as they are.
func TestDocumentedMaps(t *testing.T) {
	text, err := os.ReadFile("../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	spec, err := loadFilter()
	if err != nil {
		t.Fatal(err)
	}
	number := func(s string) uint32 {
		n, _ := strconv.ParseUint(strings.ReplaceAll(s, ",", ""), 10, 32)
		return uint32(n)
	}
	row := regexp.MustCompile(`(?m)^\| ` + "`(\\w+)`" + ` \| (?:array|hash|per-CPU array|array of maps), ([0-9,]+) \| (.*) \|$`)
	size := regexp.MustCompile(`([0-9,]+) bytes`)
	rows := row.FindAllStringSubmatch(string(text), -1)
	if len(rows) != len(spec.Maps) {
		t.Errorf("%d maps are listed, there are %d", len(rows), len(spec.Maps))
	}
	for _, r := range rows {
		m := spec.Maps[r[1]]
		if m == nil || m.MaxEntries != number(r[2]) {
			t.Errorf("map %s is listed with %s entries, is %v", r[1], r[2], m)
			continue
		}
		if s := size.FindStringSubmatch(r[3]); s != nil && number(s[1]) != m.ValueSize {
			t.Errorf("values of map %s are listed with %s, have %d bytes", r[1], s[0], m.ValueSize)
		}
	}
}
