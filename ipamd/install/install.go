package install

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/branchline-cni/branchline/ipamd/config"
)

// Plugin and EgressPlugin are our executables. Plugin must be among what is installed.
const (
	Plugin       = "aws-cni"
	EgressPlugin = "egress-cni"
)

// Options of the init container's work.
type Options struct {
	SourceDir string // holds the executables; every regular, executable file of it is installed
	SysctlDir string // /proc/sys
	LinksDir  string // /sys/class/net
	Config    *config.Config
	Log       *slog.Logger
}

// Run does the init container's work: executables, then settings.
func Run(o Options) error {
	if err := Executables(o.SourceDir, o.Config.HostBinDir, o.Log); err != nil {
		return err
	}
	vlans, err := filepath.Glob(filepath.Join(o.LinksDir, "vlan.eth.*"))
	if err != nil {
		return fmt.Errorf("look for VLAN links of branch pods in %s: %w", o.LinksDir, err)
	}
	settings := SettingsFor(o.Config, len(vlans) > 0)
	if o.Config.Egress() || o.Config.IPv6 {
		devices, err := filepath.Glob(filepath.Join(o.LinksDir, "*", "device"))
		if err != nil {
			return fmt.Errorf("look for the instance's ENIs in %s: %w", o.LinksDir, err)
		}
		settings = append(settings, ipv6Settings(devices)...)
	}
	return Settings(o.SysctlDir, settings, o.Log)
}

// Executables copies every executable of one directory to the other, each in one step: a runtime that starts one at
// that moment runs the old or the new one, whole. Nothing is ever removed from the target.
func Executables(from, to string, log *slog.Logger) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return fmt.Errorf("list the executables to install: %w", err)
	}
	seen := false
	for _, e := range entries {
		info, err := os.Stat(filepath.Join(from, e.Name()))
		if err != nil {
			return fmt.Errorf("look at %s: %w", filepath.Join(from, e.Name()), err)
		}
		if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if err := copyFile(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return fmt.Errorf("install %s to %s: %w", e.Name(), to, err)
		}
		seen = seen || e.Name() == Plugin
		log.Info("installed", "executable", e.Name(), "directory", to)
	}
	if !seen {
		return fmt.Errorf("install the CNI executables: no %s in %s", Plugin, from)
	}
	return nil
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	return replace(to, 0o755, func(w io.Writer) error {
		_, err := io.Copy(w, src)
		return err
	})
}

// replace writes a temporary file beside the target, syncs it and renames it over the target.
func replace(to string, mode fs.FileMode, write func(io.Writer) error) (err error) {
	dir := filepath.Dir(to)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(to)+".")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(os.Remove(tmp.Name())))
		}
	}()
	err = write(tmp)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), to); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Setting is one kernel setting: a path below /proc/sys and its value.
type Setting struct{ Path, Value string }

// SettingsFor lists the node-wide settings. Reverse-path filtering is loose, because replies of pods on secondary ENIs,
// trunk and VLAN links come in by another link than the main table would send to; its look-ups see the packet's mark
// (src_valid_mark), by which all but branch pods' packets skip the rules of strict pods. Early demux must be off for
// strict branch pods: it would take their answers for the sockets of this node, before routing sends them over the VLAN
// link (TCP), or for nobody at all (UDP: what belongs to a socket is not forwarded). Those that are left after the feature
// was turned off still need it: branchPodsLeft.
func SettingsFor(c *config.Config, branchPodsLeft bool) []Setting {
	s := []Setting{
		{"net/ipv4/ip_forward", "1"},
		{"net/ipv4/conf/all/rp_filter", "2"},
		{"net/ipv4/conf/default/rp_filter", "2"},
		{"net/ipv4/conf/all/src_valid_mark", "1"},
	}
	strict := c.StrictBranchPods() || branchPodsLeft
	tcp, udp := "1", "1"
	if c.TCPEarlyDemux == config.DemuxOff || c.TCPEarlyDemux == config.DemuxAutomatic && strict {
		tcp = "0"
	}
	if strict {
		udp = "0"
	}
	return append(s, Setting{"net/ipv4/udp_early_demux", udp}, Setting{"net/ipv4/tcp_early_demux", tcp})
}

// ipv6Settings are for a node that forwards what its pods send by IPv6, in an IPv6 cluster or by egress-cni. A host that forwards no
// longer listens to its router's advertisements unless it is told to (accept_ra 2): without that the ENIs, the links
// with a device, would lose their default route.
func ipv6Settings(devices []string) []Setting {
	s := []Setting{{"net/ipv6/conf/all/disable_ipv6", "0"}, {"net/ipv6/conf/default/disable_ipv6", "0"}}
	for _, d := range devices {
		s = append(s, Setting{"net/ipv6/conf/" + filepath.Base(filepath.Dir(d)) + "/accept_ra", "2"})
	}
	return append(s, Setting{"net/ipv6/conf/all/forwarding", "1"})
}

// Settings writes the node-wide settings below dir (/proc/sys). All are tried; the error joins those that failed.
func Settings(dir string, settings []Setting, log *slog.Logger) error {
	var errs []error
	for _, s := range settings {
		name := filepath.Join(dir, s.Path)
		if old, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(old)) == s.Value {
			continue
		}
		if err := os.WriteFile(name, []byte(s.Value), 0o644); err != nil {
			errs = append(errs, fmt.Errorf("set %s to %s (the init container must be privileged): %w", name, s.Value, err))
			continue
		}
		log.Info("kernel setting written", "setting", s.Path, "value", s.Value)
	}
	return errors.Join(errs...)
}
