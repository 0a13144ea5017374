package eni

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/rpc"
)

// several is a regular pod's reply with an interface on each of some further network cards, from card 1 on, with the
// tables that the agent has for an ENI at device index 1 of each.
func several(r *rpc.AddReply, addresses ...string) *rpc.AddReply {
	for i, a := range addresses {
		card := uint32(len(r.Further) + 1)
		r.Further = append(r.Further, &rpc.RegularInterface{
			Address: a, EniId: "eni-0card" + string(rune('1'+i)), DeviceNumber: 1, NetworkCard: card, RouteTable: 10000 + 100*card + 1,
		})
	}
	return r
}

func planOf(t *testing.T, pod string, reply *rpc.AddReply) wiring {
	t.Helper()
	namespace, name, _ := strings.Cut(pod, "/")
	w, err := planReply(Config{VethPrefix: "eni", MTU: 9001}, podArgs{Namespace: namespace, Name: name}, datapath.Owner{ContainerID: "c", IfName: "eth0"}, reply)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestResultOfAPodWithSeveralInterfaces compares with what a runtime has seen; go test ./plugins/eni -run SeveralInterfaces
// -record writes it anew.
func TestResultOfAPodWithSeveralInterfaces(t *testing.T) {
	for family, reply := range map[string]*rpc.AddReply{
		"ipv4": several(regularReply("192.168.10.77", 0), "192.168.11.77", "192.168.12.77"),
		"ipv6": several(regularReply("2001:db8::77", 0), "2001:db8:1::77"),
	} {
		w := planOf(t, "kube-system/coredns-57ff979f67-qqbdh", reply)
		for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
			out, err := newResult(w, "/run/netns/x").GetAsVersion(version)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := json.MarshalIndent(out, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", "several-"+family+"-"+version+".json")
			if *record {
				if err := os.WriteFile(path, append(raw, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got := string(raw) + "\n"; got != string(want) {
				t.Errorf("%s, %s: got %s, want %s", family, version, got, want)
			}
			if _, err := cniversion.NewResult(version, raw); err != nil {
				t.Errorf("%s, %s: %v", family, version, err)
			}
			p, err := parsePrevious(raw, "eth0")
			if err != nil || !p.known || p.upstream != nil || p.hostVeth != w.plan.HostVeth.Host || p.address != w.address {
				t.Errorf("%s, %s: DEL reads %+v, %v", family, version, p, err)
			}
			var left []datapath.FurtherLeft
			for i, veth := range w.plan.Further {
				left = append(left, datapath.FurtherLeft{Number: i + 1, HostVeth: veth.Host, Address: veth.Mark.Address})
			}
			if len(left) == 0 || !reflect.DeepEqual(p.further, left) {
				t.Errorf("%s, %s: DEL reads %+v, want %+v", family, version, p.further, left)
			}
			if err := p.compare(w.plan); err != nil {
				t.Errorf("%s, %s: CHECK finds that its own result %v", family, version, err)
			}
		}
	}
}

func TestCHECKNamesTheFurtherInterfaceThatPrevResultLacksOrHasTooMuch(t *testing.T) {
	const pod = "shop/web"
	reply := func(n int) *rpc.AddReply {
		return several(regularReply("192.168.10.77", 0), []string{"192.168.11.77", "192.168.12.77"}[:n]...)
	}
	result := func(w wiring, change func(string) string) previous {
		raw, err := json.Marshal(newResult(w, "/run/netns/x"))
		if err != nil {
			t.Fatal(err)
		}
		p, err := parsePrevious([]byte(change(string(raw))), "eth0")
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	both := planOf(t, pod, reply(2))
	same := func(s string) string { return s }
	for name, tc := range map[string]struct {
		prev previous
		plan wiring
		want string
	}{
		"one too few":         {result(planOf(t, pod, reply(1)), same), both, "interface " + both.plan.Further[1].Host + " of prevResult: missing"},
		"one too many":        {result(both, same), planOf(t, pod, reply(1)), "interface mNicIf2 of prevResult: one that the sandbox should not have"},
		"none known any more": {result(both, same), planOf(t, pod, reply(0)), "interface mNicIf1 of prevResult: one that"},
		"another address":     {result(both, func(s string) string { return strings.Replace(s, "192.168.12.77/", "192.168.12.78/", 1) }), both, "address 192.168.12.77 of prevResult: missing"},
		"another MAC on the host": {result(both, func(s string) string {
			return strings.Replace(s, both.plan.Further[0].HostMAC.String(), "02:00:00:00:00:01", 1)
		}), both, "interface " + both.plan.Further[0].Host + " of prevResult: has the address"},
		"the pod's end renamed": {result(both, func(s string) string { return strings.Replace(s, "mNicIf2", "net1", 1) }), both, "interface mNicIf2 of prevResult: missing"},
	} {
		if err := tc.prev.compare(tc.plan.plan); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func TestAnswersWithSeveralInterfacesThatCannotBeWiredAreRefused(t *testing.T) {
	good := func() *rpc.AddReply {
		return several(regularReply("192.168.10.77", 0), "192.168.11.77", "192.168.12.77")
	}
	planOf(t, "shop/web", good())
	for name, change := range map[string]func(*rpc.AddReply){
		"beside a branch":         func(r *rpc.AddReply) { r.Interface = branchReply(7, "06:20:0d:3c:5f:bc", "192.168.47.64", 3).Interface },
		"beside nothing":          func(r *rpc.AddReply) { r.Interface = nil },
		"no address":              func(r *rpc.AddReply) { r.Further[1].Address = "" },
		"a nil one":               func(r *rpc.AddReply) { r.Further[0] = nil },
		"the first's address":     func(r *rpc.AddReply) { r.Further[1].Address = "192.168.10.77" },
		"of another family":       func(r *rpc.AddReply) { r.Further[1].Address = "2001:db8::77" },
		"on the default card":     func(r *rpc.AddReply) { r.Further[0].NetworkCard = 0 },
		"two on a card":           func(r *rpc.AddReply) { r.Further[1].NetworkCard = 1 },
		"cards in disorder":       func(r *rpc.AddReply) { slices.Reverse(r.Further) },
		"a table that is ours":    func(r *rpc.AddReply) { r.Further[0].RouteTable = datapath.LocalPodsTable },
		"a table of a branch ENI": func(r *rpc.AddReply) { r.Further[1].RouteTable = 107 },
	} {
		r := good()
		change(r)
		_, err := planReply(Config{VethPrefix: "eni", MTU: 9001}, podArgs{Namespace: "shop", Name: "web"}, datapath.Owner{ContainerID: "c", IfName: "eth0"}, r)
		if err == nil || toCNI("ADD", err).Code != CodeBadReply {
			t.Errorf("%s: %v", name, err)
		}
	}
}
