package ec2

import "net/http"

func createPolicy(c *call) ([]element, error) {
	name, err := c.newName("PolicyName")
	if err != nil {
		return nil, err
	}
	_, p, err := c.policyDocument()
	if err != nil {
		return nil, err
	}
	arn := "arn:aws:iam::" + c.cfg.AccountID + ":policy" + c.path() + name
	if c.iam.policies[arn] != nil {
		return nil, errStatus(http.StatusConflict, "EntityAlreadyExists", "A policy called %s already exists. Duplicate names are not allowed.", name)
	}
	m := &managedPolicy{arn: arn, name: name, id: "ANPA" + randomID(17), parsed: p, created: c.now}
	c.iam.policies[arn] = m
	return []element{el("Policy",
		str("PolicyName", m.name), str("PolicyId", m.id), str("Arn", m.arn), str("Path", c.path()), str("DefaultVersionId", "v1"),
		num("AttachmentCount", 0), flag("IsAttachable", true), stamp("CreateDate", m.created), stamp("UpdateDate", m.created))}, nil
}

func createInstanceProfile(c *call) ([]element, error) {
	name, err := c.newName("InstanceProfileName")
	if err != nil {
		return nil, err
	}
	if c.iam.profiles[name] != nil {
		return nil, errStatus(http.StatusConflict, "EntityAlreadyExists", "Instance Profile %s already exists.", name)
	}
	p := &profile{
		name: name, id: "AIPA" + randomID(17), arn: "arn:aws:iam::" + c.cfg.AccountID + ":instance-profile" + c.path() + name,
		path: c.path(), created: c.now,
	}
	c.iam.profiles[name] = p
	return []element{el("InstanceProfile",
		str("Path", p.path), str("InstanceProfileName", p.name), str("InstanceProfileId", p.id), str("Arn", p.arn),
		stamp("CreateDate", p.created), el("Roles"))}, nil
}

func addRoleToInstanceProfile(c *call) ([]element, error) {
	ro, err := c.role()
	if err != nil {
		return nil, err
	}
	name, err := c.p.need("InstanceProfileName")
	if err != nil {
		return nil, err
	}
	p := c.iam.profiles[name]
	if p == nil {
		return nil, noSuchEntity("Instance Profile %s cannot be found.", name)
	}
	if p.role != "" {
		return nil, errStatus(http.StatusConflict, "LimitExceeded", "Cannot exceed quota for InstanceSessionsPerInstanceProfile: 1")
	}
	p.role = ro.name
	return nil, nil
}

func getCallerIdentity(c *call) ([]element, error) {
	return []element{str("Arn", c.who.arn), str("UserId", c.who.userID), str("Account", c.cfg.AccountID)}, nil
}
