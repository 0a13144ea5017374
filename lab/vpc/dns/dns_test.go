package dns

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func lookup(name string) []netip.Addr {
	switch name {
	case "db.lab.internal":
		return []netip.Addr{netip.MustParseAddr("192.168.0.20"), netip.MustParseAddr("192.168.0.21")}
	case "both.lab.internal":
		return []netip.Addr{netip.MustParseAddr("192.168.0.20"), netip.MustParseAddr("2600:1f14::4")}
	case "many.lab.internal":
		var out []netip.Addr
		for i := range 100 {
			out = append(out, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
		}
		return out
	}
	return nil
}

// serve runs both services on the loopback and returns the address of each by its network.
func serve(t *testing.T) map[string]string {
	t.Helper()
	s := Services(netip.MustParseAddr("192.168.0.2"), lookup, nil)
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{}, 2)
	go func() { s[0].ServeUDP(c, "eni-1"); done <- struct{}{} }()
	go func() { s[1].ServeTCP(l, "eni-1"); done <- struct{}{} }()
	t.Cleanup(func() {
		c.Close()
		l.Close()
		for range 2 {
			select {
			case <-done:
			case <-time.After(5 * time.Second):
				t.Error("a server goes on after its socket was closed")
			}
		}
	})
	return map[string]string{"udp": c.LocalAddr().String(), "tcp": l.Addr().String()}
}

func TestNamesResolveOverUDPAndTCP(t *testing.T) {
	for network, addr := range serve(t) {
		for _, tc := range []struct {
			name    string
			kind    uint16
			rcode   int
			answers int
		}{
			{"db.lab.internal.", dns.TypeA, dns.RcodeSuccess, 2},
			{"DB.Lab.Internal.", dns.TypeA, dns.RcodeSuccess, 2},
			{"db.lab.internal.", dns.TypeAAAA, dns.RcodeSuccess, 0},
			{"both.lab.internal.", dns.TypeA, dns.RcodeSuccess, 1},
			{"both.lab.internal.", dns.TypeAAAA, dns.RcodeSuccess, 1},
			{"both.lab.internal.", dns.TypeANY, dns.RcodeSuccess, 2},
			{"nobody.lab.internal.", dns.TypeA, dns.RcodeNameError, 0},
			{".", dns.TypeNS, dns.RcodeNameError, 0},
		} {
			q := new(dns.Msg).SetQuestion(tc.name, tc.kind)
			r, _, err := (&dns.Client{Net: network, Timeout: 5 * time.Second}).Exchange(q, addr)
			if err != nil {
				t.Fatal(err)
			}
			if r.Rcode != tc.rcode || len(r.Answer) != tc.answers {
				t.Errorf("%s %s %s: %s with %d answers", network, tc.name, dns.TypeToString[tc.kind], dns.RcodeToString[r.Rcode], len(r.Answer))
			}
		}
	}
}

func TestALongAnswerIsCutForUDPAndWholeForTCP(t *testing.T) {
	for network, addr := range serve(t) {
		q := new(dns.Msg).SetQuestion("many.lab.internal.", dns.TypeA)
		r, _, err := (&dns.Client{Net: network, Timeout: 5 * time.Second}).Exchange(q, addr)
		if err != nil {
			t.Fatal(err)
		}
		if r.Truncated != (network == "udp") || (len(r.Answer) == 100) != (network == "tcp") {
			t.Errorf("%s: truncated %v, %d answers", network, r.Truncated, len(r.Answer))
		}
	}
}
