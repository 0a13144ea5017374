package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

// kind parses the text of one variable. What it returns is comparable, so that "is this the default" has one meaning
// whatever way a value is written (1, true and True are the same).
type kind struct {
	accepted string
	parse    func(string) (any, error)
}

var boolean = kind{"true or false", func(s string) (any, error) {
	b, err := strconv.ParseBool(strings.ToLower(s))
	if err != nil {
		return nil, errors.New("not a boolean")
	}
	return b, nil
}}

func integer(low, high int) kind {
	return kind{fmt.Sprintf("a whole number from %d to %d", low, high), func(s string) (any, error) {
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil, errors.New("not a whole number")
		}
		if n < low || n > high {
			return nil, errors.New("out of range")
		}
		return n, nil
	}}
}

func seconds(low, high int) kind {
	i := integer(low, high)
	return kind{i.accepted + " (seconds)", func(s string) (any, error) {
		n, err := i.parse(s)
		if err != nil {
			return nil, err
		}
		return time.Duration(n.(int)) * time.Second, nil
	}}
}

func oneOf(values ...string) kind {
	return kind{strings.Join(values, ", "), func(s string) (any, error) {
		if !slices.Contains(values, s) {
			return nil, errors.New("not one of the values it may have")
		}
		return s, nil
	}}
}

var text = kind{"any text", func(s string) (any, error) { return s, nil }}

// objectKey is a key of a label or an annotation.
var objectKey = kind{"a label's key, like example.com/name", func(s string) (any, error) {
	if problems := validation.IsQualifiedName(s); len(problems) > 0 {
		return nil, errors.New("not the key of a label or an annotation")
	}
	return s, nil
}}

var absolutePath = kind{"an absolute path", func(s string) (any, error) {
	if !path.IsAbs(s) || strings.ContainsRune(s, 0) {
		return nil, errors.New("not an absolute path")
	}
	return path.Clean(s), nil
}}

var logTarget = kind{"stdout, stderr or an absolute path", func(s string) (any, error) {
	if s == "stdout" || s == "stderr" {
		return s, nil
	}
	return absolutePath.parse(s)
}}

// pluginLog has no stdout: there the CNI executable answers the runtime.
var pluginLog = kind{"stderr or an absolute path", func(s string) (any, error) {
	if s == "stderr" {
		return s, nil
	}
	return absolutePath.parse(s)
}}

var levels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "warning": slog.LevelWarn,
	"error": slog.LevelError, "fatal": slog.LevelError,
}

var logLevel = kind{"debug, info, warn, error or fatal, in any case", func(s string) (any, error) {
	l, ok := levels[strings.ToLower(s)]
	if !ok {
		return nil, errors.New("not a log level")
	}
	return l, nil
}}

// logLevelName checks like logLevel and keeps the name, for a program that parses it itself.
var logLevelName = kind{logLevel.accepted, func(s string) (any, error) {
	if _, err := logLevel.parse(s); err != nil {
		return nil, err
	}
	return strings.ToLower(s), nil
}}

var endpoint = kind{"an http or https URL", func(s string) (any, error) {
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, errors.New("not a URL")
	}
	return s, nil
}}

var hostPort = kind{"an IP address and a port, like 127.0.0.1:61679", func(s string) (any, error) {
	if _, err := netip.ParseAddrPort(s); err != nil {
		return nil, errors.New("not an address and a port")
	}
	host, port, _ := net.SplitHostPort(s)
	return net.JoinHostPort(host, port), nil
}}

// UnixPrefix comes before the path of a socket where an address is asked for.
const UnixPrefix = "unix:"

var hostPortOrSocket = kind{hostPort.accepted + ", or " + UnixPrefix + " and the absolute path of a socket", func(s string) (any, error) {
	path, ok := strings.CutPrefix(s, UnixPrefix)
	if !ok {
		return hostPort.parse(s)
	}
	clean, err := absolutePath.parse(path)
	if err != nil {
		return nil, err
	}
	return UnixPrefix + clean.(string), nil
}}

var vethPrefixPattern = regexp.MustCompile(`^[A-Za-z]{1,4}$`)

