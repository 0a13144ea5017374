package ec2

import "slices"

func createPermission(c *call) ([]element, error) {
	e, err := c.interfaceParam("NetworkInterfaceId")
	if err != nil {
		return nil, err
	}
	account, err := c.p.need("AwsAccountId")
	if err != nil {
		return nil, err
	}
	kind, err := c.p.need("Permission")
	if err != nil {
		return nil, err
	}
	if !slices.Contains([]string{"INSTANCE-ATTACH", "EIP-ASSOCIATE"}, kind) {
		return nil, errf("InvalidParameterValue", "Value (%s) for parameter permission is invalid.", kind)
	}
	for _, g := range c.grants {
		if g.eniID == e.id && g.account == account && g.kind == kind {
			return []element{el("interfacePermission", g.elements()...)}, nil
		}
	}
	g := &permission{id: c.id("eni-perm"), eniID: e.id, account: account, kind: kind}
	c.grants[g.id] = g
	return []element{el("interfacePermission", g.elements()...)}, nil
}

func (g *permission) elements() []element {
	return []element{
		str("networkInterfacePermissionId", g.id), str("networkInterfaceId", g.eniID), str("awsAccountId", g.account),
		str("permission", g.kind), el("permissionState", str("state", "GRANTED")),
	}
}

func permissionNotFound(id string) error {
	return errf("InvalidPermissionID.NotFound", "The network interface permission ID '%s' does not exist", id)
}

func deletePermission(c *call) ([]element, error) {
	id, err := c.p.need("NetworkInterfacePermissionId")
	if err != nil {
		return nil, err
	}
	if c.grants[id] == nil {
		return nil, permissionNotFound(id)
	}
	delete(c.grants, id)
	return done, nil
}

func describePermissions(c *call) ([]element, error) {
	page, next, err := selectPage(c, c.grants, describable[*permission]{
		idParam: "NetworkInterfacePermissionId", pageMin: 5, notFound: permissionNotFound,
		attributes: func(g *permission) attributes {
			return attributes{
				"network-interface-permission.network-interface-permission-id": {g.id},
				"network-interface-permission.network-interface-id":            {g.eniID},
				"network-interface-permission.aws-account-id":                  {g.account},
				"network-interface-permission.permission":                      {g.kind},
			}
		},
	})
	if err != nil {
		return nil, err
	}
	return join([]element{list("networkInterfacePermissions", page, (*permission).elements)}, optional("nextToken", next)), nil
}
