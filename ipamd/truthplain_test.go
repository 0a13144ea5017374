package ipamd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/test/truth"
)

// plain is EC2 and IMDS over the VPC of test/truth.
type plain struct {
	s   *stage
	vpc *truth.VPC

	mu        sync.Mutex
	late      map[string]time.Duration // IMDS, by ENI
	shown     map[string]time.Time     // as of when IMDS has shown it: it never goes back
	describes time.Duration
	flaws     []flaw
	latency   time.Duration
	ipv6      bool // pods have IPv6 addresses
}

func newPlain(s *stage) provider {
	return &plain{s: s, vpc: truth.New(time.Now), late: map[string]time.Duration{}, shown: map[string]time.Time{}, latency: 100 * time.Millisecond}
}

func (p *plain) identity() aws.Identity {
	return aws.Identity{InstanceID: instanceID, InstanceType: "m5.large", Region: region, AvailabilityZone: zone}
}

func (p *plain) enis() map[string]truth.ENI { return p.vpc.Now() }

func (p *plain) lateMetadata(eni string, by time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.late[eni] = by
}

func (p *plain) lateDescribes(by time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.describes = by
}

func (p *plain) fail(f flaw) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flaws = append(p.flaws, f)
}

func (p *plain) calm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.late)
	p.describes, p.flaws = 0, nil
}

func (p *plain) bring() error {
	e, err := p.vpc.Create(2, 0, "somebody's", nil)
	if err == nil && p.ipv6 {
		_, err = p.vpc.AssignIPv6(e.ID, 0, 1)
	}
	if err != nil {
		return err
	}
	for device := 1; device <= truth.MaxENIs; device++ {
		if err = p.vpc.Attach(e.ID, 0, device); err == nil {
			p.s.linksChanged()
			return nil
		}
	}
	return errors.Join(err, p.vpc.Delete(e.ID))
}

func (p *plain) take(eni string) error {
	err := p.vpc.Detach(eni)
	if err == nil {
		err = p.vpc.Delete(eni)
	}
	p.s.linksChanged()
	return err
}

// assign adds an address. On an IPv6 node it is one of either family, or a prefix, in turns.
func (p *plain) assign(eni string) (err error) {
	switch e := p.vpc.Now()[eni]; {
	case p.ipv6 && len(e.IPv6Addresses) <= len(e.IPv6Prefixes):
		_, err = p.vpc.AssignIPv6(eni, 1, 0)
	case p.ipv6 && len(e.IPv6Prefixes) < len(e.Addresses):
		_, err = p.vpc.AssignIPv6(eni, 0, 1)
	default:
		_, _, err = p.vpc.Assign(eni, 1, 0)
	}
	return err
}

func (p *plain) unassign(eni string, unit netip.Prefix) error {
	if unit.Addr().Is6() {
		return p.vpc.UnassignIPv6(eni, unit)
	}
	return p.vpc.Unassign(eni, []netip.Addr{unit.Addr()}, nil)
}

func (p *plain) reach(h *hands) (enis.Metadata, EC2) {
	r := &plainReach{p: p, h: h}
	return r, r
}

// plainReach is what one agent calls.
type plainReach struct {
	p      *plain
	h      *hands
	prefix prefixCalls
}

