package unary

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"golang.org/x/net/http2/hpack"
)

// maxHeaderList bounds a header block of the server's, decoded and not, in bytes: a status' message is in it.
const maxHeaderList = 256 << 10

// brokenError is a connection error of RFC 9113, section 5.4.1: nothing that comes after it can be trusted.
type brokenError struct {
	code h2Code
	text string
}

func (e *brokenError) Error() string {
	return fmt.Sprintf("the server breaks HTTP/2: %s (%s)", e.text, e.code)
}

func broken(code h2Code, format string, args ...any) error {
	return &brokenError{code, fmt.Sprintf(format, args...)}
}

// session is the client's end of an HTTP/2 connection that carries one call at a time. It does no I/O: frames go in by
// take, and what is to be written piles up in out.
type session struct {
	out []byte

	settled    bool // the server's SETTINGS have come, so somebody is there
	leaving    bool // the server has sent GOAWAY: no more calls
	maxFrame   int  // that we may send
	maxStreams uint32
	perStream  int64 // the send window that a new stream begins with
	window     int64 // the connection's send window
	room       int64 // the connection's receive window
	next       uint32
	call       *call

	enc   *hpack.Encoder
	block bytes.Buffer // enc writes here
	dec   *hpack.Decoder
	seen  fields // dec's

	// A header block that is not whole yet: nothing else may come in between.
	partial struct {
		open   bool
		stream uint32
		end    bool
		bytes  []byte
		frames int
	}
}

// call is one request and its answer.
type call struct {
	answer
	stream  uint32
	body    []byte // not sent yet
	window  int64  // the stream's send window
	room    int64  // the stream's receive window
	refused bool   // the server has said that it has not looked at the request
}

func newSession() *session {
	s := &session{maxFrame: minMaxFrame, maxStreams: math.MaxUint32, perStream: initialWindow, window: initialWindow, room: initialWindow, next: 1}
	s.enc = hpack.NewEncoder(&s.block)
	s.dec = hpack.NewDecoder(4096, func(h hpack.HeaderField) { s.seen.take(h) })
	s.dec.SetMaxStringLength(maxHeaderList)
	s.out = append(make([]byte, 0, 512), preface...)
	var settings []byte
	settings = appendSetting(settings, settingEnablePush, 0)
	settings = appendSetting(settings, settingMaxHeaderListSize, maxHeaderList)
	s.out = appendFrame(s.out, frameSettings, 0, 0, settings)
	return s
}

// usable says that one more call can be made.
func (s *session) usable() bool { return !s.leaving && s.next <= maxStreamID }

// begin makes body, a message with its prefix, the request of a new call. left is as for writeRequest.
func (s *session) begin(method string, body []byte, left time.Duration) (*call, error) {
	s.block.Reset()
	if err := writeRequest(s.enc, method, left); err != nil {
		return nil, fmt.Errorf("encode the request's headers: %w", err)
	}
	if s.block.Len() > minMaxFrame {
		return nil, fmt.Errorf("the request's headers are %d bytes, where %d fit", s.block.Len(), minMaxFrame)
	}
	s.call = &call{stream: s.next, body: body, window: s.perStream, room: initialWindow}
	s.next += 2
	s.out = appendFrame(s.out, frameHeaders, flagEndHeaders, s.call.stream, s.block.Bytes())
	s.send()
	return s.call, nil
}

// send puts as much of the request into out as the server's windows have room for.
func (s *session) send() {
	c := s.call
	for c != nil && !c.done && len(c.body) > 0 {
		n := min(int64(len(c.body)), int64(s.maxFrame), s.window, c.window)
		if n <= 0 {
			return
		}
		var flags uint8
		if n == int64(len(c.body)) {
			flags = flagEndStream
		}
		s.out = appendFrame(s.out, frameData, flags, c.stream, c.body[:n])
		c.body = c.body[n:]
		s.window -= n
		c.window -= n
	}
}

