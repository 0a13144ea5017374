package ipamd

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	eniconfigv1 "github.com/branchline-cni/branchline/api/eniconfig/v1alpha1"
	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// What client-go has to say of watches that end would hide what a test has to say.
func init() { klog.SetSlogLogger(slog.New(slog.DiscardHandler)) }

// watchesBack is how long after the API server's return an agent has it seen again at the latest, also where it came and went
// several times before.
const watchesBack = 75 * time.Second

// apiServer is what a stage knows of its node's way to the API server. It is guarded by the stage.
type apiServer struct {
	away    bool
	since   time.Time      // when it went away, or was back
	gone    int            // how often it went away
	listed  map[string]int // after which absence the node has listed a kind of objects last
	watches []watch.Interface
	// held is what the agent held at the last look since the API server went away, by sandbox.
	held map[string]store.Allocation
	// all are the sandboxes that there were, by id, and last the number of the last one that was wired, by the pod's UID.
	all  map[string]*sandbox
	last map[string]int
}

// newAPI makes the API server, as everybody reaches it and as this node does.
func (s *stage) newAPI() (cluster, node client.WithWatch) {
	scheme, err := kube.Scheme()
	if err != nil {
		s.t.Fatalf("%v", err)
	}
	byName := func(o client.Object) []string { return []string{o.GetName()} }
	cluster = fake.NewClientBuilder().WithScheme(scheme).WithObjects(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}).
		WithStatusSubresource(&ledgerv1.BranchLedger{}).
		WithIndex(&corev1.Pod{}, "spec.nodeName", func(o client.Object) []string { return []string{o.(*corev1.Pod).Spec.NodeName} }).
		WithIndex(&corev1.Node{}, "metadata.name", byName).WithIndex(&cninodev1.CNINode{}, "metadata.name", byName).
		WithIndex(&eniconfigv1.ENIConfig{}, "metadata.name", byName).WithIndex(&ledgerv1.BranchLedger{}, "metadata.name", byName).Build()
	s.outside = apiServer{since: time.Now(), listed: map[string]int{}, held: map[string]store.Allocation{}, all: map[string]*sandbox{}, last: map[string]int{}}
	gone := func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.outside.away {
			return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		}
		return nil
	}
	return cluster, interceptor.NewClient(cluster, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			if err := gone(); err != nil {
				return err
			}
			return c.Get(ctx, key, o, opts...)
		},
		List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) error {
			if err := gone(); err != nil {
				return err
			}
			s.mu.Lock()
			s.outside.listed[fmt.Sprintf("%T", l)] = s.outside.gone
			s.mu.Unlock()
			return c.List(ctx, l, opts...)
		},
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			if err := gone(); err != nil {
				return err
			}
			return c.Create(ctx, o, opts...)
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			if err := gone(); err != nil {
				return err
			}
			return c.Patch(ctx, o, p, opts...)
		},
		Watch: func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) (watch.Interface, error) {
			if err := gone(); err != nil {
				return nil, err
			}
			s.mu.Lock()
			at, listed := s.outside.listed[fmt.Sprintf("%T", l)]
			old := listed && at != s.outside.gone
			s.mu.Unlock()
			if old { // the fake remembers nothing of what happened since that list; an API server's memory is short, too
				return nil, apierrors.NewResourceExpired("what was listed before it went away is too old")
			}
			w, err := c.Watch(ctx, l, opts...)
			if err == nil {
				s.mu.Lock()
				s.outside.watches = append(s.outside.watches, w)
				s.mu.Unlock()
			}
			return w, err
		},
	})
}

// setAPI has the API server go away for this node, or come back. Who is elsewhere goes on to reach it.
func (s *stage) setAPI(there bool) {
	s.mu.Lock()
	o := &s.outside
	if o.away == !there {
		s.mu.Unlock()
		return
	}
	o.away, o.since = !there, time.Now()
	clear(o.held)
	var watches []watch.Interface
	if !there {
		o.gone++
		watches, o.watches = o.watches, nil
	}
	s.mu.Unlock()
	for _, w := range watches {
		w.Stop()
	}
}

func (s *stage) noAPI() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.outside.away
}

// keptWithoutAPI says whether the agent has let go of something which nobody but the absent API server could have told it of. It is
// called with the lock held.
func (s *stage) keptWithoutAPI(v store.View) error {
	o := &s.outside
	if !o.away {
		return nil
	}
	now := map[string]store.Allocation{}
	for _, al := range v.Allocations {
		now[al.ContainerID] = al
	}
	for id, al := range o.held {
		b := o.all[id]
		_, there := now[id]
		if !there && b != nil && !b.heard && o.last[b.uid] <= b.number {
			return fmt.Errorf("sandbox %s held %v, and nobody has told its end: the API server is away since %s", id, al.Addresses(), o.since.Format("04:05.000"))
		}
	}
	o.held = now
	return nil
}

// watched says whether an agent that could have known all pods for long does not. It is called with the lock held.
func (s *stage) watched(a *actor) error {
	if o := &s.outside; o.away || time.Since(o.since) < watchesBack {
		return nil
	}
	for name, uid := range s.uids {
		if p, ok := a.a.opt.Kube.Pod("default", name); (!ok || !p.Is(uid)) && a.a.opt.Kube.PodsSynced() {
			return fmt.Errorf("the API server is back since %s, and the agent does not know pod %s (%s)", s.outside.since.Format("04:05.000"), name, uid)
		}
	}
	return nil
}

// knownTo says whether the agent has the pod in its watch: then nothing that it needs for it is the API server's.
func (b *sandbox) knownTo(a *actor) bool {
	p, ok := a.a.opt.Kube.Pod("default", b.pod)
	return ok && p.Is(b.uid)
}

// blamesAPI says whether an answer is that the API server could not be asked.
func blamesAPI(err error) bool {
	return err != nil && strings.Contains(err.Error(), "could not be asked for")
}
