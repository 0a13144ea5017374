package product

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Package is what the import rules look at: a package of the module and what it
// imports directly, tests not counted.
type Package struct {
	ImportPath string
	Imports    []string
}

// ErrImport is wrapped by each violation that CheckImports returns.
var ErrImport = errors.New("import against the rules")

// The rooms, from top to bottom: a room imports only rooms further down, and
// none of its own row but itself.
var rows = [][]string{
	{"cmd"},
	{"plugins", "ipamd", "controller", "lab"},
	{"policy", "rpc", "api", "aws", "logfile"},
}

// shippingRooms is what goes into the executables that users run.
var shippingRooms = []string{"plugins", "ipamd", "controller", "policy", "rpc", "api", "aws", "logfile"}

// labCommand is the only program that may use the lab.
const labCommand = Module + "/cmd/vpclab"

// LoadPackages lists the module's packages with their imports, and what each
// program links, by its package's path.
func LoadPackages(ctx context.Context, root string, programs ...Program) (pkgs []Package, links map[string][]string, err error) {
	out, err := goCommand(ctx, root, []string{"GOOS=linux", "CGO_ENABLED=0"}, "list", "-tags", Tags, "-json=ImportPath,Imports", "./...")
	if err != nil {
		return nil, nil, fmt.Errorf("list the module's packages: %w", err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p Package
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, nil, fmt.Errorf("list the module's packages: %w", err)
		}
		pkgs = append(pkgs, p)
	}
	links = map[string][]string{}
	for _, p := range programs {
		out, err := goCommand(ctx, root, []string{"GOOS=linux", "CGO_ENABLED=0"}, "list", "-tags", Tags, "-deps", "./"+p.Package)
		if err != nil {
			return nil, nil, fmt.Errorf("list what %s links: %w", p.Name, err)
		}
		links[p.Package] = strings.Fields(string(out))
	}
	return pkgs, links, nil
}

// CheckImports returns one error per import that is against the design: arrows
// point down only, plugins never imports ipamd, nothing that ships uses the lab,
// and a program links none of what it must not.
func CheckImports(pkgs []Package, links map[string][]string, programs ...Program) []error {
	var errs []error
	for _, p := range pkgs {
		from, ok := room(p.ImportPath)
		if !ok {
			continue
		}
		for _, i := range p.Imports {
			to, ok := room(i)
			if !ok || to == from {
				continue
			}
			switch rf, rt := row(from), row(to); {
			case to == "lab" && slices.Contains(shippingRooms, from),
				to == "lab" && from == "cmd" && p.ImportPath != labCommand:
				errs = append(errs, violation(p.ImportPath, i, "nothing that ships uses the lab"))
			case to == "build" || to == "scripts" || to == "test":
				if from != "build" && from != "scripts" && from != "test" && from != "lab" && p.ImportPath != labCommand {
					errs = append(errs, violation(p.ImportPath, i, "nothing that ships uses what builds or tests it"))
				}
			case rf < 0 || rt < 0:
			case rt < rf:
				errs = append(errs, violation(p.ImportPath, i, "arrows point down only"))
			// The lab stands beside the product and runs it as programs, not as packages.
			case rt == rf && rf < len(rows)-1:
				errs = append(errs, violation(p.ImportPath, i, "rooms of one row do not know each other"))
			}
		}
	}
	for _, prog := range programs {
		deps := links[prog.Package]
		if len(deps) == 0 {
			errs = append(errs, fmt.Errorf("%s: what it links is not known: %w", prog.Name, ErrImport))
		}
		for _, d := range deps {
			if r, ok := room(d); ok && (r == "lab" || r == "build" || r == "scripts" || r == "test") {
				errs = append(errs, violation(prog.Name, d, "nothing that ships uses the lab or what builds it"))
			}
			for _, no := range prog.NoLink {
				if d == strings.TrimSuffix(no, "/") || strings.HasPrefix(d, strings.TrimSuffix(no, "/")+"/") {
					errs = append(errs, violation(prog.Name, d, "it must stay small and start fast"))
				}
			}
		}
	}
	return errs
}

func violation(from, to, why string) error {
	return fmt.Errorf("%s imports %s (%s): %w", from, to, why, ErrImport)
}

// room is the first folder below the module's root.
func room(importPath string) (string, bool) {
	rest, ok := strings.CutPrefix(importPath, Module+"/")
	if !ok {
		return "", false
	}
	name, _, _ := strings.Cut(rest, "/")
	return name, true
}

func row(room string) int {
	return slices.IndexFunc(rows, func(r []string) bool { return slices.Contains(r, room) })
}
