package datapath

import (
	"context"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
)

// Recall makes the request that a wired sandbox must have had, from its marks and links, for when the node agent can't be
// asked. hostVeths are the names that its host veth may have. What only the agent knows is taken as it is in the kernel:
// the trunk, the branch ENI's MAC and its subnet's gateway. Regular.RouteTable stays 0: it is not known.
//
// The error is a *Difference where the sandbox is not wired at all.
func Recall(ctx context.Context, r Request, hostVeths []string) (Request, error) {
	v, err := openVerifier(ctx, -1)
	if err != nil {
		return r, err
	}
	defer v.close()
	var mark Mark
	var hostVeth string
	for _, name := range hostVeths {
		l, err := v.link(Host, name)
		if err != nil {
			return r, fmt.Errorf("look at link %s: %w", name, err)
		}
		if l == nil {
			continue
		}
		if m, err := ParseMark(l.Attrs().Alias); err == nil && m.Is(r.Owner) {
			mark, hostVeth = m, name
			break
		}
	}
	if mark.ContainerID == "" {
		return r, &Difference{"host veth " + strings.Join(hostVeths, " or ") + " with the sandbox's mark", missing}
	}
	r.Address = mark.Address
	if mark.VLAN == 0 {
		r.Regular = &Regular{}
		r.Further, err = v.recallFurther(r, mark, hostVeth)
		return r, err
	}
	name := VLANLinkName(mark.VLAN)
	what := "VLAN link " + name + " of the sandbox"
	l, err := v.link(Host, name)
	if err != nil {
		return r, fmt.Errorf("look at link %s: %w", name, err)
	}
	if l == nil {
		return r, &Difference{what, missing}
	}
	vlan, ok := l.(*netlink.Vlan)
	if !ok {
		return r, &Difference{what, "is a " + l.Type()}
	}
	gateway, err := v.gatewayOf(VLANTable(mark.VLAN), vlan.Index, mark.Address)
	if err != nil {
		return r, fmt.Errorf("list the routes of table %d: %w", VLANTable(mark.VLAN), err)
	}
	if !gateway.IsValid() {
		return r, &Difference{fmt.Sprintf("route default dev %s table %d (host)", name, VLANTable(mark.VLAN)), missing}
	}
	r.Branch = &Branch{VLAN: mark.VLAN, MAC: vlan.HardwareAddr, Gateway: gateway, TrunkIfindex: vlan.ParentIndex, Mode: mark.Mode}
	return r, nil
}
