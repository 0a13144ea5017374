package egress

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/branchline-cni/branchline/plugins/datapath"
)

// Previous is what the plugin looks at of the result before it.
type Previous struct {
	Addresses []netip.Addr // the pod's
	Branch    bool         // the pod has a branch ENI
	Links     []string
}

// parsePrevious reads a result. It does without the library, whose conversion panics on a null among the interfaces.
func parsePrevious(raw json.RawMessage) (p Previous, err error) {
	if len(raw) == 0 {
		return p, types.NewError(types.ErrInvalidNetworkConfig, "network configuration of egress-cni: prevResult: there is none, it must come behind another plugin", "")
	}
	var result struct {
		Interfaces []*struct {
			Name string `json:"name"`
		} `json:"interfaces"`
		IPs []*struct {
			Address string `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(raw, &result); err != nil {
		return p, types.NewError(types.ErrDecodingFailure, "network configuration of egress-cni: prevResult: "+err.Error(), "")
	}
	for _, i := range result.Interfaces {
		if i == nil {
			return p, types.NewError(types.ErrDecodingFailure, "network configuration of egress-cni: prevResult: an interface is null", "")
		}
		p.Links = append(p.Links, i.Name)
		if _, ok := datapath.VLANLinkID(i.Name); ok {
			p.Branch = true
		}
	}
	for _, ip := range result.IPs {
		if ip == nil {
			return p, types.NewError(types.ErrDecodingFailure, "network configuration of egress-cni: prevResult: an address is null", "")
		}
		prefix, err := netip.ParsePrefix(ip.Address)
		if err != nil {
			return p, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("network configuration of egress-cni: prevResult: %q is no address", ip.Address), "")
		}
		p.Addresses = append(p.Addresses, prefix.Addr().Unmap())
	}
	return p, nil
}

// result is what the runtime and the plugins behind get: the previous result as it was, or with our two interfaces and
// the address behind what is there, so that every index in it stays right.
func result(c Config, w *Wiring, netns string) (types.Result, error) {
	prev, err := cniversion.NewResult(c.CNIVersion, c.PrevResult)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "network configuration of egress-cni: prevResult: "+err.Error(), "")
	}
	if w == nil {
		return prev, nil
	}
	r, err := current.NewResultFromResult(prev)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "network configuration of egress-cni: prevResult: "+err.Error(), "")
	}
	r.Interfaces = append(r.Interfaces,
		&current.Interface{Name: w.Host, Mac: w.HostMAC.String(), Mtu: w.MTU},
		&current.Interface{Name: w.Pod, Mac: w.PodMAC.String(), Mtu: w.MTU, Sandbox: netns})
	bits := w.Address.BitLen()
	r.IPs = append(r.IPs, &current.IPConfig{
		Interface: current.Int(len(r.Interfaces) - 1), Gateway: w.Gateway.AsSlice(),
		Address: net.IPNet{IP: w.Address.AsSlice(), Mask: net.CIDRMask(bits, bits)},
	})
	r.Routes = append(r.Routes, &types.Route{Dst: *ipNet(w.Family.Default()), GW: w.Gateway.AsSlice()})
	return r, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
