package policy

import "testing"

// TestExtensionHeaders: what proto-N refuses without a name is what the reading of a frame walks over.
func TestExtensionHeaders(t *testing.T) {
	for n := range 256 {
		name, refused := unnumbered[n]
		if got := refused && name == ""; got != isExtension(uint8(n)) {
			t.Errorf("protocol %d: refused as an extension header: %v", n, got)
		}
	}
}

// TestTypes: a number holds for the families where rules judge it, a name where the name exists.
func TestTypes(t *testing.T) {
	for s, want := range map[string]string{
		"8": "8/icmp", "echo-request": "ping", "128": "128/icmp", "13": "timestamp/icmp", "160": "160/icmp",
		"extended-echo-request": "extended-echo-request/icmp", "9": "router-advertisement/icmp", "139": "139/icmp",
		"node-information-query": "node-information-query/icmp",
	} {
		if w, f := parseICMPType(s); f != nil || w.String() != want {
			t.Errorf("%s: %v, %+v", s, w, f)
		}
	}
	// Nothing is left of these, or only a number that means nothing in the other family.
	for _, s := range []string{"3", "2", "130", "133", "137", "143", "redirect", "packet-too-big", "256", "-1", "08", ""} {
		if w, f := parseICMPType(s); f == nil {
			t.Errorf("%q: parsed as %v", s, w)
		}
	}
	for _, e := range icmpNames {
		types, _ := judgedTypes(e.v4, e.v6)
		if len(types) == 0 {
			continue
		}
		w, f := parseICMPType(e.name)
		if f != nil {
			t.Errorf("%s: %+v", e.name, f)
		} else if again, f := parseWhat(w.String()); f != nil || again.String() != w.String() {
			t.Errorf("%s: written as %s, read as %v", e.name, w, again)
		}
	}
}
