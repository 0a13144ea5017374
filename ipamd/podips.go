package ipamd

import (
	"context"
	"errors"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// runPodIPs keeps the pods' annotation with their address (ANNOTATE_POD_IP). No ADD waits for it, and no DEL: what is written
// is compared with who holds what, whenever one of the two changes, so that it also comes right after the API server, or this
// agent, was away.
func (a *Agent) runPodIPs(ctx context.Context) {
	if !a.opt.Config.AnnotatePodIP {
		return
	}
	var retry backoff
	for ctx.Err() == nil {
		channels := []<-chan struct{}{a.opt.Kube.Changed.C(), a.changed.C(), a.branch.C()}
		err := a.annotatePods(ctx)
		if err == nil || ctx.Err() != nil {
			retry = 0
			wait(ctx, 0, channels...)
			continue
		}
		a.metrics.failed("annotatePodIP")
		a.opt.Log.Warn("pods are not annotated with their addresses; it is tried again", "error", err)
		if apierrors.IsForbidden(err) {
			a.events.Node("PodIPsNotAnnotated", "ANNOTATE_POD_IP is on, and pods can't be annotated with their addresses: %v: apply config/aws-node-pod-ips, which lets aws-node do so, or set ANNOTATE_POD_IP=false", err)
		}
		wait(ctx, retry.next()) // a change meanwhile is no reason to try sooner
	}
}

// annotatePods writes every annotation that isn't as it should be, and returns the first error.
func (a *Agent) annotatePods(ctx context.Context) error {
	if !a.opt.Kube.PodsSynced() {
		return nil // its end is a change
	}
	var errs []error
	for _, w := range podIPsToWrite(a.opt.Kube.PodIPs(), a.store.View().Allocations) {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		err := a.opt.Kube.AnnotateIPs(call, w.pod, w.text)
		cancel()
		if err != nil {
			errs = append(errs, err)
		}
		if apierrors.IsForbidden(err) || ctx.Err() != nil {
			break // the next one is no better
		}
	}
	return errors.Join(errs...)
}

// podIPs is an annotation to write.
type podIPs struct {
	pod  kube.Pod
	text string
}

// addressesText is what the annotation says: the first interface's address first.
func addressesText(al store.Allocation) string {
	var texts []string
	for _, a := range al.Addresses() {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ",")
}

// podIPsToWrite compares what pods say of their addresses with who holds what: of several sandboxes of one pod the newest
// counts. Of a pod without a sandbox the annotation is emptied, and not made.
func podIPsToWrite(pods []kube.PodIPs, held []store.Allocation) (out []podIPs) {
	for _, p := range pods {
		text, since := "", time.Time{}
		for _, al := range held {
			if p.Is(al.Pod.UID) && (text == "" || al.Since.After(since)) {
				text, since = addressesText(al), al.Since
			}
		}
		if p.Text != text {
			out = append(out, podIPs{p.Pod, text})
		}
	}
	return out
}
