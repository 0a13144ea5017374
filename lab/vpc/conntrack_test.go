package vpc

import (
	"testing"
	"time"
)

// dialog is one connection between the branch ENI (client) and the database (server).
type dialog struct {
	*bed
	sport uint16
}

func (d dialog) client(flags uint8) verdict {
	return d.send(nodeENI, frame(router1, branchMAC, 7, etherIPv4, tcpPacket(branchIP, d.sport, dbIP, 5432, flags)))
}

func (d dialog) server(flags uint8) verdict {
	return d.send(dbENI, frame(router1, dbMAC, 0, etherIPv4, tcpPacket(dbIP, 5432, branchIP, d.sport, flags)))
}

func (d dialog) open(t *testing.T) {
	t.Helper()
	wantDelivery(t, d.client(tcpSYN), dbENI)
	wantDelivery(t, d.server(tcpSYN|tcpACK), nodeENI)
	wantDelivery(t, d.client(tcpACK), dbENI)
}

// silence takes all rules away.
func (b *bed) silence() {
	top := testTopology()
	for i := range top.Groups {
		top.Groups[i].Ingress, top.Groups[i].Egress = nil, nil
	}
	b.apply(top)
}

func TestATrackedFlowSurvivesItsRuleAndANewOneIsRefused(t *testing.T) {
	b := newBed(testTopology())
	old := dialog{b, 4000}
	old.open(t)
	top := testTopology()
	groupOf(top, "sg-db").Ingress = nil
	b.apply(top)
	wantDelivery(t, old.client(tcpACK|tcpPSH), dbENI)
	wantDelivery(t, old.server(tcpACK|tcpPSH), nodeENI)
	wantDrop(t, dialog{b, 4001}.client(tcpSYN), dbENI, Ingress, NoRule)
	// The same ports again are a new connection too, once it is one.
	wantDrop(t, old.client(tcpSYN), dbENI, Ingress, NoRule)
	wantDelivery(t, old.client(tcpACK), dbENI)
}

func TestTrackedFlowsSurviveASwapOfGroups(t *testing.T) {
	b := newBed(testTopology())
	old := dialog{b, 4000}
	old.open(t)
	top := testTopology()
	top.ENIs[1].Groups = []string{"sg-other"}
	b.apply(top)
	wantDelivery(t, old.client(tcpACK), dbENI)
	wantDrop(t, dialog{b, 4001}.client(tcpSYN), dbENI, Ingress, NoRule)
}

func TestANewENIWithAnOldOnesAddressInheritsNoFlow(t *testing.T) {
	b := newBed(testTopology())
	old := dialog{b, 4000}
	old.open(t)
	top := testTopology()
	top.ENIs[1].ID = "eni-successor"
	groupOf(top, "sg-pod").Egress = nil
	for id := range b.states {
		if id == branchENI {
			delete(b.states, id) // as Fabric.Apply does for ENIs that are gone
		}
	}
	b.apply(top)
	wantDrop(t, old.client(tcpACK), "eni-successor", Egress, NoRule)
}

func TestTCPEndsByFINByRSTAndByIdleTime(t *testing.T) {
	for _, tc := range []struct {
		name  string
		end   func(t *testing.T, d dialog)
		after time.Duration
		alive bool
	}{
		{"idle for less than five days", func(*testing.T, dialog) {}, 431999 * time.Second, true},
		{"idle for more", func(*testing.T, dialog) {}, 432001 * time.Second, false},
		{"one FIN", func(t *testing.T, d dialog) { wantDelivery(t, d.client(tcpFIN|tcpACK), dbENI) }, time.Hour, true},
		{"FINs, late packets", func(t *testing.T, d dialog) {
			wantDelivery(t, d.client(tcpFIN|tcpACK), dbENI)
			wantDelivery(t, d.server(tcpFIN|tcpACK), nodeENI)
		}, 9 * time.Second, true},
		{"FINs, later", func(t *testing.T, d dialog) {
			wantDelivery(t, d.client(tcpFIN|tcpACK), dbENI)
			wantDelivery(t, d.server(tcpFIN|tcpACK), nodeENI)
			wantDelivery(t, d.client(tcpACK), dbENI)
		}, 11 * time.Second, false},
		{"RST", func(t *testing.T, d dialog) { wantDelivery(t, d.server(tcpRST), nodeENI) }, 11 * time.Second, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(testTopology())
			d := dialog{b, 4000}
			d.open(t)
			b.silence()
			tc.end(t, d)
			b.now = b.now.Add(tc.after)
			if tc.alive {
				wantDelivery(t, d.client(tcpACK), dbENI)
				return
			}
			wantDrop(t, d.client(tcpACK), branchENI, Egress, NoRule)
		})
	}
}

