package vpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const serviceNIC = 1

// serviceStack is a TCP/IP stack of gVisor's that answers the services' addresses for one ENI.
type serviceStack struct {
	eniID     string
	stack     *stack.Stack
	nic       *channel.Endpoint
	listeners []net.Listener
	conns     []net.PacketConn
	cancel    context.CancelFunc
}

// serviceStack returns the ENI's stack, made on first use; nil when it can't be made. The caller holds mu.
func (f *Fabric) serviceStack(e *eni) *serviceStack {
	if e.st.svc != nil || f.closed {
		return e.st.svc
	}
	s, err := newServiceStack(e.id, f.opts.Services)
	if err != nil {
		f.opts.Log.Error("answer services", "eni", e.id, "error", err)
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	e.st.svc = s
	f.wg.Go(func() { f.pumpService(ctx, s) })
	return s
}

func newServiceStack(eniID string, services []Service) (*serviceStack, error) {
	s := &serviceStack{
		eniID: eniID,
		stack: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
		}),
		nic: channel.New(portQueue, MTU, ""),
	}
	if err := s.listen(services); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *serviceStack) listen(services []Service) error {
	if err := s.stack.CreateNIC(serviceNIC, s.nic); err != nil {
		return fmt.Errorf("make a network interface: %s", err)
	}
	s.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: serviceNIC}})
	have := map[ip4]bool{}
	for _, svc := range services {
		ip, ok := toIP4(svc.Addr)
		if !ok {
			return fmt.Errorf("service address %s is not IPv4", svc.Addr)
		}
		full := tcpip.FullAddress{NIC: serviceNIC, Addr: tcpip.AddrFrom4(ip), Port: svc.Port}
		if !have[ip] {
			have[ip] = true
			a := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: full.Addr.WithPrefix()}
			if err := s.stack.AddProtocolAddress(serviceNIC, a, stack.AddressProperties{}); err != nil {
				return fmt.Errorf("add address %s: %s", svc.Addr, err)
			}
		}
		switch {
		case svc.Net == "tcp" && svc.ServeTCP != nil:
			l, err := gonet.ListenTCP(s.stack, full, ipv4.ProtocolNumber)
			if err != nil {
				return fmt.Errorf("listen on %s:%d/tcp: %w", svc.Addr, svc.Port, err)
			}
			sl := &serviceListener{TCPListener: l, closed: make(chan struct{})}
			s.listeners = append(s.listeners, sl)
			go svc.ServeTCP(sl, s.eniID)
		case svc.Net == "udp" && svc.ServeUDP != nil:
			c, err := gonet.DialUDP(s.stack, &full, nil, ipv4.ProtocolNumber)
			if err != nil {
				return fmt.Errorf("listen on %s:%d/udp: %w", svc.Addr, svc.Port, err)
			}
			s.conns = append(s.conns, c)
			go svc.ServeUDP(c, s.eniID)
		default:
			return fmt.Errorf("service %s:%d: protocol %q has no function to serve it (tcp with ServeTCP, or udp with ServeUDP)", svc.Addr, svc.Port, svc.Net)
		}
	}
	return nil
}

// deliver gives the stack a packet of the ENI's.
func (s *serviceStack) deliver(ip []byte) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(ip)})
	defer pkt.DecRef()
	s.nic.InjectInbound(ipv4.ProtocolNumber, pkt)
}

// pumpService sends what the stack answers to the ENI, until the stack is closed.
func (f *Fabric) pumpService(ctx context.Context, s *serviceStack) {
	hops := map[flowKey]uint8{}
	for _, svc := range f.opts.Services {
		if ip, ok := toIP4(svc.Addr); ok && svc.HopLimit != 0 {
			hops[serviceKey(ip.addr(), svc.Port, svc.Net == "tcp")] = svc.HopLimit
		}
	}
	buf := make([]byte, headroom+maxFrame)
	for {
		pkt := s.nic.ReadContext(ctx)
		if pkt == nil {
			break
		}
		const payload = headroom + ethHeaderLen
		n := payload
		for _, b := range pkt.AsSlices() {
			n += copy(buf[n:], b)
		}
		pkt.DecRef()
		f.sendService(s, hops, buf[:n], payload)
	}
	s.close()
}

func serviceKey(ip netip.Addr, port uint16, isTCP bool) flowKey {
	k := flowKey{local: ip, localPort: port, proto: protoUDP}
	if isTCP {
		k.proto = protoTCP
	}
	return k
}

// sendService sends the service's packet buf[payload:] to its ENI, if that is still there.
func (f *Fabric) sendService(s *serviceStack, hops map[flowKey]uint8, buf []byte, payload int) {
	if p, ok := parseIPv4(buf[payload:]); ok {
		if h := hops[flowKey{local: p.src, localPort: p.srcPort, proto: p.proto}]; h != 0 {
			setTTL(buf[payload:], h)
		}
	}
	now := f.opts.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.state.idx.enis[s.eniID]
	if e == nil || e.st.svc != s {
		return
	}
	v := verdict{action: deliver, at: e, dir: Ingress, out: e.port(), frame: frameTo(e, e.subnet.routerMAC, buf, payload)}
	f.send(now, &v)
}

// stopServices ends the ENI's stack, if it has one. The caller holds mu.
func (f *Fabric) stopServices(st *eniState) {
	if st.svc == nil {
		return
	}
	st.svc.cancel() // pumpService then closes it
	st.svc = nil
}

// serviceListener is gVisor's listener with the errors and the Close that net.Listener promises.
type serviceListener struct {
	*gonet.TCPListener
	once   sync.Once
	closed chan struct{}
}

func (l *serviceListener) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if err != nil {
		select {
		case <-l.closed:
			return nil, net.ErrClosed
		default:
		}
	}
	return c, err
}

// Close also wakes Accept, which gVisor's own does not.
func (l *serviceListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.TCPListener.Shutdown()
		l.TCPListener.Close()
	})
	return nil
}

func (s *serviceStack) close() error {
	var errs []error
	for _, l := range s.listeners {
		errs = append(errs, l.Close())
	}
	for _, c := range s.conns {
		errs = append(errs, c.Close())
	}
	s.nic.Close()
	s.stack.Destroy()
	return errors.Join(errs...)
}
