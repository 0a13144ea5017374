package kube

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// A burst is two questions: one that was under way, and one that is asked after the last of the others came.
func TestPodsThatComeAtOnceShareAQuestionThatIsYoungerThanThey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a questions[map[string]string]
		began := time.Now()
		asked := 0
		ask := func() (map[string]string, error) {
			asked++
			at := fmt.Sprint(time.Since(began))
			time.Sleep(time.Second)
			return map[string]string{"asked": at}, nil
		}
		key := types.NamespacedName{Namespace: "default", Name: "db"}
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 10 * time.Millisecond)
				came := time.Since(began)
				got, err := a.of(t.Context(), key, ask)
				at, perr := time.ParseDuration(got["asked"])
				if err != nil || perr != nil || at < came {
					t.Errorf("came after %s, was told %v, %v", came, got, err)
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		if asked != 2 || len(a.running)+len(a.next) > 0 {
			t.Errorf("asked %d times, left %v, %v", asked, a.running, a.next)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := a.of(ctx, key, ask); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the end while it waits: %v", err)
		}
		if got, err := a.of(t.Context(), types.NamespacedName{Name: "other"}, func() (map[string]string, error) { return nil, errors.New("away") }); err == nil {
			t.Errorf("told %v", got)
		}
		time.Sleep(time.Second) // the one that nobody waits for
	})
}
