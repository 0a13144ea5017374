package sim

import (
	"fmt"
	"time"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/pool"
)

// Named is what the environment says, by the way people speak of it.
type Named struct {
	Name string
	Set  func(*pool.Targets)
}

// Usual are the settings that documentation and users name. Nothing set is WARM_ENI_TARGET=1.
func Usual() []Named {
	return []Named{
		{"WARM_ENI_TARGET=1", func(t *pool.Targets) {}},
		{"WARM_IP_TARGET=5", func(t *pool.Targets) { t.WarmIPs = 5 }},
		{"WARM_IP_TARGET=2 MINIMUM_IP_TARGET=30", func(t *pool.Targets) { t.WarmIPs, t.MinimumIPs = 2, 30 }},
		{"prefixes, WARM_PREFIX_TARGET=1", func(t *pool.Targets) { t.Prefixes, t.WarmPrefixes = true, 1 }},
		{"prefixes, WARM_IP_TARGET=5", func(t *pool.Targets) { t.Prefixes, t.WarmIPs = true, 5 }},
	}
}

// NewSetting is a setting on an instance type, with the cool-down's default.
func NewSetting(instanceType string, n Named) (Setting, error) {
	typ, ok := aws.LookupInstanceType(instanceType)
	if !ok {
		return Setting{}, fmt.Errorf("instance type %s is not in the table", instanceType)
	}
	t := pool.Targets{WarmENIs: 1, WarmPrefixes: -1, MaxENIs: typ.MaxInterfaces, Places: typ.IPv4PerInterface - 1}
	n.Set(&t)
	return Setting{Name: n.Name, Type: instanceType, Targets: t, CoolDown: 30 * time.Second}, nil
}

// Capacity is how many pods could have an address at the same time.
func (s Setting) Capacity() int {
	size := 1
	if s.Targets.Prefixes {
		size = pool.PrefixSize
	}
	return s.Targets.MaxENIs * s.Targets.Places * size
}