// take acts on one frame. Its error is the connection's end.
func (s *session) take(f frame) error {
	if p := &s.partial; p.open && (f.kind != frameContinuation || f.stream != p.stream) {
		return broken(h2Protocol, "frame type %d of stream %d within the header block of stream %d", f.kind, f.stream, p.stream)
	}
	if !s.settled && (f.kind != frameSettings || f.has(flagAck)) {
		return broken(h2Protocol, "frame type %d before the server's SETTINGS", f.kind)
	}
	switch f.kind {
	case frameSettings:
		return s.settings(f)
	case framePing:
		switch {
		case f.stream != 0:
			return broken(h2Protocol, "PING on stream %d", f.stream)
		case len(f.payload) != 8:
			return broken(h2FrameSize, "PING of %d bytes", len(f.payload))
		case !f.has(flagAck):
			s.out = appendFrame(s.out, framePing, flagAck, 0, f.payload)
		}
		return nil
	case frameGoAway:
		return s.goAway(f)
	case frameWindowUpdate:
		return s.windowUpdate(f)
	case frameData:
		return s.data(f)
	case frameHeaders:
		return s.headers(f)
	case frameContinuation:
		if !s.partial.open {
			return broken(h2Protocol, "CONTINUATION without HEADERS")
		}
		return s.fragment(f.payload, f.has(flagEndHeaders))
	case frameRSTStream:
		return s.reset(f)
	case framePushPromise:
		return broken(h2Protocol, "PUSH_PROMISE, which our SETTINGS forbid")
	case framePriority:
		if f.stream == 0 {
			return broken(h2Protocol, "PRIORITY on stream 0")
		}
	}
	return nil // of a type that is not known, or needs no answer
}

func (s *session) settings(f frame) error {
	switch {
	case f.stream != 0:
		return broken(h2Protocol, "SETTINGS on stream %d", f.stream)
	case f.has(flagAck) && len(f.payload) != 0, len(f.payload)%6 != 0:
		return broken(h2FrameSize, "SETTINGS of %d bytes", len(f.payload))
	case f.has(flagAck):
		return nil
	}
	for b := f.payload; len(b) > 0; b = b[6:] {
		value := binary.BigEndian.Uint32(b[2:])
		switch binary.BigEndian.Uint16(b) {
		case settingHeaderTableSize:
			s.enc.SetMaxDynamicTableSizeLimit(value)
		case settingEnablePush:
			if value != 0 {
				return broken(h2Protocol, "a server that enables push")
			}
		case settingMaxConcurrentStreams:
			s.maxStreams = value
		case settingInitialWindowSize:
			if value > maxWindow {
				return broken(h2FlowControl, "an initial window of %d bytes", value)
			}
			if s.call != nil {
				s.call.window += int64(value) - s.perStream // may become negative (RFC 9113, section 6.9.2)
				if s.call.window > maxWindow {
					return broken(h2FlowControl, "an initial window that makes the stream's one of %d bytes", s.call.window)
				}
			}
			s.perStream = int64(value)
		case settingMaxFrameSize:
			if value < minMaxFrame || value > maxMaxFrame {
				return broken(h2Protocol, "frames of up to %d bytes", value)
			}
			s.maxFrame = int(value)
		}
	}
	s.settled = true
	s.out = appendFrame(s.out, frameSettings, flagAck, 0, nil)
	s.send()
	return nil
}

func (s *session) goAway(f frame) error {
	switch {
	case f.stream != 0:
		return broken(h2Protocol, "GOAWAY on stream %d", f.stream)
	case len(f.payload) < 8:
		return broken(h2FrameSize, "GOAWAY of %d bytes", len(f.payload))
	}
	s.leaving = true
	last, code := binary.BigEndian.Uint32(f.payload)&maxStreamID, h2Code(binary.BigEndian.Uint32(f.payload[4:]))
	if c := s.call; c != nil && !c.done && c.stream > last {
		c.refused = true
		c.done, c.err = true, &Error{Code: Unavailable, Message: fmt.Sprintf("the server is going away (%s, %.200q) and has not looked at the request", code, f.payload[8:])}
	}
	return nil
}

func (s *session) windowUpdate(f frame) error {
	if len(f.payload) != 4 {
		return broken(h2FrameSize, "WINDOW_UPDATE of %d bytes", len(f.payload))
	}
	n := int64(binary.BigEndian.Uint32(f.payload) & maxWindow)
	c, err := s.of(f)
	if err != nil {
		return err
	}
	window := &s.window
	if f.stream != 0 {
		if c == nil {
			return nil // of a call that is over
		}
		window = &c.window
	}
	if *window += n; n == 0 || *window > maxWindow {
		return broken(h2FlowControl, "WINDOW_UPDATE of stream %d by %d to %d", f.stream, n, *window)
	}
	s.send()
	return nil
}

