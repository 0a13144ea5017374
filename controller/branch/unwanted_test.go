package branch

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/controller/cloud"
	"github.com/branchline-cni/branchline/controller/ledger"
)

// stored is an API server with one ledger, or none.
type stored struct {
	client.Reader
	l *ledgerv1.BranchLedger
}

func (s stored) Get(_ context.Context, _ client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	if s.l == nil {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "branchledgers"}, "i-1")
	}
	s.l.DeepCopyInto(o.(*ledgerv1.BranchLedger))
	return nil
}

type deletions struct {
	cloud.EC2
	of []string
}

func (d *deletions) DeleteNetworkInterface(_ context.Context, in *ec2.DeleteNetworkInterfaceInput, _ ...func(*ec2.Options)) (*ec2.DeleteNetworkInterfaceOutput, error) {
	d.of = append(d.of, *in.NetworkInterfaceId)
	return &ec2.DeleteNetworkInterfaceOutput{}, nil
}

// A leader that hung in a call past its lease comes back with the ENI that its successor has given to the pod.
func TestAnENIThatAnotherLeaderTookOverIsNotDeleted(t *testing.T) {
	with := func(slots ...ledgerv1.Slot) *ledgerv1.BranchLedger {
		return &ledgerv1.BranchLedger{Spec: ledgerv1.BranchLedgerSpec{Slots: slots}}
	}
	for _, tt := range []struct {
		what    string
		l       *ledgerv1.BranchLedger
		deletes bool
	}{
		{"the ledger is gone", nil, true},
		{"nobody has it", with(ledgerv1.Slot{VLANID: 1, State: ledgerv1.Bound, ENIID: "eni-2", Claim: "c2"}), true},
		{"bound by another leader", with(ledgerv1.Slot{VLANID: 1, State: ledgerv1.Bound, ENIID: "eni-1", Claim: "c1"}), false},
		{"its slot is being deleted", with(ledgerv1.Slot{VLANID: 1, State: ledgerv1.Deleting, Claim: "c1"}), true},
		{"adopted under another claim", with(ledgerv1.Slot{VLANID: 1, State: ledgerv1.Bound, ENIID: "eni-1"}), false},
	} {
		d := &deletions{}
		r := &Pods{Ledgers: &ledger.Store{Reader: stored{l: tt.l}}, Cloud: &cloud.Client{EC2: d, ClusterName: "demo"}}
		if err := r.unwanted(t.Context(), "i-1", "c1", "eni-1"); err != nil || (len(d.of) == 1) != tt.deletes {
			t.Errorf("%s: %v, deleted %v", tt.what, err, d.of)
		}
	}
}

// unreadable is an API server that does not answer.
type unreadable struct{ client.Reader }

var errAway = errors.New("the API server is away")

func (unreadable) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return errAway
}

// Where the ledger does not say so yet no watch brings the pod back: the work queue has to.
func TestALossThatCanNotBeWrittenIsAnError(t *testing.T) {
	r := &Pods{Ledgers: &ledger.Store{Reader: unreadable{}}, Now: time.Now}
	err := r.lost(t.Context(), "i-1", &ledgerv1.Slot{VLANID: 1, PodUID: "u", ENIID: "eni-1"}, cloud.ErrENIGone)
	if !errors.Is(err, errAway) || !errors.Is(err, cloud.ErrENIGone) || errors.Is(err, ledger.ErrMoved) {
		t.Errorf("%v", err)
	}
}
