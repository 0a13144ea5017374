package egress

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Family is the address family that the pod is given: 4 or 6.
type Family int

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// FamilyOf is an address's family.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// PodLink is the interface's name in the pod, as upstream has it.
func (f Family) PodLink() string { return "v" + strconv.Itoa(int(f)) + "if0" }

// Default is the family's default destination.
func (f Family) Default() netip.Prefix {
	if f == IPv4 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// Owner is one interface of one sandbox, by the CNI specification's identifiers.
type Owner struct{ ContainerID, IfName string }

// HostLinkPrefix starts the host's side of each veth pair of ours. It is not among the prefixes that the network policy
// agent takes for pods.
const HostLinkPrefix = "egr"

// HostLink is the name of the host's side: by sandbox, so that no DEL meets another's.
func (o Owner) HostLink(f Family) string {
	sum := sha256.Sum256([]byte(o.ContainerID + "/" + o.IfName))
	return HostLinkPrefix + strconv.Itoa(int(f)) + hex.EncodeToString(sum[:])[:11]
}

// MarkPrefix starts the ifalias of each host link of ours: "branchline-egress:<container id>/<interface>".
const MarkPrefix = "branchline-egress:"

// maxAlias is IFALIASZ - 1 of the kernel.
const maxAlias = 255

// Mark is the ifalias of the owner's link.
func (o Owner) Mark() string {
	mark := MarkPrefix + o.ContainerID + "/" + o.IfName
	if len(mark) <= maxAlias {
		return mark
	}
	sum := sha256.Sum256([]byte(o.ContainerID))
	return MarkPrefix + "sha256-" + hex.EncodeToString(sum[:]) + "/" + o.IfName
}

// Wiring is everything that one pod gets.
type Wiring struct {
	Owner           Owner
	Family          Family
	Host, Pod       string // links
	HostMAC, PodMAC net.HardwareAddr
	MTU             int
	Address         netip.Addr
	Gateway         netip.Addr // nobody's address; a permanent neighbour entry answers for it
}

// Plan decides what a pod gets. It asks the kernel nothing.
func Plan(c Config, o Owner, address netip.Addr) Wiring {
	w := Wiring{
		Owner: o, Family: c.Family, Host: o.HostLink(c.Family), Pod: c.Family.PodLink(), MTU: c.MTU, Address: address,
		Gateway: c.Subnet.Addr().Next(),
	}
	if c.Family == IPv6 {
		w.Gateway = netip.MustParseAddr("fe80::1")
	}
	w.HostMAC, w.PodMAC = mac(w.Host, "host"), mac(w.Host, "pod")
	return w
}

// mac derives a locally administered address: udev replaces one that the kernel has drawn.
func mac(link, end string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(end + "|" + link))
	a := net.HardwareAddr(sum[:6])
	a[0] = a[0]&^0x01 | 0x02
	return a
}

// Skip says why a pod is left as it is; empty: it isn't.
func Skip(c Config, p Previous, inPod []netip.Addr) string {
	switch {
	case !c.Enabled:
		return "not enabled"
	case p.Branch:
		return "the pod has a branch ENI, its security groups would be passed by"
	}
	for _, a := range append(p.Addresses, inPod...) {
		if FamilyOf(a) == c.Family && a.IsGlobalUnicast() && !c.Subnet.Contains(a) {
			return "the pod has " + a.String() + " already"
		}
	}
	return ""
}

// IsOurs says whether a link by its name is a host's side of this plugin's, of either family.
func IsOurs(name string) bool {
	return (strings.HasPrefix(name, HostLinkPrefix+"4") || strings.HasPrefix(name, HostLinkPrefix+"6")) && len(name) == len(HostLinkPrefix)+1+11
}
