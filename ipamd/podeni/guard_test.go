package podeni

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/signal"
	"github.com/branchline-cni/branchline/policy"
)

// policies is an API server with policies, and a watch of them that shows what it is told to.
type policies struct {
	signal.Signal
	mu       sync.Mutex
	live     []v1beta1.SecurityGroupPolicy
	memory   []v1beta1.SecurityGroupPolicy
	unsynced bool
	stale    bool
	stamps   bool
	account  map[string]string
	fail     error
	hang     bool
	lists    int
	gets     int
}

func (p *policies) set(f func()) {
	p.mu.Lock()
	f()
	p.mu.Unlock()
	p.Fire()
}

func (p *policies) Policies(string) ([]v1beta1.SecurityGroupPolicy, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unsynced {
		return nil, false, kube.ErrNotSynced
	}
	return p.memory, !p.stale, nil
}

func (p *policies) LivePolicies(ctx context.Context, _ string) ([]v1beta1.SecurityGroupPolicy, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lists++
	if p.hang {
		p.mu.Unlock()
		<-ctx.Done()
		p.mu.Lock()
		return nil, fmt.Errorf("list: %w", ctx.Err())
	}
	return p.live, p.fail
}

func (p *policies) AccountLabels(context.Context, string, string) (map[string]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gets++
	return p.account, p.fail
}

func (p *policies) Stamps() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.stamps }

func selecting(by v1beta1.SecurityGroupPolicySpec) []v1beta1.SecurityGroupPolicy {
	by.SecurityGroups = v1beta1.GroupIDs{Groups: []string{"sg-1"}}
	return []v1beta1.SecurityGroupPolicy{{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "green", UID: "u", CreationTimestamp: metav1.Unix(100, 0)}, Spec: by}}
}

func TestARegularPodIsLetThroughOnlyWhereNoPolicySelectsIt(t *testing.T) {
	pod := kube.Pod{Namespace: "default", Name: "p", UID: "1", Object: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "default", Name: "p", Labels: map[string]string{"app": "green"}, CreationTimestamp: metav1.Unix(200, 0),
	}}}
	ran := pod
	ran.WiredBefore = true
	stamped := pod
	stamped.Object = pod.Object.DeepCopy()
	stamped.Object.Annotations = map[string]string{policy.StampKey: "[]"}
	byPod := selecting(v1beta1.SecurityGroupPolicySpec{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "green"}}})
	byAccount := selecting(v1beta1.SecurityGroupPolicySpec{ServiceAccountSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"role": "db"}}})
	db := map[string]string{"role": "db"}
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "securitygrouppolicies"}, "", errors.New("no"))
	for name, tt := range map[string]struct {
		p           *policies
		pod         kube.Pod
		later       func(*policies) // after five seconds
		took        time.Duration
		err         error
		says        string
		lists, gets int
	}{
		"no policy":                             {p: &policies{}, pod: pod},
		"no policy, our control plane":          {p: &policies{stamps: true}, pod: pod},
		"selected, it ran before":               {p: &policies{memory: byPod, live: byPod, stamps: true}, pod: ran},
		"selected, the webhook was away":        {p: &policies{memory: byPod, live: byPod, stamps: true}, pod: pod, err: ErrRefused, says: "default/green", lists: 1},
		"selected, hosted: after the grace":     {p: &policies{memory: byPod, live: byPod}, pod: pod, took: policy.Grace, err: ErrRefused, says: "delete the pod", lists: 1},
		"hosted: the policy goes in time":       {p: &policies{memory: byPod, live: byPod}, pod: pod, later: func(p *policies) { p.memory, p.live = nil, nil }, took: 5 * time.Second},
		"memory lags, the policy is gone":       {p: &policies{memory: byPod, stamps: true}, pod: pod, lists: 1},
		"memory is out of date":                 {p: &policies{live: byPod, stale: true, stamps: true}, pod: pod, err: ErrRefused, says: "default/green", lists: 1},
		"memory is out of date, and right":      {p: &policies{stale: true, stamps: true}, pod: pod, lists: 1},
		"nothing is known yet":                  {p: &policies{unsynced: true, live: byPod, stamps: true}, pod: pod, err: ErrRefused, says: "default/green", lists: 1},
		"by account, stamped: nobody is asked":  {p: &policies{memory: byAccount, account: db, stamps: true}, pod: stamped},
		"by account, unstamped: it is asked":    {p: &policies{memory: byAccount, live: byAccount, account: db, stamps: true}, pod: pod, err: ErrRefused, says: "default/green", lists: 1, gets: 2},
		"by account, hosted, another's":         {p: &policies{memory: byAccount, account: map[string]string{}}, pod: pod, gets: 1},
		"the API server is away, memory is not": {p: &policies{fail: refused}, pod: pod},
		"it is away and comes back": {p: &policies{unsynced: true, fail: refused}, pod: pod, later: func(p *policies) { p.fail = nil },
			took: 5 * time.Second, lists: 4},
		"it is away, the watch comes back": {p: &policies{unsynced: true, fail: refused}, pod: pod, later: func(p *policies) { p.unsynced = false },
			took: 5 * time.Second, lists: 3},
		"it stays away":     {p: &policies{unsynced: true, fail: refused}, pod: pod, took: 85 * time.Second, err: ErrUnavailable, says: "default/p", lists: 43},
		"it hangs":          {p: &policies{unsynced: true, hang: true}, pod: pod, took: 85 * time.Second, err: ErrUnavailable, says: "default/p", lists: 8},
		"the role is old":   {p: &policies{unsynced: true, fail: forbidden}, pod: pod, err: ErrUnavailable, says: "ClusterRole aws-node", lists: 1},
		"confirmed by none": {p: &policies{memory: byPod, fail: refused, stamps: true}, pod: pod, took: 85 * time.Second, err: ErrUnavailable, says: "default/p", lists: 43},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := NewGuard(tt.p, tt.p.C, time.Now)
				if tt.later != nil {
					time.AfterFunc(5*time.Second, func() { tt.p.set(func() { tt.later(tt.p) }) })
				}
				ctx, cancel := context.WithTimeout(t.Context(), 85*time.Second)
				defer cancel()
				began := time.Now()
				err := g.Regular(ctx, tt.pod)
				if !errors.Is(err, tt.err) || err != nil && !strings.Contains(err.Error(), tt.says) {
					t.Errorf("got %v, want %v that says %q", err, tt.err, tt.says)
				}
				if took := time.Since(began); took != tt.took || tt.p.lists != tt.lists || tt.p.gets != tt.gets {
					t.Errorf("took %s with %d lists and %d questions for the account, want %s, %d and %d", took, tt.p.lists, tt.p.gets, tt.took, tt.lists, tt.gets)
				}
			})
		})
	}
}

