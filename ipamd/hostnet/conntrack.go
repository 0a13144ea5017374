package hostnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/ipamd/rtnl"
)

// The kernel's interface to tracked connections (linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h).
const (
	conntrackGet    = 1<<8 | 1
	conntrackDelete = 1<<8 | 2

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaID         = 12
	ctaZone       = 18
	ctaFilter     = 25

	ctaTupleIP = 1
	ctaIPv4Src = 1
	ctaIPv6Src = 3

	filterOrigFlags  = 1
	filterReplyFlags = 2
	filterIPSrc      = 1

	nfgenmsgLength = 4

	// trackedConnections is there where the kernel tracks connections.
	trackedConnections = "/proc/sys/net/netfilter/nf_conntrack_max"
)

// connection is what it takes to delete a tracked connection: its tuple as the kernel said it, and the id and the zone that
// tell it from another one with the same tuple. sources are who sent what was sent, and who what was answered.
type connection struct {
	tuple, id, zone []byte
	sources         [2]netip.Addr
}

// Forget has the kernel forget what it knows of addresses that change hands: their connections, and the link-layer addresses
// that it has learned. It returns how many connections that were.
func (k *Kernel) Forget(ctx context.Context, addresses []netip.Addr) (connections int, err error) {
	if len(addresses) == 0 {
		return 0, nil
	}
	err = k.forgetNeighbours(addresses)
	connections, cerr := forgetConnections(ctx, addresses)
	return connections, errors.Join(err, cerr)
}

// forgetConnections deletes the connections of addresses that the kernel tracks, those that an address asked for and those
// that were answered by it, whether it was called by its own name or by a Service's. The next pod's packets must not be taken
// for its predecessor's connections, whose translation and state they would inherit.
//
// For a single IPv4 address the kernel looks for them itself (before 5.8 it lists all, as for several). The table's walk
// costs milliseconds all the same, so there is one for many addresses.
func forgetConnections(ctx context.Context, addresses []netip.Addr) (forgotten int, err error) {
	if _, err := os.Stat(trackedConnections); errors.Is(err, fs.ErrNotExist) {
		return 0, nil // this kernel tracks nothing
	}
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, fmt.Errorf("open a netlink socket for tracked connections: %w", err)
	}
	defer c.Close()
	end := time.Now().Add(rtnl.Timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	if err := c.SetDeadline(end); err != nil {
		return 0, fmt.Errorf("set the netlink socket's deadline: %w", err)
	}
	wanted := map[netip.Addr]bool{}
	for _, a := range addresses {
		wanted[a] = true
	}
	for _, query := range queriesFor(addresses) {
		found, err := connections(c, query)
		if err != nil {
			return forgotten, fmt.Errorf("list tracked connections: %w", err)
		}
		for _, each := range found {
			if !wanted[each.sources[0]] && !wanted[each.sources[1]] {
				continue
			}
			switch err := deleteConnection(c, query.family, each); {
			case errors.Is(err, unix.ENOENT): // over by itself
			case err != nil:
				return forgotten, fmt.Errorf("delete a tracked connection of %s to %s: %w", each.sources[0], each.sources[1], err)
			default:
				forgotten++
			}
		}
	}
	return forgotten, nil
}

// conntrackQuery asks for the connections of a family; with a source, for those that have it in that direction.
type conntrackQuery struct {
	family    byte
	source    netip.Addr
	direction uint16
}

func queriesFor(addresses []netip.Addr) (out []conntrackQuery) {
	if len(addresses) == 1 && addresses[0].Is4() {
		return []conntrackQuery{{unix.AF_INET, addresses[0], ctaTupleOrig}, {unix.AF_INET, addresses[0], ctaTupleReply}}
	}
	if slices.ContainsFunc(addresses, netip.Addr.Is4) {
		out = append(out, conntrackQuery{family: unix.AF_INET})
	}
	// An IPv6 address is not asked for: Linux 6.18 then tells everything but its connections, the comparison is the wrong way
	// round.
	if slices.ContainsFunc(addresses, netip.Addr.Is6) {
		out = append(out, conntrackQuery{family: unix.AF_INET6})
	}
	return out
}

func connections(c *netlink.Conn, q conntrackQuery) ([]connection, error) {
	attributes := netlink.NewAttributeEncoder()
	if q.source.IsValid() {
		attributes.Nested(q.direction, func(tuple *netlink.AttributeEncoder) error {
			tuple.Nested(ctaTupleIP, func(ip *netlink.AttributeEncoder) error {
				ip.Bytes(ctaIPv4Src, q.source.AsSlice())
				return nil
			})
			return nil
		})
		attributes.Nested(ctaFilter, func(filter *netlink.AttributeEncoder) error {
			filter.Uint32(map[uint16]uint16{ctaTupleOrig: filterOrigFlags, ctaTupleReply: filterReplyFlags}[q.direction], filterIPSrc)
			return nil
		})
	}
	replies, err := ask(c, conntrackGet, netlink.Request|netlink.Dump, q.family, attributes)
	if err != nil {
		return nil, err
	}
	found := make([]connection, len(replies))
	for i, m := range replies {
		if found[i], err = readConnection(m.Data); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func deleteConnection(c *netlink.Conn, family byte, each connection) error {
	attributes := netlink.NewAttributeEncoder()
	attributes.Bytes(netlink.Nested|ctaTupleOrig, each.tuple)
	attributes.Bytes(ctaID, each.id)
	if each.zone != nil {
		attributes.Bytes(ctaZone, each.zone)
	}
	_, err := ask(c, conntrackDelete, netlink.Request|netlink.Acknowledge, family, attributes)
	return err
}

func ask(c *netlink.Conn, kind netlink.HeaderType, flags netlink.HeaderFlags, family byte, attributes *netlink.AttributeEncoder) ([]netlink.Message, error) {
	encoded, err := attributes.Encode()
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	return c.Execute(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: flags},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, encoded...),
	})
}

// readConnection reads what the kernel tells of a connection.
func readConnection(message []byte) (each connection, err error) {
	if len(message) < nfgenmsgLength {
		return each, fmt.Errorf("a tracked connection of %d bytes", len(message))
	}
	d, err := netlink.NewAttributeDecoder(message[nfgenmsgLength:])
	if err != nil {
		return each, fmt.Errorf("read a tracked connection: %w", err)
	}
	for d.Next() {
		switch d.Type() {
		case ctaTupleOrig:
			each.tuple = d.Bytes()
			d.Nested(readSource(&each.sources[0]))
		case ctaTupleReply:
			d.Nested(readSource(&each.sources[1]))
		case ctaID:
			each.id = d.Bytes()
		case ctaZone:
			each.zone = d.Bytes()
		}
	}
	if err := d.Err(); err != nil {
		return each, fmt.Errorf("read a tracked connection: %w", err)
	}
	if each.tuple == nil || each.id == nil {
		return each, errors.New("a tracked connection without tuple or id")
	}
	return each, nil
}

func readSource(out *netip.Addr) func(*netlink.AttributeDecoder) error {
	return func(tuple *netlink.AttributeDecoder) error {
		for tuple.Next() {
			if tuple.Type() != ctaTupleIP {
				continue
			}
			tuple.Nested(func(ip *netlink.AttributeDecoder) error {
				for ip.Next() {
					if t := ip.Type(); t == ctaIPv4Src || t == ctaIPv6Src {
						*out, _ = netip.AddrFromSlice(ip.Bytes())
					}
				}
				return nil
			})
		}
		return nil
	}
}
