// Package compose reads from a Compose file what it says of labels.
//
// It is not Compose's own loader. It reads one file, with its anchors and merge keys, and puts variables of the
// environment in. What it would have to read elsewhere (extends, include, label_file, variables that are not set) it
// reports as a mistake with its place, because nobody can tell then which labels a service has;
// docker compose config writes a file in which all that is resolved.
package compose

import (
	"slices"
	"strings"

	"github.com/vethwall/vethwall/internal/config"
	"github.com/vethwall/vethwall/internal/yamltree"
	"github.com/vethwall/vethwall/policy"
)

// Service is what is of interest here of a service.
type Service struct {
	Name string
	Line int // of the file, from 1
	// Labels are those that its containers get, Image those that Compose builds its image with. A key may be there
	// more than once: the last counts.
	Labels, Image []Label
	// Deploy are those under deploy, which no container gets.
	Deploy      []Label
	NetworkMode string // "" where the file does not say
	Privileged  bool
	CapAdd      []string // as docker.Container has them
	Published   bool     // a port is published; expose publishes none
	// Unread are the mistakes because of which it is not known what labels there are.
	Unread []*yamltree.Error
}

// Label is one of a service.
type Label struct {
	Key, Value string
	// key and value are where it stands, value alone where it is KEY=VALUE in a list. written says that Value is what
	// stands there, without variables.
	key, value *yamltree.Node
	written    bool
}

// Map are labels as Docker has them.
func Map(labels []Label) map[string]string {
	out := map[string]string{}
	for _, l := range labels {
		out[l.Key] = l.Value
	}
	return out
}

// Wrong is the mistake e in a label.
func (l Label) Wrong(e *policy.LabelError) *yamltree.Error {
	switch {
	case !l.written:
		return l.value.Wrong(e.Problem, e.Expected, e.Hint)
	case l.key != nil:
		return config.WrongLabel(l.key, l.value, e)
	case e.Offset < 0:
		return l.value.Wrong(e.Problem, e.Expected, e.Hint)
	}
	return l.value.WrongAt(len(l.Key)+len("=")+e.Offset, e.Problem, e.Expected, e.Hint)
}

// Place is the label as a whole.
func (l Label) Place(problem, hint string) *yamltree.Error {
	if l.key != nil {
		return l.key.Wrong(problem, "", hint)
	}
	return l.value.Wrong(problem, "", hint)
}

// Is reports whether a file is one of Compose's.
func Is(root *yamltree.Node) bool { return root.Get("services") != nil }

const resolve = "let Compose put it together: docker compose config | vethwall check -f -"

// Read reads a file for which Is holds. getenv gives the variables of the environment, "" for one that is not set.
func Read(root *yamltree.Node, getenv func(string) string) ([]Service, error) {
	errs := strays(root)
	for _, p := range root.Pairs {
		if p.Key.Text == "include" {
			errs = append(errs, p.Key.Wrong("include, which is not read here", "", resolve))
		}
	}
	services := root.Get("services")
	if services.Kind != yamltree.Map {
		errs = append(errs, services.Wrong(services.Kind.String(), "a mapping of services", ""))
	}
	var out []Service
	for _, p := range services.Pairs {
		r := reader{getenv: getenv}
		out = append(out, r.service(p))
	}
	return out, yamltree.Join(errs)
}

// strays are keys of n that Compose does not have and by which labels were meant. Its extensions, x-, are nobody's business.
func strays(n *yamltree.Node) (out []*yamltree.Error) {
	for _, p := range n.Pairs {
		_, ours, _ := policy.Parse(map[string]string{p.Key.Text: p.Value.Text})
		lower, hint := strings.ToLower(p.Key.Text), ""
		switch {
		case slices.Contains([]string{"label", "labels", "lable", "lables"}, lower) && p.Key.Text != "labels":
			hint = "write labels"
		case (ours || strings.HasPrefix(lower, "xdp.")) && !strings.HasPrefix(lower, "x-"):
			hint = "write it under labels of a service"
		}
		if hint != "" {
			out = append(out, p.Key.Wrong("a key that Compose does not have", "", hint))
		}
	}
	return out
}

// reader reads one service, and gathers mistakes.
type reader struct {
	getenv func(string) string
	unread []*yamltree.Error
}

func (r *reader) fail(e *yamltree.Error) { r.unread = append(r.unread, e) }

func (r *reader) service(p yamltree.Pair) Service {
	s := Service{Name: p.Key.Text, Line: p.Key.Line()}
	if p.Value.Kind != yamltree.Map {
		r.fail(p.Value.Wrong(p.Value.Kind.String(), "a mapping", ""))
	}
	r.unread = append(r.unread, strays(p.Value)...)
	for _, f := range p.Value.Pairs {
		switch f.Key.Text {
		case "labels":
			s.Labels = r.labels(f.Value)
		case "build":
			r.unread = append(r.unread, strays(f.Value)...)
			s.Image = r.labels(f.Value.Get("labels"))
		case "deploy":
			s.Deploy = r.labels(f.Value.Get("labels"))
		case "extends", "label_file":
			r.fail(f.Key.Wrong(f.Key.Text+", which is not read here", "", resolve))
		case "network_mode":
			s.NetworkMode = r.text(f.Value)
		case "ports": // short or long, each publishes one: on a port of Docker's choice if it names none
			s.Published = len(f.Value.Items) > 0
		case "privileged":
			s.Privileged = r.text(f.Value) == "true"
		case "cap_add":
			for _, item := range f.Value.Items {
				s.CapAdd = append(s.CapAdd, strings.TrimPrefix(strings.ToUpper(r.text(item)), "CAP_"))
			}
		}
	}
	slices.Sort(s.CapAdd)
	s.Unread = r.unread
	return s
}

// text is a scalar with its variables put in.
func (r *reader) text(n *yamltree.Node) string {
	if n.Kind == yamltree.List || n.Kind == yamltree.Map {
		r.fail(n.Wrong(n.Kind.String(), yamltree.Scalar.String(), ""))
		return ""
	}
	text, unset := substitute(n.Text, r.getenv)
	if unset != "" {
		r.fail(n.Wrong("a variable that is not set here: "+unset, "", "set it, or "+resolve))
	}
	return text
}

// labels reads a mapping, or a list of KEY=VALUE; nil is none.
func (r *reader) labels(n *yamltree.Node) (out []Label) {
	if n == nil {
		return nil
	}
	for _, p := range n.Pairs {
		value := r.text(p.Value)
		out = append(out, Label{Key: p.Key.Text, Value: value, key: p.Key, value: p.Value, written: value == p.Value.Text})
	}
	for _, item := range n.Items {
		text := r.text(item)
		key, value, _ := strings.Cut(text, "=")
		out = append(out, Label{Key: key, Value: value, value: item, written: text == item.Text})
	}
	if n.Kind == yamltree.Scalar {
		r.fail(n.Wrong(n.Kind.String(), "a mapping, or a list of KEY=VALUE", ""))
	}
	return out
}
