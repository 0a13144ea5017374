package ipamd

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/ipamd/podeni/annotation"
	"github.com/branchline-cni/branchline/rpc"
)

// TestBadInputIsRefusedWithItsReasonAndLeavesNothing: what the API server and the executable may say that can't be served.
func TestBadInputIsRefusedWithItsReasonAndLeavesNothing(t *testing.T) {
	const good = `[{"eniId":"eni-b7","ifAddress":"06:20:0d:3c:5f:07","privateIp":"192.168.47.7","vlanId":7,"subnetCidr":"192.168.32.0/19"}]`
	with := func(old, now string) string { return strings.Replace(good, old, now, 1) }
	for _, tc := range []struct {
		name       string
		annotation string // "-": none
		noTrunk    bool
		ledger     []ledgerv1.Slot
		change     func(r *rpc.AddRequest)
		code       codes.Code
		parts      []string
		quiet      bool // no event: there is no pod that it could be about
	}{
		{name: "annotation is not JSON", annotation: "eni-b7", code: codes.FailedPrecondition, parts: []string{annotation.Key, "JSON"}},
		{name: "annotation is an empty array", annotation: "[]", code: codes.FailedPrecondition, parts: []string{annotation.Key, "empty"}},
		{name: "VLAN id 0", annotation: with(`"vlanId":7`, `"vlanId":0`), code: codes.FailedPrecondition, parts: []string{"vlanId"}},
		{name: "VLAN id 4095", annotation: with(`"vlanId":7`, `"vlanId":4095`), code: codes.FailedPrecondition, parts: []string{"vlanId", "4095"}},
		{name: "bad MAC", annotation: with("06:20:0d:3c:5f:07", "06:20"), code: codes.FailedPrecondition, parts: []string{"ifAddress", "06:20"}},
		{name: "no IPv4 address", annotation: with(`"privateIp":"192.168.47.7"`, `"ipv6Addr":"fd00::7"`), code: codes.FailedPrecondition, parts: []string{"privateIp", "IPv4"}},
		{name: "bad address", annotation: with("192.168.47.7", "192.168.47.700"), code: codes.FailedPrecondition, parts: []string{"privateIp", "192.168.47.700"}},
		{name: "bad CIDR", annotation: with("192.168.32.0/19", "192.168.32.0"), code: codes.FailedPrecondition, parts: []string{"subnetCidr"}},
		{name: "address outside the CIDR", annotation: with("192.168.47.7", "10.0.0.7"), code: codes.FailedPrecondition, parts: []string{"privateIp", "10.0.0.7", "192.168.32.0/19"}},
		{name: "no annotation", annotation: "-", code: codes.DeadlineExceeded, parts: []string{annotation.Key, "controller"}},
		{name: "the trunk never comes", annotation: good, noTrunk: true, code: codes.Unavailable, parts: []string{"trunk", "not attached"}},
		{name: "the ledger has the VLAN for another pod", annotation: good, ledger: []ledgerv1.Slot{slot(7, "other", "red", ledgerv1.Bound)},
			code: codes.DeadlineExceeded, parts: []string{"VLAN 7", `"other"`}},
		{name: "the ledger does not know the VLAN", annotation: good, ledger: []ledgerv1.Slot{slot(8, "other", "red", ledgerv1.Bound)},
			code: codes.DeadlineExceeded, parts: []string{"VLAN 7"}},
		{name: "pod unknown", annotation: good, change: func(r *rpc.AddRequest) { r.Pod.Name = "nobody" },
			code: codes.NotFound, parts: []string{"default/nobody"}, quiet: true},
		{name: "another pod's UID", annotation: good, change: func(r *rpc.AddRequest) { r.Pod.Uid = "u0" },
			code: codes.NotFound, parts: []string{"u0", "u1"}, quiet: true},
		{name: "no sandbox", annotation: good, change: func(r *rpc.AddRequest) { r.Attachment = nil },
			code: codes.InvalidArgument, parts: []string{"container_id"}, quiet: true},
		{name: "no pod", annotation: good, change: func(r *rpc.AddRequest) { r.Pod = nil },
			code: codes.InvalidArgument, parts: []string{"namespace"}, quiet: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := branchPod("green", "u1", 0)
				if tc.annotation != "-" {
					p.Annotations = map[string]string{annotation.Key: tc.annotation}
				}
				w := newWorld(t, p)
				w.virtual()
				w.env["ENABLE_POD_ENI"] = "true"
				if tc.ledger != nil {
					w.setLedger(tc.ledger...)
				}
				s, _ := w.start()
				s.a.lookup.Grace = 50 * time.Millisecond
				eventually(t, "ready", s.a.ready.Load)
				if !tc.noTrunk {
					w.cloud.attachTrunk()
					eventually(t, "the trunk", func() bool { _, ok := s.a.inventory.Trunk(); return ok })
				}
				r := addRequest("green", "u1", "s1")
				if tc.change != nil {
					tc.change(r)
				}
				const patience = 2 * time.Second
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				_, err := s.Add(ctx, r)
				if ctx.Err() != nil {
					t.Error("the answer came after the deadline")
				}
				parts := tc.parts
				if !tc.quiet {
					parts = append(parts, "default/green")
				}
				wantCode(t, err, tc.code, parts...)
				synctest.Wait()
				if tc.quiet {
					if got := w.events("PodNotWired"); len(got) > 0 {
						t.Errorf("events: %v", got)
					}
				} else {
					eventually(t, "the pod's event", func() bool {
						got := w.events("PodNotWired")
						return len(got) == 1 && got[0].InvolvedObject.Name == "green" && strings.Contains(got[0].Message, tc.parts[0])
					})
				}
				if v := s.a.store.View(); len(v.Allocations)+len(v.Cooling) > 0 {
					t.Errorf("left behind: %+v", v)
				}
				s.a.sandboxes.mu.Lock()
				defer s.a.sandboxes.mu.Unlock()
				if len(s.a.sandboxes.m) > 0 {
					t.Errorf("locks left behind: %v", s.a.sandboxes.m)
				}
			})
		})
	}
}
