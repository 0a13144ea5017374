package ec2

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/branchline-cni/branchline/lab/vpc"
)

var protocols = map[string]int{"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "-1": -1, "all": -1}

func protocolName(n int) string {
	for _, name := range []string{"tcp", "udp", "icmp", "icmpv6"} {
		if protocols[name] == n {
			return name
		}
	}
	return strconv.Itoa(n)
}

// maxRules is AWS's default quota of rules per direction of a group.
const maxRules = 60

func authorizeIngress(c *call) ([]element, error) { return c.authoriseRules(false) }
func authorizeEgress(c *call) ([]element, error)  { return c.authoriseRules(true) }
func revokeIngress(c *call) ([]element, error)    { return c.revokeRules(false) }
func revokeEgress(c *call) ([]element, error)     { return c.revokeRules(true) }

func (g *group) direction(egress bool) *[]rule {
	if egress {
		return &g.egress
	}
	return &g.ingress
}

// sameRule compares what identifies a rule: neither its id nor its description.
func sameRule(a, b rule) bool {
	a.ID, b.ID = "", ""
	return a.Rule == b.Rule
}

func (c *call) authoriseRules(egress bool) ([]element, error) {
	g, err := c.group()
	if err != nil {
		return nil, err
	}
	add, err := c.parseRules(g)
	if err != nil {
		return nil, err
	}
	if len(add) == 0 {
		return nil, missing("ipPermissions")
	}
	tags, err := c.specified("security-group-rule")
	if err != nil {
		return nil, err
	}
	have := g.direction(egress)
	for i, x := range add {
		same := func(o rule) bool { return sameRule(o, x) }
		if slices.ContainsFunc(*have, same) || slices.ContainsFunc(add[:i], same) {
			return nil, errf("InvalidPermission.Duplicate", "the specified rule \"%s\" already exists", x.text())
		}
	}
	if len(*have)+len(add) > maxRules {
		return nil, errf("RulesPerSecurityGroupLimitExceeded", "The maximum number of rules per security group has been reached.")
	}
	for i := range add {
		add[i].ID = c.id("sgr")
		c.setTags(add[i].ID, tags["security-group-rule"])
	}
	*have = slices.Concat(*have, add)
	return []element{flag("return", true), list("securityGroupRuleSet", add, func(x rule) []element {
		return c.ruleElements(ruleRow{g, x, egress})
	})}, nil
}

func (c *call) revokeRules(egress bool) ([]element, error) {
	g, err := c.group()
	if err != nil {
		return nil, err
	}
	have := g.direction(egress)
	gone := make(map[string]bool)
	for _, id := range c.p.strs("SecurityGroupRuleId") {
		if !slices.ContainsFunc(*have, func(o rule) bool { return o.ID == id }) {
			return nil, errf("InvalidSecurityGroupRuleId.NotFound", "The security group rule ID '%s' does not exist", id)
		}
		gone[id] = true
	}
	parsed, err := c.parseRules(g)
	if err != nil {
		return nil, err
	}
	for _, x := range parsed {
		i := slices.IndexFunc(*have, func(o rule) bool { return sameRule(o, x) })
		if i < 0 {
			return nil, errf("InvalidPermission.NotFound", "The specified rule does not exist in this security group.")
		}
		gone[(*have)[i].ID] = true
	}
	if len(gone) == 0 {
		return nil, missing("ipPermissions")
	}
	var removed, kept []rule
	for _, x := range *have {
		if gone[x.ID] {
			removed = append(removed, x)
			delete(c.tags, x.ID)
		} else {
			kept = append(kept, x)
		}
	}
	*have = kept
	return []element{flag("return", true), list("revokedSecurityGroupRuleSet", removed, func(x rule) []element {
		return c.ruleElements(ruleRow{g, x, egress})
	})}, nil
}

// parseRules reads IpPermissions, or the older parameters for a single CIDR, into rules of one peer each.
func (c *call) parseRules(g *group) ([]rule, error) {
	var out []rule
	for _, p := range c.p.items("IpPermissions") {
		base, err := parsePorts(p)
		if err != nil {
			return nil, err
		}
		peers := len(out)
		for _, list := range []struct{ name, key string }{{"IpRanges", "CidrIp"}, {"Ipv6Ranges", "CidrIpv6"}} {
			for _, it := range p.items(list.name) {
				x := rule{Rule: base, description: it.str("Description")}
				if x.CIDR, err = parseCIDR(it.str(list.key), list.key == "CidrIp"); err != nil {
					return nil, err
				}
				out = append(out, x)
			}
		}
		for _, it := range p.items("Groups") {
			peer, err := c.peerGroup(it, g)
			if err != nil {
				return nil, err
			}
			x := rule{Rule: base, description: it.str("Description")}
			x.Group = peer
			out = append(out, x)
		}
		if p.has("PrefixListIds") {
			return nil, errf("UnsupportedOperation", "Prefix lists are not supported by this lab.")
		}
		if len(out) == peers {
			return nil, errf("InvalidParameterValue", "Invalid IP permission: it names no peer")
		}
	}
	if c.p.has("IpProtocol") || c.p.has("CidrIp") {
		base, err := parsePorts(c.p)
		if err != nil {
			return nil, err
		}
		if base.CIDR, err = parseCIDR(c.p.str("CidrIp"), true); err != nil {
			return nil, err
		}
		out = append(out, rule{Rule: base})
	}
	return out, nil
}

func (c *call) peerGroup(it *params, g *group) (string, error) {
	id := it.str("GroupId")
	if id == "" {
		for _, o := range sortedValues(c.groups) {
			if o.vpcID == g.vpcID && o.name == it.str("GroupName") {
				id = o.id
			}
		}
	}
	peer := c.groups[id]
	if peer == nil {
		return "", errf("InvalidGroup.NotFound", "You have specified two resources that belong to different networks, or the security group '%s%s' does not exist",
			it.str("GroupId"), it.str("GroupName"))
	}
	if peer.vpcID != g.vpcID {
		return "", errf("InvalidGroup.NotFound", "You have specified two resources that belong to different networks.")
	}
	return id, nil
}

func parsePorts(p *params) (vpc.Rule, error) {
	r := vpc.Rule{FromPort: -1, ToPort: -1}
	name := strings.ToLower(p.str("IpProtocol"))
	n, known := protocols[name]
	if !known {
		v, err := strconv.Atoi(name)
		if err != nil || v < 0 || v > 255 {
			return r, errf("InvalidPermission.Malformed", "Invalid IP protocol '%s'", p.str("IpProtocol"))
		}
		n = v
	}
	r.Protocol = n
	if n != 6 && n != 17 && n != 1 && n != 58 {
		return r, nil // EC2 ignores ports of other protocols
	}
	var err error
	if r.FromPort, err = p.int("FromPort", -1); err != nil {
		return r, err
	}
	if r.ToPort, err = p.int("ToPort", -1); err != nil {
		return r, err
	}
	if n == 6 || n == 17 {
		if r.FromPort < 0 || r.ToPort > 65535 || r.FromPort > r.ToPort {
			return r, errf("InvalidParameterValue", "Invalid value for portRange. Must specify both from and to ports with %s.", name)
		}
	} else if r.FromPort < -1 || r.FromPort > 255 || r.ToPort < -1 || r.ToPort > 255 {
		return r, errf("InvalidParameterValue", "ICMP type or code out of range: %d, %d", r.FromPort, r.ToPort)
	}
	return r, nil
}

func parseCIDR(s string, v4 bool) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4() != v4 {
		return p, errf("InvalidParameterValue", "CIDR block %s is malformed", s)
	}
	return p.Masked(), nil
}

