package ec2

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/branchline-cni/branchline/lab/vpc"
)

func TestATrunkCarriesBranchesByVLAN(t *testing.T) {
	var top *vpc.Topology
	f := newFixture(t, Config{OnChange: func(n *vpc.Topology) { top = n }})
	trunk, one, two := f.trunk(), f.eni("interface"), f.eni("interface")
	must(f.ec2.CreateNetworkInterfacePermission(f.ctx, &ec2.CreateNetworkInterfacePermissionInput{
		NetworkInterfaceId: &one, AwsAccountId: ptr("111122223333"), Permission: "INSTANCE-ATTACH"}))(f)
	assoc := must(f.associate(one, trunk, 7))(f)

	_, err := f.associate(two, trunk, 7)
	wantCode(t, err, "InvalidVlanId.Duplicate")
	_, err = f.associate(one, trunk, 8)
	wantCode(t, err, "InvalidNetworkInterface.InUse")
	_, err = f.associate(two, one, 8)
	wantCode(t, err, "InvalidParameterValue")

	if d := f.describe(one); d.InterfaceType != "branch" || d.Status != "in-use" || d.Attachment != nil {
		t.Errorf("branch: %s %s %v", d.InterfaceType, d.Status, d.Attachment)
	}
	if d := f.describe(trunk); d.InterfaceType != "trunk" || d.Status != "in-use" || *d.Attachment.InstanceId != f.instance {
		t.Errorf("trunk: %s %s %v", d.InterfaceType, d.Status, d.Attachment)
	}
	i := slices.IndexFunc(top.ENIs, func(e vpc.ENI) bool { return e.ID == one })
	if e := top.ENIs[i]; e.TrunkID != trunk || e.VLAN != 7 || e.InstanceID != "" {
		t.Errorf("topology: %+v", e)
	}
	list := must(f.ec2.DescribeTrunkInterfaceAssociations(f.ctx, &ec2.DescribeTrunkInterfaceAssociationsInput{}))(f)
	if a := list.InterfaceAssociations; len(a) != 1 || *a[0].AssociationId != assoc || *a[0].VlanId != 7 || *a[0].TrunkInterfaceId != trunk {
		t.Errorf("associations: %+v", a)
	}
	must(f.ec2.DisassociateTrunkInterface(f.ctx, &ec2.DisassociateTrunkInterfaceInput{AssociationId: &assoc}))(f)
	_, err = f.ec2.DisassociateTrunkInterface(f.ctx, &ec2.DisassociateTrunkInterfaceInput{AssociationId: &assoc})
	wantCode(t, err, "InvalidAssociationID.NotFound")
	if d := f.describe(one); d.InterfaceType != "interface" || d.Status != "available" {
		t.Errorf("disassociated: %s %s", d.InterfaceType, d.Status)
	}
	must(f.associate(two, trunk, 7))(f)
}

func TestATypeLimitsItsBranches(t *testing.T) {
	f := newFixture(t, Config{})
	trunk := f.trunk()
	for vlan := range int32(9) {
		must(f.associate(f.eni("interface"), trunk, vlan+1))(f)
	}
	_, err := f.associate(f.eni("interface"), trunk, 10)
	wantCode(t, err, "AttachmentLimitExceeded")
}

