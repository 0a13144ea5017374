package cloud

import (
	"context"
	"fmt"
	"strconv"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// pages is an EC2 that answers in pages, as large as they are asked for.
type pages struct {
	EC2   // any other call is a nil pointer's
	n     int
	calls int
}

func (p *pages) window(token *string, size int32) (from, to int, next *string) {
	p.calls++
	from, _ = strconv.Atoi(awssdk.ToString(token))
	if to = from + int(size); to < p.n {
		return from, to, awssdk.String(strconv.Itoa(to))
	}
	return from, p.n, nil
}

func (p *pages) DescribeNetworkInterfaces(_ context.Context, in *ec2.DescribeNetworkInterfacesInput, _ ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error) {
	out := &ec2.DescribeNetworkInterfacesOutput{}
	has := map[string]string{}
	for _, f := range in.Filters {
		has[*f.Name] = f.Values[0]
	}
	if has["tag:"+tagOwner] != owner || has["tag:"+tagCluster+"demo"] != "owned" {
		return nil, fmt.Errorf("filters %v would bring others' ENIs", has)
	}
	from, to, next := p.window(in.NextToken, *in.MaxResults)
	for i := from; i < to; i++ {
		out.NetworkInterfaces = append(out.NetworkInterfaces, types.NetworkInterface{NetworkInterfaceId: awssdk.String(fmt.Sprint("eni-", i))})
	}
	out.NextToken = next
	return out, nil
}

func (p *pages) DescribeTrunkInterfaceAssociations(_ context.Context, in *ec2.DescribeTrunkInterfaceAssociationsInput, _ ...func(*ec2.Options)) (*ec2.DescribeTrunkInterfaceAssociationsOutput, error) {
	out := &ec2.DescribeTrunkInterfaceAssociationsOutput{}
	if len(in.Filters) != 1 || *in.Filters[0].Name != filterTrunk || len(in.Filters[0].Values) > maxFilterValues {
		return nil, fmt.Errorf("filters %v would bring the whole account's", in.Filters)
	}
	from, to, next := p.window(in.NextToken, *in.MaxResults)
	for i := from; i < to; i++ {
		out.InterfaceAssociations = append(out.InterfaceAssociations, types.TrunkInterfaceAssociation{AssociationId: awssdk.String(fmt.Sprint("a-", i))})
	}
	out.NextToken = next
	return out, nil
}

func TestListsAreReadToTheirLastPage(t *testing.T) {
	for _, n := range []int{0, 1, 500, 501, 1700} {
		p := &pages{n: n}
		c := &Client{EC2: p, ClusterName: "demo"}
		enis, err := c.OfCluster(t.Context())
		if err != nil || len(enis) != n || p.calls != max(1, (n+499)/500) {
			t.Errorf("%d ENIs: %d in %d calls, %v", n, len(enis), p.calls, err)
		}
		p.calls = 0
		all, err := c.Associations(t.Context(), "eni-trunk")
		if err != nil || len(all) != n || p.calls != max(1, (n+254)/255) {
			t.Errorf("%d associations: %d in %d calls, %v", n, len(all), p.calls, err)
		}
		ids, err := c.AssociationIDs(t.Context(), []string{"eni-trunk", "", "eni-trunk"})
		if err != nil || len(ids) != min(n, 1) || p.calls != 2*max(1, (n+254)/255) {
			t.Errorf("%d associations: %d in %d calls, %v", n, len(ids), p.calls, err)
		}
	}
}

// Whoever asks what is on no trunk would take the answer for the absence of everything.
func TestNoTrunkIsNotATrunkWithoutAssociations(t *testing.T) {
	p := &pages{n: 3}
	c := &Client{EC2: p, ClusterName: "demo"}
	if all, err := c.Associations(t.Context(), ""); err == nil {
		t.Errorf("%v, no error", all)
	}
	if ids, err := c.AssociationIDs(t.Context(), []string{""}); err != nil || len(ids) > 0 || p.calls > 0 {
		t.Errorf("%v, %v after %d calls", ids, err, p.calls)
	}
	var many []string
	for n := range 2*maxFilterValues + 1 {
		many = append(many, fmt.Sprint("eni-", n))
	}
	if _, err := c.AssociationIDs(t.Context(), many); err != nil || p.calls != 3 {
		t.Errorf("%d calls, %v", p.calls, err)
	}
}
