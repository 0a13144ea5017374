// Package apiserver is what the tests of the controller and of the agent do alike with a real API server: run in a world that
// is made once, find the executables, and apply what users apply.
package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/lab/artifacts"
)

// Main is a package's TestMain: world makes what its tests share, runs them, and takes it away again. It does not return.
func Main(m *testing.M, world func(context.Context, *testing.M) (code int, err error)) {
	ctrl.SetLogger(logr.Discard())
	ctx, cancel := context.WithCancel(context.Background())
	code, err := world(ctx, m)
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// Assets makes folder dir have the executables that envtest looks for: one Kubernetes under several names.
func Assets(ctx context.Context, dir string) error {
	cache, err := artifacts.Open()
	if err != nil {
		return err
	}
	hyperkube, err := cache.Hyperkube(ctx)
	if err != nil {
		return err
	}
	for _, name := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if err := os.Symlink(hyperkube, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// Apply creates all objects of a manifest that are not there.
func Apply(ctx context.Context, c client.Client, manifest []byte) error {
	r := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096)
	for {
		o := &unstructured.Unstructured{}
		if err := r.Decode(o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read a manifest: %w", err)
		}
		if len(o.Object) == 0 {
			continue
		}
		if err := c.Create(ctx, o); client.IgnoreAlreadyExists(err) != nil {
			return fmt.Errorf("create %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
}
