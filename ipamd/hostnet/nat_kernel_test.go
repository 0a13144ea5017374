//go:build kernel

package hostnet

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

func TestWhatLeavesTheVPCHasTheAddressThatTheConfigurationSays(t *testing.T) {
	for _, family := range families() {
		t.Run(family, func(t *testing.T) {
			w := newNATWorld(t, isIPv6(family))
			w.kubeProxy(t)
			on := w.on()
			off := on
			off.Source = false
			noNodePort := on
			noNodePort.NodePort, noNodePort.ConnMark = false, 0x100
			for _, c := range []struct {
				name string
				nat  NAT
			}{{"source NAT", on}, {"external source NAT", off}, {"source NAT again, no NodePort, another mark", noNodePort}, {"neither", NAT{}}} {
				w.set(t, c.nat)
				for _, pod := range podNames {
					outside := w.addr[pod]
					if c.nat.Source && !w.ipv6 {
						outside = w.nodeAddr
					}
					for to, want := range map[string]netip.Addr{inVPC: w.addr[pod], outsideVPC: outside, excluded: w.addr[pod], clusterIP: w.addr[pod]} {
						w.wantSeen(t, fmt.Sprintf("%s: %s to %s", c.name, pod, to), w.pods[pod], netip.Addr{}, w.addr[to], tellPort, want)
					}
					// Who asks the pod from outside the VPC is answered by the pod's ENI, as itself.
					w.wantSeen(t, fmt.Sprintf("%s: the Internet to %s", c.name, pod), w.vpc, w.addr[outsideVPC], w.addr[pod], tellPort, w.addr[outsideVPC])
				}
				w.wantSeen(t, c.name+": one pod to another", w.pods[onSecondary], netip.Addr{}, w.addr[onBranch], tellPort, w.addr[onSecondary])
				c.nat.VPC = []netip.Prefix{netip.PrefixFrom(w.nodeAddr, w.nodeAddr.BitLen())} // the VPC has just got more
				w.set(t, c.nat)
				w.wantSeen(t, c.name+": one pod to another of a prefix that isn't known yet", w.pods[onSecondary], netip.Addr{}, w.addr[onBranch], tellPort, w.addr[onSecondary])
				for _, own := range []netip.Addr{w.nodeAddr, w.eniAddr} {
					w.wantSeen(t, c.name+": the node to the Internet", w.node, own, w.addr[outsideVPC], tellPort, own)
				}
			}
		})
	}
}

// AWS_EXTERNAL_SERVICE_CIDRS: what is there is called by the primary ENI, whichever ENI the pod's address is of. So without source
// NAT, EC2 does not let the packets of other ENIs' pods out there.
func TestAnExternalServiceIsCalledByThePrimaryENI(t *testing.T) {
	for _, family := range families() {
		t.Run(family, func(t *testing.T) {
			w := newNATWorld(t, isIPv6(family))
			single := []netip.Prefix{netip.PrefixFrom(w.addr[external], w.addr[external].BitLen())}
			call := func(what, pod string, seen ...netip.Addr) {
				w.wantSeen(t, what+": "+pod, w.pods[pod], netip.Addr{}, w.addr[external], tellPort, seen...)
			}
			off := w.on()
			off.Source = false
			w.set(t, off)
			call("not external, no source NAT", onSecondary, w.addr[onSecondary])
			w.d.External = single
			w.set(t, off)
			call("external, no source NAT", onSecondary)
			call("external, no source NAT", onPrimary, w.addr[onPrimary])
			if w.ipv6 {
				return // nothing is translated
			}
			w.set(t, w.on())
			for _, pod := range []string{onPrimary, onSecondary} {
				call("external, source NAT", pod, w.nodeAddr)
			}
			w.d.External = nil
			off.Source = false
			w.set(t, off)
			call("no more external", onSecondary, w.addr[onSecondary])
		})
	}
}

// TestARuleForAPodsAddressKeepsNoConnectionFromThePrimaryENI: on a node that was taken over each of upstream's pods has one,
// which was there first.
func TestARuleForAPodsAddressKeepsNoConnectionFromThePrimaryENI(t *testing.T) {
	for _, family := range families() {
		t.Run(family, func(t *testing.T) {
			w := newNATWorld(t, isIPv6(family))
			own, outside := w.addr[onSecondary], w.addr[onSecondary]
			rule := Rule{Priority: MarkPriority, From: netip.PrefixFrom(own, own.BitLen()), Table: Slot{0, 1}.Table()}
			if err := w.node.Handle.RuleAdd(toKernel(rule, w.ipv6)); err != nil {
				t.Fatal(err)
			}
			w.kubeProxy(t)
			w.set(t, w.on())
			if !w.ipv6 {
				outside = w.nodeAddr
			}
			w.wantSeen(t, "to the Internet", w.pods[onSecondary], netip.Addr{}, w.addr[outsideVPC], tellPort, outside)
			w.wantSeen(t, "to the VPC", w.pods[onSecondary], netip.Addr{}, w.addr[inVPC], tellPort, own)
			w.wantSeen(t, "called by a NodePort", w.vpc, w.addr[outsideVPC], w.nodeAddr, w.nodePort(onSecondary, false), w.addr[outsideVPC])
		})
	}
}

