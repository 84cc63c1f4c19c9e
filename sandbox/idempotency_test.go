package sandbox_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
)

func keyed(key string) sandbox.CreateRequest {
	r := request()
	r.IdempotencyKey = key
	r.Env = map[string]string{"A": "1", "B": "2"}
	return r
}

func mustCreate(t *testing.T, p *process, who identity.Principal, r sandbox.CreateRequest) sandbox.Sandbox {
	t.Helper()
	sb, err := p.Create(t.Context(), who, r)
	if err != nil {
		t.Fatalf("Create(%q) = %v", r.IdempotencyKey, err)
	}
	return sb
}

// wantCode checks the fixed name and the class of an error.
func wantCode(t *testing.T, what string, err error, code string, class error) {
	t.Helper()
	e, ok := errors.AsType[*apierr.Error](err)
	if !ok || e.Code != code || !errors.Is(err, class) {
		t.Errorf("%s = %v, want %s (%v)", what, err, code, class)
	}
}

func TestSameKeySameSandbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	first := mustCreate(t, p, alice, keyed("k"))
	if again := mustCreate(t, p, alice, keyed("k")); again.ID != first.ID {
		t.Errorf("the second create made %s, want %s", again.ID, first.ID)
	}
	if other := mustCreate(t, p, alice, keyed("k2")); other.ID == first.ID {
		t.Error("another key gave the same sandbox")
	}
	if other := mustCreate(t, p, mallory, keyed("k")); other.ID == first.ID {
		t.Error("another team's key gave the same sandbox")
	}
	for name, change := range map[string]func(*sandbox.CreateRequest){
		"timeout":    func(r *sandbox.CreateRequest) { r.Timeout++ },
		"env":        func(r *sandbox.CreateRequest) { r.Env["A"] = "2" },
		"no env":     func(r *sandbox.CreateRequest) { r.Env = nil },
		"template":   func(r *sandbox.CreateRequest) { r.Template = "other" },
		"internet":   func(r *sandbox.CreateRequest) { r.Network.AllowInternet = new(false) },
		"memory":     func(r *sandbox.CreateRequest) { r.Resources.MemoryMiB = 600 },
		"on timeout": func(r *sandbox.CreateRequest) { r.OnTimeout = sandbox.OnTimeoutPause },
	} {
		r := keyed("k")
		change(&r)
		_, err := p.Create(t.Context(), alice, r)
		wantCode(t, "Create(other "+name+")", err, "idempotency_key_reused", apierr.ErrUnprocessable)
	}
	// It is the same one after a crash, too.
	p.kill9()
	p = w.boot(t, testConfig()).run(t)
	again := mustCreate(t, p, alice, keyed("k"))
	if _, ok := p.Live(again.ID); again.ID != first.ID || !ok {
		t.Errorf("after a crash %s (live %v), want %s", again.ID, ok, first.ID)
	}
	if n := len(w.boxes.ids()); n != 3 {
		t.Errorf("%d boxes, want 3", n)
	}
}

// A request that arrives late must not start what nobody waits for.
func TestKeyOfOneThatDoesNotRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	killed := mustCreate(t, p, alice, keyed("killed"))
	if err := p.Kill(t.Context(), alice, killed.ID, ""); err != nil {
		t.Fatal(err)
	}
	_, err := p.Create(t.Context(), alice, keyed("killed"))
	wantCode(t, "Create(killed)", err, "idempotency_key_ended", errdefs.ErrConflict)
	if err == nil || !strings.Contains(err.Error(), string(killed.ID)) {
		t.Errorf("%v does not name the sandbox", err)
	}
	paused := mustCreate(t, p, alice, keyed("paused"))
	if err := p.Pause(t.Context(), alice, paused.ID, snapshot.Memory); err != nil {
		t.Fatal(err)
	}
	_, err = p.Create(t.Context(), alice, keyed("paused"))
	wantCode(t, "Create(paused)", err, "idempotency_key_paused", errdefs.ErrConflict)
	if _, _, err := p.Connect(t.Context(), alice, paused.ID, time.Minute); err != nil {
		t.Fatal(err)
	}
	if again := mustCreate(t, p, alice, keyed("paused")); again.ID != paused.ID {
		t.Errorf("after a resume %s, want %s", again.ID, paused.ID)
	}
}

