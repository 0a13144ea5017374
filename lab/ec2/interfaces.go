package ec2

import (
	"net/netip"
	"slices"
	"strconv"
)

func interfaceNotFound(id string) error {
	return errf("InvalidNetworkInterfaceID.NotFound", "The networkInterface ID '%s' does not exist", id)
}

func (c *call) interfaceParam(name string) (*eni, error) {
	id, err := c.p.need(name)
	if err != nil {
		return nil, err
	}
	if e := c.enis[id]; e != nil {
		return e, nil
	}
	return nil, interfaceNotFound(id)
}

// newInterface is what an ENI is made from. The caller has checked the groups.
type newInterface struct {
	subnet      *subnet
	groups      []string
	kind        string
	description string
	primary     netip.Addr // not valid: any
	secondary   []netip.Addr
	more        int // further secondary addresses, any
	prefixes    int
	v6          want6
}

func (c *call) newInterface(n newInterface) (*eni, error) {
	if q := c.cfg.Limits.Interfaces; q > 0 && len(c.enis) >= q {
		return nil, errf("NetworkInterfaceLimitExceeded", "The maximum number of network interfaces has been reached.")
	}
	id := c.id("eni")
	fixed := n.secondary
	if n.primary.IsValid() {
		fixed = slices.Concat([]netip.Addr{n.primary}, n.secondary)
	}
	for i, a := range fixed {
		if err := n.subnet.claim(id, a); err != nil {
			for _, b := range fixed[:i] {
				n.subnet.release(b)
			}
			return nil, err
		}
	}
	want := n.more
	if !n.primary.IsValid() {
		want++
	}
	found, err := n.subnet.take(id, want)
	if err != nil {
		for _, b := range fixed {
			n.subnet.release(b)
		}
		return nil, err
	}
	prefixes, err := n.subnet.takePrefixes(id, n.prefixes)
	if err != nil {
		for _, b := range slices.Concat(fixed, found) {
			n.subnet.release(b)
		}
		return nil, err
	}
	addrs6, prefixes6, err := c.take6(n.subnet, id, n.v6)
	if err != nil {
		for _, b := range slices.Concat(fixed, found) {
			n.subnet.release(b)
		}
		for _, b := range prefixes {
			n.subnet.releasePrefix(b)
		}
		return nil, err
	}
	e := &eni{
		id: id, prefixes: prefixes, addrs6: addrs6, prefixes6: prefixes6, subnetID: n.subnet.id, vpcID: n.subnet.vpcID, zone: n.subnet.zone, kind: n.kind, created: n.kind,
		description: n.description, mac: c.newMAC(), groups: slices.Clone(n.groups), sourceDestCheck: true, requester: c.who.userID,
	}
	if n.primary.IsValid() {
		e.addrs = slices.Concat(fixed, found)
	} else {
		e.addrs = slices.Concat(found[:1], fixed, found[1:])
	}
	c.enis[id] = e
	return e, nil
}

func createInterface(c *call) ([]element, error) {
	subnetID, err := c.p.need("SubnetId")
	if err != nil {
		return nil, err
	}
	n := newInterface{kind: "interface", description: c.p.str("Description")}
	if n.subnet, err = c.subnet(subnetID); err != nil {
		return nil, err
	}
	switch k := c.p.str("InterfaceType"); k {
	case "":
	case "interface", "trunk", "branch":
		n.kind = k
	default:
		return nil, errf("InvalidParameterValue", "Value (%s) for parameter interfaceType is invalid.", k)
	}
	n.groups = c.p.strs("SecurityGroupId")
	if len(n.groups) == 0 {
		n.groups = []string{c.vpcs[n.subnet.vpcID].defaultGroup}
	}
	if err := c.checkGroups(n.groups, n.subnet.vpcID); err != nil {
		return nil, err
	}
	if n.primary, err = c.p.ipv4("PrivateIpAddress"); err != nil {
		return nil, err
	}
	for _, it := range c.p.items("PrivateIpAddresses") {
		a, err := it.ipv4("PrivateIpAddress")
		if err != nil {
			return nil, err
		}
		primary, err := it.bool("Primary", false)
		if err != nil {
			return nil, err
		}
		switch {
		case !a.IsValid():
			return nil, missing("privateIpAddresses.privateIpAddress")
		case primary && n.primary.IsValid() && n.primary != a:
			return nil, errf("InvalidParameterCombination", "More than one primary address is given")
		case primary:
			n.primary = a
		default:
			n.secondary = append(n.secondary, a)
		}
	}
	if n.more, err = c.p.count("SecondaryPrivateIpAddressCount", 0); err != nil {
		return nil, err
	}
	if n.prefixes, err = c.p.count("Ipv4PrefixCount", 0); err != nil {
		return nil, err
	}
	if n.prefixes > 0 && (n.more > 0 || len(n.secondary) > 0) {
		return nil, errf("InvalidParameterCombination", "Secondary addresses and prefixes can't be asked for in one call")
	}
	if n.v6, err = c.p.want6("Ipv6Addresses"); err != nil {
		return nil, err
	}
	tags, err := c.specified("network-interface")
	if err != nil {
		return nil, err
	}
	e, err := c.newInterface(n)
	if err != nil {
		return nil, err
	}
	c.setTags(e.id, tags["network-interface"])
	return join([]element{el("networkInterface", c.interfaceElements(e, "pending")...)}, optional("clientToken", c.p.str("ClientToken"))), nil
}

