package kube

import (
	"context"
	"errors"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	eniconfigv1 "github.com/branchline-cni/branchline/api/eniconfig/v1alpha1"
)

// Why there is no ENIConfig to read.
var (
	// ErrNoENIConfigs: the API server doesn't know the kind.
	ErrNoENIConfigs = errors.New("the API server knows no ENIConfigs: their definition (eniconfigs.crd.k8s.amazonaws.com) is missing")
	// ErrNoENIConfig: it knows them, and none of that name.
	ErrNoENIConfig = errors.New("there is no such ENIConfig")
)

// ENIConfig returns an ENIConfig from memory. It must not be changed.
func (c *Client) ENIConfig(name string) (*eniconfigv1.ENIConfig, error) {
	c.mu.Lock()
	none := c.noConfigs
	c.mu.Unlock()
	switch {
	case none:
		return nil, ErrNoENIConfigs
	case c.eniConfigs == nil || !c.eniConfigs.HasSynced():
		return nil, ErrNotSynced
	}
	all := c.eniConfigs.GetStore().List()
	i := slices.IndexFunc(all, func(obj any) bool { o, ok := obj.(*eniconfigv1.ENIConfig); return ok && o.Name == name })
	if i < 0 {
		return nil, ErrNoENIConfig
	}
	return all[i].(*eniconfigv1.ENIConfig), nil
}

// watchENIConfigs watches all of them: which one is the node's may change, and there are about as many as zones.
func (c *Client) watchENIConfigs() *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			l := &eniconfigv1.ENIConfigList{}
			err := c.opt.API.List(ctx, l, &client.ListOptions{Raw: &o})
			c.sawENIConfigs(err)
			return l, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := c.opt.API.Watch(ctx, &eniconfigv1.ENIConfigList{}, &client.ListOptions{Raw: &o})
			c.sawENIConfigs(err)
			return w, err
		},
	}
}

func (c *Client) sawENIConfigs(err error) {
	missing := apierrors.IsNotFound(err) || meta.IsNoMatchError(err)
	if err != nil && !missing {
		return
	}
	c.mu.Lock()
	changed := c.noConfigs != missing
	c.noConfigs = missing
	c.mu.Unlock()
	if changed {
		c.nodeChanged()
	}
}
