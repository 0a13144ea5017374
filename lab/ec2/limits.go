package ec2

import (
	"math"
	"time"
)

// Bucket is a token bucket of requests. The zero value doesn't limit.
type Bucket struct {
	Burst     int
	PerSecond float64
}

// Limits are the account's quotas.
type Limits struct {
	// Mutating and Describing are the buckets of each API by its kind; API has those of single APIs that differ.
	// Every API has a bucket of its own, shared by all callers of the account.
	Mutating, Describing Bucket
	API                  map[string]Bucket
	// Interfaces is the quota of ENIs in the region, GroupsPerInterface that of security groups of an ENI; 0 is none.
	Interfaces, GroupsPerInterface int
}

// DefaultLimits are those of an ordinary AWS account.
func DefaultLimits() Limits {
	return Limits{
		Mutating: Bucket{Burst: 50, PerSecond: 5}, Describing: Bucket{Burst: 100, PerSecond: 20},
		Interfaces: 5000, GroupsPerInterface: 5,
	}
}

// NoRequestLimits are the default quotas without any limit on requests.
func NoRequestLimits() *Limits {
	l := DefaultLimits()
	l.Mutating, l.Describing = Bucket{}, Bucket{}
	return &l
}

type bucket struct {
	tokens float64
	at     time.Time
}

// admit takes a token for a call of api, or says that there is none. Called with the lock held.
func (r *Region) admit(api string, mutating bool, now time.Time) bool {
	limit := r.cfg.Limits.Describing
	if mutating {
		limit = r.cfg.Limits.Mutating
	}
	if l, ok := r.cfg.Limits.API[api]; ok {
		limit = l
	}
	if limit == (Bucket{}) {
		return true
	}
	b := r.buckets[api]
	if b == nil {
		b = &bucket{tokens: float64(limit.Burst), at: now}
		r.buckets[api] = b
	}
	if since := now.Sub(b.at); since > 0 {
		b.tokens = math.Min(float64(limit.Burst), b.tokens+since.Seconds()*limit.PerSecond)
		b.at = now
	}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
