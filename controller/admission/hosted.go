package admission

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// ErrHosted: the cluster has the hosted control plane's webhooks. Two controllers would fight over every node. It is
// always a *HostedError.
var ErrHosted = errors.New("the hosted control plane manages security groups for pods in this cluster")

// HostedError is ErrHosted with the object that showed it.
type HostedError struct {
	Kind string
	Name string
	UID  types.UID
}

func (e *HostedError) Error() string {
	return fmt.Sprintf("%v: the %s %s exists; this controller stands aside: remove its Deployment, or, on a cluster that is not hosted, that configuration", ErrHosted, e.Kind, e.Name)
}

// Is makes it ErrHosted.
func (e *HostedError) Is(target error) bool { return target == ErrHosted }

// Hosted returns ErrHosted where one of the hosted configurations exists.
func Hosted(ctx context.Context, read client.Reader) error {
	for _, c := range []struct {
		kind, name string
		o          client.Object
	}{
		{"MutatingWebhookConfiguration", HostedMutatingName, &admissionregistrationv1.MutatingWebhookConfiguration{}},
		{"ValidatingWebhookConfiguration", HostedValidatingName, &admissionregistrationv1.ValidatingWebhookConfiguration{}},
	} {
		err := read.Get(ctx, client.ObjectKey{Name: c.name}, c.o)
		if err == nil {
			return &HostedError{Kind: c.kind, Name: c.name, UID: c.o.GetUID()}
		}
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("look for the webhook configuration %s: %w", c.name, err)
		}
	}
	return nil
}

// TellHosted says by an event on the hosted configuration that this controller stands aside. The process ends next, so it
// is written here and now, and only once for all restarts.
func TellHosted(ctx context.Context, c client.Client, h *HostedError, now time.Time) error {
	at := metav1.NewTime(now)
	e := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: h.Name + "." + string(h.UID)},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: admissionregistrationv1.SchemeGroupVersion.String(), Kind: h.Kind, Name: h.Name, UID: h.UID,
		},
		Type: corev1.EventTypeWarning, Reason: "HostedControlPlane", Message: h.Error(), Count: 1, FirstTimestamp: at, LastTimestamp: at,
		Source: corev1.EventSource{Component: "vpc-resource-controller"}, ReportingController: "vpc-resource-controller",
	}
	err := c.Create(ctx, e)
	if apierrors.IsAlreadyExists(err) {
		patch := fmt.Appendf(nil, `{"lastTimestamp":%q}`, at.UTC().Format(time.RFC3339))
		err = c.Patch(ctx, e, client.RawPatch("application/merge-patch+json", patch))
	}
	if err != nil {
		return fmt.Errorf("record an event on %s %s: %w", h.Kind, h.Name, err)
	}
	return nil
}

// Withdraw takes our own webhook configurations away. One of them fails closed: with nobody to answer, the hosted control plane could not
// annotate a pod.
func Withdraw(ctx context.Context, c client.Client) error {
	return errors.Join(
		client.IgnoreNotFound(c.Delete(ctx, &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: MutatingName}})),
		client.IgnoreNotFound(c.Delete(ctx, &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: ValidatingName}})))
}

// StandAside ends this controller as soon as the hosted control plane's webhook configurations appear, replicas that do
// not lead included, and takes our own away.
type StandAside struct {
	Client client.Client
	Live   client.Reader
	Log    *slog.Logger
	Now    func() time.Time
	// Stop is called with ErrHosted.
	Stop func(error)
}

// Reconcile implements reconcile.Reconciler. The request only says that some webhook configuration changed.
func (r *StandAside) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	err := Hosted(ctx, r.Live)
	var hosted *HostedError
	if !errors.As(err, &hosted) {
		return ctrl.Result{}, err
	}
	r.Log.ErrorContext(ctx, "standing aside", "error", err)
	if err := Withdraw(ctx, r.Client); err != nil {
		return ctrl.Result{}, err
	}
	if err := TellHosted(ctx, r.Client, hosted, r.Now()); err != nil {
		r.Log.WarnContext(ctx, "nobody was told", "error", err) // the log has it
	}
	r.Stop(hosted)
	return ctrl.Result{}, nil
}
