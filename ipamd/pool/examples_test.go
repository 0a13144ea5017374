package pool

import (
	"fmt"
	"slices"
	"testing"
)

// TestDocumentedExamples: the numbers that AWS's documentation of the warm targets gives (eni-and-ip-target and
// prefix-and-ip-target of the AWS VPC CNI), which people size their subnets by. Left out are the rows of prefixes that
// contradict themselves, and those of p3dn, where ENIs without any prefix are attached: here none is.
func TestDocumentedExamples(t *testing.T) {
	type row struct {
		pods int
		want []int // units per ENI
	}
	small, p3dn := Targets{MaxENIs: 3, Places: 3, WarmPrefixes: -1}, Targets{MaxENIs: 15, Places: 49, WarmPrefixes: -1}
	with := func(t Targets, f func(*Targets)) Targets { f(&t); return t }
	for _, c := range []struct {
		name string
		t    Targets
		rows []row
	}{
		{"t3.small, a warm ENI", with(small, func(t *Targets) { t.WarmENIs = 1 }), []row{{0, []int{3}}, {5, []int{3, 3, 3}}, {9, []int{3, 3, 3}}}},
		{"t3.small, 1 warm, 1 at least", with(small, func(t *Targets) { t.WarmIPs, t.MinimumIPs = 1, 1 }), []row{{0, []int{1}}, {5, []int{3, 3}}, {9, []int{3, 3, 3}}}},
		{"t3.small, 2 warm, 5 at least", with(small, func(t *Targets) { t.WarmIPs, t.MinimumIPs = 2, 5 }), []row{{0, []int{3, 2}}, {5, []int{3, 3, 1}}, {9, []int{3, 3, 3}}}},
		{"p3dn.24xlarge, a warm ENI", with(p3dn, func(t *Targets) { t.WarmENIs = 1 }), []row{{0, []int{49}}, {3, []int{49, 49}}, {95, []int{49, 49, 49}}}},
		{"p3dn.24xlarge, 5 warm, 10 at least", with(p3dn, func(t *Targets) { t.WarmIPs, t.MinimumIPs = 5, 10 }), []row{{0, []int{10}}, {7, []int{12}}, {15, []int{20}}, {45, []int{49, 1}}}},
		{"t3.small, a warm prefix", with(small, func(t *Targets) { t.Prefixes, t.WarmPrefixes = true, 1 }), []row{{0, []int{1}}, {5, []int{2}}, {16, []int{2}}, {17, []int{3}}, {58, []int{3, 2}}}},
		{"t3.small, prefixes, 1 warm, 1 at least", with(small, func(t *Targets) { t.Prefixes, t.WarmIPs, t.MinimumIPs = true, 1, 1 }), []row{{0, []int{1}}, {5, []int{1}}, {17, []int{2}}, {58, []int{3, 1}}}},
		{"t3.small, prefixes, 7 warm, 20 at least", with(small, func(t *Targets) { t.Prefixes, t.WarmIPs, t.MinimumIPs = true, 7, 20 }), []row{{5, []int{2}}, {17, []int{2}}, {58, []int{3, 2}}}},
		{"p3dn.24xlarge, prefixes, 5 warm, 10 at least", with(p3dn, func(t *Targets) { t.Prefixes, t.WarmIPs, t.MinimumIPs = true, 5, 10 }), []row{{0, []int{1}}, {7, []int{1}}, {15, []int{2}}, {45, []int{4}}}},
	} {
		s := settle(t, Snapshot{Targets: c.t, ENIs: []ENI{{ID: "a", Primary: true}}, Attached: 1})
		for pods := 0; len(c.rows) > 0; pods++ {
			if pods == c.rows[0].pods {
				var got []int
				for _, e := range s.ENIs {
					got = append(got, len(e.Units))
				}
				if !slices.Equal(got, c.rows[0].want) {
					t.Errorf("%s, %d pods: %v on the ENIs, want %v", c.name, pods, got, c.rows[0].want)
				}
				c.rows = c.rows[1:]
			}
			s.Waiting = 1
			s = settle(t, s)
			if err := place(&s); err != nil && len(c.rows) > 0 {
				t.Fatalf("%s, pod %d: %v", c.name, pods+1, err)
			}
			s = settle(t, s)
		}
	}
}

// place gives the first free address to the pod that waits.
func place(s *Snapshot) error {
	s.Waiting = 0
	for i := range s.ENIs {
		for j := range s.ENIs[i].Units {
			if u := &s.ENIs[i].Units[j]; u.InUse+u.Cooling < u.Size() {
				u.InUse++
				return nil
			}
		}
	}
	return fmt.Errorf("no address is free: %+v", s)
}
