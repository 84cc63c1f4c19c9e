package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
)

func testAdmission(slots, queue int) *admission {
	return newAdmission(Config{ConcurrentCreates: slots, CreateQueue: queue, CreateQueueWait: 30 * time.Second}, Deps{})
}

// line starts enter for each team, one after the other, and returns where the
// results come in: the team, or the error's code.
func line(ctx context.Context, a *admission, teams ...string) (order chan string, leave chan func()) {
	order, leave = make(chan string, len(teams)), make(chan func(), len(teams))
	for _, team := range teams {
		go func() {
			done, err := a.enter(ctx, identity.TeamID(team), nil)
			if e, ok := errors.AsType[*apierr.Error](err); ok {
				order <- team + " " + e.Code + " " + e.Limit
				return
			}
			if err != nil {
				order <- fmt.Sprint(team, " ", err)
				return
			}
			order <- team
			leave <- done
		}()
		synctest.Wait()
	}
	return order, leave
}

// drain lets everybody through and returns the order.
func drain(order chan string, leave chan func(), n int) (got []string) {
	for len(got) < n {
		synctest.Wait()
		select {
		case who := <-order:
			got = append(got, who)
		case done := <-leave:
			time.Sleep(time.Second)
			done()
		}
	}
	for synctest.Wait(); len(leave) > 0; synctest.Wait() {
		(<-leave)()
	}
	return got
}

func (a *admission) idle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.taken == 0 && a.waiting == 0 && len(a.lines) == 0 && len(a.turns) == 0
}

func TestTeamsTakeTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := testAdmission(1, 10)
		order, leave := line(t.Context(), a, "a", "a", "a", "a", "b", "a", "b", "c")
		got := strings.Join(drain(order, leave, 8), "")
		if want := "aabcabaa"; got != want { // one a has the slot when b and c come
			t.Errorf("order %s, want %s", got, want)
		}
		if !a.idle() {
			t.Error("something is left")
		}
	})
}

func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := testAdmission(2, 3)
		order, leave := line(t.Context(), a, "a", "a", "a", "a", "a", "a")
		got := drain(order, leave, 6)
		if n := len(slices.DeleteFunc(slices.Clone(got), func(s string) bool { return s == "a" })); n != 1 || !slices.Contains(got, "a create_queue_full limits.create_queue") {
			t.Errorf("%v, want one refused", got)
		}
		if !a.idle() {
			t.Error("something is left")
		}
	})
}

// A team that fills the queue does not lock another one out.
func TestFullQueueMakesRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := testAdmission(1, 4)
		order, leave := line(t.Context(), a, "a", "a", "a", "a", "a", "b", "b", "b")
		var refused []string
		got := drain(order, leave, 8)
		for _, s := range got {
			if team, _, ok := strings.Cut(s, " create_queue_full"); ok {
				refused = append(refused, team)
			}
		}
		if want := []string{"a", "a", "b"}; !slices.Equal(refused, want) {
			t.Errorf("refused %v in %v, want %v: both teams have half of the queue", refused, got, want)
		}
		if !a.idle() {
			t.Error("something is left")
		}
	})
}

func TestQueueWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := testAdmission(1, 4)
		hold, err := a.enter(t.Context(), "a", nil)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, err = a.enter(t.Context(), "a", nil)
		e, _ := errors.AsType[*apierr.Error](err)
		if e == nil || e.Code != "create_queue_full" || e.Limit != "limits.create_queue_wait" || e.RetryAfter < time.Second || !errdefs.IsResourceExhausted(err) {
			t.Fatalf("enter() = %v", err)
		}
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("it waited %s, want 30s", took)
		}
		hold()
		if !a.idle() {
			t.Error("something is left")
		}
	})
}

func TestCallerLeavesQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := testAdmission(1, 1)
		hold, err := a.enter(t.Context(), "a", nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(t.Context())
		order, _ := line(ctx, a, "a")
		if _, err := a.enter(t.Context(), "a", nil); !errdefs.IsResourceExhausted(err) {
			t.Errorf("enter() of a full queue = %v", err)
		}
		leave()
		if got := <-order; !strings.Contains(got, "canceled") {
			t.Errorf("the one that left got %s", got)
		}
		next, done := line(t.Context(), a, "b")
		hold()
		if got := <-next; got != "b" {
			t.Errorf("the free place gave %s", got)
		}
		(<-done)()
		if !a.idle() {
			t.Error("something is left")
		}
	})
}

// Called and gone at the same moment: the slot must not get lost.
func TestCallerLeavesWhenCalled(t *testing.T) {
	t.Parallel()
	for range 200 {
		a := testAdmission(1, 1)
		hold, err := a.enter(t.Context(), "a", nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(t.Context())
		got := make(chan error, 1)
		go func() {
			done, err := a.enter(ctx, "a", nil)
			if err == nil {
				done()
			}
			got <- err
		}()
		go leave()
		hold()
		<-got
		if !a.idle() {
			t.Fatal("a slot or a place is lost")
		}
	}
}

func TestRetryAfterFollowsTheRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := testAdmission(1, 2)
		after := func() time.Duration { a.mu.Lock(); defer a.mu.Unlock(); return a.retryAfter() }
		if got := after(); got != unknownRetry {
			t.Errorf("without any start %s, want %s", got, unknownRetry)
		}
		for range 5 {
			done, err := a.enter(t.Context(), "a", nil)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(4 * time.Second)
			done()
		}
		a.waiting = 2
		if got := after(); got != 12*time.Second {
			t.Errorf("with two before it, at one in 4 s: %s, want 12s", got)
		}
		a.waiting = 1000
		if got := after(); got != mostRetry {
			t.Errorf("with many before it %s, want %s", got, mostRetry)
		}
		a.waiting = 0
		time.Sleep(time.Hour)
		if got := after(); got != unknownRetry {
			t.Errorf("an hour later %s, want %s", got, unknownRetry)
		}
	})
}

func TestMemoryAdmission(t *testing.T) {
	t.Parallel()
	var free int64
	var failed error
	a := newAdmission(Config{ConcurrentCreates: 4, CreateQueue: 1, MemoryReserve: 100 << 20}, Deps{FreeMemory: func() (int64, error) { return free, failed }})
	free = 124 << 20 // two fit
	first, err := a.enter(t.Context(), "a", nil)
	if err != nil {
		t.Fatalf("enter() = %v", err)
	}
	second, err := a.enter(t.Context(), "a", nil)
	if err != nil {
		t.Fatalf("the second enter() = %v", err)
	}
	_, err = a.enter(t.Context(), "a", nil)
	e, _ := errors.AsType[*apierr.Error](err)
	if e == nil || e.Code != "no_memory" || !errdefs.IsUnavailable(err) || e.RetryAfter == 0 {
		t.Fatalf("enter() without memory = %v", err)
	}
	for _, figure := range []string{"124 MiB", "100 MiB", "36 MiB", "limits.memory_reserve_mib"} {
		if !strings.Contains(e.Message, figure) {
			t.Errorf("%q does not name %s", e.Message, figure)
		}
	}
	first()
	second()
	free, failed = 0, errors.New("cannot be read")
	done, err := a.enter(t.Context(), "a", nil)
	if err != nil {
		t.Fatalf("enter() where memory cannot be read = %v", err)
	}
	done()
	if !a.idle() {
		t.Error("something is left")
	}
}
