package ipamd

import (
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/branchline-cni/branchline/ipamd/enis"
	labec2 "github.com/branchline-cni/branchline/lab/ec2"
	labimds "github.com/branchline-cni/branchline/lab/imds"
)

// onLabIPv6 runs a test on a stage of an IPv6 cluster with the lab's EC2 and IMDS, in its own time. No agent runs yet.
func onLabIPv6(t *testing.T, f func(t *testing.T, s *stage, l *labCloud)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, dir, newLabIPv6)
		for k, v := range ipv6Node {
			s.env[k] = v
		}
		defer s.over()
		for _, p := range []string{"a", "b", "c", "d", "e"} {
			s.create(p)
		}
		f(t, s, s.cloud.(*labCloud))
	})
}

// primary is the instance's first ENI.
func (l *labCloud) primary() string {
	for id, e := range l.enis() {
		if e.Device == 0 {
			return id
		}
	}
	return ""
}

// mended has EC2 and IMDS answer as they should.
func (l *labCloud) mended() {
	l.answers.ec2.Store(int32(usual))
	l.answers.imds.Store(int32(usual))
	l.answers.only.Store(nil)
	l.region.Faults().Clear()
	l.metadata.Clear()
}

// wantBackedOff wants what the agent asks for in twenty minutes to be about one try a minute, of which the SDK makes up to so many
// attempts; and it does not give up.
func wantBackedOff(t *testing.T, s *stage, l *labCloud, what string, attempts int) {
	t.Helper()
	const minutes = 20
	before := l.attempts(what)
	s.passBy(minutes*time.Minute, time.Minute)
	if n := l.attempts(what) - before; n > attempts*minutes*4/3 || n < minutes/4 {
		t.Errorf("%s was asked for %d times in %d minutes", what, n, minutes)
	}
}

// ec2Fault is one way in which EC2 does not do what is asked of one API.
type ec2Fault struct {
	name  string
	code  string // of a refusal; else
	mood  mood   // how it answers
	event string
	parts []string // of the event
	pod   []string // of the pod's error
}

// ofEachCall are the faults that any API can have.
var ofEachCall = []ec2Fault{
	{name: "throttled", code: "RequestLimitExceeded", event: "EC2Throttled", parts: []string{"higher request rate"}, pod: []string{"RequestLimitExceeded", "higher request rate"}},
	{name: "credentials", code: "AuthFailure", event: "EC2CredentialsRefused", parts: []string{"instance profile", "clock"}, pod: []string{"AuthFailure", "instance profile"}},
	{name: "not found", code: "InvalidNetworkInterfaceID.NotFound", event: "AddressesNotAvailable", parts: []string{"primary ENI", "AWS_EC2_ENDPOINT"}, pod: []string{"InvalidNetworkInterfaceID.NotFound", "AWS_EC2_ENDPOINT"}},
	{name: "its own failure", code: "InternalError", event: "AddressesNotAvailable", parts: []string{"InternalError"}, pod: []string{"InternalError"}},
	{name: "no answer", mood: silent, event: "EC2NotAnswering", parts: []string{"VPC endpoint"}, pod: []string{"VPC endpoint"}},
	{name: "nobody listens", mood: away, event: "EC2NotAnswering", parts: []string{"AWS_EC2_ENDPOINT"}, pod: []string{"EC2 does not answer"}},
	{name: "garbage", mood: garbled, event: "EC2NotUnderstood", parts: []string{"AWS_EC2_ENDPOINT"}, pod: []string{"not EC2"}},
}

// ofAssignments are those that only the assignment of a prefix has.
var ofAssignments = []ec2Fault{
	{name: "denied", code: "UnauthorizedOperation", event: "EC2Denied", parts: []string{"ec2:AssignIpv6Addresses", "AmazonEKS_CNI_IPv6_Policy"}, pod: []string{"UnauthorizedOperation", "AmazonEKS_CNI_IPv6_Policy"}},
	{name: "no free prefix", code: "InsufficientCidrBlocks", event: "AddressesNotAvailable", parts: []string{"/80", "subnet CIDR reservation"}, pod: []string{"InsufficientCidrBlocks", "/80"}},
	{name: "subnet full", code: "InsufficientFreeAddressesInSubnet", event: "AddressesNotAvailable", parts: []string{"/80", "InsufficientFreeAddressesInSubnet"}, pod: []string{"InsufficientFreeAddressesInSubnet", "/80"}},
	{name: "address limit", code: "PrivateIpAddressLimitExceeded", event: "AddressesNotAvailable", parts: []string{"UnassignIpv6Addresses"}, pod: []string{"PrivateIpAddressLimitExceeded", "UnassignIpv6Addresses"}},
	{name: "a subnet without IPv6", code: "InvalidParameterValue", event: "AddressesNotAvailable", parts: []string{"IPv6 CIDR"}, pod: []string{"InvalidParameterValue", "IPv6 CIDR"}},
}

