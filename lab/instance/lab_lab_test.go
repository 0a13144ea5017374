//go:build lab

package instance

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/lab/artifacts"
	"github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/lab/vpc"
)

// runEnv makes the test that starts itself again use the same instance ids.
const runEnv = "BRANCHLINE_TEST_RUN"

// parts are what every instance is made of, from the cache.
type parts struct {
	agent   string
	busybox string
	kernel  artifacts.Kernel
}

func labParts(t *testing.T, kernel bool) parts {
	t.Helper()
	c, err := artifacts.Open()
	if err != nil {
		t.Fatal(err)
	}
	// Short, for the sockets' sake, and this test's alone, for leaks to be seen.
	temp, err := os.MkdirTemp("", "bltest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(temp) })
	t.Setenv("TMPDIR", temp)
	var p parts
	if p.agent, err = Agent(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if p.busybox, err = c.Busybox(t.Context()); err != nil {
		t.Fatal(err)
	}
	if kernel {
		if p.kernel, err = c.Kernel(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p parts) spec(t *testing.T, id string) Spec {
	t.Helper()
	// Several runs of these tests may share a machine.
	run := os.Getenv(runEnv)
	if run == "" {
		run = strconv.Itoa(os.Getpid())
	}
	return Spec{
		ID: id + "-" + run, StateDir: filepath.Join(t.TempDir(), "state"), Agent: p.agent, Kernel: p.kernel, MemoryMiB: 1024, MaxENIs: 3,
		Keep:         []string{p.busybox},
		SearchDomain: "us-west-2.compute.internal", Modules: []string{"8021q"},
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

// within bounds a step of a test.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("step took more than %v", d))
	t.Cleanup(cancel)
	return ctx
}

// sh runs a shell script in an instance and returns both outputs and the exit code.
func sh(t *testing.T, i Instance, script string) (string, int) {
	t.Helper()
	r, err := i.Exec(within(t, 60*time.Second), Command{Argv: []string{"sh", "-c", script}})
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return string(r.Stdout) + string(r.Stderr), r.ExitCode
}

func mustSh(t *testing.T, i Instance, script string) string {
	t.Helper()
	out, code := sh(t, i, script)
	if code != 0 {
		t.Fatalf("%s: exit code %d:\n%s", script, code, out)
	}
	return strings.TrimSpace(out)
}

// The VPC of these tests.
var (
	subnetA = netip.MustParsePrefix("192.168.0.0/19")
	subnetB = netip.MustParsePrefix("192.168.32.0/19")

	eniVM     = attachment("eni-vm", 0x01, 0, "192.168.1.10", subnetA)
	eniTrunk  = attachment("eni-trunk", 0x02, 1, "192.168.1.11", subnetA)
	eniBranch = attachment("eni-branch", 0x03, -1, "192.168.1.12", subnetA)
	eniDB     = attachment("eni-db", 0x04, 0, "192.168.33.20", subnetB)
)

const branchVLAN = 7

func attachment(id string, last byte, device int, addr string, subnet netip.Prefix) ec2.AttachmentSpec {
	return ec2.AttachmentSpec{
		ENIID: id, MAC: net.HardwareAddr{0x06, 0x20, 0x0d, 0x3c, 0x5f, last}, DeviceIndex: device,
		Address: netip.MustParseAddr(addr), SubnetCIDR: subnet,
	}
}

func labTopology() *vpc.Topology {
	anywhere := netip.MustParsePrefix("0.0.0.0/0")
	all := vpc.Rule{ID: "sgr-egress", Protocol: -1, FromPort: -1, ToPort: -1, CIDR: anywhere}
	eni := func(a ec2.AttachmentSpec, subnet, instance, group string) vpc.ENI {
		return vpc.ENI{ID: a.ENIID, SubnetID: subnet, MAC: a.MAC, Addresses: []netip.Addr{a.Address}, Groups: []string{group}, SourceDestCheck: true, InstanceID: instance}
	}
	branch := eni(eniBranch, "subnet-a", "", "sg-pod")
	branch.TrunkID, branch.VLAN = eniTrunk.ENIID, branchVLAN
	return &vpc.Topology{
		CIDRs:   []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")},
		Subnets: []vpc.Subnet{{ID: "subnet-a", CIDR: subnetA}, {ID: "subnet-b", CIDR: subnetB}},
		ENIs:    []vpc.ENI{eni(eniVM, "subnet-a", "i-vm", "sg-node"), eni(eniTrunk, "subnet-a", "i-vm", "sg-node"), branch, eni(eniDB, "subnet-b", "i-db", "sg-db")},
		Groups: []vpc.SecurityGroup{
			{ID: "sg-node", Egress: []vpc.Rule{all}},
			{ID: "sg-pod", Egress: []vpc.Rule{all}},
			{ID: "sg-db", Egress: []vpc.Rule{all}, Ingress: []vpc.Rule{
				{ID: "sgr-ping", Protocol: 1, FromPort: -1, ToPort: -1, Group: "sg-node"},
				{ID: "sgr-db", Protocol: 6, FromPort: 5432, ToPort: 5432, Group: "sg-pod"},
			}},
		},
	}
}

func newFabric(t *testing.T) *vpc.Fabric {
	t.Helper()
	f := vpc.New(vpc.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	t.Cleanup(func() { f.Close() })
	f.Apply(labTopology())
	return f
}

func plug(t *testing.T, f *vpc.Fabric, i Instance, a ec2.AttachmentSpec) vpc.Link {
	t.Helper()
	l, err := i.AttachENI(within(t, 30*time.Second), a)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.AddPort(a.ENIID, l); err != nil {
		t.Fatal(err)
	}
	return l
}

func startNetns(t *testing.T, spec Spec) Instance {
	t.Helper()
	i, err := StartNetns(within(t, 30*time.Second), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	})
	return i
}

// linkOf returns the name of the link with this MAC, "" if there is none.
func linkOf(t *testing.T, i Instance, mac net.HardwareAddr) string {
	t.Helper()
	return mustSh(t, i, fmt.Sprintf(`for d in /sys/class/net/*; do [ "$(cat $d/address 2>/dev/null)" = %s ] && basename $d; done; true`, mac))
}

// eventually waits for what no event tells of.
func eventually(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(d); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("after %v still not: %s", d, what)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
