package config

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/vethwall/vethwall/internal/yamltree"
	"github.com/vethwall/vethwall/policy"
)

// Parse reads a configuration, which errors call name. The error is of type yamltree.Errors and has every mistake,
// unless the text is no YAML at all; the configuration is zero then.
func Parse(name string, text []byte) (Config, error) {
	root, err := yamltree.Parse(name, text)
	if err != nil {
		return Config{}, err
	}
	return FromTree(root)
}

// FromTree is Parse for a file that was read already.
func FromTree(root *yamltree.Node) (Config, error) {
	var c Config
	var in decoder
	if root.Kind == yamltree.Null { // half a file, or one that was emptied to be written: nobody meant to let everything go
		in.fail(root.Wrong("a file without content", "a mapping", "write {} if nothing is meant"))
		return Config{}, yamltree.Join(in.errs)
	}
	in.fields(root, []field{
		{"dns", func(n *yamltree.Node) { c.DNS = in.addresses(n) }},
		{"host_addresses", func(n *yamltree.Node) { c.HostAddresses = in.addresses(n) }},
		{"hook", func(n *yamltree.Node) { c.Hook = in.hook(n) }},
		{"conversations", func(n *yamltree.Node) { c.Conversations = in.conversations(n) }},
		{"floor", func(n *yamltree.Node) { c.Floor = in.labels(n) }},
		{"policies", func(n *yamltree.Node) { c.Policies = in.policies(n) }},
	})
	if err := yamltree.Join(in.errs); err != nil {
		return Config{}, err
	}
	return c, nil
}

// decoder gathers mistakes.
type decoder struct{ errs []*yamltree.Error }

func (in *decoder) fail(e *yamltree.Error) { in.errs = append(in.errs, e) }

// is reports whether n is of a kind, and fails if not.
func (in *decoder) is(n *yamltree.Node, k yamltree.Kind) bool {
	if n.Kind != k {
		in.fail(n.Wrong(n.Kind.String(), k.String(), ""))
	}
	return n.Kind == k
}

// field is a key of a mapping, and what reads its value.
type field struct {
	key  string
	read func(*yamltree.Node)
}

// fields reads a mapping. Other keys than those of known are mistakes.
func (in *decoder) fields(n *yamltree.Node, known []field) {
	if !in.is(n, yamltree.Map) {
		return
	}
	var keys []string
	for _, f := range known {
		keys = append(keys, f.key)
	}
	for _, p := range n.Pairs {
		i := slices.Index(keys, p.Key.Text)
		if i >= 0 {
			known[i].read(p.Value)
			continue
		}
		hint := ""
		like := strings.ReplaceAll(strings.ToLower(p.Key.Text), "-", "_")
		for _, key := range keys {
			if len(like) > 2 && strings.HasPrefix(key, like[:3]) {
				hint = "write " + key
			}
		}
		if strings.HasPrefix(p.Key.Text, "xdp.") {
			hint = "labels stand under floor, or under labels of a policy"
		}
		in.fail(p.Key.Wrong("an unknown key", strings.Join(keys, ", "), hint))
	}
}

// text reads a single value that is not empty.
func (in *decoder) text(n *yamltree.Node) string {
	if in.is(n, yamltree.Scalar) && n.Text == "" {
		in.fail(n.Wrong("an empty value", "something, or no such key", ""))
	}
	return n.Text
}

// addresses reads a list of addresses, or one.
func (in *decoder) addresses(n *yamltree.Node) (out []netip.Addr) {
	items := n.Items
	switch n.Kind {
	case yamltree.Scalar:
		items = []*yamltree.Node{n}
	case yamltree.List:
	default:
		in.fail(n.Wrong(n.Kind.String(), "a list of addresses", ""))
	}
	for _, item := range items {
		if !in.is(item, yamltree.Scalar) {
			continue
		}
		a, err := netip.ParseAddr(item.Text)
		a = a.Unmap()
		switch {
		case err != nil && strings.Contains(item.Text, "/"):
			in.fail(item.Wrong("a CIDR", "one address", ""))
		case err != nil || a.Zone() != "":
			in.fail(item.Wrong("no address", "an IPv4 or IPv6 address without port and zone, such as 192.0.2.53", ""))
		case a.IsMulticast() || a.IsUnspecified() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
			in.fail(item.Wrong("an address that nobody has", "an address of one machine", ""))
		default:
			out = append(out, a)
		}
	}
	return out
}

