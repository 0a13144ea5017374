package trunk

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/controller/cloud"
)

func TestAZoneOfSilentNodesIsAskedAboutTogetherAndEverLess(t *testing.T) {
	now, calls, asks := time.Unix(1000, 0), 0, map[string]int{}
	a := &Asked{every: 30 * time.Second, now: func() time.Time { return now }, states: func(_ context.Context, ids []string) (map[string]cloud.State, error) {
		if calls++; len(ids) > cloud.MaxStates {
			t.Fatalf("%d instances in one call", len(ids))
		}
		r := map[string]cloud.State{}
		for _, id := range ids {
			asks[id]++
			r[id] = cloud.Running
		}
		return r, nil
	}}
	const nodes = 1500
	var next [nodes]time.Time
	for end := now.Add(time.Hour); now.Before(end); now = now.Add(time.Second) {
		for n := range nodes {
			if now.Before(next[n]) {
				continue
			}
			_, _, again, err := a.About(t.Context(), fmt.Sprint("i-", n), OfNode, false)
			if err != nil {
				t.Fatal(err)
			}
			next[n] = now.Add(again)
		}
	}
	if calls > 200 {
		t.Errorf("%d calls in an hour", calls)
	}
	for n := range nodes {
		if got := asks[fmt.Sprint("i-", n)]; got < 7 || got > 30 {
			t.Fatalf("instance %d was asked about %d times", n, got)
		}
	}
}

func TestAnAnswerFromWhenTheNodeWasThereDoesNotCountForItsAbsence(t *testing.T) {
	now := time.Unix(1000, 0)
	a := &Asked{every: time.Minute, now: func() time.Time { return now }, states: func(context.Context, []string) (map[string]cloud.State, error) { return nil, nil }}
	ask := func(absent bool) bool {
		t.Helper()
		state, known, _, err := a.About(t.Context(), "i-1", OfNode, absent)
		if err != nil || state != cloud.Unknown {
			t.Fatal(state, err)
		}
		return known
	}
	if ask(false) {
		t.Error("answered before it was asked")
	}
	now = now.Add(time.Minute)
	if !ask(false) || ask(true) {
		t.Error("an answer is missing, or too old")
	}
	now = now.Add(time.Minute)
	if !ask(true) {
		t.Error("not asked again")
	}
	if a.Forget("i-1", OfNode); ask(true) {
		t.Error("an answer after it was forgotten")
	}
}

func TestNodeAndSlotsOfAnInstanceAreAskedAboutInOneCall(t *testing.T) {
	now, calls := time.Unix(1000, 0), [][]string{}
	a := &Asked{every: time.Minute, now: func() time.Time { return now }, states: func(_ context.Context, ids []string) (map[string]cloud.State, error) {
		calls = append(calls, ids)
		return map[string]cloud.State{"i-1": cloud.Stopped, "i-2": cloud.Running}, nil
	}}
	ask := func(id string, subject Subject, since int) (cloud.State, bool) {
		t.Helper()
		state, known, _, err := a.About(t.Context(), id, subject, since)
		if err != nil {
			t.Fatal(err)
		}
		return state, known
	}
	ask("i-1", OfNode, 0)
	ask("i-1", OfSlots, 7)
	ask("i-2", OfSlots, 7)
	now = now.Add(time.Minute)
	for range 2 {
		for _, s := range []Subject{OfNode, OfSlots} {
			since := map[Subject]int{OfSlots: 7}[s]
			if state, known := ask("i-1", s, since); !known || state != cloud.Stopped {
				t.Errorf("subject %d: %v, %v", s, state, known)
			}
		}
		if state, known := ask("i-2", OfSlots, 7); !known || state != cloud.Running {
			t.Errorf("%v, %v", state, known)
		}
	}
	if len(calls) != 1 || len(calls[0]) != 2 {
		t.Errorf("asked %v", calls)
	}
	// A pod that ended later: that the instance was stopped before says nothing of its wiring.
	if _, known := ask("i-1", OfSlots, 8); known {
		t.Error("an answer from before the slot's pod ended")
	}
	if _, known := ask("i-1", OfNode, 0); !known {
		t.Error("the node's answer is gone with the slots'")
	}
}
