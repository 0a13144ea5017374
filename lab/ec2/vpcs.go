package ec2

import (
	"net/netip"
	"slices"

	"github.com/branchline-cni/branchline/lab/vpc"
)

func (p *params) block(name string, min, max int) (netip.Prefix, error) {
	v, err := p.need(name)
	if err != nil {
		return netip.Prefix{}, err
	}
	b, perr := netip.ParsePrefix(v)
	if perr != nil || !b.Addr().Is4() {
		return b, errf("InvalidParameterValue", "Value (%s) for parameter cidrBlock is invalid. This is not a valid CIDR block.", v)
	}
	if b.Bits() < min || b.Bits() > max {
		return b, errf("InvalidVpc.Range", "The CIDR '%s' is invalid: its prefix has to be between /%d and /%d.", v, min, max)
	}
	return b.Masked(), nil
}

func createVpc(c *call) ([]element, error) {
	cidr, err := c.p.block("CidrBlock", 16, 28)
	if err != nil {
		return nil, err
	}
	for _, o := range c.vpcs {
		// On AWS they may overlap; one data plane carries all of them here.
		if o.cidr.Overlaps(cidr) {
			return nil, errf("InvalidVpc.Conflict", "The CIDR '%s' overlaps that of %s, which this lab does not support.", cidr, o.id)
		}
	}
	tags, err := c.specified("vpc")
	if err != nil {
		return nil, err
	}
	v := &vpcState{id: c.id("vpc"), cidr: cidr}
	if v6, err := c.p.bool("AmazonProvidedIpv6CidrBlock", false); err != nil {
		return nil, err
	} else if v6 {
		v.cidr6 = c.nextVPC6()
	}
	c.vpcs[v.id] = v
	c.setTags(v.id, tags["vpc"])
	g := c.newGroup(v.id, "default", "default VPC security group")
	g.ingress = []rule{{Rule: vpc.Rule{ID: c.id("sgr"), Protocol: -1, FromPort: -1, ToPort: -1, Group: g.id}}}
	v.defaultGroup = g.id
	return []element{el("vpc", c.vpcElements(v)...)}, nil
}

func (c *call) vpcElements(v *vpcState) []element {
	return []element{
		str("vpcId", v.id), str("state", "available"), str("cidrBlock", v.cidr.String()),
		list("cidrBlockAssociationSet", []string{v.cidr.String()}, func(s string) []element {
			return []element{str("cidrBlock", s), str("associationId", "vpc-cidr-assoc"+v.id[3:]), el("cidrBlockState", str("state", "associated"))}
		}),
		associated6("vpc", v.id, v.cidr6),
		str("dhcpOptionsId", "dopt"+v.id[3:]), str("instanceTenancy", "default"), flag("isDefault", false),
		str("ownerId", c.cfg.AccountID), c.tagSet(v.id),
	}
}

func describeVpcs(c *call) ([]element, error) {
	page, next, err := selectPage(c, c.vpcs, describable[*vpcState]{
		idParam: "VpcId", pageMin: 5,
		notFound: func(id string) error { return notFound("InvalidVpcID.NotFound", "vpc", id) },
		attributes: func(v *vpcState) attributes {
			return c.tagged(v.id, attributes{"vpc-id": {v.id}, "cidr": {v.cidr.String()}, "cidr-block-association.cidr-block": {v.cidr.String()},
				"state": {"available"}, "owner-id": {c.cfg.AccountID}, "is-default": {"false"}})
		},
	})
	if err != nil {
		return nil, err
	}
	return join([]element{list("vpcSet", page, c.vpcElements)}, optional("nextToken", next)), nil
}

