package ipamd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/credentials"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/config"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/placement"
	"github.com/branchline-cni/branchline/ipamd/podeni"
	"github.com/branchline-cni/branchline/ipamd/pool"
	"github.com/branchline-cni/branchline/ipamd/signal"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// Links is what the agent needs of the host's links.
type Links interface {
	enis.Links
	// VLANs returns the ids of the VLAN links of branch pods that are there.
	VLANs(ctx context.Context) (map[int]bool, error)
	// Marked returns what the links that the CNI executable made say of themselves.
	Marked(ctx context.Context) (enis.Marked, error)
	// Watch calls eni whenever a link that may be an ENI came, changed or went, and vlan for a branch pod's VLAN link,
	// until ctx ends.
	Watch(ctx context.Context, eni, vlan func())
}

// Routing is what the agent needs of the host's routing.
type Routing interface {
	Reconcile(ctx context.Context, d hostnet.Desired) (hostnet.Result, error)
	// Pods returns the addresses that are wired, whoever remembers them.
	Pods() ([]netip.Addr, error)
	// Forget has the kernel forget addresses' connections, and the link-layer addresses that it has learned for them.
	Forget(ctx context.Context, addresses []netip.Addr) (connections int, err error)
	// Watch calls changed whenever somebody changed what Reconcile made, until ctx ends.
	Watch(ctx context.Context, changed func())
}

// Options of an Agent. Everything that reaches outside is given, so that tests and the executable build the same agent.
type Options struct {
	Config   *config.Config
	Identity aws.Identity
	// Type holds the instance type's limits. The zero value is a type that this version does not know: EC2 is asked then.
	Type     aws.InstanceType
	Kube     *kube.Client
	Metadata enis.Metadata
	EC2      EC2
	Links    Links
	Routing  Routing
	// StatePath is the store's file; ResultsDir is where the runtime keeps the results of ADD, which are not looked at where it is
	// empty. Listener is the agent's socket; Credentials check who is at its other end.
	StatePath   string
	ResultsDir  string
	Listener    net.Listener
	Credentials credentials.TransportCredentials
	// Metrics receives the agent's series; MetricsAddr and the introspection address are listened on where not empty.
	Metrics     *prometheus.Registry
	MetricsAddr string
	Version     string
	Log         *slog.Logger
	// NoteReady is called at the first readiness and every rpc.ReadyEvery from then on; nil: never.
	NoteReady func() error
	// Sweeper removes from the kernel what sandboxes have left that are over; nil: nobody does.
	Sweeper Sweeper
	// RemoveFormerNAT removes what another agent has left in netfilter, once this one's own rules are in place; nil: nobody
	// does. It says what went, and what could not.
	RemoveFormerNAT func(context.Context) (removed, left []string, err error)
	Now             func() time.Time

	joinTimeout time.Duration                              // zero: the constant of that name
	sleep       func(context.Context, time.Duration) error // between two tries of a clean-up; nil: real time
	disk        store.Disk                                 // nil: the host's
}

// EC2 is what the agent calls; *ec2.Client has it.
type EC2 interface {
	enis.EC2
	aws.InstanceTypeDescriber
}

