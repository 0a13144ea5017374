package ipamd

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aws/smithy-go"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// remedy is the event's reason and what people can do about an error of EC2's. policy is the one that node roles have here.
func remedy(err error, policy string) (reason, text string) {
	var garbage *smithy.DeserializationError
	switch code := aws.Code(err); {
	case aws.IsDenied(err):
		return "EC2Denied", "the node's role lacks a permission (" + policy + " has it)"
	case aws.IsThrottled(err):
		return "EC2Throttled", "EC2 throttles this account's calls: ask AWS for a higher request rate if this stays, or keep more addresses ahead (WARM_IP_TARGET, WARM_ENI_TARGET, prefixes)"
	case code == "AuthFailure" || code == "ExpiredToken" || code == "RequestExpired" || code == "InvalidClientTokenId":
		return "EC2CredentialsRefused", "EC2 does not accept the node's credentials: look at the instance profile's role, and at the node's clock"
	case code == aws.CodeAttachmentLimitExceeded:
		return "AddressesNotAvailable", "the instance has more network interfaces than it should: detach what nobody needs, or set MAX_ENI lower"
	case code == aws.CodeAddressLimitExceeded:
		return "AddressesNotAvailable", "EC2 counts more addresses on the ENI than IMDS shows; they are used as soon as IMDS does"
	case code == "NetworkInterfaceLimitExceeded":
		return "AddressesNotAvailable", "the account's quota of network interfaces in this region is used up: raise it, or delete those that nobody uses"
	case code == "InsufficientCidrBlocks" || code == aws.CodeSubnetFull:
		return "AddressesNotAvailable", "free addresses in the subnet, or give pods another (tag kubernetes.io/role/cni=1, or an ENIConfig)"
	case aws.IsNotFound(err):
		return "AddressesNotAvailable", "EC2 does not know what is named: correct the ENIConfig's subnet or security groups if it is theirs"
	case code != "":
		return "AddressesNotAvailable", "EC2 refuses: see its code"
	case errors.As(err, &garbage) || errors.Is(err, enis.ErrNotUnderstood):
		return "EC2NotUnderstood", "what answers is not EC2: look at AWS_EC2_ENDPOINT, and at proxies on the way"
	}
	return "EC2NotAnswering", "EC2 does not answer: " + wayToEC2
}

// remedy is the one that helps in this kind of cluster.
func (a *Agent) remedy(err error) (reason, text string) {
	if a.opt.Config.IPv6 {
		if reason, text, ok := remedyIPv6(err); ok {
			return reason, text
		}
	}
	return remedy(err, a.rolePolicy())
}

const wayToEC2 = "look at the node's way to it (route, NAT gateway or VPC endpoint, security groups, DNS, AWS_EC2_ENDPOINT)"

// answersWithin is how long EC2 may take before somebody who waits is told that it does.
const answersWithin = 5 * time.Second

// late says why no address came in time, though one might have.
func (a *Agent) late() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if took := a.opt.Now().Sub(a.stepSince); !a.stepSince.IsZero() && took > answersWithin {
		return fmt.Errorf("EC2 has not answered for %s: %s", took.Round(time.Second), wayToEC2)
	}
	if len(a.full) > 0 {
		return fmt.Errorf("%s: %s has no free address: free some, or give pods another subnet (tag kubernetes.io/role/cni=1, or an ENIConfig)", aws.CodeSubnetFull, strings.Join(slices.Sorted(maps.Keys(a.full)), ", "))
	}
	return errors.New("none came in time")
}

// stepping notes since when EC2 is being asked for something.
func (a *Agent) stepping(since time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stepSince = since
}

// ofEC2 says whether the error is EC2's: not the disk's, and not this agent's own.
func ofEC2(err error) bool {
	var ours errOurs
	return !errors.Is(err, store.ErrNotWritten) && !errors.As(err, &ours)
}

// sayEC2 tells people why there are no more addresses.
func (a *Agent) sayEC2(err error) {
	if ofEC2(err) { // anything else has been said, or passes
		reason, text := a.remedy(err)
		a.events.Node(reason, "no more addresses for pods: %s (%v)", text, err)
	}
}

// explained adds what people can do.
func (a *Agent) explained(err error) error {
	if !ofEC2(err) || errors.Is(err, errNoIPv6Prefix) { // which says it itself
		return err
	}
	_, text := a.remedy(err)
	return fmt.Errorf("%s: %w", text, err)
}

// errOurs is an error that is no answer of EC2's, and passes.
type errOurs string

func (e errOurs) Error() string { return string(e) }

// sayMetadataAfter is how long IMDS may fail before people are told: it fails for moments.
const sayMetadataAfter = 30 * time.Second

const wayToMetadata = "see that it is on and reachable from the host's network (http://169.254.169.254, IMDSv2)"

// metadataWatch remembers since when IMDS fails. The zero value: it does not.
type metadataWatch struct{ since time.Time }

func (m *metadataWatch) saw(a *Agent, err error) {
	now := a.opt.Now()
	switch {
	case !errors.Is(err, enis.ErrMetadata):
		m.since = time.Time{}
	case m.since.IsZero():
		m.since = now
	case now.Sub(m.since) >= sayMetadataAfter:
		a.events.Node("MetadataNotAvailable", "the instance metadata service does not tell this node's ENIs: pods that run and addresses that are known are not affected, ENIs that come are not seen; "+wayToMetadata+": %v", err)
	}
}

// noteView remembers why the ENIs can't be read; nil: they were.
func (a *Agent) noteView(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.viewErr = err
}

// unlisted says what keeps this node's ENIs from being known.
func (a *Agent) unlisted() error {
	const what = "the ENIs of this node are not known yet"
	a.mu.Lock()
	err := a.viewErr
	a.mu.Unlock()
	switch {
	case errors.Is(err, enis.ErrMetadata):
		return fmt.Errorf("%s: %s: %w", what, wayToMetadata, err)
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	}
	return errors.New(what)
}