func deleteInterface(c *call) ([]element, error) {
	e, err := c.interfaceParam("NetworkInterfaceId")
	if err != nil {
		return nil, err
	}
	if e.att != nil {
		return nil, errf("InvalidParameterValue", "Network interface '%s' is currently in use.", e.id)
	}
	if n := len(c.branches(e.id)); n > 0 {
		return nil, errf("DependencyViolation", "Network interface '%s' has %d associated branch interfaces.", e.id, n)
	}
	// A branch that is associated can be deleted: its association goes with it.
	e.disassociate()
	c.removeInterface(e)
	return done, nil
}

// removeInterface forgets an ENI that is neither attached nor associated.
func (r *Region) removeInterface(e *eni) {
	for _, a := range e.addrs {
		r.subnets[e.subnetID].release(a)
	}
	for _, p := range e.prefixes {
		r.subnets[e.subnetID].releasePrefix(p)
	}
	r.subnets[e.subnetID].release6(e.addrs6, e.prefixes6)
	for id, g := range r.grants {
		if g.eniID == e.id {
			delete(r.grants, id)
		}
	}
	delete(r.enis, e.id)
	delete(r.tags, e.id)
}

func modifyInterface(c *call) ([]element, error) {
	e, err := c.interfaceParam("NetworkInterfaceId")
	if err != nil {
		return nil, err
	}
	groups, att := c.p.strs("SecurityGroupId"), c.p.child("Attachment")
	given := 0
	for _, name := range []string{"SecurityGroupId", "SourceDestCheck", "Description", "Attachment"} {
		if c.p.has(name) {
			given++
		}
	}
	if given != 1 {
		return nil, errf("InvalidParameterCombination", "Exactly one attribute has to be given, not %d", given)
	}
	switch {
	case len(groups) > 0:
		if err := c.checkGroups(groups, e.vpcID); err != nil {
			return nil, err
		}
		e.groups = slices.Clone(groups)
	case c.p.has("SourceDestCheck"):
		if e.sourceDestCheck, err = c.p.child("SourceDestCheck").bool("Value", true); err != nil {
			return nil, err
		}
	case c.p.has("Description"):
		e.description = c.p.child("Description").str("Value")
	default:
		if e.att == nil || e.att.id != att.str("AttachmentId") {
			return nil, attachmentNotFound(att.str("AttachmentId"))
		}
		if e.att.deleteOnTermination, err = att.bool("DeleteOnTermination", e.att.deleteOnTermination); err != nil {
			return nil, err
		}
	}
	return done, nil
}

func addrStrings(addrs []netip.Addr) []string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	return out
}

