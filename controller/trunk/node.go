package trunk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/controller/cloud"
	"github.com/branchline-cni/branchline/controller/events"
	"github.com/branchline-cni/branchline/controller/ledger"
)

// Nodes brings each node to what its labels and its CNINode ask for. The object's key is the node's name.
type Nodes struct {
	Client      client.Client
	Cloud       *cloud.Client
	Ledgers     *ledger.Store
	Events      *events.Recorder
	Log         *slog.Logger
	ClusterName string
	// Stamps: the webhooks run, and leave their decisions on pods. The nodes learn it from their CNINodes.
	Stamps bool
	// Configs reads ENIConfigs.
	Configs client.Reader
	// Pods lists the pods of a node that ask for a branch ENI and have not ended, from the cache.
	Pods func(ctx context.Context, node string) ([]corev1.Pod, error)
	// Recheck is half the first pause before EC2 is asked again where the node can't have a trunk now. It defaults to 30 s.
	Recheck time.Duration
	// Now defaults to time.Now.
	Now func() time.Time

	once   sync.Once
	pauses *pauses
	ranges ranges
}

// longest is how many times Recheck the longest pause is.
const longest = 60

func (r *Nodes) pause() *pauses {
	r.once.Do(func() {
		r.pauses = &pauses{now: r.Now, first: 2 * cmp.Or(r.Recheck, recheck)}
		r.pauses.most = longest * r.pauses.first / 2
		if r.Now == nil {
			r.pauses.now = time.Now
		}
	})
	return r.pauses
}

// circumstances are what a trunk that can't be had depends on, as far as the API server tells: a change is worth a question to
// EC2. What changes in EC2 alone, a detached interface, is found when the pause is over.
type circumstances struct {
	instance, instanceType, label string
	cninode                       types.UID
	generation                    int64
	custom                        string
}

func circumstancesOf(node *corev1.Node, instance string, c *v1alpha1.CNINode, at custom) circumstances {
	label, present := node.Labels[Label]
	if present {
		label = "=" + label
	}
	return circumstances{instance, node.Labels[corev1.LabelInstanceTypeStable], label, c.UID, c.Generation, at.key()}
}

// Reconcile implements reconcile.Reconciler.
func (r *Nodes) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var node corev1.Node
	err := r.Client.Get(ctx, req.NamespacedName, &node)
	if apierrors.IsNotFound(err) {
		r.pause().forget(req.Name)
		return ctrl.Result{}, r.letGo(ctx, req.Name)
	}
	if err != nil {
		return ctrl.Result{}, fmt.Errorf("read node %s: %w", req.Name, err)
	}
	id, ok := InstanceID(&node)
	if !ok || !Linux(&node) || !node.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil
	}
	cninode, err := r.cninode(ctx, &node)
	if err != nil || cninode == nil {
		return ctrl.Result{}, err // without an error, the CNINode's watch brings the node back
	}
	if !Managed(&node, cninode) {
		r.pause().forget(node.Name)
		return ctrl.Result{}, r.setCapacity(ctx, &node, nil)
	}
	at, err := r.custom(ctx, &node, cninode)
	if err != nil {
		return ctrl.Result{}, err
	}
	on := circumstancesOf(&node, id, cninode, at)
	if left := r.pause().left(node.Name, on); left > 0 {
		return ctrl.Result{RequeueAfter: left}, r.keepCapacity(ctx, &node, id)
	}
	l, err := r.prepare(ctx, &node, id, cninode, at)
	if l != nil {
		// Also where its ENIConfig can't be followed: it has its trunk.
		if err := r.setCapacity(ctx, &node, l); err != nil {
			return ctrl.Result{}, err
		}
	}
	if err == nil && l != nil {
		r.pause().forget(node.Name)
		return ctrl.Result{}, nil
	}
	if err == nil {
		return ctrl.Result{}, nil
	}
	var failed *cloud.Error
	errors.As(err, &failed)
	switch {
	case errors.Is(err, cloud.ErrInstanceGone):
		r.Events.Warn(&node, "InstanceGone", "EC2 instance %s of this node is terminated, or EC2 does not know it: delete the Node if it stays so", id)
	case errors.Is(err, errNoIndex):
		r.Events.Warn(&node, "NoInterfaceLeft", "%v", err)
	case errors.Is(err, errUnsupported):
		r.unsupported(&node, err)
	case r.explain(&node, err):
	case failed != nil:
		reason, message := cloud.Explain(err)
		r.Events.Warn(&node, reason, "trunk ENI: %s", message)
		if aws.Code(err) != aws.CodeAttachmentLimitExceeded {
			return ctrl.Result{}, err
		}
	default:
		return ctrl.Result{}, err
	}
	// Trying harder does not help: an interface has to go, EC2 has to learn of a young instance, or people have to act.
	after := r.pause().more(node.Name, on)
	r.Log.InfoContext(ctx, "no trunk for this node now; it is tried again", "node", node.Name, "instance", id, "in", after, "why", err)
	return ctrl.Result{RequeueAfter: after}, nil
}

