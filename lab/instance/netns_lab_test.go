//go:build lab

package instance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/lab/ec2"
)

func containsAll(s string, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(s, p) })
}

// world is what instances could leave behind on the machine.
type world struct {
	children, mounts, links, cgroups, temp []string
	fds                                    int
}

func observe(t *testing.T) world {
	t.Helper()
	var w world
	procs, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // ended meanwhile
		}
		if f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])); len(f) > 1 && f[1] == strconv.Itoa(os.Getpid()) {
			w.children = append(w.children, string(b[:bytes.LastIndexByte(b, ')')+1]))
		}
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		w.mounts = append(w.mounts, strings.Fields(line)[4])
	}
	ifs, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range ifs {
		w.links = append(w.links, i.Name)
	}
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), "branchline-i-") && strings.HasSuffix(d.Name(), "-"+strconv.Itoa(os.Getpid())) {
			w.cgroups = append(w.cgroups, path)
		}
		return nil
	})
	for _, pattern := range []string{"blvm-*"} {
		m, _ := filepath.Glob(filepath.Join(os.TempDir(), pattern))
		w.temp = append(w.temp, m...)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	w.fds = len(fds)
	return w
}

func (w world) requireSame(t *testing.T) {
	t.Helper()
	now := observe(t)
	for _, c := range []struct {
		what         string
		before, then []string
	}{
		{"child processes", w.children, now.children}, {"mounts", w.mounts, now.mounts}, {"links", w.links, now.links},
		{"cgroups", w.cgroups, now.cgroups}, {"temporary folders", w.temp, now.temp},
	} {
		for _, x := range c.then {
			if !slices.Contains(c.before, x) {
				t.Errorf("left behind: %s: %s", c.what, x)
			}
		}
	}
	// The runtime opens some of its own on first use (epoll, pidfd).
	if now.fds > w.fds+4 {
		t.Errorf("%d file descriptors, %d before", now.fds, w.fds)
	}
}

func TestNamespaceInstance(t *testing.T) {
	p := labParts(t, false)
	before := observe(t)
	f := newFabric(t)
	spec := p.spec(t, "i-db")
	i := startNetns(t, spec)
	plug(t, f, i, eniDB)
	pid := i.(*netns).init.cmd.Process.Pid

	t.Run("primary link is eth0 with address, route, name server and host name", func(t *testing.T) { checkPrimary(t, i, "ip-192-168-33-20", eniDB) })
	t.Run("an ENI more is the next link", func(t *testing.T) {
		plug(t, f, i, eniTrunk)
		if got := linkOf(t, i, eniTrunk.MAC); got != "eth1" {
			t.Errorf("link is %q, want eth1", got)
		}
		checkDetach(t, f, i, eniTrunk)
	})
	t.Run("commands", func(t *testing.T) { checkCommands(t, i) })
	t.Run("masks", func(t *testing.T) { checkMasks(t, i, p.busybox) })
	t.Run("it sees its own cgroups as roots and can make more", func(t *testing.T) {
		for line := range strings.Lines(mustSh(t, i, "cat /proc/self/cgroup")) {
			if path := strings.TrimSpace(line[strings.LastIndex(line, ":")+1:]); path != "/" && path != "/agent" {
				t.Errorf("cgroup path %s shows the machine's", path)
			}
		}
		mustSh(t, i, `d=$(ls -d /sys/fs/cgroup/memory /sys/fs/cgroup 2>/dev/null | head -1); mkdir $d/pods && mkdir $d/pods/one && sh -c "echo \$\$ > $d/pods/one/cgroup.procs"`)
	})
	t.Run("it sees its own links and processes only", func(t *testing.T) {
		if got := strings.Fields(mustSh(t, i, "ls /sys/class/net")); !slices.Equal(got, []string{"eth0", "lo"}) {
			t.Errorf("links: %v", got)
		}
		if got := mustSh(t, i, "cat /proc/1/comm"); got != "guest-agent" {
			t.Errorf("process 1 is %s", got)
		}
	})
	t.Run("kernel settings that a kubelet writes stay the machine's", func(t *testing.T) {
		host, err := os.ReadFile("/proc/sys/kernel/panic")
		if err != nil {
			t.Fatal(err)
		}
		if got := mustSh(t, i, "echo 4711 > /proc/sys/kernel/panic; cat /proc/sys/kernel/panic"); got != "4711" {
			t.Errorf("the instance reads back %s", got)
		}
		if now, _ := os.ReadFile("/proc/sys/kernel/panic"); !bytes.Equal(now, host) {
			t.Errorf("the machine's kernel.panic became %s", now)
		}
	})
	t.Run("close kills every process and leaves nothing", func(t *testing.T) {
		if _, err := i.Start(t.Context(), "stubborn", Command{Argv: []string{"sh", "-c", `trap "" TERM INT HUP; setsid sleep 1000 & while :; do sleep 1000; done`}}); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(i.Close(), f.Close()); err != nil {
			t.Fatal(err)
		}
		before.requireSame(t)
		if exists(fmt.Sprintf("/proc/%d", pid)) {
			t.Errorf("process 1 of the instance (%d) lives on", pid)
		}
		requireNobodyIn(t, spec.StateDir)
	})
}

