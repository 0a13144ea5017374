package takeover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// legacyMost bounds one run of the host's iptables, which waits for its lock.
const legacyMost = 20 * time.Second

// tools are the host's programs for iptables-legacy: the names that say so first, then those that are it on older hosts.
var tools = []struct{ save, restore string }{{"iptables-legacy-save", "iptables-legacy-restore"}, {"iptables-save", "iptables-restore"}}

var toolDirs = []string{"/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"}

// legacyNames lists the tables of iptables-legacy that this network namespace has.
const legacyNames = "/proc/thread-self/net/ip_tables_names"

// legacy names the tables of iptables-legacy in which upstream's rules may be. Which they have can't be read without it.
func legacy() string {
	b, err := os.ReadFile(legacyNames)
	if err != nil {
		return "" // the kernel has none
	}
	var here []string
	for name := range strings.FieldsSeq(string(b)) {
		if places[name] != nil {
			here = append(here, name)
		}
	}
	if len(here) == 0 {
		return ""
	}
	return "what may be in iptables-legacy's tables " + strings.Join(here, ", ")
}

// RemoveLegacyNAT removes what upstream's agent has left in iptables-legacy, by the programs of the host, whose file system is
// at root: netlink doesn't reach those tables. As with RemoveNAT this agent's own rules must be in place. removed says what
// went, left what stays and why. A host without such tables needs no program.
func RemoveLegacyNAT(ctx context.Context, root string) (removed []string, left string, err error) {
	what := legacy()
	if what == "" {
		return nil, "", nil
	}
	host := exe{root}
	save, restore, ok := host.find(ctx)
	if !ok {
		return nil, what + ": there is no iptables-legacy on this host to look with", nil
	}
	text, err := host.run(ctx, save, nil)
	if err != nil {
		return nil, what, err
	}
	undo, removed := legacyRemoval(string(text))
	if undo == "" {
		return nil, "", nil
	}
	if _, err := host.run(ctx, restore, []byte(undo), "--noflush", "--wait", "10"); err != nil {
		return nil, what, err
	}
	return removed, "", nil
}

// exe runs programs of the host.
type exe struct{ root string }

func (h exe) find(ctx context.Context) (save, restore string, ok bool) {
	for _, t := range tools {
		for _, dir := range toolDirs {
			save, restore := filepath.Join(dir, t.save), filepath.Join(dir, t.restore)
			if !h.has(save) || !h.has(restore) {
				continue
			}
			// An iptables of these names may be the one on nf_tables: it would show other tables.
			version, err := h.run(ctx, save, nil, "--version")
			if err == nil && !bytes.Contains(version, []byte("nf_tables")) {
				return save, restore, true
			}
		}
	}
	return "", "", false
}

// has does not follow links: they may be absolute, and lead out of the root.
func (h exe) has(path string) bool {
	_, err := os.Lstat(filepath.Join(h.root, path))
	return !errors.Is(err, fs.ErrNotExist) && err == nil
}

func (h exe) run(ctx context.Context, path string, stdin []byte, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, legacyMost)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	if h.root != "/" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: h.root}
	}
	cmd.Dir, cmd.Env, cmd.Stdin = "/", []string{"PATH=" + strings.Join(toolDirs, ":")}, bytes.NewReader(stdin)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("run the host's %s %q: %w: %.300s", path, args, err, complaint.Bytes())
	}
	return out.Bytes(), nil
}

var (
	savedComment = regexp.MustCompile(`--comment (?:"((?:[^"\\]|\\.)*)"|(\S+))`)
	savedTarget  = regexp.MustCompile(` -[jg] (\S+)`)
)

// legacyRemoval makes of iptables-save's text the input of iptables-restore --noflush that removes upstream's rules and
// chains, each table at once. It is empty where there are none. A chain that somebody else's rule leads to is only emptied.
func legacyRemoval(saved string) (restore string, removed []string) {
	var out strings.Builder
	table, own, wanted, deletions := "", []string(nil), map[string]bool{}, []string(nil)
	flush := func() {
		if places[table] == nil || len(own)+len(deletions) == 0 {
			return
		}
		fmt.Fprintf(&out, "*%s\n", table)
		for _, c := range own { // what is declared anew is emptied
			fmt.Fprintf(&out, ":%s - [0:0]\n", c)
		}
		for _, d := range deletions {
			fmt.Fprintf(&out, "-D %s\n", d)
			removed = append(removed, "rule "+d+" of "+table)
		}
		for _, c := range own {
			if !wanted[c] {
				fmt.Fprintf(&out, "-X %s\n", c)
				removed = append(removed, "chain "+c+" of "+table)
			}
		}
		out.WriteString("COMMIT\n")
	}
	for line := range strings.Lines(saved) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "*"):
			table, own, wanted, deletions = line[1:], nil, map[string]bool{}, nil
		case line == "COMMIT":
			flush()
			table = ""
		case strings.HasPrefix(line, ":"):
			if name, _, ok := strings.Cut(line[1:], " "); ok && isChain(name) {
				own = append(own, name)
			}
		case strings.HasPrefix(line, "-A "):
			rule := line[len("-A "):]
			chain, spec, _ := strings.Cut(rule, " ")
			if isChain(chain) {
				continue // emptied with its chain
			}
			if slices.Contains(places[table], chain) && isComment(commentIn(spec)) {
				deletions = append(deletions, rule)
			} else if m := savedTarget.FindStringSubmatch(" " + spec); m != nil && isChain(m[1]) {
				wanted[m[1]] = true
			}
		}
	}
	return out.String(), removed
}

func commentIn(spec string) string {
	m := savedComment.FindStringSubmatch(spec)
	if m == nil {
		return ""
	}
	return m[1] + m[2]
}
