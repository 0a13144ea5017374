package imds

import (
	"net"
	"net/netip"
	"time"
)

// View is what the service knows about its instance, read anew for each request.
type View interface {
	// Instance is false when the instance doesn't exist (any more).
	Instance() (Instance, bool)
	// Credentials are the role's temporary keys, false when the instance has no such role.
	Credentials(role string) (Credentials, bool)
}

// Instance is the metadata of one instance at one moment.
type Instance struct {
	ID, Type, ImageID           string
	AccountID                   string
	Region, AvailabilityZone    string
	LocalHostname               string
	Role, ProfileARN, ProfileID string // empty without an instance profile
	ReservationID, Architecture string
	LaunchTime                  time.Time
	HopLimit                    int // of the answer to the token request
	Interfaces                  []Interface
	UserData                    []byte
	Tags                        map[string]string // shown only when the instance allows it; empty otherwise
}

// Interface is an attached ENI.
type Interface struct {
	MAC              net.HardwareAddr
	ENIID            string
	DeviceNumber     int
	NetworkCard      int
	ShowNetworkCard  bool // AWS has the key only on types with more than one card
	SubnetID         string
	SubnetCIDR       netip.Prefix
	VPCID            string
	VPCCIDRs         []netip.Prefix
	Addresses        []netip.Addr
	Prefixes         []netip.Prefix // IPv4
	SecurityGroups   []string       // names
	SecurityGroupIDs []string
	LocalHostname    string
	OwnerID          string
	// Of IPv6; not valid or empty where there is none.
	SubnetIPv6CIDR, VPCIPv6CIDR netip.Prefix
	IPv6Addresses               []netip.Addr
	IPv6Prefixes                []netip.Prefix
}

// Credentials are temporary keys of a role.
type Credentials struct {
	AccessKeyID     string
	SecretAccessKey string
	Token           string
	LastUpdated     time.Time
	Expiration      time.Time
}
