package undo_test

import (
	"context"
	"errors"
	"testing"

	"github.com/caisson-dev/caisson/internal/undo"
	"github.com/google/go-cmp/cmp"
)

func TestRunReversesAllSteps(t *testing.T) {
	t.Parallel()
	var s undo.Stack
	var got []string
	first, second := errors.New("first"), errors.New("second")
	step := func(name string, err error) func(context.Context) error {
		return func(context.Context) error { got = append(got, name); return err }
	}
	s.Add(step("a", first))
	s.Add(step("b", second))
	s.Add(step("c", nil))
	err := s.Run(t.Context())
	if diff := cmp.Diff([]string{"c", "b", "a"}, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if !errors.Is(err, first) || !errors.Is(err, second) {
		t.Errorf("Run() = %v, want both errors", err)
	}
	if err := s.Run(t.Context()); err != nil || len(got) != 3 {
		t.Errorf("second Run() = %v with %d steps, want nothing done", err, len(got))
	}
}

func TestDoneForgets(t *testing.T) {
	t.Parallel()
	var s undo.Stack
	s.Add(func(context.Context) error { return errors.New("ran") })
	s.Done()
	if err := s.Run(t.Context()); err != nil {
		t.Errorf("Run() after Done() = %v, want nil", err)
	}
}
