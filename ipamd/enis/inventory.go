package enis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/placement"
	"github.com/branchline-cni/branchline/ipamd/signal"
)

// Tags of the ENIs that the agent makes (contracts of the AWS VPC CNI).
const (
	TagCreatedAt = "node.k8s.amazonaws.com/createdAt"
	TagCluster   = "cluster.k8s.amazonaws.com/name"
	TagOwner     = "eks:eni:owner"
	owner        = "amazon-vpc-cni"
)

// Metadata is what is read of IMDS.
type Metadata interface {
	Interfaces(ctx context.Context) ([]aws.Interface, error)
}

// Describer is the part of the EC2 API that says what kind of ENI something is.
type Describer interface {
	DescribeNetworkInterfaces(ctx context.Context, in *ec2.DescribeNetworkInterfacesInput, opts ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error)
}

// Link is a network link of the host.
type Link struct {
	Index int
	Name  string
	MAC   string
	MTU   int
	Up    bool
}

// Links are the host's links.
type Links interface {
	// List returns the links that may be ENIs.
	List(ctx context.Context) ([]Link, error)
	// SetUp brings a link up with an MTU and, where address is valid, with that address and no route for it.
	SetUp(ctx context.Context, index, mtu int, address netip.Addr) error
}

// Options of an Inventory.
type Options struct {
	Metadata Metadata
	// EC2 says what kind of ENI something is; nil: nobody is asked, and all that IMDS shows is for pods.
	EC2   Describer
	Rules placement.Rules
	Links Links
	MTU   int
	// IPv6: pods have IPv6 addresses, of the primary ENI's prefixes and of no other ENI.
	IPv6 bool
	Log  *slog.Logger
	Now  func() time.Time // nil: time.Now
}

// ErrMetadata is in the chain of what Refresh returns where IMDS failed.
var ErrMetadata = errors.New("read this instance's ENIs from IMDS")

// MetadataLate is how late IMDS is believed to be at most. What EC2 took back is left out of the view for at least so long,
// even if IMDS lacks it at first: it may be about to show a moment between its assignment and its end. What EC2 gave and
// IMDS does not show after so long is not there any more.
const MetadataLate = 2 * time.Minute

// Inventory is the node's view of its ENIs. Refresh makes it new; Changed fires when it became another.
type Inventory struct {
	opt     Options
	Changed signal.Signal

	refresh sync.Mutex                 // one Refresh at a time
	kinds   map[string]placement.Facts // what EC2 said

	mu      sync.Mutex
	current []ENI
	twice   map[netip.Prefix]bool
	learned map[unit]time.Time // EC2 said so, and when; IMDS may not yet
	// forgotten are the addresses and prefixes that EC2 took back and IMDS may still show, and since when. EC2 may give one of
	// them to another ENI at once.
	forgotten map[unit]time.Time
}

// unit is an address or a prefix of one ENI.
type unit struct {
	eni    string
	prefix netip.Prefix
}

// New makes an empty inventory.
func New(o Options) *Inventory {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Inventory{opt: o, kinds: map[string]placement.Facts{}, learned: map[unit]time.Time{}, forgotten: map[unit]time.Time{}}
}

// ENIs returns the last view, by network card and device number. It must not be changed.
func (i *Inventory) ENIs() []ENI {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.current
}

// Trunk returns the trunk, if it is attached.
func (i *Inventory) Trunk() (ENI, bool) {
	all := i.ENIs()
	if at := slices.IndexFunc(all, func(e ENI) bool { return e.Trunk }); at >= 0 {
		return all[at], true
	}
	return ENI{}, false
}

// Forget takes addresses and prefixes out of the view that EC2 took back. They stay out of it for MetadataLate, and until
// IMDS doesn't show them any more.
func (i *Inventory) Forget(eniID string, units []netip.Prefix) {
	gone := func(u netip.Prefix) bool { return slices.Contains(units, u) }
	i.mu.Lock()
	for _, u := range units {
		i.forgotten[unit{eniID, u}] = i.opt.Now()
		delete(i.learned, unit{eniID, u})
	}
	i.edit(eniID, func(e ENI) ENI { return e.without(gone) })
	i.mu.Unlock()
	i.Changed.Fire()
}