func describeInterfaces(c *call) ([]element, error) {
	page, next, err := selectPage(c, c.enis, describable[*eni]{
		idParam: "NetworkInterfaceId", pageMin: 5, notFound: interfaceNotFound,
		attributes: func(e *eni) attributes {
			a := attributes{
				"network-interface-id": {e.id}, "description": {e.description}, "status": {e.status()}, "interface-type": {e.kind},
				"group-id": e.groups, "group-name": c.groupNames(e.groups), "subnet-id": {e.subnetID}, "vpc-id": {e.vpcID},
				"mac-address": {e.mac.String()}, "owner-id": {c.cfg.AccountID}, "availability-zone": {e.zone},
				"private-ip-address": {e.addrs[0].String()}, "addresses.private-ip-address": addrStrings(e.addrs),
				"ipv6-addresses.ipv6-address": addrStrings(e.addrs6),
				"private-dns-name":            {hostname(e.addrs[0], c.cfg.Region)},
				"source-dest-check":           {strconv.FormatBool(e.sourceDestCheck)}, "requester-id": one(e.requester), "requester-managed": {"false"},
				"attachment.instance-id": nil, "attachment.attachment-id": nil, "attachment.device-index": nil, "attachment.status": nil,
				"attachment.delete-on-termination": nil, "attachment.instance-owner-id": nil,
			}
			if t := e.att; t != nil {
				a["attachment.instance-id"] = []string{t.instanceID}
				a["attachment.attachment-id"] = []string{t.id}
				a["attachment.device-index"] = []string{strconv.Itoa(t.device)}
				a["attachment.status"] = []string{t.status}
				a["attachment.delete-on-termination"] = []string{strconv.FormatBool(t.deleteOnTermination)}
				a["attachment.instance-owner-id"] = []string{c.cfg.AccountID}
			}
			return c.tagged(e.id, a)
		},
	})
	if err != nil {
		return nil, err
	}
	return join([]element{list("networkInterfaceSet", page, func(e *eni) []element { return c.interfaceElements(e, e.status()) })},
		optional("nextToken", next)), nil
}

func (r *Region) groupNames(ids []string) []string {
	var out []string
	for _, id := range ids {
		out = append(out, r.groups[id].name)
	}
	return out
}

func (c *call) groupSet(e *eni) element {
	return list("groupSet", e.groups, func(id string) []element {
		return []element{str("groupId", id), str("groupName", c.groups[id].name)}
	})
}

// interfaceCore is what EC2 shows of an ENI on its own and within an instance.
func (c *call) interfaceCore(e *eni) []element {
	return []element{
		str("networkInterfaceId", e.id), str("subnetId", e.subnetID), str("vpcId", e.vpcID), str("description", e.description),
		str("ownerId", c.cfg.AccountID), str("status", e.status()), str("macAddress", e.mac.String()),
		str("privateIpAddress", e.addrs[0].String()), str("privateDnsName", hostname(e.addrs[0], c.cfg.Region)),
		flag("sourceDestCheck", e.sourceDestCheck), str("interfaceType", e.kind), c.groupSet(e),
		list("privateIpAddressesSet", e.addrs, func(a netip.Addr) []element {
			return []element{str("privateIpAddress", a.String()), str("privateDnsName", hostname(a, c.cfg.Region)), flag("primary", a == e.addrs[0])}
		}),
		list("ipv6AddressesSet", e.addrs6, func(a netip.Addr) []element {
			return []element{str("ipv6Address", a.String()), flag("isPrimaryIpv6", false)}
		}),
		list("ipv4PrefixSet", e.prefixes, prefixElements), list("ipv6PrefixSet", e.prefixes6, ipv6PrefixElements),
	}
}

func prefixElements(p netip.Prefix) []element { return []element{str("ipv4Prefix", p.String())} }

func (c *call) interfaceElements(e *eni, status string) []element {
	out := c.interfaceCore(e)
	for i := range out {
		if out[i].name == "status" {
			out[i].text = status
		}
	}
	out = append(out, str("availabilityZone", e.zone), str("requesterId", e.requester), flag("requesterManaged", false), c.tagSet(e.id))
	if e.att != nil {
		out = append(out, c.attachmentElement(e, true))
	}
	return out
}

func (c *call) attachmentElement(e *eni, full bool) element {
	t := e.att
	out := []element{
		str("attachmentId", t.id), num("deviceIndex", t.device), num("networkCardIndex", t.card), str("status", t.status),
		stamp("attachTime", t.at), flag("deleteOnTermination", t.deleteOnTermination),
	}
	if full {
		out = append(out, str("instanceId", t.instanceID), str("instanceOwnerId", c.cfg.AccountID))
	}
	return el("attachment", out...)
}
