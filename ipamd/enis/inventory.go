package enis

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/signal"
)

// Tags and descriptions by which ENIs are known (contracts of the AWS VPC CNI).
const (
	TrunkDescription = "aws-k8s-trunk-eni"
	TagNoManage      = "node.k8s.amazonaws.com/no_manage"
	TagInstance      = "node.k8s.amazonaws.com/instance_id"
	TagCreatedAt     = "node.k8s.amazonaws.com/createdAt"
	TagCluster       = "cluster.k8s.amazonaws.com/name"
	TagOwner         = "eks:eni:owner"
	owner            = "amazon-vpc-cni"
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

// ENI is an attached interface and what is known of it.
type ENI struct {
	ID           string
	MAC          string
	Device, Card int
	SubnetID     string
	Subnet       netip.Prefix
	Groups       []string
	// Addresses holds the primary address first.
	Addresses []netip.Addr
	// Trunk carries branch ENIs and no regular pods.
	Trunk bool
	// Unmanaged is set where the agent keeps its hands off: tagged so, on another network card, or not yet known.
	Unmanaged bool
	// LinkIndex is 0 while the link is not there; LinkUp says that it is up and set up.
	LinkIndex int
	LinkUp    bool
}

// Primary is the instance's first interface.
func (e ENI) Primary() bool { return e.Device == 0 && e.Card == 0 }

// Gateway is the subnet's router.
func (e ENI) Gateway() netip.Addr { return e.Subnet.Masked().Addr().Next() }

// Usable says whether regular pods may have its secondary addresses.
func (e ENI) Usable() bool { return !e.Trunk && !e.Unmanaged && e.LinkIndex != 0 && e.LinkUp }

// Secondary returns the addresses that pods may have.
func (e ENI) Secondary() []netip.Addr {
	if len(e.Addresses) < 2 {
		return nil
	}
	return e.Addresses[1:]
}

type kind struct{ trunk, noManage bool }

// Options of an Inventory.
type Options struct {
	Metadata Metadata
	EC2      Describer
	Links    Links
	MTU      int
	Log      *slog.Logger
}

// Inventory is the node's view of its ENIs. Refresh makes it new; Changed fires when it became another.
type Inventory struct {
	opt     Options
	Changed signal.Signal

	refresh sync.Mutex // one Refresh at a time
	kinds   map[string]kind

	mu      sync.Mutex
	current []ENI
	learned map[string][]netip.Addr // EC2 said so; IMDS may not yet
	// forgotten are the addresses that EC2 took back and IMDS may still show, each with the number of the last reading
	// of IMDS that had begun by then.
	forgotten map[netip.Addr]int
	readings  int
}

// New makes an empty inventory.
func New(o Options) *Inventory {
	return &Inventory{opt: o, kinds: map[string]kind{}, learned: map[string][]netip.Addr{}, forgotten: map[netip.Addr]int{}}
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

// Forget takes addresses out of the view that EC2 took back. They stay out of it until IMDS has shown their ENI without
// them, which may be some time after EC2's answer.
func (i *Inventory) Forget(eniID string, addrs []netip.Addr) {
	i.mu.Lock()
	gone := func(a netip.Addr) bool { return slices.Contains(addrs, a) }
	for _, a := range addrs {
		i.forgotten[a] = i.readings
	}
	i.learned[eniID] = slices.DeleteFunc(slices.Clone(i.learned[eniID]), gone)
	next := slices.Clone(i.current)
	for n := range next {
		if next[n].ID == eniID {
			next[n].Addresses = slices.DeleteFunc(slices.Clone(next[n].Addresses), gone)
		}
	}
	i.current = next
	i.mu.Unlock()
	i.Changed.Fire()
}

// Forgotten says whether IMDS may still show an address that EC2 took back.
func (i *Inventory) Forgotten(addr netip.Addr) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, ok := i.forgotten[addr]
	return ok
}

// Learn adds addresses that EC2 answered with, so that they can be given before IMDS shows them.
func (i *Inventory) Learn(eniID string, addrs []netip.Addr) {
	i.mu.Lock()
	for _, a := range addrs {
		delete(i.forgotten, a)
	}
	i.learned[eniID] = append(i.learned[eniID], addrs...)
	next := slices.Clone(i.current)
	for n := range next {
		if next[n].ID == eniID {
			next[n].Addresses = union(next[n].Addresses, addrs)
		}
	}
	i.current = next
	i.mu.Unlock()
	i.Changed.Fire()
}

func union(a, b []netip.Addr) []netip.Addr {
	a = slices.Clone(a)
	for _, addr := range b {
		if !slices.Contains(a, addr) {
			a = append(a, addr)
		}
	}
	return a
}

// Refresh reads all sources again and sets up the links of what is new. settled is false while something is attached
// that IMDS or EC2 does not explain yet: call again soon. An error leaves the view as it was, except that the steps
// that were possible are done.
func (i *Inventory) Refresh(ctx context.Context) (settled bool, err error) {
	i.refresh.Lock()
	defer i.refresh.Unlock()
	i.mu.Lock()
	i.readings++
	reading := i.readings
	i.mu.Unlock()
	interfaces, err := i.opt.Metadata.Interfaces(ctx)
	if err != nil {
		return false, fmt.Errorf("read this instance's ENIs: %w", err)
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
		settled = settled && e.LinkIndex != 0
		next = append(next, e)
	}
	slices.SortFunc(next, func(a, b ENI) int { return cmp.Or(cmp.Compare(a.Card, b.Card), cmp.Compare(a.Device, b.Device)) })
	for _, l := range links {
		settled = settled && slices.ContainsFunc(next, func(e ENI) bool { return e.MAC == l.MAC })
	}
	if i.publish(next, reading) {
		i.Changed.Fire()
	}
	return settled, cmp.Or(kindErr, setupErr)
}

func (i *Inventory) publish(next []ENI, reading int) (changed bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.leaveOut(next, reading)
	for n, e := range next {
		var late []netip.Addr
		for _, a := range i.learned[e.ID] {
			if !slices.Contains(e.Addresses, a) {
				late = append(late, a)
			}
		}
		i.learned[e.ID] = late
		next[n].Addresses = union(e.Addresses, late)
	}
	changed = !slices.EqualFunc(i.current, next, func(a, b ENI) bool {
		return a.ID == b.ID && a.Device == b.Device && a.Trunk == b.Trunk && a.Unmanaged == b.Unmanaged &&
			a.LinkIndex == b.LinkIndex && a.LinkUp == b.LinkUp && slices.Equal(a.Addresses, b.Addresses)
	})
	i.current = next
	return changed
}

// leaveOut takes out what EC2 took back and IMDS still shows, and ends to look for what it shows no more.
func (i *Inventory) leaveOut(next []ENI, reading int) {
	shown := map[netip.Addr]bool{}
	for n, e := range next {
		for _, a := range e.Addresses {
			if _, ok := i.forgotten[a]; ok {
				shown[a] = true
			}
		}
		next[n].Addresses = slices.DeleteFunc(slices.Clone(e.Addresses), func(a netip.Addr) bool { return shown[a] })
	}
	for a, at := range i.forgotten {
		if !shown[a] && reading > at {
			delete(i.forgotten, a)
		}
	}
}

func (i *Inventory) describe(f aws.Interface, links []Link) ENI {
	e := ENI{
		ID: f.ENIID, MAC: f.MAC.String(), Device: f.DeviceNumber, Card: f.NetworkCard, SubnetID: f.SubnetID,
		Subnet: f.SubnetCIDR, Groups: f.SecurityGroupIDs, Addresses: f.Addresses,
	}
	if at := slices.IndexFunc(links, func(l Link) bool { return l.MAC == e.MAC }); at >= 0 {
		e.LinkIndex = links[at].Index
	}
	if !e.Primary() {
		k, known := i.kinds[e.ID]
		e.Trunk = k.trunk
		e.Unmanaged = !known || k.noManage || e.Card != 0
	}
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
	if len(unknown) == 0 {
		return nil
	}
	out, err := i.opt.EC2.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: unknown})
	if err != nil {
		return fmt.Errorf("ask EC2 what kind of ENIs %s are (ec2:DescribeNetworkInterfaces): %w", strings.Join(unknown, ", "), err)
	}
	for _, n := range out.NetworkInterfaces {
		k := kind{trunk: n.InterfaceType == types.NetworkInterfaceTypeTrunk || value(n.Description) == TrunkDescription}
		for _, t := range n.TagSet {
			k.noManage = k.noManage || value(t.Key) == TagNoManage && value(t.Value) == "true"
		}
		i.kinds[value(n.NetworkInterfaceId)] = k
	}
	return nil
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
