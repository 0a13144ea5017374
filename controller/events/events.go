// Package events says to people, by Kubernetes events, what the controller can't do and what they can do about it. It
// keeps an unchanged condition from being said at every attempt: a work queue that backs off comes by many times.
//
// What is worth saying, and in which words, is the caller's. Logs and metrics are not made here.
package events

import (
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// MaxMessage is how many bytes of a message are sent. The API server takes 1024 of them.
const MaxMessage = 1000

// An unchanged event is held back for this long: doubled each time, up to less than the hour that the API server keeps
// events for, so that what lasts stays to be seen.
const (
	FirstRepeat = time.Minute
	LastRepeat  = 32 * time.Minute
)

// Recorder records events, each object's reason and message no more often than the back-off allows. It is safe for
// concurrent use.
type Recorder struct {
	Recorder record.EventRecorder
	Now      func() time.Time

	mu   sync.Mutex
	said map[said]told
}

type said struct {
	uid             types.UID
	reason, message string
}

type told struct {
	at   time.Time
	wait time.Duration // until it may be said again
}

// Warn records a warning.
func (r *Recorder) Warn(o client.Object, reason, format string, args ...any) {
	r.record(o, corev1.EventTypeWarning, reason, Clip(fmt.Sprintf(format, args...)))
}

// Normal records an event that asks nobody to act.
func (r *Recorder) Normal(o client.Object, reason, format string, args ...any) {
	r.record(o, corev1.EventTypeNormal, reason, Clip(fmt.Sprintf(format, args...)))
}

func (r *Recorder) record(o client.Object, kind, reason, message string) {
	if r.due(said{o.GetUID(), reason, message}) {
		r.Recorder.Event(o, kind, reason, message)
	}
}

func (r *Recorder) due(key said) bool {
	now := r.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	last, known := r.said[key]
	if known && now.Before(last.at.Add(last.wait)) {
		return false
	}
	if r.said == nil {
		r.said = map[said]told{}
	}
	// What has not been said for twice its wait is over; should it come back, it is news.
	for k, t := range r.said {
		if !now.Before(t.at.Add(2 * t.wait)) {
			delete(r.said, k)
		}
	}
	wait := FirstRepeat
	if last, known = r.said[key]; known {
		wait = min(2*last.wait, LastRepeat)
	}
	r.said[key] = told{now, wait}
	return true
}

// Clip cuts a message to MaxMessage bytes, between characters.
func Clip(message string) string {
	const more = " …"
	if len(message) <= MaxMessage {
		return message
	}
	cut := MaxMessage - len(more)
	for cut > 0 && !utf8.RuneStart(message[cut]) {
		cut--
	}
	return message[:cut] + more
}
