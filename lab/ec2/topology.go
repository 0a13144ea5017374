package ec2

import (
	"slices"

	"github.com/branchline-cni/branchline/lab/vpc"
)

// Topology is the data plane's view of the region now: deterministic, and independent of later changes.
func (r *Region) Topology() *vpc.Topology {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.topology()
}

func (r *Region) topology() *vpc.Topology {
	t := &vpc.Topology{}
	for _, v := range sortedValues(r.vpcs) {
		t.CIDRs = append(t.CIDRs, v.cidr)
	}
	for _, s := range sortedValues(r.subnets) {
		t.Subnets = append(t.Subnets, vpc.Subnet{ID: s.id, CIDR: s.cidr})
	}
	for _, e := range sortedValues(r.enis) {
		n := vpc.ENI{
			ID: e.id, SubnetID: e.subnetID, MAC: slices.Clone(e.mac), Addresses: e.reach(), Prefixes: slices.Clone(e.prefixes6),
			Groups: slices.Clone(e.groups), SourceDestCheck: e.sourceDestCheck,
		}
		if e.att != nil {
			n.InstanceID = e.att.instanceID
		}
		if e.assoc != nil {
			n.TrunkID, n.VLAN = e.assoc.trunkID, uint16(e.assoc.vlan)
		}
		t.ENIs = append(t.ENIs, n)
	}
	for _, g := range sortedValues(r.groups) {
		sg := vpc.SecurityGroup{ID: g.id}
		for _, x := range g.ingress {
			sg.Ingress = append(sg.Ingress, x.Rule)
		}
		for _, x := range g.egress {
			sg.Egress = append(sg.Egress, x.Rule)
		}
		t.Groups = append(t.Groups, sg)
	}
	return t
}

// changed tells the data plane. Called with the lock held.
func (r *Region) changed() {
	r.remember()
	if r.cfg.OnChange != nil {
		r.cfg.OnChange(r.topology())
	}
}
