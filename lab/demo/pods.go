package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab"
)

// Strings that the outside world depends on. They are written out here and not taken from the product, so that the
// walk-through sees what a user sees.
const (
	resource      = "vpc.amazonaws.com/pod-eni"
	resourcePath  = `vpc\.amazonaws\.com/pod-eni`
	trunkLabel    = "vpc.amazonaws.com/has-trunk-attached"
	trunkLabelKey = `vpc\.amazonaws\.com/has-trunk-attached`
	branches      = "9" // of an m5.large
	lastDevice    = "2" // the highest device index of an m5.large, which has three interfaces
)

// enable waits for what ENABLE_POD_ENI=true brings.
func (w *walk) enable(ctx context.Context) error {
	if err := w.setPodENI(ctx, true); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 5*time.Minute, "the change is rolled out", contains("successfully rolled out"), w.Local,
		"kubectl", "-n", "kube-system", "rollout", "status", "daemonset", "aws-node", "--timeout=25s"); err != nil {
		return err
	}
	if err := w.oneTrunk(ctx, "the trunk ENI is on the m5.large, at the highest free device index"); err != nil {
		return err
	}
	name := w.node.Hostname()
	if _, err := w.Await(ctx, 3*time.Minute, "the node has the label", equals("true"), w.Local,
		"kubectl", "get", "node", name, "-o", "jsonpath={.metadata.labels."+trunkLabelKey+"}"); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 3*time.Minute, "the node has capacity for nine branch ENIs", equals(branches), w.Local,
		"kubectl", "get", "node", name, "-o", "jsonpath={.status.capacity."+resourcePath+"}"); err != nil {
		return err
	}
	return w.smallLeftAlone(ctx)
}

// oneTrunk waits until EC2 describes exactly one trunk, attached to the m5.large.
func (w *walk) oneTrunk(ctx context.Context, claim string) error {
	o, err := w.Await(ctx, 4*time.Minute, claim, func(o Output) error {
		lines := strings.Split(strings.TrimSpace(o.Stdout), "\n")
		if len(lines) != 1 || !strings.Contains(lines[0], w.node.ID) || !strings.Contains(lines[0], "aws-k8s-trunk-eni") || !strings.Contains(lines[0], "in-use") || !strings.HasSuffix(lines[0], "\t"+lastDevice) {
			return fmt.Errorf("trunk ENIs are %q, want one that is in use on %s at device index %s", lines, w.node.ID, lastDevice)
		}
		return nil
	}, w.Local, "aws", "ec2", "describe-network-interfaces", "--filters", "Name=interface-type,Values=trunk", "--output", "text",
		"--query", "NetworkInterfaces[].[NetworkInterfaceId,InterfaceType,Description,Status,Attachment.InstanceId,Attachment.DeviceIndex]")
	if err == nil {
		w.trunk = strings.Fields(o.Stdout)[0]
	}
	return err
}

// smallLeftAlone shows that the type that cannot trunk lost nothing.
func (w *walk) smallLeftAlone(ctx context.Context) error {
	o, err := w.Do(ctx, w.Local, "kubectl", "get", "node", w.small.Hostname(), "-o",
		"jsonpath={.metadata.labels."+trunkLabelKey+"}/{.status.capacity."+resourcePath+"}")
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(o.Stdout); got != "/" {
		return fmt.Errorf("the t3.medium has label/capacity %q, want neither", got)
	}
	o, err = w.Do(ctx, w.Local, "aws", "ec2", "describe-network-interfaces", "--filters", "Name=attachment.instance-id,Values="+w.small.ID,
		"--output", "text", "--query", "NetworkInterfaces[].[NetworkInterfaceId,InterfaceType,Description,Attachment.DeviceIndex]")
	if err != nil {
		return err
	}
	if err := both(lacks("trunk"), contains("interface"))(o); err != nil {
		return err
	}
	w.Seen("the t3.medium is left alone: no trunk, no label, no capacity")
	return nil
}

