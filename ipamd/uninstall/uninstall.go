package uninstall

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/branchline-cni/branchline/ipamd/config"
	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/install"
	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/nodeagent"
)

// Options say where things are.
type Options struct {
	Config *config.Config // HostBinDir, HostConfDir and TCPEarlyDemux count
	// RunDir has the agent's socket, its file of allocations and the executable's lock.
	RunDir    string
	SysctlDir string // /proc/sys
	// Force takes pods' wiring away, too.
	Force bool
	Log   *slog.Logger
}

// ErrPodsLeft is wrapped by a *PodsLeft; ErrAgentRuns says that what was removed would come back.
var (
	ErrPodsLeft  = errors.New("pods that this product wired are left on the node")
	ErrAgentRuns = errors.New("a node agent runs: delete the DaemonSet aws-node first, it would put everything back")
)

// PodsLeft lists the pods that stand in the way.
type PodsLeft struct{ Pods []string }

func (e *PodsLeft) Error() string {
	return fmt.Sprintf("%v: drain it and delete what is left, or give -force and lose their network:\n  %s", ErrPodsLeft, strings.Join(e.Pods, "\n  "))
}

// Unwrap makes it an ErrPodsLeft.
func (e *PodsLeft) Unwrap() error { return ErrPodsLeft }

// Run uninstalls. It may be run any number of times; it goes on after what fails, and then says all that failed.
func Run(ctx context.Context, o Options) error {
	if agentRuns(ctx, filepath.Join(o.RunDir, filepath.Base(rpc.SocketPath))) {
		return ErrAgentRuns
	}
	k, err := openKernel()
	if err != nil {
		return err
	}
	defer k.close()
	links, err := k.links()
	if err != nil {
		return err
	}
	if pods := podsOf(links, o.names()); len(pods) > 0 && !o.Force {
		return &PodsLeft{pods}
	}
	// From outside in: first nobody is sent here any more, the executables that could still tear down go last.
	ours, err := o.executables()
	if err != nil {
		return err
	}
	errs := []error{o.removeConflist(ours)}
	removed, err := k.removeLinks(links)
	o.removed(removed)
	errs = append(errs, err)
	if err == nil {
		errs = append(errs, o.removeRouting(ctx, k))
	}
	for _, name := range []string{"branchline.json", "branchline.json.tmp", "cni.lock", "last-ready", "status-failed"} {
		errs = append(errs, o.removeFile(filepath.Join(o.RunDir, name)))
	}
	if errors.Join(errs...) == nil { // while anything is left, so is what a DEL can take it away with
		for _, name := range ours {
			errs = append(errs, o.removeFile(name))
		}
	}
	return errors.Join(errs...)
}

// removeRouting takes rules, routes and settings away, once the pods' links are gone.
func (o Options) removeRouting(ctx context.Context, k *kernel) error {
	host, err := hostnet.NewKernel()
	if err != nil {
		return err
	}
	defer host.Close()
	others, err := k.otherBranchPods()
	if err != nil {
		return err
	}
	wired, err := host.Pods() // of another agent's: ours have no link any more
	if err != nil {
		return err
	}
	removed, err := k.removePodRouting(wired)
	o.removed(removed)
	errs := []error{err}
	removed, err = host.Remove(ctx, others)
	o.removed(removed)
	errs = append(errs, err)
	if !others {
		demux := []install.Setting{{Path: "net/ipv4/udp_early_demux", Value: "1"}}
		if o.Config.TCPEarlyDemux != config.DemuxOff {
			demux = append(demux, install.Setting{Path: "net/ipv4/tcp_early_demux", Value: "1"})
		}
		errs = append(errs, install.Settings(o.SysctlDir, demux, o.Log))
	}
	return errors.Join(errs...)
}

func (o Options) removed(what []string) {
	for _, w := range what {
		o.Log.Info("removed", "what", w)
	}
}

// names are the pods' names by their sandboxes, as far as the agent's file tells them.
func (o Options) names() map[string]string {
	allocations, err := store.Read(filepath.Join(o.RunDir, "branchline.json"))
	if err != nil {
		o.Log.Warn("pods are told by their sandboxes only", "error", err)
	}
	out := map[string]string{}
	for _, a := range allocations {
		out[a.Key.String()] = a.Pod.String()
	}
	return out
}

// agentRuns says whether somebody listens on the agent's socket: ours, or another project's by the same name.
func agentRuns(ctx context.Context, socket string) bool {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	conn, err := nodeagent.Dial(socket)
	if err != nil {
		return false
	}
	defer conn.Close()
	_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	return status.Code(err) != codes.Unavailable
}

// executables are the paths of those on the host that are ours. Another agent may have replaced them by its own.
func (o Options) executables() (ours []string, err error) {
	for _, name := range []string{install.EgressPlugin, install.Plugin} {
		path := filepath.Join(o.Config.HostBinDir, name)
		info, err := buildinfo.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			o.Log.Warn("left alone: it is not known whose it is", "executable", path, "error", err)
		case info.Main.Path != module:
			o.Log.Warn("left alone: it is another project's", "executable", path, "module", info.Main.Path)
		default:
			ours = append(ours, path)
		}
	}
	return ours, nil
}

// module is what our executables say that they are built from.
const module = "github.com/branchline-cni/branchline"

// removeConflist removes the configuration where the executable that it names is ours, or is not there.
func (o Options) removeConflist(ours []string) error {
	conflist, plugin := filepath.Join(o.Config.HostConfDir, install.ConflistName), filepath.Join(o.Config.HostBinDir, install.Plugin)
	for _, name := range ours {
		if name == plugin {
			return o.removeFile(conflist)
		}
	}
	if _, err := os.Lstat(conflist); err == nil {
		o.Log.Warn("left alone: the executable that it names is not ours", "configuration", conflist, "executable", plugin)
	}
	return nil
}

func (o Options) removeFile(name string) error {
	err := os.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	o.removed([]string{"file " + name})
	return nil
}
