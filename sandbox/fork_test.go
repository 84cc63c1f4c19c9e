package sandbox_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestFork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	src := pausable(t, p, func(r *sandbox.CreateRequest) {
		r.Name, r.Metadata = "src", map[string]string{"of": "source"}
	})
	if err := w.db.PutName(t.Context(), string(src.ID), "pypi.org", netip.MustParseAddr("198.18.0.1")); err != nil {
		t.Fatal(err)
	}
	before, _ := p.Live(src.ID)
	first := w.boxes.get(src.ID).init
	out, err := p.Fork(t.Context(), alice, src.ID, 3, 10*time.Minute)
	if err != nil || len(out) != 3 {
		t.Fatalf("Fork() = %d results, %v", len(out), err)
	}
	runsOn(t, p, before)
	tokens := map[string]bool{before.AgentToken.Reveal(): true}
	for _, f := range out {
		sb := f.Sandbox
		live, ok := p.Live(sb.ID)
		if f.Err != nil || !ok {
			t.Fatalf("child = %+v, live %v", f, ok)
		}
		if tokens[live.AgentToken.Reveal()] || !live.PrivateTraffic {
			t.Error("a child's access is not its own, or not restricted like the source's")
		}
		tokens[live.AgentToken.Reveal()] = true
		got := w.boxes.get(sb.ID).init
		want := first
		want.SandboxID, want.Hostname, want.AccessToken, want.Now = string(sb.ID), string(sb.ID), live.AgentToken.Reveal(), got.Now
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("the child's agent was told something else (-want +got):\n%s", d)
		}
		if sb.Template != src.Template || sb.Build != src.Build || !cmp.Equal(sb.Metadata, src.Metadata) || !cmp.Equal(sb.Network, src.Network) ||
			sb.Origin != (sandbox.Origin{Sandbox: src.ID}) || sb.EndsAt.Sub(sb.StartedAt) != 10*time.Minute || sb.Name == src.Name {
			t.Errorf("child is %+v", sb)
		}
		if pol, _ := p.guard.policy(sb.ID); !cmp.Equal(pol, src.Egress) {
			t.Errorf("policy of the child is %+v", pol)
		}
		if names, err := w.db.Names(t.Context(), string(sb.ID)); err != nil || len(names) != 1 {
			t.Errorf("names of the child are %v (%v), want the source's", names, err)
		}
	}
	soon(func() bool { return len(w.vault.ids()) == 0 })
	if ids := w.vault.ids(); len(ids) != 0 {
		t.Errorf("artifacts %v are left", ids)
	}
	// A child is a sandbox like any other.
	if _, err := p.Fork(t.Context(), alice, out[0].Sandbox.ID, 1, time.Minute); err != nil {
		t.Errorf("Fork() of a child = %v", err)
	}
	if err := p.Pause(t.Context(), alice, out[1].Sandbox.ID, snapshot.Memory); err != nil {
		t.Errorf("Pause() of a child = %v", err)
	}
	if _, err := p.Fork(t.Context(), alice, out[1].Sandbox.ID, 1, time.Minute); !errdefs.IsConflict(err) {
		t.Errorf("Fork() of a paused one = %v, want conflict", err)
	}
	if _, err := p.Fork(t.Context(), mallory, src.ID, 1, time.Minute); !errdefs.IsNotFound(err) {
		t.Errorf("Fork() by another team = %v, want not found", err)
	}
}

func TestForkLimits(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.MaxPerTeam = 4
	w := newWorld(t)
	p := w.boot(t, cfg).run(t)
	src := pausable(t, p, nil)
	for _, count := range []int{-1, 0, 5, sandbox.MaxFork + 1} {
		if _, err := p.Fork(t.Context(), alice, src.ID, count, time.Minute); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Fork(%d) = %v, want invalid argument", count, err)
		}
	}
	for _, ttl := range []time.Duration{-1, 0, 24 * time.Hour} {
		if _, err := p.Fork(t.Context(), alice, src.ID, 1, ttl); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Fork(%v) = %v, want invalid argument", ttl, err)
		}
	}
	out, err := p.Fork(t.Context(), alice, src.ID, 4, time.Minute)
	if err != nil {
		t.Fatalf("Fork() = %v", err)
	}
	made := 0
	for _, f := range out {
		if f.Err == nil {
			made++
		} else if !errdefs.IsResourceExhausted(f.Err) {
			t.Errorf("child above the limit = %v, want resource exhausted", f.Err)
		}
	}
	soon(func() bool { return len(w.vault.ids()) == 0 })
	if made != 3 || len(w.boxes.ids()) != 4 || len(w.vault.ids()) != 0 {
		t.Errorf("%d children, boxes %v, artifacts %v", made, w.boxes.ids(), w.vault.ids())
	}
}

