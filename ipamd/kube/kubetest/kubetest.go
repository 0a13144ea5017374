// Package kubetest puts controller-runtime's clients, its fake with state above all, in the API server's place for tests of
// the agent. It is a room of its own because those clients bring the types of all API groups: no program that ships links it.
package kubetest

import (
	"context"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/ipamd/kube"
)

// API is the client, as the agent asks it.
func API(c client.WithWatch) kube.API { return api{c} }

type api struct{ c client.WithWatch }

func (a api) Get(ctx context.Context, key types.NamespacedName, into kube.Object) error {
	return a.c.Get(ctx, key, into)
}

func (a api) List(ctx context.Context, namespace string, into runtime.Object, o metav1.ListOptions) error {
	options, err := listOptions(o)
	if err != nil {
		return err
	}
	if namespace != "" {
		options = append(options, client.InNamespace(namespace))
	}
	return a.c.List(ctx, into.(client.ObjectList), options...)
}

func (a api) Watch(ctx context.Context, list runtime.Object, o metav1.ListOptions) (watch.Interface, error) {
	options, err := listOptions(o)
	if err != nil {
		return nil, err
	}
	w, err := a.c.Watch(ctx, list.DeepCopyObject().(client.ObjectList), options...)
	if err != nil {
		return nil, err
	}
	// An API server's watch begins where the list before it ended, the fake's when it is asked for: what changed in between
	// is told first.
	now := list.DeepCopyObject().(client.ObjectList)
	if err := a.c.List(ctx, now, options...); err != nil {
		w.Stop()
		return nil, err
	}
	objects, err := meta.ExtractList(now)
	if err != nil {
		w.Stop()
		return nil, err
	}
	return caughtUp(w, objects), nil
}

// caughtUp is the watch, with the objects before all that it tells.
func caughtUp(w watch.Interface, objects []runtime.Object) watch.Interface {
	events := make(chan watch.Event)
	out := watch.NewProxyWatcher(events)
	send := func(e watch.Event) bool {
		select {
		case events <- e:
			return true
		case <-out.StopChan():
			return false
		}
	}
	go func() {
		defer close(events)
		defer w.Stop()
		for _, o := range objects {
			if !send(watch.Event{Type: watch.Modified, Object: o}) {
				return
			}
		}
		for {
			select {
			case e, ok := <-w.ResultChan():
				if !ok || !send(e) {
					return
				}
			case <-out.StopChan():
				return
			}
		}
	}()
	return out
}

func (a api) Create(ctx context.Context, o kube.Object) error { return a.c.Create(ctx, o) }

func (a api) Patch(ctx context.Context, o kube.Object, merge []byte, subresource ...string) error {
	patch := client.RawPatch(types.MergePatchType, merge)
	for _, name := range subresource {
		return a.c.SubResource(name).Patch(ctx, o, patch)
	}
	return a.c.Patch(ctx, o, patch)
}

// listOptions has the field selector beside the raw options, as the fake reads it nowhere else.
func listOptions(o metav1.ListOptions) ([]client.ListOption, error) {
	selector, err := fields.ParseSelector(o.FieldSelector)
	if err != nil {
		return nil, err
	}
	options := []client.ListOption{&client.ListOptions{Raw: &o}}
	if !selector.Empty() {
		options = append(options, client.MatchingFieldsSelector{Selector: selector})
	}
	return options, nil
}