func TestAHalfOpenTCPFlowIsForgottenInAMinute(t *testing.T) {
	b := newBed(testTopology())
	d := dialog{b, 4000}
	wantDelivery(t, d.client(tcpSYN), dbENI)
	b.silence()
	b.now = b.now.Add(59 * time.Second)
	wantDelivery(t, d.client(tcpSYN), dbENI) // the same attempt again
	b.now = b.now.Add(61 * time.Second)
	wantDrop(t, d.client(tcpSYN), branchENI, Egress, NoRule)
}

func TestUDPAnswersPassAndStreamsLiveLonger(t *testing.T) {
	query := func(b *bed) verdict {
		return b.send(nodeENI, frame(router1, branchMAC, 7, etherIPv4, udpPacket(branchIP, 9, nodeIP, 53, nil)))
	}
	answer := func(b *bed) verdict {
		return b.send(nodeENI, frame(router1, nodeMAC, 0, etherIPv4, udpPacket(nodeIP, 53, branchIP, 9, nil)))
	}
	for _, tc := range []struct {
		rounds int
		after  time.Duration
		alive  bool
	}{{1, 29 * time.Second, true}, {1, 31 * time.Second, false}, {2, 179 * time.Second, true}, {2, 181 * time.Second, false}} {
		b := newBed(testTopology())
		for range tc.rounds {
			wantDelivery(t, query(b), nodeENI)
			wantDelivery(t, answer(b), nodeENI)
		}
		b.silence()
		b.now = b.now.Add(tc.after)
		if v := answer(b); (v.action == deliver) != tc.alive {
			t.Errorf("%d rounds, then %s: %s", tc.rounds, tc.after, describeVerdict(v))
		}
	}
}

func TestPingRepliesPassAndPingsBackDoNot(t *testing.T) {
	b := newBed(testTopology())
	ping := func(kind uint8) verdict {
		return b.send(nodeENI, frame(router1, nodeMAC, 0, etherIPv4, echoPacket(nodeIP, branchIP, kind, 5)))
	}
	wantDrop(t, ping(icmpEchoRequest), branchENI, Ingress, NoRule)
	wantDrop(t, ping(icmpEchoReply), branchENI, Ingress, NoRule)
	wantDelivery(t, b.send(nodeENI, frame(router1, branchMAC, 7, etherIPv4, echoPacket(branchIP, nodeIP, icmpEchoRequest, 5))), nodeENI)
	wantDelivery(t, ping(icmpEchoReply), nodeENI)
	wantDrop(t, ping(icmpEchoRequest), branchENI, Ingress, NoRule)
}

func TestICMPErrorsPassOnlyAboutTrackedFlows(t *testing.T) {
	b := newBed(testTopology())
	syn := tcpPacket(branchIP, 4000, dbIP, 5432, tcpSYN)
	unreachable := func(quoted []byte) verdict {
		return b.send(dbENI, frame(router1, dbMAC, 0, etherIPv4, icmpError(dbIP, icmpUnreachable, quoted)))
	}
	wantDrop(t, unreachable(syn), branchENI, Ingress, NoRule)
	wantDelivery(t, b.send(nodeENI, frame(router1, branchMAC, 7, etherIPv4, syn)), dbENI)
	wantDelivery(t, unreachable(syn), nodeENI)
	wantDrop(t, unreachable(tcpPacket(branchIP, 4001, dbIP, 5432, tcpSYN)), branchENI, Ingress, NoRule)
	// About a packet that went the other way: it does not belong to the flow.
	wantDrop(t, b.send(dbENI, frame(router1, dbMAC, 0, etherIPv4, func() []byte {
		e := icmpError(dbIP, icmpUnreachable, tcpPacket(dbIP, 5432, branchIP, 4000, tcpACK))
		copy(e[16:20], branchIP[:])
		putIPv4Header(e, dbIP, branchIP, protoICMP)
		return e
	}())), branchENI, Ingress, NoRule)
}

func TestTheFlowTableIsBounded(t *testing.T) {
	b := newBed(testTopology())
	st := b.states[branchENI]
	for i := range maxFlows {
		st.flows[flowKey{localPort: uint16(i), proto: 99}] = &flow{expires: b.now.Add(time.Second)}
	}
	d := dialog{b, 4000}
	wantDrop(t, d.client(tcpSYN), branchENI, Egress, FlowTableFull)
	b.now = b.now.Add(2 * time.Second)
	wantDelivery(t, d.client(tcpSYN), dbENI)
}
