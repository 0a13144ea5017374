package ec2

import (
	"context"
	"encoding/base64"
	"maps"
	"strconv"
	"strings"

	"github.com/branchline-cni/branchline/aws"
)

func instanceNotFound(id string) error {
	return errf("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", id)
}

// launch is a checked RunInstances.
type launch struct {
	typ         aws.InstanceType
	profile     string
	userData    []byte
	hopLimit    int
	subnet      *subnet
	groups      []string
	network     *params // NetworkInterface.1, or an empty one
	count       int
	instTags    map[string]string
	eniTags     map[string]string
	description string
}

func runInstances(c *call) ([]element, error) {
	l, err := c.parseLaunch()
	if err != nil {
		return nil, err
	}
	reservation := c.id("r")
	var all []*instance
	for range l.count {
		i, err := c.launch(l, reservation)
		if err != nil {
			return nil, err // only the first can fail: parseLaunch checked that there is room for all
		}
		all = append(all, i)
	}
	return []element{
		str("reservationId", reservation), str("ownerId", c.cfg.AccountID), el("groupSet"),
		list("instancesSet", all, c.instanceElements),
	}, nil
}

func (c *call) parseLaunch() (launch, error) {
	l := launch{network: &params{}}
	name, err := c.p.need("InstanceType")
	if err != nil {
		return l, err
	}
	var ok bool
	if l.typ, ok = aws.LookupInstanceType(name); !ok {
		return l, errf("InvalidParameterValue", "Invalid value '%s' for InstanceType.", name)
	}
	low, err := c.p.count("MinCount", 1)
	if err != nil {
		return l, err
	}
	if l.count, err = c.p.count("MaxCount", low); err != nil {
		return l, err
	}
	if low < 1 || l.count < low {
		return l, errf("InvalidParameterValue", "Invalid value for instance counts: minimum %d, maximum %d", low, l.count)
	}
	if l.userData, err = base64.StdEncoding.DecodeString(c.p.str("UserData")); err != nil {
		return l, errf("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data")
	}
	if l.hopLimit, err = c.p.child("MetadataOptions").int("HttpPutResponseHopLimit", 1); err != nil {
		return l, err
	}
	if l.hopLimit < 1 || l.hopLimit > 64 {
		return l, errf("InvalidParameterValue", "The hop limit has to be between 1 and 64")
	}
	if p := c.p.child("IamInstanceProfile"); p.has("Name") || p.has("Arn") {
		l.profile = p.str("Name")
		if l.profile == "" {
			l.profile = p.str("Arn")[strings.LastIndex(p.str("Arn"), "/")+1:]
		}
		if c.iam.profiles[l.profile] == nil {
			return l, errf("InvalidParameterValue", "Value (%s) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name", l.profile)
		}
	}
	tags, err := c.specified("instance", "network-interface", "volume")
	if err != nil {
		return l, err
	}
	l.instTags, l.eniTags = tags["instance"], tags["network-interface"]
	return l, c.parseLaunchNetwork(&l)
}

func (c *call) parseLaunchNetwork(l *launch) error {
	subnetID, groups := c.p.str("SubnetId"), c.p.strs("SecurityGroupId")
	switch nics := c.p.items("NetworkInterface"); {
	case len(nics) > 1:
		return errf("UnsupportedOperation", "This lab launches instances with one network interface. Attach the others.")
	case len(nics) == 1:
		if subnetID != "" || len(groups) > 0 {
			return errf("InvalidParameterCombination", "Network interfaces and an instance-level subnet ID or security groups may not be specified on the same request")
		}
		l.network = nics[0]
		if err := l.network.only("DeviceIndex SubnetId SecurityGroupId PrivateIpAddress Description DeleteOnTermination " +
			"AssociatePublicIpAddress NetworkInterfaceId Ipv6AddressCount Ipv6PrefixCount"); err != nil {
			return err
		}
		if l.network.has("NetworkInterfaceId") || l.network.str("AssociatePublicIpAddress") == "true" {
			return errf("UnsupportedOperation", "This lab launches instances with a new network interface and without a public address.")
		}
		if d := l.network.str("DeviceIndex"); d != "0" {
			return errf("InvalidParameterValue", "The primary network interface has device index 0, not '%s'", d)
		}
		subnetID, groups = l.network.str("SubnetId"), l.network.strs("SecurityGroupId")
		l.description = l.network.str("Description")
	default:
		l.network = c.p
	}
	if subnetID == "" {
		return errf("VPCIdNotSpecified", "No default VPC for this user: name a subnet")
	}
	var err error
	if l.subnet, err = c.subnet(subnetID); err != nil {
		return err
	}
	if len(groups) == 0 {
		groups = []string{c.vpcs[l.subnet.vpcID].defaultGroup}
	}
	l.groups = groups
	if l.subnet.free() < l.count {
		return errf("InsufficientFreeAddressesInSubnet", "There are not enough free addresses in subnet '%s' to satisfy the requested number of instances.", subnetID)
	}
	if l.count > 1 && l.network.has("PrivateIpAddress") {
		return errf("InvalidParameterCombination", "A private address can be given to one instance only")
	}
	return c.checkGroups(groups, l.subnet.vpcID)
}

