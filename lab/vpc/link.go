package vpc

import (
	"io"
	"net"
	"sync"
)

const (
	// MTU of every network interface in the VPC, as on AWS.
	MTU = 9001
	// maxFrame is an IP packet of MTU bytes behind an Ethernet header with one 802.1Q tag.
	maxFrame = MTU + ethHeaderLen + vlanTagLen
)

// Link is the cable between a port of the fabric and a network card. It carries whole Ethernet frames of up to
// 9001+14+4 bytes. ReadFrame is called by one goroutine, WriteFrame by another; Close may be called by any, more than once,
// and ends both.
type Link interface {
	ReadFrame(buf []byte) (int, error)
	WriteFrame(frame []byte) error
	Close() error
}

// Pipe returns the two ends of an in-memory cable, for tests: what is written to one is read from the other. Each
// direction holds up to 256 frames, then WriteFrame waits.
func Pipe() (Link, Link) {
	ab, ba := make(chan []byte, 256), make(chan []byte, 256)
	closed := make(chan struct{})
	once := &sync.Once{}
	return &pipeEnd{in: ba, out: ab, closed: closed, once: once}, &pipeEnd{in: ab, out: ba, closed: closed, once: once}
}

type pipeEnd struct {
	in     <-chan []byte
	out    chan<- []byte
	closed chan struct{}
	once   *sync.Once
}

func (p *pipeEnd) ReadFrame(buf []byte) (int, error) {
	select {
	case f := <-p.in:
		if len(f) > len(buf) {
			return 0, io.ErrShortBuffer
		}
		return copy(buf, f), nil
	case <-p.closed:
		return 0, net.ErrClosed
	}
}

func (p *pipeEnd) WriteFrame(frame []byte) error {
	select {
	case <-p.closed:
		return net.ErrClosed
	default:
	}
	select {
	case p.out <- append([]byte(nil), frame...):
		return nil
	case <-p.closed:
		return net.ErrClosed
	}
}

func (p *pipeEnd) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}