// Forgotten says whether IMDS may still show what EC2 took back.
func (i *Inventory) Forgotten(eniID string, prefix netip.Prefix) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, ok := i.forgotten[unit{eniID, prefix}]
	return ok
}

// Learn adds addresses and prefixes that EC2 answered with, so that they can be given before IMDS shows them.
func (i *Inventory) Learn(eniID string, units []netip.Prefix) {
	i.mu.Lock()
	for _, u := range units {
		delete(i.forgotten, unit{eniID, u})
		i.learned[unit{eniID, u}] = i.opt.Now()
	}
	i.edit(eniID, func(e ENI) ENI { return e.add(units) })
	i.mu.Unlock()
	i.Changed.Fire()
}

// edit replaces one ENI of the view.
func (i *Inventory) edit(eniID string, f func(ENI) ENI) {
	next := slices.Clone(i.current)
	for n := range next {
		if next[n].ID == eniID {
			next[n] = f(next[n])
		}
	}
	i.set(next)
}

// set is called with the lock held.
func (i *Inventory) set(next []ENI) { i.current, i.twice = next, twice(next) }

// Refresh reads all sources again and sets up the links of what is new. settled is false while something is attached
// that IMDS or EC2 does not explain yet: call again soon. An error leaves the view as it was, except that the steps
// that were possible are done.
func (i *Inventory) Refresh(ctx context.Context) (settled bool, err error) {
	i.refresh.Lock()
	defer i.refresh.Unlock()
	began := i.opt.Now()
	interfaces, err := i.opt.Metadata.Interfaces(ctx)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrMetadata, err)
	}
	links, err := i.opt.Links.List(ctx)
	if err != nil {
		return false, fmt.Errorf("list the links: %w", err)
	}
	kindErr := i.classify(ctx, interfaces)
	next := make([]ENI, 0, len(interfaces))
	settled = kindErr == nil
	var setupErr error
	for _, f := range interfaces {
		e := i.describe(f, links)
		if (e.Trunk || !e.Unmanaged) && e.LinkIndex != 0 {
			if err := i.setUp(ctx, &e, links); err != nil {
				setupErr = err
				e.LinkUp = false
			}
		}
		settled = settled && (e.LinkIndex != 0 || len(e.Addresses) == 0) // EFA alone has no link
		next = append(next, e)
	}
	slices.SortFunc(next, func(a, b ENI) int { return cmp.Or(cmp.Compare(a.Card, b.Card), cmp.Compare(a.Device, b.Device)) })
	for _, l := range links {
		settled = settled && slices.ContainsFunc(next, func(e ENI) bool { return e.MAC == l.MAC })
	}
	if i.publish(next, began) {
		i.Changed.Fire()
	}
	return settled, cmp.Or(kindErr, setupErr)
}

// publish makes the view of what was read from began on.
func (i *Inventory) publish(next []ENI, began time.Time) (changed bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	changed = i.leaveOut(next, began)
	i.addLate(next, began)
	changed = changed || !slices.EqualFunc(i.current, next, func(a, b ENI) bool {
		return a.ID == b.ID && a.Device == b.Device && a.Trunk == b.Trunk && a.Unmanaged == b.Unmanaged && a.Made == b.Made && a.LinkIndex == b.LinkIndex &&
			a.LinkUp == b.LinkUp && slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Prefixes, b.Prefixes) && slices.Equal(a.VPC, b.VPC)
	})
	i.set(next)
	return changed
}

// leaveOut takes out what EC2 took back and IMDS still shows. over says that some of it is looked for no more.
func (i *Inventory) leaveOut(next []ENI, began time.Time) (over bool) {
	shown := map[unit]bool{}
	for n, e := range next {
		next[n] = e.without(func(p netip.Prefix) bool {
			_, gone := i.forgotten[unit{e.ID, p}]
			if gone {
				shown[unit{e.ID, p}] = true
			}
			return gone
		})
	}
	for u, since := range i.forgotten {
		if !shown[u] && began.Sub(since) >= MetadataLate {
			delete(i.forgotten, u)
			over = true
		}
	}
	return over
}