func TestARefusedPodIsNotFreedByAnEditOfThePolicyButByItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pod := kube.Pod{Namespace: "default", Name: "p", UID: "1", Object: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "p", CreationTimestamp: metav1.Unix(200, 0)}}}
		all := selecting(v1beta1.SecurityGroupPolicySpec{PodSelector: &metav1.LabelSelector{}})
		p := &policies{memory: all, live: all}
		g := NewGuard(p, p.C, time.Now)
		if err := g.Regular(t.Context(), pod); !errors.Is(err, ErrRefused) {
			t.Fatal(err)
		}
		edited := slices.Clone(all)
		changed := metav1.Unix(300, 0)
		edited[0].ManagedFields = []metav1.ManagedFieldsEntry{{Time: &changed}}
		p.set(func() { p.memory, p.live = edited, edited })
		began := time.Now()
		if err := g.Regular(t.Context(), pod); !errors.Is(err, ErrRefused) || time.Since(began) > 0 || p.lists != 1 {
			t.Errorf("%v after %s and %d lists", err, time.Since(began), p.lists)
		}
		other := pod
		other.UID = "2"
		if err := g.Regular(t.Context(), other); err != nil {
			t.Errorf("a pod that is older than the edit: %v", err)
		}
		p.set(func() { p.memory, p.live = nil, nil })
		if err := g.Regular(t.Context(), pod); err != nil {
			t.Errorf("nothing selects it: %v", err)
		}
		if len(g.refused) > 0 {
			t.Errorf("remembered: %v", g.refused)
		}
		p.set(func() { p.memory, p.live = all, all })
		_ = g.Regular(t.Context(), pod)
		time.Sleep(rememberRefused + time.Minute)
		_ = g.Regular(t.Context(), other)
		if len(g.refused) != 1 {
			t.Errorf("remembered for ever: %v", g.refused)
		}
	})
}

func TestABranchENIWithTooFewGroupsIsNotWired(t *testing.T) {
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", CreationTimestamp: metav1.Unix(200, 0)}}
	o.Spec.Containers = []corev1.Container{{Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{policy.Resource: resource.MustParse("1")}}}}
	pod := kube.Pod{Namespace: "default", Name: "p", UID: "1", Branch: true, Object: o}
	p := &policies{memory: selecting(v1beta1.SecurityGroupPolicySpec{PodSelector: &metav1.LabelSelector{}}), stale: true, fail: errors.New("away")}
	g := NewGuard(p, p.C, time.Now)
	account := func() (map[string]string, error) { return p.AccountLabels(t.Context(), "default", "") }
	if err := g.Branch(pod, []string{"sg-2"}, account); !errors.Is(err, ErrLate) || !strings.Contains(err.Error(), "sg-1") {
		t.Errorf("one without its group: %v", err)
	}
	if err := g.Branch(pod, []string{"sg-1", "sg-2"}, account); err != nil {
		t.Errorf("one with more: %v", err)
	}
	p.set(func() { p.unsynced = true })
	if err := g.Branch(pod, []string{"sg-1"}, account); !errors.Is(err, ErrUnavailable) {
		t.Errorf("nothing known: %v", err)
	}
	pod.WiredBefore = true
	if err := g.Branch(pod, nil, account); err != nil {
		t.Errorf("one that ran before: %v", err)
	}
	if p.lists+p.gets > 0 {
		t.Error("the API server was asked")
	}
}

