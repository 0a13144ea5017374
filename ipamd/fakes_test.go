package ipamd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	eniconfigv1 "github.com/branchline-cni/branchline/api/eniconfig/v1alpha1"
	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/config"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/kube/kubetest"
	"github.com/branchline-cni/branchline/ipamd/signal"
)

const (
	nodeName   = "node-1"
	instanceID = "i-0123456789abcdef0"
	region     = "us-west-2"
	zone       = "us-west-2a"
)

// cloud is one instance with its ENIs: EC2, IMDS and links at once, without any delay between them.
type cloud struct {
	mu      sync.Mutex
	enis    map[string]*cloudENI
	next    int
	vlans   map[int]bool
	omitted []netip.Addr                // IMDS does not show them
	marked  []netip.Addr                // on the host veths
	boxes   map[netip.Addr]enis.Sandbox // whose veths these are
	failed  error                       // what every mutating EC2 call answers with
	onENI   func()
	onVLAN  func()

	fresh        bool // EC2 does not give what was given back lately; else it gives the lowest address
	stale        bool // IMDS goes on to show what is unassigned
	lost         int  // so many answers to unassignments are lost
	unassigns    int
	assigns      int
	noPrefix     bool  // the subnet has no free block
	hidden       bool  // neither IMDS nor links show what is attached from now on
	sweepFailed  error // what EC2 answers to who looks for left-overs
	sweeps       int
	reads        int             // of IMDS
	describes    int             // of single ENIs
	subnets      []types.Subnet  // of the instance's VPC and zone; nil: EC2 doesn't answer
	full         map[string]bool // subnets without a free address
	subnetsAsked int
	types        []types.InstanceTypeInfo // that EC2 knows; nil: it doesn't answer
	typesAsked   int
	ipv6Late     bool          // IMDS does not show IPv6 prefixes
	ipv6None     bool          // nor the node's own IPv6 address
	attachHeld   chan struct{} // attachments take effect, and are answered once it is closed
	calls        map[int]int   // creations of ENIs and assignments of addresses, by network card
}

type cloudENI struct {
	id          string
	device      int // -1: detached
	trunk       bool
	addresses   []netip.Addr
	prefixes    []netip.Prefix
	ipv6        []netip.Prefix // /80
	subnet      string         // empty: subnet-1
	groups      []string
	card        int
	kind        types.NetworkInterfaceType
	tags        []types.Tag
	description string
	up          bool
	hidden      bool
	late        bool         // IMDS does not show it yet
	shown       []netip.Addr // IMDS shows them though EC2 took them back
}

func newCloud() *cloud {
	nobody := func() {} // watches yet
	c := &cloud{calls: map[int]int{}, enis: map[string]*cloudENI{}, vlans: map[int]bool{}, subnets: []types.Subnet{subnet("subnet-1", 1000)}, onENI: nobody, onVLAN: nobody}
	c.add(0, 0, false)
	c.enis["eni-1"].up = true
	return c
}

func (c *cloud) add(device, secondary int, trunk bool) *cloudENI {
	c.next++
	e := &cloudENI{id: fmt.Sprintf("eni-%d", c.next), device: device, trunk: trunk, subnet: "subnet-1", groups: []string{"sg-node"}}
	if trunk {
		e.kind = types.NetworkInterfaceTypeTrunk
	}
	c.enis[e.id] = e
	c.grow(e, secondary+1)
	return e
}

func (c *cloud) grow(e *cloudENI, n int) (out []netip.Addr) {
	for range n {
		a := netip.MustParseAddr(fmt.Sprintf("192.168.%d.10", c.index(e)))
		for slices.Contains(e.addresses, a) || c.fresh && slices.Contains(e.shown, a) {
			a = a.Next()
		}
		e.addresses = append(e.addresses, a)
		out = append(out, a)
	}
	return out
}

func (c *cloud) growPrefixes(e *cloudENI, n int) (out []netip.Prefix, err error) {
	if c.noPrefix {
		return nil, &smithy.GenericAPIError{Code: "InsufficientCidrBlocks", Message: "no free block"}
	}
	for range n {
		p := netip.MustParsePrefix(fmt.Sprintf("10.0.%d.%d/28", c.index(e), 16*len(e.prefixes)))
		e.prefixes = append(e.prefixes, p)
		out = append(out, p)
	}
	return out, nil
}

