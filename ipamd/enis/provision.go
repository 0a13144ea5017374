package enis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/placement"
)

// EC2 is what provisioning calls.
type EC2 interface {
	Describer
	DescribeSubnets(ctx context.Context, in *ec2.DescribeSubnetsInput, opts ...func(*ec2.Options)) (*ec2.DescribeSubnetsOutput, error)
	CreateNetworkInterface(ctx context.Context, in *ec2.CreateNetworkInterfaceInput, opts ...func(*ec2.Options)) (*ec2.CreateNetworkInterfaceOutput, error)
	AttachNetworkInterface(ctx context.Context, in *ec2.AttachNetworkInterfaceInput, opts ...func(*ec2.Options)) (*ec2.AttachNetworkInterfaceOutput, error)
	ModifyNetworkInterfaceAttribute(ctx context.Context, in *ec2.ModifyNetworkInterfaceAttributeInput, opts ...func(*ec2.Options)) (*ec2.ModifyNetworkInterfaceAttributeOutput, error)
	UnassignPrivateIpAddresses(ctx context.Context, in *ec2.UnassignPrivateIpAddressesInput, opts ...func(*ec2.Options)) (*ec2.UnassignPrivateIpAddressesOutput, error)
	AssignPrivateIpAddresses(ctx context.Context, in *ec2.AssignPrivateIpAddressesInput, opts ...func(*ec2.Options)) (*ec2.AssignPrivateIpAddressesOutput, error)
	AssignIpv6Addresses(ctx context.Context, in *ec2.AssignIpv6AddressesInput, opts ...func(*ec2.Options)) (*ec2.AssignIpv6AddressesOutput, error)
	DetachNetworkInterface(ctx context.Context, in *ec2.DetachNetworkInterfaceInput, opts ...func(*ec2.Options)) (*ec2.DetachNetworkInterfaceOutput, error)
	DeleteNetworkInterface(ctx context.Context, in *ec2.DeleteNetworkInterfaceInput, opts ...func(*ec2.Options)) (*ec2.DeleteNetworkInterfaceOutput, error)
}

// Provisioner does the EC2 side of the pool's steps.
type Provisioner struct {
	EC2         EC2
	InstanceID  string
	ClusterName string            // tags new ENIs where known
	Tags        map[string]string // additional tags for new ENIs
	// Made is called with each new ENI before it is attached, and has it taken back by an error. Until Attach has returned the ENI
	// may be taken back, also where it is attached already. nil: nobody cares.
	Made func(eniID string) error
	Now  func() time.Time
	Log  *slog.Logger
	// Sleep waits between two tries of a clean-up; nil: real time.
	Sleep func(ctx context.Context, d time.Duration) error
}

// ErrNotUnderstood is in the chain where EC2's answer makes no sense: something else may have answered in its place. What was
// asked for may have been done.
var ErrNotUnderstood = errors.New("the answer makes no sense")

// codeNoPrefix is EC2's for a subnet without a free block for a prefix.
const codeNoPrefix = "InsufficientCidrBlocks"

// NoPrefix says whether EC2 refused because the subnet has no free prefix. Single addresses may still be there.
func NoPrefix(err error) bool { return aws.Code(err) == codeNoPrefix }

// SubnetFull says whether EC2 refused because the subnet has no free address.
func SubnetFull(err error) bool { return aws.Code(err) == aws.CodeSubnetFull }

func scarce(err error) bool { return SubnetFull(err) || NoPrefix(err) }

func units(count int, prefixes bool) string {
	if prefixes {
		return fmt.Sprintf("%d prefixes", count)
	}
	return fmt.Sprintf("%d addresses", count)
}

