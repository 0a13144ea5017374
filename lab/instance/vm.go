package instance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/lab/instance/guest"
	"github.com/branchline-cni/branchline/lab/vpc"
)

const (
	plugDeadline = 30 * time.Second
	qemuProgram  = "qemu-system-x86_64"
	// Where Debian's qemu-system-common puts it: it is no program for users, so not in PATH.
	virtiofsdProgram = "/usr/lib/qemu/virtiofsd"
)

// vm is an instance that QEMU runs.
type vm struct {
	*agent
	spec    Spec
	plan    vmPlan
	spawner *spawner
	qemu    *child
	daemons []*child
	qmp     *qmp
	done    chan struct{}
	close   func() error

	mu   sync.Mutex
	enis map[string]*vmENI
}

type vmENI struct {
	eniPlan
	link vpc.Link
}

// boot starts the machine once. errNotBooted: its agent did not answer within the time.
func boot(ctx context.Context, spec Spec, within time.Duration) (_ *vm, err error) {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("%w within %v", errNotBooted, within))
	defer cancel()
	runDir, err := os.MkdirTemp("", "blvm-")
	if err != nil {
		return nil, fmt.Errorf("start VM %s: make folder for sockets: %w", spec.ID, err)
	}
	v := &vm{spec: spec, spawner: newSpawner(), done: make(chan struct{}), enis: map[string]*vmENI{}}
	v.plan = vmPlan{
		name: spec.ID, memoryMiB: spec.MemoryMiB, cpus: spec.CPUs, ports: spec.MaxENIs, image: spec.Kernel.Image,
		initramfs: filepath.Join(runDir, "initramfs"), runDir: runDir, consoleLogFile: spec.log("console"),
	}
	v.close = sync.OnceValue(v.shutDown)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start VM %s: %w", spec.ID, err), v.Close())
		}
	}()
	if err := v.writeInitramfs(); err != nil {
		return nil, err
	}
	spec.Log.Info("booting VM", "type", spec.Type, "cpus", spec.CPUs, "memoryMiB", spec.MemoryMiB)
	if err := v.startProcesses(ctx); err != nil {
		return nil, err
	}
	select {
	case <-v.ready:
	case <-v.gone:
		return nil, v.bootError(v.agent.err)
	case <-v.qemu.ended:
		return nil, v.bootError(errors.New("QEMU ended"))
	case <-ctx.Done():
		return nil, errors.Join(v.bootError(context.Cause(ctx)), v.registers())
	}
	if err := os.Remove(v.plan.initramfs); err != nil {
		return nil, err
	}
	spec.Log.Info("VM booted", "took", time.Since(began).Round(time.Millisecond))
	return v, nil
}

func (v *vm) bootError(err error) error {
	return fmt.Errorf("%w\nconsole: %s\nQEMU: %s", err, tail(v.plan.consoleLogFile), tail(v.spec.log("qemu")))
}