func (c *call) launch(l launch, reservation string) (*instance, error) {
	addr, err := l.network.ipv4("PrivateIpAddress")
	if err != nil {
		return nil, err
	}
	dot, err := l.network.bool("DeleteOnTermination", true)
	if err != nil {
		return nil, err
	}
	v6, err := l.network.want6("Ipv6Address")
	if err != nil {
		return nil, err
	}
	e, err := c.newInterface(newInterface{subnet: l.subnet, v6: v6, groups: l.groups, kind: "interface", primary: addr, description: l.description})
	if err != nil {
		return nil, err
	}
	i := &instance{
		id: c.id("i"), reservation: reservation, imageID: c.p.str("ImageId"), keyName: c.p.str("KeyName"), typ: l.typ, state: "pending",
		subnetID: l.subnet.id, vpcID: l.subnet.vpcID, zone: l.subnet.zone, profile: l.profile, userData: l.userData,
		hopLimit: l.hopLimit, launched: c.now, token: c.p.str("ClientToken"), privateIP: e.addrs[0],
	}
	c.instances[i.id] = i
	c.setTags(i.id, maps.Clone(l.instTags))
	c.setTags(e.id, maps.Clone(l.eniTags))
	e.att = &attachment{
		id: c.id("eni-attach"), instanceID: i.id, status: "attached", at: c.now, visibleAt: c.now, deleteOnTermination: dot,
	}
	spec := InstanceSpec{ID: i.id, Type: i.typ.Name, UserData: i.userData, Tags: maps.Clone(l.instTags), Primary: c.attachmentSpec(e)}
	r := c.Region
	r.drive(i,
		func(ctx context.Context, d Instances) error { return d.Launch(ctx, spec) },
		func(err error) {
			switch {
			case err != nil:
				r.cfg.Log.Error("launch an instance", "instance", i.id, "error", err)
				i.reason = "Server.InternalError: " + err.Error()
				r.buryInstance(i)
			case i.state == "pending":
				i.state = "running"
			}
		})
	return i, nil
}

func terminateInstances(c *call) ([]element, error) {
	ids := c.p.strs("InstanceId")
	if len(ids) == 0 {
		return nil, missing("InstanceId")
	}
	for _, id := range ids {
		if c.instances[id] == nil {
			return nil, instanceNotFound(id)
		}
	}
	type change struct{ id, before, after string }
	var changes []change
	for _, id := range ids {
		i := c.instances[id]
		ch := change{id: id, before: i.state}
		if i.state == "pending" || i.state == "running" {
			i.state, i.reason = "shutting-down", "User initiated"
			r := c.Region
			r.drive(i,
				func(ctx context.Context, d Instances) error { return d.Terminate(ctx, id) },
				func(err error) {
					if err != nil {
						r.cfg.Log.Error("terminate an instance", "instance", id, "error", err)
					}
					r.buryInstance(i)
				})
		}
		ch.after = "shutting-down"
		if ch.before == "terminated" {
			ch.after = "terminated"
		}
		changes = append(changes, ch)
	}
	return []element{list("instancesSet", changes, func(ch change) []element {
		return []element{str("instanceId", ch.id), stateElement("currentState", ch.after), stateElement("previousState", ch.before)}
	})}, nil
}

// buryInstance lets go of what a terminated instance had: ENIs go or stay as their attachment says; the branch ENIs of a
// trunk are disassociated either way and stay, available.
func (r *Region) buryInstance(i *instance) {
	if i.state == "terminated" {
		return
	}
	i.state = "terminated"
	for _, e := range r.attached(i.id) {
		for _, b := range r.branches(e.id) {
			b.disassociate()
		}
		goes := e.att.deleteOnTermination
		e.att = nil
		if goes {
			r.removeInterface(e)
		}
	}
}

