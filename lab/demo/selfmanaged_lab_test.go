//go:build lab

package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/config"
	"github.com/branchline-cni/branchline/lab"
)

const (
	controllerPod  = "app=vpc-resource-controller"
	controllerName = "vpc-resource-controller"
	// agentRole is the agent's own, apart from the instances' role: as with a role of its ServiceAccount.
	agentRole = "agentRole"
)

// TestASelfManagedClusterOnContainerd2 has one cluster for two walks, since making it is most of the time. Its node shares
// this machine's kernel, which may have no 802.1Q: pods run as regular ones, and the claims about branch pods end at the
// annotation.
func TestASelfManagedClusterOnContainerd2(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 11*time.Minute)
	defer cancel()
	w := inLab(t, ctx, lab.Options{
		Controller: lab.Deployment, OneNode: true, Containerd2: true, AgentEnv: []string{"MAX_ENI=1"}, // nine addresses are soon given
	})
	n, s := &newRuntime{walk: w}, &selfManaged{walk: w}
	// containerd 2 is the first runtime that asks for STATUS, and whose answer makes a node unready.
	ok := t.Run("containerd 2 runs the chain at CNI 1.1.0, and the node is Ready as STATUS says", func(t *testing.T) {
		w.play(t, ctx, []labStep{
			{"1", "a pod is wired at CNI 1.1.0, and its host port leads to it", n.wired},
			{"2", "the agent is away: within its grace the node stays Ready, after it STATUS says why not", n.away},
			{"3", "a full pool leaves the node Ready", n.full},
			{"3b", "the agent's memory is lost: by the kernel and the runtime it knows its pods again", n.forgotten},
			{"4", "pods are torn down", n.tornDown},
		}, n.diagnose)
	})
	// The controller as users of a self-managed cluster run it: the manifests of config/ and nothing else, its EC2 rights
	// from the instance's role, which holds iam-policy.json and no other policy.
	ok = ok && t.Run("the controller is a Deployment", func(t *testing.T) {
		w.play(t, ctx, []labStep{
			{"5", "the Deployment runs, and its webhooks are called through the Service", s.rolledOut},
			{"6", "least privilege: kubectl auth can-i, and one IAM policy", s.rights},
			{"7", "ENABLE_POD_ENI=true: a trunk ENI, a label, a capacity of 9", s.trunkUp},
			{"8", "a selected pod gets the resource, a branch ENI and the annotation", func(ctx context.Context) error { return s.selected(ctx, "first") }},
			{"9", "the controller's pod is deleted: another one goes on", s.replaced},
			{"10", "the pods are deleted: their branch ENIs go after the cool-down", s.cooledDown},
			{"11", "what iam-policy.json allows was enough", s.allowed},
		}, func(context.Context) { w.explain() })
	})
	if !ok {
		t.Error("the walk did not come to its end")
	}
}

// selfManaged is the walk with the controller as a Deployment.
type selfManaged struct {
	*walk
	holder string    // of the Lease
	alone  time.Time // from when on the instance's role has iam-policy.json and nothing else
	enis   []string  // branch ENIs
}

func (s *selfManaged) rolledOut(ctx context.Context) error {
	if _, err := s.Await(ctx, 2*time.Minute, "the Deployment controller has rolled it out", contains("successfully rolled out"), s.Local,
		s.system("rollout", "status", "deployment", controllerName, "--timeout=25s")...); err != nil {
		return err
	}
	if _, err := s.Await(ctx, time.Minute, "it runs with the product's image, under its ServiceAccount, on the node's network",
		equals("localhost/branchline/vpc-controller:dev "+controllerName+" "+s.node.Address.String()), s.Local,
		s.system("get", "pods", "-l", controllerPod, "-o", "jsonpath={.items[*].spec.containers[0].image} {.items[*].spec.serviceAccountName} {.items[*].status.podIP}")...); err != nil {
		return err
	}
	if _, err := s.Await(ctx, time.Minute, "it made both webhook configurations, which name the Service and no URL",
		equals("kube-system/vpc-resource-controller:443/mutate-v1-pod kube-system/vpc-resource-controller:443/validate-v1-pod kube-system/vpc-resource-controller:443/validate-v1-binding "+
			"kube-system/vpc-resource-controller:443/validate-v1-node"),
		s.Local, "kubectl", "get", "mutatingwebhookconfigurations,validatingwebhookconfigurations", "-o",
		`jsonpath={range .items[*].webhooks[*].clientConfig}{.service.namespace}/{.service.name}:{.service.port}{.service.path}{.url} {end}`); err != nil {
		return err
	}
	if _, err := s.Await(ctx, time.Minute, "certificate and key are in the Secret that it made", equals("kubernetes.io/tls"), s.Local,
		s.system("get", "secret", "branchline-webhook-certs", "-o", "jsonpath={.type}")...); err != nil {
		return err
	}
	if err := s.forgedIsDenied(ctx); err != nil {
		return err
	}
	var err error
	s.holder, err = s.leader(ctx, "")
	return err
}