// hook reads what a label xdp.hook can say.
func (in *decoder) hook(n *yamltree.Node) policy.Hook {
	if in.text(n) == "" {
		return policy.HookAuto
	}
	p, _, err := policy.Parse(map[string]string{"xdp.hook": n.Text})
	if err != nil {
		in.fail(WrongLabel(n, n, labelErrors(err)[0]))
	}
	return p.Hook
}

// The kernel gives each processor some entries of the table of unanswered ones for its own; much fewer would be none.
const minConversations, maxConversations = 1 << 10, 1 << 20

func (in *decoder) conversations(n *yamltree.Node) int {
	value, err := strconv.Atoi(in.text(n))
	if n.Text != "" && (err != nil || value < minConversations || value > maxConversations) {
		in.fail(n.Wrong("no number of conversations", fmt.Sprintf("a whole number from %d to %d", minConversations, maxConversations), ""))
	}
	return value
}

// policies reads the list of them.
func (in *decoder) policies(n *yamltree.Node) (out []Policy) {
	if !in.is(n, yamltree.List) {
		return nil
	}
	for _, item := range n.Items {
		p := in.policy(item)
		same := slices.IndexFunc(out, func(other Policy) bool { return p.Pick != Pick{} && p.Pick == other.Pick })
		if same >= 0 {
			in.fail(item.Get("pick").Wrong(fmt.Sprintf("the pick of line %d", out[same].Line), "one policy for a container", "put the labels together, or pick others"))
		}
		out = append(out, p)
	}
	return out
}

func (in *decoder) policy(n *yamltree.Node) Policy {
	p := Policy{Line: n.Line()}
	in.fields(n, []field{
		{"pick", func(n *yamltree.Node) { p.Pick = in.pick(n) }},
		{"replace", func(n *yamltree.Node) { p.Replace = in.boolean(n) }},
		{"labels", func(n *yamltree.Node) { p.Labels = in.labels(n) }},
	})
	if n.Kind == yamltree.Map && n.Get("pick") == nil {
		in.fail(n.Wrong("a policy without a pick", "pick, labels and, if need be, replace", "what holds for every container is the floor"))
	}
	if n.Kind == yamltree.Map && n.Get("labels") == nil {
		in.fail(n.Wrong("a policy without labels", "pick, labels and, if need be, replace", ""))
	}
	return p
}

func (in *decoder) pick(n *yamltree.Node) (p Pick) {
	if n.Kind == yamltree.Null || n.Kind == yamltree.Map && len(n.Pairs) == 0 {
		in.fail(n.Wrong("an empty pick", "name, image, label, project or service", "what holds for every container is the floor"))
		return p
	}
	var known []field
	for _, f := range p.fields() {
		known = append(known, field{f.key, func(n *yamltree.Node) {
			*f.value = in.text(n)
			if _, err := path.Match(*f.value, ""); err != nil && (f.key == "name" || f.key == "image") {
				in.fail(n.Wrong("no pattern", "a name with *, ? and [a-z] in it, each [ with its ]", ""))
			}
		}})
	}
	in.fields(n, known)
	if at := strings.IndexByte(p.Name, '/'); at >= 0 {
		hint := "" // docker inspect has a slash before the name
		if bare := p.Name[at+1:]; at == 0 && bare != "" && !strings.Contains(bare, "/") {
			hint = "write " + bare
		}
		in.fail(n.Get("name").WrongAt(at, "a slash, which no name has", "the name as docker ps has it", hint))
	}
	if key, _, _ := strings.Cut(p.Label, "="); p.Label != "" && key == "" {
		in.fail(n.Get("label").Wrong("a label without a key", "KEY or KEY=VALUE", ""))
	}
	return p
}

// boolean reads what YAML knows for one.
func (in *decoder) boolean(n *yamltree.Node) bool {
	if in.is(n, yamltree.Scalar) && n.Text != "true" && n.Text != "false" {
		in.fail(n.Wrong("no boolean", "true or false", ""))
	}
	return n.Text == "true"
}

