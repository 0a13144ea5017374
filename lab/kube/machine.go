package kube

import (
	"context"

	"github.com/branchline-cni/branchline/lab/instance"
)

// Machine is what of an instance.Instance this package uses.
type Machine interface {
	// Exec runs a program to its end. A program that ran and failed is a Result, not an error.
	Exec(ctx context.Context, c instance.Command) (instance.Result, error)
	// Start starts a program whose output is added to the instance's log of that name. ctx bounds the start only.
	Start(ctx context.Context, name string, c instance.Command) (instance.Process, error)
}
