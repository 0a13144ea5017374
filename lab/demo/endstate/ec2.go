package endstate

import (
	"fmt"
	"slices"
	"strings"
)

func (s *state) instanceLines() (lines []string) {
	for _, i := range s.instances {
		lines = append(lines, fields(i.name(), i.InstanceType, i.State.Name))
	}
	return lines
}

func (s *state) interfaceLines(n names) (lines []string) {
	for _, e := range s.netifs {
		attachment := "not attached"
		if e.Attachment != nil {
			attachment = fmt.Sprintf("%s index %d", e.Attachment.Status, e.Attachment.DeviceIndex)
		}
		var groups, tags []string
		for _, g := range e.Groups {
			groups = append(groups, g.GroupName)
		}
		for _, t := range e.TagSet { // values have ids and times in them
			tags = append(tags, t.Key)
		}
		slices.Sort(groups)
		slices.Sort(tags)
		lines = append(lines, fields(n.of(e.NetworkInterfaceID), e.InterfaceType, e.Status, attachment,
			fmt.Sprintf("%q", n.in(e.Description)), fmt.Sprintf("addresses=%d", len(e.PrivateIPAddresses)),
			"groups="+strings.Join(groups, ","), "tags="+strings.Join(tags, ",")))
	}
	return lines
}

func (s *state) associationLines(n names) (lines []string) {
	for _, a := range s.associations {
		lines = append(lines, fields(n.of(a.TrunkInterfaceID), fmt.Sprintf("vlan %d", a.VlanID), n.of(a.BranchInterfaceID)))
	}
	return lines
}

func (s *state) permissionLines(n names) (lines []string) {
	for _, p := range s.permissions {
		lines = append(lines, fields(n.of(p.NetworkInterfaceID), p.Permission, p.PermissionState.State))
	}
	return lines
}

func (s *state) groupLines(n names) (lines []string) {
	for _, g := range s.groups {
		lines = append(lines, n.of(g.GroupID))
	}
	for _, r := range s.rules {
		direction, peer := "from", n.in(r.CIDRIPv4)
		if r.IsEgress {
			direction = "to"
		}
		if r.ReferencedGroupInfo != nil {
			peer = n.of(r.ReferencedGroupInfo.GroupID)
		}
		lines = append(lines, fields(n.of(r.GroupID), direction, peer, fmt.Sprintf("protocol %s ports %d-%d", r.IPProtocol, r.FromPort, r.ToPort)))
	}
	return lines
}
