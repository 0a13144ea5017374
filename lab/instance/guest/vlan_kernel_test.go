//go:build kernel

package guest

import (
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
