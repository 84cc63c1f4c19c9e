package e2e_test

import (
	"testing"

	"github.com/caisson-dev/caisson/internal/testenv/soak"
)

// A short soak; `make soak` is the long one.
func TestSoak(t *testing.T) {
	s := own(t, "--set", "pool.templates=base=1", "--set", "rate.creates_per_second=0")
	r, err := soak.Run(t.Context(), s, soak.Options{Cycles: 40, Workers: 3, Chaos: 10, Seed: 1, Say: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", r)
	for _, p := range r.Problems {
		t.Error(p)
	}
}
