package branch

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/controller/events"
)

// Where users set the cool-down, and its bounds.
const (
	ConfigNamespace = "kube-system"
	ConfigName      = "amazon-vpc-cni"
	coolDownKey     = "branch-eni-cooldown"

	DefaultCoolDown = 60 * time.Second
	MinCoolDown     = 30 * time.Second
)

// CoolDown reads how long a branch ENI rests after its pod. The ConfigMap's watch brings changes.
type CoolDown struct {
	Read   client.Reader
	Events *events.Recorder
	Log    *slog.Logger
}

// Get returns the cool-down that holds now. A value that can't be read means the default, one below the floor the floor:
// to wait too long is safe. Either is said on the ConfigMap.
func (c *CoolDown) Get(ctx context.Context) time.Duration {
	var cm corev1.ConfigMap
	if err := c.Read.Get(ctx, client.ObjectKey{Namespace: ConfigNamespace, Name: ConfigName}, &cm); err != nil {
		if client.IgnoreNotFound(err) != nil {
			c.Log.WarnContext(ctx, "the cool-down's ConfigMap can't be read: the default holds", "error", err)
		}
		return DefaultCoolDown
	}
	value, set := cm.Data[coolDownKey]
	if !set {
		return DefaultCoolDown
	}
	d, err := parseCoolDown(value)
	if err != nil {
		c.Events.Warn(&cm, "InvalidCoolDown", "%v", err)
		c.Log.WarnContext(ctx, "the cool-down that is set does not hold", "error", err)
	}
	return d
}

// parseCoolDown returns what holds for a value in any case, and an error where that is not what the value says.
func parseCoolDown(value string) (time.Duration, error) {
	seconds, err := strconv.ParseUint(strings.TrimSpace(value), 10, 31)
	if err != nil {
		return DefaultCoolDown, fmt.Errorf("%s: %.40q is not a number of seconds: %v holds; set a whole number of at least %d", coolDownKey, value, DefaultCoolDown, int(MinCoolDown.Seconds()))
	}
	if d := time.Duration(seconds) * time.Second; d >= MinCoolDown {
		return d, nil
	}
	return MinCoolDown, fmt.Errorf("%s: %d s is too short for peers to forget an address: %v holds; set at least %d", coolDownKey, seconds, MinCoolDown, int(MinCoolDown.Seconds()))
}