// letGo removes the CNINode of a node that is gone. What EC2 has of its instance is in the ledger, which stays.
func (r *Nodes) letGo(ctx context.Context, name string) error {
	var c v1alpha1.CNINode
	if err := r.Client.Get(ctx, client.ObjectKey{Name: name}, &c); err != nil {
		return client.IgnoreNotFound(err)
	}
	return r.removeCNINode(ctx, &c)
}

func (r *Nodes) removeCNINode(ctx context.Context, c *v1alpha1.CNINode) error {
	if controllerutil.ContainsFinalizer(c, v1alpha1.Finalizer) {
		patch := client.MergeFromWithOptions(c.DeepCopy(), client.MergeFromWithOptimisticLock{})
		controllerutil.RemoveFinalizer(c, v1alpha1.Finalizer)
		if err := r.Client.Patch(ctx, c, patch); err != nil {
			return client.IgnoreNotFound(fmt.Errorf("remove the finalizer of CNINode %s: %w", c.Name, err))
		}
	}
	if !c.DeletionTimestamp.IsZero() {
		return nil
	}
	if err := r.Client.Delete(ctx, c, client.Preconditions{UID: &c.UID}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete CNINode %s: %w", c.Name, err)
	}
	return nil
}

// cninode makes the node's CNINode, or finds it; nil means that an older one is on its way out.
func (r *Nodes) cninode(ctx context.Context, node *corev1.Node) (*v1alpha1.CNINode, error) {
	var c v1alpha1.CNINode
	err := r.Client.Get(ctx, client.ObjectKey{Name: node.Name}, &c)
	switch {
	case apierrors.IsNotFound(err):
		c = v1alpha1.CNINode{
			ObjectMeta: metav1.ObjectMeta{
				Name: node.Name, Finalizers: []string{v1alpha1.Finalizer},
				Labels:          map[string]string{corev1.LabelOSStable: "linux"},
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}},
			},
			Spec: v1alpha1.CNINodeSpec{Tags: map[string]string{"kubernetes.io/cluster/" + r.ClusterName: "owned"}},
		}
		if r.Stamps {
			c.Annotations = map[string]string{v1alpha1.StampsAnnotation: v1alpha1.StampsForm}
		}
		if err := r.Client.Create(ctx, &c); err != nil && !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("create CNINode %s: %w", node.Name, err)
		} else if err != nil {
			return nil, nil
		}
		return &c, nil
	case err != nil:
		return nil, fmt.Errorf("read CNINode %s: %w", node.Name, err)
	}
	if !c.DeletionTimestamp.IsZero() || ofAnother(&c, node.UID) {
		return nil, r.removeCNINode(ctx, &c)
	}
	if c.Stamps() != r.Stamps {
		// Made by an earlier version, or while the webhooks were off.
		patch := client.MergeFrom(c.DeepCopy())
		delete(c.Annotations, v1alpha1.StampsAnnotation)
		if r.Stamps {
			if c.Annotations == nil {
				c.Annotations = map[string]string{}
			}
			c.Annotations[v1alpha1.StampsAnnotation] = v1alpha1.StampsForm
		}
		if err := r.Client.Patch(ctx, &c, patch); err != nil {
			return nil, fmt.Errorf("say in CNINode %s whether pods are stamped: %w", c.Name, err)
		}
	}
	return &c, nil
}