var vethPrefix = kind{"1 to 4 letters, not eth, vlan or lo", func(s string) (any, error) {
	if !vethPrefixPattern.MatchString(s) {
		return nil, errors.New("not a prefix for link names")
	}
	if s == "eth" || s == "vlan" || s == "lo" {
		return nil, errors.New("taken by other links")
	}
	return s, nil
}}

// CIDRs are prefixes as text in an order of their own, so that equal lists are equal.
type CIDRs string

// Prefixes are the list's.
func (c CIDRs) Prefixes() (out []netip.Prefix) {
	for part := range strings.SplitSeq(string(c), ",") {
		if p, err := netip.ParsePrefix(part); err == nil {
			out = append(out, p)
		}
	}
	return out
}

var cidrs = kind{"CIDRs separated by commas", func(s string) (any, error) {
	var out []string
	for part := range strings.SplitSeq(s, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("%q is not a CIDR", part)
		}
		if p.Addr().Is4In6() {
			return nil, fmt.Errorf("%q is an IPv4 CIDR in IPv6's clothes", part)
		}
		out = append(out, p.Masked().String())
	}
	slices.Sort(out)
	return CIDRs(strings.Join(slices.Compact(out), ",")), nil
}}

// nothing is what the list of node-local destinations may be instead of CIDRs; an empty value would mean the default.
const nothing = "none"

// shortestIPv4 and shortestIPv6 keep a list of single services from becoming a way past security groups to everything that is on the node.
const shortestIPv4, shortestIPv6 = 16, 64

var nodeLocal = kind{fmt.Sprintf("addresses or CIDRs separated by commas, at least /%d (IPv6: /%d), or %s", shortestIPv4, shortestIPv6, nothing), func(s string) (any, error) {
	list, err := parseNodeLocal(s)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nothing, nil
	}
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return strings.Join(out, ","), nil
}}

func parseNodeLocal(s string) (out []netip.Prefix, err error) {
	if strings.EqualFold(s, nothing) {
		return nil, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		p, err := netip.ParsePrefix(part)
		if err != nil {
			addr, aerr := netip.ParseAddr(part)
			if aerr != nil || addr.Zone() != "" {
				return nil, fmt.Errorf("%q is no address and no CIDR", part)
			}
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		shortest := shortestIPv4
		if p.Addr().Is6() {
			shortest = shortestIPv6
		}
		if p.Addr().Is4In6() || p.Bits() < shortest {
			return nil, fmt.Errorf("%q is too much to be left to the node", part)
		}
		out = append(out, p.Masked())
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(out), nil
}

// kubeletMark is on the kubelet's own connections (hostnet.KubeletMark; a test holds them together).
const kubeletMark = 0x400

var mark = kind{"a mark of 32 bits, like 0x80, not 0 and without 0x400", func(s string) (any, error) {
	n, err := strconv.ParseUint(s, 0, 32)
	switch {
	case err != nil:
		return nil, errors.New("not a 32 bit number")
	case n == 0:
		return nil, errors.New("no mark at all")
	case n&kubeletMark != 0:
		return nil, errors.New("0x400 is the mark of the kubelet's own connections")
	}
	return uint32(n), nil
}}

// tags is parsed twice: here it becomes canonical text, which is comparable; parseTags gives the map.
var tags = kind{`a JSON object of strings, like {"team":"blue"}; keys of at most 127, values of at most 255 characters, no key that starts with aws:`, func(s string) (any, error) {
	m, err := parseTags(s)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(m)
	return string(b), err
}}

func parseTags(s string) (map[string]string, error) {
	var m map[string]string
	if err := json.Unmarshal([]byte(s), &m); err != nil {
		return nil, errors.New("not a JSON object of strings")
	}
	if m == nil {
		m = map[string]string{}
	}
	for k, v := range m {
		switch {
		case k == "" || len(k) > 127 || len(v) > 255:
			return nil, fmt.Errorf("tag %q is too long or empty", k)
		case strings.HasPrefix(strings.ToLower(k), "aws:"):
			return nil, fmt.Errorf("tag %q: AWS keeps the prefix aws: to itself", k)
		}
	}
	return m, nil
}
