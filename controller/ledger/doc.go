// Package ledger keeps, for one instance, which VLAN id and branch ENI belongs to which pod. It is the durable truth of
// the control plane: EC2 is evidence, the pod's annotation a mirror.
//
// The transitions are pure functions on a BranchLedgerSpec; Store applies them to the object in the API server, with
// optimistic concurrency. The rules that they keep, whatever is called in whatever order:
//
//   - a VLAN id belongs to at most one pod, and a pod to at most one VLAN id;
//
//   - a slot is never lost: a VLAN id that was ever given stays in the ledger until the instance is gone;
//
//   - a slot that a pod may have used becomes free only after the node confirmed that nothing of the pod is left and the
//     cool-down has passed; or pod, CNINode and EC2 all agree and twice the cool-down has passed; or the instance is gone;
//
//   - nothing is freed because it is missing from one view;
//
//   - the VLAN id that has been free for longest is given first, those never given before all others.
//
//     (none) -> Creating -> Bound -> Releasing -> Cooling -> Deleting -> Free -> Creating
//     |  |                    \---------------------^
//     |  \-> Occupied ----------------------------> ^ | Free
//     \-> Deleting
//
// It makes no EC2 call and decides nothing about pods: that is package branch.
package ledger