func (c *cloud) index(e *cloudENI) (n int) {
	_, _ = fmt.Sscanf(e.id, "eni-%d", &n)
	return n
}

func (c *cloud) mac(e *cloudENI) net.HardwareAddr {
	return net.HardwareAddr{6, 0, 0, 0, 0, byte(c.index(e))}
}

func (c *cloud) attachTrunk() {
	c.mu.Lock()
	c.add(5, 0, true)
	on := c.onENI
	c.mu.Unlock()
	on()
}

func (c *cloud) setVLAN(id int, there bool) {
	c.mu.Lock()
	c.vlans[id] = there
	if !there {
		delete(c.vlans, id)
	}
	on := c.onVLAN
	c.mu.Unlock()
	on()
}

func (c *cloud) Interfaces(context.Context) (out []aws.Interface, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reads++
	for _, e := range c.enis {
		if e.device >= 0 && !e.hidden && !e.late {
			out = append(out, aws.Interface{
				MAC: c.mac(e), ENIID: e.id, DeviceNumber: e.device, NetworkCard: e.card, SubnetID: e.subnet, VPCID: "vpc-1", SubnetCIDR: netip.MustParsePrefix("192.168.0.0/19"), VPCCIDRs: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")},
				Addresses: slices.DeleteFunc(slices.Concat(e.addresses, e.shown), func(a netip.Addr) bool { return slices.Contains(c.omitted, a) }), SecurityGroupIDs: e.groups, Prefixes: slices.Clone(e.prefixes),
			})
			c.showIPv6(e, &out[len(out)-1])
		}
	}
	return out, nil
}

func (c *cloud) List(context.Context) (out []enis.Link, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.enis {
		if e.device >= 0 && !e.hidden {
			out = append(out, enis.Link{Index: 100 + c.index(e), Name: e.id, MAC: c.mac(e).String(), Up: e.up})
		}
	}
	return out, nil
}

func (c *cloud) SetUp(_ context.Context, index, _ int, _ netip.Addr) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.enis[fmt.Sprintf("eni-%d", index-100)]
	if e == nil {
		return errors.New("no such device") // it was given back since the links were listed
	}
	e.up = true
	return nil
}

func (c *cloud) VLANs(context.Context) (map[int]bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[int]bool{}
	for id := range c.vlans {
		out[id] = true
	}
	return out, nil
}

// Marked: addresses are marked where the host routes to them.
func (c *cloud) Marked(ctx context.Context) (m enis.Marked, err error) {
	m.VLANs, err = c.VLANs(ctx)
	m.Addresses, m.Standard = map[netip.Addr]bool{}, map[int]bool{}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.marked {
		m.Addresses[a] = true
	}
	m.Regular = maps.Clone(c.boxes)
	return m, err
}

func (c *cloud) Watch(ctx context.Context, eni, vlan func()) {
	c.mu.Lock()
	c.onENI, c.onVLAN = eni, vlan
	c.mu.Unlock()
	eni()
	vlan()
	<-ctx.Done()
}

func (c *cloud) DescribeNetworkInterfaces(_ context.Context, in *ec2.DescribeNetworkInterfacesInput, _ ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := &ec2.DescribeNetworkInterfacesOutput{}
	if len(in.Filters) > 0 && awssdk.ToString(in.Filters[0].Name) == "network-interface-id" {
		return out, nil // branch ENIs, of which this EC2 has none
	}
	if len(in.Filters) > 0 {
		if c.sweeps++; c.sweepFailed != nil {
			return nil, c.sweepFailed
		}
	}
	if len(in.NetworkInterfaceIds) > 0 {
		c.describes++
	}
	for _, e := range c.enis {
		if len(in.NetworkInterfaceIds) > 0 && !slices.Contains(in.NetworkInterfaceIds, e.id) || len(in.Filters) > 0 && e.device >= 0 {
			continue
		}
		n := types.NetworkInterface{NetworkInterfaceId: &e.id, InterfaceType: e.kind, TagSet: e.tags, Description: &e.description}
		for _, a := range e.addresses {
			n.PrivateIpAddresses = append(n.PrivateIpAddresses, types.NetworkInterfacePrivateIpAddress{PrivateIpAddress: awssdk.String(a.String())})
		}
		for _, p := range e.ipv6 {
			n.Ipv6Prefixes = append(n.Ipv6Prefixes, types.Ipv6PrefixSpecification{Ipv6Prefix: awssdk.String(p.String())})
		}
		if e.device >= 0 {
			n.Attachment = &types.NetworkInterfaceAttachment{AttachmentId: &e.id, InstanceId: awssdk.String(instanceID)}
		}
		out.NetworkInterfaces = append(out.NetworkInterfaces, n)
	}
	return out, nil
}