// Each child succeeds or fails by itself, and what failed leaves nothing.
func TestForkChildFails(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"insert", "copy names", "attach", "restore", "create", "mutate"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			p := w.boot(t, testConfig()).run(t)
			src := pausable(t, p, nil)
			before, _ := p.Live(src.ID)
			p.failNext(call)
			out, err := p.Fork(t.Context(), alice, src.ID, 3, time.Minute)
			if err != nil {
				t.Fatalf("Fork() = %v", err)
			}
			failed := 0
			for _, f := range out {
				if f.Err != nil {
					failed++
				}
				if f.Err != nil && !errors.Is(f.Err, errInjected) {
					t.Errorf("child = %v, want the injected error", f.Err)
				}
			}
			runsOn(t, p, before)
			soon(func() bool { return len(w.vault.ids()) == 0 })
			if failed != 1 || len(w.boxes.ids()) != 3 || len(p.guard.ids()) != 3 || len(w.vault.ids()) != 0 {
				t.Errorf("%d failed; boxes %v, attachments %v, artifacts %v", failed, w.boxes.ids(), p.guard.ids(), w.vault.ids())
			}
		})
	}
}

func TestForkFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	src := pausable(t, p, nil)
	before, _ := p.Live(src.ID)
	p.failNext("snapshot")
	if _, err := p.Fork(t.Context(), alice, src.ID, 3, time.Minute); !errors.Is(err, errInjected) {
		t.Fatalf("Fork() = %v, want the injected error", err)
	}
	runsOn(t, p, before)
	if len(w.boxes.ids()) != 1 || len(w.vault.ids()) != 0 {
		t.Errorf("boxes %v, artifacts %v", w.boxes.ids(), w.vault.ids())
	}
}

// A source that is killed while its children start takes none of them along.
func TestKillSourceOfFork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	src := pausable(t, p, nil)
	w.boxes.creating = func(context.Context, provider.Spec) error {
		_ = p.Kill(context.WithoutCancel(t.Context()), alice, src.ID, "")
		return nil
	}
	out, err := p.Fork(t.Context(), alice, src.ID, 2, time.Minute)
	if err != nil || out[0].Err != nil || out[1].Err != nil {
		t.Fatalf("Fork() = %+v, %v", out, err)
	}
	checkGone(t, p, src.ID, sandbox.Killed, "killed")
	if len(w.boxes.ids()) != 2 {
		t.Errorf("boxes %v, want the children", w.boxes.ids())
	}
}

func TestCrashAtEveryStepOfFork(t *testing.T) {
	t.Parallel()
	for at := int64(1); ; at++ {
		done := false
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			p := w.boot(t, testConfig()).run(t)
			src := pausable(t, p, func(r *sandbox.CreateRequest) { r.Timeout = 2 * time.Hour })
			p.dieAt.Store(p.calls.Load() + at)
			out, err := p.Fork(t.Context(), alice, src.ID, 2, 2*time.Hour)
			survived := !p.dead.Load()
			p.kill9()

			next := w.boot(t, testConfig()).run(t)
			before, ok := next.Live(src.ID)
			if !ok {
				t.Fatalf("died at call %d: the source is gone", at)
			}
			runsOn(t, next, before)
			want := []string{string(src.ID)}
			for _, f := range out {
				if f.Err == nil {
					want = append(want, string(f.Sandbox.ID))
				}
			}
			time.Sleep(15 * time.Minute) // for the sweep
			synctest.Wait()
			if ids := w.vault.ids(); len(ids) != 0 {
				t.Errorf("died at call %d: artifacts %v are left", at, ids)
			}
			// Every child that was promised runs; one that was not may.
			got := w.boxes.ids()
			for _, id := range want {
				if _, ok := next.Live(sandbox.ID(id)); !ok || !slices.Contains(got, id) {
					t.Errorf("died at call %d: %s does not run", at, id)
				}
			}
			for _, id := range got {
				if l, ok := next.Live(sandbox.ID(id)); !ok || w.boxes.get(l.ID).init.AccessToken == "" {
					t.Errorf("died at call %d: box %s is not live, or its agent has no token", at, id)
				}
			}
			if attached := next.guard.ids(); !slices.Equal(attached, got) {
				t.Errorf("died at call %d: boxes %v, attachments %v", at, got, attached)
			}
			if survived {
				done = true
				if err != nil || at < 15 || len(want) != 3 {
					t.Errorf("%d calls, %v, %v: want every step tried", at, err, want)
				}
			}
		})
		if done || t.Failed() {
			return
		}
	}
}