// forgedIsDenied shows that the API server reaches the webhooks.
func (w *walk) forgedIsDenied(ctx context.Context) error {
	// The request of a webhook that can't be reached fails by another text: failurePolicy Fail.
	o, err := w.Local(ctx, []string{"kubectl", "run", "forged", "--image=" + lab.PauseImage, "--annotations=" + resource + "=[]"})
	if err != nil {
		return err
	}
	w.keep(o)
	if err := contains("vpod.vpc.k8s.aws", "denied the request")(o); err != nil || o.Code == 0 {
		return fmt.Errorf("a pod with a forged annotation was not denied by the webhook: %w", err)
	}
	w.Seen("the API server reaches the webhooks by certificates that the controller made: a forged annotation is denied")
	return nil
}

// leader waits for a holder of the Lease other than not.
func (s *selfManaged) leader(ctx context.Context, not string) (string, error) {
	o, err := s.Await(ctx, time.Minute, "a controller holds the Lease", func(o Output) error {
		if o.Stdout == "" || o.Stdout == not {
			return fmt.Errorf("the Lease's holder is %q", o.Stdout)
		}
		return nil
	}, s.Local, s.system("get", "lease", "cp-vpc-resource-controller", "-o", "jsonpath={.spec.holderIdentity}")...)
	return o.Stdout, err
}

func (s *selfManaged) rights(ctx context.Context) error {
	if err := s.privileges(ctx); err != nil {
		return err
	}
	// The agent gets a role of its own, so that the instance's role can be the controller's alone.
	for _, argv := range [][]string{
		{"iam", "create-role", "--role-name", agentRole, "--assume-role-policy-document",
			`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}`},
		{"iam", "attach-role-policy", "--role-name", agentRole, "--policy-arn", "arn:aws:iam::aws:policy/AmazonEKS_CNI_Policy"},
		{"iam", "detach-role-policy", "--role-name", lab.NodeRole, "--policy-arn", "arn:aws:iam::aws:policy/AmazonEKS_CNI_Policy"},
	} {
		if _, err := s.Do(ctx, s.Local, append([]string{"aws"}, argv...)...); err != nil {
			return err
		}
	}
	s.alone = time.Now()
	if _, err := s.Await(ctx, time.Minute, "the instance's role has one inline policy", equals(lab.ControllerPolicyName), s.Local,
		"aws", "iam", "list-role-policies", "--role-name", lab.NodeRole, "--output", "text", "--query", "PolicyNames"); err != nil {
		return err
	}
	if _, err := s.Await(ctx, time.Minute, "and no managed one", equals(""), s.Local,
		"aws", "iam", "list-attached-role-policies", "--role-name", lab.NodeRole, "--output", "text", "--query", "AttachedPolicies[].PolicyName"); err != nil {
		return err
	}
	o, err := s.Do(ctx, s.Local, "aws", "iam", "get-role-policy", "--role-name", lab.NodeRole, "--policy-name", lab.ControllerPolicyName, "--query", "PolicyDocument")
	if err != nil {
		return err
	}
	var got, shipped any
	if err := errors.Join(json.Unmarshal([]byte(o.Stdout), &got), json.Unmarshal(config.ControllerIAMPolicy(), &shipped)); err != nil {
		return fmt.Errorf("read the role's policy: %w", err)
	}
	if !reflect.DeepEqual(got, shipped) {
		return fmt.Errorf("the role's policy is not config/vpc-controller/iam-policy.json: %s", o.Stdout)
	}
	s.Seen("the instance's role holds config/vpc-controller/iam-policy.json and nothing else")
	return nil
}

