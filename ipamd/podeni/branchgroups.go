package podeni

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/enis"
)

const (
	// describeTimeout bounds one question to EC2: it is asked for all who wait, not for one of them.
	describeTimeout = 20 * time.Second
	// rememberGroups is how long an ENI's groups are taken as they were described: the runtime may ask for a pod several times.
	rememberGroups = 30 * time.Second
	// A role that may not describe ENIs is not asked again for so long, longer each time: it may have come a moment ago.
	deniedFirst = 30 * time.Second
	deniedMost  = 10 * time.Minute
	// mostFilterValues is how many values EC2 takes for one filter.
	mostFilterValues = 200
)

var (
	// errGroupsDenied: the node's role may not describe network interfaces.
	errGroupsDenied = errors.New("the groups of branch ENIs can't be read")
	// errNotDescribed: EC2 describes no ENI of that id (yet).
	errNotDescribed = errors.New("EC2 does not describe it (yet)")
)

// BranchGroups tells the security groups of branch ENIs by EC2's descriptions (DescribeNetworkInterfaces): the hosted control
// plane keeps no ledger that would. Pods that come at once share a call: while one is under way, ENIs gather for the next.
type BranchGroups struct {
	EC2 enis.Describer
	Now func() time.Time
	// Denied is told that the role may not ask, at most once in a while.
	Denied func(error)

	mu      sync.Mutex
	known   map[string]described
	next    *question // gathers; nil: nobody asks
	running bool
	denied  error
	until   time.Time // no question before, as it would be denied
	refused time.Duration
}

type described struct {
	groups []string
	at     time.Time // when it was asked for
}

// question is one call for several ENIs.
type question struct {
	ids    []string
	done   chan struct{}
	groups map[string]described
	err    error
}

// Of returns an ENI's groups, as EC2 was asked for them at since or later. errNotDescribed, errGroupsDenied and ctx's are in
// the error's chain.
func (b *BranchGroups) Of(ctx context.Context, eniID string, since time.Time) ([]string, error) {
	b.mu.Lock()
	if b.Now().Before(b.until) {
		defer b.mu.Unlock()
		return nil, b.denied
	}
	if d, ok := b.known[eniID]; ok && !d.at.Before(since) {
		defer b.mu.Unlock()
		return d.groups, nil
	}
	if b.next == nil {
		b.next = &question{done: make(chan struct{})}
	}
	q := b.next
	if !slices.Contains(q.ids, eniID) {
		q.ids = append(q.ids, eniID)
	}
	if !b.running {
		b.running = true
		go b.run()
	}
	b.mu.Unlock()
	select {
	case <-q.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("ask EC2 for the security groups of %s: %w", eniID, context.Cause(ctx))
	}
	d, ok := q.groups[eniID]
	switch {
	case ok:
		return d.groups, nil
	case q.err != nil:
		return nil, q.err
	}
	return nil, fmt.Errorf("the security groups of %s: %w", eniID, errNotDescribed)
}

// run asks until nobody waits.
func (b *BranchGroups) run() {
	for {
		b.mu.Lock()
		q := b.next
		if b.next = nil; q == nil {
			b.running = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		at := b.Now()
		q.groups, q.err = b.describe(at, q.ids)
		denied := b.learn(at, q)
		close(q.done)
		if denied && b.Denied != nil {
			b.Denied(q.err)
		}
	}
}

// describe asks by a filter: an ENI that EC2 does not know would make it refuse a question by ids as a whole.
func (b *BranchGroups) describe(at time.Time, ids []string) (map[string]described, error) {
	ctx, cancel := context.WithTimeout(context.Background(), describeTimeout)
	defer cancel()
	found := map[string]described{}
	for some := range slices.Chunk(ids, mostFilterValues) {
		out, err := b.EC2.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{
			Filters: []types.Filter{{Name: awssdk.String("network-interface-id"), Values: some}},
		})
		if aws.Code(err) == "UnauthorizedOperation" { // EC2's own: credentials that can't be had are another matter
			err = fmt.Errorf("%w: %w", errGroupsDenied, err)
		}
		if err != nil {
			return found, fmt.Errorf("ask EC2 for the security groups of branch ENIs (ec2:DescribeNetworkInterfaces): %w", err)
		}
		for i := range out.NetworkInterfaces {
			n := &out.NetworkInterfaces[i]
			groups := make([]string, 0, len(n.Groups))
			for _, g := range n.Groups {
				groups = append(groups, awssdk.ToString(g.GroupId))
			}
			found[awssdk.ToString(n.NetworkInterfaceId)] = described{groups, at}
		}
	}
	return found, nil
}

// learn remembers an answer, and says whether it is that the role may not ask.
func (b *BranchGroups) learn(at time.Time, q *question) (denied bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.known == nil {
		b.known = map[string]described{}
	}
	for id, d := range b.known {
		if at.Sub(d.at) > rememberGroups {
			delete(b.known, id)
		}
	}
	for id, d := range q.groups {
		b.known[id] = d
	}
	if denied = errors.Is(q.err, errGroupsDenied); denied {
		b.refused = min(max(2*b.refused, deniedFirst), deniedMost)
		b.denied, b.until = q.err, b.Now().Add(b.refused)
	} else if q.err == nil {
		b.refused = 0
	}
	return denied
}
