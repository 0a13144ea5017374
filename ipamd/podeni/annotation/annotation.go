// Package annotation reads the pod annotation vpc.amazonaws.com/pod-eni, in which the control plane says which branch
// ENI a pod has. It checks every field that wiring depends on; what it can't vouch for is an error that names the field.
package annotation

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// Key is the annotation's key, and the name of the extended resource that branch pods request.
const Key = "vpc.amazonaws.com/pod-eni"

// maxVLAN is what an 802.1Q tag can carry. The controller gives 1 to 120; that is its business.
const maxVLAN = 4094

// BranchENI is element 0 of the annotation, checked.
type BranchENI struct {
	ENIID      string
	MAC        net.HardwareAddr
	Address    netip.Addr   // of the family that was asked for
	VLAN       int          // 1 to 4094
	SubnetCIDR netip.Prefix // of the same family, masked. IPv4: contains Address. IPv6: may be zero
	// Doubt is what is odd about an IPv6 subnet, for the log.
	Doubt string
}

// Gateway is the subnet's router as a pod with this address has it: the subnet's base address + 1, or in IPv6 the
// link-local address that the VPC's routers have on every branch ENI.
func Gateway(address netip.Addr, subnet netip.Prefix) netip.Addr {
	if address.Is6() {
		return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 2: 0x0e, 3: 0xc2, 15: 1})
	}
	return subnet.Masked().Addr().Next()
}

// FieldError says which field of the annotation is wrong, and how. Field is empty where the whole is.
type FieldError struct {
	Field string
	Err   error
}

func (e *FieldError) Error() string {
	if e.Field == "" {
		return "annotation " + Key + ": " + e.Err.Error()
	}
	return fmt.Sprintf("annotation %s: %s: %v", Key, e.Field, e.Err)
}

func (e *FieldError) Unwrap() error { return e.Err }

type entry struct {
	ENIID      string `json:"eniId"`
	MAC        string `json:"ifAddress"`
	IPv4       string `json:"privateIp"`
	IPv6       string `json:"ipv6Addr"`
	VLAN       int    `json:"vlanId"`
	SubnetCIDR string `json:"subnetCidr"`
	SubnetIPv6 string `json:"subnetV6Cidr"`
}

// Parse reads the annotation of a pod in an IPv4 or IPv6 cluster. Fields that are not known, or are the other family's,
// are ignored. The error is a *FieldError.
func Parse(value string, ipv6 bool) (BranchENI, error) {
	var entries []entry
	if err := json.Unmarshal([]byte(value), &entries); err != nil {
		var typeErr *json.UnmarshalTypeError
		if errors.As(err, &typeErr) && typeErr.Field != "" {
			return BranchENI{}, &FieldError{typeErr.Field, fmt.Errorf("a JSON %s is not a %s", typeErr.Value, typeErr.Type)}
		}
		return BranchENI{}, &FieldError{"", fmt.Errorf("not a JSON array of branch ENIs: %w", err)}
	}
	if len(entries) == 0 {
		return BranchENI{}, &FieldError{"", errors.New("the array is empty")}
	}
	return entries[0].check(ipv6)
}

func (e entry) check(ipv6 bool) (b BranchENI, err error) {
	b.ENIID, b.VLAN = e.ENIID, e.VLAN
	if e.ENIID == "" {
		return b, &FieldError{"eniId", errors.New("missing")}
	}
	if e.VLAN < 1 || e.VLAN > maxVLAN {
		return b, &FieldError{"vlanId", fmt.Errorf("%d is not a VLAN id (1 to %d)", e.VLAN, maxVLAN)}
	}
	b.MAC, err = net.ParseMAC(e.MAC)
	if err != nil || len(b.MAC) != 6 || b.MAC[0]&1 != 0 || b.MAC.String() == "00:00:00:00:00:00" {
		return b, &FieldError{"ifAddress", fmt.Errorf("%q is not the MAC address of an interface", e.MAC)}
	}
	if ipv6 {
		return e.checkIPv6(b)
	}
	b.SubnetCIDR, err = netip.ParsePrefix(e.SubnetCIDR)
	if err != nil || !b.SubnetCIDR.Addr().Is4() || b.SubnetCIDR.Bits() > 30 || b.SubnetCIDR.Bits() == 0 {
		return b, &FieldError{"subnetCidr", fmt.Errorf("%q is not the IPv4 CIDR of a subnet", e.SubnetCIDR)}
	}
	b.SubnetCIDR = b.SubnetCIDR.Masked()
	if e.IPv4 == "" {
		return b, &FieldError{"privateIp", errors.New("missing, and this is an IPv4 cluster")}
	}
	b.Address, err = netip.ParseAddr(e.IPv4)
	if err != nil || !b.Address.Is4() {
		return b, &FieldError{"privateIp", fmt.Errorf("%q is not an IPv4 address", e.IPv4)}
	}
	if !b.SubnetCIDR.Contains(b.Address) {
		return b, &FieldError{"privateIp", fmt.Errorf("%s is not in the subnet %s", b.Address, b.SubnetCIDR)}
	}
	if b.Address == Gateway(b.Address, b.SubnetCIDR) || b.Address == b.SubnetCIDR.Addr() {
		return b, &FieldError{"privateIp", fmt.Errorf("%s is the subnet's own or its router's address", b.Address)}
	}
	return b, nil
}

// checkIPv6 wants the address and only doubts its subnet, which wiring does without.
func (e entry) checkIPv6(b BranchENI) (_ BranchENI, err error) {
	if e.IPv6 == "" {
		return b, &FieldError{"ipv6Addr", errors.New("missing, and this is an IPv6 cluster")}
	}
	b.Address, err = netip.ParseAddr(e.IPv6)
	if err != nil || !b.Address.Is6() || b.Address.Is4In6() || b.Address.Zone() != "" || !b.Address.IsGlobalUnicast() {
		return b, &FieldError{"ipv6Addr", fmt.Errorf("%q is not an IPv6 unicast address", e.IPv6)}
	}
	if e.SubnetIPv6 == "" {
		return b, nil
	}
	subnet, err := netip.ParsePrefix(e.SubnetIPv6)
	if err != nil || !subnet.Addr().Is6() {
		return b, &FieldError{"subnetV6Cidr", fmt.Errorf("%q is not the IPv6 CIDR of a subnet", e.SubnetIPv6)}
	}
	b.SubnetCIDR = subnet.Masked()
	if !b.SubnetCIDR.Contains(b.Address) {
		b.Doubt = fmt.Sprintf("ipv6Addr %s is not in the subnet %s", b.Address, b.SubnetCIDR)
	}
	return b, nil
}
