package ec2

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// moment is what the ENIs were from a time on.
type moment struct {
	at   time.Time
	enis map[string]*eni
}

// lateness is of one ENI in the metadata of one instance; without an ENI, of all others.
type lateness struct{ instanceID, eniID string }

// LateMetadata has an instance's metadata show an ENI (all others where eniID is empty) as it was so long ago, from now on:
// what was attached or assigned since is missing, and what is gone still shows. It never goes back to what was before
// what it has shown. Config.History bounds it.
func (r *Region) LateMetadata(instanceID, eniID string, by time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.late[lateness{instanceID, eniID}] = by
}

// MetadataInTime ends the lateness of an instance's metadata.
func (r *Region) MetadataInTime(instanceID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.late, func(l lateness, _ time.Duration) bool { return l.instanceID == instanceID })
}

// remember notes what the ENIs are now. Lock held.
func (r *Region) remember() {
	if r.cfg.History <= 0 {
		return
	}
	now := r.cfg.Now()
	r.past = append(r.past, moment{now, copied(r.enis)})
	for len(r.past) > 1 && now.Sub(r.past[1].at) > r.cfg.History {
		r.past = r.past[1:]
	}
}

// copied makes copies that later calls don't change: they change what pointers lead to, and replace slices.
func copied(enis map[string]*eni) map[string]*eni {
	out := make(map[string]*eni, len(enis))
	for id, e := range enis {
		c := *e
		if e.att != nil {
			att := *e.att
			c.att = &att
		}
		if e.assoc != nil {
			assoc := *e.assoc
			c.assoc = &assoc
		}
		out[id] = &c
	}
	return out
}

// at returns the ENIs as they were, as far back as is known. Lock held.
func (r *Region) at(t time.Time) map[string]*eni {
	for _, m := range slices.Backward(r.past) {
		if !m.at.After(t) {
			return m.enis
		}
	}
	if len(r.past) > 0 {
		return r.past[0].enis
	}
	return r.enis
}

// asOf puts former ENIs in the place of those of now, until back is called. Groups that are gone since are left out. Lock
// held, and throughout.
func (r *Region) asOf(t time.Time) (back func()) {
	now := r.enis
	r.enis = copied(r.at(t))
	for _, e := range r.enis {
		e.groups = slices.DeleteFunc(slices.Clone(e.groups), func(id string) bool { return r.groups[id] == nil })
	}
	return func() { r.enis = now }
}

// shownTo lists the ENIs that an instance's metadata shows. Lock held.
func (r *Region) shownTo(instanceID string, now time.Time) (out []*eni) {
	ofInstance := func(l lateness) bool { return l.instanceID == instanceID }
	if !slices.ContainsFunc(slices.Collect(maps.Keys(r.late)), ofInstance) && !slices.ContainsFunc(slices.Collect(maps.Keys(r.shown)), ofInstance) {
		return r.attached(instanceID)
	}
	ids := map[string]bool{}
	for _, m := range r.past {
		for id, e := range m.enis {
			if e.att != nil && e.att.instanceID == instanceID {
				ids[id] = true
			}
		}
	}
	for id := range ids {
		l := lateness{instanceID, id}
		by, ok := r.late[l]
		if !ok {
			by = r.late[lateness{instanceID, ""}]
		}
		at := now.Add(-by)
		if last := r.shown[l]; at.Before(last) {
			at = last
		}
		r.shown[l] = at
		if e := r.at(at)[id]; e != nil && e.att != nil && e.att.instanceID == instanceID {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *eni) int {
		return cmp.Or(a.att.card-b.att.card, a.att.device-b.att.device, cmp.Compare(a.id, b.id))
	})
	return out
}
