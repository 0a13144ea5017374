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
	a := &asked{every: 30 * time.Second, now: func() time.Time { return now }, states: func(_ context.Context, ids []string) (map[string]cloud.State, error) {
		if calls++; len(ids) > cloud.MaxStates {
			t.Fatalf("%d instances in one call", len(ids))
		}
		r := map[string]cloud.State{}
		for _, id := range ids {
			asks[id]++
			r[id] = cloud.Present
		}
		return r, nil
	}}
	const nodes = 1500
	next := map[string]time.Time{}
	for end := now.Add(time.Hour); now.Before(end); now = now.Add(time.Second) {
		for n := range nodes {
			id := fmt.Sprint("i-", n)
			if now.Before(next[id]) {
				continue
			}
			_, _, again, err := a.about(t.Context(), id, false)
			if err != nil {
				t.Fatal(err)
			}
			next[id] = now.Add(again)
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
	a := &asked{every: time.Minute, now: func() time.Time { return now }, states: func(context.Context, []string) (map[string]cloud.State, error) { return nil, nil }}
	ask := func(absent bool) bool {
		t.Helper()
		state, known, _, err := a.about(t.Context(), "i-1", absent)
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
	if a.forget("i-1"); ask(true) {
		t.Error("an answer after it was forgotten")
	}
}
