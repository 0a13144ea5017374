package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Names that the supervisor and the agent of a VM agree on.
const (
	VMConfigFile   = "/config.json" // in the initramfs
	VMModulesDir   = "/m"           // in the initramfs
	VMPort         = "branchline.agent"
	VMRootTag      = "root"
	VMStateTag     = "state"
	vmPortDeadline = 20 * time.Second
)

// VMConfig is the content of VMConfigFile.
type VMConfig struct {
	Root
	// Early lists files in VMModulesDir in the order to load: what the root file system needs.
	Early []string `json:"early"`
	// ModulesDir is the path, on the machine, of the kernel's modules; it shows as /lib/modules/<release>.
	ModulesDir string `json:"modulesDir"`
	// Modules are loaded by name once the root file system stands.
	Modules []string `json:"modules"`
}

// BootVM makes an initramfs's PID 1 the agent of a VM. It doesn't return when all is well. An error goes to the console,
// where the supervisor finds it, and the VM off: if PID 1 ended instead, the kernel's panic would bury it.
func BootVM() error {
	err := bootVM()
	fmt.Fprintln(os.Stderr, "guest agent:", err)
	unix.IoctlSetInt(int(os.Stderr.Fd()), unix.TCSBRK, 1) // wait until the console has it (tcdrain)
	return errors.Join(err, powerOff())
}

func bootVM() error {
	port, cfg, err := prepareVM()
	if err != nil {
		return err
	}
	if err := coarseSleep(timerSlack); err != nil {
		return err
	}
	s := NewServer(port, powerOff)
	if err := s.modprobe(cfg.Modules); err != nil {
		return err
	}
	if err := s.Serve(); err != nil {
		return err
	}
	return powerOff() // the supervisor is gone
}

// timerSlack is how much later than asked for whoever sleeps in a VM may wake. Each Go program has a thread that sleeps for 20
// microseconds at a time, at first, whenever another of its threads has something to do, and with the kernel's slack, of 50, wakes
// an emulated CPU as often: a process that starts costs more by that than by what it does. With this slack a node takes half
// the CPU time and two thirds of the time to start pods.
const timerSlack = 10 * time.Millisecond

// coarseSleep sets the slack of all threads of this process, from which those that it starts have theirs.
func coarseSleep(slack time.Duration) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("list this process's threads: %w", err)
	}
	for _, t := range threads {
		if err := os.WriteFile(filepath.Join("/proc", t.Name(), "timerslack_ns"), strconv.AppendInt(nil, slack.Nanoseconds(), 10), 0); err != nil {
			return fmt.Errorf("let threads sleep coarsely: %w", err)
		}
	}
	return nil
}

func powerOff() error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func prepareVM() (*os.File, VMConfig, error) {
	var cfg VMConfig
	b, err := os.ReadFile(VMConfigFile)
	if err != nil {
		return nil, cfg, err
	}
	if err := json.Unmarshal(b, &cfg); err != nil {
		return nil, cfg, fmt.Errorf("parse %s: %w", VMConfigFile, err)
	}
	for _, d := range []string{"/proc", "/sys", "/dev", "/lower", "/work"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, cfg, err
		}
	}
	if err := kernelMounts(""); err != nil {
		return nil, cfg, err
	}
	for _, m := range cfg.Early {
		if err := insmod(filepath.Join(VMModulesDir, m)); err != nil {
			return nil, cfg, err
		}
	}
	if err := mount(VMRootTag, "/lower", "virtiofs", unix.MS_RDONLY, ""); err != nil {
		return nil, cfg, err
	}
	root, err := overlayRoot("/work", "/lower", "80%")
	if err != nil {
		return nil, cfg, err
	}
	if err := cfg.hide(root, "/work/keep"); err != nil {
		return nil, cfg, err
	}
	state := clean(root, cfg.StateDir)
	if err := os.MkdirAll(state, 0o755); err != nil {
		return nil, cfg, err
	}
	if err := mount(VMStateTag, state, "virtiofs", 0, ""); err != nil {
		return nil, cfg, err
	}
	if err := linkModules(root, cfg.ModulesDir); err != nil {
		return nil, cfg, err
	}
	if err := vmMounts(root); err != nil {
		return nil, cfg, err
	}
	if err := switchRoot(root); err != nil {
		return nil, cfg, err
	}
	if err := loopbackUp(); err != nil {
		return nil, cfg, err
	}
	port, err := openPort(VMPort)
	return port, cfg, err
}

func insmod(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return fmt.Errorf("load kernel module %s: %w", file, err)
	}
	return nil
}

func kernelMounts(root string) error {
	for _, m := range []struct{ source, target, fstype string }{
		{"proc", "/proc", "proc"}, {"sys", "/sys", "sysfs"}, {"dev", "/dev", "devtmpfs"},
	} {
		if err := mount(m.source, root+m.target, m.fstype, 0, ""); err != nil {
			return err
		}
	}
	return nil
}

func vmMounts(root string) error {
	if err := kernelMounts(root); err != nil {
		return err
	}
	for _, m := range []struct{ target, fstype, data string }{
		{"/dev/pts", "devpts", "mode=0620,ptmxmode=0666"}, {"/dev/shm", "tmpfs", "mode=1777"}, {"/dev/mqueue", "mqueue", ""},
		{"/sys/fs/cgroup", "cgroup2", ""}, {"/sys/fs/bpf", "bpf", ""},
	} {
		target := root + m.target
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := mount(m.fstype, target, m.fstype, 0, m.data); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, root+link); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return delegateControllers(root + "/sys/fs/cgroup")
}

// delegateControllers lets the cgroups below dir (version 2) use every controller that dir has.
func delegateControllers(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("list cgroup controllers: %w", err)
	}
	for _, c := range strings.Fields(string(b)) {
		// One by one: a controller that refuses (cpu, while a real-time task runs) must not take the others with it.
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644); err != nil && (c == "memory" || c == "pids") {
			return fmt.Errorf("delegate cgroup controller %s: %w", c, err)
		}
	}
	return nil
}

func linkModules(root, modulesDir string) error {
	if modulesDir == "" {
		return nil
	}
	dir := clean(root, "/lib/modules")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	link := filepath.Join(dir, filepath.Base(modulesDir))
	if _, err := os.Lstat(link); err == nil {
		return nil // the machine runs the same kernel
	}
	return os.Symlink(modulesDir, link)
}

// switchRoot makes root the root of the whole process. The initramfs stays beneath it, unreachable.
func switchRoot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot into the new root file system: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// As on a machine that systemd booted; the kubelet's mount propagation needs it.
	return mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
}

// openPort finds the virtio-serial port by the name that the supervisor gave it.
func openPort(name string) (*os.File, error) {
	const class = "/sys/class/virtio-ports"
	// The driver announces its ports shortly after it was loaded; there is nothing to wait on this early but time.
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(vmPortDeadline); time.Now().Before(end); <-tick.C {
		ports, err := os.ReadDir(class)
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		for _, p := range ports {
			b, err := os.ReadFile(filepath.Join(class, p.Name(), "name"))
			if err != nil || strings.TrimSpace(string(b)) != name {
				continue
			}
			f, err := os.OpenFile(filepath.Join("/dev", p.Name()), os.O_RDWR, 0)
			if err != nil {
				return nil, fmt.Errorf("open the supervisor's port: %w", err)
			}
			return f, nil
		}
	}
	return nil, fmt.Errorf("virtio-serial port %q did not appear within %v", name, vmPortDeadline)
}
