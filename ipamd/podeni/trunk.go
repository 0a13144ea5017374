package podeni

import (
	"context"
	"errors"
	"fmt"
	"time"

	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/kube"
)

// Node is what is written to the API server about this node.
type Node interface {
	HasFeature(f cninodev1.Feature) (bool, error)
	AddFeature(ctx context.Context, f cninodev1.Feature) error
	// HasTrunkLabel says whether the label is there, and whether its value is right (kube.ErrNoNode and
	// kube.ErrNotSynced: not known).
	HasTrunkLabel() (present, right bool, err error)
	SetTrunkLabel(ctx context.Context, attached bool) error
}

// Feature is how the trunk is asked for.
var Feature = cninodev1.Feature{Name: cninodev1.SecurityGroupsForPods}

// ConfigFeature names the ENIConfig that the trunk and the branch ENIs are made after.
func ConfigFeature(name string) cninodev1.Feature {
	return cninodev1.Feature{Name: cninodev1.CustomNetworking, Value: name}
}

// TrunkState is what the request depends on.
type TrunkState struct {
	// Wanted: ENABLE_POD_ENI is on. Supported: the instance type can have a trunk.
	Wanted, Supported bool
	Trunk             *enis.ENI // nil: not attached
	FreeSlot          bool      // one more ENI can be attached
	BranchPods        bool      // something of a branch pod is left on this node
	Late              bool      // a trunk could have come for TrunkLate, and has not
	// Custom: AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG is on. ENIConfig is the one that the Node names, empty while that is not known.
	Custom    bool
	ENIConfig string
}

// TrunkLate is how long a trunk may take before people are told: the controller's calls of EC2 take seconds.
const TrunkLate = 2 * time.Minute

// Action is what is to be done about the trunk now.
type Action int

// The actions; Nothing is the zero value.
const (
	Nothing Action = iota
	// NameENIConfig puts custom networking's feature into the CNINode. It comes before AskForTrunk: a trunk stays where it was
	// made.
	NameENIConfig
	// AskForTrunk puts the feature into the CNINode.
	AskForTrunk
	// SetLabel and RemoveLabel change the node's label.
	SetLabel
	RemoveLabel
	// SayNoSlot: a trunk can't come before an ENI goes.
	SayNoSlot
	// SayUnsupported: a trunk never comes.
	SayUnsupported
	// SayMissing: a trunk was asked for long ago and has not come, or nobody made the CNINode to ask by.
	SayMissing
)

// Label is what is known of the node's label; the zero value is: nothing.
type Label struct{ Known, Present, Right bool }

// Written is what the CNINode has of the agent's wishes: the trunk's feature, and the one with this node's ENIConfig.
type Written struct{ CNINode, Trunk, ENIConfig bool }

// Decide is the pure part: has and label are what is written already, by whomever. Custom networking's feature is never taken
// away, as no agent does.
func Decide(s TrunkState, has Written, label Label) []Action {
	switch {
	case !s.Wanted:
		if s.BranchPods || !label.Present {
			return nil
		}
		return []Action{RemoveLabel} // the feature stays: without both, the controller gives the node up
	case !s.Supported:
		return []Action{SayUnsupported}
	}
	var out []Action
	if s.Custom && s.ENIConfig != "" && has.CNINode && !has.ENIConfig {
		out = append(out, NameENIConfig)
	}
	if has.CNINode && !has.Trunk {
		switch {
		case s.Custom && s.ENIConfig == "":
		case s.Trunk != nil || s.FreeSlot:
			out = append(out, AskForTrunk)
		default:
			out = append(out, SayNoSlot)
		}
	}
	if s.Late && s.Trunk == nil && (has.Trunk || !has.CNINode) {
		out = append(out, SayMissing)
	}
	if s.Trunk != nil && s.Trunk.LinkIndex != 0 && s.Trunk.LinkUp && label.Known && !label.Right {
		out = append(out, SetLabel)
	}
	return out
}

// TrunkRequest brings a trunk to this node, and the label once it is there. It is not safe for use by several
// goroutines.
type TrunkRequest struct {
	Node         Node
	InstanceType string
	// Unknown: the type is not in this version's table, so that nobody can tell whether it can have a trunk.
	Unknown bool
	Warn    func(reason, format string, args ...any)

	warned bool // that a trunk never comes
}

// written reads what the CNINode in memory has.
func (t *TrunkRequest) written(s TrunkState) (has Written, err error) {
	has.CNINode = true
	for at, f := range map[*bool]cninodev1.Feature{&has.Trunk: Feature, &has.ENIConfig: ConfigFeature(s.ENIConfig)} {
		switch *at, err = t.Node.HasFeature(f); {
		case errors.Is(err, kube.ErrNoCNINode):
			return Written{}, nil
		case err != nil:
			return Written{}, err
		}
	}
	return has, nil
}

// Reconcile does what can be done now. Call it again when anything changed, and after an error.
func (t *TrunkRequest) Reconcile(ctx context.Context, s TrunkState) error {
	has, err := t.written(s)
	if err != nil {
		return err
	}
	var label Label
	label.Present, label.Right, err = t.Node.HasTrunkLabel()
	label.Known = err == nil
	if err != nil && !errors.Is(err, kube.ErrNoNode) && !errors.Is(err, kube.ErrNotSynced) {
		return err
	}
	var errs []error
	for _, a := range Decide(s, has, label) {
		switch a {
		case NameENIConfig:
			if err := t.Node.AddFeature(ctx, ConfigFeature(s.ENIConfig)); err != nil {
				if errors.Is(err, kube.ErrNoCNINode) {
					return nil // its event brings us back
				}
				return fmt.Errorf("name ENIConfig %s in the CNINode: %w", s.ENIConfig, err)
			}
		case AskForTrunk:
			if err := t.Node.AddFeature(ctx, Feature); err != nil && !errors.Is(err, kube.ErrNoCNINode) {
				errs = append(errs, fmt.Errorf("ask for the trunk ENI: %w", err))
			}
		case SetLabel, RemoveLabel:
			on := a == SetLabel
			if err := t.Node.SetTrunkLabel(ctx, on); err != nil {
				errs = append(errs, err)
			}
		case SayNoSlot:
			t.Warn("NoSlotForTrunk", "ENABLE_POD_ENI is on and every ENI slot of this instance (%s) is taken: the trunk ENI is asked for as soon as one is free; detach an ENI, raise MAX_ENI where that is the limit, or drain this node", t.InstanceType)
		case SayMissing:
			if !has.CNINode {
				t.Warn("TrunkMissing", "ENABLE_POD_ENI is on and this node has no CNINode, by which a trunk ENI is asked for: the VPC resource controller makes it; see that one runs, and that the Node has its spec.providerID")
				continue
			}
			t.Warn("TrunkMissing", "the trunk ENI was asked for %s ago and is not attached: look at the other events of this node and at the VPC resource controller; its role (on EKS the cluster role) needs AmazonEKSVPCResourceController, and the subnet a free address", TrunkLate)
		case SayUnsupported:
			if t.warned {
				continue
			}
			t.warned = true
			if t.Unknown {
				t.Warn("TrunkUnsupported", "ENABLE_POD_ENI is on, and whether instance type %s can have a trunk ENI is not known to this version: pods with security groups of their own can't run on this node; use a version that knows the type", t.InstanceType)
				continue
			}
			t.Warn("TrunkUnsupported", "ENABLE_POD_ENI is on and instance type %s can't have a trunk ENI: pods with security groups of their own can't run on this node; use a type that supports trunking", t.InstanceType)
		}
	}
	return errors.Join(errs...)
}