// requireNobodyIn looks for processes that still write logs in an instance's state folder.
func requireNobodyIn(t *testing.T, stateDir string) {
	t.Helper()
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, stateDir+"/") {
			t.Errorf("%s is still open: %s", target, fd)
		}
	}
}

// Killed without a chance to clean up, the supervisor takes its instances with it. The test runs itself as supervisor.
func TestInstanceDiesWithItsSupervisor(t *testing.T) {
	const dirEnv = "BRANCHLINE_TEST_SUPERVISOR_DIR"
	if dir := os.Getenv(dirEnv); dir != "" {
		spec := labParts(t, false).spec(t, "i-orphan")
		spec.StateDir = dir
		i, err := StartNetns(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := i.Start(t.Context(), "sleeper", Command{Argv: []string{"sleep", "1000"}}); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "pid"), []byte(strconv.Itoa(i.(*netns).init.cmd.Process.Pid)), 0o644); err != nil {
			t.Fatal(err)
		}
		select {}
	}
	p := labParts(t, false)
	before := observe(t)
	dir := t.TempDir()
	self := exec.Command("/proc/self/exe", "-test.run=^TestInstanceDiesWithItsSupervisor$")
	self.Env = append(os.Environ(), dirEnv+"="+dir, runEnv+"="+strconv.Itoa(os.Getpid()))
	if err := self.Start(); err != nil {
		t.Fatal(err)
	}
	var pid string
	eventually(t, 30*time.Second, "instance of the other supervisor runs", func() bool {
		b, err := os.ReadFile(filepath.Join(dir, "pid"))
		pid = string(b)
		return err == nil && pid != ""
	})
	if err := self.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	self.Wait()
	eventually(t, 10*time.Second, "its process 1 is dead", func() bool { return !exists("/proc/" + pid) })
	requireNobodyIn(t, dir)
	// The cgroups have nobody left to remove them; the next instance of the name does.
	spec := p.spec(t, "i-orphan")
	if err := startNetns(t, spec).Close(); err != nil {
		t.Fatal(err)
	}
	before.requireSame(t)
}

func TestNamespaceInstanceThatCannotStartSaysWhy(t *testing.T) {
	p := labParts(t, false)
	before := observe(t)
	spec := p.spec(t, "i-broken")
	spec.Keep = []string{"/home/there/is/no/such/file"}
	_, err := StartNetns(within(t, 30*time.Second), spec)
	if err == nil || !containsAll(err.Error(), spec.Keep[0], "i-broken") {
		t.Errorf("error %v does not name what is missing", err)
	}
	before.requireSame(t)
}

