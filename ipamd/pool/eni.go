package pool

import (
	"net/netip"
	"slices"
)

// Unit is a secondary address (as a /32 or /128) or a prefix of an ENI.
type Unit struct {
	Prefix netip.Prefix
	// InUse and Cooling count those of its addresses that pods hold, and that rest after one did.
	InUse, Cooling int
	// Leaving units are being given back: they only hold their place.
	Leaving bool
}

// mostBits bounds what is counted of a unit: an IPv6 prefix is a /80, which has more than a node can ever use, and more than
// an int need hold.
const mostBits = 16

// IsPrefix says whether the unit is more than one address.
func (u Unit) IsPrefix() bool { return !u.Prefix.IsSingleIP() }

// Size is how many addresses the unit has for pods.
func (u Unit) Size() int {
	return 1 << min(u.Prefix.Addr().BitLen()-u.Prefix.Bits(), mostBits)
}

func (u Unit) idle() bool { return u.InUse == 0 && u.Cooling == 0 }

func (u Unit) free() int {
	if u.Leaving {
		return 0
	}
	return u.Size() - u.InUse - u.Cooling
}

// ENI is one network interface that the agent may use for regular pods.
type ENI struct {
	ID      string
	Primary bool
	Device  int
	Units   []Unit
	// Retiring ENIs are on their way out: nothing of them counts as free.
	Retiring bool
	// Draining ENIs keep their pods and get no others: one goes once it is idle, and of the primary what is idle.
	Draining bool
	// Foreign ENIs are somebody else's: they are used, and never deleted.
	Foreign bool
	// Full is set while the ENI's subnet has no address left, NoPrefix while it has no free prefix: EC2 said so lately.
	Full, NoPrefix bool
}

// serves says whether pods may get addresses of it.
func (e ENI) serves() bool { return !e.Retiring && !e.Draining }

func (e ENI) inUse() (n int) {
	for _, u := range e.Units {
		n += u.InUse
	}
	return n
}

func (e ENI) idle() bool {
	return !slices.ContainsFunc(e.Units, func(u Unit) bool { return !u.idle() })
}
