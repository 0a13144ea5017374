//go:build kernel

package takeover

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// aHost is a node's file system as the init container sees it: this machine's, with the programs of iptables-legacy where hosts
// have them. take takes the programs away.
func aHost(t *testing.T) (root string, take func()) {
	t.Helper()
	root = t.TempDir()
	if err := unix.Mount("/", root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	// Else what is unmounted there is unmounted everywhere.
	if err := unix.Mount("", root, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	var made []string
	for _, name := range []string{"iptables-legacy-save", "iptables-legacy-restore"} {
		real, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range toolDirs {
			if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
				t.Fatalf("this machine has a %s of its own in %s: run these tests by go run ./test/kernel", name, dir)
			}
		}
		script := fmt.Sprintf("#!/bin/sh\nLD_LIBRARY_PATH=%s XTABLES_LIBDIR=%s exec %s \"$@\"\n", os.Getenv("LD_LIBRARY_PATH"), os.Getenv("XTABLES_LIBDIR"), real)
		file := filepath.Join("/usr/local/sbin", name)
		if err := os.WriteFile(file, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		made = append(made, file)
	}
	take = func() {
		for _, f := range made {
			_ = os.Remove(f)
		}
	}
	t.Cleanup(take)
	return root, take
}

func removeLegacy(t *testing.T, ns *nstest.NS, root string) (removed []string, left string) {
	t.Helper()
	ns.Do(t, func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		removed, left, err = RemoveLegacyNAT(ctx, root)
		return err
	})
	return removed, left
}

// byTable are the lines of each table: tables are told in the order in which they came into use.
func byTable(lines []string) map[string][]string {
	out, table := map[string][]string{}, ""
	for _, l := range lines {
		if strings.HasPrefix(l, "*") {
			table = l
		}
		out[table] = append(out[table], l)
	}
	return out
}

func TestUpstreamsRulesInIPTablesLegacyGoByTheHostsOwnProgram(t *testing.T) {
	root, take := aHost(t)
	want := nstest.New(t)
	applyBy(t, want, "iptables-legacy-restore", othersRules)
	node := nstest.New(t)
	if removed, left := removeLegacy(t, node, root); len(removed) > 0 || left != "" {
		t.Errorf("of nothing: removed %q, left %q", removed, left)
	}
	applyBy(t, node, "iptables-legacy-restore", othersRules[:3])
	applyBy(t, node, "iptables-legacy-restore", upstreamRules)
	applyBy(t, node, "iptables-legacy-restore", othersRules[3:])
	removed, left := removeLegacy(t, node, root)
	if len(removed) != 3+6 || left != "" { // three chains, and six rules in chains of iptables' own
		t.Errorf("removed %q, left %q", removed, left)
	}
	if got, want := byTable(savedBy(t, node, "iptables-legacy-save")), byTable(savedBy(t, want, "iptables-legacy-save")); !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("there is\n%q\nwant\n%q", got, want)
	}
	if removed, left := removeLegacy(t, node, root); len(removed) > 0 || left != "" {
		t.Errorf("again: removed %q, left %q", removed, left)
	}
	take()
	if removed, left := removeLegacy(t, node, root); len(removed) > 0 || !strings.Contains(left, "no iptables-legacy on this host") {
		t.Errorf("without the programs: removed %q, left %q", removed, left)
	}
}