func (s *selfManaged) trunkUp(ctx context.Context) error {
	keys, ok := s.lab.Region.RoleCredentials(agentRole, "aws-node")
	if !ok {
		return fmt.Errorf("no keys of role %s", agentRole)
	}
	if o, err := s.Local(ctx, s.system("set", "env", "daemonset", "aws-node", "MAX_ENI-", "ENABLE_POD_ENI=true", "AWS_ACCESS_KEY_ID="+keys.AccessKeyID,
		"AWS_SECRET_ACCESS_KEY="+keys.SecretAccessKey, "AWS_SESSION_TOKEN="+keys.Token)); err != nil || o.Code != 0 {
		return fmt.Errorf("set the agent's variables: exit code %d: %s %w", o.Code, o.All(), err)
	}
	if err := s.oneTrunk(ctx, "the trunk ENI is on the m5.large"); err != nil {
		return err
	}
	if _, err := s.Await(ctx, time.Minute, "the node has the label", equals("true"), s.Local,
		"kubectl", "get", "node", s.node.Hostname(), "-o", "jsonpath={.metadata.labels."+trunkLabelKey+"}"); err != nil {
		return err
	}
	_, err := s.Await(ctx, time.Minute, "the node has capacity for nine branch ENIs", equals(branches), s.Local,
		"kubectl", "get", "node", s.node.Hostname(), "-o", "jsonpath={.status.capacity."+resourcePath+"}")
	return err
}

// selected makes a pod that a policy selects and waits for its annotation.
func (s *selfManaged) selected(ctx context.Context, name string) error {
	if s.podGroup == "" {
		o, err := s.Do(ctx, s.Local, "aws", "ec2", "create-security-group", "--group-name", "POD_SG", "--description", "POD_SG",
			"--vpc-id", s.lab.Network.VPCID, "--query", "GroupId", "--output", "text")
		if err != nil {
			return err
		}
		s.podGroup = strings.TrimSpace(o.Stdout)
		if err := s.apply(ctx, "policy", policyYAML("green", "green-pod", s.podGroup)); err != nil {
			return err
		}
	}
	pod := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: green-pod}}\nspec:\n  terminationGracePeriodSeconds: 1\n"+
		"  containers:\n  - {name: pause, image: %q, imagePullPolicy: IfNotPresent}\n", name, lab.PauseImage)
	if err := s.apply(ctx, name, pod); err != nil {
		return err
	}
	if _, err := s.Await(ctx, time.Minute, "the webhook gave the pod the resource", equals("1/1"), s.Local, "kubectl", "get", "pod", name, "-o",
		"jsonpath={.spec.containers[0].resources.requests."+resourcePath+"}/{.spec.containers[0].resources.limits."+resourcePath+"}"); err != nil {
		return err
	}
	var a []struct {
		ENIID     string `json:"eniId"`
		PrivateIP string `json:"privateIp"`
		VLANID    int    `json:"vlanId"`
	}
	if _, err := s.Await(ctx, time.Minute, "the pod is annotated with its branch ENI", func(o Output) error {
		if err := json.Unmarshal([]byte(o.Stdout), &a); err != nil || len(a) != 1 || a[0].ENIID == "" || a[0].PrivateIP == "" || a[0].VLANID == 0 {
			return fmt.Errorf("the annotation is %q (%w)", o.Stdout, err)
		}
		return nil
	}, s.Local, "kubectl", "get", "pod", name, "-o", "jsonpath={.metadata.annotations."+resourcePath+"}"); err != nil {
		return err
	}
	s.enis = append(s.enis, a[0].ENIID)
	if _, err := s.Do(ctx, s.Local, "aws", "ec2", "describe-trunk-interface-associations", "--output", "text"); err != nil {
		return err
	}
	_, err := s.Await(ctx, time.Minute, "that ENI is a branch of the trunk, with POD_SG and the controller's mark",
		equals(strings.Join([]string{"branch", a[0].PrivateIP, s.podGroup, "eks-vpc-resource-controller"}, "\t")), s.Local,
		"aws", "ec2", "describe-network-interfaces", "--network-interface-ids", a[0].ENIID, "--output", "text",
		"--query", "NetworkInterfaces[].[InterfaceType,PrivateIpAddress,join(',',Groups[].GroupId),TagSet[?Key=='eks:eni:owner']|[0].Value]")
	return err
}

