package guest

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestMessagesArriveAsSent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sent := rapid.SliceOf(rapid.Custom(func(t *rapid.T) Reply {
			return Reply{
				ID: rapid.Uint64().Draw(t, "id"), Kind: KindOutput, Stream: rapid.IntRange(1, 2).Draw(t, "stream"),
				Data: rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(t, "data"), Error: rapid.StringMatching(`[ -~\n]*`).Draw(t, "error"),
			}
		})).Draw(t, "messages")
		var wire bytes.Buffer
		c := NewConn[Reply, Reply](&wire)
		for _, m := range sent {
			if err := c.Send(m); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range sent {
			got, err := c.Receive()
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("got %+v, %v, want %+v", got, err, want)
			}
		}
		if _, err := c.Receive(); !errors.Is(err, io.EOF) {
			t.Fatalf("after the last message: %v, want EOF", err)
		}
	})
}

func TestTooLongMessagesAreRefusedOnBothSides(t *testing.T) {
	var wire bytes.Buffer
	c := NewConn[Reply, Reply](&wire)
	if err := c.Send(Reply{Data: make([]byte, MaxLine)}); !errors.Is(err, ErrLineTooLong) {
		t.Errorf("send: %v", err)
	}
	wire.WriteString(strings.Repeat("x", MaxLine+1) + "\n")
	if _, err := c.Receive(); !errors.Is(err, ErrLineTooLong) {
		t.Errorf("receive: %v", err)
	}
}

func TestCutOffMessageIsNoCleanEnd(t *testing.T) {
	if _, err := NewConn[Reply, Reply](bytes.NewBufferString(`{"id":1`)).Receive(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v, want unexpected EOF", err)
	}
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte(`{"id":1,"op":"exec","process":{"argv":["true"]}}` + "\n"))
	f.Add([]byte("\n\n{}\nnull\n[]\n"))
	f.Add([]byte(`{"id":-1}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := NewConn[Request, Reply](bytes.NewBuffer(b))
		for n := 0; ; n++ {
			if _, err := c.Receive(); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return
			}
			if n > len(b) {
				t.Fatal("more messages than bytes")
			}
		}
	})
}
