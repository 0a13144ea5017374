package branch

import (
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// repeatAfter is how long an unchanged event is held back.
const repeatAfter = 5 * time.Minute

// Recorder records events, each one only when it differs from the last of its object and reason, or is old enough to be
// said again: a work queue that backs off says the same thing many times.
type Recorder struct {
	Recorder record.EventRecorder
	Now      func() time.Time

	mu   sync.Mutex
	said map[said]told
}

type said struct {
	uid    types.UID
	reason string
}

type told struct {
	message string
	at      time.Time
}

// Warn records a warning.
func (r *Recorder) Warn(o client.Object, reason, format string, args ...any) {
	r.record(o, corev1.EventTypeWarning, reason, clip(fmt.Sprintf(format, args...)))
}

// Normal records an event that asks nobody to act.
func (r *Recorder) Normal(o client.Object, reason, format string, args ...any) {
	r.record(o, corev1.EventTypeNormal, reason, clip(fmt.Sprintf(format, args...)))
}

func (r *Recorder) record(o client.Object, kind, reason, message string) {
	now, key := r.Now(), said{o.GetUID(), reason}
	r.mu.Lock()
	last, known := r.said[key]
	repeat := known && last.message == message && now.Before(last.at.Add(repeatAfter))
	if !repeat {
		if r.said == nil {
			r.said = map[said]told{}
		}
		for k, t := range r.said {
			if !now.Before(t.at.Add(repeatAfter)) {
				delete(r.said, k)
			}
		}
		r.said[key] = told{message, now}
	}
	r.mu.Unlock()
	if !repeat {
		r.Recorder.Event(o, kind, reason, message)
	}
}
