package unary

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// peer is a server made by hand: it writes whatever a test wants it to.
type peer struct {
	net.Conn
	t    testing.TB
	in   []byte
	enc  *hpack.Encoder
	text bytes.Buffer
	body []byte // of the requests
}

// peers serves one connection after the other, each by the next of scripts.
func peers(t testing.TB, socket string, scripts ...func(p *peer)) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for _, script := range scripts {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			p := &peer{Conn: conn, t: t}
			p.enc = hpack.NewEncoder(&p.text)
			script(p)
			conn.Close()
		}
	}()
}

// next reads one frame; the preface must have been taken off. kind 255: the connection has ended.
func (p *peer) next() frame {
	for {
		f, rest, ok, err := cutFrame(p.in)
		if err != nil {
			p.t.Error("the client:", err)
			return frame{kind: 255}
		}
		if ok {
			p.in = rest
			return f
		}
		b := make([]byte, 1<<16)
		n, err := p.Read(b)
		if n == 0 {
			if err != io.EOF && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, net.ErrClosed) {
				p.t.Error("read from the client:", err)
			}
			return frame{kind: 255}
		}
		p.in = append(p.in, b[:n]...)
	}
}

// await reads until a frame of the kind comes.
func (p *peer) await(kind frameType) frame {
	for {
		f := p.next()
		if f.kind == frameData {
			p.body = append(p.body, f.payload...)
		}
		if f.kind == kind || f.kind == 255 {
			return f
		}
	}
}

// hello takes the client's preface and SETTINGS, and says settings.
func (p *peer) hello(settings ...uint32) {
	b := make([]byte, len(preface))
	if _, err := io.ReadFull(p, b); err != nil || string(b) != preface {
		p.t.Errorf("preface %q, %v", b, err)
	}
	if f := p.next(); f.kind != frameSettings {
		p.t.Errorf("frame type %d first", f.kind)
	}
	var payload []byte
	for i := 0; i < len(settings); i += 2 {
		payload = appendSetting(payload, uint16(settings[i]), settings[i+1])
	}
	p.Write(appendFrame(nil, frameSettings, 0, 0, payload))
}

// request takes a whole request and returns its stream.
func (p *peer) request() uint32 {
	for {
		f := p.await(frameData)
		if f.kind == 255 || f.has(flagEndStream) {
			return f.stream
		}
	}
}

