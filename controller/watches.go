package controller

import (
	"context"
	"fmt"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/controller/admission"
	"github.com/branchline-cni/branchline/controller/branch"
	"github.com/branchline-cni/branchline/controller/cloud"
	"github.com/branchline-cni/branchline/controller/events"
	"github.com/branchline-cni/branchline/controller/ledger"
	"github.com/branchline-cni/branchline/controller/trunk"
	"github.com/branchline-cni/branchline/policy"
)

// Back-off of a key that fails. EC2's buckets refill at a few calls a second, so there is no use in milliseconds.
const (
	minBackoff = 200 * time.Millisecond
	maxBackoff = 30 * time.Second
)

// How many keys each reconciler works on at once: a call that hangs holds up one key, not the queue.
const (
	nodeWorkers = 8
	podWorkers  = 32
)

type wiring struct {
	mgr      manager.Manager
	cloud    *cloud.Client
	ledgers  *ledger.Store
	events   *events.Recorder
	coolDown func(context.Context) time.Duration
	claim    func() string
	o        *Options
}

// reconcileTimeout ends a reconciliation that hangs, whatever it calls. The longest is to clear an instance away, by a few
// calls per branch ENI: what is done stays done, and the next one goes on from there.
const reconcileTimeout = 5 * time.Minute

func options(workers int) controller.Options {
	return controller.Options{
		ReconciliationTimeout:   reconcileTimeout,
		MaxConcurrentReconciles: workers,
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](minBackoff, maxBackoff),
	}
}

// add registers the reconcilers with what triggers them. Each is triggered by whatever it reads, so that the order in
// which things arrive makes no difference.
func (w *wiring) add(ctx context.Context) error {
	mgr, c, live := w.mgr, w.mgr.GetClient(), w.mgr.GetAPIReader()
	configs, watched, err := w.eniConfigs(ctx)
	if err != nil {
		return err
	}
	toNode := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		switch o := o.(type) {
		case *ledgerv1.BranchLedger:
			return request("", o.Spec.NodeName)
		case *corev1.Pod:
			return request("", o.Spec.NodeName)
		}
		return request("", o.GetName())
	})
	nodes := builder.ControllerManagedBy(mgr).Named("node").For(&corev1.Node{}).
		Watches(&v1alpha1.CNINode{}, toNode).Watches(&ledgerv1.BranchLedger{}, toNode).
		Watches(&corev1.Pod{}, toNode, builder.WithPredicates(branchPods(), predicate.NewPredicateFuncs(func(o client.Object) bool { return o.(*corev1.Pod).Spec.NodeName != "" }))).
		WithOptions(options(nodeWorkers))
	if watched {
		nodes = w.watchENIConfigs(nodes)
	}
	if err := nodes.
		Complete(&trunk.Nodes{Client: c, Configs: configs, Cloud: w.cloud, Ledgers: w.ledgers, Events: w.events, Log: w.o.Log, ClusterName: w.o.ClusterName, Recheck: w.o.Recheck, Now: w.o.Now,
			Stamps: w.o.Webhooks != nil, Pods: func(ctx context.Context, node string) ([]corev1.Pod, error) { return branch.PodsOf(ctx, c, node) }}); err != nil {
		return fmt.Errorf("set up the node reconciler: %w", err)
	}

	toLedgers := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		var l ledgerv1.BranchLedgerList
		if err := c.List(ctx, &l, client.MatchingFields{branch.IndexLedgerNode: o.GetName()}); err != nil {
			w.o.Log.ErrorContext(ctx, "look up the ledgers of a node", "node", o.GetName(), "error", err)
		}
		var r []reconcile.Request
		for i := range l.Items {
			r = append(r, request("", l.Items[i].Name)...)
		}
		return r
	})
	// The cool-down has changed: what waits for its end may be due.
	allLedgers := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request {
		var l ledgerv1.BranchLedgerList
		if err := c.List(ctx, &l); err != nil {
			w.o.Log.ErrorContext(ctx, "list the ledgers", "error", err)
		}
		var r []reconcile.Request
		for i := range l.Items {
			r = append(r, request("", l.Items[i].Name)...)
		}
		return r
	})
	asked := trunk.NewAsked(w.cloud, w.o.Now, w.o.Recheck)
	if err := builder.ControllerManagedBy(mgr).Named("instance").For(&ledgerv1.BranchLedger{}).Watches(&corev1.Node{}, toLedgers).
		WithOptions(options(nodeWorkers)).
		Complete(&trunk.Instances{Client: c, Live: live, Cloud: w.cloud, Ledgers: w.ledgers, Events: w.events, Log: w.o.Log, Now: w.o.Now, Asked: asked}); err != nil {
		return fmt.Errorf("set up the instance reconciler: %w", err)
	}
	if err := builder.ControllerManagedBy(mgr).Named("cleanup").For(&ledgerv1.BranchLedger{}).
		Watches(&v1alpha1.CNINode{}, toLedgers).Watches(&corev1.ConfigMap{}, allLedgers).WithOptions(options(nodeWorkers)).
		Complete(&branch.CleanUp{Client: c, Live: live, Cloud: w.cloud, Asked: asked, Ledgers: w.ledgers, Events: w.events, Log: w.o.Log, Now: w.o.Now, CoolDown: w.coolDown}); err != nil {
		return fmt.Errorf("set up the clean-up: %w", err)
	}

	if err := builder.ControllerManagedBy(mgr).Named("pod").For(&corev1.Pod{}, builder.WithPredicates(branchPods())).
		Watches(&ledgerv1.BranchLedger{}, handler.EnqueueRequestsFromMapFunc(w.podsOfLedger)).
		Watches(&v1beta1.SecurityGroupPolicy{}, handler.EnqueueRequestsFromMapFunc(w.podsOfPolicy)).
		WithOptions(options(podWorkers)).
		Complete(&branch.Pods{Client: c, Live: live, Cloud: w.cloud, Ledgers: w.ledgers, Events: w.events, Log: w.o.Log, Now: w.o.Now, CoolDown: w.coolDown, Claim: w.claim, Recheck: w.o.Recheck}); err != nil {
		return fmt.Errorf("set up the pod reconciler: %w", err)
	}
	if err := mgr.Add(&branch.Sweep{Live: live, Cloud: w.cloud, Log: w.o.Log, Now: w.o.Now, CoolDown: w.coolDown, Every: w.o.SweepEvery}); err != nil {
		return fmt.Errorf("set up the sweep: %w", err)
	}
	return nil
}

