package policy

import (
	"cmp"
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"

	"go4.org/netipx"
)

// What the labels of one source may be at most.
const (
	maxLabelText = 64 << 10
	maxPrefixes  = 16384
)

// Parse reads the labels of one source. labels are all that a container carries, most of them not
// ours.
//
// asks says whether they ask for a filter: an xdp.* key or one that looks like it is there. A valid
// xdp.enable=false switches the source off: asks is false and nothing else is read. The error joins a
// *LabelError for each wrong label, in key order; the policy is zero then and asks is true, because
// the container has to be closed.
func Parse(labels map[string]string) (p Policy, asks bool, err error) {
	if on, ok := parseBool(labels["xdp.enable"]); ok && !on {
		return Policy{}, false, nil
	}
	var in parser
	var ours, matches []string
	size := 0
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		switch {
		case strings.HasPrefix(key, "xdp.") || looksLikeOurs(key, labels[key]):
			ours = append(ours, key)
			size += len(key) + len(labels[key])
		case readsAsMatch(key, labels[key]):
			matches = append(matches, key)
		}
	}
	if len(ours) == 0 {
		return Policy{}, false, nil
	}
	if size > maxLabelText {
		longest := slices.MaxFunc(ours, func(a, b string) int { return cmp.Compare(len(a)+len(labels[a]), len(b)+len(labels[b])) })
		return Policy{}, true, errors.Join(&LabelError{Key: longest, Offset: -1,
			Problem: "more than 64 KiB of label text, of which this label is the longest", Expected: "65536 bytes in all xdp labels together"})
	}
	for _, key := range ours {
		in.label(key, labels[key])
	}
	for _, key := range matches {
		in.fail(&LabelError{Key: key, Value: labels[key], Offset: -1, Problem: "a match as a key, left over from a list that was taken apart",
			Expected: "the whole list as the value of one xdp label", Hint: `write it as one quoted string, such as xdp.drop: "udp,443/tcp"`})
	}
	return in.finish(labels)
}

// parser gathers what the labels of one source say.
type parser struct {
	policy Policy
	errs   []*LabelError
	// defaults are the keys that set Policy.Default.
	defaults [2]string
}

func (in *parser) fail(e *LabelError) { in.errs = append(in.errs, e) }

// finish checks what no label shows on its own.
func (in *parser) finish(labels map[string]string) (Policy, bool, error) {
	p := &in.policy
	p.Rules = canonicalRules(p.Rules)
	for d, v := range p.Default {
		key := in.defaults[d]
		if d == int(Ingress) && key == in.defaults[Egress] && p.allows(Egress) {
			continue // said already
		}
		if v == DefaultAllow && p.allows(Direction(d)) {
			_, off := trim(labels[key])
			in.fail(&LabelError{Key: key, Value: labels[key], Offset: off,
				Problem:  "allow beside an allow rule for " + Direction(d).String() + ", which lets nothing else pass",
				Expected: "drop, or no allow rule", Hint: "leave one of the two out"})
		}
	}
	if key := p.pastPrefixes(); key != "" {
		in.fail(&LabelError{Key: key, Value: labels[key], Offset: -1,
			Problem: "more than 16384 prefixes in the labels up to this one", Expected: "16384 at most; a range counts as the CIDRs that it is made of"})
	}
	if len(in.errs) == 0 {
		if len(p.Rules) == 0 {
			p.Rules = nil
		}
		return *p, true, nil
	}
	slices.SortStableFunc(in.errs, func(a, b *LabelError) int { return strings.Compare(a.Key, b.Key) })
	errs := make([]error, len(in.errs))
	for i, e := range in.errs {
		errs[i] = e
	}
	return Policy{}, true, errors.Join(errs...)
}

// allows reports whether an allow rule holds in that direction.
func (p Policy) allows(d Direction) bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool { return r.Verb == Allow && r.In[d] })
}

