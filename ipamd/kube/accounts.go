package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// AccountLabels asks the API server for the labels of a ServiceAccount. One that does not exist has none.
func (c *Client) AccountLabels(ctx context.Context, namespace, name string) (map[string]string, error) {
	if name == "" {
		name = "default"
	}
	key := types.NamespacedName{Namespace: namespace, Name: name}
	return c.accounts.of(ctx, key, func() (map[string]string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), questionTimeout)
		defer cancel()
		account := &metav1.PartialObjectMetadata{}
		account.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ServiceAccount"))
		err := c.opt.API.Get(ctx, key, account)
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("read the labels of ServiceAccount %s: %w", key, err)
		}
		if account.Labels == nil {
			return map[string]string{}, nil
		}
		return account.Labels, nil
	})
}
