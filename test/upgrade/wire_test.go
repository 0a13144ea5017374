package upgrade

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/branchline-cni/branchline/rpc"
	_ "github.com/branchline-cni/branchline/rpc/introspection" // its messages, too
	"github.com/branchline-cni/branchline/rpc/nodeagent"
	_ "github.com/branchline-cni/branchline/rpc/policyagent"
	"github.com/branchline-cni/branchline/rpc/unary"
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "previous", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// previousFiles are the previous release's descriptors.
func previousFiles(t *testing.T) *protoregistry.Files {
	t.Helper()
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(read(t, "wire/descriptors.binpb"), &set); err != nil {
		t.Fatal(err)
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestNoMessageFieldOrMethodOfThePreviousReleaseIsGoneOrAnother: names, numbers, kinds and presence.
func TestNoMessageFieldOrMethodOfThePreviousReleaseIsGoneOrAnother(t *testing.T) {
	count := 0
	previousFiles(t).RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Messages().Len() {
			count += sameMessage(t, f.Messages().Get(i))
		}
		for i := range f.Enums().Len() {
			sameEnum(t, f.Enums().Get(i))
		}
		for i := range f.Services().Len() {
			sameService(t, f.Services().Get(i))
		}
		return true
	})
	if count < 20 {
		t.Errorf("%d fields were compared: the fixture is not what it should be", count)
	}
}

func now[D protoreflect.Descriptor](t *testing.T, name protoreflect.FullName) (d D, ok bool) {
	t.Helper()
	any, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		t.Errorf("%s is gone: %v", name, err)
		return d, false
	}
	d, ok = any.(D)
	if !ok {
		t.Errorf("%s is something else now", name)
	}
	return d, ok
}

func sameMessage(t *testing.T, was protoreflect.MessageDescriptor) (fields int) {
	t.Helper()
	is, ok := now[protoreflect.MessageDescriptor](t, was.FullName())
	if !ok {
		return 0
	}
	for i := range was.Fields().Len() {
		old := was.Fields().Get(i)
		f := is.Fields().ByNumber(old.Number())
		if f == nil {
			t.Errorf("%s, number %d, is gone: a peer of the release before still sends it", old.FullName(), old.Number())
			continue
		}
		fields++
		oneof := func(f protoreflect.FieldDescriptor) string {
			if o := f.ContainingOneof(); o != nil {
				return string(o.Name())
			}
			return ""
		}
		typeOf := func(f protoreflect.FieldDescriptor) string {
			switch {
			case f.Message() != nil:
				return string(f.Message().FullName())
			case f.Enum() != nil:
				return string(f.Enum().FullName())
			}
			return f.Kind().String()
		}
		if f.Name() != old.Name() || f.Kind() != old.Kind() || f.Cardinality() != old.Cardinality() || f.HasPresence() != old.HasPresence() ||
			oneof(f) != oneof(old) || typeOf(f) != typeOf(old) {
			t.Errorf("%s, number %d, is another field now: %v, was %v", old.FullName(), old.Number(), f, old)
		}
	}
	return fields
}

func sameEnum(t *testing.T, was protoreflect.EnumDescriptor) {
	t.Helper()
	is, ok := now[protoreflect.EnumDescriptor](t, was.FullName())
	for i := range was.Values().Len() {
		old := was.Values().Get(i)
		if v := is; ok && (v.Values().ByNumber(old.Number()) == nil || v.Values().ByNumber(old.Number()).Name() != old.Name()) {
			t.Errorf("%s = %d is gone or has another name", old.FullName(), old.Number())
		}
	}
}

func sameService(t *testing.T, was protoreflect.ServiceDescriptor) {
	t.Helper()
	is, ok := now[protoreflect.ServiceDescriptor](t, was.FullName())
	for i := range was.Methods().Len() {
		old := was.Methods().Get(i)
		if !ok {
			return
		}
		m := is.Methods().ByName(old.Name())
		if m == nil || m.Input().FullName() != old.Input().FullName() || m.Output().FullName() != old.Output().FullName() ||
			m.IsStreamingClient() != old.IsStreamingClient() || m.IsStreamingServer() != old.IsStreamingServer() {
			t.Errorf("%s is gone or another method now", old.FullName())
		}
	}
}

