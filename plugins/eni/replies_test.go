package eni

import "github.com/branchline-cni/branchline/rpc"

func branchReply(vlan uint32, mac, address string, trunk int) *rpc.AddReply {
	return &rpc.AddReply{Version: rpc.Version, Interface: &rpc.AddReply_Branch{Branch: &rpc.BranchInterface{
		EniId: "eni-0branch", Mac: mac, VlanId: vlan, Address: address,
		SubnetCidr: "192.168.32.0/19", Gateway: "192.168.32.1", TrunkIfindex: uint32(trunk),
	}}}
}

// branchReply6 is a branch ENI's in an IPv6 cluster.
func branchReply6(vlan uint32, mac, address string, trunk int) *rpc.AddReply {
	r := branchReply(vlan, mac, address, trunk)
	r.GetBranch().SubnetCidr, r.GetBranch().Gateway = "2001:db8:1::/64", "fe80:ec2::1"
	return r
}

// standard is the reply for a branch pod in standard mode.
func standard(r *rpc.AddReply) *rpc.AddReply {
	r.GetBranch().EnforcingMode = rpc.EnforcingMode_ENFORCING_MODE_STANDARD
	return r
}

func regularReply(address string, table uint32) *rpc.AddReply {
	return &rpc.AddReply{Version: rpc.Version, Interface: &rpc.AddReply_Regular{Regular: &rpc.RegularInterface{
		Address: address, EniId: "eni-0own", RouteTable: table,
	}}}
}
