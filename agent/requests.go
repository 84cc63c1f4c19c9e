package agent

import (
	"net/http"
	"sync"
)

// requests counts requests in progress, because http.Server.Close does not wait
// for them.
type requests struct {
	mu     sync.Mutex // guards what follows
	n      int
	closed bool
	idle   chan struct{}
}

// count wraps next; requests that come after wait are refused.
func (q *requests) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !q.begin() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		defer q.end()
		next.ServeHTTP(w, r)
	})
}

func (q *requests) begin() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.n++
	return true
}

func (q *requests) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.n--
	if q.closed && q.n == 0 {
		close(q.idle)
	}
}

// wait returns when no request is in progress, for good.
func (q *requests) wait() {
	q.mu.Lock()
	q.closed = true
	q.idle = make(chan struct{})
	if q.n == 0 {
		close(q.idle)
	}
	q.mu.Unlock()
	<-q.idle
}