// replaced deletes the controller's pod, as a drain does, and has the next one work.
func (s *selfManaged) replaced(ctx context.Context) error {
	names := s.system("get", "pods", "-l", controllerPod, "-o", "jsonpath={.items[*].metadata.name}")
	o, err := s.Do(ctx, s.Local, names...)
	if err != nil {
		return err
	}
	old := strings.TrimSpace(o.Stdout)
	if _, err := s.Do(ctx, s.Local, s.system("delete", "pod", old)...); err != nil {
		return err
	}
	if _, err := s.Await(ctx, time.Minute, "another pod is in its place", both(lacks(old), contains(controllerName)), s.Local, names...); err != nil {
		return err
	}
	if _, err := s.Await(ctx, 90*time.Second, "it is ready", contains("successfully rolled out"), s.Local,
		s.system("rollout", "status", "deployment", controllerName, "--timeout=25s")...); err != nil {
		return err
	}
	if s.holder, err = s.leader(ctx, s.holder); err != nil {
		return err
	}
	if err := s.selected(ctx, "second"); err != nil {
		return err
	}
	_, err = s.Await(ctx, time.Minute, "the first pod's branch ENI is as it was", contains(s.enis[0], s.enis[1]), s.Local,
		"aws", "ec2", "describe-trunk-interface-associations", "--output", "text", "--query", "InterfaceAssociations[].BranchInterfaceId")
	return err
}

// coolDown is the floor, which the lab sets in the ConfigMap amazon-vpc-cni.
const coolDown = 30 * time.Second

func (s *selfManaged) cooledDown(ctx context.Context) error {
	began := time.Now()
	if _, err := s.Do(ctx, s.Local, "kubectl", "delete", "pod", "first", "second"); err != nil {
		return err
	}
	list := []string{"aws", "ec2", "describe-network-interfaces", "--filters", "Name=description,Values=aws-k8s-branch-eni",
		"--query", "NetworkInterfaces[].NetworkInterfaceId", "--output", "text"}
	o, err := s.Do(ctx, s.Local, list...)
	if err != nil {
		return err
	}
	if time.Since(began) < coolDown && contains(s.enis...)(o) != nil {
		return fmt.Errorf("branch ENIs right after the pods' end: %s, want %v: they have to cool down", o.Stdout, s.enis)
	}
	if _, err := s.Await(ctx, 3*time.Minute, "after the cool-down EC2 has no branch ENI", equals(""), s.Local, list...); err != nil {
		return err
	}
	if took := time.Since(began); took < coolDown {
		return fmt.Errorf("the branch ENIs went %s after their pods, before the cool-down of %s", took, coolDown)
	}
	return s.oneTrunk(ctx, "the trunk stays with its instance")
}

// allowed reads the cloud's audit log: what the controller called with the instance's role, and that none of it was refused.
func (s *selfManaged) allowed(context.Context) error {
	log, err := os.ReadFile(s.lab.AuditLog())
	if err != nil {
		return fmt.Errorf("read the audit log: %w", err)
	}
	called := map[string]int{}
	lines := bufio.NewScanner(bytes.NewReader(log))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e struct {
			EventTime    time.Time
			EventName    string
			ErrorCode    string
			ErrorMessage string
			UserAgent    string
			UserIdentity struct{ ARN string }
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("read the audit log: %w", err)
		}
		if !strings.Contains(e.UserAgent, "branchline-vpc-controller") || e.EventTime.Before(s.alone) {
			continue
		}
		if want := "assumed-role/" + lab.NodeRole + "/" + s.node.ID; !strings.HasSuffix(e.UserIdentity.ARN, want) {
			return fmt.Errorf("the controller called %s as %s, want %s: the instance's role", e.EventName, e.UserIdentity.ARN, want)
		}
		if e.ErrorCode == "UnauthorizedOperation" {
			return fmt.Errorf("iam-policy.json lacks something: %s: %s", e.EventName, e.ErrorMessage)
		}
		called[e.EventName]++
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the audit log: %w", err)
	}
	s.Note("calls by the controller with the instance's role: %v", called)
	for _, api := range []string{"CreateNetworkInterface", "CreateNetworkInterfacePermission", "AttachNetworkInterface", "ModifyNetworkInterfaceAttribute",
		"AssociateTrunkInterface", "DisassociateTrunkInterface", "DeleteNetworkInterface", "DescribeInstances", "DescribeNetworkInterfaces", "DescribeSubnets"} {
		if called[api] == 0 {
			return fmt.Errorf("the controller never called %s: this run does not show that its policy is enough", api)
		}
	}
	s.Seen("every call was allowed by iam-policy.json alone, and each kind of call that changes something was made")
	return nil
}
