package egress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/branchline-cni/branchline/plugins/oplog"
)

// Version is what this build calls itself. The build sets it by -ldflags "-X …/plugins/egress.Version=…": rpc's would
// link gRPC.
var Version = "devel"

// Error codes of our own, with aws-cni's meanings; below 100 are the CNI specification's.
const (
	CodeWiring   uint = 101
	CodeConflict uint = 102
	CodePanic    uint = 104
	// CodeDiffers: CHECK found a difference.
	CodeDiffers uint = 108
	// codeUnavailable is the specification's for STATUS: no ADD would succeed.
	codeUnavailable uint = 50
)

// Deadlines of the verbs, together with aws-cni's below the kubelet's own for a sandbox.
const (
	addDeadline  = 15 * time.Second
	otherwise    = 10 * time.Second
	undoDeadline = 5 * time.Second
)

// Versions is what VERSION answers.
func Versions() cniversion.PluginInfo {
	return cniversion.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")
}

// Funcs are the verbs.
func Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add:    func(a *skel.CmdArgs) error { return run(a, "ADD", addDeadline, (*operation).add) },
		Del:    func(a *skel.CmdArgs) error { return run(a, "DEL", otherwise, (*operation).del) },
		Check:  func(a *skel.CmdArgs) error { return run(a, "CHECK", otherwise, (*operation).check) },
		GC:     func(a *skel.CmdArgs) error { return run(a, "GC", otherwise, (*operation).gc) },
		Status: func(a *skel.CmdArgs) error { return run(a, "STATUS", otherwise, (*operation).status) },
	}
}

// operation is one run of the executable.
type operation struct {
	args      *skel.CmdArgs
	config    Config
	configErr error
	owner     Owner
	log       *slog.Logger
	attrs     []any
}

func run(args *skel.CmdArgs, verb string, deadline time.Duration, do func(*operation, context.Context) error) (err error) {
	start := time.Now()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	o := &operation{args: args, owner: Owner{args.ContainerID, args.IfName}}
	o.config, o.configErr = ParseConfig(args.StdinData)
	var closeLog func()
	o.log, closeLog = oplog.Open("egress-cni", o.config.LogFile, o.config.LogLevel)
	defer closeLog()
	defer func() {
		if p := recover(); p != nil {
			o.log.Error("panic", "verb", verb, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = types.NewError(CodePanic, fmt.Sprintf("%s of egress-cni: the executable has a defect: %v", verb, p), "")
		}
		o.line(verb, start, err)
	}()
	if e := toCNI(verb, do(o, ctx)); e != nil {
		return e
	}
	return nil
}

func (o *operation) note(attrs ...any) { o.attrs = append(o.attrs, attrs...) }

func (o *operation) line(verb string, start time.Time, err error) {
	attrs := append([]any{
		"sandbox", o.args.ContainerID, "interface", o.args.IfName, "version", Version,
		"duration", time.Since(start).Round(time.Microsecond).String(),
	}, o.attrs...)
	if err != nil {
		o.log.Error(verb+" failed", append(attrs, "error", err.Error())...)
		return
	}
	o.log.Info(verb, attrs...)
}

// toCNI is the one place where errors become the codes that the runtime sees.
func toCNI(verb string, err error) *types.Error {
	if err == nil {
		return nil
	}
	var done *types.Error
	if errors.As(err, &done) {
		return done
	}
	code := CodeWiring
	switch {
	case errors.Is(err, errDiffers), errors.Is(err, errRules):
		code = CodeDiffers
	case errors.Is(err, errConflict):
		code = CodeConflict
	case errors.Is(err, errNoAddress), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		code = types.ErrTryAgainLater
	}
	return types.NewError(code, verb+" of egress-cni: "+err.Error(), "")
}

// openPod opens the sandbox's network namespace.
func (o *operation) openPod() (*os.File, error) {
	f, err := os.Open(o.args.Netns)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetNS, "CNI_NETNS: "+err.Error(), "")
	}
	return f, nil
}

// add gives the pod its second interface, or passes the previous result on.
func (o *operation) add(ctx context.Context) error {
	c := o.config
	if o.configErr != nil {
		return o.configErr
	}
	prev, err := parsePrevious(c.PrevResult)
	if err != nil {
		return err
	}
	pass, err := result(c, nil, "")
	if err != nil {
		return err
	}
	if why := Skip(c, prev, nil); why != "" {
		o.note("passedOn", why)
		return types.PrintResult(pass, c.CNIVersion)
	}
	pod, err := o.openPod()
	if err != nil {
		return err
	}
	defer pod.Close()
	k, err := openKernel(ctx, pod)
	if err != nil {
		return err
	}
	defer k.close()
	inPod, err := k.addresses(c.Family)
	if err != nil {
		return err
	}
	if why := Skip(c, prev, inPod); why != "" {
		o.note("passedOn", why)
		return types.PrintResult(pass, c.CNIVersion)
	}
	// Before the pod can send anything: what isn't translated would carry an address that is nobody's.
	if err := ensureRules(c); err != nil {
		return err
	}
	delivered := false
	defer func() {
		if !delivered {
			o.undo()
		}
	}()
	address, err := allocate(ctx, c, o.owner)
	if err != nil {
		return err
	}
	o.note("address", address.String())
	w := Plan(c, o.owner, address)
	if err := k.wire(ctx, w); err != nil {
		return err
	}
	r, err := result(c, &w, o.args.Netns)
	if err != nil {
		return err
	}
	err = types.PrintResult(r, c.CNIVersion)
	delivered = err == nil
	return err
}

