package eni

import (
	"context"
	"fmt"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/unary"
)

const (
	// statusGrace is how long after its last sign an agent that is away, or not ready again, is taken for one that is being
	// replaced: pods that run don't need it, and the runtime's "network not ready" taints the whole node.
	statusGrace = 5 * time.Minute
	askStatus   = 2 * time.Second
)

// status says whether an ADD can succeed at all. A node without a free address says yes: see docs/modes.md.
func (o *operation) status(ctx context.Context) error {
	if o.configErr != nil {
		return o.configErr
	}
	client, err := rpc.Dial(o.config.Socket)
	if err != nil {
		return err
	}
	defer client.Close()
	ask, cancel := context.WithTimeout(ctx, askStatus)
	defer cancel()
	reply, err := client.Status(ask, &rpc.StatusRequest{Version: rpc.Version})
	why := ""
	switch code := unary.CodeOf(err); {
	case err == nil && reply.GetDataPathBroken():
		return types.NewError(CodeLimited, "the data path of this node is broken: "+reply.GetMessage(), "")
	case err == nil && reply.GetReady():
		return nil
	case err == nil:
		why = "the node agent is not ready: " + reply.GetMessage()
	case code == unary.Unimplemented:
		return nil // of a release before STATUS: it wrote our configuration only once it was ready
	case code == unary.Unavailable || code == unary.DeadlineExceeded || code == unary.Canceled:
		why = "the node agent can't be reached: " + messageOf(err)
	default:
		return err
	}
	age, serr := rpc.SinceReady(o.config.Socket)
	if err := unavailable(why, age, serr); err != nil {
		return err
	}
	o.note("grace", why, "lastReady", age.Round(time.Second).String())
	return nil
}

// unavailable is what STATUS says of an agent that can't be asked or is not ready; nil within the grace.
func unavailable(why string, age time.Duration, unknown error) error {
	switch {
	case unknown != nil:
		return types.NewError(CodeNotAvailable, fmt.Sprintf("%s; it has not been ready since this node's boot (%v): look at the pod aws-node of this node", why, unknown), "")
	case age > statusGrace:
		return types.NewError(CodeNotAvailable, fmt.Sprintf("%s; it was ready %s ago, longer than the %s that a restart may take: look at the pod aws-node of this node", why, age.Round(time.Second), statusGrace), "")
	}
	return nil
}
