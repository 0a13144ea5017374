package eni

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/rpc"
)

// Deadlines of the verbs, below kubelet's own for a sandbox, and of the short words to the agent within them.
const (
	addDeadline    = 90 * time.Second
	delDeadline    = 20 * time.Second
	checkDeadline  = 20 * time.Second
	statusDeadline = 4 * time.Second
	gcDeadline     = 100 * time.Second // an ADD that is under way is waited for
	tellDeadline   = 3 * time.Second
)

// Versions is what VERSION answers.
func Versions() cniversion.PluginInfo {
	return cniversion.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")
}

// Funcs are the verbs.
func Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add:    func(a *skel.CmdArgs) error { return run(a, "ADD", addDeadline, (*operation).add) },
		Del:    func(a *skel.CmdArgs) error { return run(a, "DEL", delDeadline, (*operation).del) },
		Check:  func(a *skel.CmdArgs) error { return run(a, "CHECK", checkDeadline, (*operation).check) },
		Status: func(a *skel.CmdArgs) error { return run(a, "STATUS", statusDeadline, (*operation).status) },
		GC:     func(a *skel.CmdArgs) error { return run(a, "GC", gcDeadline, (*operation).gc) },
	}
}

// operation is one run of the executable.
type operation struct {
	args   *skel.CmdArgs
	config Config
	// configErr and podErr are fatal to ADD, and told in the log of a DEL.
	configErr, podErr error
	pod               podArgs
	owner             datapath.Owner
	log               *slog.Logger
	attrs             []any // of the operation's line in the log
}

func run(args *skel.CmdArgs, verb string, deadline time.Duration, do func(*operation, context.Context) error) (err error) {
	start := time.Now()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()

	o := &operation{args: args, owner: datapath.Owner{ContainerID: args.ContainerID, IfName: args.IfName}}
	o.config, o.configErr = ParseConfig(args.StdinData)
	if args.ContainerID != "" { // STATUS and GC are about no pod
		o.pod, o.podErr = parseArgs(args.Args)
	}
	var closeLog func()
	o.log, closeLog = openLog(o.config)
	defer closeLog()
	if len(o.config.Ignored) > 0 {
		o.note("ignored", o.config.Ignored)
	}

	defer func() {
		if p := recover(); p != nil {
			o.log.Error("panic", "verb", verb, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = types.NewError(CodePanic, fmt.Sprintf("%s: the executable has a defect: %v", o.attempt(verb), p), "")
		}
		o.line(verb, start, err)
	}()
	if e := toCNI(o.attempt(verb), do(o, ctx)); e != nil {
		return e // not toCNI's nil pointer, which would be an error that isn't nil
	}
	return nil
}

// attempt is what the operation tries, for its error.
func (o *operation) attempt(verb string) string {
	if o.args.ContainerID == "" {
		return verb + " of network " + o.config.Name
	}
	return verb + " of pod " + o.pod.String()
}

func (o *operation) line(verb string, start time.Time, err error) {
	attrs := []any{"version", rpc.Version, "duration", time.Since(start).Round(time.Microsecond).String()}
	level := slog.LevelInfo
	if o.args.ContainerID != "" {
		attrs = append([]any{"pod", o.pod.String(), "uid", o.pod.UID, "sandbox", o.args.ContainerID, "interface", o.args.IfName}, attrs...)
	} else if verb == "STATUS" && !o.sayStatus(err, time.Now()) {
		level = slog.LevelDebug // every few seconds
	}
	attrs = append(attrs, o.attrs...)
	if err != nil {
		if level == slog.LevelInfo {
			level = slog.LevelError
		}
		verb += " failed"
		attrs = append(attrs, "error", err.Error())
	}
	o.log.Log(context.Background(), level, verb, attrs...)
}

func (o *operation) note(attrs ...any) { o.attrs = append(o.attrs, attrs...) }

func (o *operation) attachment() *rpc.Attachment {
	return &rpc.Attachment{
		ContainerId: o.args.ContainerID, IfName: o.args.IfName, NetworkName: o.config.Name, Netns: o.args.Netns,
	}
}

// tell lets the agent know that nothing of the sandbox is left. It is a courtesy with a short deadline: what the agent
// doesn't hear from us it finds out by itself. It has its own deadline, as the operation's may just have ended. For a
// branch pod's end lock is given: the answer may be a word on the whole node's settings.
func (o *operation) tell(client *rpc.Client, lock *datapath.Lock, addFailed bool, reason string) {
	ctx, cancel := context.WithTimeout(context.Background(), tellDeadline)
	defer cancel()
	var settings func(*rpc.HostSettings)
	if lock != nil {
		if release, err := lock.Host(ctx); err != nil {
			o.note("hostSettings", err.Error())
		} else {
			defer release()
			settings = o.restoreHost
		}
	}
	reply, err := client.Del(ctx, &rpc.DelRequest{
		Version: rpc.Version, Pod: o.pod.message(), Attachment: o.attachment(), AddFailed: addFailed, Reason: reason,
	})
	if err != nil {
		o.note("agentNotTold", messageOf(err))
	} else if settings != nil {
		settings(reply.GetHost())
	}
}

// Main runs the verb that the environment names and answers on stdout.
func Main() {
	if e := skel.PluginMainFuncsWithError(Funcs(), Versions(), "Branchline CNI plugin aws-cni "+rpc.Version); e != nil {
		if err := e.Print(); err != nil {
			fmt.Fprintln(os.Stderr, "aws-cni: write the error to stdout:", err)
		}
		os.Exit(1)
	}
}