// next takes the flaw that hits a call.
func (p *plain) next(api string) (f flaw, hit bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.flaws {
		if p.flaws[i].api == api && p.flaws[i].times > 0 {
			p.flaws[i].times--
			return p.flaws[i], true
		}
	}
	return flaw{}, false
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// call does what every call of EC2 does: it takes time before its effect and after it.
func (r *plainReach) call(ctx context.Context, api string, effect func() error) error {
	r.p.mu.Lock()
	latency := r.p.latency
	r.p.mu.Unlock()
	if err := sleep(ctx, latency); err != nil {
		return err
	}
	f, hit := r.p.next(api)
	switch {
	case r.h.dead():
		return errKilled
	case hit && f.kind == refused:
		return &smithy.GenericAPIError{Code: f.code, Message: "scripted"}
	}
	err := effect()
	if hit && f.kind == repeated {
		err = effect()
	}
	if serr := sleep(ctx, latency); serr != nil {
		return serr
	}
	var no truth.Refused
	switch {
	case r.h.dead():
		return errKilled
	case hit && f.kind == lost:
		return fmt.Errorf("%s: connection reset by peer", api)
	case errors.As(err, &no):
		return &smithy.GenericAPIError{Code: no.Code, Message: no.Message}
	}
	return err
}

// Interfaces is IMDS.
func (r *plainReach) Interfaces(ctx context.Context) (out []aws.Interface, err error) {
	if err := sleep(ctx, 20*time.Millisecond); err != nil {
		return nil, err
	}
	if _, hit := r.p.next("IMDS"); hit {
		return nil, errors.New("read the instance metadata: 500 Internal Server Error")
	}
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	now := time.Now()
	ids := map[string]bool{}
	for _, at := range []time.Duration{0, time.Minute, 2 * time.Minute} {
		for id := range r.p.vpc.At(now.Add(-at)) {
			ids[id] = true
		}
	}
	wide := netip.MustParsePrefix("192.168.0.0/16")
	for id := range ids {
		late, ok := r.p.late[id]
		if !ok {
			late = r.p.late[""]
		}
		at := now.Add(-late)
		if at.Before(r.p.shown[id]) {
			at = r.p.shown[id]
		}
		r.p.shown[id] = at
		e, there := r.p.vpc.At(at)[id]
		if !there || e.Device < 0 {
			continue
		}
		mac, err := net.ParseMAC(e.MAC)
		if err != nil {
			return nil, err
		}
		shown := aws.Interface{
			MAC: mac, ENIID: id, NetworkCard: e.Card, DeviceNumber: e.Device, SubnetID: "subnet-1", VPCID: "vpc-1", SubnetCIDR: wide, VPCCIDRs: []netip.Prefix{wide},
			Addresses: e.Addresses, Prefixes: e.Prefixes, SecurityGroupIDs: []string{"sg-node"},
		}
		if r.p.ipv6 {
			shown.SubnetIPv6CIDRs, shown.VPCIPv6CIDRs = []netip.Prefix{netip.MustParsePrefix("2001:db8:0:1::/64")}, []netip.Prefix{netip.MustParsePrefix("2001:db8::/56")}
			shown.IPv6Addresses, shown.IPv6Prefixes = e.IPv6Addresses, e.IPv6Prefixes
		}
		out = append(out, shown)
	}
	return out, nil
}

func (r *plainReach) DescribeNetworkInterfaces(ctx context.Context, in *ec2.DescribeNetworkInterfacesInput, _ ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error) {
	out := &ec2.DescribeNetworkInterfacesOutput{}
	ofPrefix := r.p.ipv6 && len(in.NetworkInterfaceIds) == 1 && in.NetworkInterfaceIds[0] == r.p.primary()
	if ofPrefix {
		r.noted(r.prefix.call())
	}
	err := r.call(ctx, "DescribeNetworkInterfaces", func() error {
		r.p.mu.Lock()
		all := r.p.vpc.At(time.Now().Add(-r.p.describes))
		r.p.mu.Unlock()
		for _, id := range in.NetworkInterfaceIds {
			if _, ok := all[id]; !ok {
				return truth.Refused{Code: aws.CodeInterfaceNotFound, Message: id}
			}
		}
		for _, e := range all {
			if len(in.NetworkInterfaceIds) > 0 && !contains(in.NetworkInterfaceIds, e.ID) {
				continue
			}
			// The sweep's filters: what is detached and bears the agent's description.
			if len(in.Filters) > 0 && (e.Device >= 0 || e.Description == "somebody's") {
				continue
			}
			out.NetworkInterfaces = append(out.NetworkInterfaces, described(e))
		}
		return nil
	})
	if ofPrefix {
		r.prefix.described(out, err)
	}
	return out, err
}

// primary is the ENI that the instance has from its beginning.
func (p *plain) primary() string { return "eni-1" }

func contains(ids []string, id string) bool {
	for _, i := range ids {
		if i == id {
			return true
		}
	}
	return false
}

func described(e truth.ENI) types.NetworkInterface {
	n := types.NetworkInterface{NetworkInterfaceId: awssdk.String(e.ID), Description: awssdk.String(e.Description), InterfaceType: types.NetworkInterfaceTypeInterface}
	for _, a := range e.Addresses {
		n.PrivateIpAddresses = append(n.PrivateIpAddresses, types.NetworkInterfacePrivateIpAddress{PrivateIpAddress: awssdk.String(a.String())})
	}
	for _, p := range e.Prefixes {
		n.Ipv4Prefixes = append(n.Ipv4Prefixes, types.Ipv4PrefixSpecification{Ipv4Prefix: awssdk.String(p.String())})
	}
	for _, p := range e.IPv6Prefixes {
		n.Ipv6Prefixes = append(n.Ipv6Prefixes, types.Ipv6PrefixSpecification{Ipv6Prefix: awssdk.String(p.String())})
	}
	for k, v := range e.Tags {
		n.TagSet = append(n.TagSet, types.Tag{Key: awssdk.String(k), Value: awssdk.String(v)})
	}
	if e.Device >= 0 {
		n.Attachment = &types.NetworkInterfaceAttachment{
			AttachmentId: awssdk.String(e.ID), InstanceId: awssdk.String(instanceID), NetworkCardIndex: awssdk.Int32(int32(e.Card)), DeviceIndex: awssdk.Int32(int32(e.Device)), Status: types.AttachmentStatusAttached,
		}
	}
	return n
}

func (r *plainReach) CreateNetworkInterface(ctx context.Context, in *ec2.CreateNetworkInterfaceInput, _ ...func(*ec2.Options)) (*ec2.CreateNetworkInterfaceOutput, error) {
	tags := map[string]string{}
	for _, t := range in.TagSpecifications[0].Tags {
		tags[*t.Key] = *t.Value
	}
	var n types.NetworkInterface
	err := r.call(ctx, "CreateNetworkInterface", func() error {
		if n.NetworkInterfaceId != nil { // who sends it again sends its client token again: EC2 answers as before
			return nil
		}
		e, err := r.p.vpc.Create(int(awssdk.ToInt32(in.SecondaryPrivateIpAddressCount)), int(awssdk.ToInt32(in.Ipv4PrefixCount)), *in.Description, tags)
		if err == nil {
			n = described(e)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &ec2.CreateNetworkInterfaceOutput{NetworkInterface: &n}, nil
}

func (r *plainReach) AttachNetworkInterface(ctx context.Context, in *ec2.AttachNetworkInterfaceInput, _ ...func(*ec2.Options)) (*ec2.AttachNetworkInterfaceOutput, error) {
	err := r.call(ctx, "AttachNetworkInterface", func() error {
		err := r.p.vpc.Attach(*in.NetworkInterfaceId, int(*in.NetworkCardIndex), int(*in.DeviceIndex))
		r.p.s.linksChanged()
		return err
	})
	return &ec2.AttachNetworkInterfaceOutput{AttachmentId: in.NetworkInterfaceId}, err
}

func (r *plainReach) ModifyNetworkInterfaceAttribute(ctx context.Context, _ *ec2.ModifyNetworkInterfaceAttributeInput, _ ...func(*ec2.Options)) (*ec2.ModifyNetworkInterfaceAttributeOutput, error) {
	return &ec2.ModifyNetworkInterfaceAttributeOutput{}, r.call(ctx, "ModifyNetworkInterfaceAttribute", func() error { return nil })
}

func (r *plainReach) DetachNetworkInterface(ctx context.Context, in *ec2.DetachNetworkInterfaceInput, _ ...func(*ec2.Options)) (*ec2.DetachNetworkInterfaceOutput, error) {
	err := r.call(ctx, "DetachNetworkInterface", func() error {
		err := r.p.vpc.Detach(*in.AttachmentId)
		r.p.s.linksChanged()
		return err
	})
	return &ec2.DetachNetworkInterfaceOutput{}, err
}

func (r *plainReach) DeleteNetworkInterface(ctx context.Context, in *ec2.DeleteNetworkInterfaceInput, _ ...func(*ec2.Options)) (*ec2.DeleteNetworkInterfaceOutput, error) {
	return &ec2.DeleteNetworkInterfaceOutput{}, r.call(ctx, "DeleteNetworkInterface", func() error { return r.p.vpc.Delete(*in.NetworkInterfaceId) })
}

func (r *plainReach) AssignPrivateIpAddresses(ctx context.Context, in *ec2.AssignPrivateIpAddressesInput, _ ...func(*ec2.Options)) (*ec2.AssignPrivateIpAddressesOutput, error) {
	out := &ec2.AssignPrivateIpAddressesOutput{}
	err := r.call(ctx, "AssignPrivateIpAddresses", func() error {
		got, blocks, err := r.p.vpc.Assign(*in.NetworkInterfaceId, int(awssdk.ToInt32(in.SecondaryPrivateIpAddressCount)), int(awssdk.ToInt32(in.Ipv4PrefixCount)))
		*out = ec2.AssignPrivateIpAddressesOutput{}
		for _, a := range got {
			out.AssignedPrivateIpAddresses = append(out.AssignedPrivateIpAddresses, types.AssignedPrivateIpAddress{PrivateIpAddress: awssdk.String(a.String())})
		}
		for _, b := range blocks {
			out.AssignedIpv4Prefixes = append(out.AssignedIpv4Prefixes, types.Ipv4PrefixSpecification{Ipv4Prefix: awssdk.String(b.String())})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (r *plainReach) UnassignPrivateIpAddresses(ctx context.Context, in *ec2.UnassignPrivateIpAddressesInput, _ ...func(*ec2.Options)) (*ec2.UnassignPrivateIpAddressesOutput, error) {
	var addresses []netip.Addr
	var blocks []netip.Prefix
	for _, a := range in.PrivateIpAddresses {
		addresses = append(addresses, netip.MustParseAddr(a))
	}
	for _, b := range in.Ipv4Prefixes {
		blocks = append(blocks, netip.MustParsePrefix(b))
	}
	return &ec2.UnassignPrivateIpAddressesOutput{}, r.call(ctx, "UnassignPrivateIpAddresses", func() error {
		return r.p.vpc.Unassign(*in.NetworkInterfaceId, addresses, blocks)
	})
}

func (r *plainReach) DescribeSubnets(context.Context, *ec2.DescribeSubnetsInput, ...func(*ec2.Options)) (*ec2.DescribeSubnetsOutput, error) {
	return &ec2.DescribeSubnetsOutput{Subnets: []types.Subnet{subnet("subnet-1", 1000)}}, nil
}

func (r *plainReach) DescribeInstanceTypes(context.Context, *ec2.DescribeInstanceTypesInput, ...func(*ec2.Options)) (*ec2.DescribeInstanceTypesOutput, error) {
	return nil, errors.New("not asked for")
}
