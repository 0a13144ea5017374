package demo

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/branchline-cni/branchline/lab/kube"
)

// The document's table and the rows that the walk-through plays are the same.
func TestTheDocumentedTableOfPathsIsTheOneThatIsPlayed(t *testing.T) {
	b, err := os.ReadFile("../../docs/node-network.md")
	if err != nil {
		t.Fatal(err)
	}
	want := pathsMarkdown(pathTable)
	head, _, _ := strings.Cut(want, "\n")
	_, after, found := strings.Cut(string(b), head+"\n")
	if !found {
		t.Fatalf("docs/node-network.md has no table with the head %q", head)
	}
	table, _, _ := strings.Cut(after, "\n\n")
	if got := head + "\n" + table + "\n"; got != want {
		t.Errorf("docs/node-network.md has\n%s\nand proxytable.go says\n%s", got, want)
	}
}

// Each path is played once in each mode, for a pod of each kind.
func TestEachPathIsPlayedOnceInEachMode(t *testing.T) {
	paths := map[string]bool{}
	for _, r := range pathTable {
		paths[r.path] = true
	}
	p := &pathsWalk{endpoints: endpoints[:], regular: [2]string{regularPod, secondaryPod}}
	for _, mode := range kube.ProxyModes {
		calls := map[call]int{}
		for _, c := range p.callsOf(mode) {
			calls[c.call]++
			if c.port == 0 {
				t.Errorf("%s: %s has no port", mode, c.call)
			}
		}
		if len(calls) != len(paths)*len(endpoints) {
			t.Errorf("%s: %d calls of %d paths", mode, len(calls), len(paths))
		}
		for c, n := range calls {
			if n != 1 {
				t.Errorf("%s: %s is made %d times", mode, c, n)
			}
		}
	}
}

func TestCallsAreReadBackAsTheyWereMade(t *testing.T) {
	calls := []pathCall{{call: call{from: farPod, to: strictPod, port: 31100}}, {call: call{from: farPod, to: regularPod, service: true, port: 8102}}}
	script := callScript(calls, func(c call) string {
		if c.service {
			return "2001:db8::1"
		}
		return "192.0.2.1"
	})
	for _, want := range []string{"n=0 ask http://192.0.2.1:31100/cgi-bin/who &\n", "n=1 ask http://[2001:db8::1]:8102/cgi-bin/who &\n"} {
		if !strings.Contains(script, want) {
			t.Errorf("no %q in\n%s", want, script)
		}
	}
	got, err := readCalls(3, "1 [::ffff:192.0.2.7]\n0 nobody\n2 [2001:db8::7]\n")
	if want := []netip.Addr{{}, netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}; err != nil || !slices.Equal(got, want) {
		t.Errorf("read %v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"", "0 192.0.2.1\n", "0 nobody\n1 here\n", "0 nobody\n1 nobody\n2 nobody\n", "sh: syntax error\n"} {
		if got, err := readCalls(2, bad); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
}

func TestACallIsJudgedByTheAddressThatThePodSaw(t *testing.T) {
	p := &pathsWalk{address: map[string]string{farPod: "192.168.0.8", hostPod: "192.168.0.6"}}
	far, node := netip.MustParseAddr("192.168.0.8"), netip.MustParseAddr("192.168.0.6")
	for _, c := range []struct {
		want caller
		seen netip.Addr
		fine bool
	}{
		{theCaller, far, true}, {theCaller, node, false}, {theCaller, netip.Addr{}, false},
		{asTheNode, node, true}, {asTheNode, far, false}, {asTheNode, netip.Addr{}, false},
		{notReachable, netip.Addr{}, true}, {notReachable, far, false},
	} {
		if err := p.judgeCall(pathCall{call{from: farPod, to: strictPod, port: 1}, c.want}, c.seen); (err == nil) != c.fine {
			t.Errorf("%s, seen as %s: %v", c.want, c.seen, err)
		}
	}
}
