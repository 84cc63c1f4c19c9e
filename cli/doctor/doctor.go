// Package doctor checks whether a machine can run sandboxes. Host holds the
// checks that need only the operating system; those that need the engine are
// injected. Checks change nothing.
package doctor

import (
	"context"
	"fmt"
	"time"
)

// Status is the outcome of a check.
type Status string

// The outcomes. Only Fail makes a report bad.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
	Skip Status = "skip"
)

// Result is what a check found.
type Result struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
	// Fix is the next step where Status is not OK.
	Fix string `json:"fix,omitempty"`
}

// Check is one thing to look at. Run must return within a few seconds after
// ctx has ended; it fills everything of Result but Name.
type Check struct {
	Name string
	Run  func(ctx context.Context) Result
}

// Report is the outcome of all checks.
type Report struct {
	OK     bool     `json:"ok"`
	Checks []Result `json:"checks"`
}

// checkTime bounds one check.
const checkTime = 15 * time.Second

// Run runs the checks one after the other, each with a time limit.
func Run(ctx context.Context, checks []Check) Report {
	r := Report{OK: true, Checks: []Result{}}
	for _, c := range checks {
		res := runOne(ctx, c)
		res.Name = c.Name
		r.OK = r.OK && res.Status != Fail
		r.Checks = append(r.Checks, res)
	}
	return r
}

func runOne(ctx context.Context, c Check) Result {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	done := make(chan Result, 1)
	go func() { done <- c.Run(ctx) }()
	select {
	case res := <-done:
		return res
	case <-ctx.Done():
		return Result{Status: Fail, Detail: fmt.Sprintf("no result within %s", checkTime), Fix: "run it again with --json and report the machine's kernel"}
	}
}

func ok(format string, args ...any) Result {
	return Result{Status: OK, Detail: fmt.Sprintf(format, args...)}
}

func warn(fix, format string, args ...any) Result {
	return Result{Status: Warn, Detail: fmt.Sprintf(format, args...), Fix: fix}
}

func fail(fix, format string, args ...any) Result {
	return Result{Status: Fail, Detail: fmt.Sprintf(format, args...), Fix: fix}
}
