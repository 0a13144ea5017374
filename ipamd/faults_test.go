package ipamd

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/branchline-cni/branchline/ipamd/enis"
	labec2 "github.com/branchline-cni/branchline/lab/ec2"
	labimds "github.com/branchline-cni/branchline/lab/imds"
)

// onLab runs a test on a stage with the lab's EC2 and IMDS, in its own time.
func onLab(t *testing.T, env map[string]string, f func(t *testing.T, s *stage, l *labCloud)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, dir, newLab)
		for k, v := range env {
			s.env[k] = v
		}
		defer s.over()
		for _, p := range []string{"a", "b", "c", "d", "e", "f"} {
			s.create(p)
		}
		s.settle()
		f(t, s, s.cloud.(*labCloud))
	})
}

// must runs pods, one after the other, and wants them to be wired.
func (s *stage) must(pods ...string) {
	s.t.Helper()
	for _, p := range pods {
		if err := s.try(p); err != nil {
			s.t.Fatalf("pod %s: %v", p, err)
		}
	}
}

// try runs a pod, and returns why it was not wired.
func (s *stage) try(pod string) error {
	s.t.Helper()
	b := s.add(pod)
	s.done()
	if !b.live {
		return b.err
	}
	return nil
}

// end has a pod torn down.
func (s *stage) end(pod string) {
	s.t.Helper()
	b := s.living(pod)
	s.del(b, true)
	s.done()
	if b.err != nil {
		s.t.Fatalf("DEL of %s: %v", pod, b.err)
	}
}

// same wants the answer to a repeated ADD to be what it was.
func (s *stage) same(pod string) {
	s.t.Helper()
	b := s.living(pod)
	s.again(b)
	s.done()
	if b.err != nil {
		s.t.Fatalf("ADD of %s, again: %v", pod, b.err)
	}
}

// said returns the messages of events.
func (s *stage) said(reason string) (out []string) {
	s.t.Helper()
	var l corev1.EventList
	if err := s.cluster.List(context.Background(), &l); err != nil {
		s.t.Fatalf("%v", err)
	}
	for _, e := range l.Items {
		if e.Reason == reason {
			out = append(out, e.Message)
		}
	}
	return out
}

func names(text string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return false
		}
	}
	return true
}

func (s *stage) wantSaid(reason string, parts ...string) {
	s.t.Helper()
	all := s.said(reason)
	for _, m := range all {
		if names(m, parts) {
			return
		}
	}
	s.t.Fatalf("no event %s names %q: %q", reason, parts, all)
}

// refuseAll has EC2 answer every call that changes something with a code.
func refuseAll(code string) func(*labCloud) {
	return func(l *labCloud) {
		for _, api := range []string{"AssignPrivateIpAddresses", "CreateNetworkInterface", "AttachNetworkInterface"} {
			l.region.Faults().Add(labec2.Fault{API: api, Role: "node", Times: -1, Code: code})
		}
	}
}