func subnet(id string, free int32, kv ...string) types.Subnet {
	s := types.Subnet{SubnetId: awssdk.String(id), AvailableIpAddressCount: awssdk.Int32(free)}
	for i := 0; i < len(kv); i += 2 {
		s.Tags = append(s.Tags, types.Tag{Key: awssdk.String(kv[i]), Value: awssdk.String(kv[i+1])})
	}
	return s
}

var subnetFull = &smithy.GenericAPIError{Code: aws.CodeSubnetFull, Message: "no free address"}

func (c *cloud) DescribeSubnets(_ context.Context, in *ec2.DescribeSubnetsInput, _ ...func(*ec2.Options)) (*ec2.DescribeSubnetsOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subnetsAsked++
	if c.subnets == nil {
		return nil, errors.New("connection refused")
	}
	if len(in.Filters) != 2 || in.Filters[0].Values[0] != "vpc-1" || in.Filters[1].Values[0] != zone {
		return nil, &smithy.GenericAPIError{Code: "InvalidParameterValue", Message: "asks for more than this node's"}
	}
	return &ec2.DescribeSubnetsOutput{Subnets: c.subnets}, nil
}

func (c *cloud) described() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.describes
}

func (c *cloud) CreateNetworkInterface(_ context.Context, in *ec2.CreateNetworkInterfaceInput, _ ...func(*ec2.Options)) (*ec2.CreateNetworkInterfaceOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed != nil {
		return nil, c.failed
	}
	if c.full[*in.SubnetId] {
		return nil, subnetFull
	}
	e := c.add(-1, int(awssdk.ToInt32(in.SecondaryPrivateIpAddressCount)), false)
	e.subnet, e.groups = *in.SubnetId, in.Groups
	if n := awssdk.ToInt32(in.Ipv4PrefixCount); n > 0 {
		if _, err := c.growPrefixes(e, int(n)); err != nil {
			delete(c.enis, e.id)
			return nil, err
		}
	}
	e.description, e.tags = *in.Description, in.TagSpecifications[0].Tags
	return &ec2.CreateNetworkInterfaceOutput{NetworkInterface: &types.NetworkInterface{NetworkInterfaceId: &e.id}}, nil
}

