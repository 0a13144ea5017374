package eni

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/rpc/policyagent"
)

// The network policy agent is asked within the verbs' own deadlines. It may be starting beside the node agent, in the
// same pod, so an ADD waits for it a while; a DEL waits for nobody.
const (
	enforceDeadline = 20 * time.Second
	forgetDeadline  = 2 * time.Second
)

// PolicyAgent says whether a network policy agent has its part in ADD and DEL. The node agent writes it into the
// configuration: so a DEL knows it without the node agent, and the two agents' contracts stay apart.
type PolicyAgent struct {
	// Mode is strict or standard; empty: nobody is asked.
	Mode string
	// Socket is where it listens. Default policyagent.SocketPath.
	Socket string
}

type policyAgentJSON struct {
	NetworkPolicyMode string `json:"networkPolicyMode"`
	NPASocket         string `json:"npaSocket"`
}

func (raw policyAgentJSON) parse(report func(error)) PolicyAgent {
	p := PolicyAgent{Socket: policyagent.SocketPath}
	switch raw.NetworkPolicyMode {
	case "", "none":
	case "strict", "standard":
		p.Mode = raw.NetworkPolicyMode
	default:
		report(invalidConfig("networkPolicyMode", "%q is not none, strict or standard", raw.NetworkPolicyMode))
	}
	if v := raw.NPASocket; v != "" {
		if !filepath.IsAbs(v) || len(v) > maxSocketPath || strings.ContainsRune(v, 0) {
			report(invalidConfig("npaSocket", "%q is not an absolute path of at most %d bytes", v, maxSocketPath))
		} else {
			p.Socket = v
		}
	}
	return p
}

var errNotEnforced = errors.New("it answered that it did not")

// policyError is what kept the policies from the pod.
type policyError struct {
	pod podArgs
	at  PolicyAgent
	err error
}

func (e *policyError) Error() string {
	return fmt.Sprintf("have the network policy agent on %s put pod %s under its policies: %s (NETWORK_POLICY_ENFORCING_MODE is %s; without a network policy agent on the node it must be none)",
		e.at.Socket, e.pod, messageOf(e.err), e.at.Mode)
}
func (e *policyError) Unwrap() error { return e.err }

// enforcePolicies has the pod, which is wired with this many interfaces, put under its network policies. A pod that isn't
// must not run.
func (o *operation) enforcePolicies(ctx context.Context, interfaces int) error {
	p := o.config.PolicyAgent
	if p.Mode == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, enforceDeadline)
	defer cancel()
	client, err := policyagent.Dial(p.Socket)
	if err != nil {
		return &policyError{o.pod, p, err}
	}
	defer client.Close()
	reply, err := client.EnforceNpToPod(ctx, &policyagent.EnforceNpRequest{
		K8S_POD_NAME: o.pod.Name, K8S_POD_NAMESPACE: o.pod.Namespace, NETWORK_POLICY_MODE: p.Mode, InterfaceCount: int32(interfaces),
	})
	if err == nil && !reply.GetSuccess() {
		err = errNotEnforced
	}
	if err != nil {
		return &policyError{o.pod, p, err}
	}
	o.note("networkPolicy", p.Mode)
	return nil
}

// forgetPolicies has the policy agent forget the pod, of which nothing is left on the host. It knows pods by name, and
// the name may be a newer sandbox's by now: the caller holds the pod's lock, so that what is seen here stays so. No DEL
// fails or waits for it.
func (o *operation) forgetPolicies(hostVeths []string) {
	p := o.config.PolicyAgent
	if p.Mode == "" || o.pod.Name == "" || o.pod.Namespace == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), forgetDeadline)
	defer cancel()
	if held, err := datapath.HeldByAnother(ctx, o.owner, hostVeths); err != nil || held {
		o.note("networkPolicyKept", fmt.Sprintf("another sandbox of the pod is wired (%t, %v)", held, err))
		return
	}
	client, err := policyagent.Dial(p.Socket)
	if err != nil {
		o.note("policyAgentNotTold", err.Error())
		return
	}
	defer client.Close()
	_, err = client.DeletePodNp(ctx, &policyagent.DeleteNpRequest{
		K8S_POD_NAME: o.pod.Name, K8S_POD_NAMESPACE: o.pod.Namespace,
	})
	if err != nil {
		o.note("policyAgentNotTold", messageOf(err))
	}
}
