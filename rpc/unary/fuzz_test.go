package unary

import (
	"bytes"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/net/http2/hpack"
	"pgregory.net/rapid"
)

// FuzzAnswer feeds a session with what a server could send after a request.
func FuzzAnswer(f *testing.F) {
	for _, seed := range seeds() {
		f.Add(seed)
	}
	body := make([]byte, 100_000)
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newSession()
		c, err := s.begin(method, body, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		for rest := b; ; {
			fr, left, ok, err := cutFrame(rest)
			if err == nil && ok {
				err = s.take(fr)
			}
			if err != nil {
				if c.done && c.err == nil {
					break // the answer was whole: conn.go looks no further
				}
				return
			}
			if !ok || c.done {
				break
			}
			rest = left
		}
		if c.done && c.err == nil && len(c.reply()) != c.size-prefixBytes {
			t.Errorf("a reply of %d bytes, %d were announced", len(c.reply()), c.size)
		}
		if c.done && c.err != nil && (c.err.Code == OK || !utf8.ValidString(c.err.Message) && c.err.Answered) {
			t.Errorf("the call failed with %+v", c.err)
		}
		if len(c.message) > len(b) || len(c.message) > maxReply+prefixBytes+minMaxFrame {
			t.Errorf("%d bytes kept of %d", len(c.message), len(b))
		}
		if s.window > maxWindow || s.window < 0 || c.window > maxWindow || s.room <= minMaxFrame || c.room < 0 {
			t.Errorf("windows: %d, %d to send, %d, %d to receive", s.window, c.window, s.room, c.room)
		}
		if len(s.out) > 2*len(b)+len(body)+1000 {
			t.Errorf("%d bytes to send in reply to %d", len(s.out), len(b))
		}
		if s.maxFrame > minMaxFrame {
			return
		}
		for out := s.out[len(preface):]; len(out) > 0; {
			_, rest, ok, err := cutFrame(out)
			if !ok || err != nil {
				t.Fatalf("what is to be sent is no frame: %v", err)
			}
			out = rest
		}
	})
}

// seeds are a server's bytes, its SETTINGS first.
func seeds() [][]byte {
	settings := func(kv ...uint32) []byte {
		var b []byte
		for i := 0; i < len(kv); i += 2 {
			b = appendSetting(b, uint16(kv[i]), kv[i+1])
		}
		return appendFrame(nil, frameSettings, 0, 0, b)
	}
	with := func(write func(p *peer) []byte) []byte {
		p := new(peer)
		p.enc = hpack.NewEncoder(&p.text)
		return append(settings(), write(p)...)
	}
	all := [][]byte{
		nil,
		settings(settingHeaderTableSize, 0, settingMaxConcurrentStreams, 1, settingInitialWindowSize, 7, settingMaxFrameSize, 1<<20),
		append(settings(settingInitialWindowSize, maxWindow), appendWindowUpdate(nil, 1, 5)...),
		append(settings(), appendFrame(nil, framePing, 0, 0, make([]byte, 8))...),
		append(settings(), appendFrame(nil, frameGoAway, 0, 0, make([]byte, 12))...),
		append(settings(), appendFrame(nil, frameRSTStream, 0, 1, []byte{0, 0, 0, 7})...),
		append(settings(), 0, 0x40, 1, 0, 0, 0, 0, 0, 1),
		with(func(p *peer) []byte {
			b := p.headers(1, 0, okHeaders...)
			b = appendFrame(b, frameData, flagPadded, 1, append(append([]byte{4}, reply()...), 0, 0, 0, 0))
			return append(b, p.headers(1, flagEndStream, okTrailers...)...)
		}),
		with(func(p *peer) []byte {
			return p.headers(1, flagEndStream, ":status", "200", "content-type", "application/grpc", "grpc-status", "9", "grpc-message", "no%20annotation: %e6%97%a5%zz")
		}),
		with(func(p *peer) []byte {
			b := p.block(":status", "503")
			return appendFrame(appendFrame(nil, frameHeaders, flagPriority, 1, append(make([]byte, 5), b[:1]...)), frameContinuation, flagEndHeaders, 1, b[1:])
		}),
		with(func(p *peer) []byte {
			b := p.headers(1, 0, okHeaders...)
			for range 5 {
				b = appendFrame(b, frameData, 0, 1, append([]byte{0, 0, 1, 0, 0}, make([]byte, 10_000)...))
			}
			return b
		}),
	}
	return all
}

func TestTheTimeoutHeaderNeverSaysLessThanIsLeft(t *testing.T) {
	units := map[byte]time.Duration{'n': 1, 'u': time.Microsecond, 'm': time.Millisecond, 'S': time.Second, 'M': time.Minute, 'H': time.Hour}
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(1, math.MaxInt64).Draw(t, "left"))
		if rapid.Bool().Draw(t, "short") {
			d %= 100 * time.Second
			d++
		}
		s := timeout(d)
		n, err := strconv.ParseInt(s[:len(s)-1], 10, 64)
		unit := units[s[len(s)-1]]
		if err != nil || unit == 0 || len(s) > 9 {
			t.Fatalf("%v became %q", d, s)
		}
		// Compared without multiplying, which could overflow.
		if over := n - int64((d-1)/unit) - 1; over != 0 || unit > time.Nanosecond && d/unit < 100 {
			t.Fatalf("%v became %q", d, s)
		}
	})
}

func TestStatusMessagesAreDecodedAsTheyWereEncoded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Draw(t, "message")
		var b strings.Builder
		for i := 0; i < len(text); i++ { // PROTOCOL-HTTP2.md, "Status-Message"
			if c := text[i]; c >= ' ' && c <= '~' && c != '%' {
				b.WriteByte(c)
			} else {
				b.WriteString("%" + string("0123456789abcdef"[c>>4]) + string("0123456789ABCDEF"[c&15]))
			}
		}
		if got := unescape(b.String()); got != strings.ToValidUTF8(text, "\uFFFD") {
			t.Errorf("%q became %q", text, got)
		}
	})
	for in, out := range map[string]string{"100%": "100%", "%": "%", "%4": "%4", "%zz%41": "%zzA", "%ff": "\uFFFD", "%+1": "%+1"} {
		if got := unescape(in); got != out {
			t.Errorf("%q became %q, want %q", in, got, out)
		}
	}
}

func TestFramesAreCutWhereverTheBytesArrive(t *testing.T) {
	b := bytes.Join(seeds()[1:6], nil)
	var whole []frame
	for rest := b; len(rest) > 0; {
		f, left, ok, err := cutFrame(rest)
		if !ok || err != nil {
			t.Fatal(err)
		}
		whole, rest = append(whole, f), left
	}
	for end := range b {
		rest, n := b[:end], 0
		for {
			f, left, ok, err := cutFrame(rest)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			if f.kind != whole[n].kind || !bytes.Equal(f.payload, whole[n].payload) {
				t.Fatalf("frame %d of the first %d bytes is %+v", n, end, f)
			}
			rest, n = left, n+1
		}
	}
}