func TestAttachmentsAreLimitedByTheType(t *testing.T) {
	f := newFixture(t, Config{})
	a, b, c := f.eni("interface"), f.eni("interface"), f.eni("interface")
	must(f.attach(a, f.instance, 1))(f)
	_, err := f.attach(a, f.instance, 2)
	wantCode(t, err, "InvalidNetworkInterface.InUse")
	_, err = f.attach(b, f.instance, 1)
	wantCode(t, err, "InvalidParameterValue")
	must(f.attach(b, f.instance, 2))(f)
	_, err = f.attach(c, f.instance, 3)
	wantCode(t, err, "AttachmentLimitExceeded")

	small := f.run("t3.medium", "node")
	_, err = f.attach(f.eni("trunk"), small, 1)
	wantCode(t, err, "InvalidParameterCombination")
	_, err = f.ec2.DeleteNetworkInterface(f.ctx, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: &a})
	wantCode(t, err, "InvalidParameterValue")

	_, err = f.ec2.AssignPrivateIpAddresses(f.ctx, &ec2.AssignPrivateIpAddressesInput{NetworkInterfaceId: &a, SecondaryPrivateIpAddressCount: ptr(int32(10))})
	wantCode(t, err, "PrivateIpAddressLimitExceeded")
	out := must(f.ec2.AssignPrivateIpAddresses(f.ctx, &ec2.AssignPrivateIpAddressesInput{NetworkInterfaceId: &a, SecondaryPrivateIpAddressCount: ptr(int32(9))}))(f)
	if len(out.AssignedPrivateIpAddresses) != 9 || len(f.describe(a).PrivateIpAddresses) != 10 {
		t.Errorf("assigned: %+v", out)
	}
	primary := *f.describe(a).PrivateIpAddress
	_, err = f.ec2.UnassignPrivateIpAddresses(f.ctx, &ec2.UnassignPrivateIpAddressesInput{NetworkInterfaceId: &a, PrivateIpAddresses: []string{primary}})
	wantCode(t, err, "InvalidParameterValue")
	first := *out.AssignedPrivateIpAddresses[0].PrivateIpAddress
	must(f.ec2.UnassignPrivateIpAddresses(f.ctx, &ec2.UnassignPrivateIpAddressesInput{NetworkInterfaceId: &a, PrivateIpAddresses: []string{first}}))(f)
	if d := f.describe(a); len(d.PrivateIpAddresses) != 9 || *d.PrivateIpAddress != primary {
		t.Errorf("after unassign: %+v", d.PrivateIpAddresses)
	}
}

