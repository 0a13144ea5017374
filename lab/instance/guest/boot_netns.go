package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// NetnsConfig tells the agent of a namespace instance what to make of its fresh namespaces.
type NetnsConfig struct {
	Root
	// Work is an empty folder of the machine on which the instance's root file system is put together.
	Work     string `json:"work"`
	Hostname string `json:"hostname"`
}

// The first arguments of the agent's executable for the two stages of a namespace instance.
const (
	StageEnter = "enter"
	StageInit  = "init"
)

// supervisorFD is where the supervisor's socket is inherited.
const supervisorFD = 3

// EnterNetns is the first stage: it waits until the supervisor has put this process into its cgroups, then makes these the
// roots of a cgroup namespace and runs the second stage in it. (That namespace is the calling thread's only; exec makes
// it the process's.)
func EnterNetns(self, config string) error {
	var start [1]byte
	f := os.NewFile(supervisorFD, "supervisor")
	if _, err := io.ReadFull(f, start[:]); err != nil {
		return fmt.Errorf("wait for the supervisor: %w", err)
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make cgroup namespace: %w", err)
	}
	err := unix.Exec(self, []string{self, StageInit, config}, environment(nil))
	return fmt.Errorf("run %s: %w", self, err)
}

// BootNetns is the second stage: it makes PID 1 of new namespaces the agent of an instance.
func BootNetns(config string) error {
	unix.CloseOnExec(supervisorFD)
	sock := os.NewFile(supervisorFD, "supervisor")
	var cfg NetnsConfig
	err := json.Unmarshal([]byte(config), &cfg)
	if err == nil {
		err = prepareNetns(cfg)
	}
	if err != nil {
		err = fmt.Errorf("prepare namespace instance: %w", err)
		NewConn[Request, Reply](sock).Send(Reply{Kind: KindError, Code: codeOf(err), Error: err.Error()})
		return err
	}
	// With PID 1 the kernel ends every process of the instance.
	return NewServer(sock, func() error { os.Exit(0); return nil }).Serve()
}

// pseudo lists the folders whose mounts an instance gets of its own.
var pseudo = []string{"/proc", "/sys", "/dev", "/run", "/tmp", "/var/run"}

// carried returns the mounts of the machine that an instance's root file system must show besides "/" itself: real file
// systems outside the pseudo ones, outermost first.
func carried(mounts []mountInfo) []string {
	var out []string
	for _, m := range mounts {
		if m.Path == "/" || m.FSType == "tmpfs" || m.FSType == "autofs" || slices.ContainsFunc(pseudo, func(p string) bool { return under(m.Path, p) }) {
			continue
		}
		out = append(out, m.Path)
	}
	return outermost(out)
}

func prepareNetns(cfg NetnsConfig) error {
	// Nothing that is mounted from here on may reach the machine.
	if err := mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	mounts, err := ownMounts()
	if err != nil {
		return err
	}
	root, err := overlayRoot(cfg.Work, "/", "2g")
	if err != nil {
		return err
	}
	for _, m := range carried(mounts) {
		if err := bindReadOnly(m, clean(root, m)); err != nil {
			return err
		}
	}
	kept := filepath.Join(cfg.Work, "keep")
	if err := keepSource(cfg, root); err != nil {
		return err
	}
	if err := cfg.hide(root, kept); err != nil {
		return err
	}
	state := clean(root, cfg.StateDir)
	if err := os.MkdirAll(state, 0o755); err != nil {
		return err
	}
	if err := mount(cfg.StateDir, state, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := netnsMounts(root, mounts); err != nil {
		return err
	}
	if err := pivot(root); err != nil {
		return err
	}
	if err := shadowSysctls(); err != nil {
		return err
	}
	if cfg.Hostname != "" {
		if err := unix.Sethostname([]byte(cfg.Hostname)); err != nil {
			return fmt.Errorf("set host name: %w", err)
		}
	}
	return loopbackUp()
}

// keepSource brings paths to keep that lie on a file system which isn't carried (a tmpfs, such as /tmp may be) into root.
func keepSource(cfg NetnsConfig, root string) error {
	for _, k := range outermost(cfg.Keep) {
		if _, err := os.Stat(clean(root, k)); err == nil {
			continue
		}
		st, err := os.Stat(k)
		if err != nil {
			return fmt.Errorf("keep %s visible in the instance: %w", k, err)
		}
		if err := mountPoint(clean(root, k), st.IsDir()); err != nil {
			return err
		}
		if err := bindReadOnly(k, clean(root, k)); err != nil {
			return err
		}
	}
	return nil
}

func bindReadOnly(source, target string) error {
	st, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("show %s in the instance: %w", source, err)
	}
	if err := mountPoint(target, st.IsDir()); err != nil {
		return err
	}
	if err := mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, attr); err != nil {
		return fmt.Errorf("make %s read-only: %w", target, err)
	}
	return nil
}

