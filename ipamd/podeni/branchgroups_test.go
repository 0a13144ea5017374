package podeni

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/policy"
)

// region is EC2 with branch ENIs and their groups. A call takes a second.
type region struct {
	mu     sync.Mutex
	groups map[string][]string
	fail   error
	calls  [][]string
}

func (r *region) set(f func()) { r.mu.Lock(); defer r.mu.Unlock(); f() }

// asked counts the calls. One may be under way that nobody waits for any more.
func (r *region) asked() int { r.mu.Lock(); defer r.mu.Unlock(); return len(r.calls) }

func (r *region) DescribeNetworkInterfaces(ctx context.Context, in *ec2.DescribeNetworkInterfacesInput, _ ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error) {
	if len(in.Filters) != 1 || awssdk.ToString(in.Filters[0].Name) != "network-interface-id" || len(in.Filters[0].Values) > mostFilterValues {
		return nil, fmt.Errorf("asked with %+v", in)
	}
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, slices.Clone(in.Filters[0].Values))
	if r.fail != nil {
		return nil, r.fail
	}
	out := &ec2.DescribeNetworkInterfacesOutput{}
	for _, id := range in.Filters[0].Values {
		groups, ok := r.groups[id]
		if !ok {
			continue
		}
		n := types.NetworkInterface{NetworkInterfaceId: &id}
		for _, g := range groups {
			n.Groups = append(n.Groups, types.GroupIdentifier{GroupId: &g})
		}
		out.NetworkInterfaces = append(out.NetworkInterfaces, n)
	}
	return out, nil
}

func TestPodsThatComeAtOnceShareACallToEC2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &region{groups: map[string][]string{}}
		for i := range 300 {
			r.groups[fmt.Sprint("eni-", i)] = []string{fmt.Sprint("sg-", i)}
		}
		b := &BranchGroups{EC2: r, Now: time.Now}
		began := time.Now()
		var wg sync.WaitGroup
		for i := range 300 {
			wg.Go(func() {
				got, err := b.Of(t.Context(), fmt.Sprint("eni-", i), began)
				if err != nil || !slices.Equal(got, []string{fmt.Sprint("sg-", i)}) {
					t.Errorf("eni-%d: %v, %v", i, got, err)
				}
			})
		}
		wg.Wait()
		if n := len(r.calls); n > 3 { // the first asker's, and the others' two hundred at a time
			t.Errorf("%d calls", n)
		}
		// The same again costs nothing, for a while.
		r.calls = nil
		if _, err := b.Of(t.Context(), "eni-7", time.Now().Add(-rememberGroups)); err != nil || len(r.calls) > 0 {
			t.Errorf("%v, %v", err, r.calls)
		}
		if _, err := b.Of(t.Context(), "eni-7", time.Now()); err != nil || len(r.calls) != 1 {
			t.Errorf("%v, %v", err, r.calls)
		}
		time.Sleep(rememberGroups + time.Second)
		if _, err := b.Of(t.Context(), "eni-8", time.Now()); err != nil || len(b.known) != 1 {
			t.Errorf("%v, remembered %d", err, len(b.known))
		}
		if _, err := b.Of(t.Context(), "eni-none", time.Now()); !errors.Is(err, errNotDescribed) || !strings.Contains(err.Error(), "eni-none") {
			t.Errorf("one that EC2 does not know: %v", err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := b.Of(ended, "eni-9", time.Now()); !errors.Is(err, context.Canceled) {
			t.Errorf("who waits no more: %v", err)
		}
		time.Sleep(describeTimeout) // what is under way ends
	})
}

// hosted is a control plane that keeps no ledger.
type hosted struct{}

func (hosted) Ledger() (*ledgerv1.BranchLedger, error) { return nil, kube.ErrNoLedgers }

