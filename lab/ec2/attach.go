package ec2

import "context"

func attachmentNotFound(id string) error {
	return errf("InvalidAttachmentID.NotFound", "Invalid attachment id '%s'", id)
}

func attachInterface(c *call) ([]element, error) {
	e, err := c.interfaceParam("NetworkInterfaceId")
	if err != nil {
		return nil, err
	}
	instanceID, err := c.p.need("InstanceId")
	if err != nil {
		return nil, err
	}
	i := c.instances[instanceID]
	if i == nil || i.state == "terminated" {
		return nil, instanceNotFound(instanceID)
	}
	if !c.p.has("DeviceIndex") {
		return nil, missing("deviceIndex")
	}
	device, err := c.p.count("DeviceIndex", 0)
	if err != nil {
		return nil, err
	}
	card, err := c.p.count("NetworkCardIndex", i.typ.DefaultNetworkCard)
	if err != nil {
		return nil, err
	}
	if err := c.checkAttach(e, i, device, card); err != nil {
		return nil, err
	}
	e.att = &attachment{id: c.id("eni-attach"), instanceID: i.id, device: device, card: card, status: "attaching", at: c.now}
	att, spec, r := e.att, c.attachmentSpec(e), c.Region
	r.drive(i,
		func(ctx context.Context, d Instances) error { return d.Attach(ctx, instanceID, spec) },
		func(err error) {
			if e.att != att || att.status != "attaching" {
				return // detached, or the instance ended, meanwhile
			}
			if err != nil {
				r.cfg.Log.Error("attach an interface", "interface", e.id, "instance", instanceID, "error", err)
				e.att = nil
				return
			}
			att.status = "attached"
			att.visibleAt = r.cfg.Now().Add(r.cfg.MetadataDelay)
		})
	return []element{str("attachmentId", att.id), num("networkCardIndex", card)}, nil
}

func (c *call) checkAttach(e *eni, i *instance, device, card int) error {
	switch {
	case i.state != "running":
		return errf("IncorrectState", "Instance '%s' is not 'running' or 'stopped'.", i.id)
	case e.att != nil || e.assoc != nil:
		return errf("InvalidNetworkInterface.InUse", "Interface: [%s] in use.", e.id)
	case e.kind == "branch":
		return errf("InvalidParameterValue", "Interface '%s' is a branch interface: it can be associated with a trunk only.", e.id)
	case e.zone != i.zone:
		return errf("InvalidParameterCombination", "You may not attach a network interface to an instance if they are not in the same availability zone")
	case e.vpcID != i.vpcID:
		return errf("InvalidParameterCombination", "Interface '%s' and instance '%s' are in different VPCs.", e.id, i.id)
	case card >= len(i.typ.InterfacesPerNetworkCard):
		return errf("InvalidParameterValue", "Network card index '%d' is out of range for instance type '%s'.", card, i.typ.Name)
	case e.kind == "trunk" && !i.typ.TrunkCompatible:
		return errf("InvalidParameterCombination", "Instance type '%s' does not support trunk network interfaces.", i.typ.Name)
	case len(e.addrs)+len(e.prefixes) > i.typ.IPv4PerInterface:
		return errf("PrivateIpAddressLimitExceeded", "Interface '%s' has %d addresses and prefixes, more than the limit of %d for '%s'.", e.id, len(e.addrs)+len(e.prefixes), i.typ.IPv4PerInterface, i.typ.Name)
	}
	have, onCard := c.attached(i.id), 0
	for _, o := range have {
		if o.att.card == card {
			onCard++
			if o.att.device == device {
				return errf("InvalidParameterValue", "Instance '%s' already has an interface attached at device index '%d'.", i.id, device)
			}
		}
		if o.kind == "trunk" && e.kind == "trunk" {
			return errf("AttachmentLimitExceeded", "Instance '%s' already has the trunk interface '%s'.", i.id, o.id)
		}
	}
	if len(have) >= i.typ.MaxInterfaces || onCard >= i.typ.InterfacesPerNetworkCard[card] {
		return errf("AttachmentLimitExceeded", "Interface count %d exceeds the limit for %s", len(have)+1, i.typ.Name)
	}
	return nil
}

// byAttachment finds the ENI of the request's attachment.
func (c *call) byAttachment() *eni {
	id := c.p.str("AttachmentId")
	for _, e := range c.enis {
		if e.att != nil && e.att.id == id {
			return e
		}
	}
	return nil
}

func detachTargets(c *call) []target {
	e := c.byAttachment()
	if e == nil {
		return []target{{arn: c.arn("network-interface", "*")}}
	}
	return []target{
		{arn: c.arn("network-interface", e.id), tags: c.tags[e.id]},
		{arn: c.arn("instance", e.att.instanceID), tags: c.tags[e.att.instanceID]},
	}
}

func detachInterface(c *call) ([]element, error) {
	id, err := c.p.need("AttachmentId")
	if err != nil {
		return nil, err
	}
	e := c.byAttachment()
	switch {
	case e == nil:
		return nil, attachmentNotFound(id)
	case e.att.device == 0 && e.att.card == 0:
		return nil, errf("OperationNotPermitted", "The network interface at device index 0 and networkCard index 0 cannot be detached.")
	case len(c.branches(e.id)) > 0:
		return nil, errf("OperationNotPermitted", "Trunk interface '%s' has associated branch interfaces.", e.id)
	case e.att.status == "detaching":
		return done, nil
	}
	i, att, r := c.instances[e.att.instanceID], e.att, c.Region
	att.status = "detaching"
	r.drive(i,
		func(ctx context.Context, d Instances) error { return d.Detach(ctx, i.id, e.id) },
		func(err error) {
			if e.att != att {
				return // the instance ended meanwhile
			}
			if err != nil {
				r.cfg.Log.Error("detach an interface", "interface", e.id, "instance", i.id, "error", err)
				att.status = "attached" // so that it can be tried again
				return
			}
			e.att = nil
		})
	return done, nil
}