func checkPrimary(t *testing.T, i Instance, hostname string, a ec2.AttachmentSpec) {
	if got := linkOf(t, i, a.MAC); got != "eth0" {
		t.Errorf("primary link is %q", got)
	}
	if got := mustSh(t, i, "hostname; cat /etc/hostname"); got != hostname+"\n"+hostname {
		t.Errorf("host name is %q", got)
	}
	if got := mustSh(t, i, "ip -o -4 addr show eth0"); !strings.Contains(got, a.Address.String()+"/19") {
		t.Errorf("address of eth0: %s", got)
	}
	if got := mustSh(t, i, "ip route show default"); !strings.Contains(got, "via "+a.SubnetCIDR.Addr().Next().String()+" dev eth0") {
		t.Errorf("default route: %s", got)
	}
	if got := mustSh(t, i, "cat /etc/resolv.conf"); !containsAll(got, "nameserver 192.168.0.2", "search us-west-2.compute.internal") {
		t.Errorf("resolv.conf: %s", got)
	}
}

func checkMasks(t *testing.T, i Instance, given string) {
	for _, dir := range []string{"/root", "/home", "/etc/cni", "/opt/cni", "/var/lib/kubelet", "/var/lib/containerd", "/tmp"} {
		// but for what the instance was given
		if got := mustSh(t, i, "find "+dir+" -mindepth 1 -type f | grep -v -e ^"+stateDirOf(i)+" -e ^"+given+" -e /lib/modules/ | head"); got != "" {
			t.Errorf("%s shows the machine's files: %s", dir, got)
		}
	}
	mustSh(t, i, "touch /etc/cni/x /opt/cni/x /var/lib/kubelet/x /usr/blx && [ ! -s /etc/shadow ]")
	for _, f := range []string{"/etc/cni/x", "/opt/cni/x", "/usr/blx"} {
		if exists(f) {
			t.Errorf("%s of the instance appeared on the machine", f)
		}
	}
	// What a container runtime needs for its images: an overlay within the instance.
	mustSh(t, i, "cd /var/lib/containerd && mkdir l u w m && mount -t overlay -o lowerdir=l,upperdir=u,workdir=w o m && umount m")
}

