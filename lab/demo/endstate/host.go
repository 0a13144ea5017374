package endstate

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// linkKeys are what is compared of a link. Indexes, queue lengths, offloads and counters are the kernel's and the
// machine's own affair.
var linkKeys = []string{"operstate", "mtu", "link", "address"}

// chance are the keys of rules, routes and neighbours that depend on timing: flags have "linkdown" and "dead" for a
// moment after a change.
var chance = []string{"flags"}

// lines are the host's own, and those of the pods on it.
func (h host) lines(n names) (own, pods []string) {
	// Links are named by what they are: the kernel numbers devices in the order of attachment, and a pod's veth has a
	// name made from the pod's random one.
	links := map[string]string{}
	for _, r := range h.routes {
		if dst := n.of(text(r["dst"])); strings.HasPrefix(dst, "ip(pod:") {
			links[text(r["dev"])] = "veth" + strings.TrimPrefix(dst, "ip")
		}
	}
	for _, l := range h.links {
		if mac := n.of(text(l["address"])); strings.HasPrefix(mac, "mac(") {
			links[text(l["ifname"])] = "link" + strings.TrimPrefix(mac, "mac")
		}
	}
	add := func(what, line string) {
		line = what + " " + line
		if strings.Contains(line, "(pod:") {
			pods = append(pods, line)
		} else {
			own = append(own, line)
		}
	}
	named := func(v any) string {
		if name, ok := links[text(v)]; ok {
			return name
		}
		return n.in(text(v))
	}
	for _, l := range h.links {
		name := named(l["ifname"])
		parts := []string{name}
		if info, ok := l["linkinfo"].(map[string]any); ok {
			parts = append(parts, "kind="+text(info["info_kind"]))
			if data, ok := info["info_data"].(map[string]any); ok && data["id"] != nil {
				parts = append(parts, "vlan="+text(data["id"]))
			}
		}
		for _, k := range linkKeys {
			v := named(l[k])
			if l[k] == nil || k == "address" && strings.HasPrefix(name, "veth(") { // random
				continue
			}
			parts = append(parts, k+"="+v)
		}
		add("link", strings.Join(parts, " "))
	}
	for _, part := range []struct {
		what string
		all  []map[string]any
	}{{"rule", h.rules}, {"route", h.routes}, {"neighbour", h.neighbours}} {
		for _, o := range part.all {
			var pairs []string
			for _, k := range slices.Sorted(maps.Keys(o)) {
				// A pod's own address of its veth is made from its random sandbox id.
				ofPod := k == "lladdr" && strings.HasPrefix(n.of(text(o["dst"])), "ip(pod:")
				if !slices.Contains(chance, k) && !ofPod {
					pairs = append(pairs, k+"="+named(o[k]))
				}
			}
			add(part.what, strings.Join(pairs, " "))
		}
	}
	for _, f := range h.files {
		add("file", f)
	}
	return own, pods
}

// text is a value of a JSON object.
func text(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	default:
		return fmt.Sprint(v)
	}
}
