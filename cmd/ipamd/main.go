// Command ipamd is the node agent. In the image it is called aws-k8s-agent: monitoring looks for that name.
//
//	ipamd run       serves the CNI executable on this node
//	ipamd install   what the init container does: executables and node-wide kernel settings
//	ipamd uninstall takes what this product has put onto a drained node away again
//	ipamd health    asks the running agent whether it can wire pods (for exec probes)
//	ipamd introspect shows what the running agent knows
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/branchline-cni/branchline/ipamd/config"
	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/install"
	"github.com/branchline-cni/branchline/rpc"
)

const usage = `usage: ipamd run | install | uninstall | health | introspect | version   (-h after each for its flags)
The environment variables are those of the aws-node DaemonSet; see docs/configuration.md.
`

// errUsage has been said already.
var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := command(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "ipamd:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return errUsage
	}
	verb, rest := args[0], args[1:]
	flags := flag.NewFlagSet("ipamd "+verb, flag.ContinueOnError)
	switch verb {
	case "run":
		return runCommand(ctx, flags, rest)
	case "install":
		return installCommand(ctx, flags, rest)
	case "uninstall":
		return uninstallCommand(ctx, flags, rest)
	case "health":
		return healthCommand(ctx, flags, rest)
	case "introspect":
		return introspectCommand(ctx, flags, rest)
	case "version":
		fmt.Println(rpc.Version)
		return nil
	}
	fmt.Fprint(os.Stderr, usage)
	return errUsage
}

func parse(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "%s takes no arguments: %q\n", flags.Name(), flags.Args())
		return errUsage
	}
	return nil
}

// load reads the environment; each warning is logged.
func load(log *slog.Logger, lookup func(string) (string, bool)) (*config.Config, error) {
	c, warnings, err := config.Load(lookup)
	for _, w := range warnings {
		log.Warn(w)
	}
	if err != nil {
		return nil, fmt.Errorf("the environment can't be accepted:\n%w", err)
	}
	return c, nil
}

// ofInit looks a variable of the init container up. Of the cluster's family manifests have ENABLE_IPv6 alone there: then the other one is
// off where it is on.
func ofInit(lookup func(string) (string, bool)) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := lookup(name)
		if name == "ENABLE_IPv4" && v == "" {
			six, _ := lookup("ENABLE_IPv6")
			if on, err := strconv.ParseBool(six); err == nil && on {
				return "false", true
			}
		}
		return v, ok
	}
}

func installCommand(ctx context.Context, flags *flag.FlagSet, args []string) error {
	source := flags.String("source", "/opt/branchline/bin", "`directory` with the executables to install")
	hostRoot := flags.String("host-root", "/host-root", "`directory` of the host's file system, whose iptables removes legacy rules of another agent; none: they stay")
	if err := parse(flags, args); err != nil {
		return err
	}
	log := logger(os.Stderr, slog.LevelInfo)
	c, err := load(log, ofInit(os.LookupEnv))
	if err != nil {
		return err
	}
	err = install.Run(install.Options{SourceDir: *source, SysctlDir: "/proc/sys", LinksDir: "/sys/class/net", Config: c, Log: log})
	if err == nil && c.KubeletLocal {
		// Pods work without it, so it never keeps the agent from starting: the agent says so in an event.
		if err := makeKubeletTable(ctx, c.IPv6); err != nil {
			log.Error("the kubelet's own connections to branch pods can't be kept on the node", "error", err)
		}
	}
	if err == nil {
		dropLegacyNAT(ctx, *hostRoot, log)
	}
	return err
}

func makeKubeletTable(ctx context.Context, ipv6 bool) error {
	k, err := hostnet.NewKernel()
	if err != nil {
		return err
	}
	defer k.Close()
	return k.MakeKubeletTable(ctx, ipv6)
}

func logger(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
}
