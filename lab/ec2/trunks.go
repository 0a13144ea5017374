package ec2

// maxVLAN is the highest 802.1Q VLAN id that can be used.
const maxVLAN = 4094

func associateTrunk(c *call) ([]element, error) {
	branch, err := c.interfaceParam("BranchInterfaceId")
	if err != nil {
		return nil, err
	}
	trunk, err := c.interfaceParam("TrunkInterfaceId")
	if err != nil {
		return nil, err
	}
	if !c.p.has("VlanId") {
		return nil, missing("VlanId")
	}
	vlan, err := c.p.int("VlanId", 0)
	if err != nil {
		return nil, err
	}
	if err := c.checkAssociate(branch, trunk, vlan); err != nil {
		return nil, err
	}
	branch.assoc = &association{id: c.id("trunk-assoc"), trunkID: trunk.id, vlan: vlan}
	branch.kind = "branch"
	return join([]element{el("interfaceAssociation", c.associationElements(branch)...)}, optional("clientToken", c.p.str("ClientToken"))), nil
}

// AWS documents no error codes for this API. InvalidVlanId.Duplicate is what it is known to answer; the codes of the
// other refusals are the ones that other ENI calls give for the same reasons.
func (c *call) checkAssociate(branch, trunk *eni, vlan int) error {
	switch {
	case trunk.kind != "trunk":
		return errf("InvalidParameterValue", "Interface '%s' is not a trunk interface.", trunk.id)
	case branch.kind == "trunk":
		return errf("InvalidParameterValue", "Interface '%s' is a trunk interface: it can't be a branch.", branch.id)
	case branch.status() != "available":
		return errf("InvalidNetworkInterface.InUse", "Interface: [%s] in use.", branch.id)
	case branch.vpcID != trunk.vpcID || branch.zone != trunk.zone:
		return errf("InvalidParameterCombination", "Branch interface '%s' and trunk interface '%s' are not in the same VPC and availability zone.", branch.id, trunk.id)
	case vlan < 1 || vlan > maxVLAN:
		return errf("InvalidParameterValue", "Value (%d) for parameter vlanId is invalid: 1 to %d.", vlan, maxVLAN)
	case trunk.att == nil:
		return errf("IncorrectState", "Trunk interface '%s' is not attached.", trunk.id)
	}
	others := c.branches(trunk.id)
	for _, o := range others {
		if o.assoc.vlan == vlan {
			return errf("InvalidVlanId.Duplicate", "VlanId '%d' is in use", vlan)
		}
	}
	typ := c.instances[trunk.att.instanceID].typ
	if len(others) >= typ.MaxBranchInterfaces {
		return errf("AttachmentLimitExceeded", "Branch interface count %d exceeds the limit for %s", len(others)+1, typ.Name)
	}
	return nil
}

// disassociate makes a branch ENI an ordinary one again.
func (e *eni) disassociate() {
	e.assoc = nil
	if e.kind == "branch" {
		e.kind = e.created
	}
}

func associationNotFound(id string) error {
	return errf("InvalidAssociationID.NotFound", "The association ID '%s' does not exist", id)
}

func (c *call) associations() map[string]*eni {
	out := make(map[string]*eni)
	for _, e := range c.enis {
		if e.assoc != nil {
			out[e.assoc.id] = e
		}
	}
	return out
}

func disassociateTrunk(c *call) ([]element, error) {
	id, err := c.p.need("AssociationId")
	if err != nil {
		return nil, err
	}
	e := c.associations()[id]
	if e == nil {
		return nil, associationNotFound(id)
	}
	e.disassociate()
	return join(done, optional("clientToken", c.p.str("ClientToken"))), nil
}

func (c *call) associationElements(e *eni) []element {
	return []element{
		str("associationId", e.assoc.id), str("branchInterfaceId", e.id), str("trunkInterfaceId", e.assoc.trunkID),
		str("interfaceProtocol", "VLAN"), num("vlanId", e.assoc.vlan), el("tagSet"),
	}
}

func describeAssociations(c *call) ([]element, error) {
	page, next, err := selectPage(c, c.associations(), describable[*eni]{
		idParam: "AssociationId", pageMin: 5, notFound: associationNotFound,
		attributes: func(e *eni) attributes {
			// gre-key and interface-protocol are the reference's. The other one it doesn't name; AWS's controller for EKS asks by it.
			return attributes{
				"gre-key": nil, "interface-protocol": {"VLAN"},
				"trunk-interface-association.trunk-interface-id": {e.assoc.trunkID},
			}
		},
	})
	if err != nil {
		return nil, err
	}
	return join([]element{list("interfaceAssociationSet", page, c.associationElements)}, optional("nextToken", next)), nil
}
