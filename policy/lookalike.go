package policy

import (
	"slices"
	"strings"
	"unicode"
)

// confusables are letters and dots that are taken for those of our keys. Full-width and mathematical
// letters are folded by rule, see skeleton.
var confusables = map[rune]rune{
	// Cyrillic
	'а': 'a', 'с': 'c', 'ԁ': 'd', 'е': 'e', 'һ': 'h', 'і': 'i', 'к': 'k', 'ӏ': 'l', 'м': 'm', 'о': 'o',
	'р': 'p', 'ѕ': 's', 'т': 't', 'х': 'x', 'ҳ': 'x', 'ԝ': 'w',
	// Greek
	'α': 'a', 'ε': 'e', 'ι': 'i', 'κ': 'k', 'ν': 'n', 'ο': 'o', 'ρ': 'p', 'τ': 't', 'χ': 'x',
	// Latin, numerals and signs
	'×': 'x', 'ⅹ': 'x', 'ⅾ': 'd', 'ⅿ': 'm', 'ⅼ': 'l', 'ⅰ': 'i', 'ⅽ': 'c', 'đ': 'd', 'ɗ': 'd', 'ı': 'i', 'ɡ': 'g',
	// dots
	'․': '.', '。': '.', '·': '.', '‧': '.', '∙': '.', '٠': '.',
}

// skeleton is what a reader takes a key for: lower case, look-alikes folded, without spaces,
// characters that do not print, and what stands before the first letter.
func skeleton(key string) string {
	return strings.TrimLeftFunc(strings.Map(func(r rune) rune {
		switch {
		case r >= '！' && r <= '～': // full-width ASCII
			r -= '！' - '!'
		case r >= 0x1d400 && r <= 0x1d6a3: // mathematical alphabets: 26 capitals, 26 small letters, and so on
			r = 'a' + (r-0x1d400)%26
		case unicode.IsSpace(r), unicode.In(r, unicode.Cc, unicode.Cf, unicode.Mn):
			return -1
		}
		r = unicode.ToLower(r)
		if c, ok := confusables[r]; ok {
			return c
		}
		return r
	}, key), isSeparator)
}

// isSeparator takes for a separator whatever is neither a letter nor a digit.
func isSeparator(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }

// acronyms are one letter from xdp and names of their own; labels such as idp.enable are not ours.
var acronyms = []string{"udp", "rdp", "idp", "sdp", "cdp", "ldp", "ndp", "gdp", "pdp", "dp", "xp", "xds", "xdr", "xdg", "xsp"}

// looksLikeOurs reports whether a label that is not xdp.* was meant to be: its key is xdp but for
// case, look-alike letters, spaces or another separator or none, or one or two letters away with one
// of our words behind it. Other people's labels must not close their containers, so for a key that is
// more than a slip away the rest has to agree.
func looksLikeOurs(key, value string) bool {
	s := skeleton(key)
	if s == "xdp" || strings.HasPrefix(s, "xdp.") {
		return true
	}
	if rest, ok := behindXDP(s); ok {
		parts := keyParts(s)
		return isKeyWord(firstWord(rest)) || len(parts) > 0 && isKeyWord(parts[0]) && reads(fixKey(s), value)
	}
	head, rest, dotted := strings.Cut(s, ".")
	if !dotted || !isKeyWord(firstWord(rest)) {
		return false
	}
	if slices.Contains(acronyms, head) {
		return readsAsRule("xdp."+rest, value)
	}
	switch distance(head, "xdp") {
	case 1:
		return true
	case 2:
		return strings.Contains(head, "x") && strings.ContainsAny(head, "dp")
	}
	return false
}

// behindXDP is what follows xdp and its separators in a key: drop in xdp-drop, xdp..drop and xdpdrop. Without a separator
// it has to begin with a word of ours, or one that is written for it, and a direction may be joined to the next word as well.
func behindXDP(s string) (rest string, ok bool) {
	if rest, ok = strings.CutPrefix(s, "xdp"); !ok {
		return "", false
	}
	separated := strings.TrimLeftFunc(rest, isSeparator)
	for _, d := range directionWords {
		if joined, ok := strings.CutPrefix(separated, d); ok && isKeyWord(firstWord(joined)) {
			return d + "." + joined, true
		}
	}
	word := firstWord(separated)
	return separated, separated != rest || isKeyWord(word) || keySlips[word] != ""
}

// firstWord is what stands before the first separator.
func firstWord(s string) string {
	if i := strings.IndexFunc(s, isSeparator); i >= 0 {
		return s[:i]
	}
	return s
}

// readsAsRule reports whether a label would be one that has rules.
func readsAsRule(name, value string) bool {
	k, ok := parseKey(name)
	return ok && keywords[k.word].named && reads(name, value)
}

// reads reports whether a label would be right. Any path is a program's, so that says nothing.
func reads(name, value string) bool {
	k, ok := parseKey(name)
	if !ok || k.word == "program" {
		return false
	}
	var scratch parser
	return keywords[k.word].set(&scratch, k, value) == nil
}

// readsAsMatch reports whether a key is what stands in a value: an element of a list that YAML took
// apart. A word that is nothing but a word is one only without a value, or with a rate.
func readsAsMatch(key, value string) bool {
	text, _ := trim(key)
	if len(text) > excerptSize || text == "" {
		return false
	}
	if _, f := parseMatch(text); f != nil {
		return false
	}
	_, f := parseRate(value)
	return value == "" || f == nil || strings.ContainsAny(text, "/@")
}

// distance counts the letters to change, add, leave out or swap with their neighbour to get from one
// text to the other. Texts longer than 32 bytes are far from everything.
func distance(from, to string) int {
	const limit = 32
	if len(from) > limit || len(to) > limit {
		return limit
	}
	a, b := []rune(from), []rune(to)
	var d [limit + 1][limit + 1]int
	for i := 0; i <= len(a); i++ {
		d[i][0] = i
	}
	for j := 0; j <= len(b); j++ {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}

// nearest is the word that s was probably meant to be, "" when none is near. Short words allow one
// wrong letter, longer ones two; of equally near ones the first is taken.
func nearest(s string, words []string) string {
	best, limit := "", 2
	if len(s) <= 4 {
		limit = 1
	}
	for _, w := range words {
		if d := distance(s, w); d <= limit {
			best, limit = w, d-1
		}
	}
	return best
}
