package contender

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/test/bench/agent"
	"github.com/branchline-cni/branchline/test/bench/world"
)

const (
	vethPrefix = "eni"
	podMTU     = 9001
	trunkName  = "trunk"
	maxVLANs   = 4094
	// firstIndex is where the bare loop's host veths are numbered from.
	firstIndex = 100_000
	// localPodsPriority is that of the agent's rule for the table of local pods.
	localPodsPriority = 512
)

// prepareHost gives a host namespace what the node agent and the init container give a node, as far as an ADD meets it.
// All contenders get the same.
func prepareHost(host *world.Namespace) (err error) {
	h, err := host.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("look up lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	// A node's primary ENI. For each route without a source address the kernel looks for one among all links, until it
	// finds one that has an address: on a node that is the second link, without it the walk would grow with the pods.
	if _, err := makePair(h, "eth0", "vpc0"); err != nil {
		return err
	}
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("look up eth0: %w", err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 168, 10, 10), Mask: net.CIDRMask(19, 32)}}
	if err := h.AddrAdd(eth0, address); err != nil {
		return fmt.Errorf("add an address to eth0: %w", err)
	}
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Table = unix.AF_INET, localPodsPriority, datapath.LocalPodsTable
	if err := h.RuleAdd(rule); err != nil {
		return fmt.Errorf("add the rule for local pods: %w", err)
	}
	return nil
}

// makeTrunk gives a host namespace a link that stands for the trunk ENI: one end of a veth, both ends up.
func makeTrunk(host *world.Namespace) (index int, err error) {
	h, err := host.Netlink()
	if err != nil {
		return 0, err
	}
	defer h.Close()
	return makePair(h, trunkName, "vpc")
}

// makePair makes a veth with both ends here, up, and returns the index of the first.
func makePair(h *netlink.Handle, name, peer string) (index int, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, podMTU
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU = peer, podMTU
	if err := h.LinkAdd(veth); err != nil {
		return 0, fmt.Errorf("make the links %s and %s: %w", name, peer, err)
	}
	for _, n := range []string{peer, name} {
		l, err := h.LinkByName(n)
		if err != nil {
			return 0, fmt.Errorf("look up %s: %w", n, err)
		}
		if err := h.LinkSetUp(l); err != nil {
			return 0, fmt.Errorf("bring up %s: %w", n, err)
		}
		index = l.Attrs().Index
	}
	return index, nil
}

// HasVLANs says whether this kernel has 802.1Q, by trying in a throw-away namespace.
func HasVLANs() (has bool, err error) {
	spaces, err := world.Make(1)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, world.Close(spaces)) }()
	index, err := makeTrunk(spaces[0])
	if err != nil {
		return false, err
	}
	h, err := spaces[0].Netlink()
	if err != nil {
		return false, err
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = "vlan.eth.1", index
	err = h.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: 1, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	return err == nil, err
}

// bare prepares the floor: it gets every argument from the same plan that the CNI executable makes.
func bare(bin string) *Contender {
	path := filepath.Join(bin, "bare")
	table := strconv.Itoa(agent.RouteTable)
	plan := func(p Pod) (datapath.Plan, error) {
		return datapath.NewPlan(datapath.Request{
			Owner:        datapath.Owner{ContainerID: p.ContainerID, IfName: "eth0"},
			PodNamespace: agent.PodNamespace, PodName: agent.PodName(agent.Regular, p.N),
			VethPrefix: vethPrefix, MTU: podMTU, Address: agent.Address(p.N), Regular: &datapath.Regular{RouteTable: agent.RouteTable},
		})
	}
	return &Contender{
		Name: Bare,
		Add: func(p Pod) (Invocation, error) {
			made, err := plan(p)
			if err != nil {
				return Invocation{}, err
			}
			mark := datapath.Mark{Owner: made.Owner, Address: agent.Address(p.N)}
			return Invocation{Argv: []string{
				path, "ADD", p.Netns, made.HostVeth.Host, made.HostVeth.HostMAC.String(), made.HostVeth.PodMAC.String(), mark.String(),
				agent.Address(p.N).String(), strconv.Itoa(made.HostVeth.MTU), table, strconv.Itoa(firstIndex + p.N),
			}}, nil
		},
		Del: func(p Pod, _ []byte) (Invocation, error) {
			made, err := plan(p)
			return Invocation{Argv: []string{path, "DEL", made.HostVeth.Host, agent.Address(p.N).String(), table}}, err
		},
		Loop: func(stdout []byte) (int64, error) {
			return strconv.ParseInt(strings.TrimSpace(string(stdout)), 10, 64)
		},
	}
}