func TestWhatIsNoPodsIsLeftAlone(t *testing.T) {
	w := newNATWorld(t, false)
	w.set(t, w.on())
	other, address := nstest.New(t), netip.MustParseAddr("10.88.0.2")
	w.pod(t, other, "docker0", address, MainTable) // somebody else's container: who made it translates it, or nobody
	w.wantSeen(t, "to the Internet", other, netip.Addr{}, w.addr[outsideVPC], tellPort)
	w.wantSeen(t, "to a pod of the primary ENI", other, netip.Addr{}, w.addr[onPrimary], tellPort, address)
}

func TestSourcePortsAreChosenAsConfigured(t *testing.T) {
	w := newNATWorld(t, false)
	for ports, kept := range map[Ports]bool{PortsRandom: false, PortsHashed: false, PortsKept: true} {
		n := w.on()
		n.Ports = ports
		w.set(t, n)
		same := 0
		for i := range 4 {
			source := netip.AddrPortFrom(w.addr[onSecondary], uint16(41000+100*int(ports)+i))
			seen, err := w.seenAs(w.pods[onSecondary], source, w.addr[outsideVPC], tellPort, patience)
			if err != nil || seen.Addr() != w.nodeAddr {
				t.Fatalf("ports %d: seen as %v, %v", ports, seen, err)
			}
			if seen.Port() == source.Port() {
				same++
			}
		}
		if kept && same != 4 || !kept && same > 1 {
			t.Errorf("ports %d: %d of 4 were kept", ports, same)
		}
	}
}

func TestP35NodePortsAnswerLeavesByTheENIThatWasAsked(t *testing.T) {
	for _, c := range []struct {
		name  string
		ipv6  bool
		proxy func(*natWorld, *testing.T)
	}{
		{"IPv4, nftables", false, (*natWorld).kubeProxy}, {"IPv6, nftables", true, (*natWorld).kubeProxy},
		{"IPv4, iptables", false, (*natWorld).kubeProxyIptables},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newNATWorld(t, c.ipv6)
			c.proxy(w, t)
			on := w.on()
			off := on
			off.Source = false
			masqueraded := []netip.Addr{w.nodeAddr}
			if w.ipv6 { // the kernel takes the address that is most like the pod's
				masqueraded = append(masqueraded, w.eniAddr)
			}
			for name, nat := range map[string]NAT{"source NAT": on, "external source NAT": off} {
				w.set(t, nat)
				for _, pod := range podNames {
					for _, caller := range []string{inVPC, outsideVPC} {
						w.wantSeen(t, name+": policy Local, hostPort: "+caller+" to "+pod, w.vpc, w.addr[caller], w.nodeAddr, w.nodePort(pod, false), w.addr[caller])
						w.wantSeen(t, name+": policy Cluster: "+caller+" to "+pod, w.vpc, w.addr[caller], w.nodeAddr, w.nodePort(pod, true), masqueraded...)
					}
				}
				// A secondary ENI's own address is no address of the node: only the ENI's own pods answer there.
				w.wantSeen(t, name+": by a secondary ENI's address to its pod", w.vpc, w.addr[inVPC], w.eniAddr, w.nodePort(onSecondary, false), w.addr[inVPC])
				w.wantSeen(t, name+": by a secondary ENI's address to another's pod", w.vpc, w.addr[inVPC], w.eniAddr, w.nodePort(onPrimary, false))
			}
			off.NodePort = false
			w.set(t, off)
			w.wantSeen(t, "no support: the primary ENI's pod", w.vpc, w.addr[inVPC], w.nodeAddr, w.nodePort(onPrimary, false), w.addr[inVPC])
			for _, pod := range []string{onSecondary, onBranch} {
				w.wantSeen(t, "no support: "+pod, w.vpc, w.addr[inVPC], w.nodeAddr, w.nodePort(pod, false))
			}
			w.set(t, NAT{})
			if slices.Contains(w.tables(t), NATTable) {
				t.Error("what is no longer asked for is still there")
			}
			w.wantSeen(t, "kube-proxy goes on", w.vpc, w.addr[inVPC], w.nodeAddr, w.nodePort(onPrimary, false), w.addr[inVPC])
		})
	}
}
