package demo

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab"
)

// cluster shows the instances and the nodes that the lab's set-up made.
func (w *walk) cluster(ctx context.Context) error {
	o, err := w.Do(ctx, w.Local, "aws", "ec2", "describe-instances", "--output", "text", "--query",
		"Reservations[].Instances[].[InstanceId,InstanceType,State.Name,PrivateIpAddress,length(NetworkInterfaces)]")
	if err != nil {
		return err
	}
	if err := contains("m5.large", "t3.medium", "running")(o); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 3*time.Minute, "both nodes are Ready, with regular pods' addresses from the VPC",
		func(o Output) error {
			if n := strings.Count(o.Stdout, " Ready "); n != 2 {
				return fmt.Errorf("%d of 2 nodes are Ready", n)
			}
			return nil
		}, w.Local, "kubectl", "get", "nodes", "-o", "wide"); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 4*time.Minute, "aws-node is rolled out by the DaemonSet controller, from an image made here",
		contains("successfully rolled out"), w.Local, "kubectl", "-n", "kube-system", "rollout", "status", "daemonset", "aws-node", "--timeout=25s"); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 4*time.Minute, "CoreDNS runs with an address of the VPC",
		contains("successfully rolled out"), w.Local, "kubectl", "-n", "kube-system", "rollout", "status", "deployment", "coredns", "--timeout=25s"); err != nil {
		return err
	}
	if _, err := w.Do(ctx, w.Local, "kubectl", "-n", "kube-system", "get", "pods", "-o", "wide"); err != nil {
		return err
	}
	return w.privileges(ctx)
}

// privileges asks the API server what the two service accounts may do.
func (w *walk) privileges(ctx context.Context) error {
	for _, q := range []struct {
		account, verb, object string
		more                  []string
		want                  string
	}{
		{"aws-node", "patch", "nodes", nil, "yes"},
		{"aws-node", "delete", "nodes", nil, "no"},
		{"aws-node", "get", "secrets", []string{"-A"}, "no"},
		{"aws-node", "update", "pods", []string{"-A"}, "no"},
		{"aws-node", "patch", "branchledgers", []string{"--subresource=status"}, "yes"},
		{"aws-node", "patch", "branchledgers", nil, "no"},
		{"aws-node", "list", "securitygrouppolicies", []string{"-A"}, "yes"},
		{"aws-node", "list", "serviceaccounts", []string{"-A"}, "no"},
		{"aws-node", "patch", "pods", []string{"-A"}, "no"},
		{"aws-node", "watch", "eniconfigs", nil, "yes"},
		{"aws-node", "update", "eniconfigs", nil, "no"},
		{"vpc-resource-controller", "patch", "pods", []string{"-A"}, "yes"},
		{"vpc-resource-controller", "delete", "pods", []string{"-A"}, "no"},
		{"vpc-resource-controller", "get", "secrets", []string{"-A"}, "no"},
	} {
		argv := append([]string{"kubectl", "auth", "can-i", q.verb, q.object,
			"--as=system:serviceaccount:kube-system:" + q.account}, q.more...)
		o, err := w.Local(ctx, argv)
		if err != nil {
			return err
		}
		w.keep(o)
		if err := equals(q.want)(o); err != nil {
			return err
		}
	}
	w.Seen("the service accounts of agent and controller may do what they need and no more of what was asked")
	return nil
}

// groups makes POD_SG and RDS_SG with the AWS CLI, as a user would.
func (w *walk) groups(ctx context.Context) (err error) {
	for name, id := range map[string]*string{"POD_SG": &w.podGroup, "RDS_SG": &w.rdsGroup} {
		o, err := w.Do(ctx, w.Local, "aws", "ec2", "create-security-group", "--group-name", name, "--description", name+" of the walk-through",
			"--vpc-id", w.lab.Network.VPCID, "--query", "GroupId", "--output", "text")
		if err != nil {
			return err
		}
		if *id = strings.TrimSpace(o.Stdout); !strings.HasPrefix(*id, "sg-") {
			return fmt.Errorf("create-security-group printed %q, want a group id", o.Stdout)
		}
	}
	if err := w.authorize(ctx, w.rdsGroup, "tcp", "5432", "--source-group", w.podGroup); err != nil {
		return err
	}
	if err := w.authorize(ctx, w.rdsGroup, "tcp", "5432", "--cidr", w.lab.ControlPlaneMachine.Address.String()+"/32"); err != nil {
		return err
	}
	for _, protocol := range []string{"tcp", "udp"} {
		if err := w.authorize(ctx, w.lab.Network.NodeGroupID, protocol, "53", "--source-group", w.podGroup); err != nil {
			return err
		}
	}
	o, err := w.Do(ctx, w.Local, "aws", "ec2", "describe-security-group-rules", "--filters", "Name=group-id,Values="+w.rdsGroup, "--output", "text",
		"--query", "SecurityGroupRules[].[IsEgress,IpProtocol,FromPort,ToPort,CidrIpv4,ReferencedGroupInfo.GroupId]")
	if err != nil {
		return err
	}
	if err := contains("5432", w.podGroup)(o); err != nil {
		return err
	}
	w.Seen("RDS_SG (%s) lets TCP 5432 in from POD_SG (%s) and from one admin address", w.rdsGroup, w.podGroup)
	return nil
}