func (p *peer) block(fields ...string) []byte {
	p.text.Reset()
	for i := 0; i < len(fields); i += 2 {
		p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(p.text.Bytes())
}

func (p *peer) headers(stream uint32, flags uint8, fields ...string) []byte {
	return appendFrame(nil, frameHeaders, flagEndHeaders|flags, stream, p.block(fields...))
}

// reply is the message "x", with its prefix.
func reply() []byte {
	b, _ := proto.Marshal(&message{Value: []byte("x")})
	return append([]byte{0, 0, 0, 0, byte(len(b))}, b...)
}

var (
	okHeaders  = []string{":status", "200", "content-type", "application/grpc+proto"}
	okTrailers = []string{"grpc-status", "0"}
)

// answer is a good one.
func (p *peer) answer(stream uint32) {
	b := p.headers(stream, 0, okHeaders...)
	b = appendFrame(b, frameData, 0, stream, reply())
	p.Write(append(b, p.headers(stream, flagEndStream, okTrailers...)...))
}

func good(p *peer) { p.hello(); p.answer(p.request()); p.await(255) }

func TestAnswersInUnusualShapesAreUnderstood(t *testing.T) {
	for name, write := range map[string]func(p *peer, stream uint32){
		"padding and priority": func(p *peer, stream uint32) {
			b := append([]byte{3, 0, 0, 0, 0, 9}, p.block(okHeaders...)...)
			p.Write(appendFrame(nil, frameHeaders, flagEndHeaders|flagPadded|flagPriority, stream, append(b, 0, 0, 0)))
			p.Write(appendFrame(nil, frameData, flagPadded, stream, append(append([]byte{200}, reply()...), make([]byte, 200)...)))
			p.Write(p.headers(stream, flagEndStream, okTrailers...))
		},
		"a header block in pieces of a byte, frames byte by byte": func(p *peer, stream uint32) {
			b := p.block(okHeaders...)
			all := appendFrame(nil, frameHeaders, 0, stream, b[:1])
			for i := 1; i < len(b); i++ {
				flags := uint8(0)
				if i == len(b)-1 {
					flags = flagEndHeaders
				}
				all = appendFrame(all, frameContinuation, flags, stream, b[i:i+1])
			}
			all = appendFrame(all, frameData, 0, stream, reply())
			all = append(all, p.headers(stream, flagEndStream, okTrailers...)...)
			for i := range all {
				p.Write(all[i : i+1])
			}
		},
		"a message in pieces, with empty ones": func(p *peer, stream uint32) {
			b := p.headers(stream, 0, okHeaders...)
			for _, c := range reply() {
				b = appendFrame(b, frameData, 0, stream, []byte{c})
				b = appendFrame(b, frameData, 0, stream, nil)
			}
			p.Write(append(b, p.headers(stream, flagEndStream, okTrailers...)...))
		},
		"informational headers first": func(p *peer, stream uint32) {
			p.Write(p.headers(stream, 0, ":status", "103", "link", "x"))
			p.answer(stream)
		},
		"frames that need no answer, or are unknown": func(p *peer, stream uint32) {
			b := appendFrame(nil, framePriority, 0, stream, make([]byte, 5))
			b = appendFrame(b, 77, 0xff, stream, []byte("what"))
			b = appendFrame(b, frameType(0xa), 0, 0, []byte("altsvc"))
			b = appendFrame(b, frameSettings, flagAck, 0, nil)
			b = appendFrame(b, framePing, flagAck, 0, make([]byte, 8))
			p.Write(appendFrame(b, frameSettings, 0, 0, appendSetting(nil, 99, 1)))
			p.answer(stream)
		},
		"PING, which is acknowledged": func(p *peer, stream uint32) {
			p.Write(appendFrame(nil, framePing, 0, 0, []byte("12345678")))
			if f := p.await(framePing); !f.has(flagAck) || string(f.payload) != "12345678" {
				p.t.Errorf("PING came back as %+v", f)
			}
			p.answer(stream)
		},
		"GOAWAY that spares the call": func(p *peer, stream uint32) {
			p.Write(appendFrame(nil, frameGoAway, 0, 0, []byte{0, 0, 0, byte(stream), 0, 0, 0, 0}))
			p.answer(stream)
		},
		"more after the end": func(p *peer, stream uint32) {
			b := p.headers(stream, 0, okHeaders...)
			b = appendFrame(b, frameData, 0, stream, reply())
			b = append(b, p.headers(stream, flagEndStream, okTrailers...)...)
			b = appendFrame(b, frameRSTStream, 0, stream, make([]byte, 4))
			p.Write(appendWindowUpdate(b, stream, 5))
		},
	} {
		t.Run(name, func(t *testing.T) {
			socket := socketIn(t)
			twice := func(p *peer) { p.hello(); write(p, p.request()); write(p, p.request()); p.await(255) }
			peers(t, socket, twice, good)
			c := dial(t, socket)
			for range 2 {
				if out, err := ask(t, c, nil, FailFast); err != nil || string(out) != "x" {
					t.Fatalf("%q, %v", out, err)
				}
			}
			c.Close()
		})
	}
}

func TestAnswersThatAreNoneHaveTheCodesOfTheSpecification(t *testing.T) {
	type tc struct {
		write func(p *peer, stream uint32)
		code  Code
		says  string
	}
	headers := func(flags uint8, fields ...string) func(p *peer, stream uint32) {
		return func(p *peer, stream uint32) { p.Write(p.headers(stream, flags, fields...)) }
	}
	body := func(flags uint8, b []byte, trailers ...string) func(p *peer, stream uint32) {
		return func(p *peer, stream uint32) {
			all := appendFrame(p.headers(stream, 0, okHeaders...), frameData, flags, stream, b)
			if trailers != nil {
				all = append(all, p.headers(stream, flagEndStream, trailers...)...)
			}
			p.Write(all)
		}
	}
	reset := func(code h2Code) func(p *peer, stream uint32) {
		return func(p *peer, stream uint32) {
			p.Write(appendFrame(nil, frameRSTStream, 0, stream, binary.BigEndian.AppendUint32(nil, uint32(code))))
		}
	}
	cases := map[string]tc{
		"no grpc-status":              {headers(flagEndStream, okHeaders...), Unknown, "no grpc-status"},
		"no grpc-status in trailers":  {body(0, reply(), "x", "y"), Unknown, "no grpc-status"},
		"no trailers":                 {body(flagEndStream, reply()), Internal, "without its trailers"},
		"success without a message":   {body(0, nil, okTrailers...), Internal, "0 bytes"},
		"success without the body":    {headers(flagEndStream, append(okHeaders, okTrailers...)...), Internal, "0 bytes"},
		"half a message":              {body(0, reply()[:7], okTrailers...), Internal, "7 bytes"},
		"two messages":                {body(0, append(reply(), reply()...), okTrailers...), Internal, "more than one"},
		"compressed":                  {body(0, []byte{1, 0, 0, 0, 1, 9}, okTrailers...), Internal, "compressed"},
		"too large":                   {body(0, []byte{0, 0, 0x40, 0, 1}), ResourceExhausted, "4194305"},
		"trailers that don't end":     {func(p *peer, s uint32) { body(0, reply())(p, s); headers(0, okTrailers...)(p, s) }, Internal, "trailers should be"},
		"headers twice":               {func(p *peer, s uint32) { body(0, reply())(p, s); headers(flagEndStream, okHeaders...)(p, s) }, Internal, "trailers should be"},
		"data first":                  {func(p *peer, s uint32) { p.Write(appendFrame(nil, frameData, 0, s, reply())) }, Internal, "data before"},
		"no :status":                  {headers(0, "content-type", "application/grpc"), Internal, ":status"},
		"another content":             {headers(0, ":status", "200", "content-type", "application/grpc-web"), Unknown, "application/grpc-web"},
		"informational and the end":   {headers(flagEndStream, ":status", "100"), Unknown, "100"},
		"HTTP 400":                    {headers(0, ":status", "400"), Internal, "HTTP status 400"},
		"HTTP 401":                    {headers(0, ":status", "401"), Unauthenticated, ""},
		"HTTP 403":                    {headers(0, ":status", "403"), PermissionDenied, ""},
		"HTTP 404":                    {headers(flagEndStream, ":status", "404", "content-type", "text/html"), Unimplemented, ""},
		"HTTP 429":                    {headers(0, ":status", "429"), Unavailable, ""},
		"HTTP 503":                    {headers(0, ":status", "503"), Unavailable, ""},
		"HTTP 500, a proxy's status":  {headers(flagEndStream, ":status", "500", "content-type", "text/html", "grpc-status", "7"), Unknown, ""},
		"HTTP 302":                    {headers(0, ":status", "302"), Unknown, ""},
		"reset: NO_ERROR":             {reset(h2NoError), Internal, "NO_ERROR"},
		"reset: INTERNAL_ERROR":       {reset(h2Internal), Internal, "INTERNAL_ERROR"},
		"reset: CANCEL":               {reset(h2Cancel), Canceled, "CANCEL"},
		"reset: ENHANCE_YOUR_CALM":    {reset(h2EnhanceYourCalm), ResourceExhausted, "ENHANCE_YOUR_CALM"},
		"reset: INADEQUATE_SECURITY":  {reset(h2InadequateSecurity), PermissionDenied, "INADEQUATE_SECURITY"},
		"reset: unheard of":           {reset(999), Unknown, "999"},
		"closed after SETTINGS":       {func(p *peer, s uint32) { p.Close() }, Unavailable, "closed"},
		"closed within the answer":    {func(p *peer, s uint32) { body(0, reply())(p, s); p.Close() }, Unavailable, "closed"},
		"a reply that isn't protobuf": {body(0, []byte{0, 0, 0, 0, 1, 0xff}, okTrailers...), Internal, "decode the reply"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			socket := socketIn(t)
			peers(t, socket, func(p *peer) { p.hello(); tc.write(p, p.request()); p.await(255) }, good)
			c := dial(t, socket)
			_, err := ask(t, c, nil, WaitForReady)
			want(t, err, tc.code, false, method, tc.says)
			if name == "a reply that isn't protobuf" {
				return // the connection is fine
			}
			if _, err := ask(t, c, nil, FailFast); err != nil {
				t.Error("the next call:", err)
			}
			c.Close()
		})
	}
}

