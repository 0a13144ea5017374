//go:build kernel

package hostnet

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// Egress addresses are of the family that the cluster doesn't have: the world is of that one, what is desired of the other.
func TestEgressAddressesAreAWayOutAndNoWayInWithoutThePluginsOwnRules(t *testing.T) {
	for _, family := range families() {
		t.Run(family, func(t *testing.T) {
			w := newNATWorld(t, isIPv6(family))
			pod, subnet := netip.MustParseAddr("169.254.172.7"), netip.MustParsePrefix("169.254.172.0/22")
			if w.ipv6 {
				pod, subnet = netip.MustParseAddr("fd00::ac:7"), netip.MustParsePrefix("fd00::ac:0/118")
			}
			ns := nstest.New(t)
			w.pod(t, ns, "egr40123456789a", pod, 0)
			w.route(t, w.vpc, "p0", pod, w.nodeAddr, 0)
			w.tell(t, ns, pod)
			d := Desired{IPv6: !w.ipv6, VethPrefix: "eni", Egress: subnet}
			reconcile(t, w.k, d)
			w.wantSeen(t, "out", ns, netip.Addr{}, w.addr[outsideVPC], tellPort, w.nodeAddr)
			w.wantSeen(t, "in from elsewhere", w.vpc, netip.Addr{}, pod, tellPort)
			w.wantSeen(t, "in from the node", w.node, netip.Addr{}, pod, tellPort)
			d.Egress = netip.Prefix{}
			reconcile(t, w.k, d)
			if slices.Contains(w.tables(t), GuardTable) {
				t.Error("what is no longer asked for is still there")
			}
			w.wantSeen(t, "nobody guards it any more", w.node, netip.Addr{}, pod, tellPort, w.nodeAddr, w.eniAddr)
		})
	}
}
