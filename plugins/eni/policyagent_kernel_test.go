//go:build kernel

package eni

import (
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/plugins/nstest"
	"github.com/branchline-cni/branchline/rpc"
)

// policyAgent plays the AWS network policy agent. It speaks the wire's names and field numbers, and none of our
// generated code: what it understands, the real one does.
type policyAgent struct {
	t      *testing.T
	host   *nstest.NS
	socket string

	mu       sync.Mutex
	enforced map[string]string // namespace/name -> mode
	// interfaces is how many a pod must have, where that isn't 1.
	interfaces map[string]uint64
	forgot     []string
	fault      error
	refuse     bool
	hang       bool
	problems   []string
	server     *grpc.Server
}

// raw is the codec that leaves messages as they are on the wire.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (raw) Name() string                       { return "proto" }

func newPolicyAgent(n *node) *policyAgent {
	p := &policyAgent{t: n.t, host: n.host, socket: filepath.Join(n.t.TempDir(), "npa.sock"), enforced: map[string]string{}}
	n.config["npaSocket"] = p.socket
	n.t.Cleanup(p.stop)
	return p
}

func (p *policyAgent) start() error {
	l, err := rpc.Listen(p.socket)
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(p.handle))
	p.mu.Lock()
	p.server = s
	p.mu.Unlock()
	go s.Serve(l)
	return nil
}

func (p *policyAgent) stop() {
	p.mu.Lock()
	s := p.server
	p.server = nil
	p.mu.Unlock()
	if s != nil {
		s.Stop()
	}
}

func (p *policyAgent) handle(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	var in []byte
	if err := stream.RecvMsg(&in); err != nil && err != io.EOF {
		return err
	}
	p.mu.Lock()
	hang := p.hang
	p.mu.Unlock()
	if hang {
		<-stream.Context().Done()
		return stream.Context().Err()
	}
	out, err := p.answer(method, in)
	if err != nil {
		return err
	}
	return stream.SendMsg(&out)
}

func (p *policyAgent) answer(method string, in []byte) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text, number, err := fields(in)
	if err != nil {
		return nil, err
	}
	pod := text[2] + "/" + text[1]
	switch method {
	case "/rpc.NPBackend/EnforceNpToPod":
		if p.fault != nil {
			return nil, p.fault
		}
		if p.refuse {
			return nil, nil
		}
		if number[4] != max(1, p.interfaces[pod]) {
			p.problems = append(p.problems, fmt.Sprintf("%s has %d interfaces", pod, number[4]))
		}
		if !p.wired(text[2], text[1]) {
			p.problems = append(p.problems, pod+" is to be put under its policies and has no host veth")
		}
		p.enforced[pod] = text[3]
	case "/rpc.NPBackend/DeletePodNp":
		delete(p.enforced, pod)
		p.forgot = append(p.forgot, pod)
	default:
		return nil, status.Errorf(codes.Unimplemented, "no method %s", method)
	}
	return protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1), nil
}

func (p *policyAgent) wired(namespace, name string) bool {
	for _, prefix := range []string{"eni", "vlan"} { // the real one knows these two
		if p.host.Link(p.t, datapath.HostVethName(prefix, namespace, name)) != nil {
			return true
		}
	}
	return false
}

func fields(b []byte) (text map[protowire.Number]string, number map[protowire.Number]uint64, err error) {
	text, number = map[protowire.Number]string{}, map[protowire.Number]uint64{}
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, nil, protowire.ParseError(n)
		}
		b = b[n:]
		switch kind {
		case protowire.BytesType:
			var v []byte
			v, n = protowire.ConsumeBytes(b)
			text[field] = string(v)
		case protowire.VarintType:
			number[field], n = protowire.ConsumeVarint(b)
		default:
			n = protowire.ConsumeFieldValue(field, kind, b)
		}
		if n < 0 {
			return nil, nil, protowire.ParseError(n)
		}
		b = b[n:]
	}
	return text, number, nil
}

func (p *policyAgent) want(pods map[string]string) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !maps.Equal(p.enforced, pods) {
		p.t.Errorf("under policies are %v, want %v", p.enforced, pods)
	}
	for _, s := range p.problems {
		p.t.Error(s)
	}
}

func (p *policyAgent) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func TestAPodIsUnderItsNetworkPoliciesWhenADDReturns(t *testing.T) {
	for _, mode := range []string{"strict", "standard"} {
		n := newNode(t)
		n.agent.start(t)
		p := newPolicyAgent(n)
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		n.config["networkPolicyMode"] = mode
		n.attachBranch(7, branchMAC, branchIP)
		n.agent.set("shop/regular", regularReply(regularIP, 2))
		n.agent.set("shop/branch", branchReply(7, branchMAC, branchIP, n.trunk()))
		regular, branch := newSandbox("sandbox-1", "shop/regular", nstest.New(t)), newSandbox("sandbox-2", "shop/branch", nstest.New(t))
		n.mustAdd(regular)
		n.mustAdd(branch)
		p.want(map[string]string{"shop/regular": mode, "shop/branch": mode})
		n.mustDel(regular)
		p.want(map[string]string{"shop/branch": mode})
		n.forget()
		n.mustDel(branch)
		p.want(nil)
		n.wantClean()
	}
}

