package product

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Module is the path of the product's Go module.
const Module = "github.com/branchline-cni/branchline"

// Tags are the Go build tags of everything that ships, separated by commas.
//
// With grpcnotrace, gRPC leaves out golang.org/x/net/trace and with it
// html/template, whose method calls by name keep the linker from dropping any
// exported method: ipamd would grow from 27 to more than twice that, most of it
// EC2 calls that nobody makes.
const Tags = "grpcnotrace"

// noTemplates is what no program links, for the reason given at Tags.
var noTemplates = []string{"golang.org/x/net/trace", "html/template", "text/template"}

// Program is one executable that ships.
type Program struct {
	Name     string
	Package  string   // below the module's root
	MaxBytes int64    // stripped; 0 means no budget
	NoLink   []string // import path prefixes that it must not link, and why it matters is said once below
}

// Programs are all executables that ship.
//
// The CNI executable starts once or twice per pod: client-go or the AWS SDK
// would cost each pod milliseconds and the node tens of megabytes, the gRPC
// library more than all that the executable does in the kernel. The agent runs on
// each node, and most pages of its executable are resident: a clientset, or
// controller-runtime's client, would bring the types of all API groups, a third
// more of it.
func Programs() []Program {
	return []Program{
		{
			Name: "aws-cni", Package: "cmd/aws-cni", MaxBytes: 11_000_000,
			NoLink: append([]string{
				"google.golang.org/grpc", "net/http", "k8s.io/client-go", "k8s.io/api", "k8s.io/apimachinery", "sigs.k8s.io/controller-runtime", "github.com/aws/",
			}, noTemplates...),
		},
		{
			Name: "egress-cni", Package: "cmd/egress-cni", MaxBytes: 7_000_000,
			NoLink: append([]string{
				"google.golang.org/grpc", "net/http", "k8s.io/client-go", "k8s.io/api", "k8s.io/apimachinery", "sigs.k8s.io/controller-runtime", "github.com/aws/",
			}, noTemplates...),
		},
		{Name: "ipamd", Package: "cmd/ipamd", MaxBytes: 28_000_000, NoLink: append([]string{
			"k8s.io/client-go/kubernetes", "k8s.io/client-go/discovery", "sigs.k8s.io/controller-runtime",
		}, noTemplates...)},
		{Name: "vpc-controller", Package: "cmd/vpc-controller", NoLink: noTemplates},
	}
}

// Architectures are the values of GOARCH that the product is built for.
func Architectures() []string { return []string{"amd64", "arm64"} }

// Binary is one executable, built.
type Binary struct {
	Program Program
	Arch    string
	Path    string
	Bytes   int64
}

// Build builds programs for one architecture into out/NAME: static, stripped,
// without paths of the machine, the same bytes wherever it is done.
func Build(ctx context.Context, root, arch, version, out string, programs ...Program) ([]Binary, error) {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, fmt.Errorf("build for %s: %w", arch, err)
	}
	out, err := filepath.Abs(out)
	if err != nil {
		return nil, fmt.Errorf("build for %s: %w", arch, err)
	}
	var built []Binary
	for _, p := range programs {
		b := Binary{Program: p, Arch: arch, Path: filepath.Join(out, p.Name)}
		ldflags := "-s -w -X " + Module + "/rpc.Version=" + version + " -X " + Module + "/plugins/egress.Version=" + version
		pkg := p.Package
		if !strings.Contains(strings.SplitN(pkg, "/", 2)[0], ".") { // of ours, not of a dependency
			pkg = "./" + pkg
		}
		_, err := goCommand(ctx, root, []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch},
			"build", "-tags", Tags, "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o", b.Path, pkg)
		if err != nil {
			return nil, fmt.Errorf("build %s for %s: %w", p.Name, arch, err)
		}
		info, err := os.Stat(b.Path)
		if err != nil {
			return nil, fmt.Errorf("build %s for %s: %w", p.Name, arch, err)
		}
		b.Bytes = info.Size()
		built = append(built, b)
	}
	return built, nil
}

// Errors that Check returns, wrapped.
var (
	ErrTooLarge  = errors.New("larger than its budget")
	ErrNotStatic = errors.New("not statically linked")
	ErrNotStrip  = errors.New("not stripped")
)

// Check verifies what Build promises of one executable, and its size.
func (b Binary) Check() error {
	f, err := elf.Open(b.Path)
	if err != nil {
		return fmt.Errorf("look at %s: %w", b.Path, err)
	}
	defer f.Close()
	var errs []error
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			errs = append(errs, fmt.Errorf("%s for %s: %w", b.Program.Name, b.Arch, ErrNotStatic))
		}
	}
	if f.Section(".symtab") != nil || f.Section(".debug_info") != nil {
		errs = append(errs, fmt.Errorf("%s for %s: %w", b.Program.Name, b.Arch, ErrNotStrip))
	}
	if want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[b.Arch]; f.Machine != want {
		errs = append(errs, fmt.Errorf("%s is for machine %s, not %s", b.Path, f.Machine, want))
	}
	if max := b.Program.MaxBytes; max > 0 && b.Bytes > max {
		errs = append(errs, fmt.Errorf("%s for %s has %d bytes where %d are allowed: %w", b.Program.Name, b.Arch, b.Bytes, max, ErrTooLarge))
	}
	return errors.Join(errs...)
}

// goCommand runs the go command in root and returns what it printed.
func goCommand(ctx context.Context, root string, env []string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}