// TestEachNetworkCardHasItsOwnDeviceIndexesAndLimit, and the metadata service says which card an interface is on.
func TestEachNetworkCardHasItsOwnDeviceIndexesAndLimit(t *testing.T) {
	f := newFixture(t, Config{})
	id := f.run("p5.48xlarge", "node") // 32 cards of two interfaces
	attach := func(card, device int32) (string, error) {
		eni := f.eni("interface")
		_, err := f.ec2.AttachNetworkInterface(f.ctx, &ec2.AttachNetworkInterfaceInput{
			NetworkInterfaceId: &eni, InstanceId: &id, DeviceIndex: &device, NetworkCardIndex: &card,
		})
		return eni, err
	}
	second, err := attach(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	if a := f.describe(second).Attachment; *a.NetworkCardIndex != 1 || *a.DeviceIndex != 0 {
		t.Errorf("%+v", a)
	}
	_, err = attach(1, 0)
	wantCode(t, err, "InvalidParameterValue")
	_, err = attach(32, 0)
	wantCode(t, err, "InvalidParameterValue")
	if _, err := attach(1, 1); err != nil {
		t.Fatal(err)
	}
	_, err = attach(1, 2)
	wantCode(t, err, "AttachmentLimitExceeded")
	if _, err := attach(31, 1); err != nil {
		t.Errorf("another card: %v", err)
	}
	cards := map[string]int{}
	for deadline := time.Now().Add(10 * time.Second); len(cards) < 4 && time.Now().Before(deadline); {
		view, _ := f.region.Metadata(id).Instance()
		for _, n := range view.Interfaces {
			if cards[n.ENIID] = n.NetworkCard; !n.ShowNetworkCard {
				t.Fatalf("%s has no network-card", n.ENIID)
			}
		}
	}
	if cards[second] != 1 || len(cards) != 4 {
		t.Errorf("the metadata service shows %v", cards)
	}
}

func TestPrefixesTakePlacesOfAddressesAndWholeBlocksOfTheSubnet(t *testing.T) {
	f := newFixture(t, Config{})
	sub := must(f.ec2.CreateSubnet(f.ctx, &ec2.CreateSubnetInput{VpcId: &f.vpc, CidrBlock: ptr("192.168.32.0/26")}))(f)
	made := must(f.ec2.CreateNetworkInterface(f.ctx, &ec2.CreateNetworkInterfaceInput{SubnetId: sub.Subnet.SubnetId, Ipv4PrefixCount: ptr(int32(1))}))(f)
	e := *made.NetworkInterface.NetworkInterfaceId
	// The first block holds AWS's own addresses and the ENI's, the last one the broadcast address.
	if p := made.NetworkInterface.Ipv4Prefixes; len(p) != 1 || *p[0].Ipv4Prefix != "192.168.32.16/28" {
		t.Fatalf("made with %+v", p)
	}
	assign := func(addresses, prefixes int32) (*ec2.AssignPrivateIpAddressesOutput, error) {
		in := &ec2.AssignPrivateIpAddressesInput{NetworkInterfaceId: &e}
		if addresses > 0 {
			in.SecondaryPrivateIpAddressCount = &addresses
		}
		if prefixes > 0 {
			in.Ipv4PrefixCount = &prefixes
		}
		return f.ec2.AssignPrivateIpAddresses(f.ctx, in)
	}
	_, err := assign(1, 1)
	wantCode(t, err, "InvalidParameterCombination")
	_, err = assign(0, 2)
	wantCode(t, err, "InsufficientCidrBlocks")
	if out := must(assign(0, 1))(f); len(out.AssignedIpv4Prefixes) != 1 || *out.AssignedIpv4Prefixes[0].Ipv4Prefix != "192.168.32.32/28" {
		t.Errorf("assigned %+v", out)
	}
	must(f.attach(e, f.instance, 1))(f)
	_, err = assign(8, 0)
	wantCode(t, err, "PrivateIpAddressLimitExceeded")
	must(assign(7, 0))(f)
	if d := f.describe(e); len(d.Ipv4Prefixes) != 2 || len(d.PrivateIpAddresses) != 8 {
		t.Errorf("it has %d prefixes and %d addresses", len(d.Ipv4Prefixes), len(d.PrivateIpAddresses))
	}
	shown, _ := f.region.Metadata(f.instance).Instance()
	if n := shown.Interfaces[len(shown.Interfaces)-1]; len(n.Prefixes) != 2 || len(n.Addresses) != 8 {
		t.Errorf("metadata shows %+v", n)
	}
	unassign := &ec2.UnassignPrivateIpAddressesInput{NetworkInterfaceId: &e, Ipv4Prefixes: []string{"192.168.32.16/28"}}
	must(f.ec2.UnassignPrivateIpAddresses(f.ctx, unassign))(f)
	_, err = f.ec2.UnassignPrivateIpAddresses(f.ctx, unassign)
	wantCode(t, err, "InvalidParameterValue")
	for _, n := range f.region.Topology().ENIs {
		if n.ID == e && len(n.Addresses) != 8+16 {
			t.Errorf("the data plane knows %d addresses", len(n.Addresses))
		}
	}
}

func TestASubnetRunsOutOfAddresses(t *testing.T) {
	f := newFixture(t, Config{})
	sub := must(f.ec2.CreateSubnet(f.ctx, &ec2.CreateSubnetInput{VpcId: &f.vpc, CidrBlock: ptr("192.168.32.0/28")}))(f)
	if n := *sub.Subnet.AvailableIpAddressCount; n != 11 {
		t.Fatalf("a /28 has %d free addresses, want 11", n)
	}
	in := &ec2.CreateNetworkInterfaceInput{SubnetId: sub.Subnet.SubnetId, SecondaryPrivateIpAddressCount: ptr(int32(10))}
	out := must(f.ec2.CreateNetworkInterface(f.ctx, in))(f)
	if a := *out.NetworkInterface.PrivateIpAddress; a != "192.168.32.4" {
		t.Errorf("first address %s: the first four are reserved", a)
	}
	_, err := f.ec2.CreateNetworkInterface(f.ctx, &ec2.CreateNetworkInterfaceInput{SubnetId: sub.Subnet.SubnetId})
	wantCode(t, err, "InsufficientFreeAddressesInSubnet")
	must(f.ec2.DeleteNetworkInterface(f.ctx, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: out.NetworkInterface.NetworkInterfaceId}))(f)
	must(f.ec2.CreateNetworkInterface(f.ctx, in))(f)
}

