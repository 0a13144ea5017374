package hostnet

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func TestOnlyWhatConcernsUsWakesTheAgent(t *testing.T) {
	rule := func(table, protocol byte) []byte {
		b := append([]byte{unix.AF_INET, 0, 0, 0, table, 0, 0, 1, 0, 0, 0, 0}, attribute(nl.FRA_PROTOCOL, []byte{protocol})...)
		return append(b, attribute(unix.RTA_TABLE, []byte{table, 0, 0, 0})...)
	}
	route := func(table, protocol byte) []byte {
		return []byte{unix.AF_INET, 32, 0, 0, table, protocol, 0, 1, 0, 0, 0, 0}
	}
	for _, c := range []struct {
		what string
		kind uint16
		data []byte
		want bool
	}{
		{"our rule taken away", unix.RTM_DELRULE, rule(20, Protocol), true},
		{"our rule put in place", unix.RTM_NEWRULE, rule(20, Protocol), false},
		{"the local rule taken away", unix.RTM_DELRULE, rule(LocalTable, 2), true},
		{"a local rule added by somebody", unix.RTM_NEWRULE, rule(LocalTable, 0), true},
		{"a pod's rule taken away", unix.RTM_DELRULE, rule(107, 3), false},
		{"an ENI's route taken away", unix.RTM_DELROUTE, route(2, Protocol), true},
		{"a further card's route taken away", unix.RTM_DELROUTE, append(route(unix.RT_TABLE_COMPAT, Protocol), attribute(unix.RTA_TABLE, binary.NativeEndian.AppendUint32(nil, 10100))...), true},
		{"a route of a table that is nobody's", unix.RTM_DELROUTE, append(route(unix.RT_TABLE_COMPAT, Protocol), attribute(unix.RTA_TABLE, binary.NativeEndian.AppendUint32(nil, 10000))...), false},
		{"a pod's route taken away", unix.RTM_DELROUTE, route(252, Protocol), false},
		{"somebody's route taken away", unix.RTM_DELROUTE, route(2, 4), false},
		{"cut off", unix.RTM_DELRULE, rule(20, Protocol)[:8], false},
	} {
		if got := routingEvent(c.kind, c.data); got != c.want {
			t.Errorf("%s: %t", c.what, got)
		}
	}
	nft := func(kind uint16, table string) (uint16, []byte) {
		return unix.NFNL_SUBSYS_NFTABLES<<8 | kind, append([]byte{2, 0, 0, 0}, attribute(nftTableName, []byte(table+"\x00"))...)
	}
	for table, want := range map[string]bool{MarksTable: true, KubeletTable: true, "kube-proxy": false, MarksTable + "2": false} {
		if got := nftEvent(nft(unix.NFT_MSG_DELRULE, table)); got != want {
			t.Errorf("table %s: %t", table, got)
		}
	}
	if nftEvent(unix.NFNL_SUBSYS_CTNETLINK<<8, []byte{2, 0, 0, 0}) {
		t.Error("conntrack's events are none of ours")
	}
}

func FuzzEvents(f *testing.F) {
	f.Add(uint16(unix.RTM_DELRULE), []byte{2, 0, 0, 0, 20, 0, 0, 1, 0, 0, 0, 0, 5, 0, 21, 0, 98})
	f.Add(uint16(unix.NFNL_SUBSYS_NFTABLES<<8), attribute(nftTableName, []byte("x")))
	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		routingEvent(kind, data)
		nftEvent(kind, data)
		parseListener(data)
	})
}

func TestTheKubeletIsWhoListensOnItsPortAsRoot(t *testing.T) {
	message := func(port uint16, uid uint32, cgroup uint64) []byte {
		b := make([]byte, diagReplyLength)
		binary.BigEndian.PutUint16(b[diagPortAt:], port)
		binary.NativeEndian.PutUint32(b[diagUIDAt:], uid)
		return append(b, attribute(diagCgroupID, binary.NativeEndian.AppendUint64(nil, cgroup))...)
	}
	choose := func(messages ...[]byte) (uint64, error) {
		var all []listener
		for _, m := range messages {
			if l, ok := parseListener(m); ok {
				all = append(all, l)
			}
		}
		return chooseKubelet(all)
	}
	kubelet := message(kubeletPort, 0, 4711)
	if id, err := choose(message(22, 0, 5), kubelet, kubelet, message(kubeletPort, 1000, 6)); id != 4711 || err != nil {
		t.Errorf("%d, %v", id, err)
	}
	if _, err := choose(message(22, 0, 5), kubelet[:40]); !errors.Is(err, ErrNoKubelet) {
		t.Error(err)
	}
	for _, root := range []uint64{0, rootCgroup} {
		if _, err := choose(message(kubeletPort, 0, root)); !errors.Is(err, ErrNoCgroup) {
			t.Error(err)
		}
	}
	if id, err := choose(kubelet, message(kubeletPort, 0, 4712)); err == nil {
		t.Errorf("one of two was chosen: %d", id)
	}
}
