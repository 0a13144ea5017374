// Package config holds the manifests that a cluster administrator applies. Programs that install them (the lab, tests)
// take them from here, so that what is tested is what is shipped.
package config

import (
	"bytes"
	"embed"
	"fmt"
	"path"
)

//go:embed crd/*.yaml vpc-controller/*.yaml vpc-controller/*.json aws-node/*.yaml aws-node-pod-ips/*.yaml
var manifests embed.FS

// CRDs are the definitions of SecurityGroupPolicy, CNINode, ENIConfig and BranchLedger.
func CRDs() []byte { return read("crd/*.yaml") }

// ControllerRBAC is the controller's ServiceAccount and roles, for one that runs in the cluster or beside it.
func ControllerRBAC() []byte { return read("vpc-controller/rbac.yaml") }

// ControllerDeployment is the controller in the cluster, with the Service of its webhooks. Its CLUSTER_NAME is empty.
func ControllerDeployment() []byte { return read("vpc-controller/deployment.yaml") }

// ControllerIAMPolicy is all that the controller may call of EC2: an IAM policy document.
func ControllerIAMPolicy() []byte {
	b, err := manifests.ReadFile("vpc-controller/iam-policy.json")
	if err != nil {
		panic(fmt.Sprintf("config: %v", err)) // it is embedded
	}
	return b
}

// AWSNode is the DaemonSet with its ServiceAccount and roles.
func AWSNode() []byte { return read("aws-node/*.yaml") }

// AWSNodePodIPs is what the agent needs beside AWSNode for ANNOTATE_POD_IP.
func AWSNodePodIPs() []byte { return read("aws-node-pod-ips/*.yaml") }

// read joins the files of a pattern as one stream of YAML documents.
func read(pattern string) []byte {
	names, err := manifests.ReadDir(path.Dir(pattern))
	if err != nil {
		panic(fmt.Sprintf("config: %s: %v", pattern, err)) // the folders are embedded: only a wrong pattern gets here
	}
	var out bytes.Buffer
	for _, n := range names {
		if ok, _ := path.Match(path.Base(pattern), n.Name()); !ok {
			continue
		}
		b, err := manifests.ReadFile(path.Join(path.Dir(pattern), n.Name()))
		if err != nil {
			panic(fmt.Sprintf("config: %s: %v", n.Name(), err))
		}
		out.WriteString("---\n")
		out.Write(b)
		out.WriteString("\n")
	}
	return out.Bytes()
}
