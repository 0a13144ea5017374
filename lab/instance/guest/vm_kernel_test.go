//go:build kernel

package guest

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestKernelHas8021Q(t *testing.T) {
	parent := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "bltest0"}}
	if err := netlink.LinkAdd(parent); err != nil {
		t.Fatal("add dummy link:", err)
	}
	t.Cleanup(func() { netlink.LinkDel(parent) })
	vlan := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "bltest0.7", ParentIndex: parent.Attrs().Index}, VlanId: 7}
	if err := netlink.LinkAdd(vlan); err != nil {
		t.Fatal("add VLAN link:", err)
	}
}

// TestProcessesOfAVMSleepCoarsely: this one, and those that it starts, from whichever thread.
func TestProcessesOfAVMSleepCoarsely(t *testing.T) {
	want := strconv.FormatInt(timerSlack.Nanoseconds(), 10)
	own, err := os.ReadFile("/proc/self/timerslack_ns")
	if err != nil {
		t.Fatal(err)
	}
	child, err := exec.CommandContext(t.Context(), "cat", "/proc/self/timerslack_ns").Output()
	if err != nil {
		t.Fatal(err)
	}
	if o, c := strings.TrimSpace(string(own)), strings.TrimSpace(string(child)); o != want || c != want {
		t.Errorf("the slack is %s, and %s for a child, want %s ns", o, c, want)
	}
}