// Agent is the node agent.
type Agent struct {
	opt       Options
	store     *store.Store
	inventory *enis.Inventory
	provision *enis.Provisioner
	events    *kube.Events
	lookup    *podeni.Lookup
	assigned  *podeni.Assignments
	guard     *podeni.Guard // nil: ENABLE_POD_ENI is off, and policies count for nothing here
	trunk     *podeni.TrunkRequest
	releaser  *podeni.Releaser
	metrics   *metrics
	sandboxes keyed
	past      past

	links         signal.Signal // an ENI's link came, changed or went
	meddled       signal.Signal // somebody changed the host's routing
	branch        signal.Signal // a branch pod's VLAN link or its allocation came or went
	subnetsWanted signal.Signal // what is known of subnets is too old
	changed       signal.Signal // an allocation was made or ended, a pod waits, routing was put in place
	ready         atomic.Bool
	unexplained   atomic.Bool // something is attached that no source explains yet
	typ           atomic.Pointer[aws.InstanceType]
	health        signal.Signal // the host's routing failed, or does no more

	started time.Time

	formerNATGone bool // in this run; the routing's alone
	// back is when what did not go back is tried again. The pool's alone.
	back struct {
		next  time.Time
		pause backoff
	}
	takenBack map[store.Leaving]time.Time // what is leaving and EC2 took back, in this run, and when it said so last; the pool's alone
	unplaced  map[int]string              // why no ENI can be made, by network card, as it was said last; the pool's alone
	patience  map[int]*pool.Patience      // by network card; the pool's alone
	heldFor   time.Duration               // until it may give more back or ask for more, 0 for never; the pool's alone

	notAttached map[int]bool // the card's last ENI was not attached; the pool's alone

	mu           sync.Mutex
	asked        map[store.Key]time.Time // when an executable was last told of an allocation, in this run
	routed       map[string]hostnet.ENI  // ENIs whose routing is in place, for these addresses
	marked       bool                    // what pods send is marked by its ENI
	listed       bool                    // the inventory was read and routing was put in place at least once
	strict       bool                    // the local rule is behind the pods' rules
	orphans      map[netip.Addr]bool     // wired, and nobody here remembers for whom
	joining      map[string]*joining
	waiting      map[int]waiters      // by network card
	noPrefix     map[string]time.Time // until when no prefix is asked for, by subnet
	poolErr      error                // why the pool can't grow
	stepSince    time.Time            // since when a step of the pool is under way; zero: none is
	unmarked     string               // why not, as it was said last
	untranslated string               // likewise of source NAT
	kubeletAway  string               // why the kubelet's connections don't stay on the node, as it was said last
	branches     bool                 // something of a branch pod is left on this node
	trunkless    time.Time            // since when a trunk is wanted and not there
	full         map[string]scarcity  // subnets that had no free address
	subnets      subnets

	viewErr    error // why the ENIs can't be read
	routeErr   error // why the host's routing is not in place
	routeSince time.Time
}

