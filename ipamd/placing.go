package ipamd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/placement"
	"github.com/branchline-cni/branchline/ipamd/pool"
)

const (
	// Subnets are described again before an ENI is made if they were not for so long: where several could have it their free
	// addresses matter, else only that a tag may have come. Tags have no event: without any ENI to make they are looked at
	// rarely, and soon where none can be made as they are.
	subnetsFresh  = time.Minute
	subnetsLate   = 10 * time.Minute
	subnetsEvery  = 30 * time.Minute
	subnetsNeeded = time.Minute
	// Pauses before a subnet without a free address is tried again.
	fullFirst = 5 * time.Second
	fullMost  = 2 * time.Minute
	// noPrefixFor is how long single addresses are asked for in a subnet that had no free prefix.
	noPrefixFor = 10 * time.Minute
)

// scarcity is a subnet that had not what was asked for.
type scarcity struct {
	until time.Time
	pause time.Duration
}

// subnets is what EC2 last said of the subnets of this node's VPC and zone.
type subnets struct {
	known []placement.Subnet
	tried time.Time // zero: never asked
}

// placed is where ENIs go, and what to say of it.
type placed struct {
	placement.Plan
	config, by string // the ENIConfig's name, and what named it
	noKind     bool   // ENIConfigs are not known to the API server
	cordoned   bool
}

// subnetsMatter says whether the tags and free addresses of subnets decide anything here.
func (a *Agent) subnetsMatter() bool {
	return !a.opt.Config.Frozen() && !a.opt.Config.IPv6 && (a.opt.Config.SubnetDiscovery || a.opt.Config.CustomNetworking)
}

