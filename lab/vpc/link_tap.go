package vpc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TAPLink makes a TAP device called name, with this MAC and MTU, in the network namespace at netnsPath (such as
// /proc/<pid>/ns/net) and returns its other end. The device is left down and without an address: configuring it is the
// instance's matter. Closing the link removes the device. Needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
func TAPLink(netnsPath, name string, mac net.HardwareAddr, mtu int) (Link, error) {
	if name == "" || len(name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("TAP device name %q: 1 to %d bytes are accepted", name, unix.IFNAMSIZ-1)
	}
	if len(mac) != 6 {
		return nil, fmt.Errorf("TAP device %s: MAC %q does not have 6 bytes", name, mac)
	}
	fd := -1
	err := inNetns(netnsPath, func() error {
		var err error
		fd, err = openTAP(name, mac, mtu)
		return err
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("make TAP device %s in network namespace %s: %w", name, netnsPath, err)
	}
	// Non-blocking, so that os.File puts it into the poller: Close then ends a waiting ReadFrame.
	return &tapLink{f: os.NewFile(uintptr(fd), "tap:"+name)}, nil
}

// inNetns runs f with this thread in another network namespace.
func inNetns(path string, f func() error) error {
	target, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(target)
	errc := make(chan error, 1)
	// A goroutine of its own: when the thread can't be brought back, it stays locked and dies with the goroutine.
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			errc <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		defer unix.Close(home)
		if err := unix.Setns(target, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			errc <- fmt.Errorf("enter: %w", err)
			return
		}
		err = f()
		if back := unix.Setns(home, unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		errc <- err
	}()
	return <-errc
}

// openTAP makes the device in the calling thread's namespace. The returned descriptor is valid also with an error, when not -1.
func openTAP(name string, mac net.HardwareAddr, mtu int) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fd, err
	}
	// IFF_TUN_EXCL: a device of that name that already exists belongs to someone else.
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fd, fmt.Errorf("TUNSETIFF: %w", err)
	}
	h, err := netlink.NewHandle()
	if err != nil {
		return fd, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return fd, fmt.Errorf("look up the new device: %w", err)
	}
	if err := h.LinkSetHardwareAddr(link, mac); err != nil {
		return fd, fmt.Errorf("set MAC %s: %w", mac, err)
	}
	if err := h.LinkSetMTU(link, mtu); err != nil {
		return fd, fmt.Errorf("set MTU %d: %w", mtu, err)
	}
	return fd, nil
}

type tapLink struct {
	f         *os.File
	closeOnce sync.Once
	closeErr  error
}

func (l *tapLink) ReadFrame(buf []byte) (int, error) { return l.f.Read(buf) }

func (l *tapLink) WriteFrame(frame []byte) error {
	_, err := l.f.Write(frame)
	if errors.Is(err, unix.EIO) {
		return errLinkDown
	}
	return err
}

func (l *tapLink) Close() error {
	l.closeOnce.Do(func() { l.closeErr = l.f.Close() })
	return l.closeErr
}

// errLinkDown says that the instance has not set its interface up (yet).
var errLinkDown = errors.New("the network interface is down")
