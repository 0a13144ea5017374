package trunk

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	eniconfigv1 "github.com/branchline-cni/branchline/api/eniconfig/v1alpha1"
	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/controller/cloud"
)

// ConfigLabel on a Node names its ENIConfig, and comes before the CNINode's feature: agents of before wrote it.
const ConfigLabel = "vpc.amazonaws.com/eniConfig"

// Why custom networking's place for ENIs can't be had.
var (
	errNoConfig    = errors.New("there is no such ENIConfig")
	errWrongSubnet = errors.New("the subnet is not one of the instance's VPC and availability zone")
)

// custom is where custom networking has the node's trunk and branch ENIs made. The zero value: where the primary ENI is.
type custom struct {
	config, subnetID string
	// groups are the trunk's; without any it has the primary ENI's.
	groups []string
	// err is set where the ENIConfig can't be used: what is there stays as it is meanwhile.
	err error
}

// configName is the ENIConfig that the node's agent chose; ok is false without custom networking.
func configName(node *corev1.Node, cninode *v1alpha1.CNINode) (name string, ok bool) {
	if name = node.Labels[ConfigLabel]; name != "" {
		return name, true
	}
	return cninode.Has(v1alpha1.CustomNetworking)
}

// custom reads the node's ENIConfig. The error is for what may pass by itself.
func (r *Nodes) custom(ctx context.Context, node *corev1.Node, cninode *v1alpha1.CNINode) (custom, error) {
	name, ok := configName(node, cninode)
	if !ok {
		return custom{}, nil
	}
	var c eniconfigv1.ENIConfig
	err := r.Configs.Get(ctx, client.ObjectKey{Name: name}, &c)
	switch {
	case apierrors.IsNotFound(err), meta.IsNoMatchError(err), apierrors.IsForbidden(err), apierrors.IsInvalid(err):
		return custom{config: name, err: fmt.Errorf("ENIConfig %q: %w: %w", name, errNoConfig, err)}, nil
	case err != nil:
		return custom{}, fmt.Errorf("read ENIConfig %s of node %s: %w", name, node.Name, err)
	}
	out := custom{config: name, subnetID: strings.TrimSpace(c.Spec.Subnet), groups: c.Spec.SecurityGroups}
	if out.subnetID == "" {
		out.err = fmt.Errorf("ENIConfig %q: %w: it names no subnet", name, errNoConfig)
	}
	return out, nil
}

// key is what of it a pause depends on: comparable.
func (c custom) key() string {
	return strings.Join(append([]string{c.config, c.subnetID}, c.groups...), " ")
}

// in says whether the ledger has it already.
func (c custom) in(l *ledgerv1.BranchLedgerSpec) bool {
	if c.config == "" {
		return l.CustomNetworking == nil
	}
	n := l.CustomNetworking
	return n != nil && n.ENIConfig == c.config && n.SubnetID == c.subnetID
}

// resolve looks the subnet up, beside the one of the primary ENI: branch ENIs must be in its VPC and zone. Error:
// errWrongSubnet.
func (r *Nodes) resolve(ctx context.Context, c custom, primarySubnetID string) (*ledgerv1.CustomNetworking, error) {
	if c.config == "" {
		return nil, nil
	}
	subnets, err := r.Cloud.Subnets(ctx, c.subnetID, primarySubnetID)
	if err != nil {
		return nil, err
	}
	s, primary := subnets[c.subnetID], subnets[primarySubnetID]
	if s.VPCID != primary.VPCID || s.Zone != primary.Zone {
		return nil, fmt.Errorf("ENIConfig %q: subnet %s (%s, %s): %w (%s, %s)", c.config, c.subnetID, s.VPCID, s.Zone, errWrongSubnet, primary.VPCID, primary.Zone)
	}
	return &ledgerv1.CustomNetworking{ENIConfig: c.config, SubnetID: s.ID, SubnetCIDR: s.CIDR, SubnetIPv6CIDR: s.IPv6CIDR}, nil
}

// follow brings the ledger of a node that has its trunk to a changed ENIConfig: branch ENIs are made after it from now on.
// The trunk stays where it is, as do branch ENIs that are there.
func (r *Nodes) follow(ctx context.Context, l *ledgerv1.BranchLedger, c custom) (*ledgerv1.BranchLedger, error) {
	if c.err != nil || c.in(&l.Spec) {
		return l, c.err
	}
	n, err := r.resolve(ctx, c, l.Spec.SubnetID)
	if err != nil {
		return l, err
	}
	r.Log.InfoContext(ctx, "branch ENIs are made in another subnet from now on", "node", l.Spec.NodeName, "instance", l.Name, "eniConfig", c.config, "subnet", c.subnetID)
	return r.Ledgers.Update(ctx, l.Name, func(l *ledgerv1.BranchLedger) error {
		l.Spec.CustomNetworking = n
		return nil
	})
}

// explain says what is wrong with an ENIConfig. ok is false where err is about something else.
func (r *Nodes) explain(node *corev1.Node, err error) (ok bool) {
	switch {
	case errors.Is(err, errNoConfig):
		r.Events.Warn(node, "ENIConfigMissing", "custom networking is on, and where trunk and branch ENIs are made is not known: %v: create it with spec.subnet, see that the controller may read it (config/crd, config/vpc-controller/rbac.yaml), or name another by the node's label; no trunk is made until then, and branch ENIs are made where they were before", err)
	case errors.Is(err, errWrongSubnet):
		r.Events.Warn(node, "ENIConfigUnusable", "%v: correct spec.subnet, or name another ENIConfig by the node's label; no trunk is made until then, and branch ENIs are made where they were before", err)
	default:
		return false
	}
	return true
}

// placed is the instance as the trunk is to be made: in the ENIConfig's subnet and with its groups.
func placed(i *cloud.Instance, c custom, n *ledgerv1.CustomNetworking) *cloud.Instance {
	if n == nil {
		return i
	}
	out := *i
	out.SubnetID, out.SubnetCIDR, out.SubnetIPv6CIDR = n.SubnetID, n.SubnetCIDR, n.SubnetIPv6CIDR
	if len(c.groups) > 0 {
		out.Groups = c.groups
	}
	return &out
}
