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
	addDeadline  = 90 * time.Second
	delDeadline  = 20 * time.Second
	tellDeadline = 3 * time.Second
)

// Versions is what VERSION answers. 1.1.0 is not among them: it would promise STATUS and GC.
func Versions() cniversion.PluginInfo {
	return cniversion.PluginSupports("0.3.1", "0.4.0", "1.0.0")
}

// Funcs are the verbs. CHECK is refused, not passed over: the conflist that the agent writes disables it, and a runtime
// that asks all the same must not be told that all is well.
func Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add: func(a *skel.CmdArgs) error { return run(a, "ADD", addDeadline, (*operation).add) },
		Del: func(a *skel.CmdArgs) error { return run(a, "DEL", delDeadline, (*operation).del) },
		Check: func(*skel.CmdArgs) error {
			return types.NewError(CodeUnsupported, "CHECK is not among this version's verbs: set disableCheck in the network configuration list", "")
		},
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
	o.pod, o.podErr = parseArgs(args.Args)
	var closeLog func()
	o.log, closeLog = openLog(o.config)
	defer closeLog()
	if len(o.config.Ignored) > 0 {
		o.note("ignored", o.config.Ignored)
	}

	defer func() {
		if p := recover(); p != nil {
			o.log.Error("panic", "verb", verb, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = types.NewError(CodePanic, fmt.Sprintf("%s of pod %s: the executable has a defect: %v", verb, o.pod, p), "")
		}
		o.line(verb, start, err)
	}()
	if e := toCNI(fmt.Sprintf("%s of pod %s", verb, o.pod), do(o, ctx)); e != nil {
		return e // not toCNI's nil pointer, which would be an error that isn't nil
	}
	return nil
}

func (o *operation) line(verb string, start time.Time, err error) {
	attrs := append([]any{
		"pod", o.pod.String(), "uid", o.pod.UID, "sandbox", o.args.ContainerID, "interface", o.args.IfName, "version", rpc.Version,
		"duration", time.Since(start).Round(time.Microsecond).String(),
	}, o.attrs...)
	if err != nil {
		o.log.Error(verb+" failed", append(attrs, "error", err.Error())...)
		return
	}
	o.log.Info(verb, attrs...)
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
func (o *operation) tell(client *rpc.Conn, lock *datapath.Lock, addFailed bool, reason string) {
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
