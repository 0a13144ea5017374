package ipamd

import (
	"slices"
	"testing"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/rpc"
)

// TestP31PodsKeepTheirModeAndTheHostGetsItsSettingsBack: the mode is switched under a running strict pod, one in standard
// mode joins it, and with the strict one's end what it needed on the host is given back.
func TestP31PodsKeepTheirModeAndTheHostGetsItsSettingsBack(t *testing.T) {
	w := newWorld(t, branchPod("green", "u1", 7), branchPod("blue", "u2", 8), pod("plain", "u3"))
	w.env["ENABLE_POD_ENI"] = "true"
	w.setLedger(slot(7, "u1", "green", ledgerv1.Bound), slot(8, "u2", "blue", ledgerv1.Bound))
	s, kill := w.start()
	eventually(t, "ready", s.a.ready.Load)
	w.cloud.attachTrunk()
	strict := func(r *rpc.AddReply) bool {
		return r.GetBranch().GetEnforcingMode() == rpc.EnforcingMode_ENFORCING_MODE_STRICT
	}
	demuxOff := func(h *rpc.HostSettings) bool { return h != nil && h.TcpEarlyDemux != nil && !h.GetTcpEarlyDemux() }
	if r := mustAdd(t, s, addRequest("green", "u1", "s1")); !strict(r) || !demuxOff(r.GetHost()) {
		t.Errorf("strict pod: %v", r)
	}
	if r := mustAdd(t, s, addRequest("plain", "u3", "s3")); r.GetHost() != nil {
		t.Errorf("a regular pod changes the host: %v", r)
	}
	kill()

	w.env["POD_SECURITY_GROUP_ENFORCING_MODE"] = "standard"
	s, _ = w.start()
	eventually(t, "ready", s.a.ready.Load)
	if r := mustAdd(t, s, addRequest("blue", "u2", "s2")); strict(r) || r.GetHost() != nil {
		t.Errorf("standard pod: %v", r)
	}
	if r := mustAdd(t, s, addRequest("green", "u1", "s1")); !strict(r) || !demuxOff(r.GetHost()) {
		t.Errorf("the strict pod was given another mode: %v", r)
	}
	eventually(t, "the routing of strict mode", func() bool { return slices.Equal(w.routing.localAt(), []int{hostnet.LocalPriorityStrict}) })
	del, err := s.Del(t.Context(), delRequest("s1"))
	if err != nil || !del.GetHost().GetTcpEarlyDemux() {
		t.Errorf("the last strict pod's end: %v, %v", del, err)
	}
	eventually(t, "the local rule is back", func() bool { return slices.Equal(w.routing.localAt(), []int{hostnet.LocalPriority}) })
}

func TestAnExplicitEarlyDemuxIsNobodysToChange(t *testing.T) {
	w := newWorld(t, branchPod("green", "u1", 7))
	w.env["ENABLE_POD_ENI"], w.env["DISABLE_TCP_EARLY_DEMUX"] = "true", "false"
	w.setLedger(slot(7, "u1", "green", ledgerv1.Bound))
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	w.cloud.attachTrunk()
	if r := mustAdd(t, s, addRequest("green", "u1", "s1")); r.GetHost() != nil {
		t.Errorf("%v", r)
	}
	if del, err := s.Del(t.Context(), delRequest("s1")); err != nil || del.GetHost() != nil {
		t.Errorf("%v, %v", del, err)
	}
}