func (c *cloud) AttachNetworkInterface(ctx context.Context, in *ec2.AttachNetworkInterfaceInput, _ ...func(*ec2.Options)) (*ec2.AttachNetworkInterfaceOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed != nil {
		return nil, c.failed
	}
	e := c.enis[*in.NetworkInterfaceId]
	e.device, e.card, e.hidden = int(*in.DeviceIndex), int(awssdk.ToInt32(in.NetworkCardIndex)), c.hidden
	c.calls[e.card]++
	if c.onENI != nil { // nobody watches the links yet
		go c.onENI()
	}
	if held := c.attachHeld; held != nil {
		c.mu.Unlock()
		defer c.mu.Lock()
		select {
		case <-held:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return &ec2.AttachNetworkInterfaceOutput{AttachmentId: &e.id}, nil
}

func (c *cloud) ModifyNetworkInterfaceAttribute(context.Context, *ec2.ModifyNetworkInterfaceAttributeInput, ...func(*ec2.Options)) (*ec2.ModifyNetworkInterfaceAttributeOutput, error) {
	return &ec2.ModifyNetworkInterfaceAttributeOutput{}, nil
}

func (c *cloud) AssignPrivateIpAddresses(_ context.Context, in *ec2.AssignPrivateIpAddressesInput, _ ...func(*ec2.Options)) (*ec2.AssignPrivateIpAddressesOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed != nil {
		return nil, c.failed
	}
	out := &ec2.AssignPrivateIpAddressesOutput{}
	c.assigns++
	c.calls[c.enis[*in.NetworkInterfaceId].card]++
	if c.full[c.enis[*in.NetworkInterfaceId].subnet] {
		return nil, subnetFull
	}
	if in.Ipv4PrefixCount != nil {
		prefixes, err := c.growPrefixes(c.enis[*in.NetworkInterfaceId], int(*in.Ipv4PrefixCount))
		for _, p := range prefixes {
			out.AssignedIpv4Prefixes = append(out.AssignedIpv4Prefixes, types.Ipv4PrefixSpecification{Ipv4Prefix: awssdk.String(p.String())})
		}
		return out, err
	}
	for _, a := range c.grow(c.enis[*in.NetworkInterfaceId], int(*in.SecondaryPrivateIpAddressCount)) {
		s := a.String()
		out.AssignedPrivateIpAddresses = append(out.AssignedPrivateIpAddresses, types.AssignedPrivateIpAddress{PrivateIpAddress: &s})
	}
	return out, nil
}

func (c *cloud) UnassignPrivateIpAddresses(_ context.Context, in *ec2.UnassignPrivateIpAddressesInput, _ ...func(*ec2.Options)) (*ec2.UnassignPrivateIpAddressesOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unassigns++
	if c.failed != nil {
		return nil, c.failed
	}
	e := c.enis[*in.NetworkInterfaceId]
	for _, s := range in.Ipv4Prefixes {
		p := netip.MustParsePrefix(s)
		e.prefixes = slices.DeleteFunc(e.prefixes, func(o netip.Prefix) bool { return o == p })
	}
	for _, s := range in.PrivateIpAddresses {
		a := netip.MustParseAddr(s)
		at := slices.Index(e.addresses, a)
		if at < 1 {
			return nil, &smithy.GenericAPIError{Code: "InvalidParameterValue", Message: "not assigned"}
		}
		e.addresses = slices.Delete(e.addresses, at, at+1)
		if c.stale {
			e.shown = append(e.shown, a)
		}
	}
	if c.lost > 0 {
		c.lost--
		return nil, errors.New("connection reset by peer")
	}
	return &ec2.UnassignPrivateIpAddressesOutput{}, nil
}

func (c *cloud) DescribeInstanceTypes(context.Context, *ec2.DescribeInstanceTypesInput, ...func(*ec2.Options)) (*ec2.DescribeInstanceTypesOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.typesAsked++; c.types == nil {
		return nil, errors.New("connection refused")
	}
	return &ec2.DescribeInstanceTypesOutput{InstanceTypes: c.types}, nil
}

func (c *cloud) DetachNetworkInterface(_ context.Context, in *ec2.DetachNetworkInterfaceInput, _ ...func(*ec2.Options)) (*ec2.DetachNetworkInterfaceOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enis[*in.AttachmentId].device = -1
	go c.onENI()
	return &ec2.DetachNetworkInterfaceOutput{}, nil
}

func (c *cloud) DeleteNetworkInterface(_ context.Context, in *ec2.DeleteNetworkInterfaceInput, _ ...func(*ec2.Options)) (*ec2.DeleteNetworkInterfaceOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.enis, *in.NetworkInterfaceId)
	return &ec2.DeleteNetworkInterfaceOutput{}, nil
}

// routing is a host's routing as a model.
type routing struct {
	mu      sync.Mutex
	actual  hostnet.Actual
	pods    []netip.Addr
	broken  error // what Reconcile answers with
	failed  int
	rounds  int   // reconciled without an error
	noMarks error // what this host says of nftables
	noNAT   error // and of source NAT
	tracked map[netip.Addr]int
	meddles int // by somebody else
	meddled signal.Signal
}

func (r *routing) set(broken error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = broken
}

func newRouting() *routing {
	return &routing{tracked: map[netip.Addr]int{}, actual: hostnet.Actual{Rules: []hostnet.Rule{{Priority: 0, Table: hostnet.LocalTable}}}}
}

func (r *routing) Reconcile(_ context.Context, d hostnet.Desired) (hostnet.Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken != nil {
		r.failed++
		return hostnet.Result{}, r.broken
	}
	r.rounds++
	ops := hostnet.Plan(d, r.actual)
	r.actual = r.actual.Apply(ops)
	return hostnet.Result{Ops: ops, Marks: r.noMarks, NAT: r.noNAT}, nil
}

// Watch calls changed for each meddle, also for those before it.
func (r *routing) Watch(ctx context.Context, changed func()) {
	for seen := 0; ; {
		r.mu.Lock()
		n, meddled := r.meddles, r.meddled.C()
		r.mu.Unlock()
		if n > seen {
			seen = n
			changed()
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-meddled:
		}
	}
}

// meddle changes the host's routing as somebody else would.
func (r *routing) meddle(f func(*hostnet.Actual)) {
	r.mu.Lock()
	f(&r.actual)
	r.meddles++
	r.mu.Unlock()
	r.meddled.Fire()
}

func (r *routing) Pods() ([]netip.Addr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.pods), nil
}