// New opens the store and builds the agent. It does not reach out yet.
func New(o Options) (*Agent, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.joinTimeout == 0 {
		o.joinTimeout = joinTimeout
	}
	a := &Agent{
		opt: o, events: o.Kube.Events(), started: o.Now(),
		asked: map[store.Key]time.Time{}, routed: map[string]hostnet.ENI{}, joining: map[string]*joining{}, takenBack: map[store.Leaving]time.Time{}, noPrefix: map[string]time.Time{}, full: map[string]scarcity{},
		patience: map[int]*pool.Patience{}, notAttached: map[int]bool{}, waiting: map[int]waiters{}, unplaced: map[int]string{},
		inventory: enis.New(enis.Options{
			Metadata: o.Metadata, EC2: describer(o), Rules: placement.Rules{InstanceID: o.Identity.InstanceID, Untagged: o.Config.ManageUntagged, Cards: o.Config.MultiNIC},
			Links: o.Links, MTU: o.Config.ENIMTU, IPv6: o.Config.IPv6, Log: o.Log, Now: o.Now,
		}),
		provision: &enis.Provisioner{
			EC2: o.EC2, InstanceID: o.Identity.InstanceID, ClusterName: o.Config.ClusterName, Tags: o.Config.Tags(), Now: o.Now, Log: o.Log, Sleep: o.sleep,
		},
	}
	st, kept, err := store.Open(o.StatePath, store.Options{CoolDown: o.Config.CoolDown, Now: o.Now, Disk: o.disk, NotWritten: a.notWritten})
	if err != nil {
		return nil, err
	}
	a.store, a.provision.Made = st, st.Making
	a.typ.Store(&o.Type)
	a.unexplained.Store(true) // until the sources have been read
	if !a.limitsKnown() {
		a.sayUnknownType()
	}
	if kept != "" {
		o.Log.Error("the file of allocations can't be read and was kept aside; addresses that are wired are left alone until their pods end", "file", o.StatePath, "kept", kept)
		a.events.Node("AllocationsLost", "the node agent's file of allocations was damaged and is kept as %s; pods that run keep their addresses", kept)
	}
	if err := a.takeOver(); err != nil {
		return nil, err
	}
	if err := a.findOrphans(); err != nil {
		return nil, err
	}
	if n := len(a.orphans); n > 0 {
		o.Log.Warn("addresses are routed to pods that this agent does not know: they are not given to others while they are; drain the node to have those pods wired by this agent", "addresses", n)
		a.events.Node("PodsOfAnotherAgent", "%d addresses of this node are routed to pods that this node agent did not wire (or has forgotten): they are left alone until those pods end; drain the node before switching from another CNI plugin", n)
	}
	a.lookup = podeni.NewLookup(o.Kube, o.Kube.Changed.C)
	a.assigned = &podeni.Assignments{Pods: o.Kube, Ledgers: o.Kube, IPv6: o.Config.IPv6, Trunk: a.inventory.Trunk, PodsChanged: o.Kube.Changed.C, TrunkChanged: a.inventory.Changed.C}
	if o.Config.PodENI {
		a.guard = podeni.NewGuard(o.Kube, o.Kube.Changed.C, o.Now)
		a.assigned.Guard = a.guard
		a.assigned.Groups = &podeni.BranchGroups{EC2: o.EC2, Now: o.Now, Denied: a.groupsDenied}
	}
	a.trunk = &podeni.TrunkRequest{Node: o.Kube, InstanceType: o.Identity.InstanceType, Unknown: !a.limitsKnown(), Warn: func(reason, format string, args ...any) {
		a.metrics.failed(reason)
		a.events.Node(reason, format, args...)
	}}
	a.releaser = &podeni.Releaser{Pods: o.Kube, Memory: st, Ledger: o.Kube, VLANs: o.Links.VLANs, Now: o.Now}
	a.metrics = newMetrics(o.Metrics, a)
	return a, nil
}

// describer is who says what kind of ENI something is; nil where EC2 is never to be asked.
func describer(o Options) enis.Describer {
	if o.Config.IMDSOnly {
		return nil
	}
	return o.EC2
}

// Run serves until ctx ends, or until something that can't be mended failed.
func (a *Agent) Run(ctx context.Context) error {
	a.opt.Log.Info("node agent starts", "version", a.opt.Version, "node", a.opt.Config.NodeName, "instance", a.opt.Identity.InstanceID,
		"type", a.opt.Identity.InstanceType, "podENI", a.opt.Config.PodENI, "pod", a.opt.Config.PodName, "manifest", a.opt.Config.ManifestVersion, "allocations", len(a.store.View().Allocations))
	g, ctx := errgroup.WithContext(ctx)
	background := func(f func(context.Context)) {
		g.Go(func() error { f(ctx); return nil })
	}
	background(a.opt.Kube.Run)
	background(a.events.Run)
	background(func(ctx context.Context) { a.opt.Links.Watch(ctx, a.links.Fire, a.branch.Fire) })
	background(func(ctx context.Context) { a.opt.Routing.Watch(ctx, a.meddled.Fire) })
	background(a.runInventory)
	background(a.runPool)
	background(a.runSubnets)
	background(a.runTrunk)
	background(a.runPodIPs)
	background(a.runReleases)
	background(a.runReclaim)
	background(a.runLimits)
	background(a.runReady)
	background(a.runSweep)
	background(a.runForget)
	background(a.runSettle)
	g.Go(func() error { return a.serve(ctx) })
	g.Go(func() error { return a.serveMetrics(ctx) })
	g.Go(func() error { return a.serveIntrospection(ctx) })
	err := g.Wait()
	if errors.Is(err, context.Canceled) && context.Cause(ctx) != nil {
		return nil
	}
	return err
}