// pastPrefixes is the key of the rule with which the policy names more prefixes than it may, "" when
// it does not.
func (p Policy) pastPrefixes() string {
	left := maxPrefixes
	count := func(ranges []netipx.IPRange) bool {
		for _, r := range ranges {
			if left -= len(r.Prefixes()); left < 0 {
				return true
			}
		}
		return false
	}
	for _, r := range p.Rules {
		if count(r.Match.Peers.Ranges) {
			return r.Key()
		}
	}
	if count(p.Own) {
		return "xdp.antispoof"
	}
	return ""
}

// key is a label key taken apart.
type key struct {
	word string
	in   [2]bool
	name string
}

// keyword is a word of the grammar that can stand after "xdp." and a direction.
type keyword struct {
	directed bool
	named    bool
	set      func(in *parser, k key, value string) *fault
}

// keywords are the keys of the grammar.
var keywords = map[string]keyword{
	"drop":      {directed: true, named: true, set: rules(Drop)},
	"except":    {directed: true, named: true, set: rules(Except)},
	"allow":     {directed: true, named: true, set: rules(Allow)},
	"limit":     {directed: true, named: true, set: rules(Limit)},
	"default":   {directed: true, set: setDefault},
	"mode":      {set: func(in *parser, _ key, v string) *fault { return choose(&in.policy.Mode, v, modeWords[:]) }},
	"hook":      {set: func(in *parser, _ key, v string) *fault { return choose(&in.policy.Hook, v, hookWords[:]) }},
	"log":       {set: func(in *parser, _ key, v string) *fault { return choose(&in.policy.Log, v, logWords[:]) }},
	"antispoof": {set: setAntispoof},
	"program":   {set: setProgram},
	"enable":    {set: setEnable},
}

// parseKey takes a key apart; ok is false for every key that is not exactly one of the grammar.
func parseKey(s string) (k key, ok bool) {
	parts := strings.SplitN(s, ".", 5)
	if parts[0] != "xdp" {
		return key{}, false
	}
	parts, k.in = parts[1:], [2]bool{true, true}
	directed := false
	if len(parts) > 0 {
		if d := slices.Index(directionWords[:], parts[0]); d >= 0 {
			parts, directed = parts[1:], true
			k.in[1-d] = false
		}
	}
	if len(parts) == 0 || len(parts) > 2 {
		return key{}, false
	}
	k.word = parts[0]
	w, known := keywords[k.word]
	if !known || directed && !w.directed {
		return key{}, false
	}
	if len(parts) == 2 {
		k.name = parts[1]
		return k, w.named && isName(k.name)
	}
	return k, true
}

// isName accepts the free word at the end of a key: lower case letters, digits, hyphens and
// underscores, 63 at most. The words of the grammar and others for a direction are no names:
// xdp.drop.egress and xdp.drop.out are slips.
func isName(s string) bool {
	if s == "" || len(s) > 63 || isKeyWord(s) || slices.Contains(directionWords[:], keySlips[s]) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}

func isKeyWord(s string) bool {
	_, ok := keywords[s]
	return ok || slices.Contains(directionWords[:], s)
}

// label reads one label that is ours or looks like it.
func (in *parser) label(name, value string) {
	k, ok := parseKey(name)
	if !ok {
		in.fail(keyError(name, value))
		return
	}
	text, off := trim(value)
	if text == "" {
		in.fail(&LabelError{Key: name, Value: value, Problem: "an empty value", Expected: "something after the =", Hint: "is a ${VARIABLE} unset?"})
		return
	}
	f := keywords[k.word].set(in, k, text)
	if f == nil {
		return
	}
	if f.fix != "" && f.hint == "" {
		f.hint = "write " + f.fix
	}
	hintValue(f, k, text)
	in.fail(f.at(off).label(name, value))
}

// rules reads a list of matches under a verb.
func rules(v Verb) func(*parser, key, string) *fault {
	return func(in *parser, k key, value string) *fault {
		for off, element := range split(value, ',') {
			text, lead := trim(element)
			r := Rule{Verb: v, In: k.in, Name: k.name}
			if f := r.parse(text); f != nil {
				hintElement(f, r, value, off, text)
				return f.at(off + lead)
			}
			in.policy.Rules = append(in.policy.Rules, r)
		}
		return nil
	}
}