func TestAClientTokenMakesCreationIdempotent(t *testing.T) {
	f := newFixture(t, Config{})
	in := &ec2.CreateNetworkInterfaceInput{SubnetId: &f.subnet, ClientToken: ptr("token-1")}
	a := must(f.ec2.CreateNetworkInterface(f.ctx, in))(f)
	b := must(f.ec2.CreateNetworkInterface(f.ctx, in))(f)
	if *a.NetworkInterface.NetworkInterfaceId != *b.NetworkInterface.NetworkInterfaceId {
		t.Error("the same token made two interfaces")
	}
	in.Description = ptr("another")
	_, err := f.ec2.CreateNetworkInterface(f.ctx, in)
	wantCode(t, err, "IdempotentParameterMismatch")
}

func TestInterfacesAreFoundByFiltersAndPaged(t *testing.T) {
	f := newFixture(t, Config{})
	trunk := f.trunk()
	var mine []string
	for n := range 12 {
		id := f.eni("interface")
		must(f.ec2.CreateTags(f.ctx, &ec2.CreateTagsInput{Resources: []string{id}, Tags: []types.Tag{{Key: ptr("n"), Value: ptr(fmt.Sprint(n))}}}))(f)
		mine = append(mine, id)
	}
	slices.Sort(mine)
	count := func(name string, values ...string) int {
		out := must(f.ec2.DescribeNetworkInterfaces(f.ctx, &ec2.DescribeNetworkInterfacesInput{Filters: []types.Filter{{Name: &name, Values: values}}}))(f)
		return len(out.NetworkInterfaces)
	}
	for _, tc := range []struct {
		name   string
		values []string
		want   int
	}{
		{"tag:n", []string{"3"}, 1}, {"tag:n", []string{"1*"}, 3}, {"tag-key", []string{"n"}, 12}, {"tag:none", []string{"x"}, 0},
		{"attachment.instance-id", []string{f.instance}, 2}, {"interface-type", []string{"trunk"}, 1}, {"status", []string{"available"}, 12},
		{"status", []string{"available", "in-use"}, 14}, {"group-id", []string{f.group}, 14}, {"subnet-id", []string{f.subnet}, 14},
		{"vpc-id", []string{"vpc-0"}, 0}, {"network-interface-id", []string{trunk}, 1}, {"description", []string{"te?t"}, 13},
	} {
		if got := count(tc.name, tc.values...); got != tc.want {
			t.Errorf("%s=%v: %d, want %d", tc.name, tc.values, got, tc.want)
		}
	}
	var seen []string
	pages := ec2.NewDescribeNetworkInterfacesPaginator(f.ec2, &ec2.DescribeNetworkInterfacesInput{
		MaxResults: ptr(int32(5)), Filters: []types.Filter{{Name: ptr("tag-key"), Values: []string{"n"}}},
	})
	for pages.HasMorePages() {
		page := must(pages.NextPage(f.ctx))(f)
		for _, e := range page.NetworkInterfaces {
			seen = append(seen, *e.NetworkInterfaceId)
		}
		if len(seen) == 5 { // an interface that goes meanwhile shifts no other
			must(f.ec2.DeleteNetworkInterface(f.ctx, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: &mine[0]}))(f)
		}
	}
	if !slices.Equal(seen, mine) {
		t.Errorf("pages gave %v, want %v", seen, mine)
	}
	_, err := f.ec2.DescribeNetworkInterfaces(f.ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{"eni-0"}})
	wantCode(t, err, "InvalidNetworkInterfaceID.NotFound")
}

