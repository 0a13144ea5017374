package eni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/rpc"
)

// wiring is a checked answer of the agent.
type wiring struct {
	plan    datapath.Plan
	address netip.Addr
	eni     string
	vlan    int
}

// planReply turns the agent's answer into a plan. Nothing of the answer is trusted: a wrong VLAN id or address would
// wire the pod with another pod's security groups.
func planReply(c Config, p podArgs, owner datapath.Owner, reply *rpc.AddReply) (wiring, error) {
	r := datapath.Request{Owner: owner, PodNamespace: p.Namespace, PodName: p.Name, VethPrefix: c.VethPrefix, MTU: c.MTU, DisableIPv6: c.DisablePodIPv6}
	var w wiring
	var err error
	switch {
	case reply.GetRegular() != nil:
		g := reply.GetRegular()
		w.eni = g.GetEniId()
		r.Regular = &datapath.Regular{RouteTable: int(g.GetRouteTable())}
		if r.Address, err = parseAddress("address", g.GetAddress()); err == nil {
			r.Further, err = parseFurther(g, reply.GetFurther())
		}
	case reply.GetBranch() != nil:
		b := reply.GetBranch()
		w.eni, w.vlan = b.GetEniId(), int(b.GetVlanId())
		if r.Branch, r.Address, err = parseBranch(b); err == nil && len(reply.GetFurther()) > 0 {
			err = errors.New("a branch pod has no interfaces on further network cards")
		}
	default:
		err = fmt.Errorf("neither a regular nor a branch interface is in it (agent version %q, ours %q)", reply.GetVersion(), rpc.Version)
	}
	if err == nil {
		w.address = r.Address
		w.plan, err = datapath.NewPlan(r)
	}
	if err != nil {
		return wiring{}, badReply{err}
	}
	return w, nil
}

// parseFurther reads the interfaces on further network cards, each of a card beyond the one before.
func parseFurther(first *rpc.RegularInterface, list []*rpc.RegularInterface) ([]datapath.Further, error) {
	var out []datapath.Further
	card := first.GetNetworkCard()
	for i, g := range list {
		if g.GetNetworkCard() <= card {
			return nil, fmt.Errorf("further interface %d is on network card %d, which is not beyond %d, that of the one before", i+1, g.GetNetworkCard(), card)
		}
		card = g.GetNetworkCard()
		a, err := parseAddress(fmt.Sprintf("address of further interface %d", i+1), g.GetAddress())
		if err != nil {
			return nil, err
		}
		out = append(out, datapath.Further{Address: a, Regular: datapath.Regular{RouteTable: int(g.GetRouteTable())}})
	}
	return out, nil
}

func parseBranch(b *rpc.BranchInterface) (*datapath.Branch, netip.Addr, error) {
	fail := func(err error) (*datapath.Branch, netip.Addr, error) { return nil, netip.Addr{}, err }
	address, err := parseAddress("address", b.GetAddress())
	if err != nil {
		return fail(err)
	}
	gateway, err := netip.ParseAddr(b.GetGateway())
	if err != nil {
		return fail(fmt.Errorf("gateway %q is not an address", b.GetGateway()))
	}
	if err := checkSubnet(b.GetSubnetCidr(), address, gateway); err != nil {
		return fail(err)
	}
	mac, err := net.ParseMAC(b.GetMac())
	if err != nil {
		return fail(fmt.Errorf("mac %q is not an Ethernet address", b.GetMac()))
	}
	mode, ok := map[rpc.EnforcingMode]datapath.Mode{
		rpc.EnforcingMode_ENFORCING_MODE_STRICT: datapath.Strict, rpc.EnforcingMode_ENFORCING_MODE_STANDARD: datapath.Standard,
	}[b.GetEnforcingMode()]
	if !ok {
		return fail(fmt.Errorf("enforcing_mode %d is not known", b.GetEnforcingMode()))
	}
	return &datapath.Branch{
		VLAN: int(b.GetVlanId()), MAC: mac, Gateway: gateway, TrunkIfindex: int(b.GetTrunkIfindex()), Mode: mode,
	}, address, nil
}

// checkSubnet holds the address to its subnet, which an IPv6 branch ENI's annotation may leave out. There the router has
// a link-local address.
func checkSubnet(cidr string, address, gateway netip.Addr) error {
	if cidr == "" && address.Is6() {
		return nil
	}
	subnet, err := netip.ParsePrefix(cidr)
	if err != nil || subnet.Addr().Is6() != address.Is6() || subnet != subnet.Masked() {
		return fmt.Errorf("subnet_cidr %q is not a network of the family of address %s", cidr, address)
	}
	if !subnet.Contains(address) {
		return fmt.Errorf("address %s is not in the branch ENI's subnet %s", address, subnet)
	}
	if address.Is4() && !subnet.Contains(gateway) {
		return fmt.Errorf("gateway %s is not in the branch ENI's subnet %s", gateway, subnet)
	}
	return nil
}

func parseAddress(field, text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil || !datapath.Usable(a) {
		return netip.Addr{}, fmt.Errorf("%s %q is not a unicast address", field, text)
	}
	return a, nil
}