// parse fills in the match, and the rate of a limit.
func (r *Rule) parse(s string) (f *fault) {
	if r.Verb != Limit || s == "" {
		return r.parseMatch(s)
	}
	eq := strings.LastIndexByte(s, '=')
	if eq < 0 {
		return &fault{off: len(s), problem: "a limit without a rate", expected: "MATCH=RATE, such as udp=1000pps"}
	}
	left, _ := trim(s[:eq])
	if f := r.parseMatch(left); f != nil {
		return f
	}
	rate, lead := trim(s[eq+1:])
	r.Rate, f = parseRate(rate)
	return f.at(eq + 1 + lead)
}

// parseMatch fills in the match. dns is one of egress only.
func (r *Rule) parseMatch(s string) (f *fault) {
	if what, _, _ := strings.Cut(s, "@"); what == "dns" && !r.In[Egress] {
		return &fault{n: len("dns"), problem: "dns is what the container asks", expected: "an egress key for it", hint: "write it under xdp.egress." + r.Verb.String()}
	}
	r.Match, f = parseMatch(s)
	return f
}

// reads reports whether s is a list that can stand under a key such as that of r.
func (r Rule) reads(s string) bool {
	for _, element := range split(s, ',') {
		if text, _ := trim(element); r.parse(text) != nil {
			return false
		}
	}
	return true
}

// maxRate bounds rates: far beyond any veth, and far from overflow.
const maxRate = 1e12

// parseRate reads a whole number and a unit.
func parseRate(s string) (Rate, *fault) {
	const want = "a whole number with pps, kpps, kbit, mbit or gbit"
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	n, ok := number(s[:digits], maxRate)
	if !ok || strings.HasPrefix(s[digits:], ".") {
		return Rate{}, &fault{n: len(s), problem: notA(s, "rate"), expected: want}
	}
	for _, u := range rateUnits {
		if u.name != s[digits:] {
			continue
		}
		count := uint64(n) * u.count
		switch {
		case n == 0:
			return Rate{}, &fault{n: len(s), problem: "a rate of nothing", expected: "a rate above zero", hint: "to let nothing pass use drop"}
		case uint64(n) > maxRate/u.count:
			return Rate{}, &fault{n: len(s), problem: "a rate beyond every limit", expected: "1000gbit or 1000000000kpps at most"}
		}
		return Rate{Count: count, Bits: u.bits}, nil
	}
	return Rate{}, &fault{off: digits, n: len(s) - digits, problem: notA(s[digits:], "unit of a rate"), expected: "pps, kpps, kbit, mbit or gbit"}
}

func setDefault(in *parser, k key, value string) *fault {
	v := slices.Index(defaultWords[:], value)
	if v <= 0 {
		return &fault{n: len(value), problem: quote(value) + " is not a default", expected: "allow or drop"}
	}
	for d, holds := range k.in {
		if !holds {
			continue
		}
		if other := in.defaults[d]; other != "" {
			return &fault{n: len(value), problem: "a second default for " + Direction(d).String() + ", beside " + other,
				expected: "one for each direction", hint: "leave one of the two out"}
		}
		in.defaults[d] = directedKey(k.in, k.word)
		in.policy.Default[d] = Default(v)
	}
	return nil
}

// choose sets an enum to the value whose word is given.
func choose[T ~uint8](to *T, value string, words []string) *fault {
	i := slices.Index(words, value)
	if i < 0 {
		return &fault{n: len(value), problem: quote(value) + " is unknown", expected: oneOf(words)}
	}
	*to = T(i)
	return nil
}

