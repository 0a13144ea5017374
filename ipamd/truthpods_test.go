package ipamd

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/test/truth"
)

// What kubelet, runtime and executable do on a stage.

const (
	addPatience  = 60 * time.Second
	betweenTries = 200 * time.Millisecond
)

// create makes a pod in the API server, or a new one of the same name: also while that is away for this node.
func (s *stage) create(name string) {
	s.t.Helper()
	s.mu.Lock()
	s.made++
	uid := fmt.Sprintf("u%d-%s", s.made, name)
	had := s.uids[name] != ""
	s.mu.Unlock()
	if had {
		s.remove(name)
	}
	s.mu.Lock()
	s.uids[name] = uid
	s.mu.Unlock()
	if err := s.cluster.Create(context.Background(), s.podOf(name, uid)); err != nil {
		s.t.Fatalf("%v", err)
	}
}

// asksForSeveral says whether the pods of this name ask for several interfaces.
func asksForSeveral(name string) bool { return name >= "f" }

func (s *stage) podOf(name, uid string) *corev1.Pod {
	p := pod(name, uid)
	if asksForSeveral(name) {
		p.Annotations = map[string]string{kube.NICConfigKey: kube.SeveralNICs}
	}
	return p
}

func (s *stage) remove(name string) {
	s.t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	if err := s.cluster.Delete(context.Background(), p); err != nil {
		s.t.Fatalf("%v", err)
	}
	s.mu.Lock()
	delete(s.uids, name)
	s.mu.Unlock()
}

// free says whether the pod has no sandbox, and nothing is asked for it.
func (s *stage) free(pod string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.sandboxes[pod]
	return b == nil || b.over && !b.busy
}

// living returns the pod's sandbox where it is wired and nothing is asked for it.
func (s *stage) living(pod string) *sandbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.sandboxes[pod]; b != nil && b.live && !b.over && !b.busy {
		return b
	}
	return nil
}

// add runs a new sandbox for the pod.
func (s *stage) add(pod string) *sandbox {
	s.mu.Lock()
	s.made++
	b := &sandbox{id: fmt.Sprintf("%s-%d", pod, s.made), pod: pod, uid: s.uids[pod], busy: true, number: s.made}
	s.sandboxes[pod], s.outside.all[b.id] = b, b
	s.mu.Unlock()
	s.requests.Go(func() { s.ask(b) })
	return b
}

// again repeats a request that was answered.
func (s *stage) again(b *sandbox) {
	s.mu.Lock()
	b.busy = true
	s.mu.Unlock()
	s.requests.Go(func() { s.ask(b) })
}

// ask is an ADD: it goes on with the next agent when one was killed, and undoes what it did when it fails.
func (s *stage) ask(b *sandbox) {
	ctx, cancel := context.WithTimeout(context.Background(), addPatience)
	defer cancel()
	defer func() {
		s.mu.Lock()
		b.busy = false
		s.mu.Unlock()
	}()
	var reply *rpc.AddReply
	var known bool
	err := s.call(ctx, b, func(ctx context.Context, a *actor) (err error) {
		b.agents++ // a former one may have been of the other mode
		known = b.knownTo(a)
		in := addRequest(b.pod, b.uid, b.id)
		in.SeveralInterfaces = true
		reply, err = a.Add(ctx, in)
		if err == nil && !s.wire(b, a, reply) {
			return errKilled
		}
		return err
	})
	s.mu.Lock()
	b.err = err
	failed := err != nil && !b.live
	if failed {
		b.over, b.heard = true, true
	}
	if known && blamesAPI(err) {
		s.note(fmt.Errorf("pod %s was known, and its sandbox %s was told: %w", b.pod, b.id, err))
	}
	if b.live && !b.over && !b.lost && !b.forgotten && err != nil && ctx.Err() == nil {
		s.note(fmt.Errorf("sandbox %s holds %v and asked again: %w", b.id, b.grants, err))
	}
	s.mu.Unlock()
	if failed {
		_ = s.call(ctx, b, func(ctx context.Context, a *actor) error {
			_, err := a.Del(ctx, &rpc.DelRequest{Attachment: addRequest("", "", b.id).Attachment, AddFailed: true})
			return err
		})
	}
}