// Assign asks for up to count more secondary addresses, or prefixes, on an ENI and returns those that EC2 gave. Where the
// subnet has fewer, it takes what there is.
func (p *Provisioner) Assign(ctx context.Context, eniID string, count int, prefixes bool) ([]netip.Prefix, error) {
	for {
		n := int32(count)
		in := &ec2.AssignPrivateIpAddressesInput{NetworkInterfaceId: &eniID}
		if prefixes {
			in.Ipv4PrefixCount = &n
		} else {
			in.SecondaryPrivateIpAddressCount = &n
		}
		out, err := p.EC2.AssignPrivateIpAddresses(ctx, in)
		if scarce(err) && count > 1 {
			count /= 2
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("assign %s to %s: %w", units(count, prefixes), eniID, err)
		}
		var got []netip.Prefix
		for _, a := range out.AssignedPrivateIpAddresses {
			addr, err := netip.ParseAddr(value(a.PrivateIpAddress))
			if err != nil {
				return got, fmt.Errorf("assign %s to %s: EC2 answered with address %q: %w: %w", units(count, prefixes), eniID, value(a.PrivateIpAddress), ErrNotUnderstood, err)
			}
			got = append(got, netip.PrefixFrom(addr, addr.BitLen()))
		}
		for _, a := range out.AssignedIpv4Prefixes {
			prefix, err := netip.ParsePrefix(value(a.Ipv4Prefix))
			if err != nil {
				return got, fmt.Errorf("assign %s to %s: EC2 answered with prefix %q: %w: %w", units(count, prefixes), eniID, value(a.Ipv4Prefix), ErrNotUnderstood, err)
			}
			got = append(got, prefix)
		}
		return got, nil
	}
}

// Unassign gives secondary addresses and prefixes of an ENI back. Those that it does not have (any more) are success, and
// so is an ENI that is gone. Where certain is true an error means that EC2 took nothing back.
func (p *Provisioner) Unassign(ctx context.Context, eniID string, back []netip.Prefix) (certain bool, err error) {
	call := func() error {
		in := &ec2.UnassignPrivateIpAddressesInput{NetworkInterfaceId: &eniID}
		for _, u := range back {
			if u.IsSingleIP() {
				in.PrivateIpAddresses = append(in.PrivateIpAddresses, u.Addr().String())
			} else {
				in.Ipv4Prefixes = append(in.Ipv4Prefixes, u.String())
			}
		}
		_, err := p.EC2.UnassignPrivateIpAddresses(ctx, in)
		return err
	}
	err = call()
	certain = aws.IsDenied(err) // what comes after a first answer tells nothing of what that one did
	if aws.Code(err) == "InvalidParameterValue" {
		// It refuses all where one is not there: an earlier try may have come through without its answer.
		there, herr := p.has(ctx, eniID, back)
		switch {
		case herr != nil && !aws.IsNotFound(herr):
			err = fmt.Errorf("%w, and which of them are there is not known: %w", err, herr)
		case len(there) == 0:
			back, err = nil, nil
		default:
			back = there
			err = call()
		}
	}
	if err == nil || aws.IsNotFound(err) {
		p.Log.Info("addresses given back", "eni", eniID, "units", len(back))
		return true, nil
	}
	return certain, fmt.Errorf("give %d addresses or prefixes of %s back (ec2:UnassignPrivateIpAddresses): %w", len(back), eniID, err)
}

// has returns those of the addresses and prefixes that EC2 says the ENI has.
func (p *Provisioner) has(ctx context.Context, eniID string, asked []netip.Prefix) (there []netip.Prefix, err error) {
	out, err := p.EC2.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{eniID}})
	if err != nil {
		return nil, err
	}
	has := map[string]bool{}
	for _, n := range out.NetworkInterfaces {
		for _, a := range n.PrivateIpAddresses {
			has[value(a.PrivateIpAddress)+"/32"] = true
		}
		for _, a := range n.Ipv4Prefixes {
			has[value(a.Ipv4Prefix)] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(asked), func(u netip.Prefix) bool { return !has[u.String()] }), nil
}

