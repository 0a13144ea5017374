package controller

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	eniconfigv1 "github.com/branchline-cni/branchline/api/eniconfig/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/controller/trunk"
)

// eniConfigs says from where ENIConfigs are read. They are watched where they can be: a cluster may do without their kind, and
// an older role without the right, which must keep nobody else's branch ENIs away. There they are asked for when needed, and
// whoever needs one is told what is missing.
func (w *wiring) eniConfigs(ctx context.Context) (from client.Reader, watched bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	live := w.mgr.GetAPIReader()
	err = live.List(ctx, &eniconfigv1.ENIConfigList{}, client.Limit(1))
	switch {
	case err == nil:
		return w.mgr.GetClient(), true, nil
	case apierrors.IsForbidden(err), apierrors.IsNotFound(err), meta.IsNoMatchError(err):
		w.o.Log.InfoContext(ctx, "ENIConfigs are not watched: their definition (config/crd) is not there, or the role of before (config/vpc-controller/rbac.yaml) may not read them; custom networking needs both, and then a restart of the controller", "error", err)
		return live, false, nil
	}
	return nil, false, fmt.Errorf("list ENIConfigs: %w", err)
}

// watchENIConfigs brings the nodes back whose ENIConfig has changed.
func (w *wiring) watchENIConfigs(b *builder.Builder) *builder.Builder {
	return b.Watches(&eniconfigv1.ENIConfig{}, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) (r []reconcile.Request) {
		var nodes v1alpha1.CNINodeList
		if err := w.mgr.GetClient().List(ctx, &nodes); err != nil {
			w.o.Log.ErrorContext(ctx, "list the CNINodes of an ENIConfig", "eniConfig", o.GetName(), "error", err)
		}
		for i := range nodes.Items {
			if name, ok := nodes.Items[i].Has(v1alpha1.CustomNetworking); ok && name == o.GetName() {
				r = append(r, request("", nodes.Items[i].Name)...)
			}
		}
		var labelled corev1.NodeList
		if err := w.mgr.GetClient().List(ctx, &labelled, client.MatchingLabels{trunk.ConfigLabel: o.GetName()}); err != nil {
			w.o.Log.ErrorContext(ctx, "list the Nodes of an ENIConfig", "eniConfig", o.GetName(), "error", err)
		}
		for i := range labelled.Items {
			r = append(r, request("", labelled.Items[i].Name)...)
		}
		return r
	}))
}
