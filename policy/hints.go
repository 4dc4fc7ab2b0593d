package policy

import (
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A hint is only given when what it says to write was parsed first, so a hint is never wrong twice.

// keySlips are words that people write in keys.
var keySlips = map[string]string{
	"deny": "drop", "block": "drop", "reject": "drop", "blocked": "drop", "denied": "drop", "drops": "drop",
	"accept": "allow", "permit": "allow", "pass": "allow", "allowed": "allow",
	"exclude": "except", "exempt": "except", "unless": "except",
	"out": "egress", "output": "egress", "outbound": "egress", "outgoing": "egress", "tx": "egress",
	"in": "ingress", "input": "ingress", "inbound": "ingress", "incoming": "ingress", "rx": "ingress",
	"ratelimit": "limit", "rate-limit": "limit", "rate_limit": "limit", "rate": "limit", "throttle": "limit",
	"policy": "default", "anti-spoof": "antispoof", "anti_spoof": "antispoof", "spoof": "antispoof",
	"logging": "log", "logs": "log", "prog": "program", "enabled": "enable",
	// The opposite, which no other word of the key can say.
	"disable": "enable=false", "disabled": "enable=false",
}

// valueSlips are, by the word of the key, what people write for its values.
var valueSlips = map[string]map[string]string{
	"default": {"deny": "drop", "block": "drop", "reject": "drop", "none": "drop", "closed": "drop",
		"accept": "allow", "pass": "allow", "permit": "allow", "all": "allow", "open": "allow"},
	"mode": {"monitor": "audit", "dry-run": "audit", "dryrun": "audit", "log": "audit", "warn": "audit", "test": "audit",
		"permissive": "audit", "enforcing": "enforce", "strict": "enforce", "block": "enforce", "on": "enforce"},
	"hook": {"skb": "generic", "xdpgeneric": "generic", "xdp-generic": "generic", "drv": "native", "driver": "native",
		"xdpdrv": "native", "xdp-native": "native", "xdp": "auto", "tc": "tcx", "clsact": "tcx"},
	"log": {"drop": "drops", "dropped": "drops", "true": "drops", "on": "drops", "yes": "drops",
		"false": "none", "off": "none", "no": "none", "everything": "all", "any": "all"},
	"enable":    {"enabled": "true", "enable": "true", "y": "true", "t": "true", "disabled": "false", "disable": "false", "n": "false", "f": "false"},
	"antispoof": {"enabled": "true", "enable": "true", "strict": "true", "enforce": "true", "disabled": "false", "disable": "false", "none": "false"},
}

// services are names of what runs behind ports, and what to write for them.
var services = map[string]string{
	"http": "80/tcp", "https": "443/tcp", "tls": "443/tcp", "ssl": "443/tcp", "quic": "443/udp", "http3": "443/udp",
	"ssh": "22/tcp", "sftp": "22/tcp", "ftp": "21/tcp", "telnet": "23/tcp", "smtp": "25/tcp", "submission": "587/tcp",
	"smtps": "465/tcp", "mail": "25/tcp", "imap": "143/tcp", "imaps": "993/tcp", "pop3": "110/tcp", "pop3s": "995/tcp",
	"ntp": "123/udp", "domain": "53/udp,53/tcp", "mdns": "5353/udp", "dhcp": "67-68/udp", "tftp": "69/udp",
	"snmp": "161/udp", "syslog": "514/udp", "ldap": "389/tcp", "ldaps": "636/tcp", "mysql": "3306/tcp",
	"mariadb": "3306/tcp", "postgres": "5432/tcp", "postgresql": "5432/tcp", "redis": "6379/tcp", "mongodb": "27017/tcp",
	"mqtt": "1883/tcp", "rdp": "3389/tcp", "wireguard": "51820/udp", "nfs": "2049/tcp", "smb": "445/tcp",
	"*": "all", "everything": "all", "ip": "all", "icmpv6": "icmp", "icmp6": "icmp", "ipv6-icmp": "icmp", "echo": "ping",
	"resolver": "dns", "resolvers": "dns", "nameserver": "dns", "imds": "metadata", "cloud-metadata": "metadata",
	"ipsec": "esp,ah",
}

// peerSlips are names that people give to groups.
var peerSlips = map[string]string{
	"public": "internet", "wan": "internet", "world": "internet", "external": "internet", "www": "internet",
	"local": "private", "rfc1918": "private", "intranet": "private", "internal": "private", "localnet": "private",
	"neighbours": "neighbors", "neighbor": "neighbors", "neighbour": "neighbors", "containers": "neighbors", "docker": "neighbors",
	"gateway": "host", "localhost": "host", "docker-host": "host", "host.docker.internal": "host", "broadcast": "multicast",
	"v4": "ipv4", "ip4": "ipv4", "inet": "ipv4", "v6": "ipv6", "ip6": "ipv6", "inet6": "ipv6",
}

// slip is one way in which a match goes wrong.
type slip struct {
	pattern *regexp.Regexp
	// to is what the pattern is replaced by, in regexp.Expand's notation; rewrite does it where that is
	// not enough, and gives "" where it knows nothing.
	to      string
	rewrite func(s string, groups []string) string
	// problem and expected, when not "", say better what is wrong than the parser could.
	problem, expected string
	// advice, when not "", is given as it is, expanded; nothing can be written instead.
	advice string
}

const (
	rePorts = `\d+(?:-\d+)?(?:\+\d+(?:-\d+)?)*`
	reProto = `(?:tcp|udp|sctp)`
)

// slips are tried in order; the first whose text is a match, or a list of matches, is the hint.
var slips = []slip{
	{pattern: re(`\$\{?[A-Za-z_]`), advice: "a $${VARIABLE} was not filled in"},
	{pattern: quotes, to: "", problem: "quotes that stayed in the value", expected: "none"},
	{pattern: re(`!`), advice: noNegation},
	{pattern: re(`\s*[;|]\s*|\s+`), to: ","},
	{pattern: re(`\s+`), to: ""},
	{pattern: re(`^(?:(tcp|udp|sctp)://)?(\d+\.\d+\.\d+\.\d+(?:/\d+)?):(` + rePorts + `)(?:/(tcp|udp|sctp))?$`), rewrite: addressPort, problem: "an address with a port", expected: "PORT/tcp@ADDRESS"},
	{pattern: re(`^(?:(tcp|udp|sctp)://)?\[([0-9a-fA-F:.]+(?:/\d+)?)\]:(` + rePorts + `)(?:/(tcp|udp|sctp))?$`), rewrite: addressPort, problem: "an address with a port", expected: "PORT/tcp@ADDRESS"},
	{pattern: re(`[\[\]]`), to: "", problem: "brackets round an address", expected: "none"},
	{pattern: re(`^(` + reProto + `)[:=_-]?(` + rePorts + `)(@.+)?$`), to: "$2/$1$3"},
	{pattern: re(`^(` + reProto + `)\s+(` + rePorts + `)(@.+)?$`), to: "$2/$1$3"},
	{pattern: re(`^(` + rePorts + `)[:=_\s-]?(` + reProto + `)(@.+)?$`), to: "$1/$2$3"},
	{pattern: re(`(\d)-($|[/@+])`), to: "$1-65535$2", problem: "a range without an end", expected: "N-N"},
	{pattern: re(`(^|[/+])-(\d)`), to: "${1}1-$2", problem: "a range without a beginning", expected: "N-N"},
	{pattern: re(`(\d)(?::|\.\.|–|—)(\d+/` + reProto + `)`), to: "$1-$2"},
	{pattern: re(`(` + reProto + `/\d+)(?::|\.\.|–|—)(\d)`), to: "$1-$2"},
	{pattern: re(`^(` + rePorts + `)(@.+)?$`), rewrite: barePort, problem: "a bare port", expected: "a protocol beside it"},
	{pattern: re(`^(?:\*|any|all|0)/(` + reProto + `)`), to: "$1"},
	{pattern: re(`^(` + reProto + `)/(?:\*|any|all|0)`), to: "$1"},
	{pattern: re(`@(?:\*|any|all|everyone|everybody)$`), to: ""},
	{pattern: re(`/(?:https?|tls|ssl|ssh|smtp)\b`), to: "/tcp"},
	{pattern: re(`/(?:quic|dns)\b`), to: "/udp"},
	{pattern: re(`^([^@]+)@([^@]+)$`), to: "$2@$1"},
	{pattern: re(`^([^@:]*?/?` + reProto + `)[:/](.+)$`), to: "$1@$2"},
	{pattern: re(`^(` + rePorts + `)/(` + reProto + `)[+/&](` + reProto + `)(@.+)?$`), to: "$1/$2$4,$1/$3$4"},
	{pattern: re(`^(` + reProto + `)[+/&](` + reProto + `)(@.+)?$`), to: "$1$3,$2$3"},
	{pattern: re(`^(` + reProto + `)[+&](` + reProto + `)/(` + rePorts + `)(@.+)?$`), to: "$3/$1$4,$3/$2$4"},
	{pattern: re(`\+`), to: ","},
	{pattern: re(`^(.*@)?((?:\d+\.){1,3})[*xX](?:\.[*xX])*$`), rewrite: wildcard},
	{pattern: re(`^(.*@)?(\d+(?:\.\d+){0,2})/(\d+)$`), rewrite: shortCIDR},
	{pattern: re(`^(.*@)?(\d+\.\d+\.\d+\.\d+)/(\d+\.\d+\.\d+\.\d+)$`), rewrite: netmask},
	{pattern: re(`(\d+\.\d+\.\d+\.)(\d+)-(\d+)$`), to: "$1$2-$1$3"},
	{pattern: re(`(^|[.@+-])0+(\d)`), to: "$1$2", problem: "a number with a leading zero", expected: "none"},
	{pattern: re(`^(?:proto|protocol|ip)[:/=-]?(\d+)$`), rewrite: protoNumber},
	{pattern: re(`[A-Z]`), rewrite: func(s string, _ []string) string { return strings.ToLower(s) }},
	{pattern: re(`.`), rewrite: replaceWords},
	{pattern: re(`\b(?:container|service|network|domain|name|stack|project):`), advice: "names of containers, services and networks are not supported yet; write addresses, or neighbors"},
	{pattern: re(`(?:^|[@+/])[A-Za-z0-9_*-]+(?:\.[A-Za-z0-9_-]+)*\.[A-Za-z]{2,}\b`), advice: "host names are not supported yet; write addresses"},
}

func re(pattern string) *regexp.Regexp { return regexp.MustCompile(pattern) }

// maxSlip is the longest match that hints look at.
const maxSlip = 256

// suggest finds what to write instead of a faulty match: either text that parses, or advice. It may
// sharpen the fault's problem. It is ("", "") when it knows nothing.
func suggest(f *fault, text string) (write, advice string) {
	if f.fix != "" {
		if write = splice(f, text); write == "" {
			advice = "write " + f.fix + " there" // more is wrong
		}
		return write, advice
	}
	if len(text) > maxSlip {
		return "", ""
	}
	return correct(f, text, 3)
}

// splice puts the fix into its place, "" where that gives no match.
func splice(f *fault, text string) string {
	if whole := text[:f.off] + f.fix + text[f.off+f.n:]; len(whole) <= maxSlip && isList(whole) {
		return whole
	}
	return ""
}

// correct goes through the slips. A slip that leaves another one is followed depth times.
func correct(f *fault, text string, depth int) (write, advice string) {
	for _, s := range slips {
		groups := s.pattern.FindStringSubmatchIndex(text)
		if groups == nil {
			continue
		}
		if s.advice != "" {
			return "", string(s.pattern.ExpandString(nil, s.advice, text, groups))
		}
		if write, advice = s.correct(text, depth); write != "" || advice != "" {
			if s.problem != "" {
				f.problem, f.expected = s.problem, s.expected
			}
			return write, advice
		}
	}
	return "", ""
}

// correct applies the slip, and what is wrong behind it.
func (s slip) correct(text string, depth int) (write, advice string) {
	var next string
	if s.rewrite != nil {
		next = s.rewrite(text, s.pattern.FindStringSubmatch(text))
	} else {
		next = s.pattern.ReplaceAllString(text, s.to)
	}
	switch {
	case next == "" || next == text:
		return "", ""
	case isList(next) || s.problem == "a bare port":
		return next, ""
	case depth > 0 && !strings.Contains(next, ","):
		return correct(&fault{}, next, depth-1)
	}
	return "", ""
}

// isList reports whether s is a list of matches.
func isList(s string) bool {
	for _, element := range split(s, ',') {
		text, _ := trim(element)
		if _, f := parseMatch(text); f != nil {
			return false
		}
	}
	return true
}

// addressPort turns ADDRESS:PORT into PORT/tcp@ADDRESS.
func addressPort(_ string, g []string) string {
	proto := g[1] + g[4]
	if proto == "" {
		proto = "tcp"
	}
	return g[3] + "/" + proto + "@" + g[2]
}

// barePort names the spellings that a port can have.
func barePort(_ string, g []string) string {
	if !isList(g[1] + "/tcp" + g[2]) {
		return ""
	}
	return g[1] + "/tcp" + g[2] + " (or tcp/" + g[1] + g[2] + "), " + g[1] + "/udp" + g[2]
}

// wildcard turns 192.0.* into 192.0.0.0/16.
func wildcard(_ string, g []string) string {
	octets := strings.Count(g[2], ".")
	return g[1] + g[2] + strings.Repeat("0.", 3-octets) + "0/" + strconv.Itoa(8*octets)
}

// shortCIDR turns 10/8 into 10.0.0.0/8.
func shortCIDR(_ string, g []string) string {
	return g[1] + g[2] + strings.Repeat(".0", 3-strings.Count(g[2], ".")) + "/" + g[3]
}

// netmask turns ADDRESS/MASK into the CIDR.
func netmask(_ string, g []string) string {
	addr, err := netip.ParseAddr(g[2])
	mask := net.ParseIP(g[3]).To4()
	if err != nil || mask == nil {
		return ""
	}
	ones, size := net.IPMask(mask).Size()
	if size == 0 {
		return ""
	}
	return g[1] + netip.PrefixFrom(addr, ones).Masked().String()
}

// protoNumber gives proto-N, or the name that N has.
func protoNumber(_ string, g []string) string {
	n, ok := number(g[1], 255)
	if !ok {
		return ""
	}
	if name := unnumbered[n]; name != "" {
		return name
	}
	return "proto-" + g[1]
}

// replaceWords puts what we call it for what others call it, and the nearest word for a misspelt one.
func replaceWords(s string, _ []string) string {
	left, right, hasPeers := strings.Cut(s, "@")
	tail := ""
	if hasPeers {
		var peers []string
		for _, p := range split(right, '+') {
			peers = append(peers, ourPeer(p))
		}
		tail = "@" + strings.Join(peers, "+")
	} else if _, known := services[s]; !known {
		if p := ourPeer(s); p != s {
			return p
		}
	}
	var list []string
	for _, w := range split(ourWhat(left), ',') {
		list = append(list, w+tail)
	}
	return strings.Join(list, ",")
}

func ourPeer(s string) string {
	if p, ok := peerSlips[s]; ok {
		return p
	}
	if len(s) > 3 {
		if g := nearest(s, groupWords[:]); g != "" {
			return g
		}
	}
	return s
}

// whatWords are the words of the left side, sorted so that hints do not depend on chance.
var whatWords = slices.Sorted(maps.Keys(whats))

func ourWhat(s string) string {
	if w, ok := services[s]; ok {
		return w
	}
	head, tail, slash := strings.Cut(s, "/")
	if !slash {
		if w := nearest(s, whatWords); w != "" && len(s) > 2 {
			return w
		}
		return s
	}
	if tail == "icmp" {
		return ourICMP(head) + "/icmp"
	}
	if head == "icmp" {
		return ourICMP(tail) + "/icmp"
	}
	if w := nearest(tail, []string{"tcp", "udp", "sctp", "icmp"}); w != "" {
		return head + "/" + w
	}
	if w := nearest(head, []string{"tcp", "udp", "sctp", "icmp"}); w != "" {
		return tail + "/" + w
	}
	return s
}

func ourICMP(s string) string {
	var names []string
	for _, e := range icmpNames {
		names = append(names, e.name)
	}
	if s == "echo" {
		return "echo-request"
	}
	if n := nearest(s, names); n != "" {
		return n
	}
	return s
}

// hintMatch fills in the fault's hint for a match on its own.
func hintMatch(f *fault, text string) {
	if f.hint != "" {
		return
	}
	write, advice := suggest(f, text)
	if f.hint = advice; write != "" {
		f.hint = "write " + write
	}
}

// hintElement fills in the fault's hint for the element of value that starts at off.
func hintElement(f *fault, r Rule, value string, off int, text string) {
	switch {
	case f.hint != "":
	case text == "":
		f.hint = withoutEmpty(r, value)
	case quotes.MatchString(text):
		f.hint = unquoted(f, r, value)
	case r.Verb == Limit:
		hintLimit(f, r, text)
	case strings.Contains(text, "!"):
		f.hint = negated(r, text)
	default:
		if f.hint = portList(f, value, off); f.hint == "" {
			hintMatch(f, text)
		}
		if write, _ := strings.CutPrefix(f.hint, "write "); !r.In[Egress] && slices.Contains(strings.Split(write, ","), "dns") {
			f.hint = "write dns under xdp.egress." + r.Verb.String()
		}
	}
}

// hintLimit is hintElement for MATCH=RATE.
func hintLimit(f *fault, r Rule, text string) {
	eq := strings.LastIndexByte(text, '=')
	if eq < 0 {
		if r.reads(text + "=1000pps") {
			f.hint = "write " + text + "=1000pps, with the rate that you want"
		}
		return
	}
	rate, _ := trim(text[eq+1:])
	if f.off > eq {
		if rate == "" {
			f.hint = "is a ${VARIABLE} unset?"
		} else if meant := correctRate(rate); meant != "" {
			f.hint = "write " + text[:eq+1] + meant
		}
		return
	}
	left, _ := trim(text[:eq])
	write, advice := suggest(f, left)
	with := func(rate string) string { return strings.ReplaceAll(write, ",", "="+rate+",") + "=" + rate }
	switch {
	case write == "":
		f.hint = advice
	case r.reads(with(rate)):
		f.hint = "write " + with(rate)
	case !isList(write) || r.reads(with("1pps")):
		f.hint = "write " + write + " before the ="
	}
}

var quotes = re("[\"'`“”‘’«»]")

// unquoted is the hint for a value, or an element of one, in which quotes stayed.
func unquoted(f *fault, r Rule, value string) string {
	f.problem, f.expected = "quotes that stayed in the value", "none"
	if len(value) > maxSlip {
		return ""
	}
	bare := quotes.ReplaceAllString(value, "")
	for off, element := range split(bare, ',') {
		text, lead := trim(element)
		if inner := r.parse(text); inner != nil {
			hintElement(inner, r, bare, off+lead, text)
			return inner.hint
		}
	}
	return "write " + bare
}

// withoutEmpty is the hint for a list with an empty element.
func withoutEmpty(r Rule, value string) string {
	var kept []string
	for _, element := range split(value, ',') {
		if text, _ := trim(element); text != "" {
			kept = append(kept, text)
		}
	}
	if list := strings.Join(kept, ","); len(kept) > 0 && len(list) <= maxSlip && r.reads(list) {
		return "write " + list + ", or is a ${VARIABLE} unset?"
	}
	return "is a ${VARIABLE} unset?"
}

var portListRE = re(`^\d+(?:-\d+)?(?:\s*,\s*\d+(?:-\d+)?)+/` + reProto + `(?:@[^,]+)?`)

// portList is the hint for 80,443/tcp: ports of one protocol are joined by +.
func portList(f *fault, value string, off int) string {
	list := portListRE.FindString(value[off:min(len(value), off+maxSlip)])
	fixed := strings.NewReplacer(",", "+", " ", "").Replace(list)
	if fixed == "" || !isList(fixed) {
		return ""
	}
	f.problem, f.expected = "a bare port", "ports of one protocol joined by +"
	return "write " + fixed
}

var rateRE = re(`^(\d+)\s*([a-zA-Z/]*)$`)

// rateSlips are units that people write, with what one of theirs is in ours. Bytes count eight bits.
var rateSlips = map[string]struct {
	factor int
	unit   string
}{
	"kb/s": {1, "kbit"}, "kbps": {1, "kbit"}, "kbit/s": {1, "kbit"}, "k": {1, "kbit"}, "kb": {1, "kbit"},
	"mb/s": {1, "mbit"}, "mbps": {1, "mbit"}, "mbit/s": {1, "mbit"}, "m": {1, "mbit"}, "mb": {1, "mbit"},
	"gb/s": {1, "gbit"}, "gbps": {1, "gbit"}, "gbit/s": {1, "gbit"}, "g": {1, "gbit"}, "gb": {1, "gbit"},
	"kB": {8, "kbit"}, "KB": {8, "kbit"}, "kB/s": {8, "kbit"}, "KB/s": {8, "kbit"}, "kBps": {8, "kbit"},
	"MB": {8, "mbit"}, "MB/s": {8, "mbit"}, "MBps": {8, "mbit"}, "GB": {8, "gbit"}, "GB/s": {8, "gbit"},
	"/s": {1, "pps"}, "pp/s": {1, "pps"}, "p/s": {1, "pps"}, "pkt/s": {1, "pps"}, "packets/s": {1, "pps"}, "packets": {1, "pps"},
	"mpps": {1000, "kpps"},
}

// correctRate is the rate that was meant, "" if unknown.
func correctRate(s string) string {
	g := rateRE.FindStringSubmatch(s)
	if g == nil {
		return ""
	}
	n, ok := number(g[1], maxRate)
	if !ok {
		return ""
	}
	switch {
	case g[2] == "" && n == 0:
		return ""
	case g[2] == "":
		return g[1] + "pps, or with kpps, kbit, mbit or gbit"
	}
	meant, ok := rateSlips[g[2]]
	if !ok {
		meant, ok = rateSlips[strings.ToLower(g[2])]
	}
	unit := meant.unit
	if !ok {
		meant.factor, unit = 1, strings.ToLower(g[2])
	}
	rate := strconv.Itoa(n*meant.factor) + unit
	if _, f := parseRate(rate); f != nil {
		return ""
	}
	return rate
}

// hintValue fills in the fault's hint for a value that is a word.
func hintValue(f *fault, k key, value string) {
	if f.hint != "" || keywords[k.word].named {
		return
	}
	meant := strings.ToLower(strings.Trim(value, "\"'` \t“”‘’"))
	if v, ok := valueSlips[k.word][meant]; ok {
		meant = v
	}
	var scratch parser
	if keywords[k.word].set(&scratch, k, meant) == nil {
		f.hint = "write " + meant
	}
}

// keyError is the error of a key that is not one of the grammar.
func keyError(name, value string) *LabelError {
	e := &LabelError{Key: name, Value: value, Offset: -1, Problem: "an unknown key"}
	s := skeleton(name)
	if _, ok := parseKey(s); ok {
		e.Problem = "a key that only looks like one of ours"
	}
	if fixed := fixKey(s); fixed != "" {
		e.Hint = "write " + fixed
		return e
	}
	if e.Hint = hintDirection(s, value); e.Hint == "" {
		e.Expected = "xdp. or xdp.egress. or xdp.ingress. and one of " + oneOf(keyWords)
	}
	return e
}

// keyWords are the words of keys but for the directions, sorted.
var keyWords = []string{"allow", "antispoof", "default", "drop", "enable", "except", "hook", "limit", "log", "mode", "program"}

// keyParts are the words of a key behind xdp, each corrected where it can be.
func keyParts(s string) []string {
	rest, ok := behindXDP(s)
	if !ok {
		_, rest, _ = strings.Cut(s, ".")
	}
	if !strings.Contains(rest, ".") && keySlips[rest] == "" {
		// XDP_EGRESS_DROP: the separator is the same all through.
		rest = strings.NewReplacer("_", ".", "-", ".", "/", ".", ":", ".").Replace(rest)
	}
	parts := slices.DeleteFunc(strings.SplitN(rest, ".", 6), func(p string) bool { return p == "" })
	for i, p := range parts {
		if w, ok := keySlips[p]; ok {
			parts[i] = w
		} else if w := nearest(p, append(directionWords[:], keyWords...)); w != "" && len(p) > 2 {
			parts[i] = w
		}
	}
	return parts
}

// fixKey puts the words of a key into their order; "" when that gives no key.
func fixKey(s string) string {
	if _, ok := parseKey(s); ok {
		return s
	}
	var dir, word, name string
	for _, p := range keyParts(s) {
		_, isWord := keywords[p]
		switch {
		case slices.Contains(directionWords[:], p) && dir == "":
			dir = p + "."
		case isWord && word == "":
			word = p
		case name == "":
			name = "." + p
		default:
			return ""
		}
	}
	if !keywords[word].directed {
		dir = ""
	}
	fixed := "xdp." + dir + word + name
	if _, ok := parseKey(fixed); !ok {
		return ""
	}
	return fixed
}

// hintDirection is the hint for a key that stops after the direction, such as xdp.egress=drop.
func hintDirection(s, value string) string {
	prefix := "xdp."
	switch parts := keyParts(s); {
	case len(parts) == 1 && slices.Contains(directionWords[:], parts[0]):
		prefix += parts[0] + "."
	case len(parts) > 0:
		return ""
	}
	meant, _ := trim(strings.ToLower(value))
	if v, ok := valueSlips["default"][meant]; ok && meant != "all" {
		meant = v
	}
	switch {
	case slices.Contains(defaultWords[1:], meant):
		return "write " + prefix + "default=" + meant
	case len(value) <= maxSlip && value != "" && isList(value):
		return "write " + prefix + "drop=" + value + " or " + prefix + "allow=" + value
	}
	return "write " + prefix + "drop or " + prefix + "allow"
}
