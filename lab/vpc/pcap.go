package vpc

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"
)

// pcapWriter records frames in the classic pcap format with nanoseconds, which tcpdump and Wireshark read.
type pcapWriter struct {
	mu     sync.Mutex
	w      io.Writer
	closed bool
	buf    []byte
}

const (
	pcapMagicNanoseconds = 0xa1b23c4d
	pcapLinkEthernet     = 1
)

var errPcapClosed = errors.New("recording is closed")

// newPcapWriter writes the file's header.
func newPcapWriter(w io.Writer) (*pcapWriter, error) {
	var h [24]byte
	binary.LittleEndian.PutUint32(h[0:], pcapMagicNanoseconds)
	binary.LittleEndian.PutUint16(h[4:], 2) // version 2.4
	binary.LittleEndian.PutUint16(h[6:], 4)
	binary.LittleEndian.PutUint32(h[16:], 65535) // longest frame
	binary.LittleEndian.PutUint32(h[20:], pcapLinkEthernet)
	_, err := w.Write(h[:])
	return &pcapWriter{w: w}, err
}

// record appends one frame, in one write.
func (p *pcapWriter) record(at time.Time, frame []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errPcapClosed
	}
	b := p.buf[:0]
	b = binary.LittleEndian.AppendUint32(b, uint32(at.Unix()))
	b = binary.LittleEndian.AppendUint32(b, uint32(at.Nanosecond()))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(frame)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(frame)))
	b = append(b, frame...)
	p.buf = b
	_, err := p.w.Write(b)
	return err
}

func (p *pcapWriter) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	if c, ok := p.w.(io.Closer); ok {
		return c.Close()
	}
	return nil
}
