package vpc

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// portQueue is how many frames may wait for a slow instance. Behind it frames are lost, so that one instance that
// doesn't take its frames holds up nobody else.
const portQueue = 512

// port is an ENI's end of its link: one goroutine reads and forwards, one writes what was queued.
type port struct {
	fabric *Fabric
	eniID  string
	link   Link
	queue  chan *frameBuf
	done   chan struct{}
	pcap   *pcapWriter // nil: no recording
	writer sync.WaitGroup
	once   sync.Once
	err    error
}

type frameBuf struct {
	n int
	b [maxFrame]byte
}

var framePool = sync.Pool{New: func() any { return new(frameBuf) }}

func (p *port) read() {
	buf := make([]byte, headroom+maxFrame+64)
	for {
		n, err := p.link.ReadFrame(buf[headroom:])
		if err != nil {
			if !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) && !errors.Is(err, io.EOF) {
				p.fabric.opts.Log.Warn("read from the ENI's link; it is dead from now on", "eni", p.eniID, "error", err)
			}
			return
		}
		p.fabric.receive(p, buf[:headroom+n])
	}
}

// enqueue copies the frame and never waits; false when there is no room.
func (p *port) enqueue(frame []byte) bool {
	if len(frame) > maxFrame {
		return false
	}
	fb := framePool.Get().(*frameBuf)
	fb.n = copy(fb.b[:], frame)
	select {
	case p.queue <- fb:
		return true
	default:
		framePool.Put(fb)
		return false
	}
}

func (p *port) write() {
	for {
		var fb *frameBuf
		select {
		case fb = <-p.queue:
		case <-p.done:
			return
		}
		frame := fb.b[:fb.n]
		now := p.fabric.opts.Now()
		if p.pcap != nil {
			p.fabric.record(p, now, frame)
		}
		if err := p.link.WriteFrame(frame); err != nil {
			p.fabric.lost(p, now, err)
		}
		framePool.Put(fb)
	}
}

// lost counts a frame that the link did not take.
func (f *Fabric) lost(p *port, now time.Time, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drop(Drop{Time: now, ENI: p.eniID, Direction: Ingress, Reason: LinkDown})
	f.opts.Log.Debug("write to the ENI's link", "eni", p.eniID, "error", err)
}

// close closes the link and waits for the writer.
func (p *port) close() error {
	p.once.Do(func() {
		close(p.done)
		p.err = p.link.Close()
		p.writer.Wait()
		if p.pcap != nil {
			p.err = errors.Join(p.err, p.pcap.close())
		}
	})
	return p.err
}

// describe makes a drop's record.
func (v verdict) describe(now time.Time) Drop {
	d := Drop{Time: now, ENI: v.at.id, Direction: v.dir, Reason: v.reason, VLAN: v.vlan, Rules: v.rules}
	if v.hasPkt {
		d.Protocol = protoName(v.pkt.proto)
		d.Src = netip.AddrPortFrom(v.pkt.src, v.pkt.srcPort)
		d.Dst = netip.AddrPortFrom(v.pkt.dst, v.pkt.dstPort)
		if v.pkt.proto == protoTCP {
			d.TCPFlags = tcpFlagNames(v.pkt.tcpFlags)
		}
	}
	return d
}