// nonsense is what every answer has in the place of a prefix.
var nonsense = ec2Fault{name: "nonsense", mood: odd, event: "EC2NotUnderstood", parts: []string{"2001:db8::zz/80"}, pod: []string{"2001:db8::zz/80", "not EC2"}}

func (f ec2Fault) hits(api string) func(*labCloud) {
	return func(l *labCloud) {
		if f.code != "" {
			l.region.Faults().Add(labec2.Fault{API: api, Role: "node", Times: -1, Code: f.code})
			return
		}
		if f.mood == odd { // and IMDS is late with what was given
			l.keyAnswers("ipv6-prefix", http.StatusNotFound, "")
		} else {
			l.answers.only.Store(&api)
		}
		l.answers.ec2.Store(int32(f.mood))
	}
}

// keyAnswers has IMDS answer so where it is asked for a key of an ENI.
func (l *labCloud) keyAnswers(key string, status int, body string) {
	for _, e := range l.enis() {
		l.metadata.Add(labimds.Fault{Path: "/latest/meta-data/network/interfaces/macs/" + e.MAC + "/" + key, Times: -1, Status: status, Body: body})
	}
}

// TestAnIPv6NodeGoesOnWhateverEC2Answers: EC2 has a new node's prefix to give, or somebody has taken it away. Pods that run keep their
// addresses and end; who gets none is told what EC2 said and what to do, and so is the node; EC2 is asked ever more rarely; and
// once it answers well pods get addresses, without a restart.
func TestAnIPv6NodeGoesOnWhateverEC2Answers(t *testing.T) {
	withoutAWS(t)
	for api, faults := range map[string][]ec2Fault{
		"DescribeNetworkInterfaces": append(slices.Clip(ofEachCall), nonsense), "AssignIpv6Addresses": slices.Concat(ofAssignments, ofEachCall),
	} {
		for _, f := range faults {
			t.Run(api+" "+f.name, func(t *testing.T) {
				t.Run("of a new node", func(t *testing.T) { playNewIPv6Node(t, api, f) })
				t.Run("of a node that runs pods", func(t *testing.T) { playIPv6NodeWithoutItsPrefix(t, api, f) })
			})
		}
	}
}

func playNewIPv6Node(t *testing.T, api string, f ec2Fault) {
	onLabIPv6(t, func(t *testing.T, s *stage, l *labCloud) {
		f.hits(api)(l)
		s.settle()
		wantNoAddress(t, s, "a", f)
		agent := s.running()
		if agent.a.ready.Load() {
			t.Error("ready without an address")
		}
		wantBackedOff(t, s, l, api, 4)
		s.wantSaid(f.event, f.parts...)
		if n := agent.counted("pool"); n < 5 {
			t.Errorf("the metric tells %v failures", n)
		}
		l.mended()
		s.pass(2 * time.Minute)
		s.must("a", "b")
		if !agent.a.ready.Load() || s.running() != agent {
			t.Error("it is not ready, or another agent runs")
		}
		if n := len(l.enis()[l.primary()].IPv6Prefixes); n != 1 {
			t.Errorf("the primary ENI has %d prefixes", n)
		}
	})
}

func playIPv6NodeWithoutItsPrefix(t *testing.T, api string, f ec2Fault) {
	onLabIPv6(t, func(t *testing.T, s *stage, l *labCloud) {
		s.settle()
		s.must("a", "b")
		prefix := l.enis()[l.primary()].IPv6Prefixes[0]
		f.hits(api)(l)
		s.told.Taken(prefix, time.Now().Add(100*time.Hour))
		if err := l.unassign(l.primary(), prefix); err != nil {
			t.Fatal(err)
		}
		s.pass(2 * enis.MetadataLate)
		s.same("a")
		wantNoAddress(t, s, "c", f)
		s.end("b")
		wantBackedOff(t, s, l, api, 4)
		s.wantSaid(f.event, f.parts...)
		s.same("a")
		s.kill() // the next agent finds EC2 as it is
		s.pass(time.Minute)
		s.same("a")
		agent := s.running()
		l.mended()
		s.pass(2 * time.Minute)
		s.must("c", "d")
		s.same("a")
		s.end("a")
		if s.running() != agent {
			t.Error("another agent runs")
		}
	})
}

// wantNoAddress wants a pod to be told why it gets none.
func wantNoAddress(t *testing.T, s *stage, pod string, f ec2Fault) {
	t.Helper()
	switch err := s.try(pod); {
	case err == nil:
		t.Fatal("a pod has an address that nobody can have given")
	case !names(err.Error(), f.pod):
		t.Errorf("the pod's error does not name %q: %v", f.pod, err)
	}
}

