package policy

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// StampKey is the pod annotation in which our webhook leaves its decision: a JSON array with one Ref for each policy that
// selected the pod when it was created. It is on each pod of a namespace that had policies then, and [] says that none of
// them selected the pod. The validating webhook lets nobody else set or change it.
const StampKey = "branchline.dev/security-group-policies"

// Ref is one version of one policy.
type Ref struct {
	UID        types.UID `json:"uid"`
	Generation int64     `json:"generation"`
}

// Stamp is the annotation that says the decision. ok is false where the pod's namespace has no policy at all: such a pod
// is left without one.
func (d Decision) Stamp() (value string, ok bool) {
	if d.Considered == 0 {
		return "", false
	}
	refs := slices.Clone(d.Selecting)
	if refs == nil {
		refs = []Ref{}
	}
	b, err := json.Marshal(refs)
	return string(b), err == nil
}

// ParseStamp is the reverse of Stamp. Fields that a later version may add are passed over.
func ParseStamp(value string) ([]Ref, error) {
	var refs []Ref
	if err := json.Unmarshal([]byte(value), &refs); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", StampKey, err)
	}
	if refs == nil {
		return nil, fmt.Errorf("annotation %s: null is no decision", StampKey)
	}
	seen := map[types.UID]bool{}
	for _, r := range refs {
		if r.UID == "" || seen[r.UID] {
			return nil, errors.New("annotation " + StampKey + ": a policy without a UID, or one that is named twice")
		}
		seen[r.UID] = true
	}
	return refs, nil
}

func sortRefs(refs []Ref) {
	slices.SortFunc(refs, func(a, b Ref) int { return cmp.Compare(a.UID, b.UID) })
}
