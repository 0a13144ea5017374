package eni

import (
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/branchline-cni/branchline/rpc"
)

// podArgs is what kubelet's runtimes pass in CNI_ARGS.
type podArgs struct {
	Namespace        string
	Name             string
	UID              string // empty with runtimes that don't pass it
	InfraContainerID string
}

type argsText struct {
	types.CommonArgs
	K8S_POD_NAMESPACE          types.UnmarshallableString //nolint:revive // the library matches fields by the variable's name
	K8S_POD_NAME               types.UnmarshallableString //nolint:revive
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString //nolint:revive
	K8S_POD_UID                types.UnmarshallableString //nolint:revive
}

// parseArgs reads CNI_ARGS. What it returns beside an error is what could be read before it.
func parseArgs(args string) (podArgs, error) {
	var a argsText
	err := types.LoadArgs(withoutCommonArgs(args), &a)
	p := podArgs{
		Namespace: string(a.K8S_POD_NAMESPACE), Name: string(a.K8S_POD_NAME),
		UID: string(a.K8S_POD_UID), InfraContainerID: string(a.K8S_POD_INFRA_CONTAINER_ID),
	}
	if err != nil {
		return p, invalidEnv("CNI_ARGS", "%v", err)
	}
	for _, f := range []struct{ key, value string }{
		{"K8S_POD_NAMESPACE", p.Namespace}, {"K8S_POD_NAME", p.Name},
	} {
		if f.value == "" {
			return p, invalidEnv("CNI_ARGS", "%s is missing: this network is for Kubernetes pods only", f.key)
		}
		if len(f.value) > 253 || strings.ContainsAny(f.value, "/ \t\n\x00") {
			return p, invalidEnv("CNI_ARGS", "%s=%.64q can't be a Kubernetes name", f.key, f.value)
		}
	}
	return p, nil
}

// withoutCommonArgs drops a pair named after the embedded struct: the library would find that field by reflection and
// take it for one of ours.
func withoutCommonArgs(args string) string {
	if !strings.Contains(args, "CommonArgs") {
		return args
	}
	pairs := strings.Split(args, ";")
	kept := pairs[:0]
	for _, pair := range pairs {
		if !strings.HasPrefix(pair, "CommonArgs=") {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, ";")
}

func (p podArgs) message() *rpc.Pod {
	return &rpc.Pod{Namespace: p.Namespace, Name: p.Name, Uid: p.UID}
}

func (p podArgs) String() string { return p.Namespace + "/" + p.Name }