// TestWhatWorksGoesOnWhateverEC2Answers: pods keep their addresses, those that are free are handed out, pods end; who gets none
// is told what EC2 said and what to do, and so is the node; and all goes on once EC2 does.
func TestWhatWorksGoesOnWhateverEC2Answers(t *testing.T) {
	withoutAWS(t)
	answer := func(m mood) func(*labCloud) { return func(l *labCloud) { l.answers.ec2.Store(int32(m)) } }
	for _, tc := range []struct {
		name   string
		broken func(*labCloud)
		event  string
		parts  []string // of the event
		pod    []string // of the pod's error
	}{
		{"throttled", refuseAll("RequestLimitExceeded"), "EC2Throttled", []string{"higher request rate"}, []string{"RequestLimitExceeded", "higher request rate"}},
		{"denied", refuseAll("UnauthorizedOperation"), "EC2Denied", []string{"ec2:AssignPrivateIpAddresses", "AmazonEKS_CNI_Policy"}, []string{"UnauthorizedOperation", "AmazonEKS_CNI_Policy"}},
		{"credentials", refuseAll("AuthFailure"), "EC2CredentialsRefused", []string{"instance profile", "clock"}, []string{"AuthFailure"}},
		{"not found", refuseAll("InvalidGroup.NotFound"), "AddressesNotAvailable", []string{"ENIConfig", "InvalidGroup.NotFound"}, []string{"InvalidGroup.NotFound"}},
		{"attachment limit", refuseAll("AttachmentLimitExceeded"), "AddressesNotAvailable", []string{"MAX_ENI"}, []string{"AttachmentLimitExceeded"}},
		{"interface limit", refuseAll("NetworkInterfaceLimitExceeded"), "AddressesNotAvailable", []string{"quota"}, []string{"quota"}},
		{"address limit", refuseAll("PrivateIpAddressLimitExceeded"), "AddressesNotAvailable", []string{"IMDS"}, []string{"PrivateIpAddressLimitExceeded"}},
		{"subnet full", refuseAll("InsufficientFreeAddressesInSubnet"), "AddressesNotAvailable", []string{"InsufficientFreeAddressesInSubnet", "free some"}, []string{"InsufficientFreeAddressesInSubnet"}},
		{"its own failure", refuseAll("InternalError"), "AddressesNotAvailable", []string{"InternalError"}, []string{"InternalError"}},
		{"no answer", answer(silent), "EC2NotAnswering", []string{"VPC endpoint"}, []string{"EC2 has not answered", "VPC endpoint"}},
		{"nobody listens", answer(away), "EC2NotAnswering", []string{"AWS_EC2_ENDPOINT"}, []string{"EC2 does not answer"}},
		{"garbage", answer(garbled), "EC2NotUnderstood", []string{"AWS_EC2_ENDPOINT"}, []string{"not EC2"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			onLab(t, map[string]string{"WARM_IP_TARGET": "2"}, func(t *testing.T, s *stage, l *labCloud) {
				s.must("a", "b")
				s.pass(5 * time.Second)
				tc.broken(l)
				s.same("a")
				s.must("c", "d") // the free ones
				err := s.try("e")
				if err == nil {
					t.Fatal("a pod has an address that nobody can have given")
				}
				if !names(err.Error(), tc.pod) {
					t.Errorf("the pod's error does not name %q: %v", tc.pod, err)
				}
				s.end("b")
				s.pass(10 * time.Minute)
				s.wantSaid(tc.event, tc.parts...)
				s.kill() // the next agent finds EC2 as it is
				s.pass(time.Minute)
				s.same("a")
				s.must("e") // the one that b had
				l.answers.ec2.Store(int32(usual))
				l.region.Faults().Clear()
				s.pass(3 * time.Minute)
				s.must("b", "f")
			})
		})
	}
}

// TestWhatWorksGoesOnWhateverIMDSAnswers: EC2's own answers are enough for pods, and IMDS's absence is said once it lasts.
func TestWhatWorksGoesOnWhateverIMDSAnswers(t *testing.T) {
	withoutAWS(t)
	fault := func(f labimds.Fault) func(*labCloud) {
		f.Times, f.Path = -1, "/latest/meta-data/network"
		return func(l *labCloud) { l.metadata.Add(f) }
	}
	answer := func(m mood) func(*labCloud) { return func(l *labCloud) { l.answers.imds.Store(int32(m)) } }
	for name, broken := range map[string]func(*labCloud){
		"throttled":      fault(labimds.Fault{Status: http.StatusTooManyRequests}),
		"denied":         fault(labimds.Fault{Status: http.StatusUnauthorized}),
		"switched off":   fault(labimds.Fault{Status: http.StatusForbidden}),
		"not found":      fault(labimds.Fault{Status: http.StatusNotFound}),
		"its failure":    fault(labimds.Fault{Status: http.StatusInternalServerError}),
		"odd values":     fault(labimds.Fault{Body: "eni-nothing"}),
		"no answer":      answer(silent),
		"nobody listens": answer(away),
		"garbage":        answer(garbled),
	} {
		t.Run(name, func(t *testing.T) {
			onLab(t, map[string]string{"WARM_IP_TARGET": "2"}, func(t *testing.T, s *stage, l *labCloud) {
				s.must("a", "b")
				s.pass(5 * time.Second)
				broken(l)
				s.pass(2 * enis.MetadataLate)
				s.same("a")
				s.must("c", "d", "e") // one of them by an address that IMDS has never shown
				s.end("b")
				s.pass(10 * time.Minute)
				s.same("e")
				s.wantSaid("MetadataNotAvailable", "169.254.169.254", "not affected")
				l.answers.imds.Store(int32(usual))
				l.metadata.Clear()
				s.pass(3 * time.Minute)
				s.must("b", "f")
			})
		})
	}
}
