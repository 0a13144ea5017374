package enis

import "net/netip"

// Twice returns the addresses, as prefixes of one, and the prefixes that more than one ENI has at once, as IMDS shows it: one
// of them is late, and nobody can tell which. It must not be changed.
func (i *Inventory) Twice() map[netip.Prefix]bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.twice
}

func twice(all []ENI) (out map[netip.Prefix]bool) {
	owner := map[netip.Prefix]string{}
	note := func(u netip.Prefix) {
		if out == nil {
			out = map[netip.Prefix]bool{}
		}
		out[u] = true
	}
	have := func(u netip.Prefix, eni string) {
		if o, ok := owner[u]; ok && o != eni {
			note(u)
		}
		owner[u] = eni
	}
	for _, e := range all {
		for _, a := range e.Addresses {
			have(netip.PrefixFrom(a, a.BitLen()), e.ID)
		}
		for _, p := range e.Prefixes {
			have(p, e.ID)
		}
	}
	for _, e := range all {
		for _, p := range e.Prefixes {
			for u, eni := range owner {
				if eni != e.ID && u.IsSingleIP() && p.Contains(u.Addr()) {
					note(u)
				}
			}
		}
	}
	return out
}
