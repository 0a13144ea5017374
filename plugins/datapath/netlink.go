package datapath

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// This file is the path of ADD and DEL to the kernel. It goes below the library because a whole sandbox fits into a few
// sends of several requests each, with no look-up between them. What may take its time (CHECK) uses the library.

// socket is a NETLINK_ROUTE socket in one network namespace.
type socket struct {
	fd  int
	seq uint32
	buf []byte
}

func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	s := &socket{fd: fd, buf: make([]byte, 16<<10)}
	// Without it an error is a number only; a kernel that doesn't know it is as good.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	return s, nil
}

// openSocketAt opens a socket in another namespace.
func openSocketAt(netns int) (s *socket, err error) {
	err = inNamespace(netns, func() (err error) {
		s, err = openSocket()
		return err
	})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) close() {
	if s != nil {
		unix.Close(s.fd)
	}
}

// timeout bounds each wait for an answer.
func (s *socket) timeout(d time.Duration) error {
	tv := unix.NsecToTimeval(d.Nanoseconds())
	return unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}

// exchange sends the requests at once and fills in what the kernel answers to each. The kernel works through all of
// them, whatever becomes of one. An error is the socket's; those of requests are in their err.
func (s *socket) exchange(requests ...*request) error {
	if len(requests) == 0 {
		return nil
	}
	first := s.seq + 1
	var out []byte
	for _, r := range requests {
		s.seq++
		binary.NativeEndian.PutUint32(r.b, uint32(len(r.b)))
		binary.NativeEndian.PutUint32(r.b[8:], s.seq)
		out = append(out, r.b...)
	}
	err := again(func() error { return unix.Sendto(s.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) })
	if err != nil {
		return fmt.Errorf("send to netlink: %w", err)
	}
	for left := len(requests); left > 0; {
		var n int
		var from unix.Sockaddr
		err := again(func() (err error) { n, from, err = unix.Recvfrom(s.fd, s.buf, 0); return err })
		if err == unix.EAGAIN {
			return fmt.Errorf("netlink has not answered: %w", context.DeadlineExceeded)
		}
		if err != nil {
			return fmt.Errorf("receive from netlink: %w", err)
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue // some process's, not the kernel's
		}
		for b := s.buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return errors.New("receive from netlink: a message is cut off")
			}
			if i := binary.NativeEndian.Uint32(b[8:]) - first; i < uint32(len(requests)) && requests[i].answer(b[:size]) {
				left--
			}
			b = b[min(align(size), len(b)):]
		}
	}
	return nil
}

// again repeats a call that a signal has interrupted; Go's own preemption sends some.
func again(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

func align(n int) int { return (n + 3) &^ 3 }

// request is one netlink request and, afterwards, its answer.
type request struct {
	b     []byte // the header and what follows, padded
	reply []byte // what follows the header of the answer, where it is an object
	err   error
}

// newRequest starts a request; all of them are acknowledged.
func newRequest(kind, flags uint16) *request {
	r := &request{b: make([]byte, unix.SizeofNlMsghdr, 256)}
	binary.NativeEndian.PutUint16(r.b[4:], kind)
	binary.NativeEndian.PutUint16(r.b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	return r
}

// answer takes one message of the kernel's and says whether it was the last one for this request.
func (r *request) answer(b []byte) bool {
	kind, flags, body := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), b[unix.SizeofNlMsghdr:]
	if kind != unix.NLMSG_ERROR {
		r.reply = append([]byte(nil), body...)
		return false // the acknowledgement is still to come
	}
	if len(body) < 4 {
		r.err = errors.New("netlink's answer is cut off")
		return true
	}
	if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
		r.err = unix.Errno(-code)
		if why := extendedAck(body[4:], flags); why != "" {
			r.err = fmt.Errorf("%w (%s)", r.err, why)
		}
	}
	return true
}

// extendedAck is the kernel's own word on an error, "" where it has none.
func extendedAck(b []byte, flags uint16) string {
	if flags&unix.NLM_F_ACK_TLVS == 0 || len(b) < unix.SizeofNlMsghdr {
		return ""
	}
	skip := unix.SizeofNlMsghdr
	if flags&unix.NLM_F_CAPPED == 0 {
		skip = align(int(binary.NativeEndian.Uint32(b)))
	}
	if skip > len(b) {
		return ""
	}
	why := ""
	attributes(b[skip:], func(kind uint16, value []byte) {
		if kind == unix.NLMSGERR_ATTR_MSG {
			why = zeroTerminated(value)
		}
	})
	return why
}

// nlaTypeMask takes the flags off an attribute's kind.
const nlaTypeMask = 0xffff &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)

// attributes calls f for each attribute; what can't be read ends it.
func attributes(b []byte, f func(kind uint16, value []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&nlaTypeMask, b[unix.SizeofRtAttr:size])
		b = b[min(align(size), len(b)):]
	}
}

func (r *request) bytes(b ...byte)     { r.b = append(r.b, b...) }
func (r *request) uint16(v uint16)     { r.b = binary.NativeEndian.AppendUint16(r.b, v) }
func (r *request) uint32(v uint32)     { r.b = binary.NativeEndian.AppendUint32(r.b, v) }
func (r *request) pad()                { r.b = append(r.b, make([]byte, align(len(r.b))-len(r.b))...) }
func (r *request) link(i int) *request { r.linkHeader(i, false); return r }

// linkHeader is a struct ifinfomsg.
func (r *request) linkHeader(index int, up bool) {
	var flags uint32
	if up {
		flags = unix.IFF_UP
	}
	r.uint32(unix.AF_UNSPEC)
	r.uint32(uint32(index))
	r.uint32(flags)
	r.uint32(flags) // of which change
}

func (r *request) attr(kind uint16, value []byte) {
	r.uint16(uint16(unix.SizeofRtAttr + len(value)))
	r.uint16(kind)
	r.bytes(value...)
	r.pad()
}

func (r *request) text(kind uint16, value string)    { r.attr(kind, append([]byte(value), 0)) }
func (r *request) number(kind uint16, value uint32)  { r.attr(kind, nl.Uint32Attr(value)) }
func (r *request) address(kind uint16, a netip.Addr) { r.attr(kind, a.AsSlice()) }

func (r *request) nest(kind uint16, fill func()) {
	start := len(r.b)
	r.uint16(0)
	r.uint16(kind | unix.NLA_F_NESTED)
	fill()
	binary.NativeEndian.PutUint16(r.b[start:], uint16(len(r.b)-start))
}

// subscribe opens a socket that hears of a group of events (RTNLGRP_*), in this process's namespace or, with netns >= 0, in that one.
func subscribe(netns int, group uint32) (s *socket, err error) {
	if netns >= 0 {
		s, err = openSocketAt(netns)
	} else {
		s, err = openSocket()
	}
	if err != nil {
		return nil, err
	}
	// Bound, it has an address of its own: events go to all but the address that they come from, and that is the
	// kernel's, which is also a new socket's.
	err = unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (group - 1)})
	if err != nil {
		s.close()
		return nil, os.NewSyscallError("bind", err)
	}
	return s, nil
}

// event waits for anything that the socket is subscribed to.
func (s *socket) event() error {
	err := again(func() error { _, _, err := unix.Recvfrom(s.fd, s.buf, 0); return err })
	if err == unix.EAGAIN {
		return context.DeadlineExceeded
	}
	return err
}

// zeroTerminated is the text before the first zero byte.
func zeroTerminated(b []byte) string {
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text)
}