func TestThePolicyAgentIsToldHowManyInterfacesAPodHas(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	p := newPolicyAgent(n)
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	n.config["networkPolicyMode"] = "standard"
	n.agent.set(goldenPod, several(regularReply(regularIP, 0), "192.168.64.77", "192.168.96.77"))
	p.set(func() { p.interfaces = map[string]uint64{goldenPod: 3} })
	s := newSandbox("sandbox-1", goldenPod, nstest.New(t))
	n.mustAdd(s)
	p.want(map[string]string{goldenPod: "standard"})
	// One that isn't put under its policies has none of its interfaces left.
	n.mustDel(s)
	p.want(nil)
	p.set(func() { p.refuse = true })
	_, err := n.add("1.0.0", s)
	wantCode(t, err, CodePolicy, goldenPod)
	n.wantClean()
}

func TestWithoutAModeThePolicyAgentIsNotAsked(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	n.agent.set(goldenPod, regularReply(regularIP, 2))
	s := newSandbox("sandbox-1", goldenPod, nstest.New(t))
	for _, mode := range []string{"", "none"} {
		n.config["networkPolicyMode"] = mode
		n.config["npaSocket"] = "/nowhere/npa.sock"
		n.mustAdd(s)
		n.mustDel(s)
		n.wantClean()
	}
	n.config["networkPolicyMode"] = "lenient"
	_, err := n.add("1.0.0", s)
	wantCode(t, err, 7, "networkPolicyMode", "lenient")
	n.wantClean()
}

func TestAPodThatIsNotUnderItsPoliciesIsNotWired(t *testing.T) {
	for name, tc := range map[string]struct {
		harm  func(*policyAgent)
		names []string
	}{
		"it says no":       {func(p *policyAgent) { p.set(func() { p.refuse = true }) }, []string{"answered that it did not"}},
		"it fails":         {func(p *policyAgent) { p.set(func() { p.fault = status.Error(codes.Internal, "no probe") }) }, []string{"no probe"}},
		"it is not there":  {func(p *policyAgent) { p.stop() }, []string{"must be none"}},
		"it knows no such": {func(p *policyAgent) { p.set(func() { p.fault = status.Error(codes.Unimplemented, "what") }) }, []string{"what"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.agent.start(t)
			n.attachBranch(7, branchMAC, branchIP)
			n.agent.set(goldenPod, branchReply(7, branchMAC, branchIP, n.trunk()))
			p := newPolicyAgent(n)
			if err := p.start(); err != nil {
				t.Fatal(err)
			}
			n.config["networkPolicyMode"] = "strict"
			tc.harm(p)
			pod := nstest.New(t)
			before := pod.Snapshot(t)
			s := newSandbox("sandbox-1", goldenPod, pod)
			_, err := n.add("1.0.0", s)
			wantCode(t, err, CodePolicy, append(tc.names, goldenPod, p.socket)...)
			n.wantClean()
			if d := difference(before, pod.Snapshot(t)); d != "" {
				t.Errorf("left behind in the pod:\n%s", d)
			}
			if del := n.agent.lastDel(); n.agent.holds() != 0 || del == nil || !del.GetAddFailed() {
				t.Errorf("the node agent was told %v", del)
			}
			n.mustDel(s)
			p.want(nil)
		})
	}
}

func TestADDWaitsForAStartingPolicyAgent(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	n.agent.set(goldenPod, regularReply(regularIP, 2))
	p := newPolicyAgent(n)
	n.config["networkPolicyMode"] = "standard"
	started := make(chan error, 1)
	timer := time.AfterFunc(time.Second, func() { started <- p.start() })
	defer timer.Stop()
	s := newSandbox("sandbox-1", goldenPod, nstest.New(t))
	n.mustAdd(s)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	p.want(map[string]string{goldenPod: "standard"})
	n.mustDel(s)
}

func TestDELNeedsNoPolicyAgent(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	n.agent.set(goldenPod, regularReply(regularIP, 2))
	p := newPolicyAgent(n)
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	n.config["networkPolicyMode"] = "strict"
	for name, harm := range map[string]func(){
		"hangs":   func() { p.set(func() { p.hang = true }) },
		"is dead": p.stop,
	} {
		p.set(func() { p.hang = false })
		s := newSandbox("sandbox-1", goldenPod, nstest.New(t))
		n.mustAdd(s)
		harm()
		began := time.Now()
		n.mustDel(s)
		if took := time.Since(began); took > 2*forgetDeadline {
			t.Errorf("the policy agent %s: DEL took %v", name, took)
		}
		n.wantClean()
		p.stop()
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
	}
}

// The policy agent knows pods by their names: a late DEL of a StatefulSet's old pod must not take the policies from its
// successor.
func TestP1LateDELLeavesThePoliciesOfThePodsNextSandbox(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	p := newPolicyAgent(n)
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	n.config["networkPolicyMode"] = "strict"
	n.agent.set(goldenPod, regularReply(regularIP, 2))
	old, next := newSandbox("sandbox-old", goldenPod, nstest.New(t)), newSandbox("sandbox-new", goldenPod, nstest.New(t))
	n.mustAdd(old)
	n.mustAdd(next)
	n.mustDel(old)
	p.want(map[string]string{goldenPod: "strict"})
	n.forget()
	n.mustDel(old)
	p.want(map[string]string{goldenPod: "strict"})
	n.mustDel(next)
	p.want(nil)
	n.wantClean()
}
