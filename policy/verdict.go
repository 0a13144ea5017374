package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/branchline-cni/branchline/api/v1beta1"
)

// Grace is how long a pod is looked at before it is refused where no control plane stamps its decisions.
const Grace = 10 * time.Second

// heardWithin is how long the webhook's watch of policies may lag.
const heardWithin = time.Minute

// Case is what a node knows of a pod that is about to be wired there.
type Case struct {
	// Pod is the pod; of it the name, the labels, the time of creation, the stamp and what it asks for are read.
	Pod *corev1.Pod
	// Policies are those of the pod's namespace, others are passed over.
	Policies []v1beta1.SecurityGroupPolicy
	// Account is the labels of the pod's ServiceAccount; nil while they were not read.
	Account map[string]string
	// Stamps: the control plane stamps its decisions on pods, as ours does and EKS's does not.
	Stamps bool
	// WiredBefore: a sandbox of this pod was wired already. RefusedBefore: the pod was refused already.
	WiredBefore, RefusedBefore bool
	// Groups are the security groups of the pod's branch ENI; nil: not known, or the pod does not ask for one.
	Groups []string
	// Looked is for how long this pod has been looked at.
	Looked time.Duration
}

// Verdict is what a node does about a pod.
type Verdict int

const (
	// Wire it.
	Wire Verdict = iota
	// Wait and look again: when something changed, after Answer.For, or with the ServiceAccount's labels.
	Wait
	// Refuse it: the pod has to be created again, or the policy changed.
	Refuse
)

func (v Verdict) String() string { return [...]string{"wire", "wait", "refuse"}[v] }

// Cause is why a pod is not wired.
type Cause int

const (
	// NoCause: it is wired.
	NoCause Cause = iota
	// Unread: the labels of its ServiceAccount decide.
	Unread
	// Unseen: our webhook never saw the pod.
	Unseen
	// Stripped: our webhook gave the pod a branch ENI to ask for, and it does not ask any more.
	Stripped
	// Unequal: our webhook found no policy for the pod, and one selects it, though it is no younger than the pod.
	Unequal
	// Unasked: a policy selects the pod and it asks for no branch ENI; there is no stamp to tell why.
	Unasked
	// TooFew: its branch ENI lacks security groups.
	TooFew
)

// Answer is a verdict with its reason.
type Answer struct {
	Verdict Verdict
	Cause   Cause
	// For is how long to wait at most; 0: until something changes.
	For time.Duration
	// Policies are the names of the policies that are not met, Groups what the branch ENI lacks.
	Policies, Groups []string
}

// Decide says whether the pod may be wired with what it has: by its branch ENI where it asks for one, as a regular pod
// where it does not. A pod never gets fewer groups than the policies give it that were there, as they are, when it was
// created: policies hold from a pod's creation, so one that changed later does not count. A pod that no policy selects is
// never refused or delayed, nor is one that ran before. One whose request was taken away after the webhook had made it is
// refused as long as such a policy selects it, edited or not.
//
// The label of Fargate's pods counts for nothing here: a pod that comes to a node is not on Fargate.
func Decide(c Case) Answer {
	if c.Pod.Spec.HostNetwork || c.WiredBefore {
		return Answer{}
	}
	wants := WantsBranch(c.Pod)
	if wants && c.Groups == nil {
		return Answer{}
	}
	stamp, stamped := c.stamp()
	var unmet, unread Answer
	for i := range c.Policies {
		p := &c.Policies[i]
		// The webhook had the pod ask for what this policy gave it then: as it is now, or in another version.
		chosen := slices.ContainsFunc(stamp, func(r Ref) bool { return r.UID == p.UID })
		named := slices.Contains(stamp, Ref{p.UID, p.Generation})
		stripped := chosen && !wants
		if p.Namespace != c.Pod.Namespace || ignored(p) || !stripped && c.younger(p, named, stamped) {
			continue
		}
		lacks := c.lacks(p.Spec.SecurityGroups.Groups)
		if wants && len(lacks) == 0 {
			continue // whether it selects the pod or not
		}
		byAccount := p.Spec.ServiceAccountSelector != nil
		ok, err := matches(p, c.Pod.Labels, c.Account)
		if byAccount && (named || stamped && !chosen && c.settled(p)) {
			// The webhook had read the ServiceAccount then: the stamp says what came out. Of another version it says nothing.
			ok = named
		} else if byAccount && c.Account == nil {
			if pods := p.Spec.PodSelector; pods != nil && err == nil {
				ok, err = selects(pods, c.Pod.Labels)
			} else {
				ok = true
			}
			if ok && err == nil {
				unread.Policies = append(unread.Policies, p.Name)
			}
			continue
		}
		if !ok || err != nil {
			continue
		}
		unmet.Policies, unmet.Groups = append(unmet.Policies, p.Name), append(unmet.Groups, lacks...)
	}
	switch {
	case len(unmet.Policies) > 0:
		slices.Sort(unmet.Policies)
		slices.Sort(unmet.Groups)
		unmet.Groups = slices.Compact(unmet.Groups)
		unmet.Verdict, unmet.Cause = Refuse, c.cause(wants, stamp, stamped)
		if unmet.Cause == Unasked && !c.RefusedBefore && c.Looked < Grace {
			unmet.Verdict, unmet.For = Wait, Grace-c.Looked
		}
		return unmet
	case len(unread.Policies) > 0:
		slices.Sort(unread.Policies)
		unread.Verdict, unread.Cause = Wait, Unread
		return unread
	}
	return Answer{}
}

