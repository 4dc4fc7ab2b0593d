package compose

import (
	"regexp"
	"strings"
)

// variable is the beginning of what stands for a variable: $$, $NAME or ${NAME and what is done where it is not set.
var variable = regexp.MustCompile(`\$(?:(\$)|([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(:?[-+?])?)`)

// substitute puts variables in as Compose does: $$ is a dollar, ${NAME:-TEXT} and ${NAME-TEXT} are TEXT where NAME is
// not set, ${NAME:+TEXT} where it is. unset is the first variable that has no value, and none to take in its place;
// Compose would put nothing there. One that is set to nothing counts as not set.
func substitute(s string, getenv func(string) string) (out, unset string) {
	var b strings.Builder
	for {
		m := variable.FindStringSubmatchIndex(s)
		if m == nil {
			return b.String() + s, unset
		}
		part := func(i int) string {
			if m[2*i] < 0 {
				return ""
			}
			return s[m[2*i]:m[2*i+1]]
		}
		b.WriteString(s[:m[0]])
		dollar, name, how, rest := part(1), part(2)+part(3), strings.TrimPrefix(part(4), ":"), s[m[1]:]
		text := ""
		if part(3) != "" {
			text, rest = braced(rest)
		}
		value := getenv(name)
		switch {
		case dollar != "":
			value = dollar
		case how == "-" && value == "", how == "+" && value != "":
			var missing string
			if value, missing = substitute(text, getenv); unset == "" {
				unset = missing
			}
		case how == "+":
		case value == "" && unset == "":
			unset = name
		}
		b.WriteString(value)
		s = rest
	}
}

// braced cuts s at the brace that closes one before it.
func braced(s string) (inside, rest string) {
	depth := 1
	for i, c := range s {
		switch c {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return s[:i], s[i+1:]
			}
		}
	}
	return s, ""
}
