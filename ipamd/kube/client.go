package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	eniconfigv1 "github.com/branchline-cni/branchline/api/eniconfig/v1alpha1"
	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/reconnect"
	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/ipamd/signal"
)

// ErrNotSynced is returned while a watch has not yet delivered its first list.
var ErrNotSynced = errors.New("the API server has not been heard of yet")

// Options of a Client.
type Options struct {
	API        client.WithWatch
	NodeName   string
	InstanceID string // the branch ledger's name
	// NodeLabels and NodeAnnotations are keys of the Node that are kept in memory beside the agent's own.
	NodeLabels, NodeAnnotations []string
	// ENIConfigs has the ENIConfigs watched.
	ENIConfigs bool
	Log        *slog.Logger
}

// Client is the agent's view of the API server. Changed fires when any watched object came, changed or went, NodeChanged
// when the Node did or an ENIConfig.
type Client struct {
	opt                  Options
	Changed, NodeChanged signal.Signal

	pods, node, cninode, ledger cache.SharedIndexInformer
	eniConfigs                  cache.SharedIndexInformer // nil: not watched

	mu        sync.Mutex
	noConfigs bool // the API server does not know ENIConfigs
	noLedgers bool // the ledger's resource is not known to this API server
	missing   int  // how many answers in a row said so
}

// Scheme holds the types that the agent speaks of.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	return s, errors.Join(corev1.AddToScheme(s), cninodev1.AddToScheme(s), ledgerv1.AddToScheme(s), eniconfigv1.AddToScheme(s))
}

// Connect makes the client of the API server's API that Options takes. It sends nothing: the resources are known
// beforehand, so that an API server that is away doesn't keep the agent from starting.
func Connect(cfg *rest.Config) (client.WithWatch, error) {
	scheme, err := Scheme()
	if err != nil {
		return nil, err
	}
	m := meta.NewDefaultRESTMapper(nil)
	m.Add(corev1.SchemeGroupVersion.WithKind("Pod"), meta.RESTScopeNamespace)
	m.Add(corev1.SchemeGroupVersion.WithKind("Event"), meta.RESTScopeNamespace)
	m.Add(corev1.SchemeGroupVersion.WithKind("Node"), meta.RESTScopeRoot)
	m.Add(cninodev1.GroupVersion.WithKind("CNINode"), meta.RESTScopeRoot)
	m.Add(eniconfigv1.GroupVersion.WithKind("ENIConfig"), meta.RESTScopeRoot)
	m.Add(ledgerv1.GroupVersion.WithKind("BranchLedger"), meta.RESTScopeRoot)
	return client.NewWithWatch(cfg, client.Options{Scheme: scheme, Mapper: m})
}

