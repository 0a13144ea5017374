package vpc

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"
)

// Options of a Fabric. The zero value works.
type Options struct {
	Log *slog.Logger // default: discards
	// Now is the clock for tracked flows, drops and the flow log. Default: time.Now.
	Now func() time.Time
	// FlowLog receives flow log records in AWS's default format (version 2), one per line, every FlowInterval (default
	// one minute, less than zero: only on Flush and Close). nil: none.
	FlowLog      io.Writer
	FlowInterval time.Duration
	// AccountID stands in the flow log's records. Default: 111122223333.
	AccountID string
	// Services are answered by the fabric itself over each ENI.
	Services []Service
	// Domain is the DNS domain that DHCP gives out; empty: none.
	Domain string
	// Pcap returns where to record the frames of a port in pcap format, both ways, tags included, or nil for no
	// recording. It is called by AddPort; what it returns is closed with the port if it is an io.Closer.
	Pcap func(eniID string) io.Writer
	// IdleTimeouts after which a tracked flow is forgotten. Fields that are zero get AWS's defaults.
	IdleTimeouts IdleTimeouts
}

// IdleTimeouts says how long a tracked flow may be silent. The first three are EC2's ConnectionTrackingSpecification.
type IdleTimeouts struct {
	TCPEstablished time.Duration // default 432000 s
	UDPStream      time.Duration // a UDP flow with several packets both ways; default 180 s
	UDP            time.Duration // other UDP flows; default 30 s
	TCPOpening     time.Duration // before the handshake's end; default 60 s
	TCPClosing     time.Duration // after a FIN or a RST; default 10 s
	ICMP           time.Duration // default 30 s
}

func (t IdleTimeouts) withDefaults() IdleTimeouts {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&t.TCPEstablished, 432000*time.Second)
	def(&t.UDPStream, 180*time.Second)
	def(&t.UDP, 30*time.Second)
	def(&t.TCPOpening, 60*time.Second)
	def(&t.TCPClosing, 10*time.Second)
	def(&t.ICMP, 30*time.Second)
	return t
}

// Service is answered by the fabric itself, over the ENI whose packet asks for it, branch ENIs included. There is one
// listener per ENI, made when the ENI first sends to the address and closed when the ENI or its port is gone.
type Service struct {
	Addr netip.Addr
	Port uint16
	Net  string // "tcp" or "udp"
	// HopLimit is the TTL of what the service sends; 0 means 64. (IMDS keeps its answers from travelling further
	// than the instance by a hop limit of 1.)
	HopLimit uint8
	// ServeTCP or ServeUDP, by Net, serves until l or c is closed. The caller closes them.
	ServeTCP func(l net.Listener, eniID string)
	ServeUDP func(c net.PacketConn, eniID string)
}

const defaultAccountID = "111122223333"

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.FlowInterval == 0 {
		o.FlowInterval = time.Minute
	}
	if o.AccountID == "" {
		o.AccountID = defaultAccountID
	}
	o.IdleTimeouts = o.IdleTimeouts.withDefaults()
	return o
}
