package instance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/lab/instance/guest"
	"github.com/branchline-cni/branchline/lab/vpc"
)

const (
	netnsStartDeadline = 20 * time.Second
	closeDeadline      = 10 * time.Second
)

// netns is an instance in namespaces of the machine's kernel.
type netns struct {
	*agent
	spec    Spec
	spawner *spawner
	init    *child
	cgroups *cgroups
	work    string
	done    chan struct{}
	close   func() error

	mu   sync.Mutex
	enis map[string]*netnsENI
}

type netnsENI struct {
	index int // of the link's name, eth<index>
	mac   string
	link  vpc.Link
}

// StartNetns makes a namespace instance. It takes well under a second and needs root.
func StartNetns(ctx context.Context, spec Spec) (_ Instance, err error) {
	spec, err = spec.prepared()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, netnsStartDeadline, fmt.Errorf("not up within %v", netnsStartDeadline))
	defer cancel()
	n := &netns{spec: spec, spawner: newSpawner(), done: make(chan struct{}), enis: map[string]*netnsENI{}}
	n.close = sync.OnceValue(n.shutDown)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start namespace instance %s: %w", spec.ID, err), n.Close())
		}
	}()
	n.work = filepath.Join(spec.StateDir, ".root")
	if err := os.Mkdir(n.work, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make folder for the root file system: %w", err)
	}
	if err := n.startInit(); err != nil {
		return nil, err
	}
	select {
	case <-n.ready:
	case <-n.gone:
		return nil, fmt.Errorf("%w: %s", n.agent.err, tail(spec.log("agent")))
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %s", context.Cause(ctx), tail(spec.log("agent")))
	}
	spec.Log.Info("namespace instance up", "type", spec.Type, "took", time.Since(began).Round(time.Millisecond))
	return n, nil
}

// startInit starts PID 1 in new namespaces, moves it into the instance's cgroups and then lets it go on. With it the
// kernel ends every process, mount and link of the instance.
func (n *netns) startInit() error {
	cfg, err := json.Marshal(guest.NetnsConfig{
		Root: n.spec.root(), Work: n.work, Hostname: n.spec.Name,
	})
	if err != nil {
		return err
	}
	conn, theirs, err := socketPair("agent")
	if err != nil {
		return err
	}
	defer theirs.Close()
	cmd := exec.Command(n.spec.Agent, guest.StageEnter, string(cfg))
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	if n.init, err = n.spawner.start(cmd, n.spec.log("agent")); err != nil {
		conn.Close()
		return fmt.Errorf("%w (namespaces need root)", err)
	}
	go func() {
		<-n.init.ended
		close(n.done)
	}()
	n.agent = newAgent(conn, n.spec.StateDir)
	if n.cgroups, err = makeCgroups("branchline-"+n.spec.ID, n.init.cmd.Process.Pid); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{'\n'}); err != nil {
		return fmt.Errorf("let the agent start: %w", err)
	}
	return nil
}

func (n *netns) Exec(ctx context.Context, c Command) (Result, error) { return n.exec(ctx, c) }

func (n *netns) Start(ctx context.Context, name string, c Command) (Process, error) {
	return n.start(ctx, name, n.spec.log(name), c)
}

func (n *netns) Done() <-chan struct{} { return n.done }

func (n *netns) NetnsPath() string {
	return fmt.Sprintf("/proc/%d/ns/net", n.init.cmd.Process.Pid)
}

// Close implements Instance.
func (n *netns) Close() error { return n.close() }

func (n *netns) shutDown() error {
	// The links first: a network namespace dies late, its TAP devices go with their descriptors.
	n.mu.Lock()
	for _, e := range n.enis {
		if e.link != nil {
			e.link.Close()
		}
	}
	n.enis = map[string]*netnsENI{}
	n.mu.Unlock()
	n.init.kill() // SIGTERM would be blocked: PID 1 of a namespace gets from outside only what can't be caught
	if n.agent != nil {
		n.agent.c.Close()
	}
	n.spawner.close()
	ctx, cancel := context.WithTimeout(context.Background(), closeDeadline)
	defer cancel()
	err := n.cgroups.remove(ctx)
	if n.work != "" {
		if rerr := os.Remove(n.work); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	if err != nil {
		return fmt.Errorf("remove namespace instance %s: %w", n.spec.ID, err)
	}
	n.spec.Log.Info("namespace instance ended")
	return nil
}

func (n *netns) AttachENI(ctx context.Context, e ec2.AttachmentSpec) (_ vpc.Link, err error) {
	if err := checkAttachment(e); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, plugDeadline)
	defer cancel()
	fail := func(err error) error {
		return fmt.Errorf("attach ENI %s to namespace instance %s: %w", e.ENIID, n.spec.ID, err)
	}
	n.mu.Lock()
	if n.enis[e.ENIID] != nil {
		n.mu.Unlock()
		return nil, fail(ErrAttached)
	}
	used := map[int]bool{}
	for _, o := range n.enis {
		used[o.index] = true
	}
	eni := &netnsENI{index: lowestFree(used, len(used)+1), mac: e.MAC.String()}
	n.enis[e.ENIID] = eni
	n.mu.Unlock()
	link, err := vpc.TAPLink(n.NetnsPath(), fmt.Sprintf("eth%d", eni.index), e.MAC, vpc.MTU)
	if err == nil {
		var name string
		if name, err = n.guestLink(ctx, n.spec, e); err == nil {
			n.mu.Lock()
			eni.link = link
			n.mu.Unlock()
			n.spec.Log.Info("ENI attached", "eni", e.ENIID, "link", name, "device", e.DeviceIndex)
			return link, nil
		}
		link.Close()
	}
	n.mu.Lock()
	delete(n.enis, e.ENIID)
	n.mu.Unlock()
	return nil, fail(err)
}

func (n *netns) DetachENI(ctx context.Context, eniID string) error {
	ctx, cancel := context.WithTimeout(ctx, plugDeadline)
	defer cancel()
	fail := func(err error) error {
		return fmt.Errorf("detach ENI %s from namespace instance %s: %w", eniID, n.spec.ID, err)
	}
	n.mu.Lock()
	e := n.enis[eniID]
	if e == nil || e.link == nil {
		n.mu.Unlock()
		return fail(ErrNotAttached)
	}
	n.mu.Unlock()
	if err := e.link.Close(); err != nil {
		return fail(err)
	}
	q := &guest.LinkQuery{MAC: e.mac, TimeoutMillis: int(plugDeadline.Milliseconds())}
	if _, err := n.call(ctx, guest.Request{Op: guest.OpLinkGone, Link: q}); err != nil {
		return fail(err)
	}
	n.mu.Lock()
	delete(n.enis, eniID)
	n.mu.Unlock()
	n.spec.Log.Info("ENI detached", "eni", eniID)
	return nil
}
