package trunk

import (
	"cmp"
	"context"
	"sync"
	"time"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/controller/cloud"
)

// ranges is what EC2 said of subnets that have no IPv6 range in a ledger. A subnet may get one at any time and nobody is told,
// so EC2 is asked again after a while: once for each subnet, however many nodes are in it. It is safe for concurrent use.
type ranges struct {
	mu sync.Mutex
	m  map[string]*asked
}

// asked is what is known of one subnet.
type asked struct {
	mu   sync.Mutex // also held while EC2 is asked: who comes meanwhile wants to know the same
	once bool
	ipv6 string // empty: it has none, or EC2 did not answer
	at   time.Time
}

// of is the subnet's IPv6 range as of at most age before now; empty where it has none. A question that failed is not repeated
// within that time.
func (r *ranges) of(subnetID string, now time.Time, age time.Duration, ask func() (string, error)) (string, error) {
	a := r.subnet(subnetID)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.once && now.Sub(a.at) < age {
		return a.ipv6, nil
	}
	ipv6, err := ask()
	a.once, a.ipv6, a.at = true, ipv6, now
	return ipv6, err
}

func (r *ranges) subnet(id string) *asked {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil {
		r.m = map[string]*asked{}
	}
	if r.m[id] == nil {
		r.m[id] = &asked{}
	}
	return r.m[id]
}

// catchUp writes the IPv6 ranges into a ledger that its subnets have got since it was made: branch ENIs have an address of
// them from then on, those that are there stay as they are. It is no condition for anything: what fails is tried again later.
func (r *Nodes) catchUp(ctx context.Context, l *ledgerv1.BranchLedger) (*ledgerv1.BranchLedger, error) {
	now := time.Now
	if r.Now != nil {
		now = r.Now
	}
	got := map[string]string{}
	for _, s := range []ledgerv1.Subnet{l.Spec.PrimarySubnet(), l.Spec.BranchSubnet()} {
		if s.IPv6CIDR != "" {
			continue
		}
		ipv6, err := r.ranges.of(s.ID, now(), longest*cmp.Or(r.Recheck, recheck), func() (string, error) {
			found, err := r.Cloud.Subnets(ctx, s.ID)
			return found[s.ID].IPv6CIDR, err
		})
		if err != nil {
			_, message := cloud.Explain(err)
			r.Log.WarnContext(ctx, "whether a subnet has got an IPv6 range is not known", "subnet", s.ID, "why", message)
		}
		if ipv6 != "" {
			got[s.ID] = ipv6
		}
	}
	if len(got) == 0 {
		return l, nil
	}
	r.Log.InfoContext(ctx, "a subnet has got an IPv6 range: branch ENIs have both families from now on", "node", l.Spec.NodeName, "instance", l.Name, "ranges", got)
	return r.Ledgers.Update(ctx, l.Name, func(l *ledgerv1.BranchLedger) error {
		l.Spec.SubnetIPv6CIDR = cmp.Or(l.Spec.SubnetIPv6CIDR, got[l.Spec.SubnetID])
		if n := l.Spec.CustomNetworking; n != nil {
			n.SubnetIPv6CIDR = cmp.Or(n.SubnetIPv6CIDR, got[n.SubnetID])
		}
		return nil
	})
}
