// Command record writes test/upgrade/testdata/previous from this checkout's code: see package upgrade.
package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/branchline-cni/branchline/ipamd/config"
	"github.com/branchline-cni/branchline/ipamd/install"
	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/introspection"
	"github.com/branchline-cni/branchline/rpc/nodeagent"
	"github.com/branchline-cni/branchline/rpc/policyagent"
)

func main() {
	if err := record("test/upgrade/testdata/previous"); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

func record(dir string) error {
	if _, err := os.Stat("buf.yaml"); err != nil {
		return fmt.Errorf("start it in the root of the checkout: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the fixtures of before: %w", err)
	}
	for name, f := range map[string]func(dir string) error{"wire": wire, "store": state, "conflist": conflists, "crd": crds} {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return fmt.Errorf("make a folder for the fixtures: %w", err)
		}
		if err := f(at); err != nil {
			return fmt.Errorf("record %s: %w", name, err)
		}
	}
	return nil
}

func write(dir, name string, b []byte) error { return os.WriteFile(filepath.Join(dir, name), b, 0o644) }

// wire writes the descriptors, and each message with every field set: one file for each choice of a oneof.
func wire(dir string) error {
	set := &descriptorpb.FileDescriptorSet{}
	for _, f := range []protoreflect.FileDescriptor{
		rpc.File_rpc_ipamd_proto, nodeagent.File_rpc_nodeagent_nodeagent_proto, introspection.File_rpc_introspection_introspection_proto,
		policyagent.File_rpc_policyagent_policyagent_proto,
	} {
		set.File = append(set.File, protodesc.ToFileDescriptorProto(f))
		for i := range f.Messages().Len() {
			d := f.Messages().Get(i)
			for choice := range choices(d) {
				b, err := proto.MarshalOptions{Deterministic: true}.Marshal(filled(d, choice).Interface())
				if err != nil {
					return err
				}
				if err := write(dir, fmt.Sprintf("%s-%d.binpb", d.FullName(), choice), b); err != nil {
					return err
				}
			}
		}
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(set)
	if err != nil {
		return err
	}
	return write(dir, "descriptors.binpb", b)
}

// choices is how many messages it takes to have each field of each oneof once.
func choices(d protoreflect.MessageDescriptor) int {
	n := 1
	for i := range d.Oneofs().Len() {
		n = max(n, d.Oneofs().Get(i).Fields().Len())
	}
	return n
}

func filled(d protoreflect.MessageDescriptor, choice int) protoreflect.Message {
	m := dynamicpb.NewMessage(d)
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() && o.Fields().Get(choice%o.Fields().Len()) != f {
			continue
		}
		if !f.IsList() {
			m.Set(f, value(f, choice))
			continue
		}
		l := m.Mutable(f).List()
		l.Append(value(f, choice))
		l.Append(value(f, choice))
	}
	return m
}

func value(f protoreflect.FieldDescriptor, choice int) protoreflect.Value {
	n := int(f.Number())
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(fmt.Sprintf("text of field %d", n))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte{byte(n)})
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(1000 + n))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(1000 + n))
	case protoreflect.EnumKind:
		v := f.Enum().Values()
		return protoreflect.ValueOfEnum(v.Get(v.Len() - 1).Number())
	case protoreflect.MessageKind:
		return protoreflect.ValueOfMessage(filled(f.Message(), choice))
	}
	panic(fmt.Sprintf("%s is a %s: teach this program to fill it", f.FullName(), f.Kind()))
}

// state writes a file of allocations with something of everything.
func state(dir string) (err error) {
	now := time.Date(2026, 11, 23, 7, 0, 0, 0, time.UTC)
	path := filepath.Join(dir, "state.json")
	s, _, err := store.Open(path, store.Options{CoolDown: 1000 * time.Hour, Now: func() time.Time { return now }})
	if err != nil {
		return err
	}
	address := netip.MustParseAddr
	regular := func(n byte) store.Regular {
		return store.Regular{Address: netip.AddrFrom4([4]byte{192, 168, 32, n}), ENIID: "eni-1", Device: 1, RouteTable: 2}
	}
	key := func(id string) store.Key { return store.Key{ContainerID: id, IfName: "eth0"} }
	pod := func(name string) store.Pod { return store.Pod{Namespace: "default", Name: name, UID: "uid-of-" + name} }
	steps := []func() error{
		func() error {
			_, err := s.TakeOver([]store.Allocation{{Key: key("taken"), Network: "aws-cni", Pod: store.Pod{Namespace: "default", Name: "taken"}, Since: now, Regular: &store.Regular{Address: address("192.168.32.9")}}},
				store.TakenOver{From: "/var/run/aws-node/ipam.json"})
			return err
		},
		func() error {
			return s.Settle(key("taken"), "uid-of-taken", &store.Regular{Address: address("192.168.32.9"), ENIID: "eni-1", Device: 1, RouteTable: 2})
		},
		func() error {
			_, err := s.AssignRegular(key("regular"), "aws-cni", pod("regular"), []store.Regular{regular(10)})
			return err
		},
		func() error {
			_, err := s.AssignRegular(key("ended"), "aws-cni", pod("ended"), []store.Regular{regular(11)})
			return err
		},
		func() error { _, _, err := s.Free(key("ended")); return err },
		func() error {
			_, err := s.AssignBranch(key("strict"), "aws-cni", pod("strict"), store.Branch{
				ENIID: "eni-b1", MAC: "06:20:0d:3c:5f:01", VLAN: 7, Address: address("192.168.47.64"), SubnetCIDR: netip.MustParsePrefix("192.168.32.0/19"),
			})
			return err
		},
		func() error {
			_, err := s.AssignBranch(key("standard"), "aws-cni", pod("standard"), store.Branch{
				ENIID: "eni-b2", MAC: "06:20:0d:3c:5f:02", VLAN: 8, Address: address("2001:db8::8"), Standard: true,
			})
			return err
		},
		func() error {
			_, err := s.Release(store.Released{PodUID: "uid-of-released", VLAN: 9, ENIID: "eni-b3", At: now})
			return err
		},
		func() error { return s.Retire("eni-2") },
		func() error {
			_, err := s.Leave("eni-1", []netip.Prefix{netip.MustParsePrefix("192.168.32.12/32")})
			return err
		},
		func() error {
			_, err := s.Leave("eni-3", []netip.Prefix{netip.MustParsePrefix("192.168.33.0/28")})
			return err
		},
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// conflists writes the CNI configuration with nothing set, and with everything that adds to it.
func conflists(dir string) error {
	for name, env := range map[string]map[string]string{
		"default.json": nil,
		"all.json": {
			"ENABLE_V6_EGRESS": "true", "ENABLE_BANDWIDTH_PLUGIN": "true", "NETWORK_POLICY_ENFORCING_MODE": "strict", "POD_SECURITY_GROUP_ENFORCING_MODE": "standard",
			"POD_MTU": "1400", "AWS_VPC_K8S_PLUGIN_LOG_LEVEL": "ERROR",
		},
	} {
		c, _, err := config.Load(func(k string) (string, bool) { v, ok := env[k]; return v, ok })
		if err != nil {
			return err
		}
		b, err := install.Conflist(c)
		if err != nil {
			return err
		}
		if err := write(dir, name, b); err != nil {
			return err
		}
	}
	return nil
}

// crds copies the definitions.
func crds(dir string) error {
	return os.CopyFS(dir, os.DirFS("config/crd"))
}