func checkCommands(t *testing.T, i Instance) {
	run := func(ctx context.Context, c Command) (Result, error) { return i.Exec(ctx, c) }
	t.Run("environment, folder, input, both outputs and exit code", func(t *testing.T) {
		r, err := run(within(t, 20*time.Second), Command{
			Argv: []string{"sh", "-c", `echo "$A $PWD $(cat)"; echo oops >&2; exit 3`}, Env: []string{"A=b"}, Dir: "/usr", Stdin: []byte("input"),
		})
		if err != nil || string(r.Stdout) != "b /usr input\n" || string(r.Stderr) != "oops\n" || r.ExitCode != 3 {
			t.Errorf("%+v, %v", r, err)
		}
	})
	t.Run("a signal shows as 128 + its number", func(t *testing.T) {
		if r, err := run(within(t, 20*time.Second), Command{Argv: []string{"sh", "-c", "kill -9 $$"}}); err != nil || r.ExitCode != 137 {
			t.Errorf("%+v, %v", r, err)
		}
	})
	t.Run("what isn't there is said", func(t *testing.T) {
		if _, err := run(t.Context(), Command{Argv: []string{"no-such-program"}}); !errors.Is(err, ErrNotFound) {
			t.Errorf("error %v, want ErrNotFound", err)
		}
	})
	t.Run("several at once", func(t *testing.T) {
		// Each waits for the other: they end only if they run at the same time.
		mustSh(t, i, "rm -f /run/one /run/two; mkfifo /run/one /run/two")
		var wg sync.WaitGroup
		for _, s := range []string{"echo a > /run/one; read x < /run/two; echo $x", "read x < /run/one; echo b > /run/two; echo $x"} {
			wg.Go(func() {
				if r, err := run(within(t, 20*time.Second), Command{Argv: []string{"sh", "-c", s}}); err != nil || len(r.Stdout) != 2 {
					t.Errorf("%s: %+v, %v", s, r, err)
				}
			})
		}
		wg.Wait()
	})
	t.Run("the end of the context kills the whole group", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := run(ctx, Command{Argv: []string{"sh", "-c", "sleep 4242 & sleep 4242; true"}}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want DeadlineExceeded", err)
		}
		eventually(t, 10*time.Second, "its processes are gone", func() bool {
			_, code := sh(t, i, "grep -l 4242 /proc/[0-9]*/cmdline 2>/dev/null | grep -v /$$/ | while read f; do tr '\\0' ' ' < $f; done | grep -q '^sleep 4242'")
			return code != 0
		})
	})
	t.Run("output has a limit", func(t *testing.T) {
		r, err := run(within(t, 20*time.Second), Command{Argv: []string{"sh", "-c", "head -c 100000 /dev/zero"}, MaxOutput: 1000})
		if !errors.Is(err, ErrOutputTruncated) || len(r.Stdout) != 1000 {
			t.Errorf("%d bytes, %v", len(r.Stdout), err)
		}
	})
	t.Run("much output arrives whole", func(t *testing.T) {
		r, err := run(within(t, 60*time.Second), Command{Argv: []string{"sh", "-c", "head -c 2000000 /dev/zero"}})
		if err != nil || len(r.Stdout) != 2000000 {
			t.Errorf("%d bytes, %v", len(r.Stdout), err)
		}
	})
	t.Run("a process's log is readable outside, signals reach it, its end is seen", func(t *testing.T) {
		p, err := i.Start(t.Context(), "worker", Command{Argv: []string{"sh", "-c", `trap 'echo bye; exit 5' USR1; echo pid $$; while :; do sleep 0.05; done`}})
		if err != nil {
			t.Fatal(err)
		}
		log := filepath.Join(stateDirOf(i), "logs", "worker.log")
		eventually(t, 10*time.Second, "the log shows the process's id", func() bool {
			b, _ := os.ReadFile(log)
			return string(b) == fmt.Sprintf("pid %d\n", p.PID())
		})
		if err := p.Signal(t.Context(), syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		if code, err := p.Wait(within(t, 10*time.Second)); err != nil || code != 5 {
			t.Errorf("exit code %d, %v", code, err)
		}
		if b, _ := os.ReadFile(log); !strings.HasSuffix(string(b), "bye\n") {
			t.Errorf("log: %s", b)
		}
		if err := p.Signal(t.Context(), syscall.SIGUSR1); !errors.Is(err, ErrNotFound) {
			t.Errorf("signal to an ended process: %v, want ErrNotFound", err)
		}
	})
	t.Run("the state folder is shared both ways", func(t *testing.T) {
		dir := stateDirOf(i)
		mustSh(t, i, "echo inside > "+dir+"/from-inside")
		if b, err := os.ReadFile(filepath.Join(dir, "from-inside")); string(b) != "inside\n" {
			t.Errorf("%q, %v", b, err)
		}
		if err := os.WriteFile(filepath.Join(dir, "from-outside"), []byte("outside"), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := mustSh(t, i, "cat "+dir+"/from-outside"); got != "outside" {
			t.Errorf("%q", got)
		}
	})
	t.Run("orphans are reaped", func(t *testing.T) {
		mustSh(t, i, "(setsid sh -c 'sleep 0.1' >/dev/null 2>&1 &)")
		eventually(t, 10*time.Second, "no zombie is left", func() bool {
			_, code := sh(t, i, "grep -q '^State:.*Z' /proc/[0-9]*/status 2>/dev/null")
			return code != 0
		})
	})
}

func stateDirOf(i Instance) string {
	if v, ok := i.(*vm); ok {
		return v.spec.StateDir
	}
	return i.(*netns).spec.StateDir
}