// podsOfLedger: the pods that its slots name, to learn of their end, and those of its node, which may wait for a slot.
func (w *wiring) podsOfLedger(ctx context.Context, o client.Object) []reconcile.Request {
	l := o.(*ledgerv1.BranchLedger)
	var r []reconcile.Request
	for _, s := range l.Spec.Slots {
		if s.State == ledgerv1.Creating || s.State == ledgerv1.Bound {
			r = append(r, request(s.PodNamespace, s.PodName)...)
		}
	}
	pods, err := branch.PodsOf(ctx, w.mgr.GetClient(), l.Spec.NodeName)
	if err != nil {
		w.o.Log.ErrorContext(ctx, "look up the pods of a node", "node", l.Spec.NodeName, "error", err)
	}
	for i := range pods {
		r = append(r, request(pods[i].Namespace, pods[i].Name)...)
	}
	return r
}

// podsOfPolicy: the pods of its namespace that still wait for their branch ENI.
func (w *wiring) podsOfPolicy(ctx context.Context, o client.Object) []reconcile.Request {
	var pods corev1.PodList
	if err := w.mgr.GetClient().List(ctx, &pods, client.InNamespace(o.GetNamespace())); err != nil {
		w.o.Log.ErrorContext(ctx, "list the pods of a policy's namespace", "namespace", o.GetNamespace(), "error", err)
	}
	var r []reconcile.Request
	for i := range pods.Items {
		p := &pods.Items[i]
		if _, done := p.Annotations[policy.Resource]; !done && policy.WantsBranch(p) {
			r = append(r, request(p.Namespace, p.Name)...)
		}
	}
	return r
}

func branchPods() predicate.Predicate {
	return predicate.NewPredicateFuncs(func(o client.Object) bool {
		pod, ok := o.(*corev1.Pod)
		return ok && policy.WantsBranch(pod)
	})
}

// watchConfigs keeps our webhook configurations, in the replica that leads.
func watchConfigs(mgr manager.Manager, r *admission.Configs) error {
	return onConfigs(mgr, "webhooks", options(1), r)
}

// watchHosted notices the hosted ones' appearance, in every replica.
func watchHosted(mgr manager.Manager, r *admission.StandAside) error {
	o := options(1)
	o.NeedLeaderElection = ptr.To(false)
	return onConfigs(mgr, "hosted", o, r)
}

func onConfigs(mgr manager.Manager, name string, o controller.Options, r reconcile.Reconciler) error {
	one := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request { return request("", "webhooks") })
	names := predicate.NewPredicateFuncs(func(o client.Object) bool {
		switch o.GetName() {
		case admission.MutatingName, admission.ValidatingName, admission.HostedMutatingName, admission.HostedValidatingName, certificatesOf:
			return true
		}
		return false
	})
	// The namespace kube-system exists in every cluster: it gives the first trigger where no webhook
	// configuration does, and only its name passes.
	return builder.ControllerManagedBy(mgr).Named(name).
		Watches(&admissionregistrationv1.MutatingWebhookConfiguration{}, one, builder.WithPredicates(names)).
		Watches(&admissionregistrationv1.ValidatingWebhookConfiguration{}, one, builder.WithPredicates(names)).
		Watches(&corev1.Namespace{}, one, builder.WithPredicates(names)).
		WithOptions(o).Complete(r)
}

// certificatesOf is the namespace whose existence triggers the first writing of the configurations.
const certificatesOf = admission.SecretNamespace

// cached keeps the cache to what is read: one ConfigMap, and of pods and Nodes, of which there are many, a few fields.
func cached() map[client.Object]cache.ByObject {
	return map[client.Object]cache.ByObject{
		&corev1.ConfigMap{}: {
			Namespaces: map[string]cache.Config{branch.ConfigNamespace: {FieldSelector: fields.OneTermEqualSelector("metadata.name", branch.ConfigName)}},
		},
		&corev1.Pod{}:  {Transform: branch.Trim},
		&corev1.Node{}: {Transform: branch.TrimNode},
	}
}

func request(namespace, name string) []reconcile.Request {
	if name == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: namespace, Name: name}}}
}

func cutService(s string) (namespace, name string, ok bool) {
	namespace, name, ok = strings.Cut(s, "/")
	return namespace, name, ok && namespace != "" && name != ""
}