func (x rule) text() string {
	peer := x.Group
	if peer == "" {
		peer = x.CIDR.String()
	}
	return "peer: " + peer + ", " + strings.ToUpper(protocolName(x.Protocol)) + ", from port: " + strconv.Itoa(x.FromPort) +
		", to port: " + strconv.Itoa(x.ToPort) + ", ALLOW"
}

type ruleRow struct {
	g      *group
	x      rule
	egress bool
}

func (r *Region) ruleRows() map[string]ruleRow {
	rows := make(map[string]ruleRow)
	for _, g := range r.groups {
		for _, x := range g.ingress {
			rows[x.ID] = ruleRow{g, x, false}
		}
		for _, x := range g.egress {
			rows[x.ID] = ruleRow{g, x, true}
		}
	}
	return rows
}

func (r *Region) findRule(id string) (*group, rule, bool) {
	row, ok := r.ruleRows()[id]
	return row.g, row.x, ok
}

func (c *call) ruleElements(row ruleRow) []element {
	x := row.x
	var peer []element
	switch {
	case x.Group != "":
		peer = []element{el("referencedGroupInfo", str("groupId", x.Group), str("userId", c.cfg.AccountID))}
	case x.CIDR.Addr().Is4():
		peer = []element{str("cidrIpv4", x.CIDR.String())}
	default:
		peer = []element{str("cidrIpv6", x.CIDR.String())}
	}
	return join([]element{
		str("securityGroupRuleId", x.ID), str("groupId", row.g.id), str("groupOwnerId", c.cfg.AccountID), flag("isEgress", row.egress),
		str("ipProtocol", protocolName(x.Protocol)), num("fromPort", x.FromPort), num("toPort", x.ToPort), c.tagSet(x.ID),
	}, peer, optional("description", x.description))
}

func describeSecurityGroupRules(c *call) ([]element, error) {
	page, next, err := selectPage(c, c.ruleRows(), describable[ruleRow]{
		idParam: "SecurityGroupRuleId", pageMin: 5,
		notFound: func(id string) error {
			return errf("InvalidSecurityGroupRuleId.NotFound", "The security group rule ID '%s' does not exist", id)
		},
		attributes: func(row ruleRow) attributes {
			return c.tagged(row.x.ID, attributes{"group-id": {row.g.id}, "security-group-rule-id": {row.x.ID}})
		},
	})
	if err != nil {
		return nil, err
	}
	return join([]element{list("securityGroupRuleSet", page, c.ruleElements)}, optional("nextToken", next)), nil
}