// TestAnIPv6NodeNeedsNoRightToDescribe: the prefix is asked for all the same, once.
func TestAnIPv6NodeNeedsNoRightToDescribe(t *testing.T) {
	withoutAWS(t)
	onLabIPv6(t, func(t *testing.T, s *stage, l *labCloud) {
		ec2Fault{code: "UnauthorizedOperation"}.hits("DescribeNetworkInterfaces")(l)
		s.settle()
		s.must("a", "b")
		s.pass(time.Hour)
		s.same("a")
		if n := l.attempts("AssignIpv6Addresses"); n != 1 {
			t.Errorf("a prefix was asked for %d times", n)
		}
	})
}

// TestAnAnswerThatNamesNoPrefixCostsNoSecondOne: EC2 has given one, and is asked which.
func TestAnAnswerThatNamesNoPrefixCostsNoSecondOne(t *testing.T) {
	withoutAWS(t)
	for name, m := range map[string]mood{"nonsense": odd, "none": empty} {
		t.Run(name, func(t *testing.T) {
			onLabIPv6(t, func(t *testing.T, s *stage, l *labCloud) {
				assign := "AssignIpv6Addresses"
				l.answers.only.Store(&assign)
				l.answers.ec2.Store(int32(m))
				s.settle()
				s.must("a", "b")
				if n := len(l.enis()[l.primary()].IPv6Prefixes); n != 1 {
					t.Errorf("the primary ENI has %d prefixes", n)
				}
			})
		})
	}
}

// TestAnIPv6NodeGoesOnWhateverIMDSAnswers: the keys of IPv6 fail in the ways in which IMDS can. What is known is enough for pods; an
// agent that starts meanwhile keeps what runs and tells the others what it waits for.
func TestAnIPv6NodeGoesOnWhateverIMDSAnswers(t *testing.T) {
	withoutAWS(t)
	status := func(code int, body string) func(*labCloud, string) {
		return func(l *labCloud, key string) { l.keyAnswers(key, code, body) }
	}
	answer := func(m mood) func(*labCloud, string) {
		return func(l *labCloud, key string) { l.answers.only.Store(&key); l.answers.imds.Store(int32(m)) }
	}
	for _, key := range []string{"ipv6-prefix", "ipv6s"} {
		for name, broken := range map[string]func(*labCloud, string){
			"throttled":      status(http.StatusTooManyRequests, ""),
			"denied":         status(http.StatusUnauthorized, ""),
			"switched off":   status(http.StatusForbidden, ""),
			"its failure":    status(http.StatusInternalServerError, ""),
			"odd values":     status(0, "eni-nothing"),
			"IPv4":           status(0, "192.168.0.16/28"),
			"no answer":      answer(silent),
			"nobody listens": answer(away),
			"garbage":        answer(garbled),
		} {
			t.Run(key+" "+name, func(t *testing.T) {
				onLabIPv6(t, func(t *testing.T, s *stage, l *labCloud) {
					s.settle()
					s.must("a", "b")
					s.pass(5 * time.Second)
					broken(l, key)
					s.pass(2 * enis.MetadataLate)
					s.same("a")
					s.must("c") // of the prefix that is known
					s.end("b")
					wantBackedOff(t, s, l, key, 3)
					s.wantSaid("MetadataNotAvailable", "169.254.169.254", "not affected")
					if n := s.running().counted("refresh"); n < 5 {
						t.Errorf("the metric tells %v failures", n)
					}
					s.kill() // the next agent does not know the ENIs
					s.settle()
					agent := s.running()
					s.same("a")
					if err := s.try("d"); err == nil || !names(err.Error(), []string{"169.254.169.254", "reachable"}) {
						t.Errorf("ADD: %v", err)
					}
					s.end("c")
					s.pass(10 * time.Minute)
					s.same("a")
					l.mended()
					s.pass(2 * time.Minute)
					s.must("d", "e")
					if n := l.attempts("AssignIpv6Addresses"); n != 1 || s.running() != agent {
						t.Errorf("a prefix was asked for %d times, or another agent runs", n)
					}
				})
			})
		}
		t.Run(key+" not found", func(t *testing.T) { // which is how IMDS says that there is none
			onLabIPv6(t, func(t *testing.T, s *stage, l *labCloud) {
				s.settle()
				s.must("a", "b")
				prefix := l.enis()[l.primary()].IPv6Prefixes[0]
				l.keyAnswers(key, http.StatusNotFound, "")
				s.pass(time.Hour)
				s.same("a")
				s.must("c") // EC2 says which prefix there is
				s.end("b")
				s.kill()
				s.settle()
				s.same("a")
				s.must("d")
				if held := s.living("d").grants[0].Address; !prefix.Contains(held) {
					t.Errorf("a pod has %s, which is not of %s", held, prefix)
				}
				l.mended()
				s.pass(2 * time.Minute)
				s.must("e")
				if n := l.attempts("AssignIpv6Addresses"); n != 1 {
					t.Errorf("a prefix was asked for %d times", n)
				}
			})
		})
	}
}
