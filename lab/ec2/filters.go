package ec2

import (
	"encoding/base64"
	"maps"
	"slices"
	"strings"
)

// filter is one of a describe call: the resource has to match one of the values.
type filter struct {
	name   string
	values []string
}

func (c *call) filters() ([]filter, error) {
	var out []filter
	for _, f := range c.p.items("Filter") {
		name, err := f.need("Name")
		if err != nil {
			return nil, errf("InvalidParameterValue", "The filter 'null' is invalid")
		}
		vals := f.strs("Value")
		if len(vals) == 0 {
			return nil, errf("InvalidParameterValue", "The filter '%s' has no values", name)
		}
		out = append(out, filter{name, vals})
	}
	return out, nil
}

// attributes gives what a resource has for each filter's name. A name without a value is there with none.
type attributes map[string][]string

func one(v string) []string {
	if v == "" {
		return nil
	}
	return []string{v}
}

// tagged adds the filters that every resource with tags has.
func (r *Region) tagged(id string, a attributes) attributes {
	for k, v := range r.tags[id] {
		a["tag:"+k] = []string{v}
		a["tag-key"] = append(a["tag-key"], k)
	}
	return a
}

func (a attributes) matches(filters []filter) (bool, error) {
	for _, f := range filters {
		vals, known := a[f.name]
		if !known && !strings.HasPrefix(f.name, "tag:") && f.name != "tag-key" {
			return false, errf("InvalidParameterValue", "The filter '%s' is invalid", f.name)
		}
		if !slices.ContainsFunc(vals, func(v string) bool {
			return slices.ContainsFunc(f.values, func(p string) bool { return match(v, p) })
		}) {
			return false, nil
		}
	}
	return true, nil
}

// describable is how a kind of resource is listed.
type describable[T any] struct {
	idParam    string // request parameter with ids; "" when there is none
	notFound   func(id string) error
	attributes func(T) attributes
	pageMin    int
}

const (
	pageMax     = 1000
	pageDefault = 1000
)

// selectPage picks resources by id, filters and page. all maps ids to resources; pages follow the order of ids.
func selectPage[T any](c *call, all map[string]T, d describable[T]) (page []T, next string, err error) {
	filters, err := c.filters()
	if err != nil {
		return nil, "", err
	}
	ids := c.p.strs(d.idParam)
	limit, err := c.p.int("MaxResults", 0)
	if err != nil {
		return nil, "", err
	}
	if limit != 0 && (limit < d.pageMin || limit > pageMax) {
		return nil, "", errf("InvalidParameterValue", "Value ( %d ) for parameter maxResults is invalid. Expecting a value between %d and %d.", limit, d.pageMin, pageMax)
	}
	if len(ids) > 0 && limit != 0 {
		return nil, "", errf("InvalidParameterCombination", "The parameter %ss cannot be used with the parameter maxResults", d.idParam)
	}
	if limit == 0 {
		limit = pageDefault
		if len(ids) > 0 {
			limit = len(ids)
		}
	}
	after, err := c.pageStart()
	if err != nil {
		return nil, "", err
	}
	if len(ids) == 0 {
		ids = slices.Sorted(maps.Keys(all))
	} else {
		slices.Sort(ids)
		ids = slices.Compact(ids)
		for _, id := range ids {
			if _, ok := all[id]; !ok {
				return nil, "", d.notFound(id)
			}
		}
	}
	last := ""
	for _, id := range ids {
		if id <= after {
			continue
		}
		ok, err := d.attributes(all[id]).matches(filters)
		if err != nil {
			return nil, "", err
		}
		if !ok {
			continue
		}
		if len(page) == limit {
			return page, c.pageToken(last), nil
		}
		page = append(page, all[id])
		last = id
	}
	return page, "", nil
}

// A page's token names the last id that was listed: resources that come and go between two pages neither shift nor
// repeat others.
func (c *call) pageToken(last string) string {
	return base64.URLEncoding.EncodeToString([]byte(c.api + " " + last))
}

func (c *call) pageStart() (after string, err error) {
	t := c.p.str("NextToken")
	if t == "" {
		return "", nil
	}
	raw, err := base64.URLEncoding.DecodeString(t)
	api, after, ok := strings.Cut(string(raw), " ")
	if err != nil || !ok || api != c.api {
		return "", errf("InvalidNextToken", "The next token '%s' is invalid", t)
	}
	return after, nil
}
