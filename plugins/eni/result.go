package eni

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/branchline-cni/branchline/plugins/datapath"
)

// newResult is what the runtime caches and passes to the chained plugins and to DEL. It says everything that DEL needs:
// the host veth's name, the pod's address and, as the name of the third interface, the VLAN id.
func newResult(w wiring, netns string) *current.Result {
	veth, gateway, bits := w.plan.HostVeth, datapath.PodGateway(w.address), w.address.BitLen()
	r := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: veth.Host, Mac: veth.HostMAC.String(), Mtu: veth.MTU},
			{Name: veth.Pod, Mac: veth.PodMAC.String(), Mtu: veth.MTU, Sandbox: netns},
		},
		IPs: []*current.IPConfig{{
			Interface: current.Int(1),
			Address:   net.IPNet{IP: w.address.AsSlice(), Mask: net.CIDRMask(bits, bits)},
			Gateway:   gateway.AsSlice(),
		}},
		Routes: []*types.Route{{Dst: net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)}, GW: gateway.AsSlice()}},
	}
	if v := w.plan.VLAN; v != nil {
		r.Interfaces = append(r.Interfaces, &current.Interface{Name: v.Name, Mac: v.MAC.String()})
	}
	return r
}

// previous is what DEL and CHECK take from an earlier result.
type previous struct {
	known    bool
	hostVeth string
	vlan     int
	address  netip.Addr
	// interfaces and addresses are all that the result names, those of chained plugins too.
	interfaces []previousInterface
	addresses  []netip.Addr
	// upstream is set when the plugin of before has made the result.
	upstream *datapath.Upstream
}

type previousInterface struct {
	name, mac, sandbox string
	mtu                int // 0: not told
}

// parsePrevious reads a result of ours, or of the plugin of before. The two lists that matter are spelt alike in every
// version that we declare, and the library's conversion panics on a null among the interfaces. A result that can't be
// read counts as missing, with the reason for the log: DEL does without.
func parsePrevious(raw json.RawMessage, ifName string) (previous, error) {
	if len(raw) == 0 {
		return previous{}, nil
	}
	var result struct {
		Interfaces []struct {
			Name    string `json:"name"`
			Mac     any    `json:"mac"`
			MTU     any    `json:"mtu"`
			Sandbox string `json:"sandbox"`
		} `json:"interfaces"`
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(raw, &result); err != nil {
		return previous{}, fmt.Errorf("read prevResult: %w", err)
	}
	p := previous{known: len(result.Interfaces) > 0}
	for _, i := range result.Interfaces {
		mac, _ := i.Mac.(string)
		mtu, _ := i.MTU.(float64)
		p.interfaces = append(p.interfaces, previousInterface{i.Name, mac, i.Sandbox, int(mtu)})
		if i.Sandbox != "" || len(i.Name) > maxLinkName || i.Name == "" {
			continue
		}
		if id, ok := datapath.VLANLinkID(i.Name); ok {
			p.vlan = id
		} else if p.hostVeth == "" && i.Name != ifName && !strings.HasPrefix(i.Name, upstreamDummy) {
			p.hostVeth = i.Name
		}
	}
	for _, ip := range result.IPs {
		if prefix, err := netip.ParsePrefix(ip.Address); err == nil && datapath.Usable(prefix.Addr()) {
			p.addresses = append(p.addresses, prefix.Addr())
		}
	}
	if len(p.addresses) > 0 {
		p.address = p.addresses[0]
	}
	p.upstream = p.ofUpstream(ifName)
	return p, nil
}

// upstreamDummy starts the name of an interface that is none: the plugin of before keeps numbers in it.
const upstreamDummy = "dummy"

// ofUpstream reads the encoding of the plugin of before: beside the two ends of the veth there is an interface
// dummy<hash>, with the VLAN id as its MAC ("0" for a regular pod); the pod's end has the routing table as its MAC.
func (p previous) ofUpstream(ifName string) *datapath.Upstream {
	u := &datapath.Upstream{HostVeth: p.hostVeth, IfName: ifName, Address: p.address}
	found := false
	for _, i := range p.interfaces {
		n, err := strconv.Atoi(i.mac)
		switch {
		case err != nil || n < 0:
		case strings.HasPrefix(i.name, upstreamDummy):
			u.VLAN, found = n, n <= datapath.MaxVLAN
		case i.name == ifName && i.sandbox != "":
			u.Table = n
		}
	}
	if !found || u.HostVeth == "" || !u.Address.IsValid() {
		return nil
	}
	return u
}

// maxLinkName is IFNAMSIZ - 1 of the kernel.
const maxLinkName = 15
