package ec2

import (
	"net/netip"
	"slices"

	"github.com/branchline-cni/branchline/lab/imds"
)

// Metadata is what lab/imds serves to one instance. An ENI shows up Config.MetadataDelay after it was attached; whatever
// else changes shows at once, unless LateMetadata says otherwise.
func (r *Region) Metadata(instanceID string) imds.View { return metadataView{r, instanceID} }

type metadataView struct {
	r  *Region
	id string
}

func (v metadataView) Credentials(role string) (imds.Credentials, bool) {
	v.r.mu.Lock()
	defer v.r.mu.Unlock()
	i := v.r.instances[v.id]
	if i == nil || i.state == "terminated" || v.r.roleOf(i) != role || role == "" {
		return imds.Credentials{}, false
	}
	return v.r.issue(role, i.id)
}

// roleOf is the role in the instance's profile, "" if there is none.
func (r *Region) roleOf(i *instance) string {
	if p := r.iam.profiles[i.profile]; p != nil {
		return p.role
	}
	return ""
}

func (v metadataView) Instance() (imds.Instance, bool) {
	r := v.r
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.instances[v.id]
	if i == nil || i.state == "terminated" {
		return imds.Instance{}, false
	}
	out := imds.Instance{
		ID: i.id, Type: i.typ.Name, ImageID: i.imageID, AccountID: r.cfg.AccountID, Region: r.cfg.Region, AvailabilityZone: i.zone,
		LocalHostname: hostname(i.privateIP, r.cfg.Region), Role: r.roleOf(i), ReservationID: i.reservation,
		Architecture: architecture(i.typ.Name), LaunchTime: i.launched, HopLimit: i.hopLimit, UserData: slices.Clone(i.userData),
	}
	if p := r.iam.profiles[i.profile]; p != nil {
		out.ProfileARN, out.ProfileID = p.arn, p.id
	}
	now := r.cfg.Now()
	for _, e := range r.shownTo(i.id, now) {
		if e.att.status != "attached" || e.att.visibleAt.After(now) {
			continue
		}
		s := r.subnets[e.subnetID]
		out.Interfaces = append(out.Interfaces, imds.Interface{
			IPv6Addresses: slices.Clone(e.addrs6), IPv6Prefixes: slices.Clone(e.prefixes6), SubnetIPv6CIDR: s.v6.cidr, VPCIPv6CIDR: r.vpcs[e.vpcID].cidr6,
			MAC: slices.Clone(e.mac), ENIID: e.id, DeviceNumber: e.att.device, NetworkCard: e.att.card,
			ShowNetworkCard: len(i.typ.InterfacesPerNetworkCard) > 1, SubnetID: e.subnetID, SubnetCIDR: s.cidr, VPCID: e.vpcID,
			VPCCIDRs: []netip.Prefix{r.vpcs[e.vpcID].cidr}, Addresses: slices.Clone(e.addrs), Prefixes: slices.Clone(e.prefixes), SecurityGroupIDs: slices.Clone(e.groups),
			SecurityGroups: r.groupNames(e.groups), LocalHostname: hostname(e.addrs[0], r.cfg.Region), OwnerID: r.cfg.AccountID,
		})
	}
	return out, true
}
