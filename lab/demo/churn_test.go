package demo

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func watched(t *testing.T, events ...string) map[string]*churnPod {
	t.Helper()
	c := &churn{pods: map[string]*churnPod{}}
	if err := c.read(json.NewDecoder(strings.NewReader(strings.Join(events, "\n")))); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return c.pods
}

func TestAPodOfTheChurnRanOnlyWithAnAddressAndBeforeItsEnd(t *testing.T) {
	pods := watched(t,
		`{"type":"ADDED","object":{"metadata":{"name":"churn-regular-1","uid":"1"},"status":{"phase":"Pending"}}}`,
		`{"type":"ADDED","object":{"metadata":{"name":"churn-branch-2","uid":"2"},"status":{"phase":"Running"}}}`,
		`{"type":"MODIFIED","object":{"metadata":{"name":"churn-regular-1","uid":"1"},"status":{"phase":"Running","podIP":"192.168.0.9"}}}`,
		`{"type":"MODIFIED","object":{"metadata":{"name":"churn-branch-2","uid":"2","deletionTimestamp":"2026-11-29T21:00:00Z"},"status":{"phase":"Running","podIP":"192.168.0.8"}}}`,
		`{"type":"MODIFIED","object":{"metadata":{"name":"churn-regular-1","uid":"1","deletionTimestamp":"2026-11-29T21:00:00Z"},"status":{"phase":"Failed"}}}`,
		`{"type":"DELETED","object":{"metadata":{"name":"churn-regular-1","uid":"1","deletionTimestamp":"2026-11-29T21:00:00Z"}}}`,
		`{"type":"ADDED","object":{"metadata":{"name":"churn-regular-3","uid":"3"},"status":{"phase":"Failed"}}}`)
	if p := pods["1"]; p.ran.IsZero() || p.ip != "192.168.0.9" || !p.told || !p.gone || p.failed != "" || !p.regular() {
		t.Errorf("the pod that ran and ended: %+v", p)
	}
	if p := pods["2"]; !p.ran.IsZero() || !p.told || p.gone || p.regular() {
		t.Errorf("the pod that had no address before its end: %+v", p)
	}
	if p := pods["3"]; p.failed == "" || p.told {
		t.Errorf("the pod that failed: %+v", p)
	}
}

func TestTheChurnIsUnderWayWithPodsOfBothKinds(t *testing.T) {
	t0 := time.Now()
	regular := churnPod{name: churnRegular + "-1", created: t0, ran: t0}
	branch := churnPod{name: churnBranch + "-1", created: t0, ran: t0}
	for title, tc := range map[string]struct {
		pods  []churnPod
		since time.Time
		want  bool
	}{
		"enough":          {[]churnPod{regular, branch, regular}, time.Time{}, true},
		"too few":         {[]churnPod{regular, branch}, time.Time{}, false},
		"one kind":        {[]churnPod{regular, regular, regular}, time.Time{}, false},
		"from before":     {[]churnPod{regular, branch, regular}, t0, false},
		"not yet running": {[]churnPod{regular, regular, {name: branch.name, created: t0}}, time.Time{}, false},
	} {
		check := ranSince(tc.since, 3, 1)
		if check(tc.pods) != tc.want {
			t.Errorf("%s: not %t", title, tc.want)
		}
	}
}

func TestEventsOfFailedSandboxesAreSeen(t *testing.T) {
	pods := []churnPod{{name: "churn-regular-1"}, {name: "churn-branch-2"}}
	const good = "churn-regular-1 Scheduled Successfully assigned\nchurn-regular-1 Started Started container\nchurn-branch-2 Started\nother FailedCreatePodSandBox\n" +
		"churn-branch-2 FailedKillPod error killing pod: failed to \"KillContainer\" for \"pause\": ttrpc: closed: unknown\n"
	if err := started(good, pods); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"churn-regular-1 Started\n", good + "churn-branch-2 FailedCreatePodSandBox\n", good + "churn-regular-1 FailedKillPod error killing pod: [failed to \"KillContainer\", failed to \"KillPodSandbox\"]\n", good + "churn-regular-1 FailedKillPod\n"} {
		if started(bad, pods) == nil {
			t.Errorf("not seen: %s", bad)
		}
	}
}

func TestFailedSandboxesAreSeenInTheRuntimesLog(t *testing.T) {
	pods := []churnPod{{name: "churn-regular-1"}}
	const (
		run  = `time="t" level=info msg="RunPodSandbox for &PodSandboxMetadata{Name:churn-regular-1,Uid:u,Namespace:default,Attempt:0,} returns sandbox id \"s\""` + "\n"
		stop = `time="t" level=info msg="StopPodSandbox for \"s\" returns successfully"` + "\n"
	)
	if err := sandboxes(run+stop, pods); err != nil {
		t.Error(err)
	}
	for title, log := range map[string]string{
		"not stopped":    run,
		"not made":       stop,
		"made twice":     run + run + stop,
		"second attempt": strings.Replace(run, "Attempt:0", "Attempt:1", 1) + stop,
		"failed ADD":     run + stop + `time="t" level=error msg="RunPodSandbox for &PodSandboxMetadata{Name:churn-regular-1,Uid:u,Namespace:default,Attempt:0,} failed, error" error="plugin"` + "\n",
		"failed DEL":     run + stop + `time="t" level=error msg="StopPodSandbox for \"s\" failed" error="failed to destroy network for sandbox"` + "\n",
	} {
		if sandboxes(log, pods) == nil {
			t.Errorf("%s: not seen", title)
		}
	}
}
