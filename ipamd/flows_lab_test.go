//go:build lab

package ipamd_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// outside is beyond the VPC. What comes from another address than one of the ENI's that it left by does not get there.
var outside = netip.MustParseAddrPort("203.0.113.80:7")

// podPort is what pods of serve listen on.
const podPort = 7

// tell has who connects told as whom it is seen, and then what it says itself.
func tell(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			if _, err := fmt.Fprintln(c, host); err == nil {
				io.Copy(c, c)
			}
		}()
	}
}

// serve has a pod's address answer.
func (s *sandbox) serve(t *testing.T) {
	t.Helper()
	var l net.Listener
	s.netns.Do(t, func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf(":%d", podPort))
		return err
	})
	t.Cleanup(func() { l.Close() })
	go tell(l)
}

// flow is who connects to whom.
type flow struct {
	what string
	from *nstest.NS
	to   netip.AddrPort
	seen string // as whom; empty: any
}

// patience is how long a connection may take. A packet that is lost is sent again after one second, and after two more.
const patience = 5 * time.Second

// open connects and has the other side tell as whom it is seen.
func (f flow) open() (net.Conn, error) {
	var c net.Conn
	err := f.from.Try(func() (err error) {
		c, err = net.DialTimeout("tcp4", f.to.String(), patience)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.what, err)
	}
	told, err := line(c)
	if err == nil && f.seen != "" && told != f.seen {
		err = fmt.Errorf("seen as %q, want %q", told, f.seen)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("%s: %w", f.what, err)
	}
	return c, nil
}

// line reads one, a byte at a time: what follows is for the next.
func line(c net.Conn) (string, error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	text, err := bufio.NewReaderSize(c, 16).ReadString('\n')
	return strings.TrimSpace(text), err
}

func (f flow) once() error {
	c, err := f.open()
	if err != nil {
		return err
	}
	return c.Close()
}

// watch looks at the flow until stop: at one connection that lives as long, and at new ones.
func (f flow) watch(stop <-chan struct{}, looked func(took time.Duration)) error {
	old, err := f.open()
	if err != nil {
		return err
	}
	defer old.Close()
	tick := time.NewTicker(150 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		began, said := time.Now(), fmt.Sprint("look ", n)
		if _, err := fmt.Fprintln(old, said); err != nil {
			return fmt.Errorf("%s, on the connection of the beginning, at look %d: %w", f.what, n, err)
		}
		if told, err := line(old); err != nil || told != said {
			return fmt.Errorf("%s, on the connection of the beginning, at look %d: %q, %w", f.what, n, told, err)
		}
		if err := f.once(); err != nil {
			return fmt.Errorf("at look %d: %w", n, err)
		}
		looked(time.Since(began))
		select {
		case <-stop:
			return nil
		case <-tick.C:
		}
	}
}

// watched are flows that somebody looks at.
type watched struct {
	t     *testing.T
	once  sync.Once
	stop  chan struct{}
	group sync.WaitGroup

	mu      sync.Mutex
	looks   int
	longest time.Duration
}

// watch begins to look, and returns once each flow was seen.
func watch(t *testing.T, flows []flow) *watched {
	t.Helper()
	for _, f := range flows {
		must(t, f.once())
	}
	o := &watched{t: t, stop: make(chan struct{})}
	for _, f := range flows {
		o.group.Go(func() {
			if err := f.watch(o.stop, o.looked); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(o.end)
	return o
}

func (o *watched) looked(took time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.looks, o.longest = o.looks+1, max(o.longest, took)
}

func (o *watched) end() {
	o.once.Do(func() {
		close(o.stop)
		o.group.Wait()
		o.t.Logf("looked %d times, the longest look took %v", o.looks, o.longest.Round(time.Millisecond))
	})
}
