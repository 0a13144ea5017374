package config

import (
	"bytes"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// kinds decodes a stream of YAML documents, as kubectl apply does, and lists "Kind name".
func kinds(t *testing.T, manifest []byte) map[string]*unstructured.Unstructured {
	t.Helper()
	found := map[string]*unstructured.Unstructured{}
	d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096)
	for {
		var o unstructured.Unstructured
		if err := d.Decode(&o.Object); err != nil {
			if err.Error() == "EOF" {
				return found
			}
			t.Fatal(err)
		}
		if o.Object != nil {
			found[o.GetKind()+" "+o.GetName()] = &o
		}
	}
}

func TestManifestsHoldTheNamesThatOthersKnow(t *testing.T) {
	for _, tc := range []struct {
		manifest []byte
		want     []string
	}{
		{CRDs(), []string{
			"CustomResourceDefinition securitygrouppolicies.vpcresources.k8s.aws",
			"CustomResourceDefinition cninodes.vpcresources.k8s.aws",
			"CustomResourceDefinition branchledgers.branchline.dev",
			"CustomResourceDefinition eniconfigs.crd.k8s.amazonaws.com",
		}},
		{AWSNode(), []string{"DaemonSet aws-node", "ServiceAccount aws-node", "ClusterRole aws-node", "ClusterRoleBinding aws-node"}},
		{AWSNodePodIPs(), []string{"ClusterRole aws-node-pod-ips", "ClusterRoleBinding aws-node-pod-ips", "ValidatingAdmissionPolicy branchline-aws-node-pod-ips"}},
		{ControllerRBAC(), []string{"ServiceAccount vpc-resource-controller"}},
		{ControllerDeployment(), []string{"Service vpc-resource-controller", "Deployment vpc-resource-controller"}},
	} {
		found := kinds(t, tc.manifest)
		for _, w := range tc.want {
			if found[w] == nil {
				t.Errorf("no %q in %v", w, found)
			}
		}
	}
}

// Only the init container may be privileged; the agent has NET_ADMIN and nothing else.
func TestTheAgentHasNetAdminAndNothingElse(t *testing.T) {
	ds := kinds(t, AWSNode())["DaemonSet aws-node"]
	pod, _, err := unstructured.NestedMap(ds.Object, "spec", "template", "spec")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range pod["containers"].([]any) {
		c := c.(map[string]any)
		privileged, _, _ := unstructured.NestedBool(c, "securityContext", "privileged")
		add, _, _ := unstructured.NestedStringSlice(c, "securityContext", "capabilities", "add")
		drop, _, _ := unstructured.NestedStringSlice(c, "securityContext", "capabilities", "drop")
		if privileged || len(add) != 1 || add[0] != "NET_ADMIN" || len(drop) != 1 || drop[0] != "ALL" {
			t.Errorf("container %v: privileged %v, capabilities +%v -%v", c["name"], privileged, add, drop)
		}
	}
}

// The host's own files are for the init container alone, which ends at once, and read-only.
func TestTheHostsFilesAreSeenReadOnlyAndByTheInitContainerAlone(t *testing.T) {
	ds := kinds(t, AWSNode())["DaemonSet aws-node"]
	pod, _, err := unstructured.NestedMap(ds.Object, "spec", "template", "spec")
	if err != nil {
		t.Fatal(err)
	}
	for list, want := range map[string]int{"initContainers": 1, "containers": 0} {
		found := 0
		for _, c := range pod[list].([]any) {
			for _, m := range c.(map[string]any)["volumeMounts"].([]any) {
				if m := m.(map[string]any); m["name"] == "host-root" {
					found++
					if m["readOnly"] != true || m["mountPath"] != "/host-root" {
						t.Errorf("%s: %v", list, m)
					}
				}
			}
		}
		if found != want {
			t.Errorf("%s see the host's files %d times, want %d", list, found, want)
		}
	}
}
