package ec2

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/lab/vpc"
)

type vpcState struct {
	id           string
	cidr         netip.Prefix
	cidr6        netip.Prefix // a /56; not valid without IPv6
	defaultGroup string
}

type subnet struct {
	id, vpcID, zone string
	cidr            netip.Prefix
	used            map[netip.Addr]string // address -> ENI
	v6              subnet6
}

type group struct {
	id, vpcID, name, description string
	ingress, egress              []rule
}

type rule struct {
	vpc.Rule
	description string
}

type eni struct {
	id, subnetID, vpcID string
	zone                string
	kind                string // interface, trunk, branch, efa
	created             string // kind at creation: a branch goes back to it
	description         string
	mac                 net.HardwareAddr
	addrs               []netip.Addr // the primary one first
	prefixes            []netip.Prefix
	addrs6              []netip.Addr
	prefixes6           []netip.Prefix
	groups              []string
	sourceDestCheck     bool
	requester           string
	att                 *attachment
	assoc               *association // this is a branch ENI
}

type attachment struct {
	id, instanceID      string
	device, card        int
	status              string // attaching, attached, detaching
	at, visibleAt       time.Time
	deleteOnTermination bool
}

type association struct {
	id, trunkID string
	vlan        int
}

type permission struct {
	id, eniID, account, kind string
}

type instance struct {
	id, reservation, imageID, keyName string
	typ                               aws.InstanceType
	state                             string // pending, running, shutting-down, terminated
	reason                            string
	subnetID, vpcID, zone             string
	profile                           string
	userData                          []byte
	hopLimit                          int
	launched                          time.Time
	token                             string
	privateIP                         netip.Addr    // kept for descriptions after the end
	tail                              chan struct{} // closed when the last driver step is done
}

// status as DescribeNetworkInterfaces shows it.
func (e *eni) status() string {
	switch {
	case e.att != nil && e.att.status == "attached":
		return "in-use"
	case e.att != nil:
		return e.att.status
	case e.assoc != nil:
		return "in-use"
	}
	return "available"
}

func (r *Region) id(prefix string) string {
	for {
		id := fmt.Sprintf("%s-0%016x", prefix, r.random.Uint64())
		if !r.used[id] {
			r.used[id] = true
			return id
		}
	}
}

func (r *Region) newMAC() net.HardwareAddr {
	for {
		n := r.random.Uint64()
		mac := net.HardwareAddr{0x06, byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24), byte(n >> 32)}
		if !r.used[mac.String()] {
			r.used[mac.String()] = true
			return mac
		}
	}
}

// sortedBy gives a map's values in the order of their keys: answers and topologies are the same for the same state.
func sortedValues[V any](m map[string]V) []V {
	out := make([]V, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[k])
	}
	return out
}

// attached lists an instance's ENIs by card and device.
func (r *Region) attached(instanceID string) []*eni {
	var out []*eni
	for _, e := range r.enis {
		if e.att != nil && e.att.instanceID == instanceID {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *eni) int {
		return cmp.Or(a.att.card-b.att.card, a.att.device-b.att.device, strings.Compare(a.id, b.id))
	})
	return out
}

func (r *Region) branches(trunkID string) []*eni {
	var out []*eni
	for _, e := range r.enis {
		if e.assoc != nil && e.assoc.trunkID == trunkID {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *eni) int { return a.assoc.vlan - b.assoc.vlan })
	return out
}

// reserved are the addresses of a subnet that AWS keeps: the first four and the last.
const reservedAddresses = 5

func (s *subnet) size() int { return 1 << (32 - s.cidr.Bits()) }

func (s *subnet) free() int { return s.size() - reservedAddresses - len(s.used) }

func (s *subnet) assignable(a netip.Addr) bool {
	if !s.cidr.Contains(a) {
		return false
	}
	n := offset(s.cidr, a)
	return n >= 4 && n < s.size()-1
}

func offset(p netip.Prefix, a netip.Addr) int {
	return int(addrBits(a) - addrBits(p.Masked().Addr()))
}

func addrBits(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func addrAt(p netip.Prefix, n int) netip.Addr {
	v := addrBits(p.Masked().Addr()) + uint32(n)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// take gives n free addresses to an ENI: the lowest ones, so an address is used again as early as it can be. That is
// the hardest case for whoever still remembers its last owner.
func (s *subnet) take(eniID string, n int) ([]netip.Addr, error) {
	if s.free() < n {
		return nil, errf("InsufficientFreeAddressesInSubnet",
			"There are not enough free addresses in subnet '%s' to satisfy the requested number of addresses.", s.id)
	}
	var out []netip.Addr
	for i := 4; len(out) < n; i++ {
		if a := addrAt(s.cidr, i); s.used[a] == "" {
			s.used[a] = eniID
			out = append(out, a)
		}
	}
	return out, nil
}

// claim gives one certain address to an ENI.
func (s *subnet) claim(eniID string, a netip.Addr) error {
	if !s.assignable(a) {
		return errf("InvalidParameterValue", "Address %s is not within the range that can be assigned in subnet %s (%s).", a, s.id, s.cidr)
	}
	if s.used[a] != "" {
		return errf("InvalidIPAddress.InUse", "The specified address %s is already in use.", a)
	}
	s.used[a] = eniID
	return nil
}

func (s *subnet) release(a netip.Addr) { delete(s.used, a) }

// prefixSize is how many addresses an IPv4 prefix of an ENI has: it is a /28.
const prefixSize = 16

// takePrefixes gives n free, aligned prefixes to an ENI, the lowest ones. An address in use, or one that AWS keeps, makes
// the whole block unusable.
func (s *subnet) takePrefixes(eniID string, n int) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for at := 0; len(out) < n && at+prefixSize <= s.size(); at += prefixSize {
		free := true
		for i := range prefixSize {
			a := addrAt(s.cidr, at+i)
			free = free && s.assignable(a) && s.used[a] == ""
		}
		if free {
			out = append(out, netip.PrefixFrom(addrAt(s.cidr, at), 28))
		}
	}
	if len(out) < n {
		return nil, errf("InsufficientCidrBlocks", "The specified subnet does not have enough free cidr blocks to satisfy the request.")
	}
	for _, p := range out {
		for i := range prefixSize {
			s.used[addrAt(p, i)] = eniID
		}
	}
	return out, nil
}

func (s *subnet) releasePrefix(p netip.Prefix) {
	for i := range prefixSize {
		s.release(addrAt(p, i))
	}
}

// reach is every address by which the ENI can be reached, but for those of IPv6 prefixes.
func (e *eni) reach() []netip.Addr {
	out := slices.Clone(e.addrs)
	for _, p := range e.prefixes {
		for i := range prefixSize {
			out = append(out, addrAt(p, i))
		}
	}
	return append(out, e.addrs6...)
}

func hostname(a netip.Addr, region string) string {
	return "ip-" + strings.ReplaceAll(a.String(), ".", "-") + "." + region + ".compute.internal"
}

func (r *Region) arn(kind, id string) string {
	return "arn:aws:ec2:" + r.cfg.Region + ":" + r.cfg.AccountID + ":" + kind + "/" + id
}