var stateCodes = map[string]int{"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48}

func stateElement(name, state string) element {
	return el(name, num("code", stateCodes[state]), str("name", state))
}

func (c *call) instanceElements(i *instance) []element {
	host := hostname(i.privateIP, c.cfg.Region)
	common := []element{
		str("instanceId", i.id), str("imageId", i.imageID), stateElement("instanceState", i.state),
		str("privateDnsName", host), str("dnsName", ""), num("amiLaunchIndex", 0), str("instanceType", i.typ.Name),
		stamp("launchTime", i.launched), el("placement", str("availabilityZone", i.zone), str("tenancy", "default")),
		el("monitoring", str("state", "disabled")), str("architecture", architecture(i.typ.Name)),
		str("rootDeviceType", "ebs"), str("virtualizationType", "hvm"), str("clientToken", i.token), c.tagSet(i.id),
		str("hypervisor", "xen"), // what EC2 answers for Nitro too
		flag("enaSupport", true),
		el("metadataOptions", str("state", "applied"), str("httpTokens", "required"), num("httpPutResponseHopLimit", i.hopLimit),
			str("httpEndpoint", "enabled")),
	}
	if i.keyName != "" {
		common = append(common, str("keyName", i.keyName))
	}
	if i.reason != "" {
		common = append(common, str("reason", i.reason), el("stateReason", str("code", i.reason), str("message", i.reason)))
	}
	if p := c.iam.profiles[i.profile]; p != nil {
		common = append(common, el("iamInstanceProfile", str("arn", p.arn), str("id", p.id)))
	}
	if i.state == "terminated" {
		return common
	}
	enis := c.attached(i.id)
	common = append(common, str("privateIpAddress", i.privateIP.String()), str("subnetId", i.subnetID), str("vpcId", i.vpcID))
	for _, e := range enis {
		if e.att.device == 0 && e.att.card == 0 {
			common = append(common, flag("sourceDestCheck", e.sourceDestCheck), c.groupSet(e))
		}
	}
	return append(common, list("networkInterfaceSet", enis, func(e *eni) []element {
		return join(c.interfaceCore(e), []element{c.attachmentElement(e, false)})
	}))
}

// architecture follows AWS's naming: families with a g after the generation are Graviton.
func architecture(typ string) string {
	family, _, _ := strings.Cut(typ, ".")
	at := strings.IndexAny(family, "0123456789")
	if at >= 0 && strings.Contains(family[at:], "g") || family == "a1" {
		return "arm64"
	}
	return "x86_64"
}

func describeInstances(c *call) ([]element, error) {
	page, next, err := selectPage(c, c.instances, describable[*instance]{
		idParam: "InstanceId", pageMin: 5, notFound: instanceNotFound,
		attributes: func(i *instance) attributes {
			a := attributes{
				"instance-id": {i.id}, "instance-state-name": {i.state}, "instance-state-code": {strconv.Itoa(stateCodes[i.state])},
				"instance-type": {i.typ.Name}, "vpc-id": {i.vpcID}, "subnet-id": {i.subnetID}, "availability-zone": {i.zone},
				"private-ip-address": {i.privateIP.String()}, "private-dns-name": {hostname(i.privateIP, c.cfg.Region)},
				"image-id": one(i.imageID), "key-name": one(i.keyName), "reservation-id": {i.reservation}, "client-token": one(i.token),
				"iam-instance-profile.arn": nil, "network-interface.network-interface-id": nil, "network-interface.addresses.private-ip-address": nil,
				"instance.group-id": nil,
			}
			if p := c.iam.profiles[i.profile]; p != nil {
				a["iam-instance-profile.arn"] = []string{p.arn}
			}
			for _, e := range c.attached(i.id) {
				a["network-interface.network-interface-id"] = append(a["network-interface.network-interface-id"], e.id)
				a["network-interface.addresses.private-ip-address"] = append(a["network-interface.addresses.private-ip-address"], addrStrings(e.addrs)...)
				if e.att.device == 0 {
					a["instance.group-id"] = append(a["instance.group-id"], e.groups...)
				}
			}
			return c.tagged(i.id, a)
		},
	})
	if err != nil {
		return nil, err
	}
	return join([]element{list("reservationSet", page, func(i *instance) []element {
		return []element{
			str("reservationId", i.reservation), str("ownerId", c.cfg.AccountID), el("groupSet"),
			list("instancesSet", []*instance{i}, c.instanceElements),
		}
	})}, optional("nextToken", next)), nil
}
