package events

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
)

func node(uid string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: uid, UID: types.UID(uid)}}
}

// A queue's back-off alone says the same thing every 30 seconds, and two things in turn where two calls fail in turn.
func TestP44AnUnchangedConditionIsSaidWithBackOff(t *testing.T) {
	out := record.NewFakeRecorder(10_000)
	now := time.Unix(1000, 0)
	r := &Recorder{Recorder: out, Now: func() time.Time { return now }}
	for end := now.Add(6 * time.Hour); now.Before(end); now = now.Add(30 * time.Second) {
		r.Warn(node("a"), "Throttled", "one")
		r.Warn(node("a"), "Throttled", "two")
	}
	perMessage := len(out.Events) / 2
	if perMessage < 12 || perMessage > 20 { // 1, 2, 4, …, then every 32 minutes: never gone for an hour
		t.Fatalf("said %d times in six hours", perMessage)
	}
	before := len(out.Events)
	r.Warn(node("b"), "Throttled", "one") // another object
	r.Warn(node("a"), "Denied", "one")    // another reason
	if n := len(out.Events) - before; n != 2 {
		t.Fatalf("%d of 2 new conditions were said", n)
	}
	now = now.Add(3 * LastRepeat)
	r.Warn(node("a"), "Throttled", "one")
	now = now.Add(FirstRepeat)
	r.Warn(node("a"), "Throttled", "one")
	if n := len(out.Events) - before; n != 4 {
		t.Fatalf("a condition that was over is no news when it comes back: %d", n)
	}
	if len(r.said) != 1 {
		t.Fatalf("%d conditions that are over are still kept in memory", len(r.said)-1)
	}
}

func TestAMessageIsCutBetweenCharacters(t *testing.T) {
	for n := range 20 {
		long := strings.Repeat("x", n) + strings.Repeat("é…", 800)
		got := Clip(long)
		if len(got) > MaxMessage || len(got) < MaxMessage-8 || !utf8.ValidString(got) || !strings.HasSuffix(got, " …") {
			t.Fatalf("%d bytes: %q", len(got), got)
		}
	}
	if got := Clip("short"); got != "short" {
		t.Fatal(got)
	}
}
