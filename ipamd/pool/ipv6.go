package pool

// An IPv6 cluster's node needs one prefix (a /80) on its primary ENI, which has more addresses than it can ever have pods.
// So there is no target to keep: no other ENI, nothing given back, and no difference that a cordon would make.

// needsPrefix returns the primary ENI where it lacks that prefix.
func (s Snapshot) needsPrefix() (e ENI, needs bool) {
	for _, e := range s.ENIs {
		if !e.Primary {
			continue
		}
		for _, u := range e.Units {
			if u.IsPrefix() && !u.Leaving {
				return e, false
			}
		}
		return e, s.Prefixes
	}
	return e, false // it is not known yet
}

func (s Snapshot) planIPv6() []Step {
	if e, needs := s.needsPrefix(); needs {
		return []Step{{Kind: Assign, ENIID: e.ID, Count: 1, Prefixes: true}}
	}
	return nil
}

// roomIPv6 is how many addresses the missing prefix would bring, unless EC2 said lately that there is none.
func (s Snapshot) roomIPv6() int {
	if e, needs := s.needsPrefix(); needs && !e.Full && !e.NoPrefix {
		return 1 << mostBits
	}
	return 0
}