// addLate adds what EC2 gave and IMDS doesn't show yet.
func (i *Inventory) addLate(next []ENI, began time.Time) {
	for u, since := range i.learned {
		at := slices.IndexFunc(next, func(e ENI) bool { return e.ID == u.eni })
		switch {
		case at >= 0 && slices.Contains(next[at].Units(), u.prefix), began.Sub(since) >= MetadataLate:
			delete(i.learned, u)
		case at >= 0:
			next[at] = next[at].add([]netip.Prefix{u.prefix})
		}
	}
}

func (i *Inventory) describe(f aws.Interface, links []Link) ENI {
	e := ENI{
		ID: f.ENIID, MAC: f.MAC.String(), Device: f.DeviceNumber, Card: f.NetworkCard, SubnetID: f.SubnetID, VPCID: f.VPCID,
		Subnet: f.SubnetCIDR, VPC: f.VPCCIDRs, Groups: f.SecurityGroupIDs, Addresses: f.Addresses, Prefixes: f.Prefixes,
	}
	if at := slices.IndexFunc(links, func(l Link) bool { return l.MAC == e.MAC }); at >= 0 {
		e.LinkIndex = links[at].Index
	}
	facts, rules := i.kinds[e.ID], i.opt.Rules
	if i.opt.EC2 == nil {
		facts.Described, rules.Untagged = true, true
	}
	if i.opt.IPv6 {
		e.ofIPv6(f)
	}
	facts.Primary, facts.Card, facts.Addressed = e.Primary(), e.Card, len(e.Addresses) > 0
	var role placement.Role
	role, e.Made = placement.RoleOf(facts, rules)
	e.Trunk, e.Unmanaged = role == placement.Trunk, role == placement.HandsOff || i.opt.IPv6 && role == placement.Regular && !e.Primary()
	return e
}

func (i *Inventory) setUp(ctx context.Context, e *ENI, links []Link) error {
	l := links[slices.IndexFunc(links, func(l Link) bool { return l.Index == e.LinkIndex })]
	e.LinkUp = l.Up
	if e.Primary() {
		return nil // the host brought it up, with its own settings
	}
	var addr netip.Addr
	if !e.Trunk && len(e.Addresses) > 0 {
		addr = e.Addresses[0]
	}
	if err := i.opt.Links.SetUp(ctx, l.Index, i.opt.MTU, addr); err != nil {
		return fmt.Errorf("set up link %s of %s: %w", l.Name, e.ID, err)
	}
	if !l.Up {
		i.opt.Log.Info("ENI set up", "eni", e.ID, "link", l.Name, "device", e.Device, "trunk", e.Trunk, "mtu", i.opt.MTU)
	}
	e.LinkUp = true
	return nil
}

// classify asks EC2 once for the kind of each ENI that is new.
func (i *Inventory) classify(ctx context.Context, interfaces []aws.Interface) error {
	var unknown []string
	for _, f := range interfaces {
		if _, ok := i.kinds[f.ENIID]; !ok && (f.DeviceNumber != 0 || f.NetworkCard != 0) {
			unknown = append(unknown, f.ENIID)
		}
	}
	if len(unknown) == 0 || i.opt.EC2 == nil {
		return nil
	}
	out, err := i.opt.EC2.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: unknown})
	if aws.IsNotFound(err) && len(unknown) > 1 {
		// One that is gone, or too new, hides all others: they are asked for one by one.
		var errs []error
		for _, f := range interfaces {
			if slices.Contains(unknown, f.ENIID) {
				errs = append(errs, i.classify(ctx, []aws.Interface{f}))
			}
		}
		return errors.Join(errs...)
	}
	if err != nil {
		return fmt.Errorf("ask EC2 what kind of ENIs %s are (ec2:DescribeNetworkInterfaces): %w", strings.Join(unknown, ", "), err)
	}
	for _, n := range out.NetworkInterfaces {
		f := placement.Facts{Described: true, Type: string(n.InterfaceType), Description: value(n.Description), Tags: map[string]string{}}
		for _, t := range n.TagSet {
			f.Tags[value(t.Key)] = value(t.Value)
		}
		i.kinds[value(n.NetworkInterfaceId)] = f
	}
	return nil
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
