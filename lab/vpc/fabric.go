package vpc

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

var (
	// ErrPortInUse is AddPort's answer for an ENI that has a link already.
	ErrPortInUse = errors.New("the ENI has a link already")
	// ErrNoPort is RemovePort's answer for an ENI without a link.
	ErrNoPort = errors.New("the ENI has no link")
	// ErrClosed is the answer of a fabric after Close.
	ErrClosed = errors.New("the fabric is closed")
)

// Fabric is a VPC's data plane. See the package's comment.
type Fabric struct {
	opts  Options
	flows *flowLog

	mu     sync.Mutex // guards all below
	state  fabricState
	states map[string]*eniState // of the ENIs of the topology
	ports  map[string]*port
	drops  dropLog
	closed bool

	stop chan struct{}
	wg   sync.WaitGroup
}

// New returns a fabric without ENIs.
func New(o Options) *Fabric {
	o = o.withDefaults()
	f := &Fabric{
		opts:   o,
		flows:  &flowLog{w: o.FlowLog, account: o.AccountID, open: map[flowLogKey]*flowLogEntry{}},
		states: map[string]*eniState{},
		ports:  map[string]*port{},
		drops:  dropLog{counts: map[DropKey]uint64{}},
		stop:   make(chan struct{}),
	}
	f.state = fabricState{
		idx:      compile(&Topology{}, f.states),
		services: map[netip.Addr]bool{},
		idle:     o.IdleTimeouts,
		frags:    fragments{m: map[fragKey]fragment{}},
		domain:   o.Domain,
	}
	for _, s := range o.Services {
		f.state.services[s.Addr.Unmap()] = true
	}
	if o.FlowInterval > 0 {
		f.wg.Go(f.tick)
	}
	return f
}

// Apply replaces the topology in one step. Frames that are decided after its return see only the new one. Tracked
// flows of ENIs that stay are kept.
func (f *Fabric) Apply(t *Topology) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	f.state.idx = compile(t, f.states)
	for id, st := range f.states {
		e := f.state.idx.enis[id]
		switch {
		case e == nil:
			delete(f.states, id)
			f.stopServices(st)
		case !e.attached:
			f.stopServices(st)
		}
		st.port = f.ports[id]
	}
}

// AddPort plugs the link in at the ENI and forwards for it from now on. The fabric owns the link: RemovePort and Close
// close it. The ENI need not be in the topology yet; until it is its frames are dropped. A branch ENI has no port of its
// own.
func (f *Fabric) AddPort(eniID string, l Link) error {
	p := &port{fabric: f, eniID: eniID, link: l, queue: make(chan *frameBuf, portQueue), done: make(chan struct{})}
	if f.opts.Pcap != nil {
		if w := f.opts.Pcap(eniID); w != nil {
			var err error
			if p.pcap, err = newPcapWriter(w); err != nil {
				return errors.Join(fmt.Errorf("start the recording of ENI %s: %w", eniID, err), p.pcap.close())
			}
		}
	}
	if err := f.plug(p); err != nil {
		if p.pcap != nil {
			err = errors.Join(err, p.pcap.close())
		}
		return fmt.Errorf("add a port for ENI %s: %w", eniID, err)
	}
	return nil
}

func (f *Fabric) plug(p *port) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ErrClosed
	}
	if f.ports[p.eniID] != nil {
		return ErrPortInUse
	}
	f.ports[p.eniID] = p
	if st := f.states[p.eniID]; st != nil {
		st.port = p
	}
	f.wg.Go(p.read)
	p.writer.Go(p.write)
	return nil
}

// RemovePort unplugs the ENI's link and closes it.
func (f *Fabric) RemovePort(eniID string) error {
	f.mu.Lock()
	p := f.ports[eniID]
	if p == nil {
		f.mu.Unlock()
		return fmt.Errorf("remove the port of ENI %s: %w", eniID, ErrNoPort)
	}
	delete(f.ports, eniID)
	if st := f.states[eniID]; st != nil {
		st.port = nil
		f.stopServices(st)
	}
	if e := f.state.idx.enis[eniID]; e != nil {
		for _, b := range e.branches {
			f.stopServices(b.st)
		}
	}
	f.mu.Unlock()
	return p.close()
}

// Flush writes the flow log records that are due only at the interval's end.
func (f *Fabric) Flush() error { return f.flows.flush() }

// Close unplugs all links, ends the services and writes the rest of the flow log.
func (f *Fabric) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	f.closed = true
	close(f.stop)
	ports := f.ports
	f.ports = map[string]*port{}
	for _, st := range f.states {
		st.port = nil
		f.stopServices(st)
	}
	f.mu.Unlock()
	var errs []error
	for _, p := range ports {
		errs = append(errs, p.close())
	}
	f.wg.Wait()
	return errors.Join(append(errs, f.flows.flush())...)
}

// tick writes the flow log and forgets flows that have idled out, every interval.
func (f *Fabric) tick() {
	t := time.NewTicker(f.opts.FlowInterval)
	defer t.Stop()
	for {
		select {
		case <-f.stop:
			return
		case <-t.C:
		}
		if err := f.flows.flush(); err != nil {
			f.opts.Log.Error("flow log", "error", err)
		}
		now := f.opts.Now()
		f.mu.Lock()
		for _, st := range f.states {
			st.flows.sweep(now)
		}
		f.mu.Unlock()
	}
}

// receive does what is to be done with one frame from a port: buf[headroom:].
func (f *Fabric) receive(p *port, buf []byte) {
	now := f.opts.Now()
	if p.pcap != nil {
		f.record(p, now, buf[headroom:])
	}
	f.mu.Lock()
	in := f.state.idx.enis[p.eniID]
	if in == nil {
		f.drop(Drop{Time: now, ENI: p.eniID, Direction: Egress, Reason: UnknownENI})
		f.mu.Unlock()
		return
	}
	v := f.state.forward(now, in, buf)
	f.flows.add(now, &v)
	var svc *serviceStack
	switch v.action {
	case drop:
		f.drop(v.describe(now))
	case deliver:
		f.send(now, &v)
	case serve:
		svc = f.serviceStack(v.at)
	}
	f.mu.Unlock()
	// Outside the lock: the stack may answer at once.
	if svc != nil {
		svc.deliver(v.ip)
	}
}

// send queues the verdict's frame at its port. The caller holds mu.
func (f *Fabric) send(now time.Time, v *verdict) {
	at, dir := v.at, v.dir
	if at == nil { // an answer of the fabric's own; its ENI is the port's
		at, dir = &eni{id: v.out.id}, Ingress
	}
	switch p := v.out.port; {
	case p == nil:
		f.drop(v.dropped(at, dir, NotAttached).describe(now))
	case !p.enqueue(v.frame):
		f.drop(v.dropped(at, dir, QueueFull).describe(now))
	}
}

// drop counts and remembers one drop. The caller holds mu.
func (f *Fabric) drop(d Drop) {
	f.drops.add(d)
	if !d.Reason.noise() {
		f.opts.Log.Debug("dropped", "eni", d.ENI, "direction", d.Direction, "reason", d.Reason, "protocol", d.Protocol,
			"src", d.Src, "dst", d.Dst, "tcpFlags", d.TCPFlags, "vlan", d.VLAN, "rules", d.Rules)
	}
}

func (f *Fabric) record(p *port, now time.Time, frame []byte) {
	if err := p.pcap.record(now, frame); err != nil && !errors.Is(err, errPcapClosed) {
		f.opts.Log.Warn("record a frame", "eni", p.eniID, "error", err)
	}
}
