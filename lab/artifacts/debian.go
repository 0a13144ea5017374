package artifacts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrNoPackage is returned when the machine's Debian sources offer no version of
// a package.
var ErrNoPackage = errors.New("no version of the package is offered by this machine's Debian sources")

// pkgVersion is one Debian package at one version.
type pkgVersion struct{ name, version string }

func (p pkgVersion) String() string { return p.name + "=" + p.version }

// Debian is the path of a folder that the packages' files are unpacked into
// (usr/bin/…), exactly those packages, without what they depend on.
func (c *Cache) Debian(ctx context.Context, packages ...string) (string, error) {
	pkgs, err := c.candidates(ctx, packages)
	if err != nil {
		return "", err
	}
	return c.unpack(ctx, strings.Join(packages, ", "), pkgs)
}

// debianClosure is Debian with everything that the packages depend on, as if
// nothing were installed, so that the result does not depend on the machine. The
// base system and packages for which skip is true are left out.
func (c *Cache) debianClosure(ctx context.Context, title string, skip func(name string) bool, packages ...string) (string, error) {
	pkgs, err := c.closure(ctx, packages)
	if err != nil {
		return "", err
	}
	pkgs = slices.DeleteFunc(pkgs, func(p pkgVersion) bool { return inBase(p.name) || skip != nil && skip(p.name) })
	return c.unpack(ctx, title, pkgs)
}

// candidates asks apt which version of each package it would take.
func (c *Cache) candidates(ctx context.Context, packages []string) ([]pkgVersion, error) {
	ask := func() ([]pkgVersion, error) {
		out, err := c.askApt(ctx, append([]string{"apt-cache", "policy", "--"}, packages...)...)
		if err != nil {
			return nil, fmt.Errorf("ask apt for versions of %s: %w", strings.Join(packages, ", "), err)
		}
		return parsePolicy(string(out), packages)
	}
	pkgs, err := ask()
	if !errors.Is(err, ErrNoPackage) {
		return pkgs, err
	}
	if err := c.aptUpdate(ctx); err != nil {
		return nil, err
	}
	return ask()
}

// closure asks apt what it would install on an empty system.
func (c *Cache) closure(ctx context.Context, packages []string) ([]pkgVersion, error) {
	// First the candidates: they fail clearly for a package that is not offered.
	if _, err := c.candidates(ctx, packages); err != nil {
		return nil, err
	}
	argv := append([]string{"apt-get", "--simulate", "-o", "Dir::State::status=/dev/null", "-o", "APT::Install-Recommends=false", "install", "--"}, packages...)
	out, err := c.askApt(ctx, argv...)
	if err != nil {
		return nil, fmt.Errorf("ask apt what %s depends on: %w", strings.Join(packages, ", "), err)
	}
	pkgs := parseSimulation(string(out))
	if len(pkgs) == 0 {
		return nil, fmt.Errorf("ask apt what %s depends on: the simulation names no package:\n%s", strings.Join(packages, ", "), out)
	}
	return pkgs, nil
}

// unpack downloads the packages and unpacks them into one folder.
func (c *Cache) unpack(ctx context.Context, title string, pkgs []pkgVersion) (string, error) {
	names := make([]string, len(pkgs))
	for i, p := range pkgs {
		names[i] = p.String()
	}
	slices.Sort(names)
	return c.entry(ctx, recipe{
		kind: "debian", key: key(names...), title: "Debian packages for " + title, usually: "a download",
		deadline: 20 * time.Minute,
		build: func(ctx context.Context, dir string) error {
			debs, err := os.MkdirTemp(filepath.Join(c.root, "tmp"), "debs-")
			if err != nil {
				return fmt.Errorf("make a folder to download to: %w", err)
			}
			defer os.RemoveAll(debs)
			if err := c.download(ctx, debs, names); err != nil {
				return err
			}
			files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
			if err != nil {
				return err
			}
			if len(files) != len(names) {
				return fmt.Errorf("apt downloaded %d packages where %d were asked for", len(files), len(names))
			}
			for _, f := range files {
				if _, err := (command{argv: []string{"dpkg-deb", "-x", f, dir}}).run(ctx); err != nil {
					return fmt.Errorf("unpack %s: %w", filepath.Base(f), err)
				}
			}
			return nil
		},
	})
}

// download fetches packages into dir. apt's lists may be older than the archive:
// then they are fetched anew, once.
func (c *Cache) download(ctx context.Context, dir string, names []string) error {
	// As root, apt drops to the user _apt, who can't write here; it verifies the same.
	argv := append([]string{"apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", "--"}, names...)
	get := command{dir: dir, env: []string{"LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"}, argv: argv}
	_, err := get.run(ctx)
	if err == nil {
		return nil
	}
	if uerr := c.aptUpdate(ctx); uerr != nil {
		return fmt.Errorf("download Debian packages: %w", errors.Join(err, uerr))
	}
	if _, err := get.run(ctx); err != nil {
		return fmt.Errorf("download Debian packages: %w", err)
	}
	return nil
}

var aptLists sync.Mutex // apt refuses a second update at the same time

func (c *Cache) aptUpdate(ctx context.Context) error {
	aptLists.Lock()
	defer aptLists.Unlock()
	c.out.say("apt's lists of packages are missing or old: apt-get update")
	_, err := command{env: []string{"LC_ALL=C"}, argv: []string{"apt-get", "update", "-q"}}.run(ctx)
	if err != nil {
		return fmt.Errorf("update apt's lists of packages: %w", err)
	}
	return nil
}

// parsePolicy reads what apt-cache policy prints: a paragraph per package that
// apt knows, with its candidate version.
func parsePolicy(out string, packages []string) ([]pkgVersion, error) {
	found := map[string]string{}
	name := ""
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line != "" && line[0] != ' ' && strings.HasSuffix(line, ":"):
			name = strings.TrimSuffix(line, ":")
		case strings.HasPrefix(line, "  Candidate: "):
			if v := strings.TrimPrefix(line, "  Candidate: "); v != "(none)" {
				found[name] = v
			}
		}
	}
	pkgs := make([]pkgVersion, 0, len(packages))
	for _, p := range packages {
		v, ok := found[p]
		if !ok {
			return nil, fmt.Errorf("%s: %w", p, ErrNoPackage)
		}
		pkgs = append(pkgs, pkgVersion{p, v})
	}
	return pkgs, nil
}

// Inst libc6 (2.36-9+deb12u14 Debian:12.11/oldstable [amd64])
var instLine = regexp.MustCompile(`^Inst (\S+) (?:\[\S+\] )?\((\S+) `)

// parseSimulation reads the lines of apt-get --simulate install that say what
// would be installed.
func parseSimulation(out string) []pkgVersion {
	var pkgs []pkgVersion
	for line := range strings.Lines(out) {
		if m := instLine.FindStringSubmatch(line); m != nil {
			pkgs = append(pkgs, pkgVersion{m[1], m[2]})
		}
	}
	return pkgs
}

// inBase says whether every Debian has the package: what dpkg, apt and the C
// library themselves need. A second C library beside the machine's own would not
// match its dynamic linker.
func inBase(name string) bool {
	switch name {
	case "libc6", "libc-bin", "gcc-12-base", "libgcc-s1", "libcrypt1", "dpkg", "tar", "sed", "passwd", "adduser",
		"debconf", "usrmerge", "init-system-helpers", "sysvinit-utils", "perl-base", "lsb-base", "sensible-utils":
		return true
	}
	return strings.HasPrefix(name, "libpam") || strings.HasPrefix(name, "libsemanage") ||
		strings.HasPrefix(name, "libaudit") || name == "libsepol2"
}