// ofAnother says whether the CNINode was made for an earlier Node of the same name.
func ofAnother(c *v1alpha1.CNINode, node types.UID) bool {
	for _, o := range c.OwnerReferences {
		if o.Kind == "Node" && o.UID != node {
			return true
		}
	}
	return false
}

// prepare makes the node's ledger and trunk, as far as they are missing; nil means that they are not this node's to have.
// Errors: errUnsupported, errNoIndex, cloud.ErrInstanceGone; errNoConfig and errWrongSubnet, with the ledger where the trunk is
// there already.
func (r *Nodes) prepare(ctx context.Context, node *corev1.Node, id string, cninode *v1alpha1.CNINode, at custom) (*ledgerv1.BranchLedger, error) {
	var l ledgerv1.BranchLedger
	err := r.Client.Get(ctx, client.ObjectKey{Name: id}, &l)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read ledger of %s: %w", id, err)
	}
	if err == nil && l.Spec.NodeName != node.Name {
		// A node sets its provider id itself: one that was broken into could name another's instance.
		r.Events.Warn(node, "InstanceOfAnotherNode", "EC2 instance %s is known as node %s: this node gets no branch ENIs; register the instance under that name again, or replace it", id, l.Spec.NodeName)
		return nil, nil
	}
	if err == nil && l.Spec.TrunkENIID != "" {
		followed, err := r.follow(ctx, &l, at)
		if err != nil {
			return followed, err
		}
		return r.catchUp(ctx, followed)
	}
	if typeName := node.Labels[corev1.LabelInstanceTypeStable]; typeName != "" {
		if _, err := trunking(typeName); err != nil {
			return nil, err
		}
	}
	i, err := r.Cloud.Instance(ctx, id)
	if err != nil {
		return nil, err
	}
	t, err := trunking(i.Type)
	if err != nil {
		return nil, err
	}
	if at.err != nil {
		return nil, at.err
	}
	networking, err := r.resolve(ctx, at, i.SubnetID)
	if err != nil {
		return nil, err
	}
	if l.Name == "" {
		l = ledgerv1.BranchLedger{
			ObjectMeta: metav1.ObjectMeta{Name: id, Finalizers: []string{ledgerv1.Finalizer}},
			Spec: ledgerv1.BranchLedgerSpec{
				NodeName: node.Name, InstanceID: id, InstanceType: i.Type, AccountID: i.AccountID, VPCID: i.VPCID,
				SubnetID: i.SubnetID, SubnetCIDR: i.SubnetCIDR, SubnetIPv6CIDR: i.SubnetIPv6CIDR, Capacity: int32(min(t.MaxBranchInterfaces, ledgerv1.MaxVLANID)),
			},
		}
		err := r.Client.Create(ctx, &l)
		if apierrors.IsAlreadyExists(err) {
			// The cache lags. What is stored counts: the trunk's claim is made of its UID.
			stored, err := r.Ledgers.Get(ctx, id)
			if err != nil {
				return nil, err
			}
			if l = *stored; l.Spec.NodeName != node.Name {
				return nil, nil // the cache's next event says it, once it has it
			}
		} else if err != nil {
			return nil, fmt.Errorf("create ledger of %s: %w", id, err)
		}
	}
	if l.UID == "" {
		return nil, fmt.Errorf("ledger of %s has no UID: it can't name the claim to a trunk", id)
	}
	trunk, err := r.trunk(ctx, &l, placed(i, at, networking), t, cninode)
	if err != nil {
		return nil, err
	}
	return r.Ledgers.Update(ctx, id, func(l *ledgerv1.BranchLedger) error {
		if l.Spec.TrunkENIID == trunk && at.in(&l.Spec) {
			return ledger.ErrUnchanged
		}
		l.Spec.TrunkENIID, l.Spec.CustomNetworking = trunk, networking
		return nil
	})
}

