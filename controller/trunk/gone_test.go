package trunk

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/controller/cloud"
)

// leftBehind is what EC2 has left of an instance: branch ENIs, of which some are associated.
type leftBehind struct {
	cloud.EC2
	enis       map[string]string // branch ENI -> association, or ""
	listings   int
	incomplete []string // deleted while associated
}

func (e *leftBehind) DescribeNetworkInterfaces(context.Context, *ec2.DescribeNetworkInterfacesInput, ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error) {
	out := &ec2.DescribeNetworkInterfacesOutput{}
	for _, id := range slices.Sorted(maps.Keys(e.enis)) {
		out.NetworkInterfaces = append(out.NetworkInterfaces, types.NetworkInterface{NetworkInterfaceId: &id, TagSet: []types.Tag{
			{Key: awssdk.String("vpcresources.k8s.aws/trunk-eni-id"), Value: awssdk.String("eni-trunk")},
		}})
	}
	return out, nil
}

func (e *leftBehind) DescribeTrunkInterfaceAssociations(_ context.Context, in *ec2.DescribeTrunkInterfaceAssociationsInput, _ ...func(*ec2.Options)) (*ec2.DescribeTrunkInterfaceAssociationsOutput, error) {
	if e.listings++; len(in.Filters) != 1 || !slices.Equal(in.Filters[0].Values, []string{"eni-trunk"}) {
		return nil, fmt.Errorf("asked by %v", in.Filters)
	}
	out := &ec2.DescribeTrunkInterfaceAssociationsOutput{}
	for id, association := range e.enis {
		if association != "" {
			out.InterfaceAssociations = append(out.InterfaceAssociations, types.TrunkInterfaceAssociation{AssociationId: &association, BranchInterfaceId: &id})
		}
	}
	return out, nil
}

func (e *leftBehind) DisassociateTrunkInterface(_ context.Context, in *ec2.DisassociateTrunkInterfaceInput, _ ...func(*ec2.Options)) (*ec2.DisassociateTrunkInterfaceOutput, error) {
	for id, association := range e.enis {
		if association == *in.AssociationId {
			e.enis[id] = ""
		}
	}
	return &ec2.DisassociateTrunkInterfaceOutput{}, nil
}

func (e *leftBehind) DeleteNetworkInterface(_ context.Context, in *ec2.DeleteNetworkInterfaceInput, _ ...func(*ec2.Options)) (*ec2.DeleteNetworkInterfaceOutput, error) {
	if e.enis[*in.NetworkInterfaceId] != "" {
		e.incomplete = append(e.incomplete, *in.NetworkInterfaceId)
	}
	delete(e.enis, *in.NetworkInterfaceId)
	return &ec2.DeleteNetworkInterfaceOutput{}, nil
}

func TestAnInstanceIsClearedWithOneListingOfItsTrunkAtMost(t *testing.T) {
	for name, tt := range map[string]struct{ known, unknown, listings int }{
		"every association is in the ledger": {known: 50},
		"some were cut off while made":       {known: 20, unknown: 30, listings: 1},
		"the ledger was lost":                {unknown: 50, listings: 1},
		"nothing is left":                    {},
	} {
		e := &leftBehind{enis: map[string]string{}}
		l := &ledgerv1.BranchLedger{Spec: ledgerv1.BranchLedgerSpec{InstanceID: "i-01", TrunkENIID: "eni-trunk"}}
		for n := range tt.known + tt.unknown {
			id := fmt.Sprintf("eni-%02d", n)
			e.enis[id] = "of-" + id
			if n < tt.known {
				l.Spec.Slots = append(l.Spec.Slots, ledgerv1.Slot{VLANID: int32(n + 1), State: ledgerv1.Deleting, ENIID: id, AssociationID: "of-" + id})
			}
		}
		r := &Instances{Cloud: &cloud.Client{EC2: e, ClusterName: "demo"}}
		if err := r.remove(t.Context(), l); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(e.enis) > 0 || len(e.incomplete) > 0 || e.listings != tt.listings {
			t.Errorf("%s: left %v, deleted while associated %v, %d listings, want %d", name, e.enis, e.incomplete, e.listings, tt.listings)
		}
	}
}
