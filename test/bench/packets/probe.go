package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Measures.
const (
	roundTrip       = "round trip"         // µs
	toPod           = "to the pod"         // packets per CPU second
	fromPod         = "from the pod"       // packets per CPU second
	roundTripStrict = "round trip, strict" // µs
	replyTimeout    = 2 * time.Second
	batch           = 32
)

// probe asks an address by ICMP echo, which the kernel at the other end answers within the sender's own time slice: what
// is measured is the way of the packets, no scheduling of another process.
type probe struct {
	measure string
	fd      int
	request []byte
	reply   []byte
	flood   *flood // nil: round trips
}

// flood sends datagrams that nobody reads, and counts those that arrived.
type flood struct {
	at      *namespace // where they arrive
	receive int        // socket that takes them until its buffer is full
}

func (w *world) openProbes(pod netip.Addr) error {
	rt, err := echoProbe(w.client, roundTrip, pod)
	if err != nil {
		return err
	}
	w.probes = append(w.probes, rt)
	for _, f := range []struct {
		measure  string
		from, to *namespace
		addr     netip.Addr
	}{{toPod, w.client, w.pod, pod}, {fromPod, w.pod, w.client, clientAddr}} {
		p, err := floodProbe(f.from, f.to, f.measure, f.addr)
		if err != nil {
			return err
		}
		w.probes = append(w.probes, p)
	}
	if w.branch > 0 {
		p, err := echoProbe(w.client, roundTripStrict, strictAddr)
		if err != nil {
			return err
		}
		w.probes = append(w.probes, p)
	}
	for _, p := range w.probes { // it works at all
		if p.flood == nil {
			if err := p.exchange(); err != nil {
				return fmt.Errorf("%s: no answer: %w", p.measure, err)
			}
		}
	}
	return nil
}

func echoProbe(from *namespace, measure string, to netip.Addr) (p *probe, err error) {
	p = &probe{measure: measure, fd: -1, reply: make([]byte, 128), request: make([]byte, 64)}
	p.request[0] = 8 // echo request
	binary.BigEndian.PutUint16(p.request[2:], ^uint16(8<<8))
	err = from.do(func() error {
		if p.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP); err != nil {
			return err
		}
		timeout := unix.NsecToTimeval(int64(replyTimeout))
		return errors.Join(unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
			unix.Connect(p.fd, &unix.SockaddrInet4{Addr: to.As4()}))
	})
	return p, err
}

func (p *probe) exchange() error {
	if _, err := unix.Write(p.fd, p.request); err != nil {
		return err
	}
	for {
		n, err := unix.Read(p.fd, p.reply)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n > 20 && p.reply[20] == 0 { // echo reply
			return err
		}
	}
}

const floodPort = 9

func floodProbe(from, to *namespace, measure string, addr netip.Addr) (*probe, error) {
	p := &probe{measure: measure, fd: -1, flood: &flood{at: to, receive: -1}, request: make([]byte, 64)}
	err := to.do(func() (err error) {
		if p.flood.receive, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(unix.SetsockoptInt(p.flood.receive, unix.SOL_SOCKET, unix.SO_RCVBUF, 1),
			unix.Bind(p.flood.receive, &unix.SockaddrInet4{Port: floodPort, Addr: addr.As4()}))
	})
	if err == nil {
		err = from.do(func() (err error) {
			if p.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			return unix.Connect(p.fd, &unix.SockaddrInet4{Port: floodPort, Addr: addr.As4()})
		})
	}
	return p, err
}

// arrived counts the packets that the other end's links have taken in.
func (f *flood) arrived() (n uint64, err error) {
	links, err := f.at.h.LinkList()
	for _, l := range links {
		if s := l.Attrs().Statistics; s != nil && l.Attrs().Name != "lo" {
			n += s.RxPackets
		}
	}
	return n, err
}

func (p *probe) close() {
	_ = unix.Close(p.fd)
	if p.flood != nil {
		_ = unix.Close(p.flood.receive)
	}
}

// measure takes one sample of each measure.
func (w *world) measure(window time.Duration) error {
	runtime.LockOSThread() // CPU time is counted by thread
	defer runtime.UnlockOSThread()
	for _, p := range w.probes {
		take := p.roundTrips
		if p.flood != nil {
			take = p.floods
		}
		v, err := take(window)
		if err != nil {
			return fmt.Errorf("%s: %w", p.measure, err)
		}
		w.samples[p.measure] = append(w.samples[p.measure], v)
	}
	return nil
}

// roundTrips is the median of the window's exchanges: those that were disturbed don't count.
func (p *probe) roundTrips(window time.Duration) (float64, error) {
	var all []time.Duration
	for began := time.Now(); time.Since(began) < window || len(all) < batch; {
		at := time.Now()
		if err := p.exchange(); err != nil {
			return 0, err
		}
		all = append(all, time.Since(at))
	}
	slices.Sort(all)
	return float64(all[len(all)/2].Nanoseconds()) / 1000, nil
}

// floods is how many packets got through per second of this thread's CPU time, in which their whole way is done.
func (p *probe) floods(window time.Duration) (float64, error) {
	before, err := p.flood.arrived()
	if err != nil {
		return 0, err
	}
	used, err := cpuTime()
	if err != nil {
		return 0, err
	}
	for began := time.Now(); time.Since(began) < window; {
		for range batch {
			if _, err := unix.Write(p.fd, p.request); err != nil {
				return 0, err
			}
		}
	}
	after, err := cpuTime()
	if err != nil {
		return 0, err
	}
	got, err := p.flood.arrived()
	if err != nil || got == before {
		return 0, errors.Join(err, fmt.Errorf("%d packets arrived", got-before))
	}
	return float64(got-before) / (after - used).Seconds(), nil
}

func cpuTime() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0, fmt.Errorf("read the thread's CPU time: %w", err)
	}
	return time.Duration(t.Nano()), nil
}
