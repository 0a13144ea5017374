package unary

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/branchline-cni/branchline/rpc/peercred"
)

// Against the real gRPC library's server.

const method = "/test.Echo/Call"

type (
	message = wrapperspb.BytesValue
	handler = func(context.Context, []byte) ([]byte, error)
)

func uid() uint32 { return uint32(os.Getuid()) }

// server is the library's, with one method, and counts its connections.
type server struct {
	*grpc.Server
	net.Listener
	connections atomic.Int32
}

func (s *server) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err == nil {
		s.connections.Add(1)
	}
	return c, err
}

func serve(t testing.TB, socket string, h handler, opts ...grpc.ServerOption) *server {
	t.Helper()
	os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Server: grpc.NewServer(opts...), Listener: l}
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Echo", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Call", Handler: func(_ any, ctx context.Context, decode func(any) error, icept grpc.UnaryServerInterceptor) (any, error) {
			var in message
			if err := decode(&in); err != nil {
				return nil, err
			}
			call := func(ctx context.Context, in any) (any, error) {
				out, err := h(ctx, in.(*message).Value)
				return &message{Value: out}, err
			}
			if icept != nil {
				return icept(ctx, &in, &grpc.UnaryServerInfo{FullMethod: method}, call)
			}
			return call(ctx, &in)
		}}},
	}, nil)
	done := make(chan struct{})
	go func() { s.Serve(s); close(done) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return s
}

func echo(_ context.Context, in []byte) ([]byte, error) { return in, nil }

func socketIn(t testing.TB) string { return filepath.Join(t.TempDir(), "s") }

func dial(t testing.TB, socket string) *Conn {
	t.Helper()
	c, err := New(socket, uid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func ask(t testing.TB, c *Conn, in []byte, ready Readiness) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := Invoke[message](ctx, c, method, &message{Value: in}, ready)
	return out.GetValue(), err
}

// want checks a call's error, and that it says what was attempted on what.
func want(t testing.TB, err error, code Code, answered bool, says ...string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != code || e.Answered != answered {
		t.Fatalf("got %v (%+v), want %v, answered: %t", err, e, code, answered)
	}
	for _, s := range append(says, method, e.Socket, code.String()) {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q does not say %q", err, s)
		}
	}
}

