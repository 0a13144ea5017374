package eni

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/branchline-cni/branchline/plugins/datapath"
)

// newResult is what the runtime caches and passes to the chained plugins and to DEL. It says everything that DEL needs:
// the host veth's name, the pod's address and, as the name of the third interface, the VLAN id. A pod's first
// interface comes first, and the route is its: chained plugins work on it, by its name or because it comes first.
func newResult(w wiring, netns string) *current.Result {
	gateway, bits := datapath.PodGateway(w.address), w.address.BitLen()
	r := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Routes:     []*types.Route{{Dst: net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)}, GW: gateway.AsSlice()}},
	}
	addEnds(r, w.plan.HostVeth, netns)
	if v := w.plan.VLAN; v != nil {
		r.Interfaces = append(r.Interfaces, &current.Interface{Name: v.Name, Mac: v.MAC.String()})
	}
	for _, veth := range w.plan.Further {
		addEnds(r, veth, netns)
	}
	return r
}

// addEnds adds both ends of a veth, the host's first, and the address of the pod's.
func addEnds(r *current.Result, veth datapath.AddVeth, netns string) {
	a := veth.Mark.Address
	r.Interfaces = append(r.Interfaces,
		&current.Interface{Name: veth.Host, Mac: veth.HostMAC.String(), Mtu: veth.MTU},
		&current.Interface{Name: veth.Pod, Mac: veth.PodMAC.String(), Mtu: veth.MTU, Sandbox: netns})
	r.IPs = append(r.IPs, &current.IPConfig{
		Interface: current.Int(len(r.Interfaces) - 1),
		Address:   net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())},
		Gateway:   datapath.PodGateway(a).AsSlice(),
	})
}

// previous is what DEL and CHECK take from an earlier result.
type previous struct {
	known    bool
	hostVeth string
	vlan     int
	address  netip.Addr
	// interfaces and addresses are all that the result names, those of chained plugins too.
	interfaces []previousInterface
	// further are those on further network cards.
	further   []datapath.FurtherLeft
	addresses []netip.Addr
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
			Address   string `json:"address"`
			Interface any    `json:"interface"`
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
		p.noteFurther()
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
			p.noteAddress(ip.Interface, prefix.Addr())
		}
	}
	if len(p.addresses) > 0 {
		p.address = p.addresses[0]
	}
	p.upstream = p.ofUpstream(ifName)
	return p, nil
}

// noteFurther looks at the newest interface: the pod's end of a further one follows the host's.
func (p *previous) noteFurther() {
	last := len(p.interfaces) - 1
	number, ok := datapath.FurtherNumber(p.interfaces[last].name)
	if !ok || p.interfaces[last].sandbox == "" || last == 0 {
		return
	}
	host := p.interfaces[last-1]
	if host.sandbox != "" || host.name == "" || len(host.name) > maxLinkName || slices.ContainsFunc(p.further, func(f datapath.FurtherLeft) bool { return f.Number == number }) {
		return
	}
	p.further = append(p.further, datapath.FurtherLeft{Number: number, HostVeth: host.name})
}

// noteAddress gives a further interface its address.
func (p *previous) noteAddress(index any, a netip.Addr) {
	at, ok := index.(float64)
	if !ok || len(p.further) == 0 || at < 0 || at >= float64(len(p.interfaces)) { // as a float: an int may not hold it
		return
	}
	i := p.interfaces[int(at)]
	number, ok := datapath.FurtherNumber(i.name)
	if !ok || i.sandbox == "" {
		return
	}
	for n := range p.further {
		if f := &p.further[n]; f.Number == number && !f.Address.IsValid() {
			f.Address = a
		}
	}
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
