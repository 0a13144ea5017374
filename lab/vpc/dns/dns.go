// Package dns is the VPC's DNS server: it answers questions for addresses from a function. It asks nobody else and
// caches nothing; a name that the function doesn't know doesn't exist.
package dns

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/branchline-cni/branchline/lab/vpc"
)

// Lookup returns the addresses of a name, of either family, in lower case and without the closing dot; none when it does not exist.
type Lookup func(name string) []netip.Addr

// ttl of answers is short, because names move with instances.
const ttl = 5 * time.Second

// Services returns the services (UDP and TCP, port 53) of a server at addr, for vpc.Options.Services.
func Services(addr netip.Addr, lookup Lookup, log *slog.Logger) []vpc.Service {
	s := &server{lookup: lookup, log: log}
	if log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return []vpc.Service{
		{Addr: addr, Port: 53, Net: "udp", ServeUDP: func(c net.PacketConn, eniID string) {
			s.serve(&dns.Server{PacketConn: c, Handler: s}, eniID)
		}},
		{Addr: addr, Port: 53, Net: "tcp", ServeTCP: func(l net.Listener, eniID string) {
			s.serve(&dns.Server{Listener: l, Handler: s}, eniID)
		}},
	}
}

type server struct {
	lookup Lookup
	log    *slog.Logger
}

func (s *server) serve(d *dns.Server, eniID string) {
	if err := d.ActivateAndServe(); err != nil && !errors.Is(err, net.ErrClosed) {
		s.log.Debug("the VPC's DNS server ended", "eni", eniID, "error", err)
	}
}

// ServeDNS answers one message.
func (s *server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	r := s.answer(q)
	size := dns.MaxMsgSize
	if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
		size = dns.MinMsgSize
	}
	if opt := q.IsEdns0(); opt != nil {
		size = max(size, int(opt.UDPSize()))
		r.SetEdns0(dns.DefaultMsgSize, false)
	}
	r.Truncate(size)
	if err := w.WriteMsg(r); err != nil {
		s.log.Debug("write a DNS answer", "to", w.RemoteAddr(), "error", err)
	}
}

// answer is the response to q. It never asks anybody, so it has no errors but those of the question.
func (s *server) answer(q *dns.Msg) *dns.Msg {
	r := new(dns.Msg)
	r.SetReply(q)
	r.RecursionAvailable = true
	if q.Opcode != dns.OpcodeQuery {
		return r.SetRcode(q, dns.RcodeNotImplemented)
	}
	if len(q.Question) != 1 || q.Question[0].Qclass != dns.ClassINET {
		return r.SetRcode(q, dns.RcodeFormatError)
	}
	question := q.Question[0]
	addrs := s.lookup(strings.ToLower(strings.TrimSuffix(question.Name, ".")))
	if len(addrs) == 0 {
		r.Rcode = dns.RcodeNameError
		return r
	}
	header := dns.RR_Header{Name: question.Name, Class: dns.ClassINET, Ttl: uint32(ttl / time.Second)}
	wants := func(kind uint16) bool {
		header.Rrtype = kind
		return question.Qtype == kind || question.Qtype == dns.TypeANY
	}
	for _, a := range addrs { // without one of the type: the name exists and has nothing of it
		switch a = a.Unmap(); {
		case a.Is4() && wants(dns.TypeA):
			r.Answer = append(r.Answer, &dns.A{Hdr: header, A: a.AsSlice()})
		case a.Is6() && wants(dns.TypeAAAA):
			r.Answer = append(r.Answer, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
		}
	}
	return r
}