// stamp is what the webhook decided. Without a control plane that guards it, the annotation could be anybody's; one that
// can't be read counts as none.
func (c *Case) stamp() (refs []Ref, ok bool) {
	value, set := c.Pod.Annotations[StampKey]
	if !c.Stamps || !set {
		return nil, false
	}
	refs, err := ParseStamp(value)
	return refs, err == nil
}

// younger says whether the policy became what it is after the pod was created, and so does not hold for it.
func (c *Case) younger(p *v1beta1.SecurityGroupPolicy, named, stamped bool) bool {
	// The very version that the webhook decided by was there. And who was refused for a policy is not let through by an
	// edit of it: nobody has decided for the pod yet.
	if c.RefusedBefore || named {
		return false
	}
	since := LastChange(p)
	if c.Stamps && !stamped {
		// In a namespace with policies our webhook stamps each pod that it sees.
		since = p.CreationTimestamp.Time
	}
	// Both times are the API server's, in seconds. In the same second the pod may be the younger one.
	created := c.Pod.CreationTimestamp
	return !created.IsZero() && created.Unix() < since.Unix()
}

// settled says whether the policy had not changed for long enough when the pod was created that our webhook had heard of it.
func (c *Case) settled(p *v1beta1.SecurityGroupPolicy) bool {
	return c.Pod.CreationTimestamp.Sub(LastChange(p)) > heardWithin
}

func (c *Case) lacks(groups []string) (out []string) {
	for _, g := range groups {
		if !slices.Contains(c.Groups, g) {
			out = append(out, g)
		}
	}
	return out
}

func (c *Case) cause(wants bool, stamp []Ref, stamped bool) Cause {
	switch {
	case wants:
		return TooFew
	case !c.Stamps:
		return Unasked
	case !stamped:
		return Unseen
	case len(stamp) > 0:
		return Stripped
	}
	return Unequal
}

// Explain says to people why the pod is not wired, and what to do.
func (a Answer) Explain(pod *corev1.Pod) string {
	named := make([]string, len(a.Policies))
	for i, p := range a.Policies {
		named[i] = pod.Namespace + "/" + p
	}
	policies := strings.Join(named, ", ")
	who := fmt.Sprintf("pod %s/%s", pod.Namespace, pod.Name)
	if a.Cause == TooFew {
		return fmt.Sprintf("%s: its branch ENI lacks the security groups %s, which SecurityGroupPolicy %s gives it: delete the pod, so that it is created again with a branch ENI of today's groups", who, strings.Join(a.Groups, ", "), policies)
	}
	if a.Cause == Unread {
		return fmt.Sprintf("%s: whether SecurityGroupPolicy %s selects it depends on the labels of its ServiceAccount, which can't be read", who, policies)
	}
	text := fmt.Sprintf("%s is selected by SecurityGroupPolicy %s and does not ask for %s: it would run with the node's security groups instead of its own; ", who, policies, Resource)
	if OnFargate(pod) {
		return text + fmt.Sprintf("its label %s keeps the webhook from asking, and this node is not Fargate: remove the label and create the pod again", FargateProfileLabel)
	}
	const again = "delete the pod, so that it is created again"
	switch a.Cause {
	case Stripped:
		return text + "the webhook mpod.vpc.k8s.aws had it ask, and something took the request away after that: look for another admission webhook that changes resources, then " + again
	case Unequal:
		return text + "no policy selected it when it was created: its labels or those of its ServiceAccount were changed since, or the policy had just come: " + again
	case Unseen:
		return text + "the webhook mpod.vpc.k8s.aws did not see it when it was created: see that vpc-resource-controller runs, then " + again
	}
	return text + "the webhook mpod.vpc.k8s.aws did not answer when it was created: " + again
}

// LastChange is when the policy became what it is, as far as the API server tells: by the managers of its spec. A change of
// labels alone by a manager of its own is none.
func LastChange(p *v1beta1.SecurityGroupPolicy) time.Time {
	last := p.CreationTimestamp.Time
	for i := range p.ManagedFields {
		f := &p.ManagedFields[i]
		if f.Time != nil && f.Time.After(last) && f.Subresource == "" && ownsSpec(f) {
			last = f.Time.Time
		}
	}
	return last
}

func ownsSpec(f *metav1.ManagedFieldsEntry) bool {
	if f.FieldsV1 == nil {
		return true // what Trim keeps
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(f.FieldsV1.Raw, &fields); err != nil {
		return false
	}
	_, ok := fields["f:spec"]
	return ok
}

// Trim keeps of a policy what this package reads.
func Trim(p *v1beta1.SecurityGroupPolicy) *v1beta1.SecurityGroupPolicy {
	changed := metav1.NewTime(LastChange(p))
	return &v1beta1.SecurityGroupPolicy{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.Namespace, Name: p.Name, UID: p.UID, Generation: p.Generation, ResourceVersion: p.ResourceVersion,
			CreationTimestamp: p.CreationTimestamp, ManagedFields: []metav1.ManagedFieldsEntry{{Time: &changed}},
		},
		Spec: p.Spec,
	}
}