// trunk finds the instance's trunk, attached or left half-made by a crash, or makes it, and brings it to where it should
// be. It can be repeated from any line.
func (r *Nodes) trunk(ctx context.Context, l *ledgerv1.BranchLedger, i *cloud.Instance, t aws.InstanceType, cninode *v1alpha1.CNINode) (eniID string, err error) {
	if a := attachedTrunk(i); a != nil {
		if !a.DeleteOnTermination {
			return a.ENIID, r.Cloud.DeleteOnTermination(ctx, a.ENIID, a.AttachmentID)
		}
		return a.ENIID, nil
	}
	index, ok := deviceIndex(t, i)
	if !ok {
		return "", fmt.Errorf("attach a trunk ENI to instance %s of type %s: %w", i.ID, i.Type, errNoIndex)
	}
	made, err := r.Cloud.OfInstance(ctx, i.ID)
	if err != nil {
		return "", err
	}
	for _, e := range made {
		if e.Description == cloud.TrunkDescription && !e.InUse {
			eniID = e.ID
		}
	}
	if eniID == "" {
		if keys := cloud.UnusableTags(cninode.Spec.Tags); len(keys) > 0 {
			r.Log.WarnContext(ctx, "EC2 does not take some tags of the CNINode: the trunk ENI is made without", "node", l.Spec.NodeName, "tags", keys)
		}
		e, err := r.Cloud.CreateTrunk(ctx, i, "trunk-"+string(l.UID), l.CreationTimestamp.Time, cninode.Spec.Tags)
		if err != nil {
			return "", err
		}
		eniID = e.ID
		r.Log.InfoContext(ctx, "trunk ENI created", "instance", i.ID, "node", l.Spec.NodeName, "eni", eniID)
	}
	if err := r.Cloud.Permit(ctx, eniID, i.AccountID); err != nil {
		return "", err
	}
	attachment, err := r.Cloud.Attach(ctx, eniID, i.ID, index, t.DefaultNetworkCard)
	if err != nil {
		return "", err
	}
	r.Log.InfoContext(ctx, "trunk ENI attached", "instance", i.ID, "node", l.Spec.NodeName, "eni", eniID, "deviceIndex", index)
	return eniID, r.Cloud.DeleteOnTermination(ctx, eniID, attachment)
}

// errUnsupported: the instance's type has no trunk. Where this version does not know the type, errUnknownType says so too:
// DescribeInstanceTypes tells neither whether a type can carry a trunk nor how many branch ENIs, so there is nobody to ask.
var (
	errUnsupported = errors.New("the instance type can't carry a trunk ENI")
	errUnknownType = errors.New("the instance type is not known to this version")
)

// trunking looks the type's limits up.
func trunking(typeName string) (aws.InstanceType, error) {
	t, known := aws.LookupInstanceType(typeName)
	if !known {
		return t, fmt.Errorf("%w: %w: %s", errUnsupported, errUnknownType, typeName)
	}
	if !t.TrunkCompatible || t.MaxBranchInterfaces == 0 {
		return t, fmt.Errorf("%w: %s", errUnsupported, typeName)
	}
	return t, nil
}

func (r *Nodes) unsupported(node *corev1.Node, why error) {
	remedy := "use a type that can, for example m5.large"
	if errors.Is(why, errUnknownType) {
		remedy = "EC2 does not tell whether the type can: use a version of the controller that knows it, or a type that is known, for example m5.large"
	}
	r.Events.Warn(node, "UnsupportedInstanceType", "%v: no pod with security groups of its own can run on this node; %s", why, remedy)
}
