package hostnet

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Lengths and places in messages of the kernel (linux/rtnetlink.h, linux/fib_rules.h, linux/netfilter/nfnetlink.h).
const (
	routeHeader     = 12 // of rules, too
	tableAt         = 4
	protocolAt      = 5
	nftHeader       = 4
	nftTableName    = 1 // of tables, chains, rules, sets and elements alike
	nfnlNFTables    = 7 // multicast group
	resubscribeWait = time.Second
)

// Watch calls changed whenever somebody took away or changed what this package makes, until ctx ends: an administrator's
// flush, a firewall's restart, a network manager that removes what it does not know. Its own changes may call it, too.
// It subscribes again when a socket fails, and calls changed then, because events may have been lost.
func (k *Kernel) Watch(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		watchOnce(ctx, changed)
		select {
		case <-ctx.Done():
		case <-time.After(resubscribeWait): // nothing to wait for but the kernel's memory
		}
	}
}

// watchOnce goes on until ctx ends or a socket fails. Both sockets are opened by the caller's thread, in its namespace.
func watchOnce(ctx context.Context, changed func()) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var receivers sync.WaitGroup
	defer receivers.Wait()
	for _, source := range []struct {
		protocol int
		groups   []uint
		concerns func(kind uint16, data []byte) bool
	}{
		{unix.NETLINK_ROUTE, []uint{unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE}, routingEvent},
		{unix.NETLINK_NETFILTER, []uint{nfnlNFTables}, nftEvent},
	} {
		s, err := nl.Subscribe(source.protocol, source.groups...)
		if err != nil && source.protocol == unix.NETLINK_NETFILTER && errors.Is(lacking(err), ErrNoNFTables) {
			continue
		}
		if err != nil {
			cancel()
			return
		}
		receivers.Go(func() {
			defer cancel()
			stop := context.AfterFunc(ctx, s.Close)
			receive(ctx, s, source.concerns, changed)
			if stop() {
				s.Close()
			}
		})
	}
	changed()
	<-ctx.Done()
}

func receive(ctx context.Context, s *nl.NetlinkSocket, concerns func(uint16, []byte) bool, changed func()) {
	for {
		messages, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, syscall.ENOBUFS):
			changed() // some were lost
			continue
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return
		}
		for _, m := range messages {
			if concerns(m.Header.Type, m.Data) {
				changed()
				break
			}
		}
	}
}

// routingEvent picks what was taken away of ours, and anything that happens to the local rule. Rules and routes of pods
// come and go all the time; they are none of this package.
func routingEvent(kind uint16, data []byte) bool {
	if len(data) < routeHeader {
		return false
	}
	table := int(data[tableAt])
	switch kind {
	case unix.RTM_DELROUTE:
		for kind, value := range attributes(data[routeHeader:]) {
			if kind == unix.RTA_TABLE && len(value) == 4 {
				table = int(binary.NativeEndian.Uint32(value))
			}
		}
		return data[protocolAt] == Protocol && (table > 0 && table <= maxDevices || isFurther(table))
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		ours := false
		for kind, value := range attributes(data[routeHeader:]) {
			if kind == nl.FRA_PROTOCOL && len(value) == 1 {
				ours = value[0] == Protocol
			}
			if kind == unix.RTA_TABLE && len(value) == 4 {
				table = int(binary.NativeEndian.Uint32(value))
			}
		}
		return table == LocalTable || kind == unix.RTM_DELRULE && ours
	}
	return false
}

// nftEvent picks what happens to tables of ours.
func nftEvent(kind uint16, data []byte) bool {
	if kind>>8 != unix.NFNL_SUBSYS_NFTABLES || len(data) < nftHeader {
		return false
	}
	if kind&0xff == unix.NFT_MSG_NEWGEN {
		return false
	}
	for kind, value := range attributes(data[nftHeader:]) {
		if kind == nftTableName {
			name := strings.TrimRight(string(value), "\x00")
			return name == MarksTable || name == KubeletTable || slices.Contains(ruleTables, name)
		}
	}
	return false
}