// Attach creates an ENI in the place's subnet and groups with count secondary addresses, or prefixes, and attaches it to the
// network card at the lowest free device index. On failure nothing is left behind, as far as EC2 lets it.
func (p *Provisioner) Attach(ctx context.Context, at placement.Place, card int, used []int, count int, prefixes bool) (eniID string, device int, err error) {
	out, err := p.create(ctx, at, count, prefixes)
	if err != nil {
		return "", 0, fmt.Errorf("create an ENI in %s: %w", at.SubnetID, err)
	}
	eniID = value(out.NetworkInterface.NetworkInterfaceId)
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			if derr := p.remove(undo, eniID); derr != nil {
				err = errors.Join(err, derr)
			}
		}
	}()
	if p.Made != nil {
		if err := p.Made(eniID); err != nil {
			return eniID, 0, fmt.Errorf("note the new %s: %w", eniID, err)
		}
	}
	device = lowestFree(card, used)
	index, cardIndex := int32(device), int32(card)
	attached, err := p.EC2.AttachNetworkInterface(ctx, &ec2.AttachNetworkInterfaceInput{
		NetworkInterfaceId: &eniID, InstanceId: &p.InstanceID, DeviceIndex: &index, NetworkCardIndex: &cardIndex,
	})
	if err != nil {
		return eniID, device, fmt.Errorf("attach %s to %s at device index %d of network card %d: %w", eniID, p.InstanceID, device, card, err)
	}
	yes := true
	_, err = p.EC2.ModifyNetworkInterfaceAttribute(ctx, &ec2.ModifyNetworkInterfaceAttributeInput{
		NetworkInterfaceId: &eniID,
		Attachment:         &types.NetworkInterfaceAttachmentChanges{AttachmentId: attached.AttachmentId, DeleteOnTermination: &yes},
	})
	if err != nil {
		return eniID, device, fmt.Errorf("have %s deleted with the instance: %w", eniID, err)
	}
	p.Log.Info("ENI attached", "eni", eniID, "card", card, "device", device, "with", units(count, prefixes))
	return eniID, device, nil
}

const undoTimeout = 30 * time.Second

func (p *Provisioner) create(ctx context.Context, at placement.Place, count int, prefixes bool) (*ec2.CreateNetworkInterfaceOutput, error) {
	description := p.description()
	for {
		n := int32(count)
		in := &ec2.CreateNetworkInterfaceInput{
			SubnetId: &at.SubnetID, Groups: at.Groups, Description: &description,
			TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeNetworkInterface, Tags: p.tags()}},
		}
		switch {
		case n > 0 && prefixes:
			in.Ipv4PrefixCount = &n
		case n > 0:
			in.SecondaryPrivateIpAddressCount = &n
		}
		out, err := p.EC2.CreateNetworkInterface(ctx, in)
		if !scarce(err) || count <= 1 {
			return out, err
		}
		count /= 2
	}
}

func (p *Provisioner) description() string { return "aws-K8S-" + p.InstanceID }

func (p *Provisioner) tags() []types.Tag {
	all := maps.Clone(p.Tags)
	if all == nil {
		all = map[string]string{}
	}
	all[placement.TagInstance] = p.InstanceID
	all[TagCreatedAt] = p.Now().UTC().Format(time.RFC3339)
	if p.ClusterName != "" {
		all[TagCluster], all[TagOwner] = p.ClusterName, owner
	}
	var out []types.Tag
	for _, k := range slices.Sorted(maps.Keys(all)) {
		key, v := k, all[k]
		out = append(out, types.Tag{Key: &key, Value: &v})
	}
	return out
}

// lowestFree is the lowest device index of a card that is not used. The primary ENI's always is.
func lowestFree(card int, used []int) int {
	first := 0
	if card == 0 {
		first = 1
	}
	for i := first; ; i++ {
		if !slices.Contains(used, i) {
			return i
		}
	}
}