// New makes a client. Run starts its watches.
func New(o Options) (*Client, error) {
	c := &Client{opt: o}
	gate := reconnect.New(o.Log)
	c.pods = gate.NewInformer(c.listWatch(&corev1.PodList{}, "spec.nodeName", o.NodeName), &corev1.Pod{}, 0, cache.Indexers{})
	c.node = gate.NewInformer(c.listWatch(&corev1.NodeList{}, "metadata.name", o.NodeName), &corev1.Node{}, 0, cache.Indexers{})
	c.cninode = gate.NewInformer(c.listWatch(&cninodev1.CNINodeList{}, "metadata.name", o.NodeName), &cninodev1.CNINode{}, 0, cache.Indexers{})
	if o.ENIConfigs {
		c.eniConfigs = gate.NewInformer(c.watchENIConfigs(), &eniconfigv1.ENIConfig{}, 0, cache.Indexers{})
	}
	c.ledger = cache.NewSharedIndexInformer(c.watchLedgers(gate.Wrap(c.listWatch(&ledgerv1.BranchLedgerList{}, "metadata.name", o.InstanceID))), &ledgerv1.BranchLedger{}, 0, cache.Indexers{})
	wake := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { c.Changed.Fire() },
		UpdateFunc: func(any, any) { c.Changed.Fire() },
		DeleteFunc: func(any) { c.Changed.Fire() },
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
	for _, i := range c.informers() {
		handler := wake
		if i == c.node || i == c.eniConfigs {
			handler = wakeNode
		}
		if _, err := i.AddEventHandler(handler); err != nil {
			return nil, fmt.Errorf("watch the API server: %w", err)
		}
		if err := i.SetWatchErrorHandlerWithContext(c.watchFailed); err != nil {
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
	if c.eniConfigs != nil {
		all = append(all, c.eniConfigs)
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
		wg.Go(func() { i.RunWithContext(ctx) })
	}
	wg.Go(func() {
		if cache.WaitForCacheSync(ctx.Done(), c.node.HasSynced) && (c.eniConfigs == nil || cache.WaitForCacheSync(ctx.Done(), c.eniConfigs.HasSynced)) {
			c.nodeChanged()
		}
	})
	wg.Go(func() {
		if cache.WaitForCacheSync(ctx.Done(), c.pods.HasSynced) {
			c.Changed.Fire()
		}
	})
	wg.Go(func() {
		if cache.WaitForCacheSync(ctx.Done(), c.ledger.HasSynced) {
			c.Changed.Fire()
		}
	})
	wg.Wait()
}

// PodsSynced says whether the pods of this node are known.
func (c *Client) PodsSynced() bool { return c.pods.HasSynced() }

func (c *Client) listWatch(list client.ObjectList, field, value string) *cache.ListWatch {
	selector := client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector(field, value)}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			l := list.DeepCopyObject().(client.ObjectList)
			return l, c.opt.API.List(ctx, l, &client.ListOptions{Raw: &o}, selector)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return c.opt.API.Watch(ctx, list.DeepCopyObject().(client.ObjectList), &client.ListOptions{Raw: &o}, selector)
		},
	}
}

// ledgersMost is the longest pause between two questions for a resource that isn't there.
const ledgersMost = 10 * time.Minute

// watchLedgers asks ever more rarely while the resource is not there: it may come, and thousands of nodes ask.
func (c *Client) watchLedgers(lw *cache.ListWatch) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			if err := c.pauseLedgers(ctx); err != nil {
				return nil, err
			}
			l, err := lw.ListWithContextFunc(ctx, o)
			c.sawLedgers(err)
			return l, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if err := c.pauseLedgers(ctx); err != nil {
				return nil, err
			}
			w, err := lw.WatchFuncWithContext(ctx, o)
			c.sawLedgers(err)
			return w, err
		},
	}
}

func (c *Client) pauseLedgers(ctx context.Context) error {
	c.mu.Lock()
	missing := c.missing
	c.mu.Unlock()
	if missing == 0 {
		return nil
	}
	d := min(time.Second<<min(missing, 20), ledgersMost)
	t := time.NewTimer(d*3/4 + rand.N(d/2))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sawLedgers learns from the answers whether this API server knows branch ledgers at all: with the hosted
// control plane it does not.
func (c *Client) sawLedgers(err error) {
	missing := apierrors.IsNotFound(err) || meta.IsNoMatchError(err)
	if err != nil && !missing {
		return
	}
	c.mu.Lock()
	changed := c.noLedgers != missing
	if c.noLedgers = missing; missing {
		c.missing++
	} else {
		c.missing = 0
	}
	c.mu.Unlock()
	if changed {
		c.Changed.Fire()
	}
}

func (c *Client) watchFailed(_ context.Context, _ *cache.Reflector, err error) {
	c.mu.Lock()
	quiet := (c.noLedgers || c.noConfigs) && apierrors.IsNotFound(err)
	c.mu.Unlock()
	if !quiet && !apierrors.IsResourceExpired(err) {
		c.opt.Log.Warn("a watch of the API server ended and is taken up again", "error", err)
	}
}
