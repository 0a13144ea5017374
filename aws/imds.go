package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
)

// IMDS reads the instance metadata service, version 2 only.
type IMDS struct {
	client *imds.Client
	ipv6   bool
}

// NewIMDS makes a reader of the instance metadata service of the instance that the program runs on.
func NewIMDS(o Options) *IMDS {
	transport := o.Transport
	if transport == nil {
		transport = &http.Transport{MaxIdleConnsPerHost: 2}
	}
	return &IMDS{ipv6: o.IPv6, client: imds.New(imds.Options{
		Endpoint:       o.IMDSEndpoint,
		HTTPClient:     &http.Client{Timeout: o.timeout(), Transport: transport},
		EnableFallback: awssdk.FalseTernary, // never version 1, whatever a proxy in between answers
	})}
}

// Identity is who this instance is.
type Identity struct {
	InstanceID       string
	InstanceType     string
	Region           string
	AvailabilityZone string
	AccountID        string
	PrivateIP        netip.Addr
	PrimaryMAC       net.HardwareAddr
}

// Interface is one attached ENI as IMDS shows it. Some time passes between an attachment and its showing here.
type Interface struct {
	MAC              net.HardwareAddr
	ENIID            string
	DeviceNumber     int
	NetworkCard      int
	SubnetID         string
	VPCID            string
	SubnetCIDR       netip.Prefix // not valid where the interface has no IPv4 address at all (EFA only)
	VPCCIDRs         []netip.Prefix
	Addresses        []netip.Addr   // IPv4, the primary one first
	Prefixes         []netip.Prefix // IPv4, /28 each
	SecurityGroupIDs []string

	// What follows is read with Options.IPv6 only.
	SubnetIPv6CIDRs, VPCIPv6CIDRs []netip.Prefix
	IPv6Addresses                 []netip.Addr
	IPv6Prefixes                  []netip.Prefix // /80 each
}

// Identity reads the instance identity document and the primary interface's MAC.
func (m *IMDS) Identity(ctx context.Context) (Identity, error) {
	out, err := m.client.GetDynamicData(ctx, &imds.GetDynamicDataInput{Path: "instance-identity/document"})
	if err != nil {
		return Identity{}, fmt.Errorf("read the instance identity document from IMDS: %w", err)
	}
	raw, err := readSmall(out.Content)
	if err != nil {
		return Identity{}, fmt.Errorf("read the instance identity document from IMDS: %w", err)
	}
	id, err := parseIdentity(raw)
	if err != nil {
		return Identity{}, err
	}
	mac, err := m.get(ctx, "mac")
	if err != nil {
		return Identity{}, err
	}
	if id.PrimaryMAC, err = net.ParseMAC(mac); err != nil {
		return Identity{}, fmt.Errorf("IMDS key mac: %w", err)
	}
	return id, nil
}

func parseIdentity(document []byte) (Identity, error) {
	var doc struct {
		InstanceID       string `json:"instanceId"`
		InstanceType     string `json:"instanceType"`
		Region           string `json:"region"`
		AvailabilityZone string `json:"availabilityZone"`
		AccountID        string `json:"accountId"`
		PrivateIP        string `json:"privateIp"`
	}
	if err := json.Unmarshal(document, &doc); err != nil {
		return Identity{}, fmt.Errorf("instance identity document: %w", err)
	}
	if doc.InstanceID == "" || doc.Region == "" {
		return Identity{}, errors.New("instance identity document: instanceId or region is missing")
	}
	id := Identity{
		InstanceID: doc.InstanceID, InstanceType: doc.InstanceType, Region: doc.Region,
		AvailabilityZone: doc.AvailabilityZone, AccountID: doc.AccountID,
	}
	if doc.PrivateIP != "" { // an IPv6-only instance has none
		var err error
		if id.PrivateIP, err = netip.ParseAddr(doc.PrivateIP); err != nil {
			return Identity{}, fmt.Errorf("instance identity document: privateIp: %w", err)
		}
	}
	return id, nil
}

