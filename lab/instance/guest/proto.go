package guest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
)

// MaxLine bounds one message. What may be longer (the output of a process) is sent in chunks.
const MaxLine = 4 << 20

// ErrLineTooLong tells that the other side sent more than MaxLine bytes without a line feed.
var ErrLineTooLong = errors.New("message is longer than the protocol allows")

// Op names what the supervisor asks for.
type Op string

// The requests of the supervisor.
const (
	OpExec      Op = "exec"      // run Process, stream its output, answer with KindExited
	OpStart     Op = "start"     // run Process with its output in a file: KindStarted, later KindExited
	OpSignal    Op = "signal"    // send Signal to the process of request Target
	OpCancel    Op = "cancel"    // kill the process group of request Target
	OpLinkUp    Op = "link-up"   // wait until a link with Link.MAC exists: KindLink
	OpLinkGone  Op = "link-gone" // wait until no link with Link.MAC exists: KindDone
	OpConfigure Op = "configure" // configure the primary link and the name of the instance: KindDone
	OpModules   Op = "modules"   // load kernel modules: KindDone
	OpPowerOff  Op = "power-off" // end the instance; no answer
)

// Request is one line from the supervisor to the agent.
type Request struct {
	ID      uint64     `json:"id"`
	Op      Op         `json:"op"`
	Process *Process   `json:"process,omitempty"`
	Target  uint64     `json:"target,omitempty"`
	Signal  int        `json:"signal,omitempty"`
	Link    *LinkQuery `json:"link,omitempty"`
	Primary *Primary   `json:"primary,omitempty"`
	Modules []string   `json:"modules,omitempty"`
}

// Process is a command to run.
type Process struct {
	Argv []string `json:"argv"`
	// Env is added to the agent's own small environment (PATH, HOME).
	Env   []string `json:"env,omitempty"`
	Dir   string   `json:"dir,omitempty"`
	Stdin []byte   `json:"stdin,omitempty"`
	// Log is the file that OpStart appends both outputs to.
	Log string `json:"log,omitempty"`
}

// LinkQuery finds a link by its MAC address.
type LinkQuery struct {
	MAC           string `json:"mac"`
	TimeoutMillis int    `json:"timeoutMillis"`
}

// Primary is the configuration of the instance's first link.
type Primary struct {
	MAC      string       `json:"mac"`
	Address  netip.Prefix `json:"address"`
	Gateway  netip.Addr   `json:"gateway"`
	DNS      netip.Addr   `json:"dns"`
	Search   string       `json:"search,omitempty"`
	Hostname string       `json:"hostname"`
	// IPv6 and its router are not valid where the subnet has no IPv6.
	IPv6        netip.Addr `json:"ipv6,omitzero"`
	GatewayIPv6 netip.Addr `json:"gatewayIPv6,omitzero"`
}

// Kind names what a Reply says.
type Kind string

// The replies of the agent.
const (
	KindReady   Kind = "ready"   // once, first: the instance has booted
	KindOutput  Kind = "output"  // a chunk of a process's output
	KindStarted Kind = "started" // OpStart: the process runs
	KindExited  Kind = "exited"  // the process has ended
	KindLink    Kind = "link"
	KindDone    Kind = "done"
	KindError   Kind = "error" // the request failed; last reply to it
)

// Code classifies a KindError.
type Code string

// The classes of errors that a caller branches on.
const (
	CodeNotFound Code = "not-found"
	CodeTimeout  Code = "timeout"
	CodeOther    Code = "other"
)

// Reply is one line from the agent to the supervisor. ID is that of the request that it answers.
type Reply struct {
	ID     uint64 `json:"id,omitempty"`
	Kind   Kind   `json:"kind"`
	Stream int    `json:"stream,omitempty"` // 1 or 2
	Data   []byte `json:"data,omitempty"`
	PID    int    `json:"pid,omitempty"`
	// ExitCode is the process's own, or 128 + Signal when a signal ended it.
	ExitCode int    `json:"exitCode,omitempty"`
	Signal   int    `json:"signal,omitempty"`
	Link     *Link  `json:"link,omitempty"`
	Code     Code   `json:"code,omitempty"`
	Error    string `json:"error,omitempty"`
}

// Link is a network link of the instance.
type Link struct {
	Name  string `json:"name"`
	Index int    `json:"index"`
	MTU   int    `json:"mtu"`
}

// Conn carries messages of type In one way and Out the other. Receive must be called by one goroutine only; Send by any.
type Conn[In, Out any] struct {
	r  *bufio.Reader
	mu sync.Mutex
	w  io.Writer
}

// NewConn speaks the protocol over rw.
func NewConn[In, Out any](rw io.ReadWriter) *Conn[In, Out] {
	return &Conn[In, Out]{r: bufio.NewReaderSize(rw, 64<<10), w: rw}
}

// Send writes one message.
func (c *Conn[In, Out]) Send(m Out) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(b) >= MaxLine {
		return fmt.Errorf("send message of %d bytes: %w", len(b), ErrLineTooLong)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// Receive reads the next message. It returns io.EOF when the other side has closed the stream between messages.
func (c *Conn[In, Out]) Receive() (In, error) {
	var m In
	var line []byte
	for {
		part, err := c.r.ReadSlice('\n')
		if len(line)+len(part) > MaxLine {
			return m, ErrLineTooLong
		}
		line = append(line, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			if errors.Is(err, io.EOF) && len(line) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return m, err
		}
		break
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("decode message of %d bytes: %w", len(line), err)
	}
	return m, nil
}
