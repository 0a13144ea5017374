package ipamd

import (
	"context"
	"time"

	"github.com/branchline-cni/branchline/aws"
)

// Pauses between questions for the limits of an instance type that this version does not know.
const (
	limitsFirst = time.Second
	limitsMost  = 10 * time.Minute
)

// limits of the instance. Where MaxInterfaces is 0 they are not known (yet): the node lives on what is attached then.
func (a *Agent) limits() aws.InstanceType { return *a.typ.Load() }

func (a *Agent) limitsKnown() bool { return a.limits().MaxInterfaces > 0 }

// supported says whether this instance type can have a trunk.
func (a *Agent) supported() bool { return a.limits().TrunkCompatible }

// sayUnknownType tells people of a type that is not in this version's table.
func (a *Agent) sayUnknownType() {
	if a.opt.Config.IMDSOnly {
		return // nothing here depends on them: what is attached is used
	}
	const text = "instance type %s is not known to this version: EC2 is asked for its limits (ec2:DescribeInstanceTypes), and pods with security groups of their own can't run here, as EC2 does not tell whether a type can have a trunk ENI; use a version that knows the type"
	a.opt.Log.Warn("the instance type is not known to this version: EC2 is asked for its limits, and it gets no trunk; use a version that knows it", "type", a.opt.Identity.InstanceType)
	a.events.Node("UnknownInstanceType", text, a.opt.Identity.InstanceType)
}

// runLimits asks EC2 for the limits of a type that is not in the table, until it answers.
func (a *Agent) runLimits(ctx context.Context) {
	for pause := limitsFirst; !a.limitsKnown() && !a.opt.Config.IMDSOnly && ctx.Err() == nil; pause = min(2*pause, limitsMost) {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		t, err := aws.DescribeInstanceType(call, a.opt.EC2, a.opt.Identity.InstanceType)
		cancel()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			a.metrics.failed("limits")
			a.opt.Log.Warn("the limits of this instance type are not known: no ENI or address is added until they are; it is tried again", "error", err)
			if aws.IsDenied(err) {
				a.events.Node("EC2Denied", "%v: add ec2:DescribeInstanceTypes to the node role's policy (%s has it)", err, a.rolePolicy())
			}
			wait(ctx, jittered(pause))
			continue
		}
		a.typ.Store(&t)
		a.opt.Log.Info("EC2 told the limits of this instance type", "type", t.Name, "interfaces", t.MaxInterfaces, "addressesEach", t.IPv4PerInterface)
		a.changed.Fire()
	}
}
