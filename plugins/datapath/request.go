package datapath

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrInvalidRequest is wrapped by what NewPlan says of a request that can't be wired; nothing was touched then.
var ErrInvalidRequest = errors.New("invalid wiring request")

func (r Request) validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrInvalidRequest, fmt.Sprintf(format, args...))
	}
	switch {
	case r.Owner.ContainerID == "" || r.Owner.IfName == "":
		return bad("container id and interface name must be set")
	case r.PodNamespace == "" || r.PodName == "":
		return bad("the pod's namespace and name must be set")
	case r.MTU < 576 || r.MTU > 65535:
		return bad("mtu %d is not within 576 and 65535", r.MTU)
	case !Usable(r.Address):
		return bad("%s is no unicast address for a pod", r.Address)
	case (r.Regular == nil) == (r.Branch == nil):
		return bad("want either a regular or a branch interface")
	}
	if !r.strict() {
		if err := CheckVethPrefix(r.VethPrefix); err != nil {
			return bad("veth prefix: %v", err)
		}
	}
	if r.Branch != nil {
		if len(r.Further) > 0 {
			return bad("a branch pod has one interface, not %d", 1+len(r.Further))
		}
		return r.Branch.validate(r.Address, bad)
	}
	if err := r.Regular.validate(bad); err != nil {
		return err
	}
	return r.validateFurther(bad)
}

func (r Request) validateFurther(bad func(string, ...any) error) error {
	if len(r.Further) == 0 {
		return nil
	}
	if len(r.Further) > MaxFurther {
		return bad("%d interfaces beside the first are more than %d", len(r.Further), MaxFurther)
	}
	if _, taken := FurtherNumber(r.Owner.IfName); taken {
		return bad("%s can't be a pod's first interface beside further ones: they are called so", r.Owner.IfName)
	}
	seen := map[netip.Addr]bool{r.Address: true}
	for i, f := range r.Further {
		switch name := FurtherIfName(i + 1); {
		case !Usable(f.Address) || f.Address.Is6() != r.Address.Is6():
			return bad("%s of %s is no unicast address of the family of the pod's first, %s", f.Address, name, r.Address)
		case seen[f.Address]:
			return bad("%s of %s is another interface's of the pod already", f.Address, name)
		}
		seen[f.Address] = true
		if err := f.validate(bad); err != nil {
			return err
		}
	}
	return nil
}

func (r Request) strict() bool { return r.Branch != nil && r.Branch.Mode == Strict }

func (r Regular) validate(bad func(string, ...any) error) error {
	// 253 and 255 are the kernel's default and local tables; the others that are refused are ours, for pods.
	switch t := r.RouteTable; {
	case t < 0, t == 253, t == 255, t == LocalPodsTable, t == StrictPodsTable, t > VLANTable(0) && t <= VLANTable(MaxVLAN):
		return bad("route table %d can't be an ENI's", t)
	}
	return nil
}

func (b Branch) validate(address netip.Addr, bad func(string, ...any) error) error {
	switch {
	case b.VLAN < 1 || b.VLAN > MaxVLAN:
		return bad("vlan id %d is not within 1 and %d", b.VLAN, MaxVLAN)
	case len(b.MAC) != 6 || b.MAC[0]&1 != 0 || string(b.MAC) == "\x00\x00\x00\x00\x00\x00":
		return bad("%q is no unicast Ethernet address for the branch ENI", b.MAC)
	case b.Mode != Strict && b.Mode != Standard:
		return bad("enforcing mode %d is not known", b.Mode)
	case !validGateway(b.Gateway, address):
		return bad("%s can't be the gateway of a branch ENI with address %s", b.Gateway, address)
	case b.TrunkIfindex < 1:
		return bad("trunk ifindex %d must be positive", b.TrunkIfindex)
	}
	return nil
}

// validGateway wants the subnet's router in IPv4, and a link-local address, as the VPC's is, in IPv6.
func validGateway(gateway, address netip.Addr) bool {
	if address.Is6() {
		return gateway.Is6() && gateway.Zone() == "" && gateway.IsLinkLocalUnicast()
	}
	return gateway.Is4() && Usable(gateway) && gateway != address
}

// Usable says whether an address can be a pod's or an IPv4 subnet's router's.
func Usable(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.Is4In6() && a.Zone() == "" && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// CheckVethPrefix refuses prefixes that would make a link's name too long or that name other kinds of links.
func CheckVethPrefix(prefix string) error {
	// Not a regular expression: compiling one at start costs more than a sandbox's whole plan.
	ok := len(prefix) >= 1 && len(prefix) <= 4
	for _, c := range []byte(prefix) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z')
	}
	switch {
	case !ok:
		return fmt.Errorf("%q is not 1 to 4 letters", prefix)
	case prefix == "eth" || prefix == "vlan" || prefix == "lo":
		return fmt.Errorf("%q is reserved (eth, vlan and lo are)", prefix)
	}
	return nil
}
