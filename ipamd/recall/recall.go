// Package recall reads what the container runtime has cached of a sandbox. An agent that has lost its memory learns from it which
// pods the sandboxes are of that the kernel shows.
package recall

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/branchline-cni/branchline/ipamd/store"
)

// Dir is where runtimes keep the results of ADD: the default of libcni, which containerd and CRI-O use.
const Dir = "/var/lib/cni/results"

const (
	kind    = "cniCacheV1" // the one format that is known
	network = "aws-cni"
	// mostBytes bounds what is read: a result and the configuration that it was made by have some kilobytes.
	mostBytes = 1 << 20
)

// ErrNotCached: the runtime has no result of the sandbox there. Its ADD may be under way, or the folder is another one.
var ErrNotCached = errors.New("the runtime has no result of it")

// cached is a file of libcni's cache.
type cached struct {
	Kind        string     `json:"kind"`
	ContainerID string     `json:"containerId"`
	IfName      string     `json:"ifName"`
	Network     string     `json:"networkName"`
	Args        [][]string `json:"cniArgs"` // CNI_ARGS, as pairs
	Result      struct {
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
	} `json:"result"`
}

// Allocation is what the runtime knows of a sandbox with a regular pod's address: whose it is, and since when. It fails where the
// result is another sandbox's, or has another address. What the address is of, which the runtime does not know, is open: see
// store.Settle.
func Allocation(dir string, k store.Key, addr netip.Addr) (al store.Allocation, err error) {
	name := strings.Join([]string{network, k.ContainerID, k.IfName}, "-")
	if filepath.Base(name) != name {
		return al, fmt.Errorf("sandbox %.80q can't be the name of a file", k)
	}
	path := filepath.Join(dir, name)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return al, fmt.Errorf("%w: %s", ErrNotCached, path)
	}
	if err != nil {
		return al, fmt.Errorf("look at the runtime's result: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > mostBytes {
		return al, fmt.Errorf("the runtime's result %s is no regular file of at most %d bytes", path, mostBytes)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return al, fmt.Errorf("read the runtime's result: %w", err)
	}
	pod, err := parse(b, k, addr)
	if err != nil {
		return al, fmt.Errorf("the runtime's result %s: %w", path, err)
	}
	return store.Allocation{
		Key: k, Network: network, Pod: pod, Since: info.ModTime().UTC(),
		Regular: &store.Regular{Address: addr, Device: -1, RouteTable: -1},
	}, nil
}

func parse(b []byte, k store.Key, addr netip.Addr) (pod store.Pod, err error) {
	var c cached
	if err := json.Unmarshal(b, &c); err != nil {
		return pod, fmt.Errorf("not JSON as it should be: %w", err)
	}
	if c.Kind != kind {
		return pod, fmt.Errorf("its kind %.40q is not known; %s is", c.Kind, kind)
	}
	if of := (store.Key{ContainerID: c.ContainerID, IfName: c.IfName}); of != k || c.Network != network {
		return pod, fmt.Errorf("it is of sandbox %.80q, network %.40q", of, c.Network)
	}
	var addresses []netip.Addr
	for _, ip := range c.Result.IPs {
		if p, err := netip.ParsePrefix(ip.Address); err == nil {
			addresses = append(addresses, p.Addr())
		}
	}
	if !slices.Contains(addresses, addr) {
		return pod, fmt.Errorf("it has the addresses %v, and the host has wired %s for it", addresses, addr)
	}
	for _, a := range c.Args {
		if len(a) != 2 {
			continue
		}
		switch a[0] {
		case "K8S_POD_NAMESPACE":
			pod.Namespace = a[1]
		case "K8S_POD_NAME":
			pod.Name = a[1]
		case "K8S_POD_UID":
			pod.UID = a[1]
		}
	}
	if pod.Namespace == "" || pod.Name == "" {
		return store.Pod{}, errors.New("it names no pod")
	}
	return pod, nil
}
