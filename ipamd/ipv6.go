package ipamd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/pool"
)

// errNoIPv6Prefix: the primary ENI's subnet has no prefix to give.
var errNoIPv6Prefix = errors.New("the primary ENI's subnet has no free IPv6 prefix: associate an IPv6 CIDR with it, free a /80 there, or reserve a range for prefixes (a subnet CIDR reservation)")

// rolePolicy is the AWS managed policy that has what this agent calls.
func (a *Agent) rolePolicy() string {
	if a.opt.Config.IPv6 {
		return "AmazonEKS_CNI_IPv6_Policy"
	}
	return "AmazonEKS_CNI_Policy"
}

// ipv6Step has EC2 give the primary ENI its prefix; did is false when there is nothing to do.
func (a *Agent) ipv6Step(ctx context.Context) (did bool, err error) {
	if !a.limitsKnown() {
		return false, nil // EC2 is being asked whether the type can have prefixes
	}
	if !a.usesPrefixes() {
		a.sayOnce("IPv6NeedsNitro", fmt.Sprintf("instance type %s can't have prefixes, and pods of IPv6 clusters get their addresses of one: use a type on the Nitro System", a.opt.Identity.InstanceType))
		return false, nil
	}
	steps := pool.Plan(a.snapshot())
	if len(steps) == 0 {
		return false, nil
	}
	defer a.metrics.doing("increaseIPPool")()
	eniID := steps[0].ENIID
	got, err := a.provision.IPv6Prefix(ctx, eniID)
	if len(got) > 0 {
		a.opt.Log.Info("the primary ENI has an IPv6 prefix", "eni", eniID, "prefixes", got)
		a.inventory.Learn(eniID, got)
		a.changed.Fire()
		if err == nil && len(pool.Plan(a.snapshot())) > 0 {
			err = errOurs(fmt.Sprintf("EC2 says that %v is of %s, and IMDS shows it on another ENI, too: no address of it is given before IMDS shows it on one alone", got, eniID))
		}
	}
	if enis.NoPrefix(err) || enis.SubnetFull(err) {
		err = fmt.Errorf("%w: %w", errNoIPv6Prefix, err)
	}
	return true, err
}

// sayOnce tells people why no address can be had, as long as the reason is the same. It is the pool's alone.
func (a *Agent) sayOnce(reason, text string) {
	if a.unplaced[0] == text {
		return
	}
	a.unplaced[0] = text
	a.metrics.failed("pool")
	a.opt.Log.Warn("pods can have no addresses", "why", text)
	a.events.Node(reason, "no addresses for pods: %s", text)
}

// exhaustedIPv6 says why waiting for an address is useless; nil where it is not.
func (a *Agent) exhaustedIPv6(s pool.Snapshot) error {
	a.mu.Lock()
	poolErr := a.poolErr
	a.mu.Unlock()
	switch {
	case s.Frozen:
		return errors.New("the primary ENI has no IPv6 prefix, and this node agent asks EC2 for none (DISABLE_NETWORK_RESOURCE_PROVISIONING or ENABLE_IMDS_ONLY_MODE): assign one to it")
	case !a.limitsKnown():
		return nil
	case !s.Prefixes:
		return fmt.Errorf("instance type %s can't have prefixes, and pods of IPv6 clusters get their addresses of one", a.opt.Identity.InstanceType)
	case errors.Is(poolErr, errNoIPv6Prefix), aws.IsDenied(poolErr):
		return a.explained(poolErr)
	}
	return nil
}

// remedyIPv6 is the remedy where what helps IPv4 nodes (warm targets, other subnets, ENIConfigs) does not; ok is false where the
// usual one does.
func remedyIPv6(err error) (reason, text string, ok bool) {
	switch code := aws.Code(err); {
	case errors.Is(err, errNoIPv6Prefix): // whatever the code
		return "AddressesNotAvailable", errNoIPv6Prefix.Error(), true
	case aws.IsThrottled(err):
		return "EC2Throttled", "EC2 throttles this account's calls: ask AWS for a higher request rate if this stays", true
	case code == aws.CodeAddressLimitExceeded:
		return "AddressesNotAvailable", "the primary ENI has as many IPv6 addresses as its instance type can have, and no prefix: take one off it that nobody needs (ec2:UnassignIpv6Addresses)", true
	case aws.IsNotFound(err):
		return "AddressesNotAvailable", "EC2 does not know this instance's primary ENI: of a new instance it does within moments; else look at AWS_EC2_ENDPOINT, which may be another region's", true
	case code == aws.CodeInvalidParameterValue:
		return "AddressesNotAvailable", "EC2 refuses: see that the primary ENI's subnet has an IPv6 CIDR", true
	}
	return "", "", false
}

// givable are the addresses of a unit in the order in which pods get them, those among them that are taken. Of an IPv6
// prefix only the next ones are listed: behind the last that is held or rests, so that an address is not seen again before
// long, up to the second multiple of 256 from there, so that the list stays the same for many pods.
func givable(u netip.Prefix, held, cooling map[netip.Addr]bool) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		if u.Addr().BitLen()-u.Bits() <= 16 {
			for addr := u.Addr(); u.Contains(addr); addr = addr.Next() {
				if !yield(addr) {
					return
				}
			}
			return
		}
		last := u.Addr() // which is nobody's: it may be the subnet's routers' (RFC 4291, 2.6.1)
		for _, taken := range []map[netip.Addr]bool{held, cooling} {
			for addr := range maps.Keys(taken) {
				if u.Contains(addr) && last.Less(addr) {
					last = addr
				}
			}
		}
		rounds := 0
		for addr := last.Next(); ; addr = addr.Next() {
			if !u.Contains(addr) {
				addr = u.Addr().Next()
			}
			if addr.As16()[15] == 0 {
				rounds++
			}
			if rounds == 2 || !yield(addr) {
				return
			}
		}
	}
}
