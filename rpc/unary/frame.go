package unary

import "encoding/binary"

// Frames of HTTP/2: RFC 9113, sections 4.1 and 6.
type frameType uint8

const (
	frameData frameType = iota
	frameHeaders
	framePriority
	frameRSTStream
	frameSettings
	framePushPromise
	framePing
	frameGoAway
	frameWindowUpdate
	frameContinuation
)

const (
	flagAck        = 0x1 // of SETTINGS and PING
	flagEndStream  = 0x1 // of DATA and HEADERS
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

const (
	settingHeaderTableSize      = 1
	settingEnablePush           = 2
	settingMaxConcurrentStreams = 3
	settingInitialWindowSize    = 4
	settingMaxFrameSize         = 5
	settingMaxHeaderListSize    = 6
)

const (
	preface       = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	frameHeader   = 9
	minMaxFrame   = 1 << 14 // what either end may send before it is told otherwise; we never tell
	maxMaxFrame   = 1<<24 - 1
	initialWindow = 1<<16 - 1
	maxWindow     = 1<<31 - 1
	maxStreamID   = 1<<31 - 1
)

type frame struct {
	kind    frameType
	flags   uint8
	stream  uint32
	payload []byte
}

func (f frame) has(flag uint8) bool { return f.flags&flag != 0 }

// cutFrame takes the first frame off b. ok is false while b does not have all of it.
func cutFrame(b []byte) (f frame, rest []byte, ok bool, err error) {
	if len(b) < frameHeader {
		return f, b, false, nil
	}
	n := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	if n > minMaxFrame {
		return f, b, false, broken(h2FrameSize, "a frame of %d bytes, where %d are allowed", n, minMaxFrame)
	}
	if len(b) < frameHeader+n {
		return f, b, false, nil
	}
	f = frame{kind: frameType(b[3]), flags: b[4], stream: binary.BigEndian.Uint32(b[5:]) & maxStreamID, payload: b[frameHeader : frameHeader+n]}
	return f, b[frameHeader+n:], true, nil
}

func appendFrame(b []byte, kind frameType, flags uint8, stream uint32, payload []byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), byte(kind), flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

func appendWindowUpdate(b []byte, stream uint32, increment int64) []byte {
	return appendFrame(b, frameWindowUpdate, 0, stream, binary.BigEndian.AppendUint32(nil, uint32(increment)))
}

func appendSetting(b []byte, id uint16, value uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(b, id), value)
}

// unpad takes the padding off the payload of a DATA or HEADERS frame.
func (f frame) unpad() ([]byte, error) {
	if !f.has(flagPadded) {
		return f.payload, nil
	}
	if len(f.payload) == 0 || int(f.payload[0]) >= len(f.payload) {
		return nil, broken(h2Protocol, "a padded frame of %d bytes that is all padding", len(f.payload))
	}
	return f.payload[1 : len(f.payload)-int(f.payload[0])], nil
}
