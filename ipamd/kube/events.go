package kube

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// component names the agent in events.
const component = "aws-node"

// repeat is how long an event that says the same again is not sent.
const repeat = 5 * time.Minute

// Events sends events in the background: nobody waits for them, and one that can't be sent is only logged.
type Events struct {
	c *Client

	mu    sync.Mutex
	last  map[string]time.Time
	queue chan *corev1.Event
}

// Events makes the sender. Run sends.
func (c *Client) Events() *Events {
	return &Events{c: c, last: map[string]time.Time{}, queue: make(chan *corev1.Event, 64)}
}

// Run sends until ctx ends.
func (e *Events) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case ev := <-e.queue:
			try, cancel := context.WithTimeout(ctx, 10*time.Second)
			if err := e.c.opt.API.Create(try, ev); err != nil && ctx.Err() == nil {
				e.c.opt.Log.Warn("event not sent", "reason", ev.Reason, "message", ev.Message, "error", err)
			}
			cancel()
		}
	}
}

// Node warns of something on this node.
func (e *Events) Node(reason, format string, args ...any) {
	// The kubelet names nodes in events by their name as UID, and `kubectl describe node` looks for that.
	e.send(corev1.ObjectReference{Kind: "Node", Name: e.c.opt.NodeName, UID: types.UID(e.c.opt.NodeName)}, reason, fmt.Sprintf(format, args...))
}

// Pod warns of something that happened to a pod.
func (e *Events) Pod(namespace, name, uid, reason, message string) {
	e.send(corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: namespace, Name: name, UID: types.UID(uid)}, reason, message)
}

func (e *Events) send(about corev1.ObjectReference, reason, message string) {
	now := time.Now()
	key := about.Kind + about.Namespace + "/" + about.Name + string(about.UID) + reason + message
	e.mu.Lock()
	for k, at := range e.last {
		if now.Sub(at) > repeat {
			delete(e.last, k)
		}
	}
	_, recent := e.last[key]
	if !recent {
		e.last[key] = now
	}
	e.mu.Unlock()
	if recent {
		return
	}
	namespace := about.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	if len(message) > 1000 {
		message = message[:1000] + "…"
	}
	ev := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%.200s.%x", about.Name, now.UnixNano())},
		InvolvedObject: about, Reason: reason, Message: message, Type: corev1.EventTypeWarning,
		Source:              corev1.EventSource{Component: component, Host: e.c.opt.NodeName},
		FirstTimestamp:      metav1.NewTime(now),
		LastTimestamp:       metav1.NewTime(now),
		Count:               1,
		ReportingController: component, ReportingInstance: e.c.opt.NodeName,
	}
	select {
	case e.queue <- ev:
	default: // a storm of events: the log has it, too
	}
}
