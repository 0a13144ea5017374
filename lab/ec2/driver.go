package ec2

import (
	"context"
	"net"
	"net/netip"
)

// Instances makes real what the API says. Calls for one instance come one after the other, in the order of the API
// calls; those for different instances at the same time. Config.OnChange has told of the change before its step starts,
// and tells of the step's end after it returned. A step that fails leaves nothing behind. The context ends when the region
// is closed.
type Instances interface {
	// Launch starts an instance whose primary ENI is made. The instance is "pending" until it returns; after an error
	// it is terminated.
	Launch(ctx context.Context, i InstanceSpec) error
	// Terminate ends an instance with everything that was attached. The instance is "shutting-down" until it returns.
	Terminate(ctx context.Context, instanceID string) error
	// Attach hot-plugs an ENI, "attaching" until it returns; after an error it is available again.
	Attach(ctx context.Context, instanceID string, e AttachmentSpec) error
	// Detach unplugs an ENI, "detaching" until it returns.
	Detach(ctx context.Context, instanceID, eniID string) error
}

// InstanceSpec is what RunInstances asked for.
type InstanceSpec struct {
	ID, Type string
	UserData []byte
	Tags     map[string]string
	Primary  AttachmentSpec
}

// AttachmentSpec is an ENI as the machine sees it.
type AttachmentSpec struct {
	ENIID                    string
	MAC                      net.HardwareAddr
	DeviceIndex, NetworkCard int
	Address                  netip.Addr
	SubnetCIDR               netip.Prefix
	// IPv6 is the ENI's first IPv6 address; not valid without one.
	IPv6 netip.Addr
}

func (r *Region) attachmentSpec(e *eni) AttachmentSpec {
	return AttachmentSpec{
		ENIID: e.id, MAC: append(net.HardwareAddr(nil), e.mac...), DeviceIndex: e.att.device, NetworkCard: e.att.card,
		Address: e.addrs[0], SubnetCIDR: r.subnets[e.subnetID].cidr, IPv6: e.firstIPv6(),
	}
}

// drive lets do work without the lock, once the data plane knows of the call that asks for it and after all earlier steps
// of the instance, and calls then with the lock held and do's error. Without a driver, then is called at once. Called with
// the lock held.
func (r *Region) drive(i *instance, do func(context.Context, Instances) error, then func(error)) {
	if r.cfg.Instances == nil {
		then(nil)
		return
	}
	before, done := i.tail, make(chan struct{})
	i.tail = done
	r.steps = append(r.steps, func() {
		defer close(done)
		if before != nil {
			<-before // ends: every step is bounded by the region's context
		}
		err := do(r.ctx, r.cfg.Instances)
		r.mu.Lock()
		defer r.mu.Unlock()
		then(err)
		r.changed()
	})
}

// startSteps starts what the call asked of the driver. Called with the lock held, when the data plane knows of the call.
func (r *Region) startSteps() {
	for _, step := range r.steps {
		r.work.Go(step)
	}
	r.steps = nil
}