func TestAStatusThatIsNoCodeIsUnknown(t *testing.T) {
	for _, s := range []string{"", "x", "17", "-1", "99999999999999999999"} {
		var a answer
		a.headers(fields{http: "200", contentType: "application/grpc", status: s, hasStatus: true, text: "why"}, true)
		if !a.done || a.err == nil || a.err.Code != Unknown || a.err.Message != "why" {
			t.Errorf("%q: %+v", s, a.err)
		}
	}
}

func TestAServerThatBreaksHTTP2IsToldAndLeft(t *testing.T) {
	for name, tc := range map[string]struct {
		bytes func(p *peer, stream uint32) []byte
		code  h2Code
	}{
		"a frame that is too large": {func(*peer, uint32) []byte { return []byte{0, 0x40, 1, 0, 0, 0, 0, 0, 1} }, h2FrameSize},
		"SETTINGS of 5 bytes":       {func(*peer, uint32) []byte { return appendFrame(nil, frameSettings, 0, 0, make([]byte, 5)) }, h2FrameSize},
		"SETTINGS ACK of 6 bytes":   {func(*peer, uint32) []byte { return appendFrame(nil, frameSettings, flagAck, 0, make([]byte, 6)) }, h2FrameSize},
		"SETTINGS on a stream":      {func(_ *peer, s uint32) []byte { return appendFrame(nil, frameSettings, 0, s, nil) }, h2Protocol},
		"push":                      {func(*peer, uint32) []byte { return appendFrame(nil, frameSettings, 0, 0, appendSetting(nil, 2, 1)) }, h2Protocol},
		"frames of 1 byte": {func(*peer, uint32) []byte {
			return appendFrame(nil, frameSettings, 0, 0, appendSetting(nil, settingMaxFrameSize, 1))
		}, h2Protocol},
		"a window of 2^31": {func(*peer, uint32) []byte {
			return appendFrame(nil, frameSettings, 0, 0, appendSetting(nil, settingInitialWindowSize, 1<<31))
		}, h2FlowControl},
		"PING of 7 bytes":    {func(*peer, uint32) []byte { return appendFrame(nil, framePing, 0, 0, make([]byte, 7)) }, h2FrameSize},
		"PING on a stream":   {func(_ *peer, s uint32) []byte { return appendFrame(nil, framePing, 0, s, make([]byte, 8)) }, h2Protocol},
		"GOAWAY of 7 bytes":  {func(*peer, uint32) []byte { return appendFrame(nil, frameGoAway, 0, 0, make([]byte, 7)) }, h2FrameSize},
		"PUSH_PROMISE":       {func(_ *peer, s uint32) []byte { return appendFrame(nil, framePushPromise, 4, s, make([]byte, 8)) }, h2Protocol},
		"CONTINUATION alone": {func(_ *peer, s uint32) []byte { return appendFrame(nil, frameContinuation, 4, s, nil) }, h2Protocol},
		"PING within a header block": {func(p *peer, s uint32) []byte {
			return appendFrame(appendFrame(nil, frameHeaders, 0, s, nil), framePing, 0, 0, make([]byte, 8))
		}, h2Protocol},
		"a header block without end": {func(p *peer, s uint32) []byte {
			b := appendFrame(nil, frameHeaders, 0, s, nil)
			for range 100 {
				b = appendFrame(b, frameContinuation, 0, s, nil)
			}
			return b
		}, h2EnhanceYourCalm},
		"a header block that is too large": {func(p *peer, s uint32) []byte {
			b := appendFrame(nil, frameHeaders, 0, s, nil)
			for range 20 {
				b = appendFrame(b, frameContinuation, 0, s, make([]byte, minMaxFrame))
			}
			return b
		}, h2EnhanceYourCalm},
		"a header block that decodes to too much": {func(p *peer, s uint32) []byte {
			var fields []string
			for range 500 { // one field in the table, referred to again and again
				fields = append(fields, "x", strings.Repeat("y", 3000))
			}
			return p.headers(s, 0, fields...)
		}, h2EnhanceYourCalm},
		"a header block that can't be decoded": {func(_ *peer, s uint32) []byte { return appendFrame(nil, frameHeaders, flagEndHeaders, s, []byte{0x80}) }, h2Compression},
		"half a header block":                  {func(_ *peer, s uint32) []byte { return appendFrame(nil, frameHeaders, flagEndHeaders, s, []byte{0x40}) }, h2Compression},
		"HEADERS on stream 0":                  {func(*peer, uint32) []byte { return appendFrame(nil, frameHeaders, 4, 0, nil) }, h2Protocol},
		"HEADERS of a stream of its own":       {func(*peer, uint32) []byte { return appendFrame(nil, frameHeaders, 4, 2, nil) }, h2Protocol},
		"DATA of a stream to come":             {func(_ *peer, s uint32) []byte { return appendFrame(nil, frameData, 0, s+2, nil) }, h2Protocol},
		"DATA on stream 0":                     {func(*peer, uint32) []byte { return appendFrame(nil, frameData, 0, 0, nil) }, h2Protocol},
		"all padding":                          {func(_ *peer, s uint32) []byte { return appendFrame(nil, frameData, flagPadded, s, []byte{1}) }, h2Protocol},
		"RST_STREAM of 3 bytes":                {func(_ *peer, s uint32) []byte { return appendFrame(nil, frameRSTStream, 0, s, make([]byte, 3)) }, h2FrameSize},
		"PRIORITY on stream 0":                 {func(*peer, uint32) []byte { return appendFrame(nil, framePriority, 0, 0, make([]byte, 5)) }, h2Protocol},
		"HEADERS with half a priority": {func(_ *peer, s uint32) []byte {
			return appendFrame(nil, frameHeaders, flagPriority, s, make([]byte, 4))
		}, h2Protocol},
		"WINDOW_UPDATE by 0":              {func(*peer, uint32) []byte { return appendWindowUpdate(nil, 0, 0) }, h2FlowControl},
		"WINDOW_UPDATE of 3 bytes":        {func(*peer, uint32) []byte { return appendFrame(nil, frameWindowUpdate, 0, 0, make([]byte, 3)) }, h2FrameSize},
		"a window beyond its limit":       {func(_ *peer, s uint32) []byte { return appendWindowUpdate(nil, s, maxWindow) }, h2FlowControl},
		"a connection's window beyond it": {func(*peer, uint32) []byte { return appendWindowUpdate(nil, 0, maxWindow) }, h2FlowControl},
	} {
		t.Run(name, func(t *testing.T) {
			socket := socketIn(t)
			told := make(chan frame, 1)
			peers(t, socket, func(p *peer) {
				p.hello()
				p.Write(tc.bytes(p, p.request()))
				told <- p.await(frameGoAway)
			}, good)
			c := dial(t, socket)
			_, err := ask(t, c, nil, WaitForReady)
			want(t, err, Internal, false, "breaks HTTP/2", tc.code.String())
			if f := <-told; f.kind != frameGoAway || h2Code(binary.BigEndian.Uint32(f.payload[4:])) != tc.code {
				t.Errorf("the peer was told %+v, want %v", f, tc.code)
			}
			if _, err := ask(t, c, nil, FailFast); err != nil {
				t.Error("the next call:", err)
			}
			c.Close()
		})
	}
}

