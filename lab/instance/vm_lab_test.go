//go:build lab

package instance

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/lab/vpc"
)

// One VM for all its tests: booting takes ten seconds.
func TestVMAndNamespaceOnTheFabric(t *testing.T) {
	p := labParts(t, true)
	before := observe(t)
	f := newFabric(t)
	db := startNetns(t, p.spec(t, "i-db"))
	plug(t, f, db, eniDB)
	var log strings.Builder
	spec := p.spec(t, "i-vm")
	spec.Log = slog.New(slog.NewTextHandler(&log, nil))
	spec.firstBoot = time.Second // as if it hung
	i, err := StartVM(within(t, bootDeadline+time.Minute), spec)
	if err != nil {
		t.Fatal(err)
	}
	if said := log.String(); !containsAll(said, "booted again", "not booted within 1s", "RIP=", "VM booted") {
		t.Errorf("a VM that hung in its boot: %s", said)
	}
	t.Cleanup(func() {
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	})
	plug(t, f, i, eniVM)

	t.Run("primary link is eth0 with address, route, name server and host name", func(t *testing.T) { checkPrimary(t, i, "ip-192-168-1-10", eniVM) })
	t.Run("VM and namespace ping each other's allowed way through the security group", func(t *testing.T) {
		mustSh(t, i, p.busybox+" ping -c 2 -W 5 "+eniDB.Address.String())
		if out, code := sh(t, db, p.busybox+" ping -c 2 -W 1 "+eniVM.Address.String()); code == 0 {
			t.Errorf("sg-node lets nothing in, but the database reached the VM:\n%s", out)
		}
		requireDrop(t, f, eniVM.ENIID, vpc.NoRule)
	})
	t.Run("packets of the VPC's MTU pass whole", func(t *testing.T) {
		mustSh(t, i, p.busybox+" ping -c 1 -W 5 -s 8973 "+eniDB.Address.String())
		if got := mustSh(t, i, "cat /sys/class/net/eth0/mtu"); got != "9001" {
			t.Errorf("MTU of eth0 is %s", got)
		}
	})
	t.Run("tagged frames on the trunk come from the branch ENI and carry its groups", func(t *testing.T) { checkBranch(t, p.busybox, f, i, db) })
	t.Run("detach takes the link away and frees its slot", func(t *testing.T) { checkDetach(t, f, i, eniTrunk) })
	t.Run("commands", func(t *testing.T) { checkCommands(t, i) })
	t.Run("masks", func(t *testing.T) { checkMasks(t, i, p.busybox) })
	t.Run("close leaves nothing behind", func(t *testing.T) {
		dir := i.(*vm).plan.runDir
		if err := errors.Join(i.Close(), db.Close(), f.Close()); err != nil {
			t.Fatal(err)
		}
		if exists(dir) {
			t.Errorf("%s is still there", dir)
		}
		before.requireSame(t)
		if _, err := i.Exec(t.Context(), Command{Argv: []string{"true"}}); !errors.Is(err, ErrClosed) {
			t.Errorf("command in an ended VM: %v, want ErrClosed", err)
		}
	})
}

// checkBranch gives a network namespace of the VM a VLAN link on the trunk, as the plugin gives it to a pod.
func checkBranch(t *testing.T, busybox string, f *vpc.Fabric, i, db Instance) {
	plug(t, f, i, eniTrunk)
	trunk := linkOf(t, i, eniTrunk.MAC)
	if trunk != "eth1" {
		t.Fatalf("the trunk's link is %q, want eth1", trunk)
	}
	if got := mustSh(t, i, "cat /sys/class/net/eth1/flags"); got != "0x1002" { // BROADCAST, MULTICAST
		t.Errorf("flags of the secondary link are %s: only the primary one is configured by the instance", got)
	}
	server, err := db.Start(t.Context(), "listener", Command{Argv: []string{busybox, "nc", "-ll", "-p", "5432", "-e", "echo", "three rows"}})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Wait(within(t, 10*time.Second))
	defer server.Signal(t.Context(), 9)
	mustSh(t, i, fmt.Sprintf(`set -e
ip link set eth1 up
ip netns add pod
ip link add link eth1 name vlan.eth.%[1]d address %[2]s type vlan id %[1]d
ip link set vlan.eth.%[1]d netns pod
ip -n pod addr add %[3]s/19 dev vlan.eth.%[1]d
ip -n pod link set vlan.eth.%[1]d up
ip -n pod route add default via 192.168.0.1`, branchVLAN, eniBranch.MAC, eniBranch.Address))
	connect := busybox + " nc -w 5 " + eniDB.Address.String() + " 5432 </dev/null"
	if out := mustSh(t, i, "ip netns exec pod "+connect); out != "three rows" {
		t.Errorf("the pod read %q from the database", out)
	}
	// The node itself has no rule on the database's group: in the same minute, to the same port.
	if out, code := sh(t, i, connect); code == 0 || out == "three rows" {
		t.Errorf("the node reached the database with sg-node: %q", out)
	}
	requireDrop(t, f, eniDB.ENIID, vpc.NoRule)
	mustSh(t, i, "ip netns del pod")
}

func checkDetach(t *testing.T, f *vpc.Fabric, i Instance, a ec2.AttachmentSpec) {
	if _, err := i.AttachENI(t.Context(), a); !errors.Is(err, ErrAttached) {
		t.Errorf("attach twice: %v, want ErrAttached", err)
	}
	for round := range 2 {
		if err := f.RemovePort(a.ENIID); err != nil {
			t.Fatal(err)
		}
		if err := i.DetachENI(within(t, 30*time.Second), a.ENIID); err != nil {
			t.Fatal(err)
		}
		if name := linkOf(t, i, a.MAC); name != "" {
			t.Fatalf("round %d: link %s is still there", round, name)
		}
		if round == 0 {
			plug(t, f, i, a)
			if linkOf(t, i, a.MAC) == "" {
				t.Fatal("attached again, but no link appeared")
			}
		}
	}
	if err := i.DetachENI(t.Context(), a.ENIID); !errors.Is(err, ErrNotAttached) {
		t.Errorf("detach what is not attached: %v, want ErrNotAttached", err)
	}
}

func requireDrop(t *testing.T, f *vpc.Fabric, eniID string, reason vpc.Reason) {
	t.Helper()
	for _, d := range f.Drops() {
		if d.ENI == eniID && d.Reason == reason {
			return
		}
	}
	t.Errorf("no drop at %s for %s in %v", eniID, reason, f.Drops())
}

func TestVMThatDoesNotBootTellsTheConsole(t *testing.T) {
	p := labParts(t, true)
	before := observe(t)
	spec := p.spec(t, "i-broken")
	spec.Keep = []string{"/home/there/is/no/such/file"}
	if _, err := os.Stat(spec.Keep[0]); err == nil {
		t.Fatal("unexpected file")
	}
	_, err := StartVM(within(t, bootDeadline), spec)
	if err == nil {
		t.Fatal("booted without a file that it must keep")
	}
	if !containsAll(err.Error(), spec.Keep[0], "guest agent", "i-broken") {
		t.Errorf("the error says neither what is missing nor where: %v", err)
	}
	before.requireSame(t)
}
