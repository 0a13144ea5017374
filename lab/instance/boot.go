package instance

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// bootDeadline bounds both boots.
	bootDeadline = 180 * time.Second
	// firstBoot is how long a VM may take before it is taken for hung: ten times what it takes on two busy cores.
	firstBoot = 60 * time.Second
)

// errNotBooted: the guest's agent has not answered.
var errNotBooted = errors.New("not booted")

// StartVM boots a virtual machine and returns when its agent answers. It takes some three seconds, ten on a busy machine.
//
// Now and then, once in some hundred boots, the emulated kernel hangs before anything else runs in it. Such a VM is booted
// again, once, which is said in the log.
func StartVM(ctx context.Context, spec Spec) (Instance, error) {
	spec, err := spec.prepared()
	if err != nil {
		return nil, err
	}
	if spec.Kernel.Image == "" {
		return nil, fmt.Errorf("start VM %s: no kernel given", spec.ID)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bootDeadline, fmt.Errorf("%w within %v", errNotBooted, bootDeadline))
	defer cancel()
	v, err := boot(ctx, spec, spec.firstBoot)
	if errors.Is(err, errNotBooted) && ctx.Err() == nil {
		spec.Log.Warn("the VM hangs in its boot and is booted again", "error", err)
		v, err = boot(ctx, spec, bootDeadline)
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

// registers is an error that tells what the CPUs of a VM that hangs are at, for whoever wants to know why.
func (v *vm) registers() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var text string
	if err := v.qmp.call(ctx, "human-monitor-command", map[string]any{"command-line": "info registers -a"}, &text); err != nil {
		return fmt.Errorf("the CPUs' registers can't be read: %w", err)
	}
	return fmt.Errorf("its CPUs:\n%s", text)
}