// A fork that is repeated with its key gives the same children; those that are
// missing are made anew.
func TestForkOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	src := create(t, p)
	fork := func(count int, key string) []sandbox.Forked {
		t.Helper()
		out, err := p.ForkOnce(t.Context(), alice, src.ID, count, time.Minute, key)
		if err != nil || len(out) != count {
			t.Fatalf("ForkOnce() = %d, %v", len(out), err)
		}
		return out
	}
	ids := func(out []sandbox.Forked) (ids []sandbox.ID) {
		t.Helper()
		for _, f := range out {
			if f.Err != nil {
				t.Errorf("child: %v", f.Err)
			}
			ids = append(ids, f.Sandbox.ID)
		}
		return ids
	}
	first := ids(fork(3, "k"))
	if again := ids(fork(3, "k")); !slices.Equal(again, first) {
		t.Errorf("repeated: %v, want %v", again, first)
	}
	if other := ids(fork(3, "k2")); slices.Contains(other, first[0]) {
		t.Error("another key gave the same children")
	}
	_, err := p.ForkOnce(t.Context(), alice, src.ID, 2, time.Minute, "k")
	wantCode(t, "ForkOnce(other count)", err, "idempotency_key_reused", apierr.ErrUnprocessable)
	_, err = p.Create(t.Context(), alice, keyed("k"))
	wantCode(t, "Create(key of a fork)", err, "idempotency_key_reused", apierr.ErrUnprocessable)
	_, err = p.ForkOnce(t.Context(), alice, src.ID, 2, time.Minute, "")
	wantCode(t, "ForkOnce(no key)", err, "idempotency_key_invalid", errdefs.ErrInvalidArgument)

	// One that failed is made when it is asked for again; one that ended is not.
	p.failNext("restore")
	partly := fork(3, "k3")
	bad := slices.IndexFunc(partly, func(f sandbox.Forked) bool { return f.Err != nil })
	if bad < 0 {
		t.Fatal("no child failed")
	}
	ended := partly[(bad+1)%3].Sandbox.ID
	if err := p.Kill(t.Context(), alice, ended, ""); err != nil {
		t.Fatal(err)
	}
	whole := fork(3, "k3")
	wantCode(t, "child that ended", whole[(bad+1)%3].Err, "idempotency_key_ended", errdefs.ErrConflict)
	if whole[bad].Err != nil || whole[(bad+2)%3].Sandbox.ID != partly[(bad+2)%3].Sandbox.ID {
		t.Errorf("repeated %+v, want the missing child made and the other kept", whole)
	}

	// The source may have ended, and the server have been killed.
	if err := p.Kill(t.Context(), alice, src.ID, ""); err != nil {
		t.Fatal(err)
	}
	p.kill9()
	p = w.boot(t, testConfig()).run(t)
	if again := ids(fork(3, "k")); !slices.Equal(again, first) {
		t.Errorf("after a crash: %v, want %v", again, first)
	}
}

func TestForkOnceConcurrently(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	src := create(t, p)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := p.ForkOnce(t.Context(), alice, src.ID, 4, time.Minute, "k"); err != nil {
				t.Errorf("ForkOnce() = %v", err)
			}
		})
	}
	wg.Wait()
	if n := len(w.boxes.ids()); n != 5 {
		t.Errorf("%d boxes, want the source and four children", n)
	}
}

// The sweep leaves alone what children are still being made of, however long
// that takes.
func TestSweepDuringFork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := testConfig()
		cfg.ConcurrentCreates, cfg.CreateTimeout, cfg.CreateQueueWait = 1, time.Hour, time.Hour
		p := w.boot(t, cfg).run(t)
		src := pausable(t, p, func(r *sandbox.CreateRequest) { r.Timeout = 2 * time.Hour })
		w.boxes.mu.Lock()
		w.boxes.creating = func(context.Context, provider.Spec) error { time.Sleep(15 * time.Minute); return nil }
		w.boxes.mu.Unlock()
		out, err := p.Fork(t.Context(), alice, src.ID, 2, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range out {
			if f.Err != nil {
				t.Errorf("child: %v", f.Err)
			}
		}
		synctest.Wait() // the artifact is deleted after the answer
		if ids := w.vault.ids(); len(ids) != 0 {
			t.Errorf("artifacts %v are left", ids)
		}
	})
}
