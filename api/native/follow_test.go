package native_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/api/native"
	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/store/storetest"
)

const (
	// batch is how long the egress log gathers rows before it writes them.
	batch = 100 * time.Millisecond
	// keepalive is when a quiet stream says so and looks by itself.
	keepalive = 15 * time.Second
)

// logs is the native API over real SQLite, inside a synctest bubble: time
// passes only when everything waits.
type logs struct {
	native.Sandboxes // none but those below

	path    string // of the database
	store   *store.Store
	flows   *store.FlowLog
	handler http.Handler
	stop    chan struct{}
	reads   atomic.Int64 // of either log
	// after, when set, is called once after a log was read and before its reader
	// sees the rows.
	after atomic.Pointer[func()]
}

func newLogs(t *testing.T) *logs {
	t.Helper()
	l := &logs{path: filepath.Join(t.TempDir(), "caisson.db"), stop: make(chan struct{})}
	l.store = storetest.Open(t, l.path)
	l.flows = store.NewFlowLog(l.store, 0, 0, slog.New(slog.DiscardHandler))
	l.handler = api.Handler(api.Config{
		Auth: anyone{}, Log: slog.New(slog.DiscardHandler),
		Native: native.Handler(native.Config{
			Sandboxes: l, EgressLog: countedFlows{l.flows, l}, Audit: countedEvents{l.store, l},
			Stop: l.stop, Log: slog.New(slog.DiscardHandler),
		}),
	})
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { _ = l.flows.Run(ctx) })
	t.Cleanup(func() { cancel(); work.Wait() })
	return l
}

// Live knows of no deadline and no box: running is what the record says.
func (l *logs) Live(id sandbox.ID) (*sandbox.Live, bool) {
	sb, err := l.store.Get(context.Background(), id)
	return nil, err == nil && sb.State == sandbox.Running
}

func (l *logs) Get(ctx context.Context, _ identity.Principal, id sandbox.ID) (sandbox.Sandbox, error) {
	return l.store.Get(ctx, id)
}

func (l *logs) read() {
	l.reads.Add(1)
	if f := l.after.Swap(nil); f != nil {
		(*f)()
	}
}

type anyone struct{}

func (anyone) Authenticate(context.Context, string) (identity.Principal, error) {
	return identity.Principal{Team: identity.DefaultTeam, KeyID: "k"}, nil
}

type countedFlows struct {
	*store.FlowLog
	l *logs
}

func (c countedFlows) Records(ctx context.Context, id string, after int64, limit int) ([]egress.Record, error) {
	rows, err := c.FlowLog.Records(ctx, id, after, limit)
	c.l.read()
	return rows, err
}

type countedEvents struct {
	*store.Store
	l *logs
}

func (c countedEvents) Events(ctx context.Context, f audit.Filter) ([]audit.Event, error) {
	rows, err := c.Store.Events(ctx, f)
	c.l.read()
	return rows, err
}

// running adds the record of a running sandbox.
func (l *logs) running(t *testing.T) sandbox.ID {
	t.Helper()
	sb := storetest.Sandbox()
	if err := l.store.Insert(t.Context(), sb, 0, storetest.Created()); err != nil {
		t.Fatal(err)
	}
	l.become(t, sb.ID, sandbox.Running)
	return sb.ID
}

func (l *logs) become(t *testing.T, id sandbox.ID, s sandbox.State) {
	t.Helper()
	if _, err := l.store.Mutate(t.Context(), id, storetest.Become(s)); err != nil {
		t.Fatal(err)
	}
}

func (l *logs) record(t *testing.T, s *store.Store, id sandbox.ID, kind string) {
	t.Helper()
	err := s.Record(t.Context(), audit.Event{Type: kind, Team: string(identity.DefaultTeam), SandboxID: string(id)})
	if err != nil {
		t.Error(err)
	}
}

func flowTo(id sandbox.ID, host string) egress.Record {
	return egress.Record{SandboxID: string(id), At: time.Now(), Kind: "tcp", Host: host, Verdict: egress.Deny}
}

// stream is what one follower has got.
type stream struct {
	leave context.CancelFunc
	done  chan struct{}

	mu    sync.Mutex // guards what follows
	got   bytes.Buffer
	stuck bool // the client reads no more
	until time.Time
}

func (l *logs) follow(t *testing.T, id sandbox.ID, log string) *stream {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &stream{leave: cancel, done: make(chan struct{})}
	r := httptest.NewRequestWithContext(ctx, "GET", "/native/v1/sandboxes/"+string(id)+"/"+log+"?follow=true", nil)
	r.Header.Set("X-API-Key", "key")
	go func() {
		defer close(s.done)
		l.handler.ServeHTTP(s, r)
	}()
	t.Cleanup(func() { cancel(); <-s.done })
	synctest.Wait()
	return s
}

// Header, Write, WriteHeader and Flush implement http.ResponseWriter and
// http.Flusher.
func (s *stream) Header() http.Header { return http.Header{} }
func (s *stream) WriteHeader(int)     {}
func (s *stream) Flush()              {}

func (s *stream) Write(b []byte) (int, error) {
	s.mu.Lock()
	stuck, until := s.stuck, s.until
	if !stuck {
		defer s.mu.Unlock()
		return s.got.Write(b)
	}
	s.mu.Unlock()
	if until.IsZero() {
		until = time.Now().Add(24 * time.Hour)
	}
	time.Sleep(time.Until(until))
	return 0, os.ErrDeadlineExceeded
}

// SetWriteDeadline is for http.ResponseController.
func (s *stream) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until = t
	return nil
}

