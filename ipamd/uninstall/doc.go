// Package uninstall takes from a drained node what this product has put there, for the way back to another CNI plugin.
// It is run when no agent runs. What carries no mark of ours stays, and so do the plugins of other projects that the init
// container has installed: others on the node may use them.
package uninstall
