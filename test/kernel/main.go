// Command kernel runs tests that need root and a kernel with 802.1Q: it compiles them here, boots one VM and runs them all
// in it, so that they run the same on a machine whose own kernel lacks VLANs, and touch nothing of the machine.
//
//	go run ./test/kernel ./plugins/... ./ipamd/...     compile what has *_kernel_test.go files, and run it
//	go run ./test/kernel -bins DIR                     run the test binaries (*.test) in DIR
//	go run ./test/kernel -soak 50 -timeout 5h -run TestP1RandomInterleavings ./plugins/eni    more of what is random
//	go run ./test/kernel -mutants FILE ./plugins/eni   show that the tests see each of the faults that FILE lists
//
// The CNI executables are built, too, unless the cache has them: aws-cni's path is given to each test binary in BRANCHLINE_AWS_CNI, the others of
// the chain are in the same folder. PATH leads to what a node has beside them (iptables, nft, ip), BRANCHLINE_HARM to
// the command that harms it at its system calls (test/harm).
//
// It ends with one line that says what ran. A test that skips itself counts as failed: nothing is left out in silence.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/branchline-cni/branchline/lab/artifacts"
	"github.com/branchline-cni/branchline/lab/instance"
)

// modules are what the tests may need and a kernel doesn't load by itself when asked by netlink.
var modules = []string{
	"8021q", "veth", "tun", "bridge", "dummy", "vrf", "nf_tables", "nft_ct", "nft_nat", "nft_masq", "nft_chain_nat", "nft_compat",
	"iptable_nat", "iptable_mangle", "iptable_filter", "nft_socket", "tcp_diag", "nft_fib_ipv4", "nft_fib_inet", "nft_reject_inet", "nf_conntrack", "nf_conntrack_netlink", "xt_comment", "xt_conntrack",
	"xt_mark", "xt_MASQUERADE", "xt_addrtype", "ip_vs", "ip_vs_rr", "ifb", "sch_tbf", "sch_ingress", "cls_u32", "act_mirred",
}

type options struct {
	bins, run string
	mutants   string
	soak      int
	verbose   bool
	timeout   time.Duration
	memoryMiB int
	cpus      int
	patterns  []string
}

func main() {
	var o options
	flag.StringVar(&o.bins, "bins", "", "folder of test binaries to run instead of compiling packages")
	flag.StringVar(&o.run, "run", "", "run only tests that match this regular expression")
	flag.StringVar(&o.mutants, "mutants", "", "file that lists faults: each is seeded alone into aws-cni, and a test must fail")
	flag.IntVar(&o.soak, "soak", 1, "how many times as much as usual the tests of interleavings and crashes try")
	flag.BoolVar(&o.verbose, "v", false, "show all output, as it comes")
	flag.DurationVar(&o.timeout, "timeout", 20*time.Minute, "time for each test binary")
	flag.IntVar(&o.memoryMiB, "memory", 2560, "the VM's memory, MiB")
	flag.IntVar(&o.cpus, "cpus", 2, "the VM's CPUs")
	flag.Parse()
	o.patterns = flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kernel tests:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("root is needed (the VM shares this machine's files): run it as root")
	}
	if (o.bins == "") == (len(o.patterns) == 0) {
		return errors.New("give either -bins DIR or packages")
	}
	began := time.Now()
	work, err := os.MkdirTemp("", "blkt-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	var tests []testBinary
	if o.bins != "" {
		tests, err = listBinaries(o.bins)
	} else {
		tests, err = compile(ctx, o.patterns, filepath.Join(work, "bins"))
	}
	if err != nil {
		return err
	}
	bin := filepath.Join(work, "cni")
	cache, err := artifacts.Open()
	if err != nil {
		return err
	}
	executable, err := collectExecutables(ctx, cache, bin)
	if err != nil {
		return err
	}
	tools, err := cache.NodeTools(ctx)
	if err != nil {
		return err
	}
	harm, err := cache.Go(ctx, "harm", "./test/harm", "")
	if err != nil {
		return err
	}
	var mutants []mutant
	faulty := filepath.Join(work, "mutants")
	if err := os.Mkdir(faulty, 0o755); err != nil {
		return err
	}
	if o.mutants != "" {
		if mutants, err = buildMutants(ctx, o.mutants, faulty); err != nil {
			return err
		}
	}
	vm, err := boot(ctx, cache, o, work, tests, bin, faulty, tools.Dir, filepath.Dir(harm))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	env := func(executable string) []string { return environment(executable, harm, tools, o.soak) }
	if mutants != nil {
		return runMutants(ctx, vm, o, tests, mutants, seers(o.run), env, executable, os.Stdout)
	}
	var total tally
	for _, t := range tests {
		total.add(runBinary(ctx, vm, o, t, env(executable), os.Stdout))
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
	}
	fmt.Printf("kernel tests: %s in %v\n", total, time.Since(began).Round(100*time.Millisecond))
	if !total.ok() {
		return errors.New("failed")
	}
	return nil
}

// environment is what test binaries run with: seldom collections, for one, as the CPU is emulated.
func environment(executable, harm string, tools artifacts.Tree, soak int) []string {
	return []string{
		"TMPDIR=/tmp", "GOGC=400", executableVariable + "=" + executable, harmVariable + "=" + harm, fmt.Sprintf("%s=%d", soakVariable, soak),
		"PATH=" + tools.SearchPath() + ":" + os.Getenv("PATH"), "LD_LIBRARY_PATH=" + tools.LibraryPath(),
		"XTABLES_LIBDIR=" + filepath.Join(tools.Dir, xtables),
	}
}

// xtables is where Debian's iptables has its extensions.
const xtables = "usr/lib/x86_64-linux-gnu/xtables"

func boot(ctx context.Context, cache *artifacts.Cache, o options, work string, tests []testBinary, keep ...string) (instance.Instance, error) {
	agent, err := instance.Agent(ctx, cache)
	if err != nil {
		return nil, err
	}
	kernel, err := cache.Kernel(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range tests {
		keep = append(keep, t.path, t.dir)
	}
	return instance.StartVM(ctx, instance.Spec{
		ID: fmt.Sprintf("kerneltest-%d", os.Getpid()), Name: "kerneltest", StateDir: filepath.Join(work, "state"), Agent: agent, Kernel: kernel,
		MemoryMiB: o.memoryMiB, CPUs: o.cpus, MaxENIs: 1, Modules: modules, Keep: keep,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
}
