package eni

import (
	"context"
	"errors"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/unary"
)

// add asks the agent what the sandbox gets, wires it and prints the result. When any of it fails nothing is left, and
// the agent knows that it can have the address back; where something can't be taken away the agent isn't told.
func (o *operation) add(ctx context.Context) (err error) {
	if err := errors.Join(o.configErr, o.podErr); err != nil {
		return err
	}
	netns, err := openNetns(o.args.Netns)
	if err != nil {
		return err
	}
	defer netns.Close()
	client, err := rpc.Dial(o.config.Socket)
	if err != nil {
		return err
	}
	defer client.Close()

	reply, err := o.ask(ctx, client)
	if err != nil {
		if !definite(err) {
			o.tell(client, nil, true, err.Error())
		}
		return err
	}
	// undo runs also when a panic unwinds the stack: the locks and the connection are still there then.
	undo := func(reason string) { o.tell(client, nil, true, reason) }
	var lock *datapath.Lock
	delivered := false
	defer func() {
		if !delivered {
			reason := "panic"
			if err != nil {
				reason = err.Error()
			}
			undo(reason)
		}
		if lock != nil {
			lock.Close()
		}
	}()
	w, err := planReply(o.config, o.pod, o.owner, reply)
	if err != nil {
		return err
	}
	o.note("address", w.address.String(), "eni", w.eni)
	if w.vlan != 0 {
		o.note("vlan", w.vlan)
	}
	if further := w.plan.Further; len(further) > 0 {
		o.note("further", addressesOf(further))
	}
	if lock, err = o.lockFor(ctx, w); err != nil {
		return err
	}
	undo = func(reason string) {
		left := o.unwire(lock, w)
		if w.vlan == 0 {
			o.undone(client, nil, reason, left)
			return
		}
		o.undone(client, lock, reason, left)
	}
	if err := o.setHost(ctx, lock, reply.GetHost()); err != nil {
		return err
	}
	if err := datapath.Apply(ctx, w.plan, int(netns.Fd())); err != nil {
		return err
	}
	if err := o.enforcePolicies(ctx, 1+len(w.plan.Further)); err != nil {
		return err
	}
	// From here on the sandbox is wired: the result must reach the runtime, or the wiring must go.
	err = types.PrintResult(newResult(w, o.args.Netns), o.config.CNIVersion)
	delivered = err == nil
	return err
}

// ask asks again while the agent, or the connection to it, is Unavailable: an agent that is replaced takes the calls under
// way with it, and the question is idempotent.
func (o *operation) ask(ctx context.Context, client *rpc.Client) (*rpc.AddReply, error) {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		reply, err := client.Add(ctx, &rpc.AddRequest{
			Version: rpc.Version, Pod: o.pod.message(), Attachment: o.attachment(), SeveralInterfaces: true,
		})
		if unary.CodeOf(err) != unary.Unavailable {
			return reply, err
		}
		again := time.NewTimer(pause)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return nil, err
		}
	}
}

func addressesOf(further []datapath.AddVeth) (list []string) {
	for _, veth := range further {
		list = append(list, veth.Mark.Address.String())
	}
	return list
}

// lockFor takes what a DEL of an older sandbox of the same pod, or on the same VLAN id, would take.
func (o *operation) lockFor(ctx context.Context, w wiring) (*datapath.Lock, error) {
	lock, err := datapath.OpenLock(o.config.lockPath())
	if err != nil {
		return nil, err
	}
	for number := 0; err == nil && number <= len(w.plan.Further); number++ {
		err = lock.Pod(ctx, o.pod.Namespace, datapath.FurtherPodName(o.pod.Name, number))
	}
	if err == nil && w.vlan != 0 {
		err = lock.VLAN(ctx, w.vlan)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// undone tells the agent of an ADD whose wiring is gone again. Where it is not (left says why), the agent must go on holding
// the address: it ends the allocation once the kernel shows nothing of it, as after a DEL that it has not heard. With a lock
// the agent's answer is acted on, see tell.
func (o *operation) undone(client *rpc.Client, lock *datapath.Lock, reason string, left error) {
	if left != nil {
		o.note("undoError", left.Error())
		return
	}
	o.tell(client, lock, true, reason)
}

// unwire takes away what Apply has not undone itself: everything after it has succeeded, or in a panic. The locks are
// held and are taken once more without effect, since they belong to the open file.
func (o *operation) unwire(lock *datapath.Lock, w wiring) error {
	ctx, cancel := context.WithTimeout(context.Background(), delDeadline)
	defer cancel()
	r := datapath.Removal{
		Owner: o.owner, PodNamespace: o.pod.Namespace, PodName: o.pod.Name,
		HostVeths: []string{w.plan.HostVeth.Host}, VLAN: w.vlan, Address: w.address, Regular: w.vlan == 0,
	}
	for _, veth := range w.plan.Further {
		r.Further = append(r.Further, datapath.FurtherLeft{Number: veth.Mark.Number, HostVeth: veth.Host, Address: veth.Mark.Address})
	}
	_, err := datapath.Teardown(ctx, r, lock)
	o.forgetPolicies([]string{w.plan.HostVeth.Host})
	return err
}
