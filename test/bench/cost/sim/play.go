package sim

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Agent holds addresses ready, and gives them to pods.
type Agent interface {
	// Add returns what the pod gets one address of; nil: the ADD failed, and the kubelet tries again.
	Add(p *Process) *Unit
	Del(u *Unit)
}

// Contender makes an agent on a node.
type Contender func(*Node) Agent

// Result is what one scenario has cost on one node.
type Result struct {
	Pods     int            `json:"pods"`
	Calls    map[string]int `json:"calls"`
	All      int            `json:"all_calls"`
	Mutating int            `json:"mutating_calls"`
	PerPod   float64        `json:"calls_per_pod"`
	// LastSeconds is when the last pod had its address, from the first pod's ADD; WorstSeconds how long a pod waited at
	// most, MeanSeconds on average.
	LastSeconds  float64 `json:"last_pod_seconds"`
	WorstSeconds float64 `json:"worst_wait_seconds"`
	MeanSeconds  float64 `json:"mean_wait_seconds"`
	FailedADDs   int     `json:"failed_adds"`
	// PeakAddresses and PeakENIs are how many the node held at most, MeanIdle how many no pod held on average, EndAddresses
	// how many it held at the end.
	PeakAddresses int     `json:"peak_addresses"`
	EndAddresses  int     `json:"end_addresses"`
	PeakENIs      int     `json:"peak_enis"`
	MeanIdle      float64 `json:"mean_idle_addresses"`
}

// play is one run.
type play struct {
	node   *Node
	agent  Agent
	random *rand.Rand
	from   time.Duration
	waits  []time.Duration
	last   time.Duration
	failed int
	peak   int
	enis   int
	idle   []int
}

// The kubelet tries a sandbox again after 10 to 15 s.
const (
	againAfter = 10 * time.Second
	againMore  = 5 * time.Second
)

func begin(s Setting, c Contender, seed uint64) *play {
	n := newNode(&Clock{}, s)
	return &play{node: n, agent: c(n), random: rand.New(rand.NewPCG(seed, 0))}
}

// pod asks for an address until it has one, and ends after its life; 0: never.
func (p *play) pod(life time.Duration) {
	p.node.Go(func(q *Process) {
		asked := p.node.now
		u := p.agent.Add(q)
		for ; u == nil; u = p.agent.Add(q) {
			if asked >= p.from {
				p.failed++
			}
			q.Sleep(againAfter + time.Duration(p.random.Int64N(int64(againMore))))
		}
		if asked >= p.from {
			p.waits = append(p.waits, p.node.now-asked)
			p.last = p.node.now
		}
		if life > 0 {
			q.Sleep(life)
			p.agent.Del(u)
		}
	})
}

// measure counts from now on.
func (p *play) measure() (calls map[string]int) {
	p.from, p.waits, p.failed = p.node.now, nil, 0
	p.node.Go(func(q *Process) {
		for {
			all, inUse, _ := p.node.count()
			p.peak, p.enis, p.idle = max(p.peak, all), max(p.enis, len(p.node.ENIs)), append(p.idle, all-inUse)
			q.Sleep(time.Second)
		}
	})
	return p.node.calls()
}

func (p *play) result(before map[string]int) Result {
	defer p.node.Stop()
	r := Result{Pods: len(p.waits), Calls: map[string]int{}, FailedADDs: p.failed, PeakAddresses: p.peak, PeakENIs: p.enis}
	for name, n := range p.node.Calls {
		if n -= before[name]; n > 0 {
			r.Calls[name] = n
			r.All += n
			if Mutating(name) {
				r.Mutating += n
			}
		}
	}
	r.EndAddresses, _, _ = p.node.count()
	if len(p.waits) == 0 {
		return r
	}
	r.PerPod = float64(r.All) / float64(r.Pods)
	r.LastSeconds, r.WorstSeconds = (p.last - p.from).Seconds(), slices.Max(p.waits).Seconds()
	var sum time.Duration
	for _, w := range p.waits {
		sum += w
	}
	r.MeanSeconds = sum.Seconds() / float64(len(p.waits))
	all := 0
	for _, n := range p.idle {
		all += n
	}
	r.MeanIdle = float64(all) / float64(len(p.idle))
	return r
}

const (
	settles = 5 * time.Minute
	after   = 10 * time.Minute
)

// Burst starts pods on a node that has none and whose pool is at its target, so many a second, and looks on for 10 minutes.
func Burst(s Setting, c Contender, pods, perSecond int) Result {
	p := begin(s, c, 1)
	p.node.Run(settles)
	before := p.measure()
	for i := range pods {
		p.node.At(p.node.now+time.Duration(i)*time.Second/time.Duration(perSecond), func() { p.pod(0) })
	}
	p.node.Run(p.node.now + after)
	return p.result(before)
}

// Churn is a node with pods that stay, and others that come at random, so many a minute on average, and end after a random
// life.
func Churn(s Setting, c Contender, stay, perMinute int, life, length time.Duration) Result {
	p := begin(s, c, 2)
	p.node.Run(settles)
	for range stay {
		p.pod(0)
	}
	p.node.Go(func(q *Process) {
		for {
			q.Sleep(time.Duration(p.random.ExpFloat64() * float64(time.Minute) / float64(perMinute)))
			p.pod(time.Duration(p.random.ExpFloat64() * float64(life)))
		}
	})
	p.node.Run(p.node.now + after)
	before := p.measure()
	p.node.Run(p.node.now + length)
	return p.result(before)
}

// Waves is the same number of pods that all start at the beginning of each minute and live equally long, as CronJobs do.
func Waves(s Setting, c Contender, stay, perMinute int, life, length time.Duration) Result {
	p := begin(s, c, 3)
	p.node.Run(settles)
	for range stay {
		p.pod(0)
	}
	p.node.Go(func(q *Process) {
		for {
			for range perMinute {
				p.pod(life)
			}
			q.Sleep(time.Minute)
		}
	})
	p.node.Run(p.node.now + after)
	before := p.measure()
	p.node.Run(p.node.now + length)
	return p.result(before)
}

// Steps lets one pod after the other come, each once the pool has settled, and returns how many units each ENI has after
// so many.
func Steps(s Setting, c Contender, pods int) []int {
	p := begin(s, c, 4)
	defer p.node.Stop()
	p.node.Run(settles)
	for range pods {
		p.pod(0)
		p.node.Run(p.node.now + time.Minute)
	}
	return p.node.PerENI()
}
