//go:build kernel

package eni

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// harm is what happens to a system call in the place of it.
type harm struct {
	name  string
	errno unix.Errno // that it fails with; 0: the process is killed
}

var killed = harm{name: "a kill"}

func failing(errno unix.Errno) harm { return harm{"the failure " + unix.ErrnoName(errno), errno} }

// harmed is the CNI executable as it ships, under the command test/harm, which asks this test at each of its sends to netlink
// and when it ends.
type harmed struct {
	dir string // holds what the runtime's library runs in the executable's place
	harm
	at    int  // the send that is harmed, from 1; 0: none
	atEnd bool // the end is
	watch *net.UnixListener

	mu    sync.Mutex
	sends int // begun until it was harmed, the harmed one included
	was   bool
	err   error
}

// newHarmed has the executable harmed when it runs. Once is enough for one run.
func newHarmed(t *testing.T, h harm, at int, atEnd bool) *harmed {
	t.Helper()
	wrapper := os.Getenv("BRANCHLINE_HARM")
	if wrapper == "" {
		t.Fatal("BRANCHLINE_HARM is not set: run these tests by go run ./test/kernel ./plugins/...")
	}
	dir, err := os.MkdirTemp("", "harm-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	x := &harmed{dir: dir, harm: h, at: at, atEnd: atEnd}
	// By the name that the runtime looks for; a link keeps the folder in the path that the wrapper is run by.
	err = errors.Join(os.Symlink(wrapper, filepath.Join(dir, "aws-cni")), os.Symlink(executable(t), filepath.Join(dir, "harmed")))
	if err == nil {
		x.watch, err = net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "harm.sock"), Net: "unix"})
	}
	if err != nil {
		t.Fatal(errors.Join(err, os.RemoveAll(dir)))
	}
	return x
}

// run runs verbs of a node with this executable in the place of the plain one: one at a time, until the verb is over.
func (x *harmed) run(n *node, verb func() error) error {
	n.t.Helper()
	var runs sync.WaitGroup
	ended, began := make(chan struct{}), 0
	go func() {
		defer close(ended)
		for {
			c, err := x.watch.AcceptUnix()
			if err != nil {
				return // it is over
			}
			began++
			runs.Go(func() { x.note(x.attend(c)) })
		}
	}()
	plain := n.bin
	n.bin = x.dir
	err := verb()
	n.bin = plain
	x.watch.Close()
	<-ended
	runs.Wait()
	if rerr := os.RemoveAll(x.dir); rerr != nil {
		n.t.Fatal(rerr)
	}
	if began == 0 {
		n.t.Fatalf("the executable has not run; the verb: %v", err)
	}
	return err
}

func (x *harmed) note(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.err = errors.Join(x.err, err)
}

// met says how many sends the executable has begun until it was harmed, the harmed one included, and whether it was.
func (x *harmed) met(t testing.TB) (sends int, was bool) {
	t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err != nil {
		t.Fatal(x.err)
	}
	return x.sends, x.was
}

// notification and answer are struct seccomp_notif and seccomp_notif_resp: seccomp_unotify(2).
type notification struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type answer struct {
	id    uint64
	val   int64
	error int32
	flags uint32
}

// attend answers one process for as long as it lives.
func (x *harmed) attend(c *net.UnixConn) error {
	defer c.Close()
	pid, filter, err := accepted(c)
	if err != nil {
		return fmt.Errorf("take the filter of an executable: %w", err)
	}
	defer unix.Close(filter)
	for {
		fds := []unix.PollFd{{Fd: int32(filter), Events: unix.POLLIN}}
		switch _, err := unix.Poll(fds, -1); {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case fds[0].Revents&unix.POLLIN == 0:
			return nil // nobody is left to ask
		}
		var n notification
		if errno := ioctl(filter, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); errno == unix.ENOENT || errno == unix.EINTR {
			continue // it was killed meanwhile
		} else if errno != 0 {
			return fmt.Errorf("hear of a system call: %w", errno)
		}
		a := answer{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		hit, err := x.hits(pid, n)
		switch {
		case err != nil:
			return err
		case hit && x.errno == 0:
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				return err
			}
			continue
		case hit:
			a.flags, a.error = 0, -int32(x.errno)
		}
		if errno := ioctl(filter, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a)); errno != 0 && errno != unix.ENOENT {
			return fmt.Errorf("answer a system call: %w", errno)
		}
	}
}