// labels reads labels as docker run takes them, nil where they are switched off.
func (in *decoder) labels(n *yamltree.Node) *policy.Policy {
	if n.Kind == yamltree.Null || n.Kind == yamltree.Map && len(n.Pairs) == 0 {
		in.fail(n.Wrong("no labels", "labels, such as xdp.drop: udp", "xdp.enable: false says that there are none on purpose"))
		return nil
	}
	if !in.is(n, yamltree.Map) {
		return nil
	}
	before := len(in.errs)
	labels := map[string]string{}
	for _, p := range n.Pairs {
		if p.Value.Kind == yamltree.Null && !strings.HasPrefix(p.Key.Text, "xdp.") {
			in.fail(p.Key.Wrong("a key without a value", "an xdp label and its value", `in braces a list has to be quoted: xdp.drop: "udp,443/tcp"`))
		} else if text, ok := in.labelText(p.Value); ok {
			labels[p.Key.Text] = text
		}
	}
	parsed, asks, err := policy.Parse(labels)
	if on, switched := labels["xdp.enable"]; switched && !asks { // what is wrong beside it is wrong all the same
		delete(labels, "xdp.enable")
		_, _, err = policy.Parse(labels)
		labels["xdp.enable"] = on
	}
	in.wrongLabels(n, labels, labelErrors(err))
	if !asks || len(in.errs) > before {
		return nil
	}
	return &parsed
}

// labelText is the value of a label: a scalar, or the scalars of a list with commas between them.
func (in *decoder) labelText(n *yamltree.Node) (text string, ok bool) {
	var parts []string
	for _, item := range n.Items {
		if item.Kind != yamltree.Scalar {
			in.fail(item.Wrong(item.Kind.String()+" in the list of a label", yamltree.Scalar.String(), ""))
			return "", false
		}
		parts = append(parts, item.Text)
	}
	switch n.Kind {
	case yamltree.List:
		return strings.Join(parts, ","), true
	case yamltree.Scalar:
		return n.Text, true
	}
	in.fail(n.Wrong(n.Kind.String()+" for a label", "a single value, or a list of such", ""))
	return "", false
}

// wrongLabels takes in what the parser of labels has found, and keys that it takes for somebody else's.
func (in *decoder) wrongLabels(n *yamltree.Node, labels map[string]string, wrong []*policy.LabelError) {
	for _, p := range n.Pairs {
		i := slices.IndexFunc(wrong, func(e *policy.LabelError) bool { return e.Key == p.Key.Text })
		switch {
		case i >= 0:
			in.fail(WrongLabel(p.Key, p.Value, wrong[i]))
		case !strings.HasPrefix(p.Key.Text, "xdp.") && p.Value.Kind != yamltree.Null:
			in.fail(p.Key.Wrong("an unknown key", "an xdp label", likelyLabel(p.Key.Text, labels[p.Key.Text])))
		}
	}
}

// likelyLabel is a hint for a key that becomes a label with xdp. before it.
func likelyLabel(key, value string) string {
	if _, _, err := policy.Parse(map[string]string{"xdp." + key: value}); err != nil {
		return ""
	}
	return "write xdp." + key
}

// labelErrors takes apart what policy.Parse has joined.
func labelErrors(err error) (out []*policy.LabelError) {
	joined, _ := err.(interface{ Unwrap() []error })
	if joined == nil {
		return nil
	}
	for _, e := range joined.Unwrap() {
		var wrong *policy.LabelError
		if errors.As(e, &wrong) {
			out = append(out, wrong)
		}
	}
	return out
}

// WrongLabel is the mistake in a label that the file has as key and value.
func WrongLabel(key, value *yamltree.Node, e *policy.LabelError) *yamltree.Error {
	offset := e.Offset
	switch {
	case offset < 0:
		return key.Wrong(e.Problem, e.Expected, e.Hint)
	case value.Kind == yamltree.Scalar:
		return value.WrongAt(offset, e.Problem, e.Expected, e.Hint)
	}
	for _, item := range value.Items {
		if offset <= len(item.Text) {
			return item.WrongAt(offset, e.Problem, e.Expected, e.Hint)
		}
		offset -= len(item.Text) + len(",")
	}
	return value.Wrong(e.Problem, e.Expected, e.Hint)
}