// TestMessagesOfThePreviousReleaseAreUnderstoodWholeAndAnsweredInItsOwnWords: the recorded bytes, read by this release and
// written again, say the same to the previous one.
func TestMessagesOfThePreviousReleaseAreUnderstoodWholeAndAnsweredInItsOwnWords(t *testing.T) {
	files := previousFiles(t)
	all, err := filepath.Glob(filepath.Join("testdata", "previous", "wire", "*-*.binpb"))
	if err != nil || len(all) < 20 {
		t.Fatalf("%d recorded messages, %v", len(all), err)
	}
	for _, path := range all {
		name, _, _ := strings.Cut(filepath.Base(path), "-")
		b := read(t, filepath.Join("wire", filepath.Base(path)))
		was, err := files.FindDescriptorByName(protoreflect.FullName(name))
		if err != nil {
			t.Fatal(err)
		}
		typ, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want, got := dynamicpb.NewMessage(was.(protoreflect.MessageDescriptor)), dynamicpb.NewMessage(was.(protoreflect.MessageDescriptor))
		ours := typ.New().Interface()
		if err := proto.Unmarshal(b, want); err != nil {
			t.Fatalf("%s: the previous release can't read its own: %v", path, err)
		}
		if err := proto.Unmarshal(b, ours); err != nil || len(ours.ProtoReflect().GetUnknown()) > 0 {
			t.Errorf("%s: not understood whole: %v, unknown %x", path, err, ours.ProtoReflect().GetUnknown())
			continue
		}
		again, err := proto.Marshal(ours)
		if err != nil {
			t.Fatal(err)
		}
		if err := proto.Unmarshal(again, got); err != nil || !proto.Equal(got, want) {
			t.Errorf("%s: the previous release reads %v of what it reads as %v: %v", path, got, want, err)
		}
	}
}

// later puts fields into a message that no release knows yet: numbers that follow, of each wire type.
func later[M proto.Message](m M) M {
	var b []byte
	b = protowire.AppendVarint(protowire.AppendTag(b, 900, protowire.VarintType), 7)
	b = protowire.AppendString(protowire.AppendTag(b, 901, protowire.BytesType), "of a later release")
	b = protowire.AppendFixed32(protowire.AppendTag(b, 902, protowire.Fixed32Type), 1)
	b = protowire.AppendFixed64(protowire.AppendTag(b, 903, protowire.Fixed64Type), 1)
	m.ProtoReflect().SetUnknown(b)
	return m
}

// agent is a node agent of a later release: what it says has more fields, and what it understands, too. It knows no Gc.
type agent struct {
	nodeagent.UnimplementedNodeAgentServer
	heard chan *rpc.AddRequest
}

func (a agent) Add(_ context.Context, r *rpc.AddRequest) (*rpc.AddReply, error) {
	a.heard <- r
	return later(&rpc.AddReply{Version: "later", Interface: &rpc.AddReply_Regular{Regular: later(&rpc.RegularInterface{Address: "10.0.0.1"})}, Host: later(&rpc.HostSettings{})}), nil
}

// TestFieldsOfALaterReleaseArePassedOverAndAVerbThatItLacksIsNamed: by both ends as they are, the executable's client and the
// agent's server.
func TestFieldsOfALaterReleaseArePassedOverAndAVerbThatItLacksIsNamed(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	a := agent{heard: make(chan *rpc.AddRequest, 1)}
	s := grpc.NewServer(grpc.Creds(nodeagent.NewServerCredentials()))
	if os.Geteuid() != 0 {
		s = grpc.NewServer() // the check of the peer is not what is tested
	}
	nodeagent.RegisterNodeAgentServer(s, a)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	conn, err := unary.New(socket, uint32(os.Geteuid()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	const service = "/branchline.rpc.v1.NodeAgent/"
	request := later(&rpc.AddRequest{Version: "later", Pod: later(&rpc.Pod{Name: "web"}), Attachment: later(&rpc.Attachment{ContainerId: "c"})})
	reply, err := unary.Invoke[rpc.AddReply](ctx, conn, service+"Add", request, unary.FailFast)
	if err != nil || reply.GetRegular().GetAddress() != "10.0.0.1" {
		t.Fatalf("answered %v, %v", reply, err)
	}
	if heard := <-a.heard; heard.GetPod().GetName() != "web" || heard.GetAttachment().GetContainerId() != "c" {
		t.Errorf("heard %v", heard)
	}
	for _, verb := range []string{"Gc", "OfALaterRelease"} {
		_, err := unary.Invoke[rpc.GcReply](ctx, conn, service+verb, &rpc.GcRequest{}, unary.FailFast)
		if unary.CodeOf(err) != unary.Unimplemented || !strings.Contains(err.Error(), verb) {
			t.Errorf("%s: %v, want an error that it is not known", verb, err)
		}
	}
}

// TestWhatAnOlderPeerDoesNotSayIsWhatItDoes: a field that is missing means what it meant before the field was there.
func TestWhatAnOlderPeerDoesNotSayIsWhatItDoes(t *testing.T) {
	var r rpc.AddReply
	if err := proto.Unmarshal(nil, &r); err != nil {
		t.Fatal(err)
	}
	b, g := (&rpc.BranchInterface{}), (&rpc.RegularInterface{})
	switch {
	case b.GetEnforcingMode() != rpc.EnforcingMode_ENFORCING_MODE_STRICT:
		t.Error("a branch pod of an agent that knows one mode is strict")
	case g.GetRouteTable() != 0:
		t.Error("no rule is asked for")
	case r.GetHost() != nil || (&rpc.HostSettings{}).TcpEarlyDemux != nil:
		t.Error("nothing of the host is to be set")
	case (&rpc.DelRequest{}).GetAddFailed():
		t.Error("an ordinary DEL")
	case (&rpc.StatusReply{}).GetDataPathBroken():
		t.Error("what is wired works")
	}
}
