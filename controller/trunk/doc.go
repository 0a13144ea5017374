// Package trunk manages nodes: it makes the CNINode of each, the trunk ENI and the ledger of those that ask for security
// groups for pods and can have them, and the capacity that the scheduler counts with. When an instance is gone it takes
// back what EC2 still has of it.
//
// It gives no branch ENI to any pod: that is package branch.
package trunk