// call asks the agent that runs, and the next one where that is killed before it has answered.
func (s *stage) call(ctx context.Context, b *sandbox, f func(context.Context, *actor) error) error {
	for ctx.Err() == nil {
		s.mu.Lock()
		a, lost := s.agent, b.lost
		s.mu.Unlock()
		if lost {
			return errKilled
		}
		if a == nil || a.h.dead() {
			_ = sleep(ctx, betweenTries)
			continue
		}
		call, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(a.h.ctx, cancel)
		err := f(call, a)
		stop()
		cancel()
		if !a.h.dead() {
			return err
		}
	}
	return ctx.Err()
}

// wire is what an executable does that was answered; false where the machine or the agent was gone before.
func (s *stage) wire(b *sandbox, a *actor, reply *rpc.AddReply) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.lost || a.h.dead() {
		return false
	}
	b.grants = nil
	for i, r := range append([]*rpc.RegularInterface{reply.GetRegular()}, reply.GetFurther()...) {
		if g, err := netip.ParseAddr(r.GetAddress()); err != nil || g.Is6() != a.a.opt.Config.IPv6 {
			s.note(fmt.Errorf("sandbox %s was told %q, which is no address of the cluster's family", b.id, r.GetAddress()))
			return false
		}
		g := truth.Grant{Address: netip.MustParseAddr(r.GetAddress()), ENI: r.GetEniId(), Card: int(r.GetNetworkCard()), Device: int(r.GetDeviceNumber())}
		if b.grants = append(b.grants, g); g.Card != i {
			s.note(fmt.Errorf("sandbox %s was told %v as interface %d", b.id, g, i))
		}
		s.note(s.told.Told(b.interfaceOf(i), g))
		s.wired[g.Address] = true
	}
	s.outside.last[b.uid] = max(s.outside.last[b.uid], b.number)
	if want := a.a.opt.Config.MultiNIC && asksForSeveral(b.pod); !b.live && want != (len(b.grants) == 2) && b.agents == 1 {
		s.note(fmt.Errorf("sandbox %s has %d interfaces, and asked for several: %t", b.id, len(b.grants), want))
	}
	b.live = true
	return true
}

// del tears a sandbox down; the agent hears of it, or not.
func (s *stage) del(b *sandbox, heard bool) {
	s.mu.Lock()
	b.busy, b.over, b.heard = true, true, heard
	failures := s.failures
	for i, g := range b.grants {
		delete(s.wired, g.Address)
		s.told.Ended(b.interfaceOf(i), !b.forgotten)
	}
	s.mu.Unlock()
	if !heard {
		s.mu.Lock()
		b.busy = false
		s.mu.Unlock()
		return
	}
	s.requests.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		err := s.call(ctx, b, func(ctx context.Context, a *actor) error {
			_, err := a.Del(ctx, delRequest(b.id))
			return err
		})
		s.mu.Lock()
		b.busy, b.err = false, err
		if err != nil && !b.lost && failures == s.failures && s.agent != nil && ctx.Err() == nil {
			s.note(fmt.Errorf("DEL of sandbox %s: %w", b.id, err)) // it needs nothing but the disk
		}
		s.mu.Unlock()
	})
}

// bootTakes is believed to be longer than IMDS is late: who starts without a memory has nothing but IMDS.
const bootTakes = 65 * time.Second

// reboot ends the agent and every sandbox; what is on the disk stays, or goes with the machine's memory.
func (s *stage) reboot(keep bool) {
	s.t.Helper()
	s.kill()
	s.mu.Lock()
	for _, b := range s.sandboxes {
		b.lost, b.over = true, true
	}
	clear(s.wired)
	clear(s.outside.held)
	if !keep {
		clear(s.files)
	}
	s.told.Rebooted()
	s.mu.Unlock()
	time.Sleep(bootTakes)
}

// loseMemory damages the agent's file while none runs.
func (s *stage) loseMemory() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files["/state"] = []byte(`{"version":1,"sha256":"","state":{`)
	for _, b := range s.sandboxes {
		b.forgotten = true
	}
	clear(s.outside.held)
	s.told.CoolDownsLost()
}

// done waits until nothing is asked for any more.
func (s *stage) done() {
	s.t.Helper()
	for s.settle(); s.busy(); { // and an agent that is killed meanwhile is started again
		s.pass(time.Second)
	}
}

func (s *stage) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.sandboxes {
		if b.busy {
			return true
		}
	}
	return false
}
