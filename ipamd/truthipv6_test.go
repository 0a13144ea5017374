package ipamd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"pgregory.net/rapid"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/test/truth"
)

// ipv6Node is the environment of an IPv6 cluster's node.
var ipv6Node = map[string]string{"ENABLE_IPv6": "true", "ENABLE_IPv4": "false", "ENABLE_PREFIX_DELEGATION": "true"}

// newPlainIPv6 is the plain VPC with its IPv6 half.
func newPlainIPv6(s *stage) provider {
	p := newPlain(s).(*plain)
	p.ipv6 = true
	return p
}

// TestP5P50TheAgentNeverLiesAboutAddressesOfAnIPv6Node plays the same on a node of an IPv6 cluster, which lives on one prefix of its
// primary ENI: it is asked for while IMDS and EC2's descriptions are late and answers are lost, somebody takes it away or adds
// others, and other ENIs with prefixes come and go. No address is given that is in no prefix which the VPC has on the primary ENI,
// no second prefix is asked for where EC2 shows the first, and EC2 is not asked without pauses.
func TestP5P50TheAgentNeverLiesAboutAddressesOfAnIPv6Node(t *testing.T) {
	c := &scene{
		t: t, cloud: newPlainIPv6, most: 30, targets: []map[string]string{ipv6Node},
		apis: []string{"AssignIpv6Addresses", "AssignIpv6Addresses", "DescribeNetworkInterfaces", "IMDS"},
		codes: []string{
			"RequestLimitExceeded", "UnauthorizedOperation", "InternalError", "InsufficientFreeAddressesInSubnet", "InsufficientCidrBlocks",
			"PrivateIpAddressLimitExceeded", aws.CodeInterfaceNotFound,
		},
		before: troubled,
	}
	rapid.Check(t, func(rt *rapid.T) {
		if rapid.IntRange(0, 2).Draw(rt, "of three cases") == 0 { // one is played: each takes longer than others do
			c.play(rt)
		}
	})
}

// troubled is a new node that finds EC2 and IMDS in some disorder.
func troubled(a *acts) {
	for range rapid.IntRange(0, 3).Draw(a.rt, "troubles") {
		a.act(rapid.SampledFrom([]string{"flaw", "flaw", "late IMDS", "late EC2", "bring", "assign", "API"}).Draw(a.rt, "trouble"))
	}
}

// anIPv6Prefix is one that an ENI has, or that is not valid.
func (a *acts) anIPv6Prefix(e truth.ENI) (p netip.Prefix) {
	if len(e.IPv6Prefixes) > 0 {
		p = rapid.SampledFrom(e.IPv6Prefixes).Draw(a.rt, "prefix")
	}
	return p
}

// leftIPv6 is what is not as it should be on an instance without pods.
func (a *acts) leftIPv6() (wrong []string) {
	var primary truth.ENI
	for _, e := range a.cloud.enis() {
		if e.Card == 0 && e.Device == 0 {
			primary = e
		}
	}
	if len(primary.IPv6Prefixes) == 0 {
		wrong = append(wrong, "the primary ENI has no prefix")
	}
	can := map[netip.Prefix]int{}
	for _, c := range a.running().a.candidates() {
		at := slices.IndexFunc(primary.IPv6Prefixes, func(p netip.Prefix) bool { return p.Contains(c.Address) })
		if c.ENIID != primary.ID || c.Card != 0 || c.Device != 0 || at < 0 {
			wrong = append(wrong, fmt.Sprintf("%v can be given, and the primary ENI has %v", c, primary.IPv6Prefixes))
			continue
		}
		can[primary.IPv6Prefixes[at]]++
	}
	for _, p := range primary.IPv6Prefixes {
		if can[p] < 256 {
			wrong = append(wrong, fmt.Sprintf("%d addresses of %s can be given", can[p], p))
		}
	}
	return wrong
}

// prefixCalls judges what one agent asks of EC2 for the sake of its prefix.
type prefixCalls struct {
	seen  string // what the last description said that no assignment came after
	times []time.Time
}

// What a description said of the ENI's prefixes.
const (
	saidNone   = "there is none"
	saidDenied = "the role may not ask"
	saidSome   = "there is one"
	saidFailed = "it failed"
)

// callsAMinute is more than an agent has reason for: it doubles its pauses from half a second on.
const callsAMinute = 40

func (c *prefixCalls) call() error {
	now := time.Now()
	c.times = slices.DeleteFunc(c.times, func(t time.Time) bool { return now.Sub(t) > time.Minute })
	if c.times = append(c.times, now); len(c.times) > callsAMinute {
		return fmt.Errorf("EC2 was asked %d times within a minute for the sake of one prefix", len(c.times))
	}
	return nil
}

func (c *prefixCalls) described(out *ec2.DescribeNetworkInterfacesOutput, err error) {
	switch {
	case aws.IsDenied(err):
		c.seen = saidDenied
	case err != nil:
		c.seen = saidFailed
	case len(out.NetworkInterfaces) == 1 && len(out.NetworkInterfaces[0].Ipv6Prefixes) > 0:
		c.seen = saidSome
	default:
		c.seen = saidNone
	}
}

// assigns returns what is wrong with an assignment at this moment.
func (c *prefixCalls) assigns() (err error) {
	if c.seen != saidNone && c.seen != saidDenied {
		err = fmt.Errorf("a prefix was asked for, and what EC2 said before was: %q", c.seen)
	}
	c.seen = ""
	return err
}

func (r *plainReach) noted(err error) {
	r.p.s.mu.Lock()
	defer r.p.s.mu.Unlock()
	r.p.s.note(err)
}

func (r *plainReach) AssignIpv6Addresses(ctx context.Context, in *ec2.AssignIpv6AddressesInput, _ ...func(*ec2.Options)) (*ec2.AssignIpv6AddressesOutput, error) {
	if !r.p.ipv6 {
		return nil, errors.New("this VPC has no IPv6")
	}
	r.noted(errors.Join(r.prefix.call(), r.prefix.assigns()))
	out := &ec2.AssignIpv6AddressesOutput{}
	err := r.call(ctx, "AssignIpv6Addresses", func() error {
		if awssdk.ToInt32(in.Ipv6PrefixCount) != 1 || len(in.Ipv6Addresses)+len(in.Ipv6Prefixes) > 0 || in.Ipv6AddressCount != nil {
			return truth.Refused{Code: "InvalidParameterCombination", Message: "asks for something else than one prefix"}
		}
		got, err := r.p.vpc.AssignIPv6(*in.NetworkInterfaceId, 0, 1)
		out.AssignedIpv6Prefixes = nil
		for _, p := range got {
			out.AssignedIpv6Prefixes = append(out.AssignedIpv6Prefixes, p.String())
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
