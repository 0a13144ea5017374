package recall

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/ipamd/store"
)

var (
	sandbox = store.Key{ContainerID: "c1", IfName: "eth0"}
	address = netip.MustParseAddr("192.168.12.15")
)

// good is as containerd's libcni writes it.
const good = `{"kind":"cniCacheV1","containerId":"c1","config":"eyJjbmlWZXJzaW9uIjoiMS4xLjAifQ==","ifName":"eth0","networkName":"aws-cni","netns":"/var/run/netns/cni-1",
"cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","web-0"],["K8S_POD_INFRA_CONTAINER_ID","c1"],["K8S_POD_UID","u1"]],
"capabilityArgs":{"dns":{"Servers":["10.0.0.10"]},"portMappings":[]},
"result":{"cniVersion":"1.0.0","dns":{},"interfaces":[{"mac":"02:00:00:00:00:01","name":"eni1"},{"mac":"02:00:00:00:00:02","name":"eth0","sandbox":"/var/run/netns/cni-1"}],
"ips":[{"address":"192.168.12.15/32","gateway":"169.254.1.1","interface":1}],"routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1"}]}}`

func TestAResultTellsWhosTheSandboxIs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "aws-cni-c1-eth0")
	if _, err := Allocation(dir, sandbox, address); !errors.Is(err, ErrNotCached) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	then := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	if err := os.Chtimes(path, then, then); err != nil {
		t.Fatal(err)
	}
	al, err := Allocation(dir, sandbox, address)
	if err != nil || al.Key != sandbox || al.Network != "aws-cni" || al.Pod != (store.Pod{Namespace: "shop", Name: "web-0", UID: "u1"}) || !al.Since.Equal(then) ||
		al.Regular.Address != address || al.Regular.Settled() {
		t.Errorf("%+v %+v: %v", al, al.Regular, err)
	}
}

func TestWhatIsNotThatSandboxsResultIsRefused(t *testing.T) {
	for name, change := range map[string]func(string) string{
		"empty":             func(string) string { return "" },
		"cut short":         func(s string) string { return s[:len(s)-30] },
		"no object":         func(string) string { return `[]` },
		"another kind":      replace("cniCacheV1", "cniCacheV2"),
		"another sandbox":   replace(`"containerId":"c1"`, `"containerId":"c2"`),
		"another network":   replace(`"networkName":"aws-cni"`, `"networkName":"other"`),
		"an interface":      replace(`"ifName":"eth0"`, `"ifName":"eth1"`),
		"another address":   replace("192.168.12.15/32", "192.168.12.16/32"),
		"no address":        replace(`"ips"`, `"ip"`),
		"no pod":            replace("K8S_POD_NAME\"", "K8S_POD\""),
		"no namespace":      replace("K8S_POD_NAMESPACE", "K8S_NAMESPACE"),
		"odd arguments":     replace(`["K8S_POD_NAME","web-0"]`, `["K8S_POD_NAME"]`),
		"wrong arguments":   replace(`"cniArgs":[`, `"cniArgs":[7,`),
		"more than we read": func(s string) string { return s + strings.Repeat(" ", mostBytes) },
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "aws-cni-c1-eth0"), []byte(change(good)), 0o600); err != nil {
			t.Fatal(err)
		}
		if al, err := Allocation(dir, sandbox, address); err == nil || errors.Is(err, ErrNotCached) {
			t.Errorf("%s: %+v, %v", name, al, err)
		}
	}
}

func replace(old, new string) func(string) string {
	return func(s string) string { return strings.Replace(s, old, new, 1) }
}

func TestNoOtherFileIsRead(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "aws-cni-c1-eth0"), 0o755); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "result")
	if err := os.WriteFile(outside, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "aws-cni-c2-eth0")); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"c1", "c2", "../" + filepath.Base(filepath.Dir(outside)) + "/result", "a/b"} {
		if al, err := Allocation(dir, store.Key{ContainerID: id, IfName: "eth0"}, address); err == nil || errors.Is(err, ErrNotCached) {
			t.Errorf("%s: %+v, %v", id, al, err)
		}
	}
}

func FuzzResult(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"kind":"cniCacheV1","containerId":"c1","ifName":"eth0","networkName":"aws-cni","cniArgs":[["K8S_POD_NAME"],[],["K8S_POD_NAMESPACE","a","b"]],"result":{"ips":[{"address":"::/0"},{}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		pod, err := parse(b, sandbox, address)
		if (err == nil) != (pod.Namespace != "" && pod.Name != "") {
			t.Errorf("%+v, %v", pod, err)
		}
		if err != nil && fmt.Sprint(err) == "" {
			t.Error("an error without words")
		}
	})
}
