// Package yamltree reads YAML into a tree in which every value knows where it stands, so that a mistake that is found
// later, even in the middle of a text, can be shown at its line and column.
//
// Aliases and merge keys are resolved. Scalars are text as it was written: what is a number or a boolean is for
// the reader of the tree to say. Duplicate keys, a second document and tags other than YAML's own are errors.
package yamltree

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Kind of a Node.
type Kind uint8

// The kinds. Null is a value that is left out or null.
const (
	Null Kind = iota
	Scalar
	List
	Map
)

// String is what a reader of the file calls it.
func (k Kind) String() string {
	return [...]string{"nothing", "a single value", "a list", "a mapping"}[k]
}

// Node is a value of a file.
type Node struct {
	Kind  Kind
	Text  string  // of a Scalar
	Items []*Node // of a List
	Pairs []Pair  // of a Map, in the file's order, those of merge keys last; no key is there twice
	place
}

// Pair is a key, which is a Scalar, and its value.
type Pair struct{ Key, Value *Node }

// Get is the value of a key of a Map, nil without one.
func (n *Node) Get(key string) *Node {
	for _, p := range n.Pairs {
		if p.Key.Text == key {
			return p.Value
		}
	}
	return nil
}

// Parse reads a file, which errors call name. An empty one is Null. The error is of type Errors; there may be more
// than one of it.
func Parse(name string, text []byte) (*Node, error) {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	t := &tree{file: &file{name: name, lines: strings.Split(string(text), "\n")}, anchors: map[string]*Node{}}
	if i := invalid(text); i >= 0 {
		line := bytes.Count(text[:i], []byte("\n"))
		column := utf8.RuneCount(text[bytes.LastIndexByte(text[:i], '\n')+1 : i])
		t.fail(place{t.file, line + 1, column + 1, 1, plain}, "a byte that is no text", "UTF-8", "")
		return nil, Join(t.errs)
	}
	parsed, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		t.syntax(err)
		return nil, Join(t.errs)
	}
	root := &Node{place: place{t.file, 1, 1, 1, plain}}
	for i, doc := range parsed.Docs {
		if i > 0 && doc.Body != nil {
			t.fail(t.node(doc.Body).place, "a second document", "one", "leave the --- out")
		} else if doc.Body != nil {
			root = t.node(doc.Body)
		}
	}
	return root, Join(t.errs)
}

// invalid is the first byte that is not of UTF-8 text, -1 without one. YAML has no NUL either.
func invalid(text []byte) int {
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && n == 1 || r == 0 {
			return i
		}
		i += n
	}
	return -1
}

// tree turns what the library has parsed into nodes.
type tree struct {
	file    *file
	anchors map[string]*Node
	errs    []*Error
}

func (t *tree) fail(at place, problem, expected, hint string) {
	t.errs = append(t.errs, at.Wrong(problem, expected, hint))
}

// syntax takes in the one error that the library reports.
func (t *tree) syntax(err error) {
	at, problem := place{t.file, 1, 1, 1, plain}, err.Error()
	var e yaml.Error
	if errors.As(err, &e) {
		problem = e.GetMessage()
		if e.GetToken() != nil {
			at = t.at(e.GetToken())
		}
	}
	t.fail(at, problem, "", "")
}

// at is where a token stands.
func (t *tree) at(tk *token.Token) place {
	p := place{t.file, tk.Position.Line, tk.Position.Column, 1, plain}
	switch tk.Type {
	case token.DoubleQuoteType:
		p.style = doubleQuoted
	case token.SingleQuoteType:
		p.style = singleQuoted
	case token.LiteralType, token.FoldedType:
		p.style = block
	}
	return p
}

func (t *tree) node(n ast.Node) *Node {
	switch n := n.(type) {
	case *ast.AnchorNode:
		out := t.node(n.Value)
		t.anchors[n.Name.GetToken().Value] = out
		return out
	case *ast.AliasNode:
		name := n.Value.GetToken().Value
		if to := t.anchors[name]; to != nil {
			return to
		}
		t.fail(t.at(n.GetToken()), fmt.Sprintf("*%s without a &%s before it", name, name), "", "")
		return &Node{place: t.at(n.GetToken())}
	case *ast.TagNode:
		if !strings.HasPrefix(n.GetToken().Value, "!!") {
			t.fail(t.at(n.GetToken()), "the tag "+n.GetToken().Value+", which is not understood", "", "")
		}
		return t.node(n.Value)
	case *ast.SequenceNode:
		out := &Node{Kind: List, place: t.at(n.GetToken())}
		for _, item := range n.Values {
			out.Items = append(out.Items, t.node(item))
		}
		return out
	case *ast.MappingNode:
		if len(n.Values) == 0 {
			return &Node{Kind: Map, place: t.at(n.GetToken())}
		}
		return t.mapping(n.Values)
	case *ast.MappingValueNode:
		return t.mapping([]*ast.MappingValueNode{n})
	}
	return t.scalar(n)
}

func (t *tree) scalar(n ast.Node) *Node {
	if n == nil {
		return &Node{place: place{t.file, 1, 1, 1, plain}}
	}
	out := &Node{Kind: Scalar, Text: n.GetToken().Value, place: t.at(n.GetToken())}
	switch n := n.(type) {
	case *ast.NullNode:
		out.Kind, out.Text = Null, ""
	case *ast.LiteralNode:
		out.Text = n.Value.Value
	case *ast.StringNode:
		out.Text = n.Value
	}
	if out.style != block {
		out.width = max(1, utf8.RuneCountInString(strings.TrimSpace(n.GetToken().Origin)))
	}
	return out
}

// mapping takes in the pairs of a Map, one at least. The keys of a merge key give way to those beside it, whatever their order.
func (t *tree) mapping(values []*ast.MappingValueNode) *Node {
	out, merged := &Node{Kind: Map, place: t.key(values[0].Key).place}, []*Node{}
	for _, v := range values {
		if v.Key.IsMergeKey() {
			merged = append(merged, t.node(v.Value))
			continue
		}
		key := t.key(v.Key)
		if key.Kind != Scalar {
			t.fail(key.place, key.Kind.String()+" as a key", Scalar.String(), "")
			continue
		}
		if first := slices.IndexFunc(out.Pairs, func(p Pair) bool { return p.Key.Text == key.Text }); first >= 0 {
			t.fail(key.place, "a key that is there already", "one of each", fmt.Sprintf("the first is in line %d", out.Pairs[first].Key.line))
			continue
		}
		out.Pairs = append(out.Pairs, Pair{key, t.node(v.Value)})
	}
	for _, m := range merged {
		t.merge(out, m)
	}
	return out
}

func (t *tree) key(k ast.MapKeyNode) *Node {
	if asked, ok := k.(*ast.MappingKeyNode); ok {
		return t.node(asked.Value)
	}
	return t.node(k)
}

// merge adds what << names to a mapping: another one, or a list of such of which the first that has a key counts.
func (t *tree) merge(into, from *Node) {
	switch from.Kind {
	case Map:
		for _, p := range from.Pairs {
			if into.Get(p.Key.Text) == nil {
				into.Pairs = append(into.Pairs, p)
			}
		}
	case List:
		for _, item := range from.Items {
			if item.Kind != Map {
				t.fail(item.place, item.Kind.String()+" beside a <<", "a mapping", "")
				continue
			}
			t.merge(into, item)
		}
	default:
		t.fail(from.place, from.Kind.String()+" beside a <<", "a mapping or a list of mappings", "")
	}
}
