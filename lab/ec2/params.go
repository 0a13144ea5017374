package ec2

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// params is a decoded Query API form: "Filter.1.Value.2=x" becomes a tree. The zero value is an empty one.
type params struct {
	value string
	set   bool
	kids  map[string]*params
}

// maxParamDepth is more than any parameter of the APIs has (RunInstances has 5).
const maxParamDepth = 12

// parseForm decodes an application/x-www-form-urlencoded body.
func parseForm(body string) (*params, error) {
	values, err := url.ParseQuery(body)
	if err != nil {
		return nil, errf("MalformedQueryString", "The query string is malformed: %v", err)
	}
	root := &params{}
	for key, vals := range values {
		if len(vals) != 1 {
			return nil, errf("InvalidParameterCombination", "The parameter '%s' is given %d times", key, len(vals))
		}
		parts := strings.Split(key, ".")
		if len(parts) > maxParamDepth || slices.Contains(parts, "") {
			return nil, errf("MalformedQueryString", "The parameter name '%s' is malformed", key)
		}
		at := root
		for _, p := range parts {
			if at.kids == nil {
				at.kids = make(map[string]*params)
			}
			next := at.kids[p]
			if next == nil {
				next = &params{}
				at.kids[p] = next
			}
			at = next
		}
		at.value, at.set = vals[0], true
	}
	return root, nil
}

func (p *params) names() []string { return slices.Sorted(maps.Keys(p.kids)) }

func (p *params) child(name string) *params {
	if k := p.kids[name]; k != nil {
		return k
	}
	return &params{}
}

func (p *params) has(name string) bool { return p.kids[name] != nil }

func (p *params) str(name string) string { return p.child(name).value }

// items gives the members of a list ("Name.1", "Name.2", …) in the order of their numbers. IAM and STS put them below
// "Name.member".
func (p *params) items(name string) []*params {
	list := p.child(name)
	if m := list.kids["member"]; m != nil {
		list = m
	}
	var numbers []int
	for k := range list.kids {
		if n, err := strconv.Atoi(k); err == nil && n > 0 {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	out := make([]*params, 0, len(numbers))
	for _, n := range numbers {
		if it := list.kids[strconv.Itoa(n)]; it != nil { // "01" is not a number here
			out = append(out, it)
		}
	}
	return out
}

func (p *params) strs(name string) []string {
	var out []string
	for _, it := range p.items(name) {
		out = append(out, it.value)
	}
	return out
}

// need is str for a parameter that has to be there.
func (p *params) need(name string) (string, error) {
	if v := p.str(name); v != "" {
		return v, nil
	}
	return "", missing(name)
}

func (p *params) int(name string, def int) (int, error) {
	c := p.child(name)
	if !c.set {
		return def, nil
	}
	n, err := strconv.ParseInt(c.value, 10, 32)
	if err != nil {
		return 0, errf("InvalidParameterValue", "Value (%s) for parameter %s is invalid. A whole number is expected.", c.value, name)
	}
	return int(n), nil
}

// count is int for a number that can't be negative.
func (p *params) count(name string, def int) (int, error) {
	n, err := p.int(name, def)
	if err == nil && n < 0 {
		err = errf("InvalidParameterValue", "Value (%d) for parameter %s is invalid. It can't be negative.", n, name)
	}
	return n, err
}

func (p *params) bool(name string, def bool) (bool, error) {
	c := p.child(name)
	if !c.set {
		return def, nil
	}
	switch strings.ToLower(c.value) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, errf("InvalidParameterValue", "Value (%s) for parameter %s is invalid. true or false is expected.", c.value, name)
}

func (p *params) ipv4(name string) (netip.Addr, error) {
	v := p.str(name)
	if v == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(v)
	if err != nil || !a.Is4() {
		return netip.Addr{}, errf("InvalidParameterValue", "Value (%s) for parameter %s is invalid. An IPv4 address is expected.", v, name)
	}
	return a, nil
}

// flat writes the tree back as names and values, for the audit log.
func (p *params) flat() map[string]string {
	out := make(map[string]string)
	var walk func(prefix string, p *params)
	walk = func(prefix string, p *params) {
		if p.set {
			out[prefix] = p.value
		}
		for k, c := range p.kids {
			name := k
			if prefix != "" {
				name = prefix + "." + k
			}
			walk(name, c)
		}
	}
	walk("", p)
	return out
}

// only refuses what the call doesn't know: names are those of the API, separated by spaces.
func (p *params) only(names string) error {
	known := strings.Fields(names)
	for _, n := range p.names() {
		if !slices.Contains(known, n) {
			return errf("UnknownParameter", "The parameter %s is not recognized", n)
		}
	}
	return nil
}

func missing(name string) error {
	return errf("MissingParameter", "The request must contain the parameter %s", name)
}

func (p *params) String() string { return fmt.Sprint(p.flat()) }
