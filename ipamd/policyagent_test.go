package ipamd

import (
	"context"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
)

// wireCodec leaves messages as they are on the wire.
type wireCodec struct{}

func (wireCodec) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (wireCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (wireCodec) Name() string                       { return "proto" }

// The call is made by the wire's names and numbers alone, as the real policy agent makes it.
func TestThePolicyAgentLearnsModeAndNode(t *testing.T) {
	for set, mode := range map[string]string{"": "none", "none": "none", "strict": "strict", "standard": "standard"} {
		w := newWorld(t)
		if set == "strict" {
			w.env["ENABLE_MULTI_NIC"] = "true"
		}
		w.env["NETWORK_POLICY_ENFORCING_MODE"] = set
		_, stop := w.start()
		cc, err := grpc.NewClient("unix://"+filepath.Join(w.dir, "s"), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer cc.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		var in, out []byte
		err = cc.Invoke(ctx, "/rpc.ConfigServerBackend/GetNetworkPolicyConfigs", &in, &out, grpc.ForceCodec(wireCodec{}), grpc.WaitForReady(true))
		if err != nil {
			t.Fatal(err)
		}
		got := map[protowire.Number]string{}
		for len(out) > 0 {
			number, kind, n := protowire.ConsumeTag(out)
			if number == 2 && kind == protowire.VarintType { // MultiNICEnabled
				v, m := protowire.ConsumeVarint(out[n:])
				if m < 0 {
					t.Fatal(protowire.ParseError(m))
				}
				got[number], out = strconv.FormatUint(v, 10), out[n+m:]
				continue
			}
			if n < 0 || kind != protowire.BytesType {
				t.Fatalf("field %d of kind %d", number, kind)
			}
			v, m := protowire.ConsumeBytes(out[n:])
			if m < 0 {
				t.Fatal(protowire.ParseError(m))
			}
			got[number], out = string(v), out[n+m:]
		}
		stop()
		want := map[protowire.Number]string{1: mode, 3: w.cloud.primary(t), 5: instanceID, 6: region}
		if set == "strict" {
			want[2] = "1"
		}
		for number, v := range want {
			if v == "" || got[number] != v {
				t.Errorf("%q: field %d is %q, want %q", set, number, got[number], v)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%q: %v", set, got)
		}
	}
}

// primary is the node's own address as IMDS tells it.
func (c *cloud) primary(t *testing.T) string {
	list, err := c.Interfaces(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		if i.DeviceNumber == 0 {
			return i.Addresses[0].String()
		}
	}
	t.Fatal("no primary ENI")
	return ""
}