func TestAnInterfacesAttributesCanBeModified(t *testing.T) {
	f := newFixture(t, Config{})
	id := f.eni("interface")
	att := must(f.attach(id, f.instance, 1))(f)
	for _, in := range []*ec2.ModifyNetworkInterfaceAttributeInput{
		{SourceDestCheck: &types.AttributeBooleanValue{Value: ptr(false)}},
		{Description: &types.AttributeValue{Value: ptr("new")}},
		{Attachment: &types.NetworkInterfaceAttachmentChanges{AttachmentId: &att, DeleteOnTermination: ptr(true)}},
	} {
		in.NetworkInterfaceId = &id
		must(f.ec2.ModifyNetworkInterfaceAttribute(f.ctx, in))(f)
	}
	d := f.describe(id)
	if *d.SourceDestCheck || *d.Description != "new" || !*d.Attachment.DeleteOnTermination {
		t.Errorf("%+v", d)
	}
	_, err := f.ec2.ModifyNetworkInterfaceAttribute(f.ctx, &ec2.ModifyNetworkInterfaceAttributeInput{NetworkInterfaceId: &id, Groups: []string{"sg-0"}})
	wantCode(t, err, "InvalidGroup.NotFound")
}

func TestTerminationTakesWhatItShould(t *testing.T) {
	f := newFixture(t, Config{})
	free := f.free()
	trunk, kept, branch := f.trunk(), f.eni("interface"), f.eni("interface")
	must(f.attach(kept, f.instance, 1))(f)
	must(f.associate(branch, trunk, 1))(f)
	att := *f.describe(trunk).Attachment.AttachmentId
	must(f.ec2.ModifyNetworkInterfaceAttribute(f.ctx, &ec2.ModifyNetworkInterfaceAttributeInput{NetworkInterfaceId: &trunk,
		Attachment: &types.NetworkInterfaceAttachmentChanges{AttachmentId: &att, DeleteOnTermination: ptr(true)}}))(f)
	must(f.ec2.TerminateInstances(f.ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{f.instance}}))(f)

	out := must(f.ec2.DescribeInstances(f.ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{f.instance}}))(f)
	if s := out.Reservations[0].Instances[0].State.Name; s != "terminated" {
		t.Errorf("state %s", s)
	}
	_, err := f.ec2.DescribeNetworkInterfaces(f.ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{trunk}})
	wantCode(t, err, "InvalidNetworkInterfaceID.NotFound")
	for _, id := range []string{kept, branch} {
		if d := f.describe(id); d.Status != "available" || d.Attachment != nil {
			t.Errorf("%s: %s %v", id, d.Status, d.Attachment)
		}
	}
	if got := f.free(); got != free-1 { // the primary's address is free again, two interfaces are left
		t.Errorf("%d free addresses, want %d", got, free-1)
	}
	if _, ok := f.region.Metadata(f.instance).Instance(); ok {
		t.Error("a terminated instance still has metadata")
	}
}

func TestInstanceTypesComeFromTheSharedTable(t *testing.T) {
	f := newFixture(t, Config{})
	out := must(f.ec2.DescribeInstanceTypes(f.ctx, &ec2.DescribeInstanceTypesInput{InstanceTypes: []types.InstanceType{"m5.large"}}))(f)
	n := out.InstanceTypes[0].NetworkInfo
	if *n.MaximumNetworkInterfaces != 3 || *n.Ipv4AddressesPerInterface != 10 || len(n.NetworkCards) != 1 ||
		out.InstanceTypes[0].Hypervisor != "nitro" || out.InstanceTypes[0].ProcessorInfo.SupportedArchitectures[0] != "x86_64" {
		t.Errorf("%+v", out.InstanceTypes[0])
	}
}
