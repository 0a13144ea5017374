package instance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// qmp is a client of the QEMU Machine Protocol: one JSON object per line, commands answered by id, events in between.
type qmp struct {
	c io.ReadWriteCloser

	mu      sync.Mutex // guards the fields below and writing
	next    uint64
	calls   map[uint64]chan qmpMessage
	events  map[*qmpWatch]struct{}
	readErr error
	gone    chan struct{} // closed when the connection has ended
}

type qmpMessage struct {
	Greeting json.RawMessage `json:"QMP,omitempty"`
	ID       uint64          `json:"id,omitempty"`
	Return   json.RawMessage `json:"return,omitempty"`
	Error    *qmpError       `json:"error,omitempty"`
	Event    string          `json:"event,omitempty"`
	Data     json.RawMessage `json:"data,omitempty"`
}

// qmpError is QEMU's own answer to a command that it refused.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return fmt.Sprintf("QEMU: %s (%s)", e.Desc, e.Class) }

// qmpWatch receives the events that match wants.
type qmpWatch struct {
	wants func(event string, data json.RawMessage) bool
	c     chan struct{}
	once  sync.Once
}

func newQMP(ctx context.Context, c io.ReadWriteCloser) (*qmp, error) {
	q := &qmp{c: c, calls: map[uint64]chan qmpMessage{}, events: map[*qmpWatch]struct{}{}, gone: make(chan struct{})}
	go q.read()
	if err := q.call(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return q, nil
}

func parseQMP(line []byte) (qmpMessage, error) {
	var m qmpMessage
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("decode QMP message: %w", err)
	}
	return m, nil
}

func (q *qmp) read() {
	s := bufio.NewScanner(q.c)
	s.Buffer(make([]byte, 0, 64<<10), 4<<20)
	var err error
	for s.Scan() {
		var m qmpMessage
		if m, err = parseQMP(s.Bytes()); err != nil {
			break
		}
		q.dispatch(m)
	}
	if err == nil {
		err = s.Err()
	}
	if err == nil {
		err = io.EOF
	}
	q.mu.Lock()
	q.readErr = err
	q.mu.Unlock()
	close(q.gone)
}

func (q *qmp) dispatch(m qmpMessage) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if m.Event != "" {
		for w := range q.events {
			if w.wants(m.Event, m.Data) {
				w.once.Do(func() { close(w.c) })
			}
		}
		return
	}
	if c := q.calls[m.ID]; c != nil && m.Greeting == nil {
		delete(q.calls, m.ID)
		c <- m
	}
}

// call runs a command. A refusal by QEMU is a *qmpError.
func (q *qmp) call(ctx context.Context, command string, args, result any) error {
	done := make(chan qmpMessage, 1)
	q.mu.Lock()
	q.next++
	id := q.next
	q.calls[id] = done
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err == nil {
		_, err = q.c.Write(append(b, '\n'))
	}
	if err != nil {
		delete(q.calls, id)
	}
	q.mu.Unlock()
	if err != nil {
		return fmt.Errorf("send QMP command %s: %w", command, err)
	}
	select {
	case m := <-done:
		if m.Error != nil {
			return fmt.Errorf("QMP command %s: %w", command, m.Error)
		}
		if result == nil {
			return nil
		}
		return json.Unmarshal(m.Return, result)
	case <-q.gone:
		return fmt.Errorf("QMP command %s: QEMU ended: %w", command, q.readErr)
	case <-ctx.Done():
		q.mu.Lock()
		delete(q.calls, id)
		q.mu.Unlock()
		return fmt.Errorf("QMP command %s: %w", command, ctx.Err())
	}
}

// watch must be called before the command whose event is waited for.
func (q *qmp) watch(wants func(event string, data json.RawMessage) bool) *qmpWatch {
	w := &qmpWatch{wants: wants, c: make(chan struct{})}
	q.mu.Lock()
	q.events[w] = struct{}{}
	q.mu.Unlock()
	return w
}

func (q *qmp) unwatch(w *qmpWatch) {
	q.mu.Lock()
	delete(q.events, w)
	q.mu.Unlock()
}

func (q *qmp) wait(ctx context.Context, w *qmpWatch) error {
	select {
	case <-w.c:
		return nil
	case <-q.gone:
		return errors.Join(errors.New("QEMU ended"), q.readErr)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// deviceDeleted matches the event that QEMU sends when the guest has let go of a device.
func deviceDeleted(id string) func(string, json.RawMessage) bool {
	return func(event string, data json.RawMessage) bool {
		var d struct {
			Device string `json:"device"`
		}
		return event == "DEVICE_DELETED" && json.Unmarshal(data, &d) == nil && d.Device == id
	}
}
