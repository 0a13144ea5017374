package vpc

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// flowLog aggregates packets per ENI, flow and action until they are written, as VPC flow logs do.
type flowLog struct {
	w       io.Writer
	account string

	mu   sync.Mutex // guards open
	open map[flowLogKey]*flowLogEntry

	writeMu sync.Mutex
}

type flowLogKey struct {
	eni              string
	src, dst         netip.Addr
	srcPort, dstPort uint16
	proto            uint8
	accepted         bool
}

type flowLogEntry struct {
	packets, bytes uint64
	start, end     time.Time
}

// add counts the packet at each ENI that saw it.
func (l *flowLog) add(now time.Time, v *verdict) {
	if l.w == nil {
		return
	}
	for _, o := range v.seen {
		if o.eni == "" {
			continue
		}
		k := flowLogKey{o.eni, v.pkt.src, v.pkt.dst, v.pkt.srcPort, v.pkt.dstPort, v.pkt.proto, o.accepted}
		l.mu.Lock()
		e := l.open[k]
		if e == nil {
			e = &flowLogEntry{start: now}
			l.open[k] = e
		}
		e.packets++
		e.bytes += uint64(v.pkt.totalLen)
		e.end = now
		l.mu.Unlock()
	}
}

// flush writes what was aggregated so far, oldest first.
func (l *flowLog) flush() error {
	if l.w == nil {
		return nil
	}
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	l.mu.Lock()
	open := l.open
	l.open = map[flowLogKey]*flowLogEntry{}
	l.mu.Unlock()
	if len(open) == 0 {
		return nil
	}
	type record struct {
		flowLogKey
		*flowLogEntry
	}
	records := make([]record, 0, len(open))
	for k, e := range open {
		records = append(records, record{k, e})
	}
	slices.SortFunc(records, func(a, b record) int {
		return cmp.Or(a.start.Compare(b.start), cmp.Compare(a.eni, b.eni), a.src.Compare(b.src),
			a.dst.Compare(b.dst), cmp.Compare(a.srcPort, b.srcPort), cmp.Compare(a.dstPort, b.dstPort))
	})
	var out []byte
	for _, r := range records {
		act := "REJECT"
		if r.accepted {
			act = "ACCEPT"
		}
		out = fmt.Appendf(out, "2 %s %s %s %s %d %d %d %d %d %d %d %s OK\n", l.account, r.eni, r.src, r.dst,
			r.srcPort, r.dstPort, r.proto, r.packets, r.bytes, r.start.Unix(), r.end.Unix(), act)
	}
	if _, err := l.w.Write(out); err != nil {
		return fmt.Errorf("write %d flow log records: %w", len(records), err)
	}
	return nil
}
