package artifacts

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// heartbeat is how often a long step says that it is still at work.
const heartbeat = 30 * time.Second

// progress writes one line per event, never a partial one.
type progress struct {
	mu sync.Mutex
	w  io.Writer
}

func newProgress(w io.Writer) *progress { return &progress{w: w} }

func (p *progress) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "artifacts: "+format+"\n", args...)
}

// start announces a step and repeats itself until the returned function is told
// how it ended.
func (p *progress) start(title, usually string) func(error) {
	if usually != "" {
		usually = " (" + usually + ")"
	}
	p.say("%s: making it%s", title, usually)
	began, ended := time.Now(), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(heartbeat)
		defer t.Stop()
		for {
			select {
			case <-ended:
				return
			case <-t.C:
				p.say("%s: still at it after %s", title, time.Since(began).Round(time.Second))
			}
		}
	})
	return func(err error) {
		close(ended)
		wg.Wait()
		took := time.Since(began).Round(100 * time.Millisecond)
		if err != nil {
			p.say("%s: failed after %s", title, took)
			return
		}
		p.say("%s: done in %s", title, took)
	}
}
