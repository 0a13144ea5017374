package takeover

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"github.com/branchline-cni/branchline/ipamd/store"
)

// version is the one format of the checkpoint that is known.
const version = "vpc-cni-ipam/1"

// What upstream's agent wrote for sandboxes that it had itself taken over, of which it did not know more. Its conflist is
// the only network of a node's own, and runtimes call the pod's first interface eth0.
const (
	migratedNetwork, migratedInterface = "_migrated-from-cri", "unknown"
	network, firstInterface            = "aws-cni", "eth0"
)

// mostBytes bounds what is read: a node has a few hundred pods, of some 300 bytes each.
const mostBytes = 16 << 20

// ErrNoCheckpoint: there is no file. The node is new, or was rebooted, or its agent was another one.
var ErrNoCheckpoint = errors.New("there is no checkpoint")

type checkpoint struct {
	Version     string       `json:"version"`
	Allocations []allocation `json:"allocations"`
}

type allocation struct {
	Network     string `json:"networkName"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
	IPv4        string `json:"ipv4"`
	IPv6        string `json:"ipv6"`
	At          int64  `json:"allocationTimestamp"` // nanoseconds since 1970
	Metadata    struct {
		Namespace string `json:"k8sPodNamespace"`
		Name      string `json:"k8sPodName"`
	} `json:"metadata"`
}

// Checkpoint is what was read. Its allocations have neither their pods' UIDs nor the ENIs of their addresses, which the
// file does not tell: see store.Settle.
type Checkpoint struct {
	Allocations []store.Allocation
	// Unusable says of each entry that could not be taken why not. Nothing follows from them but that people are told: what
	// is wired is held by what the kernel shows.
	Unusable []string
}

// Read reads the checkpoint. ErrNoCheckpoint where there is none; any other error means that nothing of it can be used.
func Read(path string) (c Checkpoint, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("%w: %s", ErrNoCheckpoint, path)
	}
	if err != nil {
		return c, fmt.Errorf("look at the checkpoint of the node's former agent: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > mostBytes {
		return c, fmt.Errorf("the checkpoint %s is no regular file of at most %d bytes", path, mostBytes)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read the checkpoint of the node's former agent: %w", err)
	}
	if c, err = parse(b); err != nil {
		return c, fmt.Errorf("the checkpoint %s: %w", path, err)
	}
	return c, nil
}

func parse(b []byte) (c Checkpoint, err error) {
	var file checkpoint
	if err := json.Unmarshal(b, &file); err != nil {
		return c, fmt.Errorf("not JSON as it should be: %w", err)
	}
	if file.Version != version {
		return c, fmt.Errorf("version %.40q is not known; %s is", file.Version, version)
	}
	keys, addresses := map[store.Key]bool{}, map[netip.Addr]bool{}
	for i, a := range file.Allocations {
		al, err := a.allocation()
		switch {
		case err != nil:
		case keys[al.Key]:
			err = fmt.Errorf("sandbox %.80q is in it twice", al.Key)
		case addresses[al.Regular.Address]:
			err = fmt.Errorf("address %s is in it twice", al.Regular.Address)
		}
		if err != nil {
			c.Unusable = append(c.Unusable, fmt.Sprintf("entry %d: %v", i, err))
			continue
		}
		keys[al.Key], addresses[al.Regular.Address] = true, true
		c.Allocations = append(c.Allocations, al)
	}
	return c, nil
}

func (a allocation) allocation() (al store.Allocation, err error) {
	if a.ContainerID == "" || a.IfName == "" {
		return al, errors.New("it names no sandbox")
	}
	if a.Network == migratedNetwork {
		a.Network = network
	}
	if a.IfName == migratedInterface {
		a.IfName = firstInterface
	}
	addr, err := netip.ParseAddr(cmp.Or(a.IPv4, a.IPv6))
	if err != nil || addr.Zone() != "" || addr.Unmap().Is4() != (a.IPv4 != "") {
		return al, fmt.Errorf("its address is %.60q, %.60q", a.IPv4, a.IPv6)
	}
	if a.Metadata.Namespace == "" || a.Metadata.Name == "" {
		return al, fmt.Errorf("sandbox %.80q is of no pod", a.ContainerID)
	}
	return store.Allocation{
		Key: store.Key{ContainerID: a.ContainerID, IfName: a.IfName}, Network: a.Network,
		Pod: store.Pod{Namespace: a.Metadata.Namespace, Name: a.Metadata.Name}, Since: time.Unix(0, a.At).UTC(),
		Regular: &store.Regular{Address: addr.Unmap(), Device: -1, RouteTable: -1},
	}, nil
}

// KeepAside renames a checkpoint that can't be read, so that it is neither read again nor lost.
func KeepAside(path string, now time.Time) (kept string, err error) {
	kept = fmt.Sprintf("%s.unreadable-%d", path, now.Unix())
	if err := os.Rename(path, kept); err != nil {
		return "", fmt.Errorf("keep the unreadable checkpoint aside: %w", err)
	}
	return kept, nil
}
