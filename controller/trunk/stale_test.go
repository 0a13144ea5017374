package trunk

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apitypes "k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/controller/cloud"
	"github.com/branchline-cni/branchline/controller/ledger"
)

var ledgers = schema.GroupResource{Group: "branchline.dev", Resource: "branchledgers"}

// lagging is a client whose cache has not seen the ledger that the API server has.
type lagging struct{ client.Client }

func (lagging) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return apierrors.NewNotFound(ledgers, "i-01")
}

func (lagging) Create(context.Context, client.Object, ...client.CreateOption) error {
	return apierrors.NewAlreadyExists(ledgers, "i-01")
}

type live struct {
	client.Reader
	l ledgerv1.BranchLedger
}

func (s live) Get(_ context.Context, _ client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	s.l.DeepCopyInto(o.(*ledgerv1.BranchLedger))
	return nil
}

var errEnough = errors.New("the test has seen enough")

// oneInstance is an EC2 with one m5.large without a trunk, that writes down with which token one is asked for.
type oneInstance struct {
	cloud.EC2
	tokens []string
}

func (*oneInstance) DescribeInstances(context.Context, *ec2.DescribeInstancesInput, ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error) {
	return &ec2.DescribeInstancesOutput{Reservations: []types.Reservation{{Instances: []types.Instance{{
		InstanceId: awssdk.String("i-01"), InstanceType: "m5.large", SubnetId: awssdk.String("subnet-1"), State: &types.InstanceState{Name: "running"},
		NetworkInterfaces: []types.InstanceNetworkInterface{{Attachment: &types.InstanceNetworkInterfaceAttachment{DeviceIndex: awssdk.Int32(0)}, SubnetId: awssdk.String("subnet-1")}},
	}}}}}, nil
}

func (*oneInstance) DescribeSubnets(_ context.Context, in *ec2.DescribeSubnetsInput, _ ...func(*ec2.Options)) (*ec2.DescribeSubnetsOutput, error) {
	return &ec2.DescribeSubnetsOutput{Subnets: []types.Subnet{{SubnetId: &in.SubnetIds[0], CidrBlock: awssdk.String("192.168.0.0/19")}}}, nil
}

func (*oneInstance) DescribeNetworkInterfaces(context.Context, *ec2.DescribeNetworkInterfacesInput, ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error) {
	return &ec2.DescribeNetworkInterfacesOutput{}, nil
}

func (o *oneInstance) CreateNetworkInterface(_ context.Context, in *ec2.CreateNetworkInterfaceInput, _ ...func(*ec2.Options)) (*ec2.CreateNetworkInterfaceOutput, error) {
	o.tokens = append(o.tokens, *in.ClientToken)
	return nil, errEnough
}

// Were the token made of what the cache lacks, an attempt that is repeated would make a second trunk.
func TestACacheThatLagsDoesNotChangeTheTrunksToken(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelInstanceTypeStable: "m5.large"}}}
	for uid, want := range map[apitypes.UID]string{"u-1": "trunk-u-1", "": ""} {
		e := &oneInstance{}
		stored := live{l: ledgerv1.BranchLedger{ObjectMeta: metav1.ObjectMeta{Name: "i-01"}, Spec: ledgerv1.BranchLedgerSpec{NodeName: "n", InstanceID: "i-01"}}}
		stored.l.UID = uid
		r := &Nodes{Client: lagging{}, Cloud: &cloud.Client{EC2: e, ClusterName: "demo"}, Ledgers: &ledger.Store{Reader: stored}, Log: slog.New(slog.DiscardHandler)}
		_, err := r.prepare(t.Context(), node, "i-01", &v1alpha1.CNINode{}, custom{})
		if err == nil || want != "" && (!errors.Is(err, errEnough) || len(e.tokens) != 1 || e.tokens[0] != want) || want == "" && len(e.tokens) > 0 {
			t.Errorf("UID %q: %v, tokens %q, want %q", uid, err, e.tokens, want)
		}
	}
}
