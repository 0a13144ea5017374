// Package host looks at the machine that the lab is to run on, and installs the
// few Debian packages that must be installed, because a program of the machine
// (QEMU) or a compiler is needed and not files in a cache.
//
// Looking changes nothing. Installing says what it does first, starts no service
// and leaves nothing running.
package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// Needs is what the machine must have.
type Needs struct {
	FreeBytes   int64    // on the file system of the cache and of the temporary folder
	MemoryBytes int64    // in all
	Go          string   // at least this version: "1.26"
	Root        bool     // run as root
	Devices     []string // files that must exist: /dev/net/tun
	Programs    []string // that no package of Packages brings
	Packages    []string // Debian packages that must be installed
	Dirs        []string // folders that FreeBytes is about
}

// Problem is one thing that is missing, and what to do about it.
type Problem struct {
	Missing string
	Remedy  string
}

func (p Problem) String() string { return p.Missing + ": " + p.Remedy }

// Look names everything that is missing and cannot be installed by Install. It
// changes nothing.
func (n Needs) Look() []Problem {
	var ps []Problem
	add := func(missing, remedy string, args ...any) {
		ps = append(ps, Problem{missing, fmt.Sprintf(remedy, args...)})
	}

	id, version := osRelease("/etc/os-release")
	if id != "debian" || version != "12" || runtime.GOARCH != "amd64" {
		add("Debian 12 on amd64", "this is %s %s on %s; use a machine or a virtual machine with Debian 12", id, version, runtime.GOARCH)
	}
	if n.Root && os.Geteuid() != 0 {
		name := strconv.Itoa(os.Geteuid())
		if u, err := user.Current(); err == nil {
			name = u.Username
		}
		add("root", "network namespaces and TAP devices need it; you are %s, run it with sudo -E", name)
	}
	if have := strings.TrimPrefix(runtime.Version(), "go"); n.Go != "" && !atLeast(have, n.Go) {
		add("Go "+n.Go, "this is Go %s; install a newer one", have)
	}
	for _, d := range n.Devices {
		if _, err := os.Stat(d); err != nil {
			add(d, "the kernel does not offer it (%v); in a container, pass the device in", err)
		}
	}
	for _, p := range n.Programs {
		if !hasProgram(p) {
			add("program "+p, "it is part of every Debian 12; install the package that brings it")
		}
	}
	for _, d := range n.Dirs {
		if free, err := freeBytes(d); err == nil && free < n.FreeBytes {
			add(fmt.Sprintf("%d GB of free disk space in %s", n.FreeBytes/1e9, d), "there are %.1f; make room, or set BRANCHLINE_CACHE, GOCACHE or TMPDIR to another disk", float64(free)/1e9)
		}
	}
	if have, err := TotalMemory(); err == nil && have < n.MemoryBytes {
		add(fmt.Sprintf("%.1f GiB of memory", float64(n.MemoryBytes)/(1<<30)), "there are %.1f", float64(have)/(1<<30))
	}
	return ps
}

// Uninstalled are those of Packages that are not installed.
func (n Needs) Uninstalled(ctx context.Context) ([]string, error) {
	var missing []string
	for _, p := range n.Packages {
		out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${db:Status-Status}", p).Output()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) { // an unknown package is exit code 1
			return nil, fmt.Errorf("ask dpkg whether %s is installed: %w", p, err)
		}
		if string(out) != "installed" {
			missing = append(missing, p)
		}
	}
	return missing, nil
}

// Install installs Debian packages without their recommendations and without
// starting any service. It says so on w before it starts.
func Install(ctx context.Context, w io.Writer, packages []string) error {
	if len(packages) == 0 {
		return nil
	}
	fmt.Fprintf(w, "installing Debian packages (no service is started): %s\n", strings.Join(packages, " "))
	restore, err := suppressServices("/usr/sbin/policy-rc.d")
	if err != nil {
		return fmt.Errorf("keep services from starting: %w", err)
	}
	defer restore()
	install := append([]string{"apt-get", "install", "-y", "-q", "--no-install-recommends", "--"}, packages...)
	if err := apt(ctx, install); err == nil {
		return nil
	}
	// The lists of packages are missing or old: a fresh machine.
	if err := apt(ctx, []string{"apt-get", "update", "-q"}); err != nil {
		return err
	}
	return apt(ctx, install)
}

func apt(ctx context.Context, argv []string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// dpkg must not be killed half-way: an interrupted apt-get stops after the step it is at.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	return nil
}

// Our policy file is known by this line, so that one that a killed run left is
// taken away by the next.
const policyMark = "# made by Branchline while it installs packages"

// suppressServices puts a policy in place that forbids package scripts to start
// services (invoke-rc.d asks it: exit code 101 means no), and returns what puts
// back what was there.
func suppressServices(path string) (restore func(), err error) {
	saved := path + ".branchline-saved"
	if b, err := os.ReadFile(path); err == nil && !strings.Contains(string(b), policyMark) {
		if err := os.Rename(path, saved); err != nil {
			return nil, err
		}
	}
	restore = func() {
		if _, err := os.Stat(saved); err == nil {
			_ = os.Rename(saved, path)
			return
		}
		_ = os.Remove(path)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+policyMark+"\nexit 101\n"), 0o755); err != nil {
		restore()
		return nil, err
	}
	return restore, nil
}

func osRelease(path string) (id, version string) {
	f, err := os.Open(path)
	if err != nil {
		return "an unknown system", ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		k, v, _ := strings.Cut(s.Text(), "=")
		switch v = strings.Trim(v, `"`); k {
		case "ID":
			id = v
		case "VERSION_ID":
			version = v
		}
	}
	return id, version
}

// atLeast compares versions of Go: "1.26.8" is at least "1.26".
func atLeast(have, want string) bool {
	h, w := numbers(have), numbers(want)
	for i, n := range w {
		if i >= len(h) || h[i] != n {
			return i < len(h) && h[i] > n
		}
	}
	return true
}

func numbers(version string) []int {
	var ns []int
	for part := range strings.SplitSeq(version, ".") {
		end := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' })
		if end >= 0 {
			part = part[:end]
		}
		n, err := strconv.Atoi(part)
		if err != nil {
			break
		}
		ns = append(ns, n)
	}
	return ns
}

// freeBytes is the space for ordinary files at path, or at the nearest folder
// above it that exists.
func freeBytes(path string) (int64, error) {
	for {
		var st syscall.Statfs_t
		err := syscall.Statfs(path, &st)
		if err == nil {
			return int64(st.Bavail) * st.Bsize, nil
		}
		if !errors.Is(err, syscall.ENOENT) || path == filepath.Dir(path) {
			return 0, err
		}
		path = filepath.Dir(path)
	}
}

// TotalMemory is how much this machine has, in bytes.
func TotalMemory() (int64, error) { return totalMemory("/proc/meminfo") }

func totalMemory(meminfo string) (int64, error) {
	f, err := os.Open(meminfo)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fs := strings.Fields(s.Text()); len(fs) >= 2 && fs[0] == "MemTotal:" {
			kib, err := strconv.ParseInt(fs[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no MemTotal", meminfo)
}

func hasProgram(name string) bool {
	if _, err := exec.LookPath(name); err == nil {
		return true
	}
	for _, d := range []string{"/usr/sbin", "/sbin"} {
		if info, err := os.Stat(filepath.Join(d, name)); err == nil && info.Mode()&0o111 != 0 {
			return true
		}
	}
	return false
}
