package podeni

import (
	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/ipamd/podeni/annotation"
)

// addressIn is the slot's address of the annotation's family; empty where the ledger's version did not note it.
func addressIn(s ledgerv1.Slot, b annotation.BranchENI) string {
	if b.Address.Is4() {
		return s.PrivateIP
	}
	return s.IPv6Address
}

func differs(s ledgerv1.Slot, b annotation.BranchENI) bool {
	noted := addressIn(s, b)
	return noted != "" && noted != b.Address.String()
}
