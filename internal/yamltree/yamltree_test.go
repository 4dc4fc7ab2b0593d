package yamltree

import (
	"fmt"
	"strings"
	"testing"
)

// dump is a tree in one line.
func (n *Node) dump() string {
	switch n.Kind {
	case Scalar:
		return fmt.Sprintf("%q", n.Text)
	case List:
		var items []string
		for _, i := range n.Items {
			items = append(items, i.dump())
		}
		return "[" + strings.Join(items, " ") + "]"
	case Map:
		var pairs []string
		for _, p := range n.Pairs {
			pairs = append(pairs, p.Key.Text+":"+p.Value.dump())
		}
		return "{" + strings.Join(pairs, " ") + "}"
	}
	return "null"
}

func TestParse(t *testing.T) {
	for _, tc := range []struct{ name, yaml, want string }{
		{"empty", "", `null`},
		{"a comment", "# a\n", `null`},
		{"a start", "---\na: b\n", `{a:"b"}`},
		{"scalars as written", "{a: 0x10, b: yes, c: 1.10, d: true, e: 1_000, f: .inf, g: 12:30, h: ::1}", `{a:"0x10" b:"yes" c:"1.10" d:"true" e:"1_000" f:".inf" g:"12:30" h:"::1"}`},
		{"nothing", "a:\nb: ~\nc: null\nd: ''\n", `{a:null b:null c:null d:""}`},
		{"quotes", `{a: 'it''s', b: "\t\u00e9"}`, `{a:"it's" b:"\té"}`},
		{"blocks", "a: |\n  x\n  y\nb: >-\n  x\n  y\nc: x\n  y\n", `{a:"x\ny\n" b:"x y" c:"x y"}`},
		{"alias", "a: &x [1]\nb: *x\n", `{a:["1"] b:["1"]}`},
		{"merge", "a: &x {k: 1, l: 2}\nb:\n  k: 3\n  <<: *x\n", `{a:{k:"1" l:"2"} b:{k:"3" l:"2"}}`},
		{"merges", "a: &x {k: 1}\nb: &y {k: 2, l: 3}\nc: {<<: [*x, *y]}\n", `{a:{k:"1"} b:{k:"2" l:"3"} c:{k:"1" l:"3"}}`},
		{"tags of YAML", "a: !!str 5\n", `{a:"5"}`},
		{"question", "? a\n: b\n", `{a:"b"}`},
		{"a mark at the beginning", "\ufeffa: b\n", `{a:"b"}`},
		{"carriage returns", "a: b\r\nc:\r\n  - d\r\n", `{a:"b" c:["d"]}`},
		{"a list", "- a\n", `["a"]`},
		{"a word", "a\n", `"a"`},
	} {
		n, err := Parse("f", []byte(tc.yaml))
		if err != nil || n.dump() != tc.want {
			t.Errorf("%s: %v, got %s", tc.name, err, n.dump())
		}
	}
}

func TestErrors(t *testing.T) {
	for _, tc := range []struct{ yaml, want string }{
		{"a: [1\n", "f:1:4: sequence end token ']' not found"},
		{"a: 1\r\nb: @x\r\n", "f:2:4: '@' is a reserved character"},
		{"a:\n\tb: 1\n", "f:2:1: found character '\t' that cannot start any token"},
		{"a: 1\nb: 2\na: 3\nb: 4\n", "f:3:1: a key that is there already, expected one of each; the first is in line 1\nf:4:1: a key that is there already, expected one of each; the first is in line 2"},
		{"a: *x\n", "f:1:4: *x without a &x before it"},
		{"a: &x {b: *x}\n", "f:1:11: *x without a &x before it"},
		{"a: {<<: b}\n", "f:1:9: a single value beside a <<, expected a mapping or a list of mappings"},
		{"a: {<<: [b]}\n", "f:1:10: a single value beside a <<, expected a mapping"},
		{"a: !x b\n", "f:1:4: the tag !x, which is not understood"},
		{"a: 1\n---\nb: 2\n", "f:3:1: a second document, expected one; leave the --- out"},
		{"a: é\x00", "f:1:5: a byte that is no text, expected UTF-8"},
		{"a: b\nc: é\xff", "f:2:5: a byte that is no text, expected UTF-8"},
		{"~: b\n", "f:1:1: nothing as a key, expected a single value"},
		{"a: &x [1]\n*x : b\n", "f:1:7: a list as a key, expected a single value"},
	} {
		_, err := Parse("f", []byte(tc.yaml))
		if err == nil || err.Error() != tc.want {
			t.Errorf("%q: got\n%v\nwant\n%s", tc.yaml, err, tc.want)
		}
	}
}

