package sim

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/ipamd/pool"
)

// TestBothAgentsReproduceTheDocumentedWarmTargets: the numbers of AWS's documentation of today's agent (eni-and-ip-target
// and prefix-and-ip-target of the AWS VPC CNI): pods come one by one, and in between the pool settles. Left out are the
// rows of prefixes that contradict themselves, and those with ENIs without any prefix. Which ENI has how many of the units
// when there are no pods is left open: the documentation has 2, 3 where others may have 3, 2.
func TestBothAgentsReproduceTheDocumentedWarmTargets(t *testing.T) {
	small := pool.Targets{MaxENIs: 3, Places: 3, WarmENIs: 1, WarmPrefixes: -1}
	large := pool.Targets{MaxENIs: 15, Places: 49, WarmENIs: 1, WarmPrefixes: -1}
	by := func(t pool.Targets, warm, least int) pool.Targets { t.WarmIPs, t.MinimumIPs = warm, least; return t }
	prefixes := func(t pool.Targets, warm int) pool.Targets { t.Prefixes, t.WarmPrefixes = true, warm; return t }
	for _, c := range []struct {
		name    string
		targets pool.Targets
		want    map[int][]int // after so many pods: units per ENI
	}{
		{"t3.small WARM_ENI_TARGET=1", small, map[int][]int{0: {3}, 5: {3, 3, 3}, 9: {3, 3, 3}}},
		{"t3.small WARM_IP_TARGET=1 MINIMUM_IP_TARGET=1", by(small, 1, 1), map[int][]int{0: {1}, 5: {3, 3}, 9: {3, 3, 3}}},
		{"t3.small WARM_IP_TARGET=2 MINIMUM_IP_TARGET=5", by(small, 2, 5), map[int][]int{0: {3, 2}, 5: {3, 3, 1}, 9: {3, 3, 3}}},
		{"p3dn.24xlarge WARM_ENI_TARGET=1", large, map[int][]int{0: {49}, 3: {49, 49}, 95: {49, 49, 49}}},
		{"p3dn.24xlarge WARM_IP_TARGET=5 MINIMUM_IP_TARGET=10", by(large, 5, 10), map[int][]int{0: {10}, 7: {12}, 15: {20}, 45: {49, 1}}},
		{"t3.small WARM_PREFIX_TARGET=1", prefixes(small, 1), map[int][]int{0: {1}, 5: {2}, 16: {2}, 17: {3}, 58: {3, 2}}},
		{"t3.small prefixes WARM_IP_TARGET=1 MINIMUM_IP_TARGET=1", by(prefixes(small, -1), 1, 1), map[int][]int{0: {1}, 5: {1}, 17: {2}, 58: {3, 1}}},
		{"t3.small prefixes WARM_IP_TARGET=7 MINIMUM_IP_TARGET=20", by(prefixes(small, -1), 7, 20), map[int][]int{5: {2}, 17: {2}, 58: {3, 2}}},
		{"p3dn.24xlarge prefixes WARM_IP_TARGET=5 MINIMUM_IP_TARGET=10", by(prefixes(large, -1), 5, 10), map[int][]int{0: {1}, 7: {1}, 15: {2}, 45: {4}}},
	} {
		for name, agent := range map[string]Contender{"ours": NewOurs, "today's": NewTodays} {
			for pods, want := range c.want {
				t.Run(fmt.Sprintf("%s %s %d pods", name, c.name, pods), func(t *testing.T) {
					got := Steps(Setting{Targets: c.targets, CoolDown: 30 * time.Second}, agent, pods)
					if !slices.Equal(got, want) {
						t.Errorf("%v on the ENIs, want %v", got, want)
					}
				})
			}
		}
	}
}