// oneOf lists words: a, b or c.
func oneOf(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// setAntispoof reads a boolean, or addresses, CIDRs and ranges that are the container's own as well.
func setAntispoof(in *parser, _ key, value string) *fault {
	if on, ok := parseBool(value); ok {
		in.policy.AntispoofOff = !on
		return nil
	}
	for off, element := range split(value, ',') {
		text, lead := trim(element)
		r, f := parseRange(text)
		if f != nil {
			f.expected = "true, false, or a list of addresses and CIDRs"
			if _, again := parseRange(f.fix); again != nil {
				f.fix = "" // ipv4 in the place of 0.0.0.0 is no address of the container's own
			}
			return f.at(off + lead)
		}
		in.policy.Own = append(in.policy.Own, r)
	}
	in.policy.Own = sortRanges(in.policy.Own)
	return nil
}

// setProgram reads NAME[:SECTION]. A label gives a name, never a path out of the program directory.
func setProgram(in *parser, _ key, value string) *fault {
	name, section, hasSection := strings.Cut(value, ":")
	const want = "the name of a file in the program directory"
	if f := badText(name, "-_.", want); f != nil {
		if i := strings.LastIndexByte(name, '/'); i >= 0 && setProgram(new(parser), key{}, value[i+1:]) == nil {
			f.hint = "write " + value[i+1:] + ": a name, never a path"
		}
		return f
	}
	if strings.Trim(name, ".") == "" {
		return &fault{n: len(name), problem: quote(name) + " is not a file's name", expected: want}
	}
	if hasSection {
		if f := badText(section, "-_./", "the name of a section"); f != nil {
			return f.at(len(name) + 1)
		}
	}
	in.policy.Program = value
	return nil
}

// badText finds the first byte that is neither a letter nor a digit nor one of more.
func badText(s, more, expected string) *fault {
	if s == "" {
		return &fault{problem: "a missing name", expected: expected}
	}
	i := strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(more, r)
	})
	if i < 0 {
		return nil
	}
	return &fault{off: i, n: 1, problem: "a character that does not belong there", expected: expected}
}

// setEnable has nothing to set: false never comes here.
func setEnable(_ *parser, _ key, value string) *fault {
	if _, ok := parseBool(value); ok {
		return nil
	}
	return &fault{n: len(value), problem: notA(value, "boolean"), expected: "true or false"}
}

// parseBool reads a boolean in any case, spaces around it ignored.
func parseBool(s string) (value, ok bool) {
	s, _ = trim(s)
	switch strings.ToLower(s) {
	case "true", "yes", "on", "1":
		return true, true
	case "false", "no", "off", "0":
		return false, true
	}
	return false, false
}

// number reads a decimal number without sign or leading zero, limit at most.
func number(s string, limit int) (n int, ok bool) {
	if s == "" || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		if n = n*10 + int(c-'0'); n > limit {
			return 0, false
		}
	}
	return n, true
}

// spaces are what may stand around a match.
const spaces = " \t\r\n"

// trim cuts the spaces around s and says how many were before it.
func trim(s string) (text string, lead int) {
	text = strings.TrimLeft(s, spaces)
	lead = len(s) - len(text)
	return strings.TrimRight(text, spaces), lead
}

// split gives the parts of s between sep, with their offsets.
func split(s string, sep byte) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		off := 0
		for {
			i := strings.IndexByte(s[off:], sep)
			if i < 0 {
				yield(off, s[off:])
				return
			}
			if !yield(off, s[off:off+i]) {
				return
			}
			off += i + 1
		}
	}
}

// FromImage keeps what an image's labels may say: drop, limit and allow rules, and defaults that drop. Images are
// inherited and cannot be trusted to open or switch off anything; what only closes has to count, because a label of
// the container that the image has too counts as the image's.
func FromImage(p Policy) Policy {
	var kept Policy
	for dir, d := range p.Default {
		if d == DefaultDrop {
			kept.Default[dir] = d
		}
	}
	for _, r := range p.Rules {
		if r.Verb != Except {
			kept.Rules = append(kept.Rules, r)
		}
	}
	return kept
}

// SplitImage separates a container's labels: those that equal the image's in key and value count as
// the image's, because the engine does not say where a label came from.
func SplitImage(labels, image map[string]string) (run, img map[string]string) {
	run, img = map[string]string{}, map[string]string{}
	for key, value := range labels {
		if v, ok := image[key]; ok && v == value {
			img[key] = value
		} else {
			run[key] = value
		}
	}
	return run, img
}