func TestKeyOfOneThatFailed(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"insert", "attach", "create", "mutate"} {
		w := newWorld(t)
		p := w.boot(t, testConfig()).run(t)
		p.failNext(call)
		if _, err := p.Create(t.Context(), alice, keyed("k")); !errors.Is(err, errInjected) {
			t.Fatalf("Create() with a failing %s = %v", call, err)
		}
		sb := mustCreate(t, p, alice, keyed("k"))
		if again := mustCreate(t, p, alice, keyed("k")); again.ID != sb.ID {
			t.Errorf("after a failed %s: %s, then %s", call, sb.ID, again.ID)
		}
		if got := w.boxes.ids(); !slices.Equal(got, []string{string(sb.ID)}) {
			t.Errorf("after a failed %s: boxes %v, want %s", call, got, sb.ID)
		}
	}
}

func TestKeyIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := testConfig()
		cfg.Idempotency = 10 * time.Second
		p := w.boot(t, cfg).run(t)
		first := mustCreate(t, p, alice, keyed("k"))
		time.Sleep(9 * time.Second)
		if again := mustCreate(t, p, alice, keyed("k")); again.ID != first.ID {
			t.Error("the key was over too early")
		}
		time.Sleep(2 * time.Second)
		later := keyed("k")
		later.Timeout = time.Hour
		if again := mustCreate(t, p, alice, later); again.ID == first.ID {
			t.Error("the key is never over")
		}
	})
}

func TestBadKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	for _, key := range []string{strings.Repeat("k", 256), "a\nb", "a\x00", "ä", "\x7f"} {
		_, err := p.Create(t.Context(), alice, keyed(key))
		wantCode(t, "Create("+key+")", err, "idempotency_key_invalid", errdefs.ErrInvalidArgument)
	}
	mustCreate(t, p, alice, keyed(strings.Repeat("~", 255)))
}

// What is not set must not show in a fingerprint, or the next field that is
// added changes those of all requests.
func TestFingerprintLeavesOutWhatIsNotSet(t *testing.T) {
	t.Parallel()
	for f := range reflect.TypeFor[sandbox.CreateRequest]().Fields() {
		tag := f.Tag.Get("json")
		if tag != "-" && !strings.HasSuffix(tag, ",omitzero") && !strings.HasSuffix(tag, ",omitempty") {
			t.Errorf("field %s has the tag %q", f.Name, tag)
		}
	}
}

// Fifty creates at once with one key make one sandbox.
func TestKeyConcurrently(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]sandbox.Config{"cold": testConfig(), "warm": warmConfig(2)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			p := w.boot(t, cfg).run(t)
			if name == "warm" {
				warmed(t, p, 2)
			}
			var mu sync.Mutex
			ids := map[sandbox.ID]int{}
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					sb, err := p.Create(t.Context(), alice, keyed("k"))
					if err != nil {
						t.Errorf("Create() = %v", err)
					}
					mu.Lock()
					ids[sb.ID]++
					mu.Unlock()
				})
			}
			wg.Wait()
			rows, _, _, err := p.List(t.Context(), alice, sandbox.Filter{})
			if len(ids) != 1 || len(rows) != 1 || err != nil {
				t.Errorf("%d sandboxes answered and %d recorded (%v), want one", len(ids), len(rows), err)
			}
			if name == "warm" {
				warmed(t, p, 2)
				if s := p.PoolStatus()[0]; s.Made != 3 {
					t.Errorf("%d warm boxes were made, want 3: replays took some", s.Made)
				}
			}
		})
	}
}

// A create goes on while anybody waits for it, and ends with the last one.
func TestKeyCallersGoAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	inside, proceed := make(chan struct{}), make(chan struct{})
	w.boxes.creating = func(ctx context.Context, _ provider.Spec) error {
		inside <- struct{}{}
		select {
		case <-proceed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	type result struct {
		sb  sandbox.Sandbox
		err error
	}
	start := func(ctx context.Context) chan result {
		out := make(chan result, 1)
		go func() {
			sb, err := p.Create(ctx, alice, keyed("k"))
			out <- result{sb, err}
		}()
		return out
	}
	first, leave := context.WithCancel(t.Context())
	one := start(first)
	<-inside
	two := start(t.Context())
	for p.Followers(alice.Team, "k") < 2 {
		time.Sleep(time.Millisecond)
	}
	leave()
	for p.Followers(alice.Team, "k") > 1 {
		time.Sleep(time.Millisecond)
	}
	close(proceed)
	if r := <-two; r.err != nil {
		t.Errorf("the one that stayed got %v", r.err)
	}
	<-one
	if err := p.Kill(t.Context(), alice, mustCreate(t, p, alice, keyed("k")).ID, ""); err != nil {
		t.Fatal(err)
	}

	proceed = make(chan struct{})
	last, leave := context.WithCancel(t.Context())
	r := keyed("alone")
	out := make(chan error, 1)
	go func() { _, err := p.Create(last, alice, r); out <- err }()
	<-inside
	leave()
	if err := <-out; !errors.Is(err, context.Canceled) {
		t.Errorf("Create() whose caller left = %v", err)
	}
	if got := w.boxes.ids(); len(got) != 0 {
		t.Errorf("boxes %v are left", got)
	}
	go func() { <-inside; close(proceed) }()
	mustCreate(t, p, alice, r)
}

// The commit went through and its answer was lost: the create goes on.
func TestLostCommit(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]sandbox.Config{"cold": testConfig(), "warm": warmConfig(1)} {
		w := newWorld(t)
		p := w.boot(t, cfg).run(t)
		if name == "warm" {
			warmed(t, p, 1)
		}
		p.loseInsert.Store(true)
		sb := mustCreate(t, p, alice, keyed("k"))
		if again := mustCreate(t, p, alice, keyed("k")); again.ID != sb.ID || p.loseInsert.Load() {
			t.Errorf("%s: %s, then %s", name, sb.ID, again.ID)
		}
	}
}