func createSubnet(c *call) ([]element, error) {
	vpcID, err := c.p.need("VpcId")
	if err != nil {
		return nil, err
	}
	v := c.vpcs[vpcID]
	if v == nil {
		return nil, notFound("InvalidVpcID.NotFound", "vpc", vpcID)
	}
	cidr, err := c.p.block("CidrBlock", 16, 28)
	if err != nil {
		return nil, err
	}
	if !v.cidr.Contains(cidr.Addr()) || cidr.Bits() < v.cidr.Bits() {
		return nil, errf("InvalidSubnet.Range", "The CIDR '%s' is invalid.", cidr)
	}
	for _, s := range c.subnets {
		if s.cidr.Overlaps(cidr) {
			return nil, errf("InvalidSubnet.Conflict", "The CIDR '%s' conflicts with another subnet", cidr)
		}
	}
	cidr6, err := c.subnet6(v)
	if err != nil {
		return nil, err
	}
	zone := c.p.str("AvailabilityZone")
	if zone == "" {
		zone = c.cfg.Region + "a"
	}
	if len(zone) != len(c.cfg.Region)+1 || zone[:len(c.cfg.Region)] != c.cfg.Region {
		return nil, errf("InvalidParameterValue", "Value (%s) for parameter availabilityZone is invalid.", zone)
	}
	tags, err := c.specified("subnet")
	if err != nil {
		return nil, err
	}
	s := &subnet{id: c.id("subnet"), vpcID: v.id, zone: zone, cidr: cidr, used: make(map[netip.Addr]string), v6: newSubnet6(cidr6)}
	c.subnets[s.id] = s
	c.setTags(s.id, tags["subnet"])
	return []element{el("subnet", c.subnetElements(s)...)}, nil
}

func (c *call) subnetElements(s *subnet) []element {
	return []element{
		str("subnetId", s.id), str("subnetArn", c.arn("subnet", s.id)), str("state", "available"), str("vpcId", s.vpcID),
		str("cidrBlock", s.cidr.String()), num("availableIpAddressCount", s.free()), str("availabilityZone", s.zone),
		str("availabilityZoneId", zoneID(s.zone)), flag("defaultForAz", false), flag("mapPublicIpOnLaunch", false),
		flag("assignIpv6AddressOnCreation", s.v6.onCreation), associated6("subnet", s.id, s.v6.cidr), str("ownerId", c.cfg.AccountID), c.tagSet(s.id),
	}
}

// zoneID is AWS's account-independent name, for example usw2-az1.
func zoneID(zone string) string {
	n := int(zone[len(zone)-1]-'a') + 1
	return "lab-az" + string(rune('0'+n%10))
}

func (c *call) subnet(id string) (*subnet, error) {
	if s := c.subnets[id]; s != nil {
		return s, nil
	}
	return nil, notFound("InvalidSubnetID.NotFound", "subnet", id)
}

func describeSubnets(c *call) ([]element, error) {
	page, next, err := selectPage(c, c.subnets, describable[*subnet]{
		idParam: "SubnetId", pageMin: 5,
		notFound: func(id string) error { return notFound("InvalidSubnetID.NotFound", "subnet", id) },
		attributes: func(s *subnet) attributes {
			return c.tagged(s.id, attributes{"subnet-id": {s.id}, "vpc-id": {s.vpcID}, "cidr-block": {s.cidr.String()}, "cidr": {s.cidr.String()},
				"cidrBlock": {s.cidr.String()}, "availability-zone": {s.zone}, "availabilityZone": {s.zone}, "state": {"available"},
				"owner-id": {c.cfg.AccountID}})
		},
	})
	if err != nil {
		return nil, err
	}
	return join([]element{list("subnetSet", page, c.subnetElements)}, optional("nextToken", next)), nil
}

// checkGroups refuses groups that don't exist, are of another VPC, or too many for an ENI.
func (c *call) checkGroups(ids []string, vpcID string) error {
	var seen []string
	for _, id := range ids {
		g := c.groups[id]
		if g == nil {
			return errf("InvalidGroup.NotFound", "The security group '%s' does not exist", id)
		}
		if g.vpcID != vpcID {
			return errf("InvalidParameter", "Security group %s and subnet belong to different networks.", id)
		}
		if slices.Contains(seen, id) {
			return errf("InvalidParameterValue", "Security group %s is given twice", id)
		}
		seen = append(seen, id)
	}
	if limit := c.cfg.Limits.GroupsPerInterface; limit > 0 && len(ids) > limit {
		return errf("SecurityGroupsPerInterfaceLimitExceeded", "You have exceeded the maximum number of security groups allowed per network interface (%d).", limit)
	}
	return nil
}
