package product

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestImportRules(t *testing.T) {
	for _, tc := range []struct {
		from, to string
		bad      bool
	}{
		{"cmd/aws-cni", "plugins/eni", false},
		{"cmd/ipamd", "aws", false},
		{"cmd/vpclab", "lab", false},
		{"cmd/vpclab", "build/image", false},
		{"cmd/ipamd", "lab/ec2", true},
		{"plugins/eni", "plugins/datapath", false},
		{"plugins/eni", "rpc", false},
		{"plugins/eni", "logfile", false},
		{"plugins/eni", "ipamd/store", true},
		{"ipamd/podeni", "plugins/datapath", true},
		{"ipamd/podeni", "policy", false},
		{"ipamd/podeni", "lab/vpc", true},
		{"ipamd/podeni", "scripts/check", true},
		{"policy", "api/v1beta1", false},
		{"rpc", "ipamd", true},
		{"lab/ec2", "aws", false},
		{"lab/ec2", "controller/ledger", true},
		{"lab/kube", "build/image", false},
		{"scripts/check", "lab/artifacts", false},
	} {
		errs := CheckImports([]Package{{ImportPath: Module + "/" + tc.from, Imports: []string{"fmt", Module + "/" + tc.to}}}, nil)
		if got := len(errs) > 0; got != tc.bad {
			t.Errorf("%s -> %s: %v, want a violation: %v", tc.from, tc.to, errs, tc.bad)
		}
		for _, err := range errs {
			if !errors.Is(err, ErrImport) {
				t.Errorf("%v does not wrap ErrImport", err)
			}
		}
	}
}

func TestWhatAProgramLinksIsChecked(t *testing.T) {
	cni := Program{Name: "aws-cni", Package: "cmd/aws-cni", NoLink: []string{"k8s.io/client-go", "github.com/aws/"}}
	for dep, bad := range map[string]bool{
		"fmt":                                 false,
		"k8s.io/client-go":                    true,
		"k8s.io/client-go/rest":               true,
		"k8s.io/client-gopher":                false,
		"github.com/aws/aws-sdk-go-v2/config": true,
		"github.com/awslabs/x":                false,
		Module + "/rpc":                       false,
		Module + "/lab/vpc":                   true,
	} {
		errs := CheckImports(nil, map[string][]string{cni.Package: {dep}}, cni)
		if got := len(errs) > 0; got != bad {
			t.Errorf("links %s: %v, want a violation: %v", dep, errs, bad)
		}
	}
	if len(CheckImports(nil, nil, cni)) == 0 {
		t.Error("a program of which nothing is known passes")
	}
}

func TestBinaryIsHeldToItsBudgetAndForm(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "main.go")
	if err := os.WriteFile(src, []byte("package main\nfunc main() {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	build := func(name string, flags ...string) Binary {
		out := filepath.Join(dir, name)
		cmd := exec.CommandContext(t.Context(), "go", append(append([]string{"build", "-o", out}, flags...), src)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GO111MODULE=off", "GOFLAGS=")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		info, err := os.Stat(out)
		if err != nil {
			t.Fatal(err)
		}
		return Binary{Program: Program{Name: name, MaxBytes: 50_000_000}, Arch: "amd64", Path: out, Bytes: info.Size()}
	}
	good := build("good", "-ldflags", "-s -w")
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	small := good
	small.Program.MaxBytes = 1000
	if err := small.Check(); !errors.Is(err, ErrTooLarge) {
		t.Errorf("over budget: %v", err)
	}
	other := good
	other.Arch = "arm64"
	if err := other.Check(); err == nil || !strings.Contains(err.Error(), "EM_AARCH64") {
		t.Errorf("wrong machine: %v", err)
	}
	if err := build("symbols").Check(); !errors.Is(err, ErrNotStrip) {
		t.Errorf("with symbols: %v", err)
	}
}