// Whenever the server dies during a create, repeating it with its key at the
// next one leaves exactly one sandbox.
func TestKeyCrashAtEveryStep(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]sandbox.Config{"cold": testConfig(), "warm": warmConfig(1)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for at := int64(1); ; at++ {
				w := newWorld(t)
				p := w.boot(t, cfg).run(t)
				if name == "warm" {
					warmed(t, p, 1)
				}
				p.dieAt.Store(p.calls.Load() + at)
				first, err := p.Create(t.Context(), alice, keyed("k"))
				survived := !p.dead.Load()
				p.kill9()
				next := w.boot(t, testConfig()).run(t)
				again := mustCreate(t, next, alice, keyed("k"))
				if err == nil && again.ID != first.ID {
					t.Errorf("died at call %d: %s was answered and then %s", at, first.ID, again.ID)
				}
				if third := mustCreate(t, next, alice, keyed("k")); third.ID != again.ID {
					t.Errorf("died at call %d: %s, then %s", at, again.ID, third.ID)
				}
				want := []string{string(again.ID)}
				deadline := time.Now().Add(5 * time.Second)
				for !slices.Equal(w.boxes.ids(), want) && time.Now().Before(deadline) {
					time.Sleep(time.Millisecond) // orphans go after the take-over
				}
				rows, _, _, lerr := next.List(t.Context(), alice, sandbox.Filter{})
				if lerr != nil || len(rows) != 1 || rows[0].State != sandbox.Running || !slices.Equal(w.boxes.ids(), want) {
					t.Errorf("died at call %d: %d open records (%v), boxes %v, want %v", at, len(rows), lerr, w.boxes.ids(), want)
				}
				next.halt()
				if survived {
					if err != nil || at < 4 {
						t.Errorf("%d calls and %v, want every step of the create tried", at, err)
					}
					return
				}
			}
		})
	}
}

// A warm box that turns out to be broken leaves a record that has ended; the key
// goes on to the sandbox that takes its place.
func TestKeyAndBrokenWarmBox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, warmConfig(1)).run(t)
	warm := warmed(t, p, 1)
	p.failNext("claim")
	sb := mustCreate(t, p, alice, keyed("k"))
	if string(sb.ID) == warm[0] {
		t.Error("the broken box was used")
	}
	if again := mustCreate(t, p, alice, keyed("k")); again.ID != sb.ID {
		t.Errorf("repeated: %s, want %s", again.ID, sb.ID)
	}
	if broken, err := w.db.Get(t.Context(), sandbox.ID(warm[0])); err != nil || broken.State != sandbox.Killed || broken.Idempotency.Key != "" {
		t.Errorf("the broken one is %s with key %q (%v)", broken.State, broken.Idempotency.Key, err)
	}
}

// A sandbox that somebody kills while it is created keeps its key: they are done
// with it.
func TestKeyOfOneThatWasKilledOnTheWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	ids := make(chan sandbox.ID, 1)
	w.boxes.creating = func(ctx context.Context, spec provider.Spec) error {
		ids <- sandbox.ID(spec.SandboxID)
		<-ctx.Done()
		return ctx.Err()
	}
	out := make(chan error, 1)
	go func() { _, err := p.Create(t.Context(), alice, keyed("k")); out <- err }()
	if err := p.Kill(t.Context(), alice, <-ids, ""); err != nil {
		t.Fatal(err)
	}
	if err := <-out; !errors.Is(err, errdefs.ErrAborted) {
		t.Errorf("Create(killed) = %v", err)
	}
	_, err := p.Create(t.Context(), alice, keyed("k"))
	wantCode(t, "Create(killed before)", err, "idempotency_key_ended", errdefs.ErrConflict)
}
