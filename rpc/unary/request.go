package unary

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"
)

const prefixBytes = 5 // before each message: one byte that says whether it is compressed, four of its length

// encode returns the message with its prefix.
func encode(m proto.Message) ([]byte, error) {
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, prefixBytes, prefixBytes+256), m)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	if len(b)-prefixBytes > math.MaxUint32 {
		return nil, fmt.Errorf("encode the request: its %d bytes are more than gRPC can send", len(b)-prefixBytes)
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-prefixBytes))
	return b, nil
}

// writeRequest writes the header block of a request. left is the time until the call's deadline; 0: it has none.
func writeRequest(e *hpack.Encoder, method string, left time.Duration) error {
	fields := [...]hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: method},
		{Name: ":authority", Value: "localhost"}, // what gRPC's libraries say on a unix socket
		{Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"},
		{Name: "grpc-timeout", Value: timeout(left), Sensitive: true}, // another one in each call: not for the table
	}
	n := len(fields)
	if left <= 0 {
		n--
	}
	for _, f := range fields[:n] {
		if err := e.WriteField(f); err != nil {
			return err
		}
	}
	return nil
}

// timeout is the header grpc-timeout: at most eight digits and a unit. What is cut off is made up for by rounding up, so
// that the server doesn't give up before the caller.
func timeout(d time.Duration) string {
	const max = 100_000_000
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{time.Nanosecond, "n"}, {time.Microsecond, "u"}, {time.Millisecond, "m"}, {time.Second, "S"}, {time.Minute, "M"}} {
		if n := (d-1)/u.unit + 1; n < max {
			return strconv.FormatInt(int64(n), 10) + u.name
		}
	}
	return strconv.FormatInt(int64((d-1)/time.Hour+1), 10) + "H"
}

// unescape decodes the header grpc-message: percent-encoded UTF-8. What is not is left as it is.
func unescape(s string) string {
	if !strings.Contains(s, "%") {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return strings.ToValidUTF8(b.String(), "\uFFFD")
}
