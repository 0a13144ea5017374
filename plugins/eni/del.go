package eni

import (
	"context"
	"slices"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/rpc"
)

// del tears the sandbox down from what the runtime and the kernel know, then tells the agent. Neither the agent nor the
// API server nor the network namespace is needed, and it may run any number of times. It fails only when the kernel
// did not do what it was asked to, so that the runtime tries again.
func (o *operation) del(ctx context.Context) error {
	for _, err := range []error{o.configErr, o.podErr} {
		if err != nil {
			o.note("ignored", err.Error())
		}
	}
	prev, err := parsePrevious(o.config.PrevResult, o.args.IfName)
	if err != nil {
		o.note("ignored", err.Error())
	}
	lock, err := datapath.OpenLock(o.config.lockPath())
	if err != nil {
		return err
	}
	client, err := rpc.Dial(o.config.Socket)
	if err != nil {
		o.note("agentNotTold", err.Error())
	} else {
		defer client.Close()
		// The kernel waits for its grace periods while a link goes: the connection comes up meanwhile. An agent that isn't
		// there now may be when it is told.
		_ = client.Connect()
	}
	r := o.removal(prev)
	var removed datapath.Removed
	if u := prev.upstream; u != nil {
		o.note("wiredBy", "upstream")
		u.PodNamespace, u.PodName = o.pod.Namespace, o.pod.Name
		r.HostVeths = append(r.HostVeths, u.HostVeth)
		removed, err = datapath.TeardownUpstream(ctx, *u, lock)
	} else {
		removed, err = datapath.Teardown(ctx, r, lock)
	}
	if err == nil {
		o.forgetPolicies(r.HostVeths)
	}
	lock.Close()
	if removed.Address.IsValid() {
		o.note("address", removed.Address.String())
	}
	if removed.VLAN != 0 {
		o.note("vlan", removed.VLAN)
	}
	if len(removed.Further) > 0 {
		o.note("further", removed.Further)
	}
	o.note("links", removed.Links)
	if err != nil || client == nil {
		return err
	}
	if removed.VLAN == 0 {
		o.tell(client, nil, false, "")
		return nil
	}
	// Not the lock of before: the next sandbox of this pod, or on this VLAN id, need not wait for the agent's answer.
	if lock, err = datapath.OpenLock(o.config.lockPath()); err != nil {
		return err
	}
	defer lock.Close()
	o.tell(client, lock, false, "")
	return nil
}

func (o *operation) removal(prev previous) datapath.Removal {
	r := datapath.Removal{
		Owner: o.owner, VLAN: prev.vlan, Address: prev.address, Regular: prev.known && prev.vlan == 0, Further: prev.further,
	}
	if prev.hostVeth != "" {
		r.HostVeths = append(r.HostVeths, prev.hostVeth)
	}
	if o.pod.Namespace != "" && o.pod.Name != "" {
		r.PodNamespace, r.PodName = o.pod.Namespace, o.pod.Name
		// The result may be lost, and the prefix may have changed since: the marks sort out what is ours.
		for _, prefix := range []string{o.config.VethPrefix, datapath.BranchVethPrefix} {
			if name := datapath.HostVethName(prefix, o.pod.Namespace, o.pod.Name); !slices.Contains(r.HostVeths, name) {
				r.HostVeths = append(r.HostVeths, name)
			}
		}
	}
	return r
}
