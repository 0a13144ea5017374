package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	eniconfigv1 "github.com/branchline-cni/branchline/api/eniconfig/v1alpha1"
	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/reconnect"
	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/ipamd/signal"
)

// ErrNotSynced is returned while a watch has not yet delivered its first list.
var ErrNotSynced = errors.New("the API server has not been heard of yet")

// Options of a Client.
type Options struct {
	API        API
	NodeName   string
	InstanceID string // the branch ledger's name
	// NodeLabels and NodeAnnotations are keys of the Node that are kept in memory beside the agent's own.
	NodeLabels, NodeAnnotations []string
	// ENIConfigs has the ENIConfigs watched.
	ENIConfigs bool
	// Policies has the cluster's SecurityGroupPolicies watched too.
	Policies bool
	Log      *slog.Logger
	// Resync is how often the caches are gone through without any news; 0: never. In virtual time it can't be never.
	Resync time.Duration
}

// Client is the agent's view of the API server. Changed fires when any watched object came, changed or went, NodeChanged
// when the Node did or an ENIConfig.
type Client struct {
	opt                  Options
	Changed, NodeChanged signal.Signal

	pods, node, cninode, ledger cache.SharedIndexInformer
	eniConfigs                  cache.SharedIndexInformer // nil: not watched

	policies cache.SharedIndexInformer // nil: not watched
	current  atomic.Bool               // the watch of policies is up
	denied   atomic.Pointer[error]     // why policies may not be read

	accounts questions[map[string]string]
	live     questions[[]v1beta1.SecurityGroupPolicy]

	noLedgers, noPolicies, noENIConfigs absence
}

// New makes a client. Run starts its watches.
func New(o Options) (*Client, error) {
	c := &Client{opt: o}
	gate := reconnect.New(o.Log)
	c.pods = gate.NewInformer(c.listWatch(&corev1.PodList{}, named("spec.nodeName", o.NodeName)), &corev1.Pod{}, o.Resync, cache.Indexers{})
	c.node = gate.NewInformer(c.listWatch(&corev1.NodeList{}, named("metadata.name", o.NodeName)), &corev1.Node{}, o.Resync, cache.Indexers{})
	c.cninode = gate.NewInformer(c.listWatch(&cninodev1.CNINodeList{}, named("metadata.name", o.NodeName)), &cninodev1.CNINode{}, o.Resync, cache.Indexers{})
	c.noLedgers, c.noPolicies = absence{most: ledgersMost, changed: c.Changed.Fire}, absence{most: policiesMost, changed: c.Changed.Fire}
	c.noENIConfigs = absence{most: eniConfigsMost, changed: c.nodeChanged}
	c.ledger = cache.NewSharedIndexInformer(c.noLedgers.watch(gate.Wrap(c.listWatch(&ledgerv1.BranchLedgerList{}, named("metadata.name", o.InstanceID)))), &ledgerv1.BranchLedger{}, o.Resync, cache.Indexers{})
	if o.ENIConfigs {
		// All of them: which one is the node's may change, and there are about as many as zones.
		c.eniConfigs = cache.NewSharedIndexInformer(c.noENIConfigs.watch(gate.Wrap(c.listWatch(&eniconfigv1.ENIConfigList{}, fields.Everything()))), &eniconfigv1.ENIConfig{}, o.Resync, cache.Indexers{})
	}
	wake := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { c.Changed.Fire() },
		UpdateFunc: func(any, any) { c.Changed.Fire() },
		DeleteFunc: func(any) { c.Changed.Fire() },
	}
	if o.Policies {
		if err := c.watchPolicies(gate); err != nil {
			return nil, err
		}
	}
	wakeNode := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { c.nodeChanged() },
		UpdateFunc: func(old, now any) { // the kubelet's heartbeats are none of ours
			if !sameNode(old, now) {
				c.nodeChanged()
			}
		},
		DeleteFunc: func(any) { c.nodeChanged() },
	}
	wakePolicies := cache.ResourceEventHandlerFuncs{ // what there is at the start is one change
		AddFunc:    func(any) { c.policyChanged() },
		UpdateFunc: func(any, any) { c.policyChanged() },
		DeleteFunc: func(any) { c.policyChanged() },
	}
	for _, i := range c.informers() {
		handler := wake
		switch {
		case i == c.policies:
			handler = wakePolicies
		case i == c.node || i == c.eniConfigs:
			handler = wakeNode
		}
		if _, err := i.AddEventHandler(handler); err != nil {
			return nil, fmt.Errorf("watch the API server: %w", err)
		}
		failed := c.watchFailed
		if i == c.policies {
			failed = c.policiesFailed
		}
		if err := i.SetWatchErrorHandlerWithContext(failed); err != nil {
			return nil, fmt.Errorf("watch the API server: %w", err)
		}
	}
	if err := c.pods.SetTransform(trim); err != nil {
		return nil, fmt.Errorf("watch pods: %w", err)
	}
	if err := c.node.SetTransform(o.trimNode); err != nil {
		return nil, fmt.Errorf("watch node %s: %w", o.NodeName, err)
	}
	return c, nil
}

func (c *Client) informers() []cache.SharedIndexInformer {
	all := []cache.SharedIndexInformer{c.pods, c.node, c.cninode, c.ledger}
	for _, i := range []cache.SharedIndexInformer{c.eniConfigs, c.policies} {
		if i != nil {
			all = append(all, i)
		}
	}
	return all
}

func (c *Client) nodeChanged() {
	c.NodeChanged.Fire()
	c.Changed.Fire()
}

// Run watches until ctx ends.
func (c *Client) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, i := range c.informers() {
		heard := c.Changed.Fire
		if i == c.node || i == c.eniConfigs {
			heard = c.nodeChanged
		}
		wg.Go(func() { i.RunWithContext(ctx) })
		wg.Go(func() {
			if cache.WaitForCacheSync(ctx.Done(), i.HasSynced) {
				heard()
			}
		})
	}
	wg.Wait()
}

// PodsSynced says whether the pods of this node are known.
func (c *Client) PodsSynced() bool { return c.pods.HasSynced() }

// named selects the objects of which a field has that value.
func named(field, value string) fields.Selector { return fields.OneTermEqualSelector(field, value) }

func (c *Client) listWatch(list runtime.Object, which fields.Selector) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = which.String()
			l := list.DeepCopyObject()
			return l, c.opt.API.List(ctx, metav1.NamespaceAll, l, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = which.String()
			return c.opt.API.Watch(ctx, list, o)
		},
	}
}

// The longest pauses between two questions for a resource that isn't there. Ledgers never are with the hosted control
// plane. Without policies nobody gives a pod its own security groups, and with custom networking no pod an address without
// an ENIConfig: they are expected to come.
const (
	ledgersMost    = 10 * time.Minute
	policiesMost   = time.Minute
	eniConfigsMost = 30 * time.Second
)

func (c *Client) watchFailed(_ context.Context, _ *cache.Reflector, err error) {
	quiet := apierrors.IsNotFound(err) && (c.noLedgers.is() || c.noPolicies.is() || c.noENIConfigs.is())
	if !quiet && !apierrors.IsResourceExpired(err) {
		c.opt.Log.Warn("a watch of the API server ended and is taken up again", "error", err)
	}
}
