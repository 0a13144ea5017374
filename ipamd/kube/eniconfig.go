package kube

import (
	"errors"
	"slices"

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
	switch {
	case c.noENIConfigs.is():
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
