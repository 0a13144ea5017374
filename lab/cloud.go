package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/lab/imds"
	"github.com/branchline-cni/branchline/lab/instance"
	"github.com/branchline-cni/branchline/lab/vpc"
	"github.com/branchline-cni/branchline/lab/vpc/dns"
)

// cloud makes real what the EC2 API says: it starts and ends instances and plugs ENIs into them and into the fabric.
type cloud struct {
	log    *slog.Logger
	start  func(ctx context.Context, spec ec2.InstanceSpec) (instance.Instance, error)
	fabric *vpc.Fabric

	mu    sync.Mutex
	hosts map[string]instance.Instance // by instance id
	owner map[string]string            // ENI id -> instance id
}

var _ ec2.Instances = (*cloud)(nil)

func (c *cloud) Launch(ctx context.Context, spec ec2.InstanceSpec) error {
	began := time.Now()
	host, err := c.start(ctx, spec)
	if err != nil {
		return fmt.Errorf("start instance %s (%s): %w", spec.ID, spec.Type, err)
	}
	c.mu.Lock()
	c.hosts[spec.ID] = host
	c.mu.Unlock()
	if err := c.Attach(ctx, spec.ID, spec.Primary); err != nil {
		return err
	}
	c.log.Info("instance runs", "instance", spec.ID, "type", spec.Type, "seconds", time.Since(began).Seconds())
	return nil
}

func (c *cloud) Attach(ctx context.Context, instanceID string, e ec2.AttachmentSpec) error {
	host, err := c.host(instanceID)
	if err != nil {
		return err
	}
	// The owner is known before the first packet: IMDS answers by it.
	c.mu.Lock()
	c.owner[e.ENIID] = instanceID
	c.mu.Unlock()
	link, err := host.AttachENI(ctx, e)
	if err != nil {
		return fmt.Errorf("plug %s into %s: %w", e.ENIID, instanceID, err)
	}
	if err := c.fabric.AddPort(e.ENIID, link); err != nil {
		return fmt.Errorf("plug %s into the fabric: %w", e.ENIID, err)
	}
	return nil
}

func (c *cloud) Detach(ctx context.Context, instanceID, eniID string) error {
	host, err := c.host(instanceID)
	if err != nil {
		return err
	}
	err = errors.Join(host.DetachENI(ctx, eniID), c.fabric.RemovePort(eniID))
	c.mu.Lock()
	delete(c.owner, eniID)
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("unplug %s from %s: %w", eniID, instanceID, err)
	}
	return nil
}

func (c *cloud) Terminate(_ context.Context, instanceID string) error {
	c.mu.Lock()
	host, ok := c.hosts[instanceID]
	delete(c.hosts, instanceID)
	var ports []string
	for eni, id := range c.owner {
		if id == instanceID {
			ports = append(ports, eni)
			delete(c.owner, eni)
		}
	}
	c.mu.Unlock()
	if !ok {
		return nil
	}
	err := host.Close()
	for _, eni := range ports {
		if perr := c.fabric.RemovePort(eni); perr != nil {
			c.log.Debug("port of a terminated instance", "eni", eni, "error", perr)
		}
	}
	return err
}

func (c *cloud) host(id string) (instance.Instance, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, ok := c.hosts[id]
	if !ok {
		return nil, fmt.Errorf("instance %s is not running", id)
	}
	return h, nil
}

// close ends every instance that is still there.
func (c *cloud) close() error {
	c.mu.Lock()
	ids := make([]string, 0, len(c.hosts))
	for id := range c.hosts {
		ids = append(ids, id)
	}
	c.mu.Unlock()
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() { errs[i] = c.Terminate(context.Background(), id) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// instanceOf is the instance behind an ENI's port, also for a branch ENI.
func (c *cloud) instanceOf(eniID string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owner[eniID]
}

// metadata is the metadata service of the instance behind an ENI. It is the same for all of an instance's ENIs: a
// session token is good on each.
func (l *Lab) metadata(eniID string) http.Handler {
	id := l.cloud.instanceOf(eniID)
	l.mu.Lock()
	defer l.mu.Unlock()
	h, ok := l.imds[id]
	if !ok {
		h = imds.Handler(l.Region.Metadata(id), nil)
		l.imds[id] = h
	}
	return h
}

// services are what the VPC itself answers over every ENI.
func (l *Lab) services() []vpc.Service {
	web := func(handler func(eniID string) http.Handler) func(net.Listener, string) {
		return func(ln net.Listener, eniID string) {
			s := &http.Server{Handler: handler(eniID), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
			if err := s.Serve(ln); err != nil && !errors.Is(err, http.ErrServerClosed) {
				l.log.Debug("service over an ENI ended", "eni", eniID, "error", err)
			}
		}
	}
	metadata := web(l.metadata)
	endpoint := web(func(string) http.Handler { return l.Region.Handler() })
	out := []vpc.Service{
		// The hop limit keeps answers from leaving the instance's own network namespace, as on AWS.
		{Addr: imdsAddr, Port: 80, Net: "tcp", HopLimit: 1, ServeTCP: metadata},
		{Addr: endpointAddr, Port: 80, Net: "tcp", ServeTCP: endpoint},
	}
	for _, addr := range []netip.Addr{dnsAddr, localDNSAddr} {
		out = append(out, dns.Services(addr, l.resolve, l.log)...)
	}
	return out
}
