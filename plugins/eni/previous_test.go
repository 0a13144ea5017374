package eni

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/rpc"
)

// Renewed at each release, as test/upgrade's are: go test ./plugins/eni -run PreviousRelease -record
var record = flag.Bool("record", false, "write testdata/previous-result-*.json as this release's")

// TestResultsOfThePreviousReleaseAreUnderstood: what the runtime has kept of an ADD by the executable of before is all that a
// DEL by this one needs, and that a CHECK compares with.
func TestResultsOfThePreviousReleaseAreUnderstood(t *testing.T) {
	pod := podArgs{Namespace: "default", Name: "web"}
	for name, reply := range map[string]*rpc.AddReply{
		"regular": regularReply("192.168.32.10", 2),
		"branch":  branchReply(7, "06:20:0d:3c:5f:01", "192.168.47.64", 5),
		"branch6": branchReply6(8, "06:20:0d:3c:5f:02", "2001:db8:1::8", 5),
	} {
		path := filepath.Join("testdata", "previous-result-"+name+".json")
		w, err := planReply(Config{VethPrefix: "eni", MTU: 9001}, pod, datapath.Owner{ContainerID: "c", IfName: "eth0"}, reply)
		if err != nil {
			t.Fatal(err)
		}
		if *record {
			b, err := json.MarshalIndent(newResult(w, "/var/run/netns/cni-1"), "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		p, err := parsePrevious(b, "eth0")
		if err != nil || !p.known || p.upstream != nil || p.address != w.address || p.vlan != w.vlan || p.hostVeth != w.plan.HostVeth.Host {
			t.Errorf("%s: %+v, %v; want %s, VLAN %d, host veth %s", name, p, err, w.address, w.vlan, w.plan.HostVeth.Host)
		}
	}
}