// policy applies the walk-through's SecurityGroupPolicy.
func (w *walk) policy(ctx context.Context) error {
	if err := w.apply(ctx, "allow-rds-access", policyYAML("allow-rds-access", "green-pod", w.podGroup)); err != nil {
		return err
	}
	_, err := w.Await(ctx, 30*time.Second, "the policy is there", contains("allow-rds-access"), w.Local, "kubectl", "get", "sgp", "-o", "wide")
	return err
}

// apply writes a manifest next to the evidence and applies it.
func (w *walk) apply(ctx context.Context, name, manifest string) error {
	file := filepath.Join(w.dir, name+".yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o644); err != nil {
		return fmt.Errorf("write manifest %s: %w", name, err)
	}
	_, err := w.Await(ctx, 2*time.Minute, name+" is applied", func(Output) error { return nil }, w.Local, "kubectl", "apply", "-f", file)
	return err
}

// pods plays green and red.
func (w *walk) pods(ctx context.Context) error {
	for _, app := range []string{"green-pod", "red-pod"} {
		if err := w.apply(ctx, app, clientYAML(app, w.lab.DatabaseHost())); err != nil {
			return err
		}
	}
	var err error
	if w.green, err = w.awaitPod(ctx, "green-pod", ""); err != nil {
		return err
	}
	if w.red, err = w.awaitPod(ctx, "red-pod", ""); err != nil {
		return err
	}
	if err := w.greenReads(ctx); err != nil {
		return err
	}
	if err := w.greenHasBranch(ctx); err != nil {
		return err
	}
	if err := w.greenWiring(ctx); err != nil {
		return err
	}
	if err := w.runsAt(ctx, w.node, containerd1); err != nil {
		return err
	}
	return w.redRefused(ctx)
}

// podList is the part of a PodList that the walk-through reads.
type podList struct {
	Items []struct {
		Metadata struct {
			Name              string            `json:"name"`
			UID               string            `json:"uid"`
			Annotations       map[string]string `json:"annotations"`
			DeletionTimestamp *string           `json:"deletionTimestamp"`
		} `json:"metadata"`
		Spec struct {
			NodeName string `json:"nodeName"`
		} `json:"spec"`
		Status struct {
			Phase             string `json:"phase"`
			PodIP             string `json:"podIP"`
			ContainerStatuses []struct {
				Ready bool `json:"ready"`
			} `json:"containerStatuses"`
		} `json:"status"`
	} `json:"items"`
}

// awaitPod waits for one running pod of an app, other than the one with UID not.
func (w *walk) awaitPod(ctx context.Context, app, not string) (podInfo, error) {
	var p podInfo
	show := []string{"kubectl", "get", "pods", "-l", "app=" + app, "-o", "json"}
	quiet := func(ctx context.Context, argv []string) (Output, error) {
		o, err := w.Local(ctx, argv)
		if err != nil || o.Code != 0 {
			return o, err
		}
		var l podList
		if err := json.Unmarshal([]byte(o.Stdout), &l); err != nil {
			return o, fmt.Errorf("read the list of pods: %w", err)
		}
		for _, i := range l.Items {
			if i.Metadata.UID != not && i.Metadata.DeletionTimestamp == nil && i.Status.Phase == "Running" {
				p = podInfo{name: i.Metadata.Name, ip: i.Status.PodIP, uid: i.Metadata.UID, node: i.Spec.NodeName}
				return w.Local(ctx, []string{"kubectl", "get", "pod", i.Metadata.Name, "-o", "wide"})
			}
		}
		o.Code, o.Stderr = 1, "no running pod yet"
		o.Stdout = ""
		return o, nil
	}
	_, err := w.Await(ctx, 5*time.Minute, app+" runs", contains("Running"), quiet, show...)
	if err != nil {
		return p, err
	}
	if p.node != w.node.Hostname() {
		return p, fmt.Errorf("pod %s runs on %s, want %s: its affinity asks for the trunk's label", p.name, p.node, w.node.Hostname())
	}
	return p, nil
}

// logs shows the end of a pod's output.
func (w *walk) logs(p podInfo) []string {
	return []string{"kubectl", "logs", p.name, "--tail=40"}
}

// logsSince shows a pod's output from the last seconds, for claims about now.
func (w *walk) logsSince(p podInfo, seconds int) []string {
	return []string{"kubectl", "logs", p.name, fmt.Sprintf("--since=%ds", seconds)}
}