func TestCallsShareAConnection(t *testing.T) {
	socket := socketIn(t)
	s := serve(t, socket, echo)
	c := dial(t, socket)
	for n := range 5 {
		if out, err := ask(t, c, []byte{byte(n)}, FailFast); err != nil || !bytes.Equal(out, []byte{byte(n)}) {
			t.Fatalf("call %d: %v, %v", n, out, err)
		}
	}
	if n := s.connections.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestEachCodeAndItsMessageArriveAsTheLibrarysClientHasThem(t *testing.T) {
	socket := socketIn(t)
	var answer error
	serve(t, socket, echo, grpc.UnaryInterceptor(func(ctx context.Context, in any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if answer != nil {
			return nil, answer
		}
		return next(ctx, in)
	}))
	theirs, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	c := dial(t, socket)
	for n := codes.OK; n <= codes.Unauthenticated+1; n++ {
		for _, text := range []string{"", "no address", "50 % of \"ü\"\n\t\x00 → 日本%41", strings.Repeat("lang ü ", 4000), "bad \xff utf-8"} {
			answer = status.Error(n, text)
			wantErr := theirs.Invoke(t.Context(), method, &message{}, &message{})
			_, err := ask(t, c, nil, FailFast)
			if wantErr == nil {
				if err != nil {
					t.Errorf("%v: %v", n, err)
				}
				continue
			}
			s := status.Convert(wantErr)
			code := Code(s.Code())
			if n > codes.Unauthenticated {
				code = Unknown // the library's keeps what is no code; nobody can act on it
			}
			want(t, err, code, true, method)
			if e := err.(*Error); e.Message != s.Message() || code <= Unauthenticated && e.Code.String() != codes.Code(e.Code).String() {
				t.Errorf("%v: %q, the library's client has %q", n, e.Message, s.Message())
			}
		}
	}
}

func TestMessagesOfAnySizePassBothWays(t *testing.T) {
	socket := socketIn(t)
	serve(t, socket, echo)
	c := dial(t, socket)
	for _, n := range []int{0, 1, 100, 16370, 16384, 65530, 65535, 65536, 300_000, 3 << 20} {
		in := bytes.Repeat([]byte("branchline "), n/11+1)[:n]
		if out, err := ask(t, c, in, FailFast); err != nil || !bytes.Equal(in, out) {
			t.Fatalf("%d bytes: %d came back, %v", n, len(out), err)
		}
	}
}

func TestMessagesThatAreTooLargeAreRefusedByEitherEnd(t *testing.T) {
	socket := socketIn(t)
	serve(t, socket, func(_ context.Context, in []byte) ([]byte, error) {
		if len(in) > 0 {
			return in, nil
		}
		return make([]byte, maxReply+1), nil
	}, grpc.MaxRecvMsgSize(100_000), grpc.MaxSendMsgSize(1<<30))
	c := dial(t, socket)
	_, err := ask(t, c, make([]byte, 1<<20), FailFast)
	want(t, err, ResourceExhausted, true, "100000")
	_, err = ask(t, c, nil, FailFast)
	want(t, err, ResourceExhausted, false, "4194304 are taken")
	if _, err := ask(t, c, []byte("x"), FailFast); err != nil {
		t.Error("afterwards:", err)
	}
}

func TestUnknownMethodsAreUnimplemented(t *testing.T) {
	socket := socketIn(t)
	serve(t, socket, echo)
	_, err := Invoke[message](t.Context(), dial(t, socket), "/test.Echo/Other", &message{}, FailFast)
	if CodeOf(err) != Unimplemented || !err.(*Error).Answered {
		t.Error(err)
	}
}

func TestTheServerKnowsTheDeadlineAndThatNobodyWaits(t *testing.T) {
	socket := socketIn(t)
	type seen struct {
		left time.Duration
		ok   bool
	}
	began, over := make(chan seen, 1), make(chan error, 1)
	serve(t, socket, func(ctx context.Context, in []byte) ([]byte, error) {
		if len(in) > 0 {
			return in, nil
		}
		d, ok := ctx.Deadline()
		began <- seen{time.Until(d), ok}
		<-ctx.Done()
		over <- ctx.Err()
		<-time.After(time.Second) // its own word comes too late
		return nil, ctx.Err()
	})
	c := dial(t, socket)
	if _, err := ask(t, c, []byte("x"), FailFast); err != nil { // the deadline is for the call alone
		t.Fatal(err)
	}

	const limit = time.Second
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	_, err := Invoke[message](ctx, c, method, &message{}, WaitForReady)
	want(t, err, DeadlineExceeded, false, "no answer within its deadline")
	if s := <-began; !s.ok || s.left > limit || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the server saw %+v, the caller %v", s, err)
	}
	<-over

	ctx, cancel = context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	_, err = Invoke[message](ctx, c, method, &message{}, WaitForReady)
	want(t, err, Canceled, false)
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Errorf("the server's context: %v", err)
	}
	_, err = Invoke[message](ctx, c, method, &message{}, WaitForReady)
	want(t, err, Canceled, false, "not begun")
	if _, err := ask(t, c, []byte("x"), FailFast); err != nil {
		t.Error("afterwards:", err)
	}
}

func TestTheServersOwnWordOnTheDeadlineIsHeard(t *testing.T) {
	socket := socketIn(t)
	serve(t, socket, func(context.Context, []byte) ([]byte, error) {
		return nil, status.Error(codes.DeadlineExceeded, "no annotation yet")
	})
	_, err := ask(t, dial(t, socket), nil, FailFast)
	want(t, err, DeadlineExceeded, true, "no annotation yet")
	if errors.Is(err, context.DeadlineExceeded) {
		t.Error("taken for the caller's own deadline")
	}
}

