package ipamd

import (
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// onPlain runs a test on a stage with EC2 and IMDS as they should be, in its own time.
func onPlain(t *testing.T, env map[string]string, f func(t *testing.T, s *stage)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, dir, newPlain)
		for k, v := range env {
			s.env[k] = v
		}
		defer s.over()
		for _, p := range []string{"a", "b", "c"} {
			s.create(p)
		}
		s.settle()
		f(t, s)
	})
}

// TestAnAPIServerThatIsAwayForAnHour: pods that the node knows get new sandboxes and end; an unknown one, and one that needs a
// branch ENI, are told what is missing; and all resumes at its return.
func TestAnAPIServerThatIsAwayForAnHour(t *testing.T) {
	t.Run("regular pods", func(t *testing.T) {
		onPlain(t, nil, func(t *testing.T, s *stage) {
			s.must("a", "b")
			s.setAPI(false)
			for range 6 {
				s.pass(10 * time.Minute)
				s.same("a")
				s.end("b")
				s.must("b")
			}
			s.must("c")
			s.mu.Lock()
			s.uids["new"] = "u-new"
			s.mu.Unlock()
			if err := s.try("new"); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "default/new") || !strings.Contains(err.Error(), "API server") {
				t.Errorf("a pod that nobody has heard of: %v", err)
			}
			s.setAPI(true)
			if err := s.api.Create(t.Context(), pod("new", "u-new")); err != nil {
				t.Fatal(err)
			}
			s.must("new")
			s.same("a")
		})
	})
	t.Run("a restart of the agent meanwhile", func(t *testing.T) {
		onPlain(t, nil, func(t *testing.T, s *stage) {
			s.must("a", "b")
			s.setAPI(false)
			s.kill()
			s.settle()
			s.pass(time.Hour)
			s.same("a") // it is remembered
			s.end("b")
			if err := s.try("c"); status.Code(err) != codes.Unavailable {
				t.Errorf("a pod that this run does not know: %v", err)
			}
			s.setAPI(true)
			s.pass(time.Minute)
			s.must("b", "c")
		})
	})
	t.Run("branch pods", func(t *testing.T) {
		onPlain(t, map[string]string{"ENABLE_POD_ENI": "true"}, func(t *testing.T, s *stage) {
			if err := s.api.Create(t.Context(), branchPod("green", "u-green", 0)); err != nil {
				t.Fatal(err)
			}
			s.uids["green"] = "u-green"
			s.must("a")
			s.setAPI(false)
			s.pass(time.Hour)
			s.same("a")
			if err := s.try("green"); err == nil || !strings.Contains(err.Error(), "vpc.amazonaws.com/pod-eni") {
				t.Errorf("a branch pod without its assignment: %v", err)
			}
			if err := s.try("b"); err == nil || !strings.Contains(err.Error(), "security groups") {
				t.Errorf("a new pod of which the policies are not known: %v", err)
			}
			s.setAPI(true)
			s.pass(time.Minute)
			s.must("b", "c")
		})
	})
}

// TestADiskThatTakesNothing: pods that run go on and end, also across a restart; new ones are told why not, and get their addresses
// once it does again.
func TestADiskThatTakesNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		says string
	}{
		"full": {syscall.ENOSPC, "free space"}, "over quota": {syscall.EDQUOT, "free space"},
		"read-only": {syscall.EROFS, "mount it writable"}, "broken": {syscall.EIO, "kernel's log"},
	} {
		t.Run(name, func(t *testing.T) {
			onPlain(t, map[string]string{"WARM_IP_TARGET": "2"}, func(t *testing.T, s *stage) {
				s.must("a", "b")
				s.pass(time.Minute)
				s.setDisk(tc.err)
				s.same("a")
				b := s.living("b")
				s.del(b, true) // the executable has torn it down, and the runtime hears of no failure
				s.done()
				if status.Code(b.err) != codes.Unavailable {
					t.Errorf("DEL: %v", b.err)
				}
				err := s.try("c")
				if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), tc.err.Error()) || !strings.Contains(err.Error(), "can't be written") {
					t.Errorf("ADD: %v", err)
				}
				s.wantSaid("AllocationsNotWritten", "/", tc.says, tc.err.Error())
				s.pass(time.Hour)
				s.kill()
				s.settle()
				s.same("a")
				if s.try("c") == nil {
					t.Error("an address was given that nobody has written down")
				}
				s.setDisk(nil)
				s.must("c")
				s.create("b") // its pod is over: what it held is free again
				s.pass(5 * time.Minute)
				if n := len(s.running().a.store.View().Allocations); n != 2 {
					t.Errorf("%d allocations for two pods", n)
				}
				s.must("b")
			})
		})
	}
}

// TestADamagedStoreIsKeptAsideAndRebuilt from what is wired: its pods keep their addresses, which nobody else gets.
func TestADamagedStoreIsKeptAsideAndRebuilt(t *testing.T) {
	onPlain(t, map[string]string{"WARM_IP_TARGET": "1"}, func(t *testing.T, s *stage) {
		s.must("a", "b")
		s.pass(time.Minute)
		s.kill()
		s.loseMemory()
		damaged := string(s.files["/state"])
		s.settle()
		s.pass(time.Second)
		s.must("c") // what the stage holds of a and b is compared with it
		kept := ""
		s.mu.Lock()
		for name, b := range s.files {
			if strings.HasPrefix(name, "/state.corrupt-") && string(b) == damaged {
				kept = name
			}
		}
		s.mu.Unlock()
		if kept == "" {
			t.Error("the damaged file is not kept")
		}
		s.wantSaid("AllocationsLost", kept)
		s.del(s.living("a"), true)
		s.done()
		s.pass(2 * time.Minute)
		s.must("a")
	})
}
