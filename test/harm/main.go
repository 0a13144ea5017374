// Command harm runs another program in its own place, under a seccomp filter that asks a test at each of two kinds of system
// calls: sendto, by which a program talks to netlink, and exit_group, its end. The test lets them happen, has them fail, or
// kills the program there (plugins/eni has the test's side, in harm_kernel_test.go). A tracer's stops at all calls of all
// threads would take seconds on an emulated CPU.
//
// In the folder of the path that it is run by are the socket on which the test waits for the filter and a link to the
// program: whoever runs an executable of a name, as a runtime runs plugins, needs to know nothing of it.
package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Names in that folder.
const (
	socketName  = "harm.sock"
	programName = "harmed"
)

func main() {
	fmt.Fprintln(os.Stderr, "harm:", run(filepath.Dir(os.Args[0])))
	os.Exit(1)
}

// run returns only where it fails.
func run(dir string) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(dir, socketName), Net: "unix"})
	if err != nil {
		return fmt.Errorf("tell the test: %w", err)
	}
	program, err := os.Readlink(filepath.Join(dir, programName))
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the filter is this thread's, and that of the program that takes its place
	listener, err := filter(unix.SYS_SENDTO, unix.SYS_EXIT_GROUP)
	if err != nil {
		return err
	}
	if _, _, err := c.WriteMsgUnix([]byte{0}, unix.UnixRights(listener), nil); err != nil { // sendmsg, which the filter lets pass
		return fmt.Errorf("give the test the filter: %w", err)
	}
	return fmt.Errorf("run %s: %w", program, unix.Exec(program, append([]string{program}, os.Args[1:]...), os.Environ()))
}

// filter has this thread ask before each of two system calls, and returns where it asks: seccomp_unotify(2).
func filter(one, other uint32) (fd int, err error) {
	const number = 0 // of the call, in struct seccomp_data
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: one, Jt: 1},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: other, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(code)
	if errno != 0 {
		return -1, fmt.Errorf("install a seccomp filter: %w", errno)
	}
	return int(r), nil
}