func TestAServerThatBeginsWithoutSETTINGSIsNone(t *testing.T) {
	for _, b := range map[string][]byte{
		"another frame": appendFrame(nil, framePing, 0, 0, make([]byte, 8)),
		"HTTP/1":        []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
	} {
		socket := socketIn(t)
		peers(t, socket, func(p *peer) { p.Write(b); p.Read(make([]byte, 1000)) })
		_, err := ask(t, dial(t, socket), nil, WaitForReady)
		want(t, err, Internal, false, "breaks HTTP/2")
	}
}

func TestWhatAServerHasNotLookedAtIsAskedAgain(t *testing.T) {
	deaf := func(p *peer) {} // closes before it has said anything
	refuses := func(p *peer) {
		p.hello()
		s := p.request()
		p.Write(appendFrame(nil, frameRSTStream, 0, s, binary.BigEndian.AppendUint32(nil, uint32(h2RefusedStream))))
		p.await(255)
	}
	leaves := func(p *peer) {
		p.hello()
		p.request()
		p.Write(appendFrame(nil, frameGoAway, 0, 0, append(make([]byte, 8), "maintenance"...)))
		p.await(255)
	}
	for name, script := range map[string]func(*peer){"deaf": deaf, "refuses": refuses, "leaves": leaves} {
		t.Run(name, func(t *testing.T) {
			socket := socketIn(t)
			peers(t, socket, script, good)
			if _, err := ask(t, dial(t, socket), nil, FailFast); err != nil {
				t.Errorf("once: %v", err)
			}
			socket = socketIn(t)
			peers(t, socket, script, script, good)
			_, err := ask(t, dial(t, socket), nil, FailFast)
			want(t, err, Unavailable, false)
			socket = socketIn(t)
			peers(t, socket, script, script, script, good)
			if _, err := ask(t, dial(t, socket), nil, WaitForReady); err != nil {
				t.Errorf("waiting: %v", err)
			}
		})
	}
}