// place decides where ENIs are made, and which serve.
func (a *Agent) place() placed {
	c := a.opt.Config
	var p placed
	in := placement.Input{
		Custom: c.CustomNetworking, Discovery: c.SubnetDiscovery, Cluster: c.ClusterName, Prefixes: a.usesPrefixes(),
		Full: map[string]bool{}, NoPrefix: map[string]bool{},
	}
	for _, e := range a.inventory.ENIs() {
		if e.Primary() {
			in.Primary = placement.Place{SubnetID: e.SubnetID, Groups: e.Groups}
		}
	}
	n, err := a.opt.Kube.Node()
	node := placement.Node{Labels: n.Labels, Annotations: n.Annotations, Cordoned: n.Unschedulable}
	p.cordoned = node.Cordoned && !c.ENIsOfCordoned
	if c.CustomNetworking && err == nil {
		p.config, p.by = placement.ConfigName(node, c.ENIConfigLabel, c.ENIConfigAnnotation)
		cfg, err := a.opt.Kube.ENIConfig(p.config)
		in.Known = !errors.Is(err, kube.ErrNotSynced)
		p.noKind = errors.Is(err, kube.ErrNoENIConfigs)
		if err == nil {
			in.Config = &placement.ENIConfig{Name: cfg.Name, Subnet: strings.TrimSpace(cfg.Spec.Subnet), Groups: cfg.Spec.SecurityGroups}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.subnetsMatter() {
		in.Subnets = a.subnets.known
	}
	now := a.opt.Now()
	for id, s := range a.full {
		in.Full[id] = now.Before(s.until)
	}
	for id, until := range a.noPrefix {
		in.NoPrefix[id] = now.Before(until)
	}
	p.Plan = placement.Decide(in)
	return p
}

// why says why no ENI can be made, and what to do about it; empty where one can.
func (p placed) why(c configured) (reason, text string) {
	switch p.Reason {
	case placement.NoConfig:
		what := fmt.Sprintf("custom networking (AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG) is on and there is no ENIConfig %s with a subnet (%s): create it, or name another on the node by the label %s", p.config, p.by, c.label)
		if p.noKind {
			what = "custom networking (AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG) is on and the API server does not know ENIConfigs: apply their definition (config/crd), then create ENIConfig " + p.config
		}
		return "ENIConfigMissing", what
	case placement.WrongSubnet:
		return "ENIConfigUnusable", fmt.Sprintf("the subnet of ENIConfig %s (%s) is not one of this node's VPC and zone (%s): correct spec.subnet, or name another ENIConfig on the node by the label %s", p.config, p.by, c.zone, c.label)
	case placement.Excluded:
		return "SubnetsExcluded", fmt.Sprintf("the tags of the subnets in this node's VPC and zone (%s) keep pods out of all of them: tag one with %s=1 (and %s<CLUSTER_NAME> if others have such a tag), or take %s=0 off the node's", c.zone, placement.TagRole, placement.TagClusterPrefix, placement.TagRole)
	case placement.Full:
		return "AddressesNotAvailable", fmt.Sprintf("%s: %s has no free address: free some, or give pods another subnet of this node's zone (%s) by the tag %s=1 (ENABLE_SUBNET_DISCOVERY) or an ENIConfig", aws.CodeSubnetFull, strings.Join(p.Among, ", "), c.zone, placement.TagRole)
	}
	return "", ""
}

// configured is what the texts need.
type configured struct{ label, zone string }

func (a *Agent) configured() configured {
	return configured{a.opt.Config.ENIConfigLabel, a.opt.Identity.AvailabilityZone}
}

// noteFull remembers that a subnet has no free address.
func (a *Agent) noteFull(subnetID string, err error) {
	a.mu.Lock()
	s := a.full[subnetID]
	s.pause = min(max(2*s.pause, fullFirst), fullMost)
	s.until = a.opt.Now().Add(jittered(s.pause))
	a.full[subnetID] = s
	a.mu.Unlock()
	a.metrics.failed("subnet")
	a.opt.Log.Warn("the subnet has no free address: others are used where there are any", "subnet", subnetID, "error", err)
}

// noteNoPrefix remembers that a subnet has no free prefix: no failure, as single addresses serve meanwhile.
func (a *Agent) noteNoPrefix(subnetID string, err error) {
	a.mu.Lock()
	a.noPrefix[subnetID] = a.opt.Now().Add(noPrefixFor)
	a.mu.Unlock()
	a.metrics.failed("prefix")
	a.opt.Log.Warn("the subnet has no free prefix: single addresses are used meanwhile", "subnet", subnetID, "error", err)
	a.events.Node("NoFreePrefix", "subnet %s has no free /28 for a prefix (ENABLE_PREFIX_DELEGATION): single addresses are used meanwhile; reserve a range for prefixes (a subnet CIDR reservation), or use a larger subnet", subnetID)
}

// scarce takes an answer that a subnet has not what was asked for as what it is: news for the next decision. Any other
// error is returned.
func (a *Agent) scarce(subnetID string, err error) error {
	switch {
	case enis.NoPrefix(err):
		a.noteNoPrefix(subnetID, err)
		return nil
	case enis.SubnetFull(err):
		a.noteFull(subnetID, err)
		return nil
	case err == nil:
		a.mu.Lock()
		delete(a.full, subnetID)
		a.mu.Unlock()
	}
	return err
}

// scarceUntil is how long until a subnet may be tried again; 0 where none is waited for.
func (a *Agent) scarceUntil() (next time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.opt.Now()
	soon := func(at time.Time) {
		if d := at.Sub(now) + time.Millisecond; at.After(now) {
			next = soonest(next, d)
		}
	}
	for _, s := range a.full {
		soon(s.until)
	}
	for _, until := range a.noPrefix {
		soon(until)
	}
	return next
}

// subnetsTried says whether EC2 was asked for the subnets at all, where they matter.
func (a *Agent) subnetsTried() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.subnetsMatter() || !a.subnets.tried.IsZero()
}

// sayPlace tells people why the pool can't grow.
func (a *Agent) sayPlace(c cardPool) {
	p, card := c.at, c.card
	reason, text := p.why(a.configured())
	if reason == "" || pool.Missing(c.Snapshot) == 0 {
		a.unplaced[card] = ""
		return
	}
	// A tag or a subnet may have come since.
	if p.Reason != placement.NoConfig && !a.subnetsAskedWithin(subnetsNeeded) {
		return
	}
	if text != a.unplaced[card] {
		a.unplaced[card] = text
		a.opt.Log.Warn("no ENI for pods can be made", "why", text)
	}
	a.events.Node(reason, "no more addresses for pods: %s", text)
}

// subnetsAsked says whether what is known of subnets is young enough to make an ENI by; if not, they are asked for.
func (a *Agent) subnetsAsked(p placed) bool {
	if len(p.Among) > 1 {
		return a.subnetsAskedWithin(subnetsFresh)
	}
	return a.subnetsAskedWithin(subnetsLate)
}

func (a *Agent) subnetsAskedWithin(limit time.Duration) bool {
	if !a.subnetsMatter() {
		return true
	}
	a.mu.Lock()
	ok := !a.subnets.tried.IsZero() && a.opt.Now().Sub(a.subnets.tried) < limit
	a.mu.Unlock()
	if !ok {
		a.subnetsWanted.Fire()
	}
	return ok
}

// runSubnets keeps what is known of the subnets.
func (a *Agent) runSubnets(ctx context.Context) {
	if !a.subnetsMatter() {
		return
	}
	failing := subnetsNeeded
	for ctx.Err() == nil {
		wanted, inventory := a.subnetsWanted.C(), a.inventory.Changed.C()
		primary := a.primary()
		if primary == nil {
			wait(ctx, 0, inventory)
			continue
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		known, err := a.provision.Subnets(call, primary.VPCID, a.opt.Identity.AvailabilityZone)
		cancel()
		if ctx.Err() != nil {
			return
		}
		pause := jittered(subnetsEvery)
		a.mu.Lock()
		a.subnets.tried = a.opt.Now()
		if err == nil {
			a.subnets.known = known
		}
		a.mu.Unlock()
		a.changed.Fire()
		if err != nil {
			a.saySubnets(err)
			pause = jittered(failing)
			failing = min(2*failing, subnetsEvery)
		} else if failing = subnetsNeeded; a.place().Reason != placement.None {
			pause = jittered(subnetsNeeded)
		}
		wait(ctx, pause, wanted)
	}
}

// saySubnets tells people that tags of subnets are not acted on.
func (a *Agent) saySubnets(err error) {
	a.metrics.failed("subnets")
	a.opt.Log.Warn("the subnets of this zone are not known: ENIs are made in the subnet that is known; it is tried again", "error", err)
	if aws.IsDenied(err) {
		a.events.Node("EC2Denied", "%v: add ec2:DescribeSubnets to the node role's policy (AmazonEKS_CNI_Policy has it), or set ENABLE_SUBNET_DISCOVERY=false; until then tags of subnets are not acted on", err)
	}
}

func (a *Agent) primary() *enis.ENI {
	all := a.inventory.ENIs()
	if i := slices.IndexFunc(all, enis.ENI.Primary); i >= 0 && all[i].SubnetID != "" {
		return &all[i]
	}
	return nil
}
