package api

import (
	"net/http/httptest"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestDeadline(t *testing.T) {
	t.Parallel()
	began := time.Unix(1_000_000, 0)
	for name, c := range map[string]struct {
		after time.Duration
		n     int64
		want  time.Duration // after began
	}{
		"begins":        {0, 0, time.Minute},
		"nothing came":  {30 * time.Second, 0, time.Minute},
		"fast":          {10 * time.Second, 1 << 30, 70 * time.Second},
		"a trickle":     {2 * time.Minute, 6 << 20, 60*time.Second + 48*time.Second},
		"just at pace":  {time.Hour, 128 << 10 * 3600, time.Hour + time.Minute},
		"a large total": {time.Minute, 1 << 45, 2 * time.Minute},
	} {
		if got := deadline(began, began.Add(c.after), c.n).Sub(began); got != c.want {
			t.Errorf("%s: deadline() = %s after it began, want %s", name, got, c.want)
		}
	}
}

// reader is a client that takes so long for every write.
type reader struct {
	*httptest.ResponseRecorder
	takes time.Duration
	until time.Time
}

func (r *reader) SetWriteDeadline(t time.Time) error { r.until = t; return nil }

func (r *reader) Write(b []byte) (int, error) {
	if end := time.Now().Add(r.takes); !r.until.IsZero() && end.After(r.until) {
		time.Sleep(time.Until(r.until))
		return 0, os.ErrDeadlineExceeded
	}
	time.Sleep(r.takes)
	return len(b), nil
}

func TestPatientWriter(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		takes, pause time.Duration
		slow         bool
	}{
		"quick":             {time.Millisecond, 0, false},
		"at pace":           {500 * time.Millisecond, 0, false},
		"a trickle":         {2 * time.Second, 0, true},
		"takes nothing":     {time.Hour, 0, true},
		"the server pauses": {500 * time.Millisecond, 5 * time.Minute, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w, end := PatientWriter(&reader{ResponseRecorder: httptest.NewRecorder(), takes: c.takes})
				defer end()
				var err error
				var waited time.Duration
				for range 1000 {
					began := time.Now()
					_, err = w.Write(make([]byte, 64<<10))
					if waited += time.Since(began); err != nil {
						break
					}
					time.Sleep(c.pause)
				}
				if IsSlow(err) != c.slow || c.slow && waited > 2*time.Minute {
					t.Errorf("Write() = %v after %s", err, waited)
				}
			})
		})
	}
}