// hits counts a call, and says whether it is the one that is harmed.
func (x *harmed) hits(pid int, n notification) (bool, error) {
	end := n.nr == unix.SYS_EXIT_GROUP
	if !end {
		netlink, err := isNetlink(pid, int(n.args[0]))
		if err != nil {
			return false, err
		}
		if !netlink {
			x.note(errors.New("the executable talks to something else than netlink by sendto"))
			return false, nil
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.was {
		return false, nil
	}
	if !end {
		x.sends++
	}
	x.was = end && x.atEnd || !end && x.sends == x.at
	return x.was, nil
}

// accepted returns the process that has called, and its filter.
func accepted(c *net.UnixConn) (pid, filter int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, -1, err
	}
	var peer *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, cerr); err != nil {
		return 0, -1, err
	}
	b, control := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.ReadMsgUnix(b, control)
	if err != nil {
		return 0, -1, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return 0, -1, fmt.Errorf("%d messages: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return 0, -1, fmt.Errorf("%d files: %w", len(fds), err)
	}
	return int(peer.Pid), fds[0], nil
}

// isNetlink says what a socket of another process is.
func isNetlink(pid, fd int) (bool, error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(process)
	own, err := unix.PidfdGetfd(process, fd, 0)
	if err != nil {
		return false, fmt.Errorf("take socket %d of process %d: %w", fd, pid, err)
	}
	defer unix.Close(own)
	domain, err := unix.GetsockoptInt(own, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return domain == unix.AF_NETLINK, err
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) syscall.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	return errno
}

// atEachSend has do run the executable with its n-th send to netlink harmed, from the first until it ends by itself, and,
// where harm is its death, with one that comes when nothing is left to do but to end. After each, mend is called, rounds
// times for each send, with numbers that follow each other, another first one for each send; it leaves nothing. So does
// tidy, which is called where nothing was harmed.
func atEachSend(t *testing.T, h harm, rounds int, do func(*harmed), mend func(i int, when string), tidy func(when string)) {
	t.Helper()
	const most = 100 // no verb makes as many
	for n := 1; n <= most; n++ {
		for i := range rounds {
			x := newHarmed(t, h, n, false)
			do(x)
			sends, was := x.met(t)
			if was {
				if sends != n {
					t.Fatalf("%s at send %d, not %d", h.name, sends, n)
				}
				mend(n+i, fmt.Sprintf("%s at send %d", h.name, n))
				continue
			}
			tidy("not harmed")
			// It may make fewer than before: it looks at an IPv6 address until the kernel has it ready.
			if n == 1 || sends >= n {
				t.Fatalf("not harmed at send %d, in round %d, and made %d sends", n, i+1, sends)
			}
			t.Logf("%s at each of %d sends, %d times each", h.name, n-1, rounds)
			atItsEnd(t, h, n, rounds, do, mend)
			return
		}
	}
	t.Fatalf("the executable has made %d sends and not ended", most)
}

// atItsEnd kills the executable when nothing is left to do but to end: its caller doesn't hear of what is done.
func atItsEnd(t *testing.T, h harm, first, rounds int, do func(*harmed), mend func(i int, when string)) {
	t.Helper()
	if h != killed {
		return
	}
	for i := range rounds {
		x := newHarmed(t, h, 0, true)
		do(x)
		if _, was := x.met(t); !was {
			t.Fatal("the executable was not harmed at its end")
		}
		mend(first+i, h.name+" at the end")
	}
}
