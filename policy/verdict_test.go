package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/branchline-cni/branchline/api/v1beta1"
)

// at is a time of the API server, in seconds.
func at(second int) metav1.Time { return metav1.Unix(1_700_000_000+int64(second), 0) }

// version is a policy created at one second and changed at another.
func version(p v1beta1.SecurityGroupPolicy, created, changed int, generation int64) v1beta1.SecurityGroupPolicy {
	when := at(changed)
	p.UID, p.Generation, p.CreationTimestamp = types.UID("uid-"+p.Name), generation, at(created)
	p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl", Time: &when, FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:spec":{"f:podSelector":{}}}`)}}}
	return p
}

func asking(p *corev1.Pod) *corev1.Pod {
	p.Spec.Containers = []corev1.Container{{Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{Resource: resource.MustParse("1")}}}}
	return p
}

func TestDecide(t *testing.T) {
	pod := func(stamp string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", Labels: map[string]string{"app": "green"}, CreationTimestamp: at(100)}}
		if stamp != "" {
			p.Annotations = map[string]string{StampKey: stamp}
		}
		return p
	}
	one := func(p v1beta1.SecurityGroupPolicy) []v1beta1.SecurityGroupPolicy {
		return []v1beta1.SecurityGroupPolicy{p}
	}
	green := one(version(policyFor("green", app("green"), nil, "sg-1"), 10, 10, 1))
	later := one(version(policyFor("green", app("green"), nil, "sg-1"), 101, 101, 1))
	together := one(version(policyFor("green", app("green"), nil, "sg-1"), 100, 100, 1))
	edited := one(version(policyFor("green", app("green"), nil, "sg-1"), 10, 101, 2))
	account := one(version(policyFor("till", nil, app("till"), "sg-1"), 50, 50, 1))
	both := one(version(policyFor("till", app("red"), app("till"), "sg-1"), 10, 10, 1))
	sameSecond := one(version(policyFor("green", nil, app("till"), "sg-3"), 10, 100, 2)) // edited in the second of the pod's creation
	till := map[string]string{"app": "till"}
	fargate := pod("")
	fargate.Labels[FargateProfileLabel] = "f"
	host := pod("")
	host.Spec.HostNetwork = true
	const none, selected, older = `[]`, `[{"uid":"uid-green","generation":1}]`, `[{"uid":"uid-green","generation":0}]`
	for name, tt := range map[string]struct {
		c    Case
		want Verdict
		why  Cause
	}{
		"no policy":                                        {Case{Pod: pod("")}, Wire, NoCause},
		"no policy, our control plane":                     {Case{Pod: pod(""), Stamps: true}, Wire, NoCause},
		"a policy of another's":                            {Case{Pod: pod(none), Policies: one(version(policyFor("red", app("red"), nil, "sg-1"), 10, 10, 1)), Stamps: true}, Wire, NoCause},
		"the webhook was away":                             {Case{Pod: pod(""), Policies: green, Stamps: true}, Refuse, Unseen},
		"on the host's network":                            {Case{Pod: host, Policies: green, Stamps: true}, Wire, NoCause},
		"ran before":                                       {Case{Pod: pod(""), Policies: green, Stamps: true, WiredBefore: true}, Wire, NoCause},
		"an unreadable stamp is none":                      {Case{Pod: pod("yes"), Policies: green, Stamps: true}, Refuse, Unseen},
		"a stamp that contradicts the policy":              {Case{Pod: pod(none), Policies: green, Stamps: true}, Refuse, Unequal},
		"the request was taken away":                       {Case{Pod: pod(selected), Policies: green, Stamps: true}, Refuse, Stripped},
		"an invented generation":                           {Case{Pod: pod(older), Policies: green, Stamps: true}, Refuse, Stripped},
		"taken away, the policy was changed":               {Case{Pod: pod(selected), Policies: edited, Stamps: true}, Refuse, Stripped},
		"taken away, by another policy":                    {Case{Pod: pod(`[{"uid":"uid-other","generation":1}]`), Policies: edited, Stamps: true}, Wire, NoCause},
		"taken away, the policy is gone":                   {Case{Pod: pod(selected), Stamps: true}, Wire, NoCause},
		"stamped, the policy came later":                   {Case{Pod: pod(none), Policies: later, Stamps: true}, Wire, NoCause},
		"unstamped, the policy came later":                 {Case{Pod: pod(""), Policies: later, Stamps: true}, Wire, NoCause},
		"both in one second":                               {Case{Pod: pod(""), Policies: together, Stamps: true}, Refuse, Unseen},
		"stamped, the policy was changed":                  {Case{Pod: pod(none), Policies: edited, Stamps: true}, Wire, NoCause},
		"unstamped, an edit hides nothing":                 {Case{Pod: pod(""), Policies: edited, Stamps: true}, Refuse, Unseen},
		"refused before, an edit frees nobody":             {Case{Pod: pod(none), Policies: edited, Stamps: true, RefusedBefore: true}, Refuse, Unequal},
		"on a node with Fargate's label":                   {Case{Pod: fargate, Policies: green, Stamps: true}, Refuse, Unseen},
		"by account, stamped long after":                   {Case{Pod: pod(none), Policies: one(version(policyFor("till", nil, app("till"), "sg-1"), 10, 30, 1)), Stamps: true}, Wire, NoCause},
		"by account, stamped soon after":                   {Case{Pod: pod(none), Policies: account, Stamps: true}, Wait, Unread},
		"by account, stamped and stripped":                 {Case{Pod: pod(`[{"uid":"uid-till","generation":1}]`), Policies: one(version(policyFor("till", nil, app("till"), "sg-1"), 10, 10, 1)), Stamps: true}, Refuse, Stripped},
		"by account, unstamped":                            {Case{Pod: pod(""), Policies: account, Stamps: true}, Wait, Unread},
		"by account, read":                                 {Case{Pod: pod(""), Policies: account, Stamps: true, Account: till}, Refuse, Unseen},
		"by account, another's":                            {Case{Pod: pod(""), Policies: account, Stamps: true, Account: map[string]string{}}, Wire, NoCause},
		"by both, the pod already fails":                   {Case{Pod: pod(""), Policies: both, Stamps: true}, Wire, NoCause},
		"hosted: the grace":                                {Case{Pod: pod(""), Policies: green}, Wait, Unasked},
		"hosted: after the grace":                          {Case{Pod: pod(""), Policies: green, Looked: Grace}, Refuse, Unasked},
		"hosted: no grace twice":                           {Case{Pod: pod(""), Policies: green, RefusedBefore: true}, Refuse, Unasked},
		"hosted: a stamp is anybody's":                     {Case{Pod: pod(none), Policies: green, Looked: Grace}, Refuse, Unasked},
		"hosted: older than the last change":               {Case{Pod: pod(""), Policies: edited}, Wire, NoCause},
		"hosted: ran before":                               {Case{Pod: pod(""), Policies: green, WiredBefore: true}, Wire, NoCause},
		"hosted: by account":                               {Case{Pod: pod(""), Policies: account}, Wait, Unread},
		"a branch pod":                                     {Case{Pod: asking(pod(selected)), Policies: green, Stamps: true, Groups: []string{"sg-1", "sg-2"}}, Wire, NoCause},
		"a branch pod, groups not known":                   {Case{Pod: asking(pod(selected)), Policies: green, Stamps: true}, Wire, NoCause},
		"a branch pod with too few groups":                 {Case{Pod: asking(pod(selected)), Policies: green, Stamps: true, Groups: []string{"sg-2"}}, Refuse, TooFew},
		"a branch pod, the policy was changed":             {Case{Pod: asking(pod(none)), Policies: edited, Stamps: true, Groups: []string{"sg-2"}}, Wire, NoCause},
		"a branch pod by account, too few":                 {Case{Pod: asking(pod(`[{"uid":"uid-till","generation":1}]`)), Policies: account, Stamps: true, Groups: []string{"sg-2"}}, Refuse, TooFew},
		"a branch pod by account, hosted":                  {Case{Pod: asking(pod("")), Policies: account, Groups: []string{"sg-2"}}, Wait, Unread},
		"a branch pod by account, read":                    {Case{Pod: asking(pod("")), Policies: account, Account: till, Groups: []string{"sg-2"}}, Refuse, TooFew},
		"a branch pod by account, all groups":              {Case{Pod: asking(pod("")), Policies: account, Account: till, Groups: []string{"sg-1"}}, Wire, NoCause},
		"a branch pod by another's account":                {Case{Pod: asking(pod("")), Policies: account, Account: map[string]string{}, Groups: []string{"sg-2"}}, Wire, NoCause},
		"a branch pod by account, stamped soon after":      {Case{Pod: asking(pod(none)), Policies: account, Stamps: true, Groups: []string{"sg-2"}}, Wait, Unread},
		"a branch pod by account, stamped long after":      {Case{Pod: asking(pod(none)), Policies: one(version(policyFor("till", nil, app("till"), "sg-1"), 10, 30, 1)), Stamps: true, Groups: []string{"sg-2"}}, Wire, NoCause},
		"a branch pod by account, unstamped":               {Case{Pod: asking(pod("")), Policies: account, Stamps: true, Groups: []string{"sg-2"}}, Wait, Unread},
		"a branch pod, edited in its second":               {Case{Pod: asking(pod(selected)), Policies: sameSecond, Stamps: true, Groups: []string{"sg-1"}}, Wait, Unread},
		"… so that it selects others":                      {Case{Pod: asking(pod(selected)), Policies: sameSecond, Stamps: true, Groups: []string{"sg-1"}, Account: map[string]string{}}, Wire, NoCause},
		"… so that it gives another group":                 {Case{Pod: asking(pod(selected)), Policies: sameSecond, Stamps: true, Groups: []string{"sg-1"}, Account: till}, Refuse, TooFew},
		"… so that it gives another group, which is there": {Case{Pod: asking(pod(selected)), Policies: sameSecond, Stamps: true, Groups: []string{"sg-1", "sg-3"}, Account: till}, Wire, NoCause},
		"by account, stripped, then edited":                {Case{Pod: pod(`[{"uid":"uid-till","generation":1}]`), Policies: one(version(policyFor("till", nil, app("till"), "sg-1"), 10, 101, 2)), Stamps: true, Account: till}, Refuse, Stripped},
	} {
		got := Decide(tt.c)
		if got.Verdict != tt.want || got.Cause != tt.why || (got.For > 0) != (tt.want == Wait && tt.why == Unasked) {
			t.Errorf("%s: %s (%+v), want %s (%d)", name, got.Verdict, got, tt.want, tt.why)
		}
		if text := got.Explain(tt.c.Pod); got.Verdict == Refuse && (!strings.Contains(text, "shop/p") || !strings.Contains(text, "shop/"+got.Policies[0]) || !strings.Contains(text, "create")) {
			t.Errorf("%s: said %q", name, text)
		}
	}
}

func TestLastChange(t *testing.T) {
	entry := func(second int, fields, subresource string) metav1.ManagedFieldsEntry {
		when := at(second)
		return metav1.ManagedFieldsEntry{Time: &when, Subresource: subresource, FieldsV1: &metav1.FieldsV1{Raw: []byte(fields)}}
	}
	p := version(policyFor("a", app("x"), nil, "sg-1"), 10, 10, 1)
	for name, tt := range map[string]struct {
		fields []metav1.ManagedFieldsEntry
		want   int
	}{
		"never changed":         {nil, 10},
		"the spec":              {[]metav1.ManagedFieldsEntry{entry(20, `{"f:spec":{}}`, ""), entry(15, `{"f:spec":{}}`, "")}, 20},
		"a label called spec":   {[]metav1.ManagedFieldsEntry{entry(20, `{"f:metadata":{"f:labels":{"f:spec":{}}}}`, "")}, 10},
		"the status":            {[]metav1.ManagedFieldsEntry{entry(20, `{"f:spec":{}}`, "status")}, 10},
		"something unreadable":  {[]metav1.ManagedFieldsEntry{entry(20, `[`, ""), {}}, 10},
		"a time before its own": {[]metav1.ManagedFieldsEntry{entry(5, `{"f:spec":{}}`, "")}, 10},
	} {
		p.ManagedFields = tt.fields
		if got := LastChange(&p); !got.Equal(at(tt.want).Time) {
			t.Errorf("%s: %s", name, got)
		}
		if got := LastChange(Trim(&p)); !got.Equal(at(tt.want).Time) {
			t.Errorf("%s, trimmed: %s", name, got)
		}
	}
}

// cluster is a namespace over time: what was in force when pods were created, and what is now.
type cluster struct {
	now      int
	policies []v1beta1.SecurityGroupPolicy
	accounts map[string]string
	stamps   bool
	made     int // policies
}

// A pod never gets fewer groups than its policies give it: in any history of policies, outages of the webhook and pods,
// with either control plane, a pod that is wired as a regular one is selected by no policy that was there, as it is, when
// the pod was created. Pods that no policy selects are never refused or delayed, and those whose webhook answered neither.
func TestAPodNeverGetsFewerGroupsThanItsPoliciesGiveIt(t *testing.T) {
	value := rapid.SampledFrom([]string{"x", "y"})
	labelled := rapid.MapOfN(rapid.SampledFrom([]string{"app", "tier"}), value, 0, 2)
	selector := rapid.Custom(func(t *rapid.T) *metav1.LabelSelector {
		if rapid.IntRange(0, 2).Draw(t, "absent") == 0 {
			return nil
		}
		return &metav1.LabelSelector{MatchLabels: labelled.Draw(t, "match")}
	})
	type made struct {
		pod     *corev1.Pod
		webhook bool // it answered
		strip   bool // and somebody took away what it had the pod ask for
		given   Decision
	}
	var wired, refused, waited, left, stripped, read, lacking int
	rapid.Check(t, func(t *rapid.T) {
		w := cluster{accounts: labelled.Draw(t, "account"), stamps: rapid.Bool().Draw(t, "stamps")}
		spec := func() v1beta1.SecurityGroupPolicySpec {
			return v1beta1.SecurityGroupPolicySpec{PodSelector: selector.Draw(t, "pod"), ServiceAccountSelector: selector.Draw(t, "sa"),
				SecurityGroups: v1beta1.GroupIDs{Groups: []string{rapid.SampledFrom([]string{"sg-1", "sg-2"}).Draw(t, "group")}}}
		}
		var pods []made
		for range rapid.IntRange(20, 80).Draw(t, "steps") {
			w.now += rapid.SampledFrom([]int{0, 1, 2, 90}).Draw(t, "seconds")
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				w.made++
				p := version(policyFor(fmt.Sprint("p", w.made), nil, nil), w.now, w.now, 1)
				p.Spec = spec()
				w.policies = append(w.policies, p)
			case 1:
				if n := len(w.policies); n > 0 {
					p := &w.policies[rapid.IntRange(0, n-1).Draw(t, "which")]
					*p = version(*p, int(p.CreationTimestamp.Unix()-at(0).Unix()), w.now, p.Generation+1)
					p.Spec = spec()
				}
			case 2:
				if n := len(w.policies); n > 0 {
					i := rapid.IntRange(0, n-1).Draw(t, "which")
					w.policies = slices.Delete(slices.Clone(w.policies), i, i+1)
				}
			default:
				m := made{webhook: rapid.Bool().Draw(t, "webhook"), pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", CreationTimestamp: at(w.now), Labels: labelled.Draw(t, "labels")}}}
				m.given = Match(w.policies, m.pod, w.accounts)
				if m.webhook {
					if s, ok := m.given.Stamp(); ok && w.stamps {
						m.pod.Annotations = map[string]string{StampKey: s}
					}
					m.strip = w.stamps && len(m.given.Groups) > 0 && rapid.IntRange(0, 3).Draw(t, "strip") == 0
					if len(m.given.Groups) > 0 && !m.strip {
						asking(m.pod)
					}
				}
				pods = append(pods, m)
			}
		}
		for _, m := range pods {
			c := Case{Pod: m.pod, Policies: w.policies, Stamps: w.stamps}
			a := Decide(c)
			needs := NeedsServiceAccount(w.policies, m.pod)
			if a.Cause == Unread {
				if !needs {
					t.Fatalf("the account of %+v decides nothing", m.pod)
				}
				c.Account = w.accounts
				if c.Account == nil {
					c.Account = map[string]string{}
				}
				a = Decide(c)
			}
			if a.Verdict == Wait {
				waited++
				c.Looked = Grace
				a = Decide(c)
			}
			now := Match(w.policies, m.pod, w.accounts)
			switch a.Verdict {
			case Wait:
				t.Fatalf("waits for nothing: %+v", a)
			case Refuse:
				refused++
				if m.strip {
					stripped++
				}
				if len(now.Groups) == 0 || m.webhook && w.stamps && len(m.given.Groups) > 0 && !m.strip {
					t.Fatalf("%+v was refused (%+v), policies %+v", m.pod, a, w.policies)
				}
				// What the webhook decided and nobody changed since holds, but for the one second that is both.
				if m.webhook && !m.strip && !slices.ContainsFunc(w.policies, func(p v1beta1.SecurityGroupPolicy) bool {
					return LastChange(&p).Unix() == m.pod.CreationTimestamp.Unix() || p.CreationTimestamp.Unix() == m.pod.CreationTimestamp.Unix()
				}) {
					t.Fatalf("%+v passed the webhook and was refused (%+v), policies %+v", m.pod, a, w.policies)
				}
			case Wire:
				if WantsBranch(m.pod) {
					continue // its groups are compared where its branch ENI is known
				}
				wired++
				for i := range w.policies {
					p := &w.policies[i]
					was := slices.ContainsFunc(m.given.Selecting, func(r Ref) bool { return r.UID == p.UID })
					if LastChange(p).Unix() > m.pod.CreationTimestamp.Unix() && !(m.strip && was) {
						left++
						continue
					}
					if ok, _ := matches(p, m.pod.Labels, w.accounts); ok && !ignored(p) {
						t.Fatalf("%+v (webhook %v) was wired without the groups of %+v", m.pod, m.webhook, p)
					}
				}
			}
			if m.strip {
				continue // it has no branch ENI: like that of a pod that asks, its stamp speaks of a branch ENI's groups
			}
			// A branch ENI with all groups will do, one with none will not, if a policy of then still selects the pod.
			b := Case{Pod: asking(m.pod.DeepCopy()), Policies: w.policies, Stamps: w.stamps}
			with := func(groups ...string) Answer {
				b.Groups, b.Account = append([]string{"sg-0"}, groups...), nil
				a := Decide(b)
				if a.Cause == Unread {
					if !needs {
						t.Fatalf("the account of %+v decides nothing", b.Pod)
					}
					read++
					b.Account = map[string]string{}
					maps.Copy(b.Account, w.accounts)
					a = Decide(b)
				}
				return a
			}
			if a := with(now.Groups...); a.Verdict != Wire {
				t.Fatalf("a branch ENI with %v will not do: %+v, for %+v and %+v", now.Groups, a, b.Pod, w.policies)
			}
			for i := range w.policies {
				p := &w.policies[i]
				if ok, _ := matches(p, m.pod.Labels, w.accounts); !ok || ignored(p) || LastChange(p).Unix() > m.pod.CreationTimestamp.Unix() {
					continue
				}
				lacking++
				if a := with(); a.Verdict != Refuse {
					t.Fatalf("a branch ENI without the groups of %+v will do for %+v: %+v", p, b.Pod, a)
				}
			}
		}
	})
	said := fmt.Sprintf("wired %d, refused %d (stripped %d), waited %d, left alone %d; of branch ENIs %d lacked groups, %d times the account was read", wired, refused, stripped, waited, left, lacking, read)
	t.Log(said)
	if min(wired, refused, stripped, waited, left, lacking, read) == 0 {
		t.Error(said)
	}
}

func FuzzParseStamp(f *testing.F) {
	for _, s := range []string{"", "[]", "null", `[{"uid":"a","generation":1}]`, `[{"uid":"a"},{"uid":"a"}]`, `{"uid":"a"}`, `[{"generation":1}]`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		refs, err := ParseStamp(s)
		if err != nil {
			return
		}
		sortRefs(refs)
		again, ok := Decision{Considered: 1, Selecting: refs}.Stamp()
		back, err := ParseStamp(again)
		if !ok || err != nil || !slices.Equal(back, refs) {
			t.Fatalf("%q is read as %v, written as %q and read as %v, %v", s, refs, again, back, err)
		}
	})
}

// Looked is never read but for the grace, so a decision doesn't change by itself later.
func TestAfterTheGraceNothingChangesByItself(t *testing.T) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", CreationTimestamp: at(5)}}
	c := Case{Pod: p, Policies: []v1beta1.SecurityGroupPolicy{version(policyFor("a", &metav1.LabelSelector{}, nil, "sg-1"), 1, 1, 1)}}
	if a := Decide(c); a.Verdict != Wait || a.For != Grace {
		t.Errorf("%+v", a)
	}
	for c.Looked = Grace; c.Looked < time.Hour; c.Looked += time.Minute {
		if a := Decide(c); a.Verdict != Refuse {
			t.Errorf("after %s: %+v", c.Looked, a)
		}
	}
}
