package ec2

import (
	"maps"
	"slices"
	"strings"
)

// maxTags is AWS's limit of tags on a resource.
const maxTags = 50

func parseTags(items []*params) (map[string]string, error) {
	tags := make(map[string]string)
	for _, t := range items {
		k := t.str("Key")
		switch {
		case k == "":
			return nil, errf("InvalidParameterValue", "Tag key cannot be empty")
		case len(k) > 128 || len(t.str("Value")) > 256:
			return nil, errf("InvalidParameterValue", "Tag '%s' is too long: 128 characters for the key, 256 for the value", k)
		case strings.HasPrefix(k, "aws:"):
			return nil, errf("InvalidParameterValue", "Tag keys starting with 'aws:' are reserved for internal use")
		}
		if _, dup := tags[k]; dup {
			return nil, errf("InvalidParameterValue", "Duplicate tag key '%s' specified.", k)
		}
		tags[k] = t.str("Value")
	}
	if len(tags) > maxTags {
		return nil, errf("TagLimitExceeded", "More than %d tags specified", maxTags)
	}
	return tags, nil
}

// specified gives the tags for a kind of resource in a creating call's TagSpecification.
func (c *call) specified(kinds ...string) (map[string]map[string]string, error) {
	out := make(map[string]map[string]string)
	for _, s := range c.p.items("TagSpecification") {
		kind := s.str("ResourceType")
		if !slices.Contains(kinds, kind) {
			return nil, errf("InvalidParameterValue", "'%s' is not a valid taggable resource type for this operation.", kind)
		}
		if _, twice := out[kind]; twice {
			return nil, errf("InvalidParameterValue", "Duplicate TagSpecification for resource type '%s'", kind)
		}
		t, err := parseTags(s.items("Tag"))
		if err != nil {
			return nil, err
		}
		out[kind] = t
	}
	return out, nil
}

func (r *Region) setTags(id string, tags map[string]string) {
	if len(tags) > 0 {
		r.tags[id] = tags
	}
}

func (r *Region) tagSet(id string) element {
	t := r.tags[id]
	return list("tagSet", slices.Sorted(maps.Keys(t)), func(k string) []element {
		return []element{str("key", k), str("value", t[k])}
	})
}

// resourceKind says what an id is and whether it exists.
func (r *Region) resourceKind(id string) (kind string, exists bool) {
	prefix, _, _ := strings.Cut(id, "-")
	switch prefix {
	case "vpc":
		return "vpc", r.vpcs[id] != nil
	case "subnet":
		return "subnet", r.subnets[id] != nil
	case "sg":
		return "security-group", r.groups[id] != nil
	case "sgr":
		_, _, ok := r.findRule(id)
		return "security-group-rule", ok
	case "eni":
		return "network-interface", r.enis[id] != nil
	case "i":
		return "instance", r.instances[id] != nil
	}
	return "", false
}

func taggedTargets(c *call) []target {
	var out []target
	for _, id := range c.p.strs("ResourceId") {
		kind, _ := c.resourceKind(id)
		out = append(out, target{arn: c.arn(kind, id), tags: c.tags[id], request: tagsIn(c.p)})
	}
	return out
}

func (c *call) taggable() ([]string, error) {
	ids := c.p.strs("ResourceId")
	if len(ids) == 0 {
		return nil, missing("resourceIdSet")
	}
	for _, id := range ids {
		kind, exists := c.resourceKind(id)
		if exists {
			continue
		}
		switch kind {
		case "":
			return nil, errf("InvalidID", "The ID '%s' is not valid", id)
		case "network-interface":
			return nil, interfaceNotFound(id)
		case "instance":
			return nil, instanceNotFound(id)
		default:
			return nil, errf("InvalidID", "The ID '%s' does not exist", id)
		}
	}
	return ids, nil
}

func createTags(c *call) ([]element, error) {
	ids, err := c.taggable()
	if err != nil {
		return nil, err
	}
	tags, err := parseTags(c.p.items("Tag"))
	if err != nil {
		return nil, err
	}
	merged := make(map[string]map[string]string)
	for _, id := range ids {
		m := maps.Clone(c.tags[id])
		if m == nil {
			m = make(map[string]string)
		}
		maps.Copy(m, tags)
		if len(m) > maxTags {
			return nil, errf("TagLimitExceeded", "The resource %s would have more than %d tags", id, maxTags)
		}
		merged[id] = m
	}
	maps.Copy(c.tags, merged)
	return done, nil
}

func deleteTags(c *call) ([]element, error) {
	ids, err := c.taggable()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if !c.p.has("Tag") {
			delete(c.tags, id)
			continue
		}
		m := maps.Clone(c.tags[id])
		for _, t := range c.p.items("Tag") {
			// A tag that is given with a value goes only if it has that value.
			if !t.has("Value") || m[t.str("Key")] == t.str("Value") {
				delete(m, t.str("Key"))
			}
		}
		c.tags[id] = m
	}
	return done, nil
}

type tagRow struct{ id, kind, key, value string }

func describeTags(c *call) ([]element, error) {
	rows := make(map[string]tagRow)
	for id, tags := range c.tags {
		kind, _ := c.resourceKind(id)
		for k, v := range tags {
			rows[id+" "+k] = tagRow{id, kind, k, v}
		}
	}
	page, next, err := selectPage(c, rows, describable[tagRow]{pageMin: 5, attributes: func(t tagRow) attributes {
		return attributes{"resource-id": {t.id}, "resource-type": {t.kind}, "key": {t.key}, "value": {t.value}, "tag:" + t.key: {t.value}}
	}})
	if err != nil {
		return nil, err
	}
	return join([]element{list("tagSet", page, func(t tagRow) []element {
		return []element{str("resourceId", t.id), str("resourceType", t.kind), str("key", t.key), str("value", t.value)}
	})}, optional("nextToken", next)), nil
}

// done is EC2's answer of calls that have no other.
var done = []element{flag("return", true)}
