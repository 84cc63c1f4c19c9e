package identity_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caisson-dev/caisson/identity"
)

func TestLimiter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := identity.NewLimiter(0.5, 3)
		for i := range 3 {
			if q, ok := l.Allow("a"); !ok || q.Remaining != 2-i || q.Limit != 3 || q.RetryAfter != 0 {
				t.Errorf("Allow() %d = %+v, %v", i, q, ok)
			}
		}
		q, ok := l.Allow("a")
		if want := (identity.Quota{Limit: 3, Reset: 6 * time.Second, RetryAfter: 2 * time.Second}); ok || q != want {
			t.Errorf("Allow() over the limit = %+v, %v, want %+v", q, ok, want)
		}
		if _, ok := l.Allow("b"); !ok {
			t.Error("one caller used up another's tokens")
		}
		time.Sleep(q.RetryAfter)
		if _, ok := l.Allow("a"); !ok {
			t.Error("refused after RetryAfter")
		}
		if _, ok := l.Allow("a"); ok {
			t.Error("allowed twice after one RetryAfter")
		}
	})
}

func TestLimiterSurvivesManyCallers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := identity.NewLimiter(1, 1)
		l.Allow("busy")
		time.Sleep(500 * time.Millisecond)
		for i := range 9_999 {
			l.Allow(fmt.Sprint(i))
		}
		time.Sleep(400 * time.Millisecond) // nobody is idle yet
		if _, ok := l.Allow("busy"); ok {
			t.Error("a used up bucket was forgotten")
		}
		time.Sleep(time.Hour)
		for i := range 20_000 {
			if _, ok := l.Allow(fmt.Sprint("x", i)); !ok {
				t.Fatal("a new caller was refused")
			}
		}
	})
}

func TestNoLimit(t *testing.T) {
	t.Parallel()
	var none *identity.Limiter
	for _, l := range []*identity.Limiter{none, {}, identity.NewLimiter(0, 0)} {
		for range 100 {
			if q, ok := l.Allow("a"); !ok || q != (identity.Quota{}) {
				t.Fatalf("Allow() without a limit = %+v, %v", q, ok)
			}
		}
	}
}