func (r *routing) Forget(_ context.Context, addresses []netip.Addr) (n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken != nil {
		return 0, r.broken
	}
	for _, a := range addresses {
		n += r.tracked[a]
		delete(r.tracked, a)
	}
	return n, nil
}

// track has the kernel know of connections of an address, and returns how many it knows of then.
func (r *routing) track(a netip.Addr, more int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tracked[a] += more
	return r.tracked[a]
}

func (r *routing) localAt() (out []int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rule := range r.actual.Rules {
		if rule.Table == hostnet.LocalTable && !rule.To.IsValid() && !rule.From.IsValid() && rule.Mask == 0 {
			out = append(out, rule.Priority)
		}
	}
	return out
}

// world is everything around one agent; it survives the agent's restarts.
type world struct {
	t           *testing.T
	dir         string
	cloud       *cloud
	routing     *routing
	api         client.WithWatch
	env         map[string]string
	typ         string
	noGet       atomic.Bool               // the API server answers no questions; watches go on
	ledgers     atomic.Bool               // the API server knows branch ledgers
	denied      atomic.Bool               // the agent's role has no policies
	asked       atomic.Int64              // questions about pods: pods and accounts one by one, and policies of one namespace
	starts      int                       // how many agents there were
	later       atomic.Int64              // how far the agent's clock is ahead
	still       atomic.Pointer[time.Time] // what the clock says while it is stopped
	join        time.Duration
	noteReady   func() error
	sweeper     Sweeper
	noAPI       atomic.Bool // it answers nothing at all
	log         io.Writer   // of the agent; nil: nobody reads it
	metricsAddr string
	listener    net.Listener // nil: the socket s
	ec2         EC2          // nil: cloud
	resync      time.Duration
	formerNAT   func(context.Context) (removed, left []string, err error)
}

// checkpoint is where the node's former agent had its allocations.
func (w *world) checkpoint() string { return filepath.Join(w.dir, "ipam.json") }

// results is where the runtime has its results.
func (w *world) results() string { return filepath.Join(w.dir, "results") }

// pass moves the agent's clock.
func (w *world) pass(d time.Duration) { w.later.Add(int64(d)) }

func (w *world) now() time.Time {
	if still := w.still.Load(); still != nil {
		return *still
	}
	return time.Now().Add(time.Duration(w.later.Load()))
}

// stop keeps the agent's clock where it is until goOn.
func (w *world) stop() (goOn func()) {
	now := w.now()
	w.still.Store(&now)
	return func() { w.still.Store(nil) }
}

var noLedgers = apierrors.NewNotFound(schema.GroupResource{Group: "branchline.dev", Resource: "branchledgers"}, "")

var errDenied = apierrors.NewForbidden(schema.GroupResource{Group: "vpcresources.k8s.aws", Resource: "securitygrouppolicies"}, "", errors.New("RBAC"))