func (w *walk) greenReads(ctx context.Context) error {
	if _, err := w.Await(ctx, 2*time.Minute, "the green pod prints the table's rows", contains("welcome", "to the walk-through", "of security groups for pods"),
		w.Local, w.logs(w.green)...); err != nil {
		return err
	}
	_, err := w.Await(ctx, time.Minute, "PostgreSQL's own log has the green pod's address", contains("host="+w.green.ip), w.Local,
		"grep", "-m", "3", "connection received: host="+w.green.ip, w.lab.DatabaseLog())
	return err
}

func (w *walk) greenHasBranch(ctx context.Context) error {
	o, err := w.Do(ctx, w.Local, "kubectl", "get", "pod", w.green.name, "-o", `jsonpath={.metadata.annotations.`+resourcePath+`}`)
	if err != nil {
		return err
	}
	var ann []struct {
		ENIID     string `json:"eniId"`
		MAC       string `json:"ifAddress"`
		VLANID    int    `json:"vlanId"`
		PrivateIP string `json:"privateIp"`
		IPv6      string `json:"ipv6Addr"`
	}
	if err := json.Unmarshal([]byte(o.Stdout), &ann); err != nil || len(ann) != 1 {
		return fmt.Errorf("the green pod's annotation is %q, want one branch ENI (%v)", o.Stdout, err)
	}
	address := ann[0].PrivateIP
	if strings.Contains(w.green.ip, ":") {
		address = ann[0].IPv6
	}
	if address != w.green.ip {
		return fmt.Errorf("the green pod has address %s, its annotation says %s", w.green.ip, address)
	}
	w.green.eniID, w.green.mac, w.green.vlanID = ann[0].ENIID, ann[0].MAC, ann[0].VLANID
	w.Seen("the green pod's annotation shows its branch ENI, and its address is the ENI's")
	_, err = w.Await(ctx, 30*time.Second, "that ENI holds POD_SG and nothing else", both(contains("branch"), func(o Output) error {
		if f := strings.Fields(o.Stdout); len(f) == 0 || f[len(f)-1] != w.podGroup {
			return fmt.Errorf("groups of %s: %q, want %s alone", w.green.eniID, o.Stdout, w.podGroup)
		}
		return nil
	}), w.Local, "aws", "ec2", "describe-network-interfaces", "--network-interface-ids", w.green.eniID, "--output", "text",
		"--query", "NetworkInterfaces[].[NetworkInterfaceId,InterfaceType,Description,PrivateIpAddress,join(',',Groups[].GroupId)]")
	return err
}

// greenWiring shows the node's kernel.
func (w *walk) greenWiring(ctx context.Context) error {
	node := w.inside(w.node)
	link := fmt.Sprintf("vlan.eth.%d", w.green.vlanID)
	table := fmt.Sprint(100 + w.green.vlanID)
	if _, err := w.Await(ctx, 30*time.Second, "the VLAN link is there, with the branch ENI's MAC address", contains(link, "802.1Q", fmt.Sprintf("id %d", w.green.vlanID), w.green.mac),
		node, "ip", "-d", "link", "show", link); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 30*time.Second, "both directions of the pod's traffic are looked up in the VLAN's table", func(o Output) error {
		if n := strings.Count(o.Stdout, "lookup "+table); n != 2 {
			return fmt.Errorf("%d rules look up table %s, want 2", n, table)
		}
		return nil
	}, node, "ip", "rule"); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 30*time.Second, "that table leads out by the VLAN and back to the pod", contains("default via", link, w.green.ip), node, "ip", "route", "show", "table", table); err != nil {
		return err
	}
	// -Z root: Debian's tcpdump would become a user that only its package's installation makes.
	_, err := w.Await(ctx, time.Minute, "the trunk's port carries the green pod's packets with its 802.1Q tag", contains("5432"), w.Local,
		w.lab.Tool("tcpdump"), "-Z", "root", "-nn", "-e", "-c", "4", "-r", w.lab.Pcap(w.trunk), fmt.Sprintf("vlan %d and tcp port 5432", w.green.vlanID))
	return err
}