// kept is a control plane that keeps a ledger of one slot.
type kept struct{ slot ledgerv1.Slot }

func (k kept) Ledger() (*ledgerv1.BranchLedger, error) {
	return &ledgerv1.BranchLedger{Spec: ledgerv1.BranchLedgerSpec{Slots: []ledgerv1.Slot{k.slot}}}, nil
}

// The policy was edited in the second in which the pod was created, or a moment before: the stamp speaks of another version.
func TestABranchPodsServiceAccountIsReadOnceWhereTheStampDoesNotSayWhatThePolicyGivesIt(t *testing.T) {
	db := map[string]string{"role": "db"}
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "serviceaccounts"}, "", errors.New("no"))
	for name, tt := range map[string]struct {
		p      *policies
		any    bool // account is selected
		stamp  string
		groups []string
		later  func(*policies) // after five seconds
		took   time.Duration   // at most
		err    error
		says   string
		gets   int
	}{
		"another's account":           {p: &policies{account: map[string]string{}}, groups: []string{"sg-2"}, gets: 1},
		"any account will do":         {p: &policies{}, any: true, groups: []string{"sg-2"}, took: 85 * time.Second, err: ErrLate, says: "sg-1", gets: 1},
		"its account, all groups":     {p: &policies{account: db}, groups: []string{"sg-1"}},
		"its account, too few":        {p: &policies{account: db}, groups: []string{"sg-2"}, took: 85 * time.Second, err: ErrLate, says: "sg-1", gets: 1},
		"no stamp":                    {p: &policies{account: db}, stamp: "-", groups: []string{"sg-2"}, took: 85 * time.Second, err: ErrLate, says: "sg-1", gets: 1},
		"the stamp names the version": {p: &policies{account: map[string]string{}}, stamp: `[{"uid":"u","generation":2}]`, groups: []string{"sg-2"}, took: 85 * time.Second, err: ErrLate, says: "sg-1"},
		"the API server comes back":   {p: &policies{fail: refused}, groups: []string{"sg-2"}, later: func(p *policies) { p.fail = nil }, took: 7 * time.Second, gets: 4},
		"the API server stays away":   {p: &policies{fail: refused}, groups: []string{"sg-2"}, took: 85 * time.Second, err: ErrUnavailable, says: "whether a policy gives it", gets: 43},
		"the role is old":             {p: &policies{fail: forbidden}, groups: []string{"sg-2"}, err: ErrUnavailable, says: "ClusterRole aws-node", gets: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				selector := &metav1.LabelSelector{MatchLabels: db}
				if tt.any {
					selector = &metav1.LabelSelector{}
				}
				tt.p.stamps, tt.p.memory = true, selecting(v1beta1.SecurityGroupPolicySpec{ServiceAccountSelector: selector})
				changed := metav1.Unix(200, 0)
				tt.p.memory[0].Generation, tt.p.memory[0].ManagedFields = 2, []metav1.ManagedFieldsEntry{{Time: &changed}}
				o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", CreationTimestamp: changed}}
				if tt.stamp != "-" {
					o.Annotations = map[string]string{policy.StampKey: cmp.Or(tt.stamp, `[{"uid":"u","generation":1}]`)}
				}
				o.Spec.Containers = []corev1.Container{{Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{policy.Resource: resource.MustParse("1")}}}}
				pod := kube.Pod{Namespace: "default", Name: "p", UID: "1", Branch: true, Object: o,
					Annotation: `[{"eniId":"eni-7","ifAddress":"06:20:0d:3c:5f:07","privateIp":"192.168.200.17","vlanId":7,"subnetCidr":"192.168.200.0/24"}]`}
				c := &cluster{}
				c.watched.Store("default/p", pod)
				a := &Assignments{Pods: c, Guard: NewGuard(tt.p, tt.p.C, time.Now), PodsChanged: c.changed.C, TrunkChanged: c.changed.C,
					Ledgers: kept{ledgerv1.Slot{VLANID: 7, State: ledgerv1.Bound, PodUID: "1", ENIID: "eni-7", PrivateIP: "192.168.200.17", SecurityGroups: tt.groups}},
					Trunk:   func() (enis.ENI, bool) { return enis.ENI{ID: "eni-trunk", LinkIndex: 2, LinkUp: true}, true }}
				if tt.later != nil {
					time.AfterFunc(5*time.Second, func() { tt.p.set(func() { tt.later(tt.p) }) })
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
				_, _, err := a.Wait(ctx, pod)
				if took := time.Since(began); took > tt.took {
					t.Errorf("took %s, want at most %s", took, tt.took)
				}
				if !errors.Is(err, tt.err) || err != nil && !strings.Contains(err.Error(), tt.says) {
					t.Errorf("got %v, want %v that says %q", err, tt.err, tt.says)
				}
				cancel()
				time.Sleep(time.Second) // the events end
				if tt.p.gets > tt.gets || tt.p.gets == 0 != (tt.gets == 0) || tt.p.lists > 0 {
					t.Errorf("asked %d times for the account, want %d, and %d times for policies", tt.p.gets, tt.gets, tt.p.lists)
				}
			})
		})
	}
}