// Each case has the text of a scalar under the key k: a caret has to stand at its @, however it is written.
func TestPlaces(t *testing.T) {
	for _, yaml := range []string{
		"k: udp,@x\n", "k:   udp, @x # @\n", `k: "udp,@x"` + "\n", `k: 'it''s,@x'` + "\n", `k: "\t\u00e9\x41\"é,@x"` + "\n",
		"a: 1\nk: |\n  udp,\n\n  é, @x\n", "k: >-\n    udp,\n    tcp,@x\n", "k: udp,\n   @x\n", "k: \"udp,\n  tcp,\n  é, @x\"\n",
		"{a: 1, k: udp @x, b: 1}\n", "x: &x {k: a @x}\ny: *x\n", "\r\nk: >\r\n  a\r\n  b @x\r\n", "é: {日本: 1, k: 日 @x}\n", "k: !!str a@x\n",
	} {
		n, err := Parse("f", []byte(yaml))
		if err != nil {
			t.Fatalf("%q: %v", yaml, err)
		}
		for n.Get("k") == nil {
			n = n.Pairs[len(n.Pairs)-1].Value
		}
		n = n.Get("k")
		e := n.WrongAt(strings.IndexByte(n.Text, '@'), "", "", "")
		if e.Column > len([]rune(e.Text)) || []rune(e.Text)[e.Column-1] != '@' {
			t.Errorf("%q: line %d column %d", yaml, e.Line, e.Column)
		}
	}
}

func TestPlaceOfTheEnd(t *testing.T) {
	for yaml, want := range map[string]string{
		"k: udp # x\n": "1:7", `k: "udp" # x`: "1:8", "k: |\n  udp\n\nl: 1": "2:6", `k: ""`: "1:5",
	} {
		n, err := Parse("f", []byte(yaml))
		if err != nil {
			t.Fatal(err)
		}
		n = n.Get("k")
		if e := n.WrongAt(len(n.Text), "", "", ""); fmt.Sprintf("%d:%d", e.Line, e.Column) != want {
			t.Errorf("%q: %d:%d, want %s", yaml, e.Line, e.Column, want)
		}
	}
}

func TestWidth(t *testing.T) {
	n, err := Parse("f", []byte("long: \"quoted\"\nb: |\n  x\n"))
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range []*Error{n.Pairs[0].Key.Wrong("", "", ""), n.Pairs[0].Value.Wrong("", "", ""), n.Pairs[1].Value.Wrong("", "", "")} {
		if want := []int{4, 8, 1}[i]; e.Width != want {
			t.Errorf("%d: width %d, want %d", i, e.Width, want)
		}
	}
}

// FuzzParse looks for a panic, and for scalars that are not where they are said to be.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"a: 1", "a: |\n  b\n", "- a\n- {b: 'c'}", "a: &x [1]\nb: *x", "a: {<<: *b}", "\"\\u00e9\": \"b\n c\"", "? a\n: b", "a: !!str 1", "---\n...\n", "a: >-\n\n  b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := Parse("f", []byte(text))
		if err != nil {
			_ = err.Error()
			return
		}
		var walk func(n *Node)
		walk = func(n *Node) {
			for off := range n.Text {
				e := n.WrongAt(off, "", "", "")
				if e.Line < 1 || e.Column < 1 {
					t.Fatalf("%q: %d:%d", text, e.Line, e.Column)
				}
			}
			for _, i := range n.Items {
				walk(i)
			}
			for _, p := range n.Pairs {
				walk(p.Key)
				walk(p.Value)
			}
		}
		walk(n)
	})
}
