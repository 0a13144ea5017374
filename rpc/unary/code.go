package unary

import (
	"errors"
	"fmt"
	"strconv"
)

// Code is a gRPC status code, with gRPC's numbers.
type Code uint32

// The codes of gRPC.
const (
	OK Code = iota
	Canceled
	Unknown
	InvalidArgument
	DeadlineExceeded
	NotFound
	AlreadyExists
	PermissionDenied
	ResourceExhausted
	FailedPrecondition
	Aborted
	OutOfRange
	Unimplemented
	Internal
	Unavailable
	DataLoss
	Unauthenticated
)

// String is the code's name as gRPC's libraries print it.
func (c Code) String() string {
	switch c {
	case OK:
		return "OK"
	case Canceled:
		return "Canceled"
	case Unknown:
		return "Unknown"
	case InvalidArgument:
		return "InvalidArgument"
	case DeadlineExceeded:
		return "DeadlineExceeded"
	case NotFound:
		return "NotFound"
	case AlreadyExists:
		return "AlreadyExists"
	case PermissionDenied:
		return "PermissionDenied"
	case ResourceExhausted:
		return "ResourceExhausted"
	case FailedPrecondition:
		return "FailedPrecondition"
	case Aborted:
		return "Aborted"
	case OutOfRange:
		return "OutOfRange"
	case Unimplemented:
		return "Unimplemented"
	case Internal:
		return "Internal"
	case Unavailable:
		return "Unavailable"
	case DataLoss:
		return "DataLoss"
	case Unauthenticated:
		return "Unauthenticated"
	}
	return "Code(" + strconv.FormatUint(uint64(c), 10) + ")"
}

// Error is why a call has no reply.
type Error struct {
	Method, Socket string
	Code           Code
	// Message is the server's, or what happened on the way.
	Message string
	// Answered says that the code is the server's word. Otherwise the call may or may not have been acted on.
	Answered bool
	// Cause is what errors.Is and errors.As look at: the context's end, a system call's error, peercred.ErrRefused.
	Cause error
}

func (e *Error) Error() string {
	return fmt.Sprintf("call %s on %s: %s (%s)", e.Method, e.Socket, e.Message, e.Code)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// CodeOf is the code of a call's error: OK of nil, Unknown of an error that is no call's.
func CodeOf(err error) Code {
	if err == nil {
		return OK
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Unknown
}

// ofHTTP is the code of an answer without a gRPC status, by its HTTP status: gRPC's http-grpc-status-mapping.md.
func ofHTTP(status int) Code {
	switch status {
	case 400:
		return Internal
	case 401:
		return Unauthenticated
	case 403:
		return PermissionDenied
	case 404:
		return Unimplemented
	case 429, 502, 503, 504:
		return Unavailable
	}
	return Unknown
}

// h2Code is an error code of HTTP/2 (RFC 9113, section 7).
type h2Code uint32

const (
	h2NoError h2Code = iota
	h2Protocol
	h2Internal
	h2FlowControl
	h2SettingsTimeout
	h2StreamClosed
	h2FrameSize
	h2RefusedStream
	h2Cancel
	h2Compression
	h2Connect
	h2EnhanceYourCalm
	h2InadequateSecurity
	h2HTTP11Required
)

func (c h2Code) String() string {
	names := [...]string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
		"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
		"INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"}
	if int(c) < len(names) {
		return names[c]
	}
	return "error " + strconv.FormatUint(uint64(c), 10)
}

// ofReset is the code of a call whose stream the server has reset: the table in gRPC's PROTOCOL-HTTP2.md.
func ofReset(c h2Code) Code {
	switch c {
	case h2NoError, h2Protocol, h2Internal, h2FlowControl, h2SettingsTimeout, h2StreamClosed, h2FrameSize, h2Compression, h2Connect, h2HTTP11Required:
		return Internal
	case h2RefusedStream:
		return Unavailable
	case h2Cancel:
		return Canceled
	case h2EnhanceYourCalm:
		return ResourceExhausted
	case h2InadequateSecurity:
		return PermissionDenied
	}
	return Unknown
}
