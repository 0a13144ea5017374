package vpc

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

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

// testHost is an instance at the end of a Pipe: one TCP/IP stack per address that it uses, each in its VLAN, with the
// gateway's MAC known.
type testHost struct {
	t      *testing.T
	link   Link
	stacks map[uint16]*channel.Endpoint // by VLAN
	ttl    chan uint8                   // of each packet received
}

// plugHost makes an instance and plugs it in at the ENI.
func plugHost(t *testing.T, f *Fabric, eniID string) *testHost {
	t.Helper()
	near, far := Pipe()
	if err := f.AddPort(eniID, near); err != nil {
		t.Fatal(err)
	}
	h := &testHost{t: t, link: far, stacks: map[uint16]*channel.Endpoint{}, ttl: make(chan uint8, 1000)}
	return h
}

func (h *testHost) addStack(vlan uint16, src, gw mac, ip ip4) *stack.Stack {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	ep := channel.New(512, MTU, "")
	if err := s.CreateNIC(1, ep); err != nil {
		h.t.Fatal(err)
	}
	if err := s.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom4(ip).WithPrefix()}, stack.AddressProperties{}); err != nil {
		h.t.Fatal(err)
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}})
	h.stacks[vlan] = ep
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for pkt := ep.ReadContext(ctx); pkt != nil; pkt = ep.ReadContext(ctx) {
			v := pkt.ToView()
			h.link.WriteFrame(frame(gw, src, vlan, etherIPv4, v.AsSlice()))
			v.Release()
			pkt.DecRef()
		}
	}()
	h.t.Cleanup(func() { cancel(); <-done; s.Destroy() })
	return s
}

// run gives what arrives to the stacks; call it once all of them are added.
func (h *testHost) run() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, maxFrame)
		for {
			n, err := h.link.ReadFrame(buf)
			if err != nil {
				return
			}
			e, ok := parseEthernet(buf[:n])
			ep := h.stacks[e.vlan]
			if !ok || ep == nil || e.proto != etherIPv4 {
				continue
			}
			select {
			case h.ttl <- header.IPv4(buf[e.payload:n]).TTL():
			default:
			}
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(buf[e.payload:n])})
			ep.InjectInbound(ipv4.ProtocolNumber, pkt)
			pkt.DecRef()
		}
	}()
	h.t.Cleanup(func() { h.link.Close(); <-done })
}

func dialTCP(t *testing.T, s *stack.Stack, to netip.AddrPort) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return gonet.DialContextTCP(ctx, s, tcpip.FullAddress{Addr: tcpip.AddrFrom4(to.Addr().As4()), Port: to.Port()}, ipv4.ProtocolNumber)
}

// within waits for a condition with a deadline.
func within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within %s: %s", d, what)
		case <-tick.C:
		}
	}
}