// wants checks, without letting time pass, how often the follower has got text.
func (s *stream) wants(t *testing.T, text string, times int) {
	t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := strings.Count(s.got.String(), text); n != times {
		t.Errorf("followed log has %q %d times, want %d:\n%s", text, n, times, s.got.String())
	}
}

// over checks that the stream has ended, with the mark of the end or without.
func (s *stream) over(t *testing.T, marks int) {
	t.Helper()
	s.wants(t, "event: end\ndata: {}\n\n", marks)
	select {
	case <-s.done:
	default:
		t.Error("the stream is still open")
	}
}

func TestIdleFollowersDoNotRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLogs(t)
		id, busy := l.running(t), l.running(t)
		const followers = 100
		for i := range followers {
			l.follow(t, id, []string{"events", "egress"}[i%2])
		}
		before := l.reads.Load()
		for i := range 20 {
			l.flows.Add(flowTo(busy, fmt.Sprint("h", i)))
			l.record(t, l.store, busy, "sandbox.limit_hit")
			time.Sleep(keepalive / 40)
		}
		synctest.Wait()
		if n := l.reads.Load() - before; n != 0 {
			t.Errorf("%d idle followers read %d times, want 0", followers, n)
		}
		time.Sleep(keepalive)
		synctest.Wait()
		if n := l.reads.Load() - before; n != followers {
			t.Errorf("%d followers read %d times in %s, want once each", followers, n, keepalive)
		}
	})
}

// A follower that reads no more is let go of.
func TestStuckFollowerIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLogs(t)
		id := l.running(t)
		s := l.follow(t, id, "events")
		s.mu.Lock()
		s.stuck = true
		s.mu.Unlock()
		l.record(t, l.store, id, "sandbox.limit_hit")
		time.Sleep(2 * time.Minute)
		s.over(t, 0)
	})
}

func TestFollowedRowComesWithItsCommit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLogs(t)
		id := l.running(t)
		events, flows := l.follow(t, id, "events"), l.follow(t, id, "egress")
		events.wants(t, "sandbox.running", 1)
		for i := range 5 {
			start := time.Now()
			l.record(t, l.store, id, "sandbox.limit_hit")
			events.wants(t, "sandbox.limit_hit", i+1)
			if took := time.Since(start); took > 0 {
				t.Errorf("event came after %s", took)
			}
			l.flows.Add(flowTo(id, "a.example"))
			time.Sleep(batch)
			flows.wants(t, "a.example", i+1)
		}
	})
}

// A row that is committed while a follower reads, too late for that read, is
// sent at once all the same.
func TestFollowLosesNoWakeUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLogs(t)
		id := l.running(t)
		late := func() { l.record(t, l.store, id, "sandbox.limit_hit") }
		l.after.Store(&late) // of the very first read
		l.follow(t, id, "events").wants(t, "sandbox.limit_hit", 1)

		written := func() {
			l.flows.Add(flowTo(id, "late.example"))
			if err := l.flows.Flush(t.Context()); err != nil {
				t.Error(err)
			}
		}
		l.after.Store(&written)
		l.follow(t, id, "egress").wants(t, "late.example", 1)
	})
}

func TestFollowSendsWhatWasThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLogs(t)
		id := l.running(t)
		l.flows.Add(flowTo(id, "waiting.example")) // not written yet
		l.follow(t, id, "egress").wants(t, "waiting.example", 1)
		// More than one page.
		const rows = 2300
		for i := range rows {
			l.flows.Add(flowTo(id, "many.example"))
			if i%400 == 399 || i == rows-1 {
				if err := l.flows.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		l.follow(t, id, "egress").wants(t, "many.example", rows)
	})
}

func TestFollowEndsWithTheSandbox(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLogs(t)
		id := l.running(t)
		events, flows := l.follow(t, id, "events"), l.follow(t, id, "egress")
		l.become(t, id, sandbox.Killing)
		time.Sleep(2 * time.Second) // its box takes long to end
		events.wants(t, "sandbox.killing", 1)
		events.wants(t, "event: end", 0)
		flows.wants(t, "event: end", 0)

		start := time.Now()
		l.flows.Add(flowTo(id, "last.example"))
		l.become(t, id, sandbox.Killed)
		events.wants(t, "sandbox.killed", 1)
		events.over(t, 1)
		flows.wants(t, "last.example", 1)
		flows.over(t, 1)
		if took := time.Since(start); took > 0 {
			t.Errorf("the streams ended %s after the sandbox", took)
		}
		// One that follows too late gets everything and the end.
		again := l.follow(t, id, "egress")
		again.wants(t, "last.example", 1)
		again.over(t, 1)
	})
}

func TestFollowerLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLogs(t)
		id := l.running(t)
		one, two := l.follow(t, id, "events"), l.follow(t, id, "egress")
		one.leave()
		two.leave()
		one.over(t, 0)
		two.over(t, 0)
		before := l.reads.Load()
		l.record(t, l.store, id, "sandbox.limit_hit")
		synctest.Wait()
		if n := l.reads.Load() - before; n != 0 {
			t.Errorf("%d reads for followers who have left", n)
		}
		three := l.follow(t, id, "events")
		close(l.stop)
		three.over(t, 0)
	})
}

// Rows of another process are not announced; the keepalive finds them.
func TestFollowSeesOtherProcesses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLogs(t)
		id := l.running(t)
		events := l.follow(t, id, "events")
		other, err := store.Open(t.Context(), l.path)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		l.record(t, other, id, "sandbox.limit_hit")
		events.wants(t, "sandbox.limit_hit", 0)
		time.Sleep(keepalive)
		events.wants(t, ": keepalive\n", 1)
		events.wants(t, "sandbox.limit_hit", 1)
	})
}
