package unary

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// maxReply is the largest reply that is taken, in bytes: gRPC's own default.
const maxReply = 4 << 20

// answer is what has come of one call's answer: gRPC's PROTOCOL-HTTP2.md, "Responses".
type answer struct {
	begun   bool // the response's headers have come
	message []byte
	size    int // of the message with its prefix; 0 until the prefix is there

	done bool
	err  *Error // of the call, once done; without method and socket
}

// fields are what a header block says that matters here.
type fields struct {
	http, contentType string
	status, text      string
	hasStatus         bool
	bytes             int // as RFC 9113 counts them for SETTINGS_MAX_HEADER_LIST_SIZE
}

func (f *fields) take(h hpack.HeaderField) {
	f.bytes += int(h.Size())
	switch h.Name {
	case ":status":
		f.http = h.Value
	case "content-type":
		f.contentType = h.Value
	case "grpc-status":
		f.status, f.hasStatus = h.Value, true
	case "grpc-message":
		f.text = h.Value
	}
}

// fail ends the call for what is wrong with the answer, not by its status.
func (a *answer) fail(code Code, format string, args ...any) {
	a.done, a.err = true, &Error{Code: code, Message: "the server's answer: " + fmt.Sprintf(format, args...)}
}

// headers takes a whole header block: the response's headers, its trailers, or both in one.
func (a *answer) headers(f fields, end bool) {
	switch {
	case a.begun && (!end || f.http != ""):
		a.fail(Internal, "headers where its trailers should be")
	case a.begun:
		a.trailers(f)
	default:
		status, err := strconv.ParseUint(f.http, 10, 16)
		switch grpc := isGRPC(f.contentType); {
		case err != nil || status < 100 || status > 999:
			a.fail(Internal, ":status %.40q is none", f.http)
		case status < 200 && !end:
			// Informational: the response is yet to come.
		case end && grpc && f.hasStatus:
			a.trailers(f) // an answer of trailers alone
		case status != 200:
			a.fail(ofHTTP(int(status)), "HTTP status %d", status)
		case !grpc:
			a.fail(Unknown, "content-type %.80q is not gRPC's", f.contentType)
		case end:
			a.trailers(f)
		default:
			a.begun = true
		}
	}
}

func isGRPC(contentType string) bool {
	rest, ok := strings.CutPrefix(contentType, "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// trailers end the answer.
func (a *answer) trailers(f fields) {
	if !f.hasStatus {
		a.fail(Unknown, "no grpc-status in its trailers")
		return
	}
	code := Unknown // of what is no code
	if n, err := strconv.ParseUint(f.status, 10, 32); err == nil && Code(n) <= Unauthenticated {
		code = Code(n)
	}
	switch {
	case code != OK:
		a.done, a.err = true, &Error{Code: code, Message: unescape(f.text), Answered: true}
	case a.size == 0 || len(a.message) < a.size:
		a.fail(Internal, "success with %d bytes of a message that is not whole", len(a.message))
	default:
		a.done = true
	}
}

// data takes a piece of the message.
func (a *answer) data(b []byte, end bool) {
	if !a.begun {
		a.fail(Internal, "data before its headers")
		return
	}
	if a.size != 0 && len(a.message)+len(b) > a.size {
		a.fail(Internal, "more than one message")
		return
	}
	a.message = append(a.message, b...)
	if a.size == 0 && len(a.message) >= prefixBytes {
		n := binary.BigEndian.Uint32(a.message[1:])
		switch {
		case a.message[0] != 0:
			a.fail(Internal, "its message is compressed, which was not offered")
			return
		case n > maxReply:
			a.fail(ResourceExhausted, "a message of %d bytes, where %d are taken", n, maxReply)
			return
		}
		a.size = prefixBytes + int(n)
		if len(a.message) > a.size {
			a.fail(Internal, "more than one message")
			return
		}
	}
	if end {
		a.fail(Internal, "it ended without its trailers")
	}
}

// reply is the message of an answer that is done without an error.
func (a *answer) reply() []byte { return a.message[prefixBytes:] }
