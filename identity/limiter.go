package identity

import (
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxBuckets bounds the memory of a Limiter against callers that vary their
// key; the buckets of idle callers go first.
const maxBuckets = 10_000

// Limiter gives every caller a token bucket of its own. Methods are safe for
// concurrent use; the zero Limiter and a nil one allow everything.
type Limiter struct {
	perSecond float64
	burst     int

	mu      sync.Mutex // guards buckets
	buckets map[string]*rate.Limiter
}

// Quota tells a caller where it stands, as HTTP headers want it.
type Quota struct {
	Limit     int // bucket size
	Remaining int // requests left now
	// Reset is when the bucket will be full again, from now.
	Reset time.Duration
	// RetryAfter is zero when the request was allowed, else whole seconds,
	// at least one.
	RetryAfter time.Duration
}

// NewLimiter allows perSecond requests a second on average and burst at once,
// per key. A perSecond of zero or less means no limit.
func NewLimiter(perSecond float64, burst int) *Limiter {
	return &Limiter{perSecond: perSecond, burst: max(burst, 1), buckets: map[string]*rate.Limiter{}}
}

// Allow takes one token from the bucket of key and reports whether there was
// one.
func (l *Limiter) Allow(key string) (Quota, bool) {
	if l == nil || l.perSecond <= 0 {
		return Quota{}, true
	}
	now := time.Now()
	b := l.bucket(key, now)
	ok := b.AllowN(now, 1)
	tokens := math.Max(b.TokensAt(now), 0)
	q := Quota{
		Limit:     l.burst,
		Remaining: int(tokens),
		Reset:     l.after(float64(l.burst) - tokens),
	}
	if !ok {
		q.RetryAfter = max(l.after(1-tokens), time.Second)
	}
	return q, ok
}

// after is how long n tokens take, in whole seconds, rounded up.
func (l *Limiter) after(n float64) time.Duration {
	return time.Duration(math.Ceil(n/l.perSecond)) * time.Second
}

func (l *Limiter) bucket(key string, now time.Time) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b, ok := l.buckets[key]; ok {
		return b
	}
	if len(l.buckets) >= maxBuckets {
		for k, b := range l.buckets {
			if b.TokensAt(now) >= float64(l.burst) {
				delete(l.buckets, k)
			}
		}
	}
	if len(l.buckets) >= maxBuckets {
		// All are in use: forgetting some is a short amnesty, growing without
		// bound would be an outage.
		clear(l.buckets)
	}
	b := rate.NewLimiter(rate.Limit(l.perSecond), l.burst)
	l.buckets[key] = b
	return b
}