func newWorld(t *testing.T, objects ...client.Object) *world {
	t.Helper()
	scheme, err := kube.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	byName := func(o client.Object) []string { return []string{o.GetName()} }
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}
	api := fake.NewClientBuilder().WithScheme(scheme).WithObjects(append(objects, node)...).
		WithStatusSubresource(&ledgerv1.BranchLedger{}).
		WithIndex(&corev1.Pod{}, "spec.nodeName", func(o client.Object) []string { return []string{o.(*corev1.Pod).Spec.NodeName} }).
		WithIndex(&corev1.Node{}, "metadata.name", byName).
		WithIndex(&cninodev1.CNINode{}, "metadata.name", byName).
		WithIndex(&eniconfigv1.ENIConfig{}, "metadata.name", byName).
		WithIndex(&ledgerv1.BranchLedger{}, "metadata.name", byName).Build()
	w := &world{t: t, dir: t.TempDir(), cloud: newCloud(), routing: newRouting(), typ: "m5.large", env: map[string]string{"MY_NODE_NAME": nodeName}}
	w.api = interceptor.NewClient(api, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			switch obj.(type) {
			case *corev1.Pod, *corev1.ServiceAccount:
				w.asked.Add(1)
			}
			if w.noGet.Load() || w.noAPI.Load() {
				return errors.New("connection refused")
			}
			return c.Get(ctx, key, obj, opts...)
		},
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			if w.noAPI.Load() {
				return errors.New("connection refused")
			}
			return c.Create(ctx, obj, opts...)
		},
		List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) error {
			if w.noAPI.Load() {
				return errors.New("connection refused")
			}
			if _, ok := l.(*ledgerv1.BranchLedgerList); ok && !w.ledgers.Load() {
				return noLedgers
			}
			if _, ok := l.(*v1beta1.SecurityGroupPolicyList); ok {
				if w.denied.Load() {
					return errDenied
				}
				if slices.Contains(opts, client.ListOption(client.InNamespace("default"))) {
					w.asked.Add(1)
				}
			}
			return c.List(ctx, l, opts...)
		},
		Watch: func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) (watch.Interface, error) {
			if _, ok := l.(*ledgerv1.BranchLedgerList); ok && !w.ledgers.Load() {
				return nil, noLedgers
			}
			if _, ok := l.(*v1beta1.SecurityGroupPolicyList); ok && w.denied.Load() {
				return nil, errDenied
			}
			return c.Watch(ctx, l, opts...)
		},
	})
	return w
}

// virtual is for tests in virtual time (testing/synctest): neither a socket of the kernel's nor a resync keeps time from passing.
func (w *world) virtual() {
	w.listener, w.resync = bufconn.Listen(1<<16), 1000*time.Hour
	w.env["DISABLE_INTROSPECTION"], w.env["DISABLE_METRICS"] = "true", "true"
}

// start runs an agent; stop ends it as a kill would: nothing is said to anyone.
func (w *world) start() (s service, stop func()) {
	w.t.Helper()
	w.starts++
	w.env["HOST_CNI_CONFDIR_PATH"] = w.dir
	w.env["AWS_VPC_K8S_CNI_BACKING_STORE"] = w.checkpoint()
	if w.env["INTROSPECTION_BIND_ADDRESS"] == "" {
		w.env["INTROSPECTION_BIND_ADDRESS"] = "127.0.0.1:0"
	}
	c, _, err := config.Load(func(k string) (string, bool) { v, ok := w.env[k]; return v, ok })
	if err != nil {
		w.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if w.log != nil {
		log = slog.New(slog.NewJSONHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	k, err := kube.New(kube.Options{
		API: kubetest.API(w.api), NodeName: nodeName, Resync: w.resync, InstanceID: instanceID, Policies: c.PodENI, Log: log, ENIConfigs: c.CustomNetworking, NodeLabels: c.NodeLabels(), NodeAnnotations: c.NodeAnnotations(),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	l := w.listener
	if l == nil {
		if l, err = net.Listen("unix", filepath.Join(w.dir, "s")); err != nil {
			w.t.Fatal(err)
		}
	}
	var cloud EC2 = w.cloud
	if w.ec2 != nil {
		cloud = w.ec2
	}
	typ, _ := aws.LookupInstanceType(w.typ)
	a, err := New(Options{
		Config: c, Identity: aws.Identity{InstanceID: instanceID, InstanceType: w.typ, Region: region, AvailabilityZone: zone}, Type: typ, Kube: k, Metadata: w.cloud, EC2: cloud,
		Links: w.cloud, Routing: w.routing, StatePath: filepath.Join(w.dir, "state.json"), ResultsDir: w.results(), Listener: l, Credentials: insecure.NewCredentials(),
		Metrics: prometheus.NewRegistry(), MetricsAddr: w.metricsAddr, Version: "test", Log: log, Now: w.now, joinTimeout: w.join, sleep: soon,
		NoteReady: w.noteReady, Sweeper: w.sweeper, RemoveFormerNAT: w.formerNAT,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				w.t.Errorf("the agent ended with %v", err)
			}
		})
	}
	w.t.Cleanup(stop)
	return service{a: a}, stop
}

// soon waits a thousandth of what it is asked to.
func soon(ctx context.Context, d time.Duration) error {
	wait(ctx, max(d/1000, 1))
	return ctx.Err()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls with a deadline: what it looks at changes on goroutines that the test does not own.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
