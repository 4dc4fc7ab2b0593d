package policy_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/vethwall/vethwall/policy"
)

// sentences are cases, separated by empty lines: labels, then ">> " and a sentence a line.
func sentences(t *testing.T, text string) string {
	var out []string
	for _, block := range strings.Split(strings.TrimSuffix(text, "\n"), "\n\n") {
		labels := map[string]string{}
		kept := ""
		for _, line := range strings.Split(block, "\n") {
			if strings.HasPrefix(line, ">> ") {
				continue
			}
			key, value, _ := strings.Cut(line, "=")
			labels[key] = value
			kept += line + "\n"
		}
		p, _, err := policy.Parse(labels)
		if err != nil {
			t.Fatal(err)
		}
		s := policy.Stack{{Origin: "labels", Policy: p}}
		for _, sentence := range s.Sentences() {
			kept += ">> " + sentence + "\n"
		}
		out = append(out, kept)
	}
	return strings.Join(out, "\n")
}

func TestSentences(t *testing.T) {
	const path = "testdata/sentences.txt"
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	checkGolden(t, path, string(old), sentences(t, string(old)))
}

func TestSentencesOfSources(t *testing.T) {
	udp, _, _ := policy.Parse(map[string]string{"xdp.drop": "udp"})
	var s policy.Stack
	if got := s.Sentences(); len(got) > 0 {
		t.Errorf("no sources: %q", got)
	}
	for _, origin := range []string{"floor", "config", "labels", "image"} {
		s = append(s, policy.Source{Origin: origin, Policy: udp})
	}
	want := []string{
		"What the container sends, by the floor: UDP is dropped; everything else passes.",
		"What the container sends, by the configuration: UDP is dropped; everything else passes.",
		"What the container sends, by the container's labels: UDP is dropped; everything else passes.",
		"What the container sends, by the image's labels: UDP is dropped; everything else passes.",
		"What it receives, by the floor: UDP is dropped; everything else passes.",
		"What it receives, by the configuration: UDP is dropped; everything else passes.",
		"What it receives, by the container's labels: UDP is dropped; everything else passes.",
		"What it receives, by the image's labels: UDP is dropped; everything else passes.",
		"A packet passes only if each of these lets it pass.",
		"What it sends must carry its own MAC and addresses; router advertisements, redirects and a DHCP server's packets are dropped.",
	}
	if got := s.Sentences(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q", got)
	}
}
