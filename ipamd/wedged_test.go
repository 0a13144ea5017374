package ipamd

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
)

// TestP49 is "one wedged allocation stops all others": branch pods whose annotation never comes, and requests for one
// sandbox that are stuck behind each other, hold up nobody else, and end by their deadlines.
func TestP49APodThatWaitsHoldsNoOtherUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, branchPod("stuck-1", "b1", 0), branchPod("stuck-2", "b2", 0), branchPod("green", "g1", 7), pod("red", "r1"))
		w.virtual()
		w.env["ENABLE_POD_ENI"] = "true"
		w.setLedger(slot(7, "g1", "green", "Bound"))
		s, _ := w.start()
		eventually(t, "ready", s.a.ready.Load)
		w.cloud.attachTrunk()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		var stuck sync.WaitGroup
		for i := range 6 { // three times each: the second and third wait for the first
			uid := fmt.Sprintf("%d", 1+i%2)
			stuck.Go(func() {
				_, err := s.Add(ctx, addRequest("stuck-"+uid, "b"+uid, "s-stuck-"+uid))
				if err == nil {
					t.Error("a pod without an annotation was wired")
				}
			})
		}
		eventually(t, "both are looked at", func() bool {
			s.a.sandboxes.mu.Lock()
			defer s.a.sandboxes.mu.Unlock()
			l1, l2 := s.a.sandboxes.m["s-stuck-1"], s.a.sandboxes.m["s-stuck-2"]
			return l1 != nil && l2 != nil && l1.users == 3 && l2.users == 3
		})
		mustAdd(t, s, addRequest("red", "r1", "s-red"))
		mustAdd(t, s, addRequest("green", "g1", "s-green"))
		if _, err := s.Del(t.Context(), delRequest("s-red")); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the others took %s", took)
		}
		if ctx.Err() != nil {
			t.Error("the others were answered only after the stuck ones had ended")
		}
		stuck.Wait()
		if ctx.Err() != nil {
			t.Error("the stuck ones were told why only after their deadline")
		}
		// Nothing of them is left: the next try waits for the annotation again, not for a lock.
		again, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := s.Add(again, addRequest("stuck-1", "b1", "s-stuck-1"))
		wantCode(t, err, codes.DeadlineExceeded, "default/stuck-1")
	})
}
