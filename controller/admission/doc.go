// Package admission holds the three webhooks: one gives pods that a SecurityGroupPolicy selects the request for a branch
// ENI, one guards the annotations that answer it, one holds the node agent to the few fields of a Node that are its own.
// It makes its own certificates and keeps its webhook configurations in the API server.
//
// What happens when nobody answers:
//
//   - The mutating webhook is ignored. To fail closed there would stop every new pod of the cluster, namespaces without
//     any policy included, whenever the controller is away; so it is the node that fails closed on a selected pod
//     without its branch ENI. It knows by the stamp that this webhook leaves on each pod of a namespace with policies.
//   - The validating webhooks fail closed. Match conditions send them nothing but requests that touch the guarded
//     annotations, or come from the agent's ServiceAccount, so an absent controller blocks nothing else: a pod without a
//     stamp is not sent there, and one with a stamp of its own is denied.
//
// Where the hosted control plane's webhook configurations exist, this package makes none.
package admission
