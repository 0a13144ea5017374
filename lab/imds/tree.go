package imds

import (
	"encoding/json"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"
)

// tree maps the keys below /latest to their values. Directories follow from the keys.
type tree map[string]string

func metadata(i Instance) tree {
	t := tree{
		"meta-data/instance-id":                 i.ID,
		"meta-data/instance-type":               i.Type,
		"meta-data/ami-id":                      i.ImageID,
		"meta-data/ami-launch-index":            "0",
		"meta-data/reservation-id":              i.ReservationID,
		"meta-data/local-hostname":              i.LocalHostname,
		"meta-data/hostname":                    i.LocalHostname,
		"meta-data/placement/availability-zone": i.AvailabilityZone,
		"meta-data/placement/region":            i.Region,
		"meta-data/services/domain":             "amazonaws.com",
		"meta-data/services/partition":          "aws",
	}
	var groups []string
	for _, n := range i.Interfaces {
		interfaceKeys(t, n)
		if n.DeviceNumber == 0 && n.NetworkCard == 0 {
			t["meta-data/mac"] = n.MAC.String()
			t["meta-data/local-ipv4"] = first(n)
			groups = n.SecurityGroups
		}
	}
	t["meta-data/security-groups"] = strings.Join(groups, "\n")
	if i.Role != "" {
		t["meta-data/iam/info"] = document(map[string]string{
			"Code": "Success", "LastUpdated": stamp(i.LaunchTime),
			"InstanceProfileArn": i.ProfileARN, "InstanceProfileId": i.ProfileID,
		})
		// The value is made when it is asked for (it needs the View).
		t["meta-data/iam/security-credentials/"+i.Role] = ""
	}
	for k, v := range i.Tags {
		t["meta-data/tags/instance/"+k] = v
	}
	t["dynamic/instance-identity/document"] = identity(i)
	if len(i.UserData) > 0 {
		t["user-data"] = string(i.UserData)
	}
	return t
}

func interfaceKeys(t tree, n Interface) {
	dir := "meta-data/network/interfaces/macs/" + n.MAC.String() + "/"
	t[dir+"device-number"] = strconv.Itoa(n.DeviceNumber)
	t[dir+"interface-id"] = n.ENIID
	t[dir+"mac"] = n.MAC.String()
	t[dir+"owner-id"] = n.OwnerID
	t[dir+"local-hostname"] = n.LocalHostname
	t[dir+"subnet-id"] = n.SubnetID
	t[dir+"subnet-ipv4-cidr-block"] = n.SubnetCIDR.String()
	t[dir+"vpc-id"] = n.VPCID
	if len(n.VPCCIDRs) > 0 {
		t[dir+"vpc-ipv4-cidr-block"] = n.VPCCIDRs[0].String()
	}
	t[dir+"vpc-ipv4-cidr-blocks"] = lines(n.VPCCIDRs)
	t[dir+"local-ipv4s"] = lines(n.Addresses)
	if len(n.Prefixes) > 0 { // AWS has the key only where there are some
		t[dir+"ipv4-prefix"] = lines(n.Prefixes)
	}
	// AWS has each of these keys only where there is something to show.
	if len(n.IPv6Addresses) > 0 {
		t[dir+"ipv6s"] = lines(n.IPv6Addresses)
	}
	if len(n.IPv6Prefixes) > 0 {
		t[dir+"ipv6-prefix"] = lines(n.IPv6Prefixes)
	}
	if n.SubnetIPv6CIDR.IsValid() {
		t[dir+"subnet-ipv6-cidr-blocks"] = n.SubnetIPv6CIDR.String()
	}
	if n.VPCIPv6CIDR.IsValid() {
		t[dir+"vpc-ipv6-cidr-blocks"] = n.VPCIPv6CIDR.String()
	}
	t[dir+"security-groups"] = strings.Join(n.SecurityGroups, "\n")
	t[dir+"security-group-ids"] = strings.Join(n.SecurityGroupIDs, "\n")
	if n.ShowNetworkCard {
		t[dir+"network-card"] = strconv.Itoa(n.NetworkCard)
	}
}

func identity(i Instance) string {
	var ip string
	for _, n := range i.Interfaces {
		if n.DeviceNumber == 0 && n.NetworkCard == 0 {
			ip = first(n)
		}
	}
	return document(struct {
		AccountID        string  `json:"accountId"`
		Architecture     string  `json:"architecture"`
		AvailabilityZone string  `json:"availabilityZone"`
		BillingProducts  *string `json:"billingProducts"`
		ImageID          string  `json:"imageId"`
		InstanceID       string  `json:"instanceId"`
		InstanceType     string  `json:"instanceType"`
		KernelID         *string `json:"kernelId"`
		PendingTime      string  `json:"pendingTime"`
		PrivateIP        string  `json:"privateIp"`
		RamdiskID        *string `json:"ramdiskId"`
		Region           string  `json:"region"`
		Version          string  `json:"version"`
	}{
		AccountID: i.AccountID, Architecture: i.Architecture, AvailabilityZone: i.AvailabilityZone, ImageID: i.ImageID,
		InstanceID: i.ID, InstanceType: i.Type, PendingTime: stamp(i.LaunchTime), PrivateIP: ip, Region: i.Region,
		Version: "2017-09-30",
	})
}

func credentialsDocument(c Credentials) string {
	return document(struct {
		Code            string
		LastUpdated     string
		Type            string
		AccessKeyID     string `json:"AccessKeyId"`
		SecretAccessKey string
		Token           string
		Expiration      string
	}{"Success", stamp(c.LastUpdated), "AWS-HMAC", c.AccessKeyID, c.SecretAccessKey, c.Token, stamp(c.Expiration)})
}

// list gives what a directory holds, one entry per line, directories with a slash at the end; false when there is no
// such directory.
func (t tree) list(dir string) (string, bool) {
	seen := make(map[string]bool)
	for k := range t {
		rest, ok := strings.CutPrefix(k, dir)
		if !ok || rest == "" {
			continue
		}
		name, _, deeper := strings.Cut(rest, "/")
		if deeper {
			name += "/"
		}
		seen[name] = true
	}
	return strings.Join(sorted(seen), "\n"), len(seen) > 0
}

// lookup answers a path below /latest/ as AWS does: a key's value, or a directory's list with or without the slash.
func (t tree) lookup(p string) (string, bool) {
	clean := strings.TrimPrefix(path.Clean("/"+p), "/")
	if v, ok := t[clean]; ok {
		return v, true
	}
	if clean == "" {
		return t.list("")
	}
	return t.list(clean + "/")
}

func first(n Interface) string {
	if len(n.Addresses) == 0 {
		return ""
	}
	return n.Addresses[0].String()
}

func lines[T fmt.Stringer](s []T) string {
	out := make([]string, len(s))
	for i := range s {
		out[i] = s[i].String()
	}
	return strings.Join(out, "\n")
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

func document(v any) string {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic("imds: a document of strings cannot fail to encode: " + err.Error())
	}
	return string(b)
}
