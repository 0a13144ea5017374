package introspect

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/pool"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// Key is the interface of a sandbox.
type Key struct {
	Network   string `json:"networkName"`
	Container string `json:"containerID"`
	Interface string `json:"ifName"`
}

// Metadata is the pod of a sandbox.
type Metadata struct {
	Namespace string `json:"k8sPodNamespace,omitempty"`
	Name      string `json:"k8sPodName,omitempty"`
}

// Address is one address that regular pods may have. In ENIs the sandbox and the interface of Key stay blank: the node's
// monitoring looks for rules of each address's own where they are filled, and there are none here (one rule leads to all
// local pods).
type Address struct {
	Address    string
	Key        Key       `json:"IPAMKey"`
	Pod        Metadata  `json:"IPAMMetadata"`
	Assigned   time.Time `json:"AssignedTime"`
	Unassigned time.Time `json:"UnassignedTime"`
	// State is one of free, assigned, cooling, leaving, retiring, held.
	State string
}

// Network is a CIDR as encoding/json writes Go's net.IPNet: readers of this view decode into that.
type Network struct {
	IP   string
	Mask []byte
}

// CIDR is a single address or a prefix of an ENI.
type CIDR struct {
	Cidr      Network
	Addresses map[string]Address `json:"IPAddresses"`
	IsPrefix  bool
	Family    string `json:"AddressFamily"`
}

// ENI is one interface of the instance.
type ENI struct {
	ID           string
	IsPrimary    bool
	IsTrunk      bool
	IsEFA        bool
	DeviceNumber int
	IPv4         map[string]CIDR `json:"AvailableIPv4Cidrs"`
	IPv6         map[string]CIDR `json:"IPv6Cidrs"`

	MAC, SubnetID string
	NetworkCard   int
	LinkIndex     int
	LinkUp        bool
	Unmanaged     bool
}

// ENIs is the view /v1/enis.
type ENIs struct {
	TotalIPs, AssignedIPs int
	ENIs                  map[string]ENI
}

// Pod is an entry of the view /v1/pods.
type Pod struct {
	Key          Key      `json:"IPAMKey"`
	Metadata     Metadata `json:"IPAMMetadata"`
	IP           string
	DeviceNumber int
	ENI, UID     string
	VLAN         int `json:",omitempty"` // of a branch pod
	Mode         string
	Since        time.Time
	// Further are the interfaces beside the first of a pod with several.
	Further []Interface `json:",omitempty"`
}

// Interface of a pod on a further network card.
type Interface struct {
	IP                        string
	NetworkCard, DeviceNumber int
	ENI                       string
}

// Modes of a pod.
const (
	ModeRegular  = "regular"
	ModeStrict   = "strict"
	ModeStandard = "standard"
)

// listed are the addresses of a unit that are shown: of an IPv6 prefix, which has more than anybody reads, those that are not
// just free.
func listed(u netip.Prefix, assigned map[netip.Addr]store.Allocation, cooling map[netip.Addr]store.Cooling, held map[netip.Addr]bool) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		if u.Addr().Is4() || u.IsSingleIP() {
			for addr := u.Addr(); u.Contains(addr) && yield(addr); {
				addr = addr.Next()
			}
			return
		}
		taken := slices.Concat(slices.Collect(maps.Keys(assigned)), slices.Collect(maps.Keys(cooling)), slices.Collect(maps.Keys(held)))
		slices.SortFunc(taken, netip.Addr.Compare)
		for _, addr := range slices.Compact(taken) {
			if u.Contains(addr) && !yield(addr) {
				return
			}
		}
	}
}

// OfENIs makes the view of the ENIs. held are addresses that are wired to pods which the store does not know;
// coolDown is how long a freed address rests.
func OfENIs(all []enis.ENI, v store.View, held map[netip.Addr]bool, coolDown time.Duration) ENIs {
	assigned, cooling := map[netip.Addr]store.Allocation{}, map[netip.Addr]store.Cooling{}
	for _, al := range v.Allocations {
		for _, r := range al.Regulars() {
			assigned[r.Address] = al
		}
	}
	for _, c := range v.Cooling {
		cooling[c.Address] = c
	}
	out := ENIs{ENIs: map[string]ENI{}}
	for _, e := range all {
		view := ENI{
			ID: e.ID, IsPrimary: e.Primary(), IsTrunk: e.Trunk, DeviceNumber: e.Device, IPv4: map[string]CIDR{}, IPv6: map[string]CIDR{},
			MAC: e.MAC, SubnetID: e.SubnetID, NetworkCard: e.Card, LinkIndex: e.LinkIndex, LinkUp: e.LinkUp, Unmanaged: e.Unmanaged,
		}
		retiring := slices.Contains(v.Retiring, e.ID)
		for _, u := range e.Units() {
			leaving := slices.ContainsFunc(v.Leaving, func(l store.Leaving) bool { return l.ENIID == e.ID && l.Prefix == u })
			c := CIDR{Cidr: network(u), IsPrefix: !u.IsSingleIP(), Addresses: map[string]Address{}}
			out.TotalIPs += pool.Unit{Prefix: u}.Size()
			for addr := range listed(u, assigned, cooling, held) {
				at := Address{Address: addr.String(), State: "free"}
				al, ok := assigned[addr]
				rests, cools := cooling[addr]
				switch {
				case ok:
					out.AssignedIPs++
					at.State, at.Assigned = "assigned", al.Since
					at.Key.Network = al.Network
					at.Pod = Metadata{al.Pod.Namespace, al.Pod.Name}
				case held[addr]:
					at.State = "held"
				case cools:
					at.State, at.Unassigned = "cooling", rests.Until.Add(-coolDown)
				case leaving:
					at.State = "leaving"
				case retiring:
					at.State = "retiring"
				}
				c.Addresses[addr.String()] = at
			}
			if u.Addr().Is4() {
				view.IPv4[u.String()] = c
			} else {
				view.IPv6[u.String()] = c
			}
		}
		out.ENIs[e.ID] = view
	}
	return out
}

func network(p netip.Prefix) Network {
	n := Network{IP: p.Addr().String(), Mask: make([]byte, p.Addr().BitLen()/8)}
	for bit := range p.Bits() {
		n.Mask[bit/8] |= 0x80 >> (bit % 8)
	}
	return n
}

// OfPods makes the view of the pods that hold something on this node, sorted by pod and sandbox.
func OfPods(v store.View) []Pod {
	out := []Pod{}
	for _, al := range v.Allocations {
		p := Pod{
			Key: Key{al.Network, al.ContainerID, al.IfName}, Metadata: Metadata{al.Pod.Namespace, al.Pod.Name}, UID: al.Pod.UID, Since: al.Since,
		}
		switch {
		case al.Regular != nil:
			p.IP, p.ENI, p.DeviceNumber, p.Mode = al.Regular.Address.String(), al.Regular.ENIID, al.Regular.Device, ModeRegular
		case al.Branch.Standard:
			p.Mode = ModeStandard
		default:
			p.Mode = ModeStrict
		}
		if b := al.Branch; b != nil {
			p.IP, p.ENI, p.VLAN = b.Address.String(), b.ENIID, b.VLAN
		}
		for _, r := range al.Further {
			p.Further = append(p.Further, Interface{r.Address.String(), r.Card, r.Device, r.ENIID})
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Pod) int {
		return cmp.Or(cmp.Compare(a.Metadata.Namespace, b.Metadata.Namespace), cmp.Compare(a.Metadata.Name, b.Metadata.Name), cmp.Compare(a.Key.Container, b.Key.Container))
	})
	return out
}
