package kube

import (
	"bytes"
	"context"
	_ "embed"
)

// corednsManifest is CoreDNS and its Service; CLUSTER_DNS stands for the address that every kubelet tells its pods.
//
//go:embed manifests/coredns.yaml
var corednsManifest []byte

// InstallDNS applies CoreDNS. Its pod starts where a node is Ready and has the image of package images.
func (c *ControlPlane) InstallDNS(ctx context.Context) error {
	return c.Apply(ctx, dnsManifest(familyOf(c.cfg.Address)))
}

// dnsManifest is the manifest for a cluster of that family.
func dnsManifest(f family) []byte {
	return bytes.ReplaceAll(corednsManifest, []byte("CLUSTER_DNS"), []byte(f.dns.String()))
}