// writeInitramfs puts together the agent, its configuration and the modules for the root file system: a few megabytes,
// not compressed, for unpacking costs more under TCG than copying.
func (v *vm) writeInitramfs() (err error) {
	modules := filepath.Join(v.spec.Kernel.ModulesDir, "lib", "modules", v.spec.Kernel.Version)
	dep, err := os.ReadFile(filepath.Join(modules, "modules.dep"))
	if err != nil {
		return fmt.Errorf("read the kernel's module dependencies: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(modules, "modules.builtin"))
	if err != nil {
		return fmt.Errorf("read the kernel's list of built-in modules: %w", err)
	}
	order, err := moduleOrder(string(dep), string(builtin), bootModules)
	if err != nil {
		return err
	}
	cfg := guest.VMConfig{
		Root:       v.spec.root(modules),
		ModulesDir: modules, Modules: v.spec.Modules,
	}
	f, err := os.OpenFile(v.plan.initramfs, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a := newArchive(f)
	a.dir("dev")
	a.entry("dev/console", modeChar, 5, 1, nil)
	a.dir(guest.VMModulesDir[1:])
	add := func(name, file string) {
		b, rerr := os.ReadFile(file)
		err = errors.Join(err, rerr)
		a.file(name, b)
	}
	for _, m := range order {
		base := filepath.Base(m)
		add(guest.VMModulesDir[1:]+"/"+base, filepath.Join(modules, m))
		cfg.Early = append(cfg.Early, base)
	}
	add("init", v.spec.Agent)
	b, jerr := json.Marshal(cfg)
	a.file(guest.VMConfigFile[1:], b)
	return errors.Join(err, jerr, a.close())
}

// socketPair makes two connected stream sockets: one as a Go connection, one to inherit.
func socketPair(name string) (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair for %s: %w", name, err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	defer ours.Close() // FileConn duplicates it
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make socket pair for %s: %w", name, err)
	}
	return conn, theirs, nil
}

func (v *vm) startProcesses(ctx context.Context) error {
	for _, fs := range []struct{ name, socket, source, cache string }{
		{"virtiofsd-root", v.plan.rootSocket(), "/", "always"}, {"virtiofsd-state", v.plan.stateSocket(), v.spec.StateDir, "auto"},
	} {
		d, err := v.spawner.start(exec.Command(virtiofsdProgram, virtiofsdArgs(fs.socket, fs.source, fs.cache)...), v.spec.log(fs.name))
		if err != nil {
			return fmt.Errorf("%w (is the package qemu-system-common installed?)", err)
		}
		v.daemons = append(v.daemons, d)
		if err := awaitSocket(ctx, fs.socket, d); err != nil {
			return fmt.Errorf("%s: %w: %s", fs.name, err, tail(v.spec.log(fs.name)))
		}
	}
	agentConn, agentFile, err := socketPair("agent")
	if err != nil {
		return err
	}
	defer agentFile.Close()
	v.agent = newAgent(agentConn, v.spec.StateDir)
	qmpConn, qmpFile, err := socketPair("QMP")
	if err != nil {
		return err
	}
	defer qmpFile.Close()
	extra := []*os.File{agentFile, qmpFile} // in the order of agentFD, qmpFD, memoryFD
	memory, err := hugeMemory(v.spec.MemoryMiB)
	if v.plan.hugeMemory = err == nil; v.plan.hugeMemory {
		defer memory.Close()
		extra = append(extra, memory)
	} else {
		v.spec.Log.Warn("the VM's memory has no huge pages: it will be slower", "err", err)
	}
	cmd := exec.Command(qemuProgram, v.plan.args()...)
	cmd.ExtraFiles = extra
	if v.qemu, err = v.spawner.start(cmd, v.spec.log("qemu")); err != nil {
		qmpConn.Close()
		return fmt.Errorf("%w (is the package qemu-system-x86 installed?)", err)
	}
	go func() {
		<-v.qemu.ended
		close(v.done)
	}()
	if v.qmp, err = newQMP(ctx, qmpConn); err != nil {
		return v.bootError(err)
	}
	return nil
}

// awaitSocket returns when the daemon listens: it says so only by the socket's appearance.
func awaitSocket(ctx context.Context, path string, d *child) error {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-t.C:
		case <-d.ended:
			return errors.New("ended early")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (v *vm) Exec(ctx context.Context, c Command) (Result, error) { return v.exec(ctx, c) }

func (v *vm) Start(ctx context.Context, name string, c Command) (Process, error) {
	return v.start(ctx, name, v.spec.log(name), c)
}

func (v *vm) Done() <-chan struct{} { return v.done }
func (v *vm) NetnsPath() string     { return "" }

// Close implements Instance.
func (v *vm) Close() error { return v.close() }

func (v *vm) shutDown() error {
	v.qemu.kill()
	for _, d := range v.daemons { // they end with QEMU; this is for those whose QEMU never came
		d.kill()
	}
	if v.agent != nil {
		v.agent.c.Close()
	}
	if v.qmp != nil {
		v.qmp.c.Close()
	}
	v.spawner.close()
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, e := range v.enis {
		e.link.Close()
	}
	v.enis = map[string]*vmENI{}
	if err := os.RemoveAll(v.plan.runDir); err != nil {
		return fmt.Errorf("remove sockets of VM %s: %w", v.spec.ID, err)
	}
	v.sayStall()
	v.spec.Log.Info("VM ended")
	return nil
}

// reserve takes a free port for an ENI.
func (v *vm) reserve(e ec2.AttachmentSpec) (*vmENI, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.enis[e.ENIID] != nil {
		return nil, ErrAttached
	}
	used := map[int]bool{}
	for _, o := range v.enis {
		used[o.port] = true
	}
	port := lowestFree(used, v.spec.MaxENIs)
	if port < 0 {
		return nil, fmt.Errorf("%w: all %d are used", ErrNoFreePort, v.spec.MaxENIs)
	}
	n := &vmENI{eniPlan: eniPlan{eniID: e.ENIID, mac: e.MAC, port: port, mtu: vpc.MTU, runDir: v.plan.runDir}}
	v.enis[e.ENIID] = n
	return n, nil
}

func (v *vm) release(eniID string) {
	v.mu.Lock()
	delete(v.enis, eniID)
	v.mu.Unlock()
}

func (v *vm) AttachENI(ctx context.Context, e ec2.AttachmentSpec) (_ vpc.Link, err error) {
	if err := checkAttachment(e); err != nil {
		return nil, err
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, plugDeadline)
	defer cancel()
	defer func() {
		if err != nil {
			err = fmt.Errorf("attach ENI %s to VM %s: %w", e.ENIID, v.spec.ID, err)
		}
	}()
	n, err := v.reserve(e)
	if err != nil {
		return nil, err
	}
	var undo []func()
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				undo[i]()
			}
			v.release(e.ENIID)
		}
	}()
	if err := v.qmp.call(ctx, "netdev_add", n.netdev(), nil); err != nil {
		return nil, err
	}
	undo = append(undo, func() { v.removeNetdev(n) })
	link, err := vpc.DgramLink(n.ourSocket(), n.qemuSocket())
	if err != nil {
		return nil, err
	}
	undo = append(undo, func() { link.Close() })
	v.mu.Lock()
	n.link = link
	v.mu.Unlock()
	if err := v.qmp.call(ctx, "device_add", n.device(), nil); err != nil {
		return nil, err
	}
	undo = append(undo, func() {
		ctx, cancel := context.WithTimeout(context.Background(), plugDeadline)
		defer cancel()
		v.unplug(ctx, n)
	})
	name, err := v.guestLink(ctx, v.spec, e)
	if err != nil {
		return nil, err
	}
	v.spec.Log.Info("ENI attached", "eni", e.ENIID, "link", name, "device", e.DeviceIndex, "took", time.Since(began).Round(time.Millisecond))
	return link, nil
}