// Retire detaches an ENI and deletes it. An ENI that is gone is success.
func (p *Provisioner) Retire(ctx context.Context, eniID string) error {
	if err := p.remove(ctx, eniID); err != nil {
		return err
	}
	p.Log.Info("ENI given back", "eni", eniID)
	return nil
}

func (p *Provisioner) remove(ctx context.Context, eniID string) error {
	out, err := p.EC2.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{eniID}})
	switch {
	case aws.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("describe %s: %w", eniID, err)
	}
	detaching := false
	for _, n := range out.NetworkInterfaces {
		if n.Attachment == nil {
			continue
		}
		detaching = true
		if n.Attachment.Status == types.AttachmentStatusDetaching {
			continue
		}
		if _, err := p.EC2.DetachNetworkInterface(ctx, &ec2.DetachNetworkInterfaceInput{AttachmentId: n.Attachment.AttachmentId}); err != nil && !aws.IsNotFound(err) {
			return fmt.Errorf("detach %s: %w", eniID, err)
		}
	}
	if detaching {
		if err := p.sleep(ctx, detachTakes); err != nil {
			return fmt.Errorf("wait until %s is detached: %w", eniID, err)
		}
	}
	return p.delete(ctx, eniID)
}

// detachTakes is how long a detachment takes at the least: to try before is a call for nothing.
const detachTakes = 2 * time.Second

// delete tries until the detachment is through: EC2 tells of its end only to who asks.
func (p *Provisioner) delete(ctx context.Context, eniID string) error {
	for wait := time.Second; ; wait = min(2*wait, 5*time.Second) {
		_, err := p.EC2.DeleteNetworkInterface(ctx, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: &eniID})
		switch {
		case err == nil || aws.IsNotFound(err):
			return nil
		case aws.Code(err) != "InvalidParameterValue" && aws.Code(err) != "InvalidNetworkInterface.InUse" && aws.Code(err) != "OperationNotPermitted":
			return fmt.Errorf("delete %s: %w", eniID, err)
		}
		if serr := p.sleep(ctx, wait); serr != nil {
			return fmt.Errorf("delete %s: %w", eniID, errors.Join(err, serr))
		}
	}
}

func (p *Provisioner) sleep(ctx context.Context, d time.Duration) error {
	if p.Sleep != nil {
		return p.Sleep(ctx, d)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Attached says whether EC2 has the ENI on this instance, or on its way to it.
func (p *Provisioner) Attached(ctx context.Context, eniID string) (bool, error) {
	out, err := p.EC2.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{eniID}})
	if aws.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("describe %s: %w", eniID, err)
	}
	for _, n := range out.NetworkInterfaces {
		if a := n.Attachment; a != nil && a.Status != types.AttachmentStatusDetaching && a.Status != types.AttachmentStatusDetached && value(a.InstanceId) == p.InstanceID {
			return true, nil
		}
	}
	return false, nil
}

// Sweep deletes detached ENIs that a run of this node's agent left between two calls. Call it between two steps, when no
// ENI is about to be attached: what it finds then belongs to nobody.
func (p *Provisioner) Sweep(ctx context.Context) (deleted []string, err error) {
	filter := func(name, v string) types.Filter { return types.Filter{Name: &name, Values: []string{v}} }
	out, err := p.EC2.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{Filters: []types.Filter{
		filter("tag:"+placement.TagInstance, p.InstanceID), filter("status", "available"), filter("description", p.description()),
	}})
	if err != nil {
		return nil, fmt.Errorf("look for ENIs that this node left behind: %w", err)
	}
	var errs []error
	for _, n := range out.NetworkInterfaces {
		id := value(n.NetworkInterfaceId)
		if n.Attachment != nil {
			continue
		}
		if _, err := p.EC2.DeleteNetworkInterface(ctx, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: &id}); err != nil && !aws.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete the left-over ENI %s: %w", id, err))
			continue
		}
		deleted = append(deleted, id)
		p.Log.Info("left-over ENI deleted", "eni", id)
	}
	return deleted, errors.Join(errs...)
}
