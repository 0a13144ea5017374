package branch

import (
	"context"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Where users set the cool-down, and its bounds.
const (
	ConfigNamespace = "kube-system"
	ConfigName      = "amazon-vpc-cni"
	coolDownKey     = "branch-eni-cooldown"

	DefaultCoolDown = 60 * time.Second
	MinCoolDown     = 30 * time.Second
)

// CoolDown reads how long a branch ENI rests after its pod. A value that can't be read means the default, one below the
// floor the floor: to wait too long is safe.
func CoolDown(ctx context.Context, read client.Reader) time.Duration {
	var cm corev1.ConfigMap
	if err := read.Get(ctx, client.ObjectKey{Namespace: ConfigNamespace, Name: ConfigName}, &cm); err != nil {
		return DefaultCoolDown
	}
	return parseCoolDown(cm.Data[coolDownKey])
}

func parseCoolDown(value string) time.Duration {
	seconds, err := strconv.ParseUint(strings.TrimSpace(value), 10, 31)
	if err != nil {
		return DefaultCoolDown
	}
	return max(time.Duration(seconds)*time.Second, MinCoolDown)
}
