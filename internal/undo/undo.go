// Package undo takes back half-done work. Push the reverse of a step right
// after the step succeeded; when all steps have, call Done; else Run.
package undo

import (
	"context"
	"errors"
)

// Stack holds reverse steps. The zero Stack is ready. It belongs to one
// goroutine.
type Stack struct {
	steps []func(context.Context) error
}

// Add pushes the reverse of a step that has just succeeded.
func (s *Stack) Add(step func(context.Context) error) { s.steps = append(s.steps, step) }

// Done forgets all steps: the work stands.
func (s *Stack) Done() { s.steps = nil }

// Run takes the steps back, last first, and forgets them. Every step runs
// whatever the others return; all errors are joined. Call it with a context
// that outlives the failure, such as context.WithoutCancel with a deadline.
func (s *Stack) Run(ctx context.Context) error {
	var errs []error
	for i := len(s.steps) - 1; i >= 0; i-- {
		errs = append(errs, s.steps[i](ctx))
	}
	s.steps = nil
	return errors.Join(errs...)
}
