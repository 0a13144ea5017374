package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzNetlinkAnswer: whatever the kernel answers, nothing is read beyond it.
func FuzzNetlinkAnswer(f *testing.F) {
	ack := make([]byte, unix.SizeofNlMsghdr+4)
	binary.NativeEndian.PutUint16(ack[4:], unix.NLMSG_ERROR)
	f.Add(ack)
	refusal := bytes.Clone(ack)
	binary.NativeEndian.PutUint16(refusal[6:], unix.NLM_F_ACK_TLVS|unix.NLM_F_CAPPED)
	binary.NativeEndian.PutUint32(refusal[unix.SizeofNlMsghdr:], ^uint32(unix.ENODEV)+1)
	refusal = append(refusal, make([]byte, unix.SizeofNlMsghdr)...)
	refusal = append(refusal, 10, 0, unix.NLMSGERR_ATTR_MSG, 0, 'n', 'o', 'n', 'e', 0, 0, 0, 0)
	f.Add(refusal)
	f.Add(vlanRequest(AddVLAN{Name: "vlan.eth.7", ID: 7, TrunkIfindex: 3, MAC: net.HardwareAddr{6, 1, 2, 3, 4, 5}}).b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < unix.SizeofNlMsghdr {
			return // exchange lets none through
		}
		r := newRequest(unix.RTM_GETLINK, 0)
		if r.answer(b) && r.err != nil && r.err.Error() == "" {
			t.Fatal("an error without a word")
		}
		parseLink(r.reply)
		parseRoute(r.reply)
	})
}

func TestTheKernelsOwnWordsAreInTheError(t *testing.T) {
	b := make([]byte, unix.SizeofNlMsghdr+4+unix.SizeofNlMsghdr)
	binary.NativeEndian.PutUint16(b[4:], unix.NLMSG_ERROR)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_ACK_TLVS|unix.NLM_F_CAPPED)
	binary.NativeEndian.PutUint32(b[unix.SizeofNlMsghdr:], ^uint32(unix.EOPNOTSUPP)+1)
	b = append(b, 9, 0, unix.NLMSGERR_ATTR_MSG, 0, 'n', 'o', 'p', 'e', 0, 0, 0, 0)
	r := newRequest(unix.RTM_NEWLINK, 0)
	if !r.answer(b) || !errors.Is(r.err, unix.EOPNOTSUPP) || r.err.Error() != "operation not supported (nope)" {
		t.Errorf("%v", r.err)
	}
}

// TestRequestsAreWellFormed walks each kind of request's attributes to its end.
func TestRequestsAreWellFormed(t *testing.T) {
	mac, a := net.HardwareAddr{6, 1, 2, 3, 4, 5}, netip.MustParseAddr("2001:db8::1")
	for name, r := range map[string]struct {
		*request
		header, attributes int
	}{
		"vlan":      {vlanRequest(AddVLAN{Name: "vlan.eth.7", ID: 7, MAC: mac}), unix.SizeofIfInfomsg, 5},
		"veth":      {vethRequest(AddVeth{Host: "eni0", Pod: "eth0", HostMAC: mac, PodMAC: mac, MTU: 9001}, 3), unix.SizeofIfInfomsg, 7},
		"mark":      {markRequest(3, Mark{Owner: Owner{"c", "eth0"}}, true), unix.SizeofIfInfomsg, 2},
		"address":   {addressRequest(AddAddress{Link: "eth0", Address: single(a)}, 3), unix.SizeofIfAddrmsg, 2},
		"neighbour": {neighbourRequest(AddNeighbour{Link: "eth0", Address: a, MAC: mac}, 3), unix.SizeofNdMsg, 2},
		"route":     {routeRequest(AddRoute{Dst: single(a), Gateway: a, Link: "eth0", Table: 511}, 3), unix.SizeofRtMsg, 4},
		"rule":      {addRuleRequest(Rule{IPv6: true, Priority: 10, Iif: "eth0", Table: 107}), unix.SizeofRtMsg, 3},
	} {
		n, size := 0, 0
		attributes(r.b[unix.SizeofNlMsghdr+r.header:], func(_ uint16, value []byte) { n, size = n+1, size+unix.SizeofRtAttr+align(len(value)) })
		if n != r.attributes || unix.SizeofNlMsghdr+r.header+size != len(r.b) {
			t.Errorf("%s: %d attributes of %d bytes in %d", name, n, size, len(r.b))
		}
	}
}
