package kube

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/branchline-cni/branchline/api/reconnect"
	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/policy"
)

// watchPolicies makes the watch of all policies of the cluster: there are few of them, and a pod may come from any
// namespace at any time.
func (c *Client) watchPolicies(gate *reconnect.Gate) error {
	c.policies = cache.NewSharedIndexInformer(c.whileUp(c.noPolicies.watch(gate.Wrap(c.listWatch(&v1beta1.SecurityGroupPolicyList{}, fields.Everything())))), &v1beta1.SecurityGroupPolicy{}, c.opt.Resync,
		cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	if err := c.policies.SetTransform(trimPolicy); err != nil {
		return fmt.Errorf("watch policies: %w", err)
	}
	return nil
}

// whileUp notes whether a watch is up: an informer begins the next one as soon as the last one has ended, and from then
// until the API server has answered, what is in memory may be out of date.
func (c *Client) whileUp(lw *cache.ListWatch) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			c.current.Store(false)
			return lw.ListWithContextFunc(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			c.current.Store(false)
			w, err := lw.WatchFuncWithContext(ctx, o)
			if err == nil {
				c.current.Store(true)
				c.denied.Store(nil)
				c.policyChanged()
			}
			return w, err
		},
	}
}

func trimPolicy(obj any) (any, error) {
	if p, ok := obj.(*v1beta1.SecurityGroupPolicy); ok {
		return policy.Trim(p), nil
	}
	return obj, nil
}

// policyChanged wakes those who wait, once the first list is whole.
func (c *Client) policyChanged() {
	if c.policies.HasSynced() {
		c.Changed.Fire()
	}
}

func (c *Client) policiesFailed(ctx context.Context, r *cache.Reflector, err error) {
	c.watchFailed(ctx, r, err)
	if apierrors.IsForbidden(err) {
		c.denied.Store(&err)
		c.Changed.Fire()
	}
}

// PoliciesDenied is why the API server does not let the agent read policies; nil where it does, or did not answer yet.
func (c *Client) PoliciesDenied() error {
	if err := c.denied.Load(); err != nil {
		return *err
	}
	return nil
}

// PoliciesKnown says whether the policies have been read, or needn't be.
func (c *Client) PoliciesKnown() bool {
	return c.policies == nil || c.policies.HasSynced() || c.noPolicies.is()
}

// Policies returns those of a namespace from memory. current is false while they may be out of date. They must not be
// changed.
func (c *Client) Policies(namespace string) (all []v1beta1.SecurityGroupPolicy, current bool, err error) {
	if c.policies == nil {
		return nil, true, nil
	}
	if c.noPolicies.is() {
		return nil, false, nil // it is asked for rarely: they may have come, and a policy with them
	}
	if !c.policies.HasSynced() {
		return nil, false, fmt.Errorf("the SecurityGroupPolicies: %w", ErrNotSynced)
	}
	objects, err := c.policies.GetIndexer().ByIndex(cache.NamespaceIndex, namespace)
	if err != nil {
		return nil, false, fmt.Errorf("the SecurityGroupPolicies of namespace %s: %w", namespace, err)
	}
	for _, o := range objects {
		if p, ok := o.(*v1beta1.SecurityGroupPolicy); ok {
			all = append(all, *p)
		}
	}
	return all, c.current.Load(), nil
}

// LivePolicies asks the API server for those of a namespace. Pods that come at once share the answer.
func (c *Client) LivePolicies(ctx context.Context, namespace string) ([]v1beta1.SecurityGroupPolicy, error) {
	return c.live.of(ctx, types.NamespacedName{Namespace: namespace}, func() ([]v1beta1.SecurityGroupPolicy, error) {
		ctx, cancel := context.WithTimeout(context.Background(), questionTimeout)
		defer cancel()
		var l v1beta1.SecurityGroupPolicyList
		err := c.opt.API.List(ctx, namespace, &l, metav1.ListOptions{})
		if unknownResource(err) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list the SecurityGroupPolicies of namespace %s: %w", namespace, err)
		}
		c.noPolicies.doubt() // they are there by now
		return l.Items, nil
	})
}

// Stamps says whether the control plane of this cluster stamps its decisions on pods: ours says so on each CNINode. Until
// that is known, and with EKS's, it does not; nor where the CNINode says so and nobody keeps ledgers: ours was here once.
func (c *Client) Stamps() bool {
	return c.saysStamps() && (!c.noLedgers.is() || c.noLedgers.doubt())
}

func (c *Client) saysStamps() bool {
	for _, obj := range c.cninode.GetStore().List() {
		if n, ok := obj.(*cninodev1.CNINode); ok && n.Name == c.opt.NodeName {
			return n.Stamps()
		}
	}
	return false
}
