package sandbox_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/fake"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/store/storetest"
)

// hanging is the fake provider with an engine that can stop answering.
type hanging struct {
	*fake.Provider

	open, list   atomic.Bool // which calls hang
	first        int64       // so many of the first calls of Open hang
	opens, lists atomic.Int64
	orphan       atomic.Bool // list one box that has no record
}

func (h *hanging) Open(ctx context.Context, handle provider.Handle, a egress.Attachment) (provider.Box, error) {
	if n := h.opens.Add(1); h.open.Load() || n <= h.first {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return h.Provider.Open(ctx, handle, a)
}

func (h *hanging) List(ctx context.Context) ([]provider.Handle, error) {
	h.lists.Add(1)
	if h.list.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if h.orphan.Load() {
		return []provider.Handle{handleOf("iorphan")}, nil
	}
	return h.Provider.List(ctx)
}

func handleOf(id sandbox.ID) provider.Handle {
	return provider.Handle{Provider: "fake", Version: 1, ID: string(id)}
}

// stuckGuard cannot detach.
type stuckGuard struct {
	egress.Guard
	t *testing.T
}

func (g stuckGuard) Detach(ctx context.Context, _ string) error {
	if _, ok := ctx.Deadline(); !ok {
		g.t.Error("Detach() was called without a time limit")
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

// lines is a log that tests read.
type lines struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// wants checks that what went wrong was logged with what to do about it.
func (l *lines) wants(t *testing.T, message string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if strings.Contains(line, message) && strings.Contains(line, "docs/operating.md") {
			return
		}
	}
	t.Errorf("log has no %q that says what to do:\n%s", message, l.text.String())
}

type hangWorld struct {
	*process
	provider *hanging
	log      lines
	started  time.Time
}

// startHanging runs a process over records that an earlier one left in a state,
// and waits until it has recovered.
func startHanging(t *testing.T, records int, state sandbox.State, set func(*hanging), wrap func(egress.Guard) egress.Guard) *hangWorld {
	t.Helper()
	limits := []provider.Limit{provider.LimitMemory, provider.LimitCPU, provider.LimitDisk, sandbox.UnenforcedEgress}
	boxes, err := fake.New(fake.Config{Unenforced: limits, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{db: storetest.SQLite(t), seed: identity.NewSeed()}
	for range records {
		sb := storetest.Sandbox()
		sb.EndsAt = time.Now().Add(24 * time.Hour)
		if err := w.db.Insert(t.Context(), sb, 0, storetest.Created()); err != nil {
			t.Fatal(err)
		}
		if state == sandbox.Pending {
			continue
		}
		_, err := w.db.Mutate(t.Context(), sb.ID, func(s *sandbox.Sandbox) (audit.Event, error) {
			s.State, s.StartedAt, s.Handle = state, time.Now(), handleOf(s.ID)
			return audit.Event{Type: "sandbox.started"}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	cfg := testConfig()
	cfg.Unenforced = limits
	h := &hangWorld{
		process:  &process{w: w, guard: &guard{attached: map[string]egress.Policy{}}, stopped: make(chan struct{})},
		provider: &hanging{Provider: boxes},
	}
	set(h.provider)
	h.Manager, err = sandbox.New(cfg, sandbox.Deps{
		Store: w.db, Templates: resolver{s: w.db}, Provider: h.provider, Guard: wrap(faultyGuard{h.guard, h.process}),
		Policy: policy, Seed: w.seed, Log: slog.New(slog.NewTextHandler(&h.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	h.started = time.Now()
	h.run(t)
	return h
}

func plain(g egress.Guard) egress.Guard { return g }

// unfinished counts the records that have not ended.
func (h *hangWorld) unfinished(t *testing.T) int {
	t.Helper()
	rows, err := h.w.db.Unfinished(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(rows)
}

func TestStartWithAnEngineThatHangs(t *testing.T) {
	t.Parallel()
	const records = 40
	for _, test := range []struct {
		name  string
		state sandbox.State
		set   func(*hanging)
		guard func(egress.Guard) egress.Guard
		most  time.Duration
	}{
		{"opening running boxes", sandbox.Running, func(h *hanging) { h.open.Store(true) }, plain, time.Minute},
		{"ending killed boxes", sandbox.Killing, func(h *hanging) { h.open.Store(true) }, plain, time.Minute},
		{"looking for boxes being created", sandbox.Pending, func(h *hanging) { h.list.Store(true) }, plain, time.Minute},
		{
			"opening, and egress that cannot be detached", sandbox.Running, func(h *hanging) { h.open.Store(true) },
			func(g egress.Guard) egress.Guard { return stuckGuard{g, t} }, 90 * time.Second,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := startHanging(t, records, test.state, test.set, test.guard)
				if took := time.Since(h.started); took > test.most {
					t.Errorf("recovered after %s, want at most %s", took, test.most)
				}
				h.log.wants(t, "sandbox cannot be taken over; will retry")
				h.log.wants(t, "more sandboxes wait to be taken over; will retry")
				if n := h.unfinished(t); n != records {
					t.Errorf("%d records are unfinished, want all %d", n, records)
				}
			})
		})
	}
}

// What a hanging engine kept from being taken over is, when it answers again.
func TestEngineThatAnswersAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := startHanging(t, 40, sandbox.Running, func(p *hanging) { p.open.Store(true) }, plain)
		h.provider.open.Store(false)
		time.Sleep(61 * time.Second) // SweepInterval
		synctest.Wait()
		if n := h.unfinished(t); n != 0 { // the fake provider has no such boxes
			t.Errorf("%d records are unfinished after the next sweep, want 0", n)
		}
	})
}

// Boxes that hang keep no other from being taken over.
func TestSomeBoxesHang(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const hang = 5
		h := startHanging(t, 40, sandbox.Running, func(p *hanging) { p.first = hang }, plain)
		if n := h.unfinished(t); n != hang { // the fake provider has no such boxes
			t.Errorf("%d records are unfinished, want the %d whose boxes hang", n, hang)
		}
	})
}

// Sweeps go on while the provider hangs, and each says so.
func TestSweepsOverAnEngineThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := startHanging(t, 0, "", func(p *hanging) { p.list.Store(true) }, plain)
		if took := time.Since(h.started); took > 0 {
			t.Errorf("recovered after %s, want at once", took)
		}
		time.Sleep(5 * time.Minute)
		if n := h.provider.lists.Load(); n < 3 {
			t.Errorf("boxes were listed %d times in 5 minutes", n)
		}
		h.log.wants(t, "boxes cannot be listed")

		h.provider.orphan.Store(true)
		h.provider.open.Store(true) // which destroys it
		h.provider.list.Store(false)
		time.Sleep(5 * time.Minute)
		if n := h.provider.opens.Load(); n < 3 {
			t.Errorf("the orphan was tried %d times in 5 minutes", n)
		}
		h.log.wants(t, "orphaned box cannot be destroyed; will retry")
	})
}

// The deadline that a take-over sends to the box does not hold up those of
// callers for ever.
func TestDeadlineThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.boot(t, testConfig()).run(t)
		sb := create(t, first)
		if err := first.SetTimeout(t.Context(), alice, sb.ID, time.Hour); err != nil {
			t.Fatal(err)
		}
		first.kill9()
		p := w.boot(t, testConfig())
		p.deadlineHangs.Store(true)
		p.run(t)
		synctest.Wait()
		p.deadlineHangs.Store(false)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := p.SetTimeout(ctx, alice, sb.ID, 90*time.Minute); err != nil {
			t.Errorf("SetTimeout() behind a call that hangs = %v", err)
		}
	})
}