func netnsMounts(root string, mounts []mountInfo) error {
	if err := mount("proc", root+"/proc", "proc", 0, ""); err != nil {
		return err
	}
	// A fresh sysfs shows the links of this network namespace.
	if err := mount("sys", root+"/sys", "sysfs", 0, ""); err != nil {
		return err
	}
	if err := mount("/dev", root+"/dev", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := mount("shm", root+"/dev/shm", "tmpfs", 0, "mode=1777"); err != nil {
		return err
	}
	if err := mount("bpf", root+"/sys/fs/bpf", "bpf", 0, ""); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return mountCgroups(root, mounts)
}

// mountCgroups mounts the hierarchies that the machine has mounted; the cgroup namespace shows of each the instance's own
// part only, as its root.
func mountCgroups(root string, mounts []mountInfo) error {
	const top = "/sys/fs/cgroup"
	for _, m := range mounts {
		target := root + m.Path
		switch {
		case m.Path == top && m.FSType == "tmpfs":
			if err := mount("cgroup", target, "tmpfs", 0, "mode=0755"); err != nil {
				return err
			}
			if err := copyLinks(top, target); err != nil {
				return err
			}
		case m.FSType == "cgroup2" && under(m.Path, top):
			if err := os.MkdirAll(target, 0o755); err != nil {
				return err
			}
			if err := mount("cgroup2", target, "cgroup2", 0, ""); err != nil {
				return err
			}
			if err := leaf(target); err != nil {
				return err
			}
		case m.FSType == "cgroup" && under(m.Path, top):
			if err := os.MkdirAll(target, 0o755); err != nil {
				return err
			}
			if err := mount("cgroup", target, "cgroup", 0, cgroupOptions(m.Options)); err != nil {
				return err
			}
		}
	}
	return nil
}

// cgroupOptions drops from the options of a mounted hierarchy what is no option for mounting it again.
func cgroupOptions(options string) string {
	var out []string
	for o := range strings.SplitSeq(options, ",") {
		if o != "rw" && o != "ro" && o != "clone_children" && !strings.HasPrefix(o, "release_agent=") {
			out = append(out, o)
		}
	}
	return strings.Join(out, ",")
}

// copyLinks copies the links in folder from (cpu -> cpu,cpuacct) to folder to.
func copyLinks(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type()&os.ModeSymlink == 0 {
			continue
		}
		target, err := os.Readlink(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		if err := os.Symlink(target, filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// leaf moves this process out of the root of its cgroup namespace: version 2 gives controllers only to the children of a
// cgroup that holds no process itself.
func leaf(dir string) error {
	agent := filepath.Join(dir, "agent")
	if err := os.MkdirAll(agent, 0o755); err != nil {
		return fmt.Errorf("make the agent's cgroup: %w", err)
	}
	if err := os.WriteFile(filepath.Join(agent, "cgroup.procs"), []byte("0"), 0o644); err != nil {
		return fmt.Errorf("enter the agent's cgroup: %w", err)
	}
	return delegateControllers(dir)
}

// pivot makes root the only root of the mount namespace.
func pivot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	// With both arguments the same the old root ends up mounted on the new one (pivot_root(2)) and is taken off.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot to the new root file system: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the machine's root file system: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
}

// shadowed are the machine-wide kernel settings that a kubelet writes. In an instance that shares the machine's kernel
// they become plain files: the kubelet finds what it wrote, the machine keeps what it had.
var shadowed = []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"}

func shadowSysctls() error {
	const dir = "/run/sysctl"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range shadowed {
		real := "/proc/sys/" + name
		value, err := os.ReadFile(real)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(file, value, 0o644); err != nil {
			return err
		}
		if err := mount(file, real, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}