// redRefused shows that red is red, and for the right reason.
func (w *walk) redRefused(ctx context.Context) error {
	if _, err := w.Await(ctx, 2*time.Minute, "the red pod's connection times out, while it resolves the name and reaches an allowed port",
		contains("name "+w.lab.DatabaseHost()+": resolved", ": connected", "no rows", "timeout expired"), w.Local, w.logsSince(w.red, 60)...); err != nil {
		return err
	}
	o, err := w.Do(ctx, w.Local, "kubectl", "get", "pod", w.red.name, "-o", `jsonpath=annotation:[{.metadata.annotations.`+resourcePath+`}] ip:[{.status.podIP}]`)
	if err != nil {
		return err
	}
	if err := contains("annotation:[]")(o); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 30*time.Second, "it has no annotation, and an ordinary address: a secondary one of the node's own ENIs", contains(w.node.ID, "interface"), w.Local,
		"aws", "ec2", "describe-network-interfaces", "--filters", "Name=addresses.private-ip-address,Values="+w.red.ip, "--output", "text",
		"--query", "NetworkInterfaces[].[NetworkInterfaceId,InterfaceType,Attachment.InstanceId]"); err != nil {
		return err
	}
	if err := w.rejected(ctx, w.red.ip, "the VPC flow log has the REJECT at the database's ENI"); err != nil {
		return err
	}
	_, err = w.Await(ctx, time.Minute, "the red pod's SYN is seen at the database's ENI and dropped there: no rule of RDS_SG lets it in",
		contains(w.db.ENIID, "no-rule", "SYN"), w.fresh,
		// The whole conversation: another pod may have had the address before.
		"grep", "-m", "2", "-E", fmt.Sprintf("%s ingress .* %s:[0-9]+ > %s:5432 ", w.db.ENIID, w.red.ip, w.db.Address), w.lab.DropLog())
	return err
}

// rejected waits for a REJECT record of packets from an address to the database.
func (w *walk) rejected(ctx context.Context, from, claim string) error {
	return w.logged(ctx, claim, w.db.ENIID, from, w.db.Address.String(), 5432, "REJECT")
}

// logged waits for a record of TCP packets from one address to another's port, which an ENI accepted or not.
func (w *walk) logged(ctx context.Context, claim, eniID, from, to string, port int, action string) error {
	_, err := w.Await(ctx, 2*time.Minute, claim, contains(action), w.fresh,
		"grep", "-m", "2", "-E", fmt.Sprintf("%s %s %s [0-9]+ %d 6 .* %s", eniID, from, to, port, action), w.lab.FlowLog())
	return err
}

// fresh is Local, after the data plane has written its logs.
func (w *walk) fresh(ctx context.Context, argv []string) (Output, error) {
	if err := w.lab.Flush(); err != nil {
		return Output{}, err
	}
	return w.Local(ctx, argv)
}

func policyYAML(name, app, group string) string {
	return fmt.Sprintf(`apiVersion: vpcresources.k8s.aws/v1beta1
kind: SecurityGroupPolicy
metadata: {name: %s, namespace: default}
spec:
  podSelector: {matchLabels: {app: %s}}
  securityGroups: {groupIds: [%s]}
`, name, app, group)
}

// affinity is the walk-through's: only nodes with a trunk.
const affinity = `      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
            - matchExpressions: [{key: ` + trunkLabel + `, operator: In, values: ["true"]}]
`

// clientYAML is a Deployment that reads the table in a loop.
func clientYAML(app, host string) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, namespace: default}
spec:
  replicas: 1
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 1
      automountServiceAccountToken: false
%[2]s      containers:
      - name: client
        image: %[3]s
        imagePullPolicy: IfNotPresent
        env:
        - {name: PGHOST, value: %[4]s}
        - {name: PGUSER, value: %[5]s}
        - {name: PGDATABASE, value: %[6]s}
        - {name: PGCONNECT_TIMEOUT, value: "5"}
        - {name: ALLOWED, value: "kubernetes.default.svc.cluster.local:443"}
`, app, affinity, lab.ClientImage, host, lab.DatabaseUser, lab.DatabaseName)
}
