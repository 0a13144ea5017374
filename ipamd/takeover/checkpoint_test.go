package takeover

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/ipamd/store"
)

const good = `{"version":"vpc-cni-ipam/1","allocations":[
{"networkName":"aws-cni","containerID":"c1","ifName":"eth0","ipv4":"192.168.12.15","allocationTimestamp":1647904840550836685,"metadata":{"k8sPodNamespace":"kube-system","k8sPodName":"coredns-1","interfacesCount":1}},
{"networkName":"_migrated-from-cri","containerID":"c2","ifName":"unknown","ipv4":"192.168.16.112","allocationTimestamp":1647904840496172364,"metadata":{"k8sPodNamespace":"shop","k8sPodName":"web"}},
{"networkName":"aws-cni","containerID":"c3","ifName":"eth0","ipv6":"2001:db8::5","allocationTimestamp":1647904840496172364,"metadata":{"k8sPodNamespace":"shop","k8sPodName":"six"}}]}`

func TestACheckpointIsReadWithWhatItTellsOfEachPod(t *testing.T) {
	c, err := parse([]byte(good))
	if err != nil || len(c.Allocations) != 3 || len(c.Unusable) != 0 {
		t.Fatalf("%+v, %v", c, err)
	}
	first, migrated, six := c.Allocations[0], c.Allocations[1], c.Allocations[2]
	if first.Key != (store.Key{ContainerID: "c1", IfName: "eth0"}) || first.Network != "aws-cni" || first.Pod.String() != "kube-system/coredns-1" || first.Pod.UID != "" ||
		first.Regular.Address.String() != "192.168.12.15" || first.Regular.Settled() || first.Since.Format(time.RFC3339) != "2022-03-21T23:20:40Z" {
		t.Errorf("%+v %+v", first, first.Regular)
	}
	if migrated.Key != (store.Key{ContainerID: "c2", IfName: "eth0"}) || migrated.Network != "aws-cni" {
		t.Errorf("what upstream had taken over itself: %+v", migrated)
	}
	if six.Regular.Address.String() != "2001:db8::5" {
		t.Errorf("%+v", six.Regular)
	}
}

func TestABadCheckpointIsRefusedWholeAndABadEntryAlone(t *testing.T) {
	for name, text := range map[string]string{
		"not JSON": "x", "cut short": good[:len(good)-20], "another version": `{"version":"vpc-cni-ipam/2","allocations":[]}`, "no version": `{}`,
		"other types": `{"version":"vpc-cni-ipam/1","allocations":[{"containerID":7}]}`, "empty": "",
	} {
		if c, err := parse([]byte(text)); err == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
	const ok = `{"networkName":"n","containerID":"c","ifName":"eth0","ipv4":"10.0.0.1","metadata":{"k8sPodNamespace":"a","k8sPodName":"b"}}`
	for name, entry := range map[string]string{
		"no sandbox":    `{"ifName":"eth0","ipv4":"10.0.0.2","metadata":{"k8sPodNamespace":"a","k8sPodName":"b"}}`,
		"no interface":  `{"containerID":"d","ipv4":"10.0.0.2","metadata":{"k8sPodNamespace":"a","k8sPodName":"b"}}`,
		"no address":    `{"containerID":"d","ifName":"eth0","metadata":{"k8sPodNamespace":"a","k8sPodName":"b"}}`,
		"other family":  `{"containerID":"d","ifName":"eth0","ipv4":"2001:db8::1","metadata":{"k8sPodNamespace":"a","k8sPodName":"b"}}`,
		"a zone":        `{"containerID":"d","ifName":"eth0","ipv6":"fe80::1%eth0","metadata":{"k8sPodNamespace":"a","k8sPodName":"b"}}`,
		"no pod":        `{"containerID":"d","ifName":"eth0","ipv4":"10.0.0.2"}`,
		"same address":  `{"containerID":"d","ifName":"eth0","ipv4":"10.0.0.1","metadata":{"k8sPodNamespace":"a","k8sPodName":"b"}}`,
		"mapped as one": `{"containerID":"d","ifName":"eth0","ipv6":"::ffff:10.0.0.2","metadata":{"k8sPodNamespace":"a","k8sPodName":"b"}}`,
		"same sandbox":  `{"containerID":"c","ifName":"eth0","ipv4":"10.0.0.2","metadata":{"k8sPodNamespace":"a","k8sPodName":"b"}}`,
		"migrated twin": `{"containerID":"c","ifName":"unknown","ipv4":"10.0.0.2","metadata":{"k8sPodNamespace":"a","k8sPodName":"b"}}`,
	} {
		c, err := parse([]byte(`{"version":"vpc-cni-ipam/1","allocations":[` + ok + `,` + entry + `]}`))
		if err != nil || len(c.Allocations) != 1 || len(c.Unusable) != 1 {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

func TestReadTellsNoCheckpointFromOneThatCantBeRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.json")
	if _, err := Read(path); !errors.Is(err, ErrNoCheckpoint) {
		t.Error(err)
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || errors.Is(err, ErrNoCheckpoint) {
		t.Errorf("a directory: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Read(path); err != nil || len(c.Allocations) != 3 {
		t.Errorf("%+v, %v", c, err)
	}
	kept, err := KeepAside(path, time.Unix(7, 0))
	if err != nil || kept != path+".unreadable-7" {
		t.Error(kept, err)
	}
	if _, err := Read(path); !errors.Is(err, ErrNoCheckpoint) {
		t.Errorf("kept aside: %v", err)
	}
}

// memory is a disk.
type memory map[string][]byte

func (m memory) ReadFile(name string) ([]byte, error) {
	if b, ok := m[name]; ok {
		return b, nil
	}
	return nil, fs.ErrNotExist
}

func (m memory) WriteSynced(name string, b []byte) error { m[name] = b; return nil }

func (m memory) Rename(from, to string) error { m[to] = m[from]; delete(m, from); return nil }

func (m memory) SyncDir(string) error { return nil }

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"version":"vpc-cni-ipam/1","allocations":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parse(b)
		if err != nil {
			return
		}
		// The store has to take whatever was read, and to read it again: its own check is the invariant.
		disk := memory{}
		s, _, err := store.Open("s", store.Options{Disk: disk})
		if err != nil {
			t.Fatal(err)
		}
		if taken, err := s.TakeOver(c.Allocations, store.TakenOver{}); err != nil || taken != len(c.Allocations) {
			t.Fatalf("%d of %d: %v", taken, len(c.Allocations), err)
		}
		again, kept, err := store.Open("s", store.Options{Disk: disk})
		if err != nil || kept != "" || len(again.View().Allocations) != len(c.Allocations) {
			t.Fatalf("%q %v: %s", kept, err, disk["s"])
		}
	})
}
