package lab

import (
	"context"
	"path/filepath"

	"github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/lab/instance"
)

// vmTypes are the instance types that the lab makes virtual machines of: those that get a trunk, as VLANs need a kernel
// with 802.1Q. All others share the machine's kernel.
var vmTypes = map[string]bool{nodeType: true}

// startInstance makes an instance real. EC2 calls it in the background of RunInstances.
func (l *Lab) startInstance(ctx context.Context, spec ec2.InstanceSpec) (instance.Instance, error) {
	s := instance.Spec{
		ID: spec.ID, Type: spec.Type, StateDir: l.stateDir(spec.ID), Agent: l.parts.agent,
		DNS: dnsAddr, SearchDomain: Region + ".compute.internal",
		Keep: []string{l.parts.cacheDir, l.BinDir()}, Log: l.log,
	}
	if !vmTypes[spec.Type] || l.opt.OneNode {
		return instance.StartNetns(ctx, s)
	}
	s.MemoryMiB, s.CPUs, s.MaxENIs, s.Kernel = 4096, 2, 3, l.parts.kernel
	s.Modules = []string{
		"8021q", "veth", "nf_tables", "nft_ct", "nft_nat", "nft_masq", "nft_chain_nat", "nft_fib_ipv4", "nft_fib_inet",
		"nft_numgen", "nft_reject_ipv4", "nft_reject_ipv6", "nft_socket", "nf_conntrack", "nf_conntrack_netlink", "tcp_diag", "overlay", "br_netfilter",
	}
	return instance.StartVM(ctx, s)
}

// stateDir is the folder that an instance shares with the machine.
func (l *Lab) stateDir(instanceID string) string { return filepath.Join(l.opt.Dir, "i", instanceID) }

// Exec runs a program in an instance, to its end.
func (l *Lab) Exec(ctx context.Context, m Machine, argv ...string) (instance.Result, error) {
	host, err := l.cloud.host(m.ID)
	if err != nil {
		return instance.Result{}, err
	}
	return host.Exec(ctx, instance.Command{Argv: argv})
}

// machineOf is the running instance behind a Machine.
func (l *Lab) machineOf(m Machine) (instance.Instance, error) { return l.cloud.host(m.ID) }