// Interfaces lists the ENIs that IMDS shows, by device number within network card. An interface that goes away while it
// is read is left out; one that stays but is incomplete makes the whole list an error: nobody may free an address
// because half a view didn't show it.
func (m *IMDS) Interfaces(ctx context.Context) ([]Interface, error) {
	macs, err := m.macs(ctx)
	if err != nil {
		return nil, err
	}
	var all []Interface
	for _, mac := range macs {
		i, err := m.Interface(ctx, mac)
		if IsNotFound(err) {
			now, lerr := m.macs(ctx)
			if lerr != nil {
				return nil, lerr
			}
			if !slices.Contains(now, mac) {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b Interface) int {
		if a.NetworkCard != b.NetworkCard {
			return a.NetworkCard - b.NetworkCard
		}
		return a.DeviceNumber - b.DeviceNumber
	})
	return all, nil
}

func (m *IMDS) macs(ctx context.Context) ([]string, error) {
	list, err := m.get(ctx, "network/interfaces/macs/")
	if err != nil {
		return nil, err
	}
	macs := strings.Fields(list)
	for i := range macs {
		macs[i] = strings.TrimSuffix(macs[i], "/")
	}
	return macs, nil
}

// Interface reads one ENI by its MAC in the form 06:20:0d:3c:5f:bc. IsNotFound(err) when IMDS doesn't show it (yet).
func (m *IMDS) Interface(ctx context.Context, mac string) (Interface, error) {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return Interface{}, fmt.Errorf("IMDS interface: %w", err)
	}
	fields := make(map[string]string)
	keys := []string{"device-number", "interface-id", "subnet-id", "subnet-ipv4-cidr-block", "vpc-ipv4-cidr-blocks",
		"security-group-ids", "local-ipv4s", "ipv4-prefix", "network-card", "vpc-id"}
	if m.ipv6 {
		keys = append(keys, keysIPv6...)
	}
	for _, key := range keys {
		v, err := m.get(ctx, path.Join("network/interfaces/macs", mac, key))
		switch {
		case err == nil:
			fields[key] = v
		case IsNotFound(err) && mayLack(key):
		default:
			return Interface{}, err
		}
	}
	i, err := parseInterface(fields)
	if err != nil {
		return Interface{}, fmt.Errorf("IMDS interface %s: %w", mac, err)
	}
	i.MAC = hw
	return i, nil
}

func parseInterface(fields map[string]string) (Interface, error) {
	i := Interface{
		ENIID: fields["interface-id"], SubnetID: fields["subnet-id"], VPCID: fields["vpc-id"],
		SecurityGroupIDs: strings.Fields(fields["security-group-ids"]),
	}
	if i.ENIID == "" {
		return i, errors.New("interface-id is empty")
	}
	var err error
	if i.DeviceNumber, err = strconv.Atoi(fields["device-number"]); err != nil {
		return i, fmt.Errorf("device-number: %w", err)
	}
	if card := fields["network-card"]; card != "" {
		if i.NetworkCard, err = strconv.Atoi(card); err != nil {
			return i, fmt.Errorf("network-card: %w", err)
		}
	}
	if err := i.parseIPv6(fields); err != nil {
		return i, err
	}
	if fields["subnet-ipv4-cidr-block"] == "" && fields["local-ipv4s"] == "" {
		return i, nil // an EFA-only interface carries no IP, one of an IPv6-only subnet no IPv4
	}
	if i.SubnetCIDR, err = netip.ParsePrefix(fields["subnet-ipv4-cidr-block"]); err != nil {
		return i, fmt.Errorf("subnet-ipv4-cidr-block: %w", err)
	}
	for s := range strings.FieldsSeq(fields["vpc-ipv4-cidr-blocks"]) {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return i, fmt.Errorf("vpc-ipv4-cidr-blocks: %w", err)
		}
		i.VPCCIDRs = append(i.VPCCIDRs, p)
	}
	for s := range strings.FieldsSeq(fields["local-ipv4s"]) {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return i, fmt.Errorf("local-ipv4s: %w", err)
		}
		i.Addresses = append(i.Addresses, a)
	}
	for s := range strings.FieldsSeq(fields["ipv4-prefix"]) {
		p, err := netip.ParsePrefix(s)
		if err != nil || !p.Addr().Is4() || p.Bits() < 24 || p != p.Masked() {
			return i, fmt.Errorf("ipv4-prefix: %q is not a small IPv4 prefix", s)
		}
		i.Prefixes = append(i.Prefixes, p)
	}
	return i, nil
}

// LocalHostname reads the instance's private DNS name, what EKS calls its node by default.
func (m *IMDS) LocalHostname(ctx context.Context) (string, error) {
	return m.get(ctx, "local-hostname")
}

func (m *IMDS) get(ctx context.Context, key string) (string, error) {
	out, err := m.client.GetMetadata(ctx, &imds.GetMetadataInput{Path: key})
	if err != nil {
		return "", fmt.Errorf("read %s from IMDS: %w", key, err)
	}
	b, err := readSmall(out.Content)
	if err != nil {
		return "", fmt.Errorf("read %s from IMDS: %w", key, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// readSmall keeps whatever answers at the metadata address from filling the memory.
func readSmall(r io.ReadCloser) ([]byte, error) {
	defer r.Close()
	const limit = 1 << 20
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && len(b) > limit {
		err = fmt.Errorf("answer is longer than %d bytes", limit)
	}
	return b, err
}
