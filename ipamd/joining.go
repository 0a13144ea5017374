package ipamd

import (
	"context"
	"time"
)

// joinTimeout is how long a pool step waits for the ENI that it attached, and after which EC2 is asked what has become of it.
const joinTimeout = 30 * time.Second

// joining is an ENI that we attached and the inventory does not show yet. It holds a slot and its device index there.
type joining struct {
	card, device int
	// next is when EC2 is asked whether it is still attached, pause how long after that it is asked again.
	next  time.Time
	pause time.Duration
}

const joinPauseMost = 10 * time.Minute

func (a *Agent) join(id string, card, device int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.joining[id] = &joining{card: card, device: device, next: a.opt.Now().Add(a.opt.joinTimeout), pause: a.opt.joinTimeout}
}

// overdue returns the ENIs of which EC2 is to be asked now, and how long until the next one; 0 where none is joining.
func (a *Agent) overdue() (ids []string, next time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.opt.Now()
	for id, j := range a.joining {
		if !now.Before(j.next) {
			ids = append(ids, id)
			j.pause = min(2*j.pause, joinPauseMost)
			j.next = now.Add(j.pause)
		}
		if left := j.next.Sub(now); next == 0 || left < next {
			next = left
		}
	}
	return ids, next
}

// checkJoining lets go of ENIs that somebody detached or deleted before they were seen here: they would hold their slots for
// ever. lost says that there was one.
func (a *Agent) checkJoining(ctx context.Context) (lost bool, next time.Duration) {
	ids, next := a.overdue()
	for _, id := range ids {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		attached, err := a.provision.Attached(call, id)
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				a.metrics.failed("joining")
				a.opt.Log.Warn("whether an ENI that does not show up is still attached can't be found out; it is tried again", "eni", id, "error", err)
			}
			continue
		}
		if attached {
			continue
		}
		lost = true
		a.opt.Log.Warn("an ENI was detached before its link or its metadata came: its slot is free again", "eni", id)
		a.mu.Lock()
		delete(a.joining, id)
		a.mu.Unlock()
	}
	return lost, next
}

// noteUnexplained says whether a link is there that the metadata service does not show yet. It may be an ENI that an earlier run
// of this agent attached: until it is known what it brings, and which device index it has, no other is attached.
func (a *Agent) noteUnexplained(now bool) {
	if a.unexplained.Swap(now) && !now {
		a.changed.Fire()
	}
}