// of is the call under way that a frame is about: nil for stream 0 and for a call that is over.
func (s *session) of(f frame) (*call, error) {
	switch c := s.call; {
	case f.stream == 0:
		return nil, nil
	case f.stream%2 == 0 || f.stream >= s.next:
		return nil, broken(h2Protocol, "frame type %d of stream %d, which nobody has opened", f.kind, f.stream)
	case c == nil || f.stream != c.stream || c.done:
		return nil, nil
	default:
		return c, nil
	}
}

func (s *session) data(f frame) error {
	c, err := s.of(f)
	if err != nil {
		return err
	}
	n := int64(len(f.payload)) // padding counts
	if f.stream == 0 {
		return broken(h2Protocol, "DATA on stream 0")
	}
	if c == nil {
		return broken(h2StreamClosed, "DATA of stream %d after its end", f.stream)
	}
	b, err := f.unpad()
	if err != nil {
		return err
	}
	// What comes is taken at once: its bound is maxReply. So the windows never run out: they are given back when they are half
	// used, and a half is more than a frame.
	s.room -= n
	if s.room < initialWindow/2 {
		s.out = appendWindowUpdate(s.out, 0, initialWindow-s.room)
		s.room = initialWindow
	}
	c.room -= n
	if c.room < initialWindow/2 && !f.has(flagEndStream) {
		s.out = appendWindowUpdate(s.out, c.stream, initialWindow-c.room)
		c.room = initialWindow
	}
	c.data(b, f.has(flagEndStream))
	return nil
}

func (s *session) headers(f frame) error {
	if f.stream == 0 {
		return broken(h2Protocol, "HEADERS on stream 0")
	}
	if _, err := s.of(f); err != nil {
		return err
	}
	b, err := f.unpad()
	if err != nil {
		return err
	}
	if f.has(flagPriority) {
		if len(b) < 5 {
			return broken(h2Protocol, "HEADERS with a priority of %d bytes", len(b))
		}
		b = b[5:]
	}
	p := &s.partial
	p.open, p.stream, p.end, p.bytes, p.frames = true, f.stream, f.has(flagEndStream), p.bytes[:0], 0
	return s.fragment(b, f.has(flagEndHeaders))
}

// fragment takes a piece of a header block, and the block once it is whole. Blocks of calls that are over are decoded
// too: the table that they write to is the connection's.
func (s *session) fragment(b []byte, whole bool) error {
	p := &s.partial
	p.frames++
	if len(p.bytes)+len(b) > maxHeaderList || p.frames > 64 {
		return broken(h2EnhanceYourCalm, "a header block of more than %d bytes, or of %d frames", maxHeaderList, p.frames)
	}
	p.bytes = append(p.bytes, b...)
	if !whole {
		return nil
	}
	p.open, s.seen = false, fields{}
	_, err := s.dec.Write(p.bytes)
	if err == nil {
		err = s.dec.Close()
	}
	if err != nil {
		return broken(h2Compression, "its header block can't be decoded: %v", err)
	}
	if s.seen.bytes > maxHeaderList {
		return broken(h2EnhanceYourCalm, "headers of %d bytes, where %d are taken", s.seen.bytes, maxHeaderList)
	}
	c := s.call
	if c == nil || c.stream != p.stream || c.done {
		return broken(h2StreamClosed, "HEADERS of stream %d after its end", p.stream)
	}
	c.headers(s.seen, p.end)
	return nil
}

func (s *session) reset(f frame) error {
	switch {
	case f.stream == 0:
		return broken(h2Protocol, "RST_STREAM of stream 0")
	case len(f.payload) != 4:
		return broken(h2FrameSize, "RST_STREAM of %d bytes", len(f.payload))
	}
	c, err := s.of(f)
	if c == nil {
		return err
	}
	code := h2Code(binary.BigEndian.Uint32(f.payload))
	c.refused = code == h2RefusedStream
	c.done, c.err = true, &Error{Code: ofReset(code), Message: fmt.Sprintf("the server has reset the call (%s)", code)}
	return nil
}

// farewell is the frame to write before the connection is closed for err.
func farewell(err *brokenError) []byte {
	payload := binary.BigEndian.AppendUint32(make([]byte, 4, 8), uint32(err.code))
	return appendFrame(nil, frameGoAway, 0, 0, payload)
}
