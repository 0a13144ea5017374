package lab

import (
	"context"
	"fmt"

	"github.com/branchline-cni/branchline/lab/kube"
)

// SetProxyMode has a node's kube-proxy run in another mode.
func (l *Lab) SetProxyMode(ctx context.Context, m Machine, mode kube.ProxyMode) error {
	l.mu.Lock()
	n := l.nodes[m.ID]
	l.mu.Unlock()
	if n == nil {
		return fmt.Errorf("set kube-proxy's mode on %s: it is no node of the cluster", m.ID)
	}
	if err := n.SetProxyMode(ctx, mode); err != nil {
		return fmt.Errorf("set kube-proxy's mode on node %s to %s: %w", n.Name(), mode, err)
	}
	return nil
}
