package ingress_test

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
)

// A request waits while its sandbox stands still to be saved, and counts as
// under way until its answer begins.
func TestRequestsPassTheGate(t *testing.T) {
	t.Parallel()
	var inside atomic.Int64
	entered, open := make(chan struct{}), make(chan struct{})
	began, end := make(chan struct{}), make(chan struct{})
	w := start(t, options{ports: map[uint16]http.Handler{3000: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if n := inside.Load(); n != 1 {
			t.Errorf("%d requests are under way, want this one", n)
		}
		_ = http.NewResponseController(rw).Flush() // the answer begins
		close(began)
		<-end
		_, _ = rw.Write([]byte("app"))
	})}})
	w.mu.Lock()
	w.live[boxID].Enter = func(context.Context) func() {
		close(entered)
		<-open
		inside.Add(1)
		return func() { inside.Add(-1) }
	}
	w.mu.Unlock()
	got := make(chan string)
	go func() {
		_, body := w.get(t, "/x", byHeader("3000")...)
		got <- body
	}()
	<-entered
	select {
	case <-began:
		t.Error("the request did not wait")
	default:
	}
	close(open)
	<-began
	close(end)
	if body := <-got; body != "app" {
		t.Errorf("body = %q", body)
	}
	if n := inside.Load(); n != 0 {
		t.Errorf("%d requests are under way after their answer", n)
	}
}
