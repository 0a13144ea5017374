package enis

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/placement"
)

// account is EC2 with as much state as provisioning looks at; codes holds the answer of the next calls of an API.
type account struct {
	EC2
	enis  map[string]*types.NetworkInterface
	codes map[string][]string
	free  int // addresses left in the subnet
	calls []string
}

func (a *account) fail(api string) error {
	a.calls = append(a.calls, api)
	if len(a.codes[api]) == 0 {
		return nil
	}
	code := a.codes[api][0]
	a.codes[api] = a.codes[api][1:]
	return &smithy.GenericAPIError{Code: code, Message: "scripted"}
}

func (a *account) CreateNetworkInterface(_ context.Context, in *ec2.CreateNetworkInterfaceInput, _ ...func(*ec2.Options)) (*ec2.CreateNetworkInterfaceOutput, error) {
	if err := a.fail("Create"); err != nil {
		return nil, err
	}
	n := 1
	if in.SecondaryPrivateIpAddressCount != nil {
		n += int(*in.SecondaryPrivateIpAddressCount)
	}
	if n > a.free {
		return nil, &smithy.GenericAPIError{Code: aws.CodeSubnetFull}
	}
	a.free -= n
	id := fmt.Sprintf("eni-%d", len(a.enis)+1)
	a.enis[id] = &types.NetworkInterface{NetworkInterfaceId: &id, Description: in.Description, TagSet: in.TagSpecifications[0].Tags}
	return &ec2.CreateNetworkInterfaceOutput{NetworkInterface: a.enis[id]}, nil
}

func (a *account) AttachNetworkInterface(_ context.Context, in *ec2.AttachNetworkInterfaceInput, _ ...func(*ec2.Options)) (*ec2.AttachNetworkInterfaceOutput, error) {
	if err := a.fail("Attach"); err != nil {
		return nil, err
	}
	id := "attach-" + *in.NetworkInterfaceId
	a.enis[*in.NetworkInterfaceId].Attachment = &types.NetworkInterfaceAttachment{AttachmentId: &id, DeviceIndex: in.DeviceIndex}
	return &ec2.AttachNetworkInterfaceOutput{AttachmentId: &id}, nil
}

func (a *account) ModifyNetworkInterfaceAttribute(_ context.Context, in *ec2.ModifyNetworkInterfaceAttributeInput, _ ...func(*ec2.Options)) (*ec2.ModifyNetworkInterfaceAttributeOutput, error) {
	if err := a.fail("Modify"); err != nil {
		return nil, err
	}
	a.enis[*in.NetworkInterfaceId].Attachment.DeleteOnTermination = in.Attachment.DeleteOnTermination
	return &ec2.ModifyNetworkInterfaceAttributeOutput{}, nil
}

func (a *account) DescribeNetworkInterfaces(_ context.Context, in *ec2.DescribeNetworkInterfacesInput, _ ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error) {
	out := &ec2.DescribeNetworkInterfacesOutput{}
	for id, n := range a.enis {
		if len(in.NetworkInterfaceIds) == 0 && n.Attachment == nil || slices.Contains(in.NetworkInterfaceIds, id) {
			out.NetworkInterfaces = append(out.NetworkInterfaces, *n)
		}
	}
	return out, nil
}

func (a *account) DetachNetworkInterface(_ context.Context, in *ec2.DetachNetworkInterfaceInput, _ ...func(*ec2.Options)) (*ec2.DetachNetworkInterfaceOutput, error) {
	if err := a.fail("Detach"); err != nil {
		return nil, err
	}
	a.enis[strings.TrimPrefix(*in.AttachmentId, "attach-")].Attachment = nil
	return &ec2.DetachNetworkInterfaceOutput{}, nil
}

func (a *account) DeleteNetworkInterface(_ context.Context, in *ec2.DeleteNetworkInterfaceInput, _ ...func(*ec2.Options)) (*ec2.DeleteNetworkInterfaceOutput, error) {
	if err := a.fail("Delete"); err != nil {
		return nil, err
	}
	delete(a.enis, *in.NetworkInterfaceId)
	return &ec2.DeleteNetworkInterfaceOutput{}, nil
}

func provisioner() (*Provisioner, *account) {
	a := &account{enis: map[string]*types.NetworkInterface{}, codes: map[string][]string{}, free: 100}
	return &Provisioner{
		EC2: a, InstanceID: "i-1", ClusterName: "c", Tags: map[string]string{"team": "blue", placement.TagInstance: "forged"}, Now: time.Now,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Sleep: func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
	}, a
}

func TestAttachTakesTheLowestFreeIndexAndTagsTheENI(t *testing.T) {
	p, a := provisioner()
	id, device, err := p.Attach(context.Background(), placement.Place{SubnetID: "subnet-1"}, 0, []int{0, 1, 3}, 9, false)
	if err != nil || device != 2 {
		t.Fatal(id, device, err)
	}
	n := a.enis[id]
	tags := map[string]string{}
	for _, tag := range n.TagSet {
		tags[*tag.Key] = *tag.Value
	}
	if *n.Description != "aws-K8S-i-1" || tags[placement.TagInstance] != "i-1" || tags[TagCluster] != "c" || tags[TagOwner] != "amazon-vpc-cni" || tags["team"] != "blue" || !*n.Attachment.DeleteOnTermination {
		t.Errorf("%+v, tags %v", n, tags)
	}
	if _, err := time.Parse(time.RFC3339, tags[TagCreatedAt]); err != nil {
		t.Error(err)
	}
}

func TestP28AFailedAttachLeavesNothingBehind(t *testing.T) {
	for _, api := range []string{"Attach", "Modify"} {
		p, a := provisioner()
		a.codes[api] = []string{"UnauthorizedOperation"}
		a.codes["Delete"] = []string{"InvalidParameterValue"} // still detaching
		if _, _, err := p.Attach(context.Background(), placement.Place{}, 0, nil, 9, false); err == nil {
			t.Fatal("no error")
		}
		if len(a.enis) > 0 {
			t.Errorf("%s failed and left %v", api, a.enis)
		}
	}
}

func TestAnAlmostFullSubnetGivesWhatItHas(t *testing.T) {
	p, a := provisioner()
	a.free = 4
	if id, _, err := p.Attach(context.Background(), placement.Place{}, 0, nil, 9, false); err != nil || id == "" {
		t.Fatal(id, err)
	}
}

func TestP28SweepDeletesOnlyWhatIsDetached(t *testing.T) {
	p, a := provisioner()
	kept, _, err := p.Attach(context.Background(), placement.Place{}, 0, nil, 1, false)
	if err != nil {
		t.Fatal(err)
	}
	left := "eni-left"
	a.enis[left] = &types.NetworkInterface{NetworkInterfaceId: &left}
	deleted, err := p.Sweep(context.Background())
	if err != nil || !slices.Equal(deleted, []string{left}) || a.enis[kept] == nil {
		t.Fatal(deleted, err)
	}
}