func TestACallThatIsUnderWayOutlivesAGracefulStopAndTheNextGoesToTheSuccessor(t *testing.T) {
	socket := socketIn(t)
	began, finish := make(chan struct{}), make(chan struct{})
	old := serve(t, socket, func(_ context.Context, in []byte) ([]byte, error) {
		close(began)
		<-finish
		return in, nil
	})
	c := dial(t, socket)
	var wg sync.WaitGroup
	wg.Go(func() {
		<-began
		wg.Go(old.GracefulStop)
		// Its socket is gone once it has begun to stop.
		for conn, err := net.Dial("unix", socket); err == nil; conn, err = net.Dial("unix", socket) {
			conn.Close()
		}
		close(finish)
	})
	if out, err := ask(t, c, []byte("x"), FailFast); err != nil || string(out) != "x" {
		t.Errorf("%q, %v", out, err)
	}
	old.Stop() // it would wait for its client to read on
	wg.Wait()
	serve(t, socket, echo)
	if out, err := ask(t, c, []byte("y"), FailFast); err != nil || string(out) != "y" {
		t.Errorf("the next: %q, %v", out, err)
	}
}

func TestAServerThatEndsDuringACallIsUnavailable(t *testing.T) {
	socket := socketIn(t)
	began := make(chan struct{}, 1)
	s := serve(t, socket, func(ctx context.Context, in []byte) ([]byte, error) {
		began <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	go func() { <-began; s.Stop() }()
	_, err := ask(t, dial(t, socket), nil, WaitForReady)
	want(t, err, Unavailable, false, "before")
}

func TestACallWaitsForAServerOnlyWhenToldTo(t *testing.T) {
	socket := socketIn(t)
	c := dial(t, socket)
	_, err := ask(t, c, nil, FailFast)
	want(t, err, Unavailable, false, "connect to "+socket, "no such file")
	if !errors.Is(err, unix.ENOENT) {
		t.Errorf("%v hides its cause", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = Invoke[message](ctx, c, method, &message{}, WaitForReady)
	want(t, err, DeadlineExceeded, false, "no such file")
	done := make(chan error, 1)
	go func() { _, err := ask(t, c, nil, WaitForReady); done <- err }()
	serve(t, socket, echo)
	if err := <-done; err != nil {
		t.Error("the server came:", err)
	}
}

func TestAnotherUsersServerIsRefusedAtOnce(t *testing.T) {
	socket := socketIn(t)
	s := serve(t, socket, echo)
	c, err := New(socket, uid()+1)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = ask(t, c, nil, WaitForReady)
	want(t, err, Unauthenticated, false, "uid")
	if !errors.Is(err, peercred.ErrRefused) || !errors.Is(c.Connect(), peercred.ErrRefused) {
		t.Error(err)
	}
	_ = s
}

func TestAConnectionMadeAheadIsUsedAndMayBeGoneBefore(t *testing.T) {
	socket := socketIn(t)
	c := dial(t, socket)
	if err := c.Connect(); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), socket) {
		t.Errorf("nobody listens: %v", err)
	}
	old := serve(t, socket, echo)
	for range 2 {
		if err := c.Connect(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ask(t, c, nil, FailFast); err != nil || old.connections.Load() != 1 {
		t.Errorf("%v, %d connections", err, old.connections.Load())
	}
	// With and without the old server's SETTINGS in the socket.
	c.Close()
	if err := c.Connect(); err != nil {
		t.Fatal(err)
	}
	old.Stop()
	serve(t, socket, echo)
	if _, err := ask(t, c, nil, FailFast); err != nil {
		t.Errorf("the server was replaced: %v", err)
	}
}

func TestSocketsOfOtherShapesAreNotTried(t *testing.T) {
	for _, socket := range []string{"", "s", "@abstract", "/" + strings.Repeat("x", MaxSocketPath)} {
		if _, err := New(socket, 0); err == nil {
			t.Errorf("%q: accepted", socket)
		}
	}
}
