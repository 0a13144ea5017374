package branch

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/types"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/controller/cloud"
	"github.com/branchline-cni/branchline/policy"
)

// annotation is the value of vpc.amazonaws.com/pod-eni: an array of one element in the spelling that node agents read,
// ours and others.
func annotation(s *ledgerv1.Slot) (string, error) {
	b, err := json.Marshal([]struct {
		ENIID         string `json:"eniId"`
		MAC           string `json:"ifAddress"`
		PrivateIP     string `json:"privateIp"`
		IPv6          string `json:"ipv6Addr"`
		VLANID        int32  `json:"vlanId"`
		SubnetCIDR    string `json:"subnetCidr"`
		SubnetV6CIDR  string `json:"subnetV6Cidr"`
		AssociationID string `json:"associationID"`
	}{{s.ENIID, s.MAC, s.PrivateIP, s.IPv6Address, s.VLANID, s.SubnetCIDR, s.SubnetIPv6CIDR, s.AssociationID}})
	if err != nil {
		return "", fmt.Errorf("encode the annotation for pod %s/%s: %w", s.PodNamespace, s.PodName, err)
	}
	return string(b), nil
}

// ipv6Subnet is the IPv6 CIDR that goes with the ENI's IPv6 address.
func ipv6Subnet(eni *cloud.ENI, in ledgerv1.Subnet) string {
	if eni.IPv6 == "" {
		return ""
	}
	return in.IPv6CIDR
}

// addresses are the slot's, for people.
func addresses(s *ledgerv1.Slot) string {
	if s.IPv6Address == "" {
		return s.PrivateIP
	}
	return s.PrivateIP + " and " + s.IPv6Address
}

// annotate returns the merge patch that sets the annotation on this very pod: with another UID under the same name the
// API server answers with a conflict.
func annotate(uid types.UID, value string) ([]byte, error) {
	return json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": uid, "annotations": map[string]string{policy.Resource: value},
	}})
}

// named returns the branch ENI that a pod's annotation names, or nothing where it names none.
func named(value string) (eniID string) {
	var all []struct {
		ENIID string `json:"eniId"`
	}
	if err := json.Unmarshal([]byte(value), &all); err != nil || len(all) == 0 {
		return ""
	}
	return all[0].ENIID
}