// undo takes everything of the sandbox away, in its own time: the ADD's may just have ended.
func (o *operation) undo() {
	ctx, cancel := context.WithTimeout(context.Background(), undoDeadline)
	defer cancel()
	if err := o.remove(ctx); err != nil {
		o.note("undoError", err.Error())
	}
}

func (o *operation) remove(ctx context.Context) error {
	k, err := openKernel(ctx, nil)
	if err != nil {
		return err
	}
	defer k.close()
	var errs []error
	for _, f := range []Family{IPv4, IPv6} { // the configuration may have changed since the ADD
		// A link of the name that isn't ours is not ours to delete.
		if err := k.unwire(o.owner.HostLink(f), o.owner.Mark()); err != nil && !errors.Is(err, errConflict) {
			errs = append(errs, err)
		}
	}
	// The address last: it is nobody's as long as a link has it.
	if len(errs) == 0 {
		errs = append(errs, release(ctx, o.config, o.owner))
	}
	return errors.Join(errs...)
}

// del needs neither a previous result nor the network namespace, and may run any number of times.
func (o *operation) del(ctx context.Context) error {
	if o.configErr != nil {
		o.note("ignored", o.configErr.Error())
	}
	return o.remove(ctx)
}

// check compares the kernel with what ADD made. A pod that ADD has passed over has nothing to compare.
func (o *operation) check(ctx context.Context) error {
	c := o.config
	if o.configErr != nil {
		return o.configErr
	}
	prev, err := parsePrevious(c.PrevResult)
	if err != nil {
		return err
	}
	if !slices.Contains(prev.Links, o.owner.HostLink(c.Family)) {
		return nil
	}
	pod, err := o.openPod()
	if err != nil {
		return err
	}
	defer pod.Close()
	address, err := heldBy(ctx, c, o.owner)
	if err != nil {
		return err
	}
	if !address.IsValid() || !slices.Contains(prev.Addresses, address) {
		return fmt.Errorf("%w: host-local's files in %s say that the sandbox has %v, the result %v", errDiffers, c.DataDir, address, prev.Addresses)
	}
	k, err := openKernel(ctx, pod)
	if err != nil {
		return err
	}
	defer k.close()
	if err := k.check(Plan(c, o.owner, address)); err != nil {
		return err
	}
	conn, err := openNFT()
	if err != nil {
		return err
	}
	return errors.Join(checkRules(conn, c), conn.CloseLasting())
}

// gc takes away what carries our mark and is not in the list of valid attachments.
func (o *operation) gc(ctx context.Context) error {
	if o.configErr != nil {
		return o.configErr
	}
	valid := map[Owner]bool{}
	marks := map[string]bool{}
	for _, a := range o.config.Valid {
		owner := Owner{a.ContainerID, a.IfName}
		valid[owner], marks[owner.Mark()] = true, true
	}
	k, err := openKernel(ctx, nil)
	if err != nil {
		return err
	}
	defer k.close()
	links, err := dump(k.host.LinkList)
	if err != nil {
		return fmt.Errorf("list the links: %w", err)
	}
	prefix := HostLinkPrefix + fmt.Sprint(int(o.config.Family))
	var errs []error
	for _, l := range links {
		a := l.Attrs()
		if IsOurs(a.Name) && strings.HasPrefix(a.Name, prefix) && strings.HasPrefix(a.Alias, MarkPrefix) && !marks[a.Alias] {
			o.note("collected", a.Name)
			errs = append(errs, k.deleteLink(a.Name, a.Index))
		}
	}
	errs = append(errs, collect(ctx, o.config, func(owner Owner) bool { return valid[owner] }))
	return errors.Join(errs...)
}

// status fails where no ADD could succeed. A node without a free address is none of these: it would be taken for broken.
func (o *operation) status(context.Context) error {
	if o.configErr != nil {
		return o.configErr
	}
	if err := nftWorks(); err != nil {
		return types.NewError(codeUnavailable, "egress-cni can't work on this node: "+err.Error(), "")
	}
	return nil
}

// Main runs the verb that the environment names and answers on stdout.
func Main() {
	if e := skel.PluginMainFuncsWithError(Funcs(), Versions(), "Branchline CNI plugin egress-cni "+Version); e != nil {
		if err := e.Print(); err != nil {
			fmt.Fprintln(os.Stderr, "egress-cni: write the error to stdout:", err)
		}
		os.Exit(1)
	}
}