func (w *walk) authorize(ctx context.Context, group, protocol, port string, peer ...string) error {
	argv := append([]string{"aws", "ec2", "authorize-security-group-ingress", "--group-id", group, "--protocol", protocol, "--port", port,
		"--query", "Return", "--output", "text"}, peer...)
	_, err := w.Do(ctx, w.Local, argv...)
	return err
}

// database starts PostgreSQL on an ENI of its own and fills the table from the admin address.
func (w *walk) database(ctx context.Context) (err error) {
	if w.db, err = w.lab.Database(ctx, w.rdsGroup); err != nil {
		return err
	}
	admin := w.inside(w.lab.ControlPlaneMachine)
	psql := func(sql string) []string {
		return []string{w.lab.Tool("psql"), "-X", "-h", w.db.Address.String(), "-U", lab.DatabaseUser, "-d", lab.DatabaseName, "-c", sql}
	}
	if _, err := w.Do(ctx, admin, psql("CREATE TABLE welcome (greeting text NOT NULL)")...); err != nil {
		return err
	}
	if _, err := w.Do(ctx, admin, psql("INSERT INTO welcome VALUES ('welcome'), ('to the walk-through'), ('of security groups for pods')")...); err != nil {
		return err
	}
	_, err = w.Await(ctx, 30*time.Second, "the table has three rows, read from the admin address", contains("(3 rows)"), admin, psql("TABLE welcome")...)
	return err
}

// role first shows what a user sees without the policy, then attaches it. The trunk is asked for here as the agent does in
// step 5, in the CNINode, and not any more before the policy comes: all that step 5 brings is step 5's.
func (w *walk) role(ctx context.Context) error {
	if _, err := w.Do(ctx, w.Local, "aws", "iam", "list-attached-role-policies", "--role-name", lab.ClusterRole, "--output", "text"); err != nil {
		return err
	}
	wish := func(claim, features string) error {
		_, err := w.Await(ctx, time.Minute, claim, contains("patched"), w.Local,
			"kubectl", "patch", "cninode", w.node.Hostname(), "--type=merge", "-p", `{"spec":{"features":[`+features+`]}}`)
		return err
	}
	if err := wish("a trunk is asked for", `{"name":"SecurityGroupsForPods"}`); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 4*time.Minute, "without the policy an event on the node names the missing action and what it was for",
		contains("ec2:CreateNetworkInterface", "arn:aws:ec2"), w.Local,
		"kubectl", "get", "events", "-A", "--field-selector", "involvedObject.kind=Node,type=Warning",
		"-o", `jsonpath={range .items[*]}{.involvedObject.name}{"\t"}{.reason}{"\t"}{.message}{"\n"}{end}`); err != nil {
		return err
	}
	if err := wish("it is asked for no more", ""); err != nil {
		return err
	}
	if _, err := w.Do(ctx, w.Local, "aws", "iam", "attach-role-policy", "--role-name", lab.ClusterRole, "--policy-arn", lab.ControllerPolicyARN); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 30*time.Second, "the role holds AmazonEKSVPCResourceController", contains("AmazonEKSVPCResourceController"), w.Local,
		"aws", "iam", "list-attached-role-policies", "--role-name", lab.ClusterRole, "--output", "text"); err != nil {
		return err
	}
	_, err := w.Await(ctx, 30*time.Second, "EC2 has no trunk ENI yet", equals(""), w.Local,
		"aws", "ec2", "describe-network-interfaces", "--filters", "Name=interface-type,Values=trunk", "--query", "NetworkInterfaces[].NetworkInterfaceId", "--output", "text")
	return err
}

// setPodENI is what users type to switch the feature.
func (w *walk) setPodENI(ctx context.Context, on bool) error {
	// The API server may be restarting: kubectl is asked again, as a user would.
	_, err := w.Await(ctx, 2*time.Minute, fmt.Sprintf("ENABLE_POD_ENI=%t is set", on), func(Output) error { return nil }, w.Local,
		"kubectl", "-n", "kube-system", "set", "env", "daemonset", "aws-node", fmt.Sprintf("ENABLE_POD_ENI=%t", on))
	return err
}

// inside runs programs in an instance.
func (w *walk) inside(m lab.Machine) Source {
	return func(ctx context.Context, argv []string) (Output, error) {
		r, err := w.lab.Exec(ctx, m, argv...)
		o := Output{Command: "[" + m.Name + "] " + shellLine(argv), Stdout: string(r.Stdout), Stderr: string(r.Stderr), Code: r.ExitCode}
		if err != nil {
			return o, fmt.Errorf("run %s: %w", o.Command, err)
		}
		return o, nil
	}
}
