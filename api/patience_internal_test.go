package api

import (
	"testing"
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