// guestLink waits for the link in the guest and, if it is the primary one, has it configured.
func (a *agent) guestLink(ctx context.Context, s Spec, e ec2.AttachmentSpec) (string, error) {
	r, err := a.call(ctx, guest.Request{Op: guest.OpLinkUp, Link: &guest.LinkQuery{MAC: e.MAC.String(), TimeoutMillis: int(plugDeadline.Milliseconds())}})
	if err != nil {
		return "", fmt.Errorf("wait for the link in the instance: %w", err)
	}
	if isPrimary(e) {
		if _, err := a.call(ctx, guest.Request{Op: guest.OpConfigure, Primary: s.primaryConfig(e)}); err != nil {
			return "", err
		}
	}
	return r.Link.Name, nil
}

func (v *vm) removeNetdev(n *vmENI) error {
	ctx, cancel := context.WithTimeout(context.Background(), plugDeadline)
	defer cancel()
	err := v.qmp.call(ctx, "netdev_del", map[string]any{"id": n.netdevID()}, nil)
	// QEMU leaves the socket's file behind; the port's next ENI binds the same name.
	if rerr := os.Remove(n.qemuSocket()); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// unplug asks the guest to give the card back and returns when it has.
func (v *vm) unplug(ctx context.Context, n *vmENI) error {
	w := v.qmp.watch(deviceDeleted(n.deviceID()))
	defer v.qmp.unwatch(w)
	if err := v.qmp.call(ctx, "device_del", map[string]any{"id": n.deviceID()}, nil); err != nil {
		return err
	}
	if err := v.qmp.wait(ctx, w); err != nil {
		return fmt.Errorf("wait for the guest to release the network card: %w", err)
	}
	return nil
}

func (v *vm) DetachENI(ctx context.Context, eniID string) error {
	ctx, cancel := context.WithTimeout(ctx, plugDeadline)
	defer cancel()
	v.mu.Lock()
	n := v.enis[eniID]
	v.mu.Unlock()
	fail := func(err error) error { return fmt.Errorf("detach ENI %s from VM %s: %w", eniID, v.spec.ID, err) }
	if n == nil || n.link == nil {
		return fail(ErrNotAttached)
	}
	if err := v.unplug(ctx, n); err != nil {
		return fail(err)
	}
	err := errors.Join(v.removeNetdev(n), n.link.Close())
	v.release(eniID)
	if err != nil {
		return fail(err)
	}
	v.spec.Log.Info("ENI detached", "eni", eniID)
	return nil
}