func TestRequestsKeepToTheServersWindows(t *testing.T) {
	socket := socketIn(t)
	in := bytes.Repeat([]byte{7}, 200_000)
	whole := make(chan []byte, 2)
	peers(t, socket, func(p *peer) {
		p.hello(settingMaxFrameSize, 1<<20, settingHeaderTableSize, 0)
		connection, initial := initialWindow, initialWindow
		for stream := uint32(1); stream < 4; stream += 2 {
			p.body = nil
			window := initial
			for shrunk := false; ; {
				f := p.next()
				if f.kind == 255 {
					return
				}
				if f.kind == frameSettings && shrunk { // what came before was sent by the old word
					window -= initial - 10
					initial = 10
				}
				if f.kind == frameData {
					p.body = append(p.body, f.payload...)
					connection -= len(f.payload)
					if window -= len(f.payload); window < 0 || connection < 0 {
						p.t.Errorf("the windows are %d and %d", window, connection)
					}
				}
				if f.kind == frameData && f.has(flagEndStream) {
					whole <- bytes.Clone(p.body)
					p.answer(f.stream)
					break
				}
				if !shrunk { // below nothing, until enough is given back
					shrunk = true
					p.Write(appendFrame(nil, frameSettings, 0, 0, appendSetting(nil, settingInitialWindowSize, 10)))
				}
				if window <= 0 && initial == 10 {
					p.Write(appendWindowUpdate(nil, stream, int64(15_000-window)))
					window = 15_000
				}
				if connection <= 0 {
					p.Write(appendWindowUpdate(nil, 0, 50_000))
					connection += 50_000
				}
			}
		}
		p.await(255)
	})
	c := dial(t, socket)
	want, _ := encode(&message{Value: in})
	for range 2 {
		if _, err := ask(t, c, in, FailFast); err != nil {
			t.Fatal(err)
		}
		if got := <-whole; !bytes.Equal(got, want) {
			t.Errorf("%d bytes came, not %d", len(got), len(want))
		}
	}
	c.Close()
}

func TestAServerThatTakesNoCallsIsUnavailable(t *testing.T) {
	socket := socketIn(t)
	peers(t, socket, func(p *peer) {
		p.hello(settingMaxConcurrentStreams, 0)
		p.answer(p.request())
		p.await(255)
	})
	c := dial(t, socket)
	if _, err := ask(t, c, nil, FailFast); err != nil { // it may be under way before the word comes
		t.Fatal(err)
	}
	_, err := ask(t, c, nil, FailFast)
	want(t, err, Unavailable, false, "takes no calls")
}

func TestASilentServerIsGivenUpAtTheDeadline(t *testing.T) {
	socket := socketIn(t)
	peers(t, socket, func(p *peer) { p.hello(); p.request(); p.await(255) })
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond) // for the request, too
	defer cancel()
	_, err := Invoke[message](ctx, dial(t, socket), method, &message{}, FailFast)
	want(t, err, DeadlineExceeded, false)
}
