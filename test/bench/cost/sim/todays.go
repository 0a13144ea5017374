package sim

import (
	"slices"
	"time"
)

// What is known of today's agent: it looks at its pool every 5 s, gives addresses back at most every 30 s after the last
// change of its pool, keeps an ENI for at least a minute, and fails an ADD at once when it has no address.
const (
	tick        = 5 * time.Second
	giveBackGap = 30 * time.Second
	youngENI    = time.Minute
	afterDetach = 5 * time.Second
	leakSweep   = time.Hour
	lookForENI  = time.Second // how often it looks whether the metadata service shows a new ENI
	prefixSize  = 16
)

// Todays is a model of the agent that EKS ships.
type Todays struct {
	n          *Node
	lastChange time.Duration
}

// NewTodays begins to run it.
func NewTodays(n *Node) Agent {
	d := &Todays{n: n, lastChange: -giveBackGap}
	n.Go(d.loop)
	n.Go(d.sweep)
	return d
}

func (d *Todays) loop(p *Process) {
	for {
		d.look(p)
		p.Sleep(tick)
	}
}

// sweep looks for ENIs that were left behind.
func (d *Todays) sweep(p *Process) {
	for {
		d.n.call(p, describeENIs)
		p.Sleep(leakSweep)
	}
}

// available counts what no pod holds; resting addresses are among it.
func (d *Todays) available() (available, all int) {
	all, inUse, _ := d.n.count()
	return all - inUse, all
}

func (d *Todays) byAddress() bool { return d.n.Targets.WarmIPs > 0 || d.n.Targets.MinimumIPs > 0 }

// size is how many addresses a unit has.
func (d *Todays) size() int {
	if d.n.Targets.Prefixes {
		return prefixSize
	}
	return 1
}

// short is how many units are missing, and over how many are too many, by WARM_IP_TARGET and MINIMUM_IP_TARGET.
func (d *Todays) short() (short, over int) {
	t := d.n.Targets
	available, all := d.available()
	missing := max(t.WarmIPs-available, t.MinimumIPs-all, 0)
	if !t.Prefixes {
		return missing, max(0, min(available-t.WarmIPs, all-t.MinimumIPs))
	}
	// Whole prefixes are counted by what pods and the targets need of them.
	need := max(ceil(all-available+t.WarmIPs, prefixSize), ceil(t.MinimumIPs, prefixSize))
	return ceil(missing, prefixSize), max(0, all/prefixSize-need)
}

func ceil(a, b int) int { return (a + b - 1) / b }

// idlePrefixes counts those that nobody uses or used lately.
func (d *Todays) idlePrefixes() (n int) {
	for _, e := range d.n.ENIs {
		for _, u := range e.Units {
			if u.idle(d.n.now) {
				n++
			}
		}
	}
	return n
}

// wanted is how many units are to be had more, and less.
func (d *Todays) wanted() (more, less int) {
	t := d.n.Targets
	available, _ := d.available()
	switch {
	case d.byAddress():
		return d.short()
	case t.Prefixes:
		if available < t.WarmPrefixes*prefixSize {
			return max(1, t.WarmPrefixes-d.idlePrefixes()), 0
		}
		return 0, max(0, d.idlePrefixes()-t.WarmPrefixes)
	case available < t.WarmENIs*t.Places:
		return t.Places, 0
	}
	return 0, 0
}

// look is what each tick does: at most one ENI gets more, or is made.
func (d *Todays) look(p *Process) {
	if more, less := d.wanted(); more > 0 {
		d.grow(p, more)
	} else if less > 0 && d.n.now-d.lastChange >= giveBackGap {
		d.giveBack(p, less)
	}
	if e := d.removable(); e != nil {
		d.free(p, e)
	}
}

func (d *Todays) grow(p *Process, more int) {
	t := d.n.Targets
	for _, e := range d.n.ENIs {
		if room := t.Places - len(e.Units); room > 0 {
			d.n.call(p, assign)
			e.Units = append(e.Units, d.n.newUnits(min(room, more), t.Prefixes)...)
			d.lastChange = d.n.now
			return
		}
	}
	if len(d.n.ENIs) >= t.MaxENIs {
		return
	}
	d.n.call(p, describeSubnets)
	d.n.call(p, createENI)
	d.n.call(p, describeInstances) // for a free device index
	d.n.call(p, attachENI)
	e, shown := d.n.attach(min(more, t.Places), t.Prefixes)
	d.n.call(p, modifyENI)
	for d.n.now < shown {
		p.Sleep(lookForENI)
	}
	e.Usable = true
	d.lastChange = d.n.now
}

func (d *Todays) giveBack(p *Process, less int) {
	for _, e := range slices.Backward(d.n.ENIs) {
		var back []*Unit
		for _, u := range slices.Backward(e.Units) {
			if u.idle(d.n.now) && len(back) < less {
				back = append(back, u)
			}
		}
		if len(back) == 0 {
			continue
		}
		less -= len(back)
		e.Units = slices.DeleteFunc(e.Units, func(u *Unit) bool { return slices.Contains(back, u) })
		d.n.call(p, unassign)
		d.lastChange = d.n.now
	}
}

// removable is an ENI that nobody uses or used lately, and that no target needs.
func (d *Todays) removable() *ENI {
	t := d.n.Targets
	available, all := d.available()
	if !d.byAddress() && !t.Prefixes && available < (t.WarmENIs+1)*t.Places {
		return nil
	}
	for _, e := range slices.Backward(d.n.ENIs) {
		has := len(e.Units) * d.size()
		switch {
		case e.Device == 0 || d.n.now-e.Since < youngENI,
			slices.ContainsFunc(e.Units, func(u *Unit) bool { return !u.idle(d.n.now) }),
			d.byAddress() && (available-has < t.WarmIPs || all-has < t.MinimumIPs),
			!d.byAddress() && t.Prefixes && d.idlePrefixes()-len(e.Units) < t.WarmPrefixes:
			continue
		}
		return e
	}
	return nil
}

func (d *Todays) free(p *Process, e *ENI) {
	e.leaving = true
	d.n.call(p, describeENIs)
	d.n.call(p, detachENI)
	p.Sleep(afterDetach)
	d.n.call(p, deleteENI)
	d.n.remove(e)
	d.lastChange = d.n.now
}

// Add fails when no address is there.
func (d *Todays) Add(*Process) *Unit { return d.n.take() }

// Del lets the address rest.
func (d *Todays) Del(u *Unit) { d.n.release(u) }
