package ec2

import (
	"net/netip"
	"slices"

	"github.com/branchline-cni/branchline/lab/vpc"
)

func (r *Region) newGroup(vpcID, name, description string) *group {
	g := &group{id: r.id("sg"), vpcID: vpcID, name: name, description: description}
	everywhere := netip.MustParsePrefix("0.0.0.0/0")
	g.egress = []rule{{Rule: vpc.Rule{ID: r.id("sgr"), Protocol: -1, FromPort: -1, ToPort: -1, CIDR: everywhere}}}
	if r.vpcs[vpcID].cidr6.IsValid() {
		g.egress = append(g.egress, rule{Rule: vpc.Rule{ID: r.id("sgr"), Protocol: -1, FromPort: -1, ToPort: -1, CIDR: netip.MustParsePrefix("::/0")}})
	}
	r.groups[g.id] = g
	return g
}

func createSecurityGroup(c *call) ([]element, error) {
	name, err := c.p.need("GroupName")
	if err != nil {
		return nil, err
	}
	description, err := c.p.need("GroupDescription")
	if err != nil {
		return nil, err
	}
	vpcID, err := c.p.need("VpcId")
	if err != nil {
		return nil, err
	}
	if c.vpcs[vpcID] == nil {
		return nil, notFound("InvalidVpcID.NotFound", "vpc", vpcID)
	}
	if len(name) >= 3 && name[:3] == "sg-" || name == "default" {
		return nil, errf("InvalidParameterValue", "Invalid group name '%s': it is reserved or starts with sg-", name)
	}
	for _, g := range c.groups {
		if g.vpcID == vpcID && g.name == name {
			return nil, errf("InvalidGroup.Duplicate", "The security group '%s' already exists for VPC '%s'", name, vpcID)
		}
	}
	tags, err := c.specified("security-group")
	if err != nil {
		return nil, err
	}
	g := c.newGroup(vpcID, name, description)
	c.setTags(g.id, tags["security-group"])
	return []element{flag("return", true), str("groupId", g.id), c.tagSet(g.id)}, nil
}

func (c *call) group() (*group, error) {
	id, err := c.p.need("GroupId")
	if err != nil {
		return nil, err
	}
	g := c.groups[id]
	if g == nil {
		return nil, errf("InvalidGroup.NotFound", "The security group '%s' does not exist", id)
	}
	return g, nil
}

func deleteSecurityGroup(c *call) ([]element, error) {
	g, err := c.group()
	if err != nil {
		return nil, err
	}
	if c.vpcs[g.vpcID].defaultGroup == g.id {
		return nil, errf("CannotDelete", "the specified group: \"%s\" name: \"default\" cannot be deleted by a user", g.id)
	}
	dependent := func() bool {
		for _, e := range c.enis {
			if slices.Contains(e.groups, g.id) {
				return true
			}
		}
		for _, o := range c.groups {
			if o != g && slices.ContainsFunc(slices.Concat(o.ingress, o.egress), func(x rule) bool { return x.Group == g.id }) {
				return true
			}
		}
		return false
	}
	if dependent() {
		return nil, errf("DependencyViolation", "resource %s has a dependent object", g.id)
	}
	for _, x := range slices.Concat(g.ingress, g.egress) {
		delete(c.tags, x.ID)
	}
	delete(c.groups, g.id)
	delete(c.tags, g.id)
	return []element{flag("return", true), str("groupId", g.id)}, nil
}

func describeSecurityGroups(c *call) ([]element, error) {
	page, next, err := selectPage(c, c.groups, describable[*group]{
		idParam: "GroupId", pageMin: 5,
		notFound: func(id string) error {
			return errf("InvalidGroup.NotFound", "The security group '%s' does not exist", id)
		},
		attributes: func(g *group) attributes {
			return c.tagged(g.id, attributes{"group-id": {g.id}, "group-name": {g.name}, "vpc-id": {g.vpcID}, "description": {g.description},
				"owner-id": {c.cfg.AccountID}})
		},
	})
	if err != nil {
		return nil, err
	}
	if names := c.p.strs("GroupName"); len(names) > 0 {
		page = slices.DeleteFunc(page, func(g *group) bool { return !slices.Contains(names, g.name) })
	}
	return join([]element{list("securityGroupInfo", page, func(g *group) []element {
		return []element{
			str("ownerId", c.cfg.AccountID), str("groupId", g.id), str("groupName", g.name), str("groupDescription", g.description),
			str("vpcId", g.vpcID), str("securityGroupArn", c.arn("security-group", g.id)),
			list("ipPermissions", permissions(g.ingress), c.permissionElements),
			list("ipPermissionsEgress", permissions(g.egress), c.permissionElements), c.tagSet(g.id),
		}
	})}, optional("nextToken", next)), nil
}

// ipPermission is a set of rules that differ only in their peers, as EC2 shows them.
type ipPermission struct {
	protocol, from, to int
	rules              []rule
}

func permissions(rules []rule) []ipPermission {
	var out []ipPermission
	for _, x := range rules {
		i := slices.IndexFunc(out, func(p ipPermission) bool {
			return p.protocol == x.Protocol && p.from == x.FromPort && p.to == x.ToPort
		})
		if i < 0 {
			out = append(out, ipPermission{x.Protocol, x.FromPort, x.ToPort, nil})
			i = len(out) - 1
		}
		out[i].rules = append(out[i].rules, x)
	}
	return out
}

func (c *call) permissionElements(p ipPermission) []element {
	var v4, v6, groups []rule
	for _, x := range p.rules {
		switch {
		case x.Group != "":
			groups = append(groups, x)
		case x.CIDR.Addr().Is4():
			v4 = append(v4, x)
		default:
			v6 = append(v6, x)
		}
	}
	var ports []element
	if p.protocol != -1 {
		ports = []element{num("fromPort", p.from), num("toPort", p.to)}
	}
	return join([]element{str("ipProtocol", protocolName(p.protocol))}, ports, []element{
		list("groups", groups, func(x rule) []element {
			return join([]element{str("userId", c.cfg.AccountID), str("groupId", x.Group)}, optional("description", x.description))
		}),
		list("ipRanges", v4, func(x rule) []element {
			return join([]element{str("cidrIp", x.CIDR.String())}, optional("description", x.description))
		}),
		list("ipv6Ranges", v6, func(x rule) []element {
			return join([]element{str("cidrIpv6", x.CIDR.String())}, optional("description", x.description))
		}),
		el("prefixListIds"),
	})
}