// TestP2WithTheHostedControlPlaneABranchENIsGroupsAreEC2s: there is no ledger that tells them.
func TestP2WithTheHostedControlPlaneABranchENIsGroupsAreEC2s(t *testing.T) {
	byPod := selecting(v1beta1.SecurityGroupPolicySpec{PodSelector: &metav1.LabelSelector{}})
	byAccount := selecting(v1beta1.SecurityGroupPolicySpec{ServiceAccountSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"role": "db"}}})
	younger := slices.Clone(byPod)
	younger[0].CreationTimestamp = metav1.Unix(300, 0)
	denied := &smithy.GenericAPIError{Code: "UnauthorizedOperation", Message: "You are not authorized to perform this operation. User: arn:aws:sts::1:assumed-role/nodes/i-1 is not authorized to perform: ec2:DescribeNetworkInterfaces"}
	throttled := &smithy.GenericAPIError{Code: "RequestLimitExceeded"}
	with := func(groups ...string) *region {
		return &region{groups: map[string][]string{"eni-0b000000000000007": groups}}
	}
	for name, tt := range map[string]struct {
		p         *policies
		ec2       *region
		never     bool // EC2 is never asked
		later     func(*region)
		took      time.Duration // at most
		err       error
		says      string
		calls     int // at most
		complains int
	}{
		"no policy, nobody is asked":            {p: &policies{}, ec2: with()},
		"all groups":                            {p: &policies{memory: byPod}, ec2: with("sg-1", "sg-2"), took: time.Second, calls: 1},
		"too few":                               {p: &policies{memory: byPod}, ec2: with("sg-2"), took: 85 * time.Second, err: ErrLate, says: "sg-1", calls: 12},
		"none at all":                           {p: &policies{memory: byPod}, ec2: with(), took: 85 * time.Second, err: ErrLate, says: "sg-1", calls: 12},
		"described late":                        {p: &policies{memory: byPod}, ec2: &region{groups: map[string][]string{}}, later: func(r *region) { r.groups["eni-0b000000000000007"] = []string{"sg-1"} }, took: 30 * time.Second, calls: 5},
		"its groups are described late":         {p: &policies{memory: byPod}, ec2: with("sg-2"), later: func(r *region) { r.groups["eni-0b000000000000007"] = []string{"sg-1"} }, took: 30 * time.Second, calls: 8},
		"never described":                       {p: &policies{memory: byPod}, ec2: &region{}, took: 85 * time.Second, err: ErrUnavailable, says: "eni-0b000000000000007", calls: 10},
		"throttled, then not":                   {p: &policies{memory: byPod}, ec2: &region{groups: with("sg-1").groups, fail: throttled}, later: func(r *region) { r.fail = nil }, took: 30 * time.Second, calls: 5},
		"throttled":                             {p: &policies{memory: byPod}, ec2: &region{fail: throttled}, took: 85 * time.Second, err: ErrUnavailable, says: "ec2:DescribeNetworkInterfaces", calls: 10},
		"the role may not":                      {p: &policies{memory: byPod}, ec2: &region{fail: denied}, took: time.Second, calls: 1, complains: 1},
		"no credentials for the role":           {p: &policies{memory: byPod}, ec2: &region{fail: &smithy.GenericAPIError{Code: "AccessDenied", Message: "not authorized to perform sts:AssumeRoleWithWebIdentity"}}, took: 85 * time.Second, err: ErrUnavailable, says: "AssumeRole", calls: 10},
		"EC2 is never asked":                    {p: &policies{memory: byPod}, ec2: with(), never: true},
		"a policy younger than the pod":         {p: &policies{memory: younger}, ec2: with("sg-2")},
		"by account: too few":                   {p: &policies{memory: byAccount, account: map[string]string{"role": "db"}}, ec2: with("sg-2"), took: 85 * time.Second, err: ErrLate, says: "sg-1", calls: 12},
		"by account: all":                       {p: &policies{memory: byAccount, account: map[string]string{"role": "db"}}, ec2: with("sg-1"), took: time.Second, calls: 1},
		"by account: another's":                 {p: &policies{memory: byAccount, account: map[string]string{}}, ec2: with("sg-2")},
		"memory lags, the API server knows":     {p: &policies{stale: true, live: byPod}, ec2: with("sg-2"), took: 85 * time.Second, err: ErrLate, says: "sg-1", calls: 12},
		"memory lags, the API server is silent": {p: &policies{stale: true, hang: true}, ec2: with("sg-1"), took: 85 * time.Second, err: ErrUnavailable, says: "list"},
		"memory lags, the API server says no":   {p: &policies{stale: true, fail: errors.New("no")}, ec2: with("sg-1"), err: ErrUnavailable, says: "no"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", CreationTimestamp: metav1.Unix(200, 0)}}
				o.Spec.Containers = []corev1.Container{{Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{policy.Resource: resource.MustParse("1")}}}}
				pod := kube.Pod{Namespace: "default", Name: "p", UID: "1", Branch: true, Object: o,
					Annotation: `[{"eniId":"eni-0b000000000000007","ifAddress":"06:20:0d:3c:5f:07","privateIp":"192.168.200.17","vlanId":7,"subnetCidr":"192.168.200.0/24"}]`}
				c := &cluster{}
				c.watched.Store("default/p", pod)
				var complaints atomic.Int32
				a := &Assignments{Pods: c, Ledgers: hosted{}, Guard: NewGuard(tt.p, tt.p.C, time.Now), PodsChanged: c.changed.C, TrunkChanged: c.changed.C,
					Trunk:  func() (enis.ENI, bool) { return enis.ENI{ID: "eni-trunk", LinkIndex: 2, LinkUp: true}, true },
					Groups: &BranchGroups{EC2: tt.ec2, Now: time.Now, Denied: func(error) { complaints.Add(1) }}}
				if tt.never {
					a.Groups = nil
				}
				if tt.later != nil {
					time.AfterFunc(10*time.Second, func() { tt.ec2.set(func() { tt.later(tt.ec2) }) })
				}
				ctx, cancel := context.WithTimeout(t.Context(), 85*time.Second)
				defer cancel()
				go func() { // events of the node's other pods bring no question
					for ctx.Err() == nil {
						time.Sleep(100 * time.Millisecond)
						c.changed.Fire()
					}
				}()
				began := time.Now()
				b, _, err := a.Wait(ctx, pod)
				if took := time.Since(began); took > tt.took {
					t.Errorf("took %s, want at most %s", took, tt.took)
				}
				if !errors.Is(err, tt.err) || err != nil && !strings.Contains(err.Error(), tt.says) || err == nil && b.VLAN != 7 {
					t.Errorf("%+v, %v; want %v", b, err, tt.err)
				}
				if n := tt.ec2.asked(); n > tt.calls || (n > 0) != (tt.calls > 0) {
					t.Errorf("%d calls, want at most %d", n, tt.calls)
				}
				if tt.complains > 0 { // and the next pod costs no call
					if _, _, err := a.Wait(ctx, pod); err != nil || tt.ec2.asked() != 1 {
						t.Errorf("%v after %d calls", err, tt.ec2.asked())
					}
				}
				synctest.Wait() // it complains once those who wait are answered
				if n := int(complaints.Load()); n != tt.complains {
					t.Errorf("complained %d times, want %d", n, tt.complains)
				}
				pod.WiredBefore = true
				calls := tt.ec2.asked()
				c.watched.Store("default/p", pod)
				if _, _, err := a.Wait(t.Context(), pod); err != nil || tt.ec2.asked() > calls {
					t.Errorf("one that ran before: %v, %d calls", err, tt.ec2.asked()-calls)
				}
				cancel()
				time.Sleep(describeTimeout) // what is under way ends
			})
		})
	}
}
