package eni

import "github.com/branchline-cni/branchline/rpc"

func branchReply(vlan uint32, mac, address string, trunk int) *rpc.AddReply {
	return &rpc.AddReply{Version: rpc.Version, Interface: &rpc.AddReply_Branch{Branch: &rpc.BranchInterface{
		EniId: "eni-0branch", Mac: mac, VlanId: vlan, Address: address,
		SubnetCidr: "192.168.32.0/19", Gateway: "192.168.32.1", TrunkIfindex: uint32(trunk),
	}}}
}

func regularReply(address string, table uint32) *rpc.AddReply {
	return &rpc.AddReply{Version: rpc.Version, Interface: &rpc.AddReply_Regular{Regular: &rpc.RegularInterface{
		Address: address, EniId: "eni-0own", RouteTable: table,
	}}}
}
