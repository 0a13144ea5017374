package kube

import (
	"context"
	_ "embed"
)

// corednsManifest is CoreDNS and its Service, with the address that every kubelet tells its pods.
//
//go:embed manifests/coredns.yaml
var corednsManifest []byte

// InstallDNS applies CoreDNS. Its pod starts where a node is Ready and has the image of package images.
func (c *ControlPlane) InstallDNS(ctx context.Context) error {
	return c.Apply(ctx, corednsManifest)
}
